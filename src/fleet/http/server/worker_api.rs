//! What workers in any language ask for: `/api/worker/…`.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};

use super::service::{ReceivedBody, Refusal, Service};
use super::validation::{Fields, check_id};
use crate::fleet::{Answer, Beat, Claim, ClaimAnswer, LeaseKey, Registration, Stop, WorkerKey};
use crate::health::{Death, DeathCause, Ending, State, StopCause, Thresholds};
use crate::sync::random::random;
use crate::worker::{DEFAULT_GROUP, DEFAULT_INTERVAL, check_limits, check_name};

/// The type of workers that name none.
const DEFAULT_TYPE: &str = "worker";
/// Keeps what a worker said it was, when it said something else than is known here.
const STATUS: &str = "status";

type Reply = Result<Value, Refusal>;

pub(super) fn register(service: &Service, body: &ReceivedBody) -> Reply {
    let mut fields = Fields::read(body)?;
    let id = fields.text(&["worker_id"])?;
    let worker_type = fields
        .text(&["worker_type"])?
        .unwrap_or_else(|| DEFAULT_TYPE.to_owned());
    let group = fields
        .text(&["group"])?
        .unwrap_or_else(|| DEFAULT_GROUP.to_owned());
    let interval = fields.seconds(&["interval", "interval_s", "heartbeat_interval_s"])?;
    let stale_after = fields.seconds(&["stale_after", "stale_after_s"])?;
    let stall_after = fields.seconds(&["stall_after", "stall_after_s"])?;
    let startup_grace = fields.seconds(&["startup_grace", "startup_grace_s"])?;
    check_name("worker_type", &worker_type)?;
    check_name("group", &group)?;
    if let Some(id) = &id {
        check_id(id)?;
    }
    let [some_interval, stale_after, stall_after, startup_grace] =
        [interval, stale_after, stall_after, startup_grace].map(|given| given.map(|given| given.0));
    let interval = some_interval.unwrap_or(match stale_after {
        // Who says only how long it may be silent beats often enough for that.
        Some(stale_after) => (stale_after / 3).min(DEFAULT_INTERVAL),
        None => DEFAULT_INTERVAL,
    });
    let own = check_limits(interval, stale_after, stall_after, startup_grace)?;
    let silent = [some_interval, stale_after, stall_after, startup_grace];
    let thresholds = silent.iter().any(Option::is_some).then_some(own);
    let registration = Registration {
        explicit: id.is_some(),
        group,
        interval,
        metadata: fields.rest()?,
        thresholds,
        ..Registration::new(
            worker_type.clone(),
            id.unwrap_or_else(|| generated(&worker_type)),
        )
    };
    service.admit(&[&registration.id])?;
    let key = service.asked_one(service.store.register(std::slice::from_ref(&registration)))?;
    service.known.lock().learn(&key, 0, &registration.metadata);
    let stale_after = registration
        .thresholds
        .unwrap_or_else(|| Thresholds::new(DEFAULT_INTERVAL * 3))
        .stale_after;
    Ok(json!({
        "worker_id": key.id,
        "incarnation": key.incarnation,
        "heartbeat_interval_s": interval.as_secs_f64(),
        "stale_after_s": stale_after.as_secs_f64(),
    }))
}

/// An id that nobody else has, as far as chance allows; the store makes sure of it.
fn generated(worker_type: &str) -> String {
    format!("{worker_type}-{:010x}", random() >> 24)
}

/// What a worker says of itself.
struct Status {
    state: State,
    /// The word is not known here.
    odd: bool,
    /// It says that it is not well.
    complains: bool,
    word: String,
}

impl Status {
    fn of(word: Option<String>) -> Self {
        let word = word.unwrap_or_default();
        let known = match word.trim().to_ascii_lowercase().as_str() {
            "" | "healthy" | "ok" | "active" | "alive" | "running" | "online" | "up" => {
                Some(State::Active)
            }
            "idle" | "ready" | "waiting" | "available" => Some(State::Idle),
            "busy" | "processing" | "working" => Some(State::Processing),
            "stopping" | "draining" | "terminating" => Some(State::Stopping),
            "starting" | "initializing" | "booting" | "loading" => Some(State::Starting),
            "unhealthy" | "error" | "failing" | "stalled" | "stuck" | "hung" => {
                Some(State::Stalled)
            }
            _ => None,
        };
        let state = known.unwrap_or(State::Active);
        Self {
            state,
            odd: known.is_none(),
            complains: state == State::Stalled,
            word,
        }
    }
}

