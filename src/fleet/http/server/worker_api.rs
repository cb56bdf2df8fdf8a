//! The requests of workers in any language: `/api/worker/…`.

use std::time::Duration;

use serde_json::{Value, json};

use super::service::{ReceivedBody, Refusal, Reply, Service};
use super::validation::{Fields, check_id};
use crate::fleet::{
    Answer, Beat, Claim, ClaimAnswer, LeaseKey, Registration, Renewal, Stop, StoredEnding,
    WorkerKey,
};
use crate::health::{DeathCause, State, StopCause, Thresholds};
use crate::sync::random::unpredictable;
use crate::worker::{DEFAULT_GROUP, DEFAULT_INTERVAL, SHORTEST_INTERVAL, check_limits, check_name};

/// The type of workers that don't name one.
const DEFAULT_TYPE: &str = "worker";
/// The metadata entry that keeps a status which is not known here.
const STATUS: &str = "status";

pub(super) fn register(service: &Service, body: &ReceivedBody) -> Reply<Value> {
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
    let refuse_duplicate = fields.flag("refuse_duplicate")?;
    check_name("worker_type", &worker_type)?;
    check_name("group", &group)?;
    if let Some(id) = &id {
        check_id(id)?;
    }
    let [some_interval, stale_after, stall_after, startup_grace] =
        [interval, stale_after, stall_after, startup_grace].map(|given| given.map(|given| given.0));
    let interval = some_interval.unwrap_or(match stale_after {
        // A worker that only says how long it may be silent beats often enough for that.
        Some(stale_after) => (stale_after / 3).clamp(SHORTEST_INTERVAL, DEFAULT_INTERVAL),
        None => DEFAULT_INTERVAL,
    });
    let own = check_limits(interval, stale_after, stall_after, startup_grace)
        .map_err(|error| fields.named(error))?;
    let silent = [some_interval, stale_after, stall_after, startup_grace];
    let thresholds = silent.iter().any(Option::is_some).then_some(own);
    let explicit = id.is_some();
    let id = match id {
        Some(id) => id,
        None => {
            let number = unpredictable().map_err(|error| Refusal::new(500, error.to_string()))?;
            format!("{worker_type}-{:010x}", number >> 24)
        }
    };
    let mut registration = Registration::new(worker_type, id);
    registration.explicit = explicit;
    registration.refuse_duplicate = refuse_duplicate;
    registration.info.group = group;
    registration.info.interval = interval;
    registration.info.metadata = fields.rest()?;
    registration.info.thresholds = thresholds;
    service.admit(&[&registration.id])?;
    let mut keys = service.register(std::slice::from_ref(&registration), false)?;
    let key = keys.pop().ok_or_else(|| Refusal::new(500, "no answer"))??;
    let info = registration.info;
    service.known.lock().learn(&key, 0, &info.metadata);
    let stale_after = info
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

/// The status that a worker reports.
struct ReportedStatus {
    state: State,
    /// The word is not known here.
    is_unknown: bool,
    /// The worker reports that it is not well.
    complains: bool,
    word: String,
}

impl ReportedStatus {
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
            "overdue" => Some(State::Overdue),
            _ => None,
        };
        let state = known.unwrap_or(State::Active);
        Self {
            state,
            is_unknown: known.is_none(),
            complains: state.is_unwell(),
            word,
        }
    }
}

