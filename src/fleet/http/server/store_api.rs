//! What [`HttpStore`](crate::HttpStore) asks for: `/api/store/…`, many at a time.

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::service::{ReceivedBody, Refusal, Service};
use super::validation;
use crate::error::Error;
use crate::fleet::http::wire::{
    AnswerWire, BeatWire, ClaimAnswerWire, ClaimWire, FilterWire, Items, KeyWire, LARGEST_PAGE,
    LeaseWire, MOST_ITEMS, MOST_ON_PAGE, One, RegistrationWire, Seconds, StopWire, SweepWire,
    VERSION, Versioned,
};
use crate::fleet::{Answer, Beat, Claim, LeaseKey, Registration, Stop, Sweep, WorkerFilter};

type Reply = Result<Vec<u8>, Refusal>;

/// Reads a request, if it speaks this version.
fn read<T: DeserializeOwned>(body: &[u8], version: impl Fn(&T) -> u32) -> Result<T, Refusal> {
    let other = |version: u32| {
        Refusal::bad(format!(
            "version {version} of the protocol is not spoken here, only version {VERSION}"
        ))
    };
    match serde_json::from_slice::<T>(body) {
        Ok(request) if version(&request) == VERSION => Ok(request),
        Ok(request) => Err(other(version(&request))),
        Err(error) => Err(match serde_json::from_slice::<Versioned>(body) {
            Ok(said) if said.version != VERSION => other(said.version),
            _ => Refusal::bad(format!("the body is not as it should be: {error}")),
        }),
    }
}

fn items<T: DeserializeOwned>(body: &[u8]) -> Result<Items<T>, Refusal> {
    let request = read(body, |request: &Items<T>| request.version)?;
    if request.items.len() > MOST_ITEMS {
        let count = request.items.len();
        return Err(Refusal::new(
            413,
            format!("{count} items in one request; allowed: {MOST_ITEMS}"),
        ));
    }
    Ok(request)
}

fn one<T: DeserializeOwned>(body: &[u8]) -> Result<T, Refusal> {
    Ok(read(body, |request: &One<T>| request.version)?.what)
}

fn write(what: &impl Serialize) -> Reply {
    serde_json::to_vec(what).map_err(|_| Refusal::new(500, "the answer cannot be written"))
}

fn answers<A: Serialize>(answers: impl IntoIterator<Item = A>) -> Reply {
    #[derive(Serialize)]
    struct Answers<A> {
        answers: Vec<A>,
    }
    write(&Answers {
        answers: answers.into_iter().collect(),
    })
}

/// As many answers as questions, or the store is not to be trusted with any.
fn all<T>(
    service: &Service,
    asked: usize,
    given: Result<Vec<T>, Error>,
) -> Result<Vec<T>, Refusal> {
    service.asked(given.and_then(|given| {
        if given.len() == asked {
            return Ok(given);
        }
        let count = given.len();
        Err(Error::store(
            "answer",
            format_args!("{count} answers to {asked} questions"),
        ))
    }))
}

pub(super) fn register(service: &Service, body: &ReceivedBody) -> Reply {
    let wishes: Vec<Registration> = items::<RegistrationWire>(body)?
        .items
        .into_iter()
        .map(Registration::from)
        .collect();
    for wish in &wishes {
        validation::check_registration(wish)?;
    }
    let ids: Vec<&str> = wishes.iter().map(|wish| wish.id.as_str()).collect();
    service.admit(&ids)?;
    let keys = all(service, wishes.len(), service.store.register(&wishes))?;
    // Whoever is registered here beats with its incarnation: it need not be remembered, but what is
    // remembered of its id is out of date.
    let mut known = service.known.lock();
    for key in &keys {
        known.forget(&key.id);
    }
    drop(known);
    answers(keys.iter().map(KeyWire::from))
}

