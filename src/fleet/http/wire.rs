//! The protocol between [`HttpStore`](super::HttpStore) and the coordinator.
//!
//! A request is a JSON object with the `version` of this protocol. Names and units are those of all
//! reports: see `serial.rs`.

use std::collections::HashSet;

use serde::{Deserialize, Serialize};

use crate::fleet::{Renewal, Retention, StoredWorker, Sweep, WatchedSpan, WorkerKey};
use crate::serial::Seconds;

/// The version that both sides must speak.
pub(crate) const VERSION: u32 = 1;
/// The largest body of a request of this protocol.
pub(crate) const LARGEST_REQUEST: usize = 4 * 1024 * 1024;
/// A page of a list ends with the worker that makes it larger than this.
pub(crate) const LARGEST_PAGE: usize = 8 * 1024 * 1024;
/// The most workers on a page.
pub(crate) const MOST_ON_PAGE: usize = 1_000;
/// The most items in one request.
pub(crate) const MOST_ITEMS: usize = 5_000;

/// A request about many items.
#[derive(Debug, Deserialize)]
pub(crate) struct Items<T> {
    pub version: u32,
    pub items: Vec<T>,
    /// How long renewed leases last.
    pub ttl_s: Option<Seconds>,
    /// The client reads an answer of its own for each item that is refused or busy: to registrations a
    /// [`Registered`], to renewals a [`Renewal`].
    #[serde(default)]
    pub each: bool,
}

/// The answer to one renewal.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(untagged)]
pub(crate) enum Renewed {
    /// From a coordinator that does not know `each`.
    Held(bool),
    Answer(Renewal),
}

impl From<Renewed> for Renewal {
    fn from(renewed: Renewed) -> Self {
        match renewed {
            Renewed::Held(held) => Self::from(held),
            Renewed::Answer(renewal) => renewal,
        }
    }
}

/// The answer to one registration. A coordinator that does not know `each` answers all with keys, or
/// none.
#[derive(Debug, Deserialize, Serialize)]
#[serde(untagged)]
pub(crate) enum Registered {
    Key(WorkerKey),
    Busy { busy: bool },
    Refused { refused: String },
}

/// The answers to it, in the same order.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct Answers<A> {
    pub answers: Vec<A>,
}

/// A request about one thing.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct One<T> {
    pub version: u32,
    pub what: T,
}

/// Any request.
#[derive(Debug, Deserialize)]
pub(crate) struct Versioned {
    pub version: u32,
}

/// A part of a list.
#[derive(Debug, Deserialize)]
pub(crate) struct Page {
    pub workers: Vec<StoredWorker>,
    pub more: bool,
}

/// A [`Sweep`].
#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct SweepRequest {
    pub threshold_s: Seconds,
    pub watched_for_s: Seconds,
    /// Earlier spans: how long ago each began and ended.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub watched_before_s: Vec<(Seconds, Seconds)>,
    /// All workers whose process is gone. A coordinator that does not know [`gone`](Self::gone)
    /// marks them as killed, and releases their leases at once.
    pub killed: Vec<WorkerKey>,
    /// Those of them that are not known to be killed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gone: Vec<WorkerKey>,
    pub dry_run: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unless_swept_within_s: Option<Seconds>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retention: Option<RetentionRequest>,
}

/// A [`Retention`].
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub(crate) struct RetentionRequest {
    pub stopped_s: Option<Seconds>,
    pub dead_s: Option<Seconds>,
    pub replaced_s: Option<Seconds>,
    /// A client that does not know events keeps them for as long as by default.
    #[serde(default = "events_age")]
    pub events_s: Option<Seconds>,
    #[serde(default = "most_events")]
    pub most_events: Option<usize>,
}

fn events_age() -> Option<Seconds> {
    Retention::new().events.map(Seconds)
}

const fn most_events() -> Option<usize> {
    Retention::new().most_events
}

impl From<Retention> for RetentionRequest {
    fn from(retention: Retention) -> Self {
        Self {
            stopped_s: retention.stopped.map(Seconds),
            dead_s: retention.dead.map(Seconds),
            replaced_s: retention.replaced.map(Seconds),
            events_s: retention.events.map(Seconds),
            most_events: retention.most_events,
        }
    }
}

impl From<RetentionRequest> for Retention {
    fn from(request: RetentionRequest) -> Self {
        let age = |seconds: Option<Seconds>| seconds.map(|seconds| seconds.0);
        Self::none()
            .stopped(age(request.stopped_s))
            .dead(age(request.dead_s))
            .replaced(age(request.replaced_s))
            .events(age(request.events_s))
            .most_events(request.most_events)
    }
}