pub(super) fn heartbeat(service: &Service, body: &ReceivedBody) -> Reply {
    let mut fields = Fields::read(body)?;
    let id = fields.worker_id()?;
    let named = fields.whole(&["incarnation"])?;
    let status = Status::of(fields.text(&[STATUS])?);
    let reason = fields.words(&["reason"])?;
    let run_id = fields.words(&["run_id", "current_run_id"])?;
    let task = fields.words(&["task", "current_task"])?;
    let progress = fields.progress()?;
    let beats = fields.whole(&["beats"])?;
    let metadata = fields.rest()?;
    let complaint = || format!("the worker says that it is {}", status.word.trim());
    let (key, ()) = service.act_as(&id, named, |key| {
        let mut known = service.known.lock();
        let mut metadata = metadata.clone();
        if status.odd || (known.has(&key, STATUS) && !status.word.is_empty()) {
            metadata.push((STATUS.to_owned(), status.word.clone()));
        }
        crate::worker::check_metadata(&metadata)?;
        if !known.add(&key, &metadata) {
            return Err(Refusal::bad(
                "metadata: together with what is known of the worker, there are too many entries",
            ));
        }
        let well = !status.complains && status.state != State::Starting;
        let counted = if well {
            known.count(&key)
        } else {
            known.beats(&key)
        };
        let beat = Beat {
            reason: reason.clone().or_else(|| status.complains.then(complaint)),
            heartbeat_age: (status.state != State::Starting).then(|| body.came.elapsed()),
            progress_age: well.then(|| body.came.elapsed()),
            run_id: run_id.clone().or_else(|| known.run_of(&key)),
            task: task.clone(),
            progress,
            beats: beats.unwrap_or(counted),
            metadata,
            ..Beat::new(key, status.state)
        };
        drop(known);
        let answer = service.asked_one(service.store.beat(std::slice::from_ref(&beat)))?;
        Ok(accepted(answer))
    })?;
    Ok(json!({"worker_id": key.id, "incarnation": key.incarnation, "accepted": true}))
}

const fn accepted(answer: Answer) -> Result<(), Answer> {
    match answer {
        Answer::Accepted => Ok(()),
        refused => Err(refused),
    }
}

pub(super) fn stop(service: &Service, body: &ReceivedBody) -> Reply {
    let mut fields = Fields::read(body)?;
    let id = fields.worker_id()?;
    let named = fields.whole(&["incarnation"])?;
    let error = fields.words(&["error"])?;
    let ending = match error {
        Some(error) => Ending::Dead(Arc::new(Death {
            cause: DeathCause::Failed { error },
            run_id: None,
            task: None,
            at: SystemTime::now(),
            gave_up_after: None,
        })),
        None => {
            let cause = fields.text(&["cause"])?.unwrap_or_default();
            Ending::Stopped(StopCause::from_name(&cause, None))
        }
    };
    let (key, already) = service.act_as(&id, named, |key| {
        let stop = Stop {
            key,
            ending: ending.clone(),
            ago: Duration::ZERO,
        };
        let answer = service.asked_one(service.store.stop(std::slice::from_ref(&stop)))?;
        Ok(match answer {
            Answer::Accepted => Ok(false),
            // The answer to the first request may have been lost.
            Answer::Ended => Ok(true),
            refused => Err(refused),
        })
    })?;
    Ok(json!({
        "worker_id": key.id,
        "incarnation": key.incarnation,
        "stopped": true,
        "already_ended": already,
    }))
}

pub(super) fn claim(service: &Service, body: &ReceivedBody) -> Reply {
    let mut fields = Fields::read(body)?;
    let id = fields.worker_id()?;
    let named = fields.whole(&["incarnation"])?;
    let (run_id, ttl) = (fields.run_id()?, fields.ttl()?);
    let (key, fence) = service.act_as(&id, named, |key| {
        let claim = Claim {
            worker: key,
            run_id: run_id.clone(),
            ttl,
        };
        let answer = service.asked(service.store.claim(&claim))?;
        Ok(match answer {
            ClaimAnswer::Granted(fence) => Ok(Some(fence)),
            ClaimAnswer::Taken => Ok(None),
            ClaimAnswer::Refused(refused) => Err(refused),
        })
    })?;
    if fence.is_some() {
        service.known.lock().leased(&key, &run_id, ttl);
    }
    let mut reply = json!({
        "worker_id": key.id,
        "incarnation": key.incarnation,
        "run_id": run_id,
        "granted": fence.is_some(),
    });
    match fence {
        Some(fence) => {
            reply["fence"] = fence.into();
            reply["ttl_s"] = ttl.as_secs_f64().into();
        }
        None => reply["reason"] = "another worker has it".into(),
    }
    Ok(reply)
}

/// The lease that a request names. Whether it is held hangs on the incarnation, so that is looked up.
fn lease(service: &Service, fields: &mut Fields) -> Result<LeaseKey, Refusal> {
    let id = fields.worker_id()?;
    let named = fields.whole(&["incarnation"])?;
    let run_id = fields.run_id()?;
    let fence = fields.whole(&["fence"])?;
    let fence = fence.ok_or_else(|| Refusal::bad("fence is missing"))?;
    let current = service.look_up(&id)?;
    let current = current.ok_or_else(|| Refusal::of(Answer::Unknown, &id))?;
    let incarnation = named.unwrap_or(current.key.incarnation);
    Ok(LeaseKey {
        worker: WorkerKey { id, incarnation },
        run_id,
        fence,
    })
}

pub(super) fn renew(service: &Service, body: &ReceivedBody) -> Reply {
    let mut fields = Fields::read(body)?;
    let ttl = fields.ttl()?;
    let lease = lease(service, &mut fields)?;
    let held = service.asked_one(service.store.renew(std::slice::from_ref(&lease), ttl))?;
    let mut known = service.known.lock();
    if held {
        known.leased(&lease.worker, &lease.run_id, ttl);
    } else {
        known.released(&lease.worker, &lease.run_id);
    }
    Ok(json!({"run_id": lease.run_id, "fence": lease.fence, "held": held}))
}

pub(super) fn release(service: &Service, body: &ReceivedBody) -> Reply {
    let mut fields = Fields::read(body)?;
    let lease = lease(service, &mut fields)?;
    let held = service.asked_one(service.store.release(std::slice::from_ref(&lease)))?;
    service.known.lock().released(&lease.worker, &lease.run_id);
    Ok(json!({"run_id": lease.run_id, "fence": lease.fence, "released": held}))
}
