//! The live view of a list of workers: the latest rows, and a broadcast of their changes. A change is
//! encoded once for all subscribers.

use std::collections::HashMap;
use std::time::{Duration, SystemTime};

use axum::body::Bytes;
use parking_lot::Mutex;
use serde_json::{Map, Value, json};
use tokio::sync::broadcast;

use super::events::{DashboardEvent, unix_millis};
use super::history::{BUCKET_SECONDS, BUCKETS, Strip};
use super::rows::{Listing, WorkerRow};
use crate::health::State;

/// Messages that can wait for a subscriber. A slower one receives the whole view again.
pub(super) const MAX_WAITING: usize = 32;
/// Times that differ by less, in seconds, count as equal: ages are rounded.
const TIME_TOLERANCE: f64 = 0.5;

/// See the module.
pub(super) struct LiveView {
    contents: Mutex<Contents>,
    subscribers: broadcast::Sender<Bytes>,
    /// About the process that serves the page.
    server: Value,
}

#[derive(Default)]
struct Contents {
    workers: HashMap<String, DisplayedWorker>,
    last_key: u64,
    /// The number of updates. A worker that the latest update lacks is removed.
    round: u64,
    bucket: u64,
    head: Value,
    now: f64,
    /// The same time in milliseconds since the Unix epoch, by the clock for people.
    wall: u64,
    /// The whole view, encoded for the first subscriber that needs it.
    whole: Option<Bytes>,
}

/// One worker as it was last sent.
struct DisplayedWorker {
    key: u64,
    fields: Map<String, Value>,
    strip: Strip,
    mark: u8,
    round: u64,
}

impl LiveView {
    pub(super) fn new(server: Value) -> Self {
        Self {
            contents: Mutex::new(Contents {
                head: json!({}),
                ..Contents::default()
            }),
            subscribers: broadcast::channel(MAX_WAITING).0,
            server,
        }
    }

    /// The whole view, and all later changes.
    pub(super) fn subscribe(&self) -> (Bytes, broadcast::Receiver<Bytes>) {
        let mut contents = self.contents.lock();
        let changes = self.subscribers.subscribe();
        (contents.whole(&self.server), changes)
    }

    /// Replaces the rows. `now` is by the dashboard's clock; `continuous`: no reading is missing
    /// between the last one and this one.
    pub(super) fn update(&self, listing: Listing, now: Duration, continuous: bool) {
        let mut contents = self.contents.lock();
        let message = contents.update(listing, now.as_secs_f64(), continuous);
        self.send(message);
    }

    /// Keeps the rows after a failed reading, and sets a field of the head that says so.
    pub(super) fn update_head(&self, name: &str, value: Value, now: Duration) {
        let mut contents = self.contents.lock();
        contents.head[name] = value;
        contents.set_time(now.as_secs_f64());
        contents.whole = None;
        let message = contents.encode_changes(&[], &[], false);
        self.send(message);
    }

    /// Marks the states of events, which may end before the next reading.
    pub(super) fn mark(&self, events: &[DashboardEvent]) {
        let mut contents = self.contents.lock();
        for event in events {
            contents.mark_state(&event.fields);
        }
    }

    fn send(&self, message: Bytes) {
        // It fails if there are no subscribers.
        let _ = self.subscribers.send(message);
    }
}

impl Contents {
    fn mark_state(&mut self, event: &Value) {
        let state = event["state"].as_str().and_then(State::from_name);
        let worker = event["worker"].as_str();
        let worker = worker.and_then(|id| self.workers.get_mut(id));
        if let Some((state, worker)) = state.zip(worker) {
            worker.strip.mark(state);
        }
    }

    fn set_time(&mut self, now: f64) {
        self.now = now;
        self.wall = unix_millis(SystemTime::now());
    }

    fn update(&mut self, listing: Listing, now: f64, continuous: bool) -> Bytes {
        self.round += 1;
        self.set_time(now);
        self.bucket = bucket(now);
        self.head = listing.head;
        self.whole = None;
        let mut changed = Vec::new();
        for row in listing.rows {
            changed.extend(self.update_row(row, continuous));
        }
        let round = self.round;
        let mut removed = Vec::new();
        self.workers.retain(|_, worker| {
            let is_listed = worker.round == round;
            if !is_listed {
                removed.push(worker.key);
            }
            is_listed
        });
        self.encode_changes(&changed, &removed, continuous)
    }

    /// The changed fields of this worker, if there are any.
    fn update_row(&mut self, row: WorkerRow, continuous: bool) -> Option<Value> {
        let mut fields = row.fields(self.now);
        let (bucket, round) = (self.bucket, self.round);
        let worker = self.workers.entry(row.id).or_insert_with(|| {
            self.last_key += 1;
            DisplayedWorker {
                key: self.last_key,
                fields: Map::new(),
                strip: Strip::new(bucket),
                mark: 0,
                round,
            }
        });
        worker.round = round;
        worker.strip.advance(bucket, continuous);
        worker.strip.mark(row.state);
        let mut changes = Map::new();
        for (name, value) in &mut fields {
            match worker.fields.get(name) {
                // The value that was sent stays, so that small steps don't add up unnoticed.
                Some(sent) if is_same(sent, value) => *value = sent.clone(),
                _ => {
                    changes.insert(name.clone(), value.clone());
                }
            }
        }
        worker.fields = fields;
        let mark = worker.strip.latest();
        if worker.mark != mark {
            worker.mark = mark;
            changes.insert("mark".into(), char::from(mark).to_string().into());
        }
        if changes.is_empty() {
            return None;
        }
        changes.insert("k".into(), worker.key.into());
        Some(Value::Object(changes))
    }

    fn encode_changes(&self, changed: &[Value], removed: &[u64], continuous: bool) -> Bytes {
        encode(&json!({
            "now": self.now,
            "wall": self.wall,
            "bucket": self.bucket,
            "steady": continuous,
            "head": self.head,
            "rows": changed,
            "gone": removed,
        }))
    }

    fn whole(&mut self, server: &Value) -> Bytes {
        if let Some(whole) = &self.whole {
            return whole.clone();
        }
        let rows = self.workers.values().map(|worker| {
            let mut row = worker.fields.clone();
            row.insert("k".into(), worker.key.into());
            row.insert("strip".into(), worker.strip.text().into());
            Value::Object(row)
        });
        let rows: Vec<Value> = rows.collect();
        let whole = encode(&json!({
            "full": true,
            "server": server,
            "wall": self.wall,
            "worst_first": State::WORST_FIRST.map(State::name),
            "buckets": BUCKETS,
            "bucket_seconds": BUCKET_SECONDS,
            "now": self.now,
            "bucket": self.bucket,
            "head": self.head,
            "rows": rows,
        }));
        self.whole = Some(whole.clone());
        whole
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a time since the start is never negative, and `as` saturates"
)]
fn bucket(now: f64) -> u64 {
    (now / BUCKET_SECONDS) as u64
}

fn encode(rows: &Value) -> Bytes {
    format!("event: rows\ndata: {rows}\n\n").into()
}

fn is_same(before: &Value, now: &Value) -> bool {
    match (before, now) {
        (Value::Number(a), Value::Number(b)) if a.is_f64() && b.is_f64() => {
            let difference = a.as_f64().unwrap_or_default() - b.as_f64().unwrap_or_default();
            difference.abs() < TIME_TOLERANCE
        }
        _ => before == now,
    }
}
