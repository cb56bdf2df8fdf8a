//! What is told to everybody who watches: the rows that changed, and what happened. Made once,
//! whoever many there are.

use std::collections::HashMap;

use axum::body::Bytes;
use parking_lot::Mutex;
use serde_json::{Map, Value, json};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::broadcast;

use super::history::{BUCKET_SECONDS, BUCKETS, News, Ring, Strip};
use super::source::{Reading, Row};
use crate::health::{Death, State};
use crate::serve::process::WORST_FIRST;

/// Messages that may be waiting for a watcher. One that is slower is told everything anew.
const MOST_WAITING: usize = 32;
/// A time that has moved by less, in seconds, has not moved: ages are rounded.
const SAME_TIME: f64 = 0.5;

/// A message, as it goes over the wire.
#[derive(Clone, Debug)]
pub(super) enum Message {
    Rows(Bytes),
    News(Bytes),
}

/// The workers of one source, as they are told.
pub(super) struct Board {
    inner: Mutex<Inner>,
    feed: broadcast::Sender<Message>,
}

struct Inner {
    workers: HashMap<String, Entry>,
    next_key: u64,
    /// Counts the updates: who was not seen in the last one is gone.
    round: u64,
    bucket: u64,
    head: Value,
    now: f64,
    /// Everything, for who comes next; made when it is first asked for.
    whole: Option<Bytes>,
    ring: Ring,
}

/// One worker, as it was told last.
struct Entry {
    key: u64,
    fields: Map<String, Value>,
    strip: Strip,
    mark: u8,
    round: u64,
}

impl Board {
    pub(super) fn new(epoch: String) -> Self {
        Self {
            inner: Mutex::new(Inner {
                workers: HashMap::new(),
                next_key: 1,
                round: 0,
                bucket: 0,
                head: json!({}),
                now: 0.0,
                whole: None,
                ring: Ring::new(epoch),
            }),
            feed: broadcast::channel(MOST_WAITING).0,
        }
    }

    /// How many are watching.
    pub(super) fn watchers(&self) -> usize {
        self.feed.receiver_count()
    }

    /// Everything so far, and from now on what is new. `after` is the last event that was seen.
    pub(super) fn join(
        &self,
        after: Option<&str>,
    ) -> (Message, Message, broadcast::Receiver<Message>) {
        let mut inner = self.inner.lock();
        let receiver = self.feed.subscribe();
        let news = Bytes::from(inner.ring.after(after));
        (Message::Rows(inner.whole()), Message::News(news), receiver)
    }

    /// The workers as they are now, at this time since the dashboard began. `steady`: somebody has
    /// looked all the time since the last reading.
    pub(super) fn show(&self, reading: Reading, now: Duration, steady: bool) {
        let mut inner = self.inner.lock();
        let message = inner.take_in(reading, now.as_secs_f64(), steady);
        // Nobody may be listening.
        let _ = self.feed.send(Message::Rows(message));
    }

    /// The workers were not read. They stay as they were; the head says why.
    pub(super) fn amend(&self, name: &str, value: Value, now: Duration) {
        let mut inner = self.inner.lock();
        inner.head[name] = value;
        inner.now = now.as_secs_f64();
        inner.whole = None;
        let message = inner.update(&[], &[], false);
        let _ = self.feed.send(Message::Rows(message));
    }

    /// What happened, in order.
    pub(super) fn tell(&self, news: Vec<News>) {
        let mut inner = self.inner.lock();
        let mut messages = String::new();
        for news in news {
            inner.note_state(&news.fields);
            messages.push_str(&inner.ring.push(news));
        }
        if !messages.is_empty() {
            let _ = self.feed.send(Message::News(messages.into()));
        }
    }

    pub(super) fn death(&self, id: &str, incarnation: u32) -> Option<Arc<Death>> {
        self.inner.lock().ring.death(id, incarnation)
    }
}

impl Inner {
    /// A state that may be over before the next reading leaves its mark nevertheless.
    fn note_state(&mut self, fields: &Value) {
        let state = fields["state"].as_str().and_then(State::from_name);
        let entry = fields["worker"]
            .as_str()
            .and_then(|worker| self.workers.get_mut(worker));
        if let Some((state, entry)) = state.zip(entry) {
            entry.strip.mark(state);
        }
    }