pub(super) fn heartbeat(service: &Service, body: &ReceivedBody) -> Reply<Value> {
    let mut fields = Fields::read(body)?;
    let id = fields.worker_id()?;
    let named = fields.whole(&["incarnation"])?;
    let status = ReportedStatus::of(fields.text(&[STATUS])?);
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
        if status.is_unknown || (known.has(&key, STATUS) && !status.word.is_empty()) {
            metadata.push((STATUS.to_owned(), status.word.clone()));
        }
        crate::worker::check_metadata(&metadata)?;
        if !known.add(&key, &metadata) {
            return Err(Refusal::bad(
                "metadata: too many entries, together with those that the worker has",
            ));
        }
        let well = !status.complains && status.state != State::Starting;
        let counted = if well {
            known.count(&key)
        } else {
            known.beats(&key)
        };
        let run_id = run_id.clone().or_else(|| known.run_of(&key));
        drop(known);
        let mut beat = Beat::new(key, status.state);
        beat.status.reason = reason.clone().or_else(|| status.complains.then(complaint));
        beat.status.run_id = run_id;
        beat.status.task.clone_from(&task);
        beat.status.progress = progress;
        beat.status.beats = beats.unwrap_or(counted);
        beat.heartbeat_age = (status.state != State::Starting).then(|| body.came.elapsed());
        beat.progress_age = well.then(|| body.came.elapsed());
        beat.metadata = metadata;
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

pub(super) fn stop(service: &Service, body: &ReceivedBody) -> Reply<Value> {
    let mut fields = Fields::read(body)?;
    let id = fields.worker_id()?;
    let named = fields.whole(&["incarnation"])?;
    let error = fields.words(&["error"])?;
    let ending = match error {
        Some(error) => StoredEnding::dead(&DeathCause::Failed { error }),
        None => {
            let cause = fields.text(&["cause"])?.unwrap_or_default();
            StoredEnding::stopped(&StopCause::from_name(&cause, None))
        }
    };
    let (key, already) = service.act_as(&id, named, |key| {
        let stop = Stop::new(key, ending.clone());
        let answer = service.asked_one(service.store.stop(std::slice::from_ref(&stop)))?;
        Ok(match answer {
            Answer::Accepted => Ok(false),
            // The answer to an earlier request may have been lost.
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

pub(super) fn claim(service: &Service, body: &ReceivedBody) -> Reply<Value> {
    let mut fields = Fields::read(body)?;
    let id = fields.worker_id()?;
    let named = fields.whole(&["incarnation"])?;
    let (run_id, ttl) = (fields.run_id()?, fields.ttl()?);
    let attempt = fields.whole(&["attempt"])?;
    let (key, fence) = service.act_as(&id, named, |key| {
        let mut claim = Claim::new(key, &run_id, ttl);
        claim.attempt = attempt;
        let answer = service.claim(&claim)?;
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

/// The incarnation that a request about a lease means; the current one is looked up.
fn holder(service: &Service, fields: &mut Fields) -> Result<WorkerKey, Refusal> {
    let id = fields.worker_id()?;
    let named = fields.whole(&["incarnation"])?;
    let current = service.look_up(&id)?;
    let current = current.ok_or_else(|| Refusal::of(Answer::Unknown, &id))?;
    let incarnation = named.unwrap_or(current.key.incarnation);
    Ok(WorkerKey::new(id, incarnation))
}

/// The lease that a request names.
fn lease(service: &Service, fields: &mut Fields) -> Result<LeaseKey, Refusal> {
    let fence = fields.whole(&["fence"])?;
    let fence = fence.ok_or_else(|| Refusal::bad("fence is missing"))?;
    let run_id = fields.run_id()?;
    Ok(LeaseKey::new(holder(service, fields)?, run_id, fence))
}

pub(super) fn renew(service: &Service, body: &ReceivedBody) -> Reply<Value> {
    let mut fields = Fields::read(body)?;
    let ttl = fields.ttl()?;
    let lease = lease(service, &mut fields)?;
    let renewal = service.asked_one(service.store.try_renew(std::slice::from_ref(&lease), ttl))?;
    if renewal == Renewal::Busy {
        return Err(Refusal::of(Answer::Busy, &lease.worker.id));
    }
    let held = renewal == Renewal::Renewed;
    let mut known = service.known.lock();
    if held {
        known.leased(&lease.worker, &lease.run_id, ttl);
    } else {
        known.released(&lease.worker, &lease.run_id);
    }
    Ok(json!({"run_id": lease.run_id, "fence": lease.fence, "held": held}))
}

pub(super) fn release(service: &Service, body: &ReceivedBody) -> Reply<Value> {
    let mut fields = Fields::read(body)?;
    if let Some(attempt) = fields.whole(&["attempt"])? {
        // The worker does not know whether it was granted the run.
        let run_id = fields.run_id()?;
        let worker = holder(service, &mut fields)?;
        let claim = Claim::new(worker, run_id, Duration::from_secs(1)).attempt(attempt);
        let held = service.asked_one(service.store.withdraw(std::slice::from_ref(&claim)))?;
        service.known.lock().released(&claim.worker, &claim.run_id);
        return Ok(json!({"run_id": claim.run_id, "attempt": attempt, "released": held}));
    }
    let lease = lease(service, &mut fields)?;
    let held = service.asked_one(service.store.release(std::slice::from_ref(&lease)))?;
    service.known.lock().released(&lease.worker, &lease.run_id);
    Ok(json!({"run_id": lease.run_id, "fence": lease.fence, "released": held}))
}
