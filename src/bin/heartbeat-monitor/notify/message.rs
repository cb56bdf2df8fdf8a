//! The JSON document of a notification.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::SystemTime;

use serde_json::{Value, json};

use super::news::Kind;
use super::queue::Batch;

/// Bytes of a document: as many as a pipe holds without a reader.
const LARGEST: usize = 48 * 1024;

/// Its id, which is the same at every attempt, and its text.
pub fn compose(batch: &Batch) -> (String, Vec<u8>) {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let now = SystemTime::now();
    let sent_at = humantime::format_rfc3339_millis(now).to_string();
    let number = NUMBER.fetch_add(1, Relaxed);
    let id = format!("{sent_at}-{}-{number}", std::process::id());
    let mut events: Vec<&Value> = batch.events.iter().map(|event| &event.json).collect();
    loop {
        let document = json!({
            "version": 1,
            "source": "heartbeat-monitor",
            "id": id,
            "at": sent_at,
            "text": text(batch),
            "events": events,
            "more": batch.len() - events.len(),
        });
        let body = document.to_string().into_bytes();
        if body.len() <= LARGEST || events.pop().is_none() {
            return (id, body);
        }
    }
}

/// A sentence for people; chat programs show it.
fn text(batch: &Batch) -> String {
    let counts = batch.counts.iter().filter(|(_, count)| **count > 0);
    let mut parts = Vec::new();
    for (kind, count) in counts {
        let plural = if *count == 1 { "" } else { "s" };
        let what = match kind {
            Kind::Died => format!("{count} worker{plural} died"),
            Kind::Stalled => format!("{count} worker{plural} stalled"),
            Kind::Recovered => format!("{count} worker{plural} recovered"),
            Kind::GroupOffline => format!("{count} group{plural} offline"),
            Kind::GroupOnline => format!("{count} group{plural} online again"),
        };
        let subjects = batch.events.iter().filter(|event| event.kind == *kind);
        let subjects: Vec<&str> = subjects.map(|event| &*event.subject).take(5).collect();
        let more = if subjects.len() < *count { ", …" } else { "" };
        parts.push(format!("{what}: {}{more}", subjects.join(", ")));
    }
    parts.join("; ")
}
