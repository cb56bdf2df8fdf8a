//! The requests of [`HttpStore`](crate::HttpStore): `/api/store/…`, many items at a time.

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::service::{ReceivedBody, Refusal, Reply, Service};
use super::validation;
use crate::error::{Error, StoreErrorKind};
use crate::fleet::http::wire::{
    Answers, Items, LARGEST_PAGE, MOST_ITEMS, MOST_ON_PAGE, One, Registered, SweepRequest, VERSION,
    Versioned,
};
use crate::fleet::store::check_count;
use crate::fleet::{
    Beat, Claim, EventFilter, LeaseKey, ProcessIdentity, Registration, Stop, StoredWorker, Sweep,
    WorkerFilter,
};
use crate::serial::Seconds;

/// Reads a request of this version of the protocol.
fn read<T: DeserializeOwned>(body: &[u8], version: impl Fn(&T) -> u32) -> Result<T, Refusal> {
    let other = |version: u32| {
        Refusal::bad(format!(
            "version {version} of the protocol is not supported, only version {VERSION}"
        ))
    };
    match serde_json::from_slice::<T>(body) {
        Ok(request) if version(&request) == VERSION => Ok(request),
        Ok(request) => Err(other(version(&request))),
        Err(error) => Err(match serde_json::from_slice::<Versioned>(body) {
            Ok(said) if said.version != VERSION => other(said.version),
            _ => Refusal::bad(format!("invalid body: {error}")),
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

fn write(what: &impl Serialize) -> Reply<Vec<u8>> {
    serde_json::to_vec(what).map_err(|_| Refusal::new(500, "the answer cannot be written"))
}

/// Passes on as many answers as questions, or what is wrong with the store.
fn answers<A: Serialize>(
    service: &Service,
    asked: usize,
    answers: Result<Vec<A>, Error>,
) -> Reply<Vec<u8>> {
    let answers = service.asked(check_count("answer", asked, answers))?;
    write(&Answers { answers })
}

pub(super) fn register(service: &Service, body: &ReceivedBody) -> Reply<Vec<u8>> {
    let request = items::<Registration>(body)?;
    let workers = request.items;
    for worker in &workers {
        validation::check_registration(worker)?;
    }
    let ids: Vec<&str> = workers.iter().map(|worker| worker.id.as_str()).collect();
    service.admit(&ids)?;
    let keys = service.register(&workers, request.each)?;
    // Workers that are registered here name their incarnation in each heartbeat. It need not be
    // cached, but a cached one of the same id is out of date.
    let mut known = service.known.lock();
    for key in keys.iter().flatten() {
        known.forget(&key.id);
    }
    drop(known);
    let registered = keys.into_iter().map(|key| match key {
        Ok(key) => Ok(Registered::Key(key)),
        Err(refused @ Error::Invalid { .. }) => Ok(Registered::Refused {
            refused: refused.to_string(),
        }),
        Err(Error::Store {
            kind: StoreErrorKind::Busy,
            ..
        }) => Ok(Registered::Busy { busy: true }),
        Err(error) => service.asked(Err(error)),
    });
    let answers = registered.collect::<Reply<Vec<_>>>()?;
    write(&Answers { answers })
}

pub(super) fn beat(service: &Service, body: &ReceivedBody) -> Reply<Vec<u8>> {
    let mut beats = items::<Beat>(body)?.items;
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
    answers(service, beats.len(), service.store.beat(&beats))
}

pub(super) fn stop(service: &Service, body: &ReceivedBody) -> Reply<Vec<u8>> {
    let mut stops = items::<Stop>(body)?.items;
    for stop in &mut stops {
        validation::check_stop(stop)?;
    }
    answers(service, stops.len(), service.store.stop(&stops))
}

pub(super) fn find(service: &Service, body: &ReceivedBody) -> Reply<Vec<u8>> {
    let id: String = one(body)?;
    write(&service.asked(service.store.find(&id))?)
}

/// In the order of ids.
pub(super) fn list(service: &Service, body: &ReceivedBody) -> Reply<Vec<u8>> {
    page(service, body, |filter| service.store.list(filter))
}

/// In the order of severity.
pub(super) fn worst_first(service: &Service, body: &ReceivedBody) -> Reply<Vec<u8>> {
    page(service, body, |filter| service.store.worst_first(filter))
}

/// `{"workers": […], "more": bool}`. A page that has grown large ends before the requested limit.
fn page(
    service: &Service,
    body: &ReceivedBody,
    read: impl Fn(&WorkerFilter) -> Result<Vec<StoredWorker>, Error>,
) -> Reply<Vec<u8>> {
    let mut filter: WorkerFilter = one(body)?;
    let wanted = filter.limit;
    filter.limit = wanted.min(MOST_ON_PAGE);
    let workers = if wanted == 0 {
        Vec::new()
    } else {
        service.asked(read(&filter))?
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

pub(super) fn processes(service: &Service, body: &ReceivedBody) -> Reply<Vec<u8>> {
    let host: ProcessIdentity = one(body)?;
    write(&service.asked(service.store.processes(&host))?)
}

/// [`FleetCounts`](crate::fleet::FleetCounts).
pub(super) fn counts(service: &Service, _: &ReceivedBody) -> Reply<Vec<u8>> {
    write(&service.asked(service.store.counts())?)
}

/// An [`EventPage`](crate::fleet::EventPage), or `null` if the store keeps no events.
pub(super) fn events(service: &Service, body: &ReceivedBody) -> Reply<Vec<u8>> {
    let filter: EventFilter = one(body)?;
    let mut page = service.asked(service.store.events(&filter))?;
    if let Some(page) = &mut page {
        page.cut(&filter, LARGEST_PAGE);
    }
    write(&page)
}

pub(super) fn sweep(service: &Service, body: &ReceivedBody) -> Reply<Vec<u8>> {
    let sweep = Sweep::from(one::<SweepRequest>(body)?);
    write(&service.asked(service.store.sweep(&sweep))?)
}

pub(super) fn purge(service: &Service, body: &ReceivedBody) -> Reply<Vec<u8>> {
    let age: Seconds = one(body)?;
    write(&service.asked(service.store.purge(age.0))?)
}

pub(super) fn claim(service: &Service, body: &ReceivedBody) -> Reply<Vec<u8>> {
    let claim: Claim = one(body)?;
    validation::check_claim(&claim)?;
    write(&service.claim(&claim)?)
}

pub(super) fn withdraw(service: &Service, body: &ReceivedBody) -> Reply<Vec<u8>> {
    let claims = items::<Claim>(body)?.items;
    for claim in &claims {
        validation::check_claim(claim)?;
    }
    answers(service, claims.len(), service.store.withdraw(&claims))
}

pub(super) fn renew(service: &Service, body: &ReceivedBody) -> Reply<Vec<u8>> {
    let request = items::<LeaseKey>(body)?;
    let ttl = request.ttl_s;
    let ttl = ttl.ok_or_else(|| Refusal::bad("ttl_s is missing"))?.0;
    crate::fleet::check_ttl(ttl)?;
    let leases = request.items;
    if request.each {
        return answers(service, leases.len(), service.store.try_renew(&leases, ttl));
    }
    answers(service, leases.len(), service.store.renew(&leases, ttl))
}

pub(super) fn release(service: &Service, body: &ReceivedBody) -> Reply<Vec<u8>> {
    let leases = items::<LeaseKey>(body)?.items;
    answers(service, leases.len(), service.store.release(&leases))
}