pub(super) fn beat(service: &Service, body: &ReceivedBody) -> Reply {
    let mut beats: Vec<Beat> = items::<BeatWire>(body)?
        .items
        .into_iter()
        .map(Beat::from)
        .collect();
    for beat in &mut beats {
        validation::check_beat(beat)?;
        if beat.metadata.is_empty() {
            continue;
        }
        let remembered = service.known.lock().incarnation(&beat.key.id);
        if remembered != Some(beat.key.incarnation) {
            service.look_up(&beat.key.id)?;
        }
        if !service.known.lock().add(&beat.key, &beat.metadata) {
            return Err(Refusal::bad(format!(
                "worker {:?}: metadata: too many entries",
                beat.key.id
            )));
        }
    }
    let waited = body.came.elapsed();
    for age in beats
        .iter_mut()
        .flat_map(|beat| [&mut beat.heartbeat_age, &mut beat.progress_age])
    {
        *age = age.map(|age| age.saturating_add(waited));
    }
    let given = all(service, beats.len(), service.store.beat(&beats))?;
    answers(given.into_iter().map(AnswerWire::from))
}

pub(super) fn stop(service: &Service, body: &ReceivedBody) -> Reply {
    let mut request = items::<StopWire>(body)?;
    for stop in &mut request.items {
        validation::check_id(&stop.key.id)?;
        validation::check_detail(&mut stop.ending.detail);
    }
    let stops: Vec<Stop> = request.items.into_iter().map(Stop::from).collect();
    let given: Vec<Answer> = all(service, stops.len(), service.store.stop(&stops))?;
    answers(given.into_iter().map(AnswerWire::from))
}

/// `{"workers": […], "more": bool}`. A page ends when it has grown large, whatever was asked for.
pub(super) fn list(service: &Service, body: &ReceivedBody) -> Reply {
    let mut filter: WorkerFilter = one::<FilterWire>(body)?.into();
    let wanted = filter.limit;
    filter.limit = wanted.min(MOST_ON_PAGE);
    let workers = if wanted == 0 {
        Vec::new()
    } else {
        service.asked(service.store.list(&filter))?
    };
    let mut page = b"{\"workers\":[".to_vec();
    let mut written = 0;
    for worker in &workers {
        if page.len() > LARGEST_PAGE {
            break;
        }
        if written > 0 {
            page.push(b',');
        }
        page.extend(write(worker)?);
        written += 1;
    }
    let more = written < workers.len() || (workers.len() == filter.limit && wanted > filter.limit);
    page.extend_from_slice(format!("],\"more\":{more}}}").as_bytes());
    Ok(page)
}

pub(super) fn sweep(service: &Service, body: &ReceivedBody) -> Reply {
    let sweep: Sweep = one::<SweepWire>(body)?.into();
    write(&service.asked(service.store.sweep(&sweep))?)
}

pub(super) fn purge(service: &Service, body: &ReceivedBody) -> Reply {
    let age: Seconds = one(body)?;
    write(&service.asked(service.store.purge(age.0))?)
}

pub(super) fn claim(service: &Service, body: &ReceivedBody) -> Reply {
    let claim: Claim = one::<ClaimWire>(body)?.into();
    validation::check_claim(&claim)?;
    write(&ClaimAnswerWire::from(
        service.asked(service.store.claim(&claim))?,
    ))
}

pub(super) fn renew(service: &Service, body: &ReceivedBody) -> Reply {
    let request = items::<LeaseWire>(body)?;
    let ttl = request
        .ttl_s
        .ok_or_else(|| Refusal::bad("ttl_s is missing"))?
        .0;
    crate::fleet::check_ttl(ttl)?;
    let leases: Vec<LeaseKey> = request.items.into_iter().map(LeaseKey::from).collect();
    answers(all(
        service,
        leases.len(),
        service.store.renew(&leases, ttl),
    )?)
}

pub(super) fn release(service: &Service, body: &ReceivedBody) -> Reply {
    let request = items::<LeaseWire>(body)?;
    let leases: Vec<LeaseKey> = request.items.into_iter().map(LeaseKey::from).collect();
    answers(all(service, leases.len(), service.store.release(&leases))?)
}