    fn take_in(&mut self, reading: Reading, now: f64, steady: bool) -> Bytes {
        self.round += 1;
        self.now = now;
        self.bucket = bucket(now);
        self.head = reading.head;
        self.whole = None;
        let mut changed = Vec::new();
        for row in reading.rows {
            changed.extend(self.take_in_row(row, steady));
        }
        let mut gone = Vec::new();
        let round = self.round;
        self.workers.retain(|_, entry| {
            let here = entry.round == round;
            if !here {
                gone.push(entry.key);
            }
            here
        });
        self.update(&changed, &gone, steady)
    }

    /// What is new of this worker.
    fn take_in_row(&mut self, row: Row, steady: bool) -> Option<Value> {
        let state = row.state;
        let id = row.id.clone();
        let mut fields = fields(row, self.now);
        let (bucket, round) = (self.bucket, self.round);
        let entry = self.workers.entry(id).or_insert_with(|| {
            let key = self.next_key;
            self.next_key += 1;
            Entry {
                key,
                fields: Map::new(),
                strip: Strip::new(bucket),
                mark: 0,
                round,
            }
        });
        entry.round = round;
        entry.strip.advance(bucket, steady);
        entry.strip.mark(state);
        let mut news = Map::new();
        for (name, value) in &mut fields {
            let before = entry.fields.get(name);
            if before.is_some_and(|before| is_same(before, value)) {
                // Small steps must not add up unseen.
                *value = before.cloned().unwrap_or_default();
            } else {
                news.insert(name.clone(), value.clone());
            }
        }
        entry.fields = fields;
        let mark = entry.strip.now();
        if entry.mark != mark {
            entry.mark = mark;
            news.insert("mark".into(), char::from(mark).to_string().into());
        }
        if news.is_empty() {
            return None;
        }
        news.insert("k".into(), entry.key.into());
        Some(Value::Object(news))
    }

    fn update(&self, changed: &[Value], gone: &[u64], steady: bool) -> Bytes {
        message(&json!({
            "now": self.now,
            "bucket": self.bucket,
            "steady": steady,
            "head": self.head,
            "rows": changed,
            "gone": gone,
        }))
    }

    fn whole(&mut self) -> Bytes {
        if let Some(whole) = &self.whole {
            return whole.clone();
        }
        let rows = self.workers.values().map(|entry| {
            let mut row = entry.fields.clone();
            row.insert("k".into(), entry.key.into());
            row.insert("strip".into(), entry.strip.text().into());
            Value::Object(row)
        });
        let rows: Vec<Value> = rows.collect();
        let whole = message(&json!({
            "full": true,
            "read": self.round > 0,
            "worst_first": WORST_FIRST.map(State::name),
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

fn message(value: &Value) -> Bytes {
    format!("event: rows\ndata: {value}\n\n").into()
}

/// A row as it is told. Ages are told as times, which stand still while nothing happens.
fn fields(row: Row, now: f64) -> Map<String, Value> {
    let at =
        |age: Option<Duration>| age.map(|age| ((now - age.as_secs_f64()) * 10.0).round() / 10.0);
    let values = [
        ("id", json!(row.id)),
        ("type", json!(row.worker_type)),
        ("group", json!(row.group)),
        ("state", json!(row.state.name())),
        ("reason", json!(row.reason)),
        ("run", json!(row.run_id)),
        ("task", json!(row.task)),
        ("done", json!(row.progress)),
        ("heartbeat", json!(at(row.heartbeat_age))),
        ("progress", json!(at(row.progress_age))),
        ("ended", json!(at(row.ended_age))),
        ("restarts", json!(row.restarts)),
        ("incarnation", json!(row.incarnation)),
        ("died", json!(row.died)),
    ];
    let named = |(name, value): (&str, Value)| (name.to_owned(), value);
    values.into_iter().map(named).collect()
}

fn is_same(before: &Value, now: &Value) -> bool {
    match (before, now) {
        (Value::Number(a), Value::Number(b)) if a.is_f64() && b.is_f64() => {
            let apart = a.as_f64().unwrap_or_default() - b.as_f64().unwrap_or_default();
            apart.abs() < SAME_TIME
        }
        _ => before == now,
    }
}