impl SweepRequest {
    /// As much of the sweep as fits into this number of bytes, one worker at least, and the rest.
    pub(crate) fn new(sweep: &Sweep, largest: usize) -> (Self, Sweep) {
        // Of the other fields, and of what encloses them.
        let mut size = 512 + 48 * sweep.watched_before.len();
        let mut count = 0;
        let mut fits = |key: &WorkerKey, times: usize| {
            size += (escaped_len(&key.id) + 48) * times;
            count += 1;
            count == 1 || size < largest
        };
        let proved: HashSet<&WorkerKey> = sweep.killed.iter().collect();
        let gone = sweep.gone.iter().filter(|key| !proved.contains(key));
        let mut gone: Vec<_> = gone.cloned().collect();
        let mut killed = sweep.killed.clone();
        let fitting = killed.iter().take_while(|key| fits(key, 1)).count();
        let more_killed = killed.split_off(fitting);
        let mut more_gone = gone.clone();
        if more_killed.is_empty() {
            // Each is sent twice.
            let fitting = gone.iter().take_while(|key| fits(key, 2)).count();
            more_gone = gone.split_off(fitting);
        } else {
            gone.clear();
        }
        killed.extend(gone.iter().cloned());
        let request = Self {
            threshold_s: Seconds(sweep.threshold),
            watched_for_s: Seconds(sweep.watched_for),
            watched_before_s: sweep
                .watched_before
                .iter()
                .map(|span| (Seconds(span.began), Seconds(span.ended)))
                .collect(),
            killed,
            gone,
            dry_run: sweep.dry_run,
            unless_swept_within_s: sweep.unless_swept_within.map(Seconds),
            retention: sweep.retention.map(RetentionRequest::from),
        };
        let rest = Sweep {
            killed: more_killed,
            gone: more_gone,
            watched_before: sweep.watched_before.clone(),
            ..*sweep
        };
        (request, rest)
    }
}

/// The bytes of a text in JSON.
fn escaped_len(text: &str) -> usize {
    let escaped = |byte: u8| match byte {
        b'"' | b'\\' => 2,
        ..0x20 => 6,
        _ => 1,
    };
    text.bytes().map(escaped).sum()
}

impl From<SweepRequest> for Sweep {
    fn from(request: SweepRequest) -> Self {
        let gone: HashSet<&WorkerKey> = request.gone.iter().collect();
        let mut killed = request.killed;
        killed.retain(|key| !gone.contains(key));
        Self {
            threshold: request.threshold_s.0,
            watched_for: request.watched_for_s.0,
            watched_before: request
                .watched_before_s
                .into_iter()
                .map(|(began, ended)| WatchedSpan::new(began.0, ended.0))
                .collect(),
            killed,
            gone: request.gone,
            dry_run: request.dry_run,
            unless_swept_within: request.unless_swept_within_s.map(|within| within.0),
            retention: request.retention.map(Retention::from),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(n: usize) -> WorkerKey {
        WorkerKey::new(format!("w-{n}"), 1)
    }

    #[test]
    fn a_sweep_is_read_with_and_without_the_processes_that_are_gone() {
        let read = |text: &str| Sweep::from(serde_json::from_str::<SweepRequest>(text).unwrap());
        let rest = r#""threshold_s":90.0,"watched_for_s":1.0,"dry_run":false"#;
        let (a, b) = (
            r#"{"id":"w-1","incarnation":1}"#,
            r#"{"id":"w-2","incarnation":1}"#,
        );
        let before = read(&format!(r#"{{"killed":[{a}],{rest}}}"#));
        assert_eq!((before.killed, before.gone), (vec![key(1)], vec![]));
        let now = read(&format!(r#"{{"killed":[{a},{b}],"gone":[{b}],{rest}}}"#));
        assert_eq!((now.killed, now.gone), (vec![key(1)], vec![key(2)]));
    }

    #[test]
    fn an_older_coordinator_marks_workers_that_are_gone_as_killed() {
        const LARGEST: usize = 100_000;
        let sweep = Sweep {
            killed: vec![key(1)],
            gone: vec![key(1), key(2)],
            ..Sweep::default()
        };
        let (request, rest) = SweepRequest::new(&sweep, LARGEST);
        assert!(rest.killed.is_empty() && rest.gone.is_empty());
        // It knows this field only.
        assert_eq!(request.killed, [key(1), key(2)]);
        assert_eq!(request.gone, [key(2)]);
        let many = Sweep {
            gone: (0..100_000).map(key).collect(),
            ..Sweep::default()
        };
        let (request, rest) = SweepRequest::new(&many, LARGEST);
        let text = serde_json::to_vec(&request).unwrap();
        let length = text.len();
        assert!(length < LARGEST && length > LARGEST / 2, "{length} bytes");
        assert_eq!(request.gone.len() + rest.gone.len(), 100_000);
        let (one, rest) = SweepRequest::new(&rest, 1);
        assert_eq!((one.killed.len(), one.gone.len()), (1, 1));
        assert!(rest.killed.is_empty());
        let none = SweepRequest::new(&Sweep::default(), LARGEST).0;
        let none = serde_json::to_value(none).unwrap();
        assert!(none.get("gone").is_none());
    }
}
