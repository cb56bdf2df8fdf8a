//! What is remembered for the dashboard, so that it survives a refresh of the page: the states of
//! each worker over the last minutes, and the last events. Pure: time is handed in.

use std::collections::VecDeque;
use std::sync::Arc;

use serde_json::{Value, json};

use crate::health::{Death, State};
use crate::serve::process::WORST_FIRST;

/// A strip is this many marks of [`BUCKET_SECONDS`] each: ten minutes.
pub(super) const BUCKETS: usize = 120;
pub(super) const BUCKET_SECONDS: f64 = 5.0;
/// The most events that are remembered, and the most bytes of them.
const MOST_NEWS: usize = 256;
const MOST_BYTES: usize = 256 * 1024;
/// Of how many events the call stack is kept; each may take some hundred kB once it is resolved.
const MOST_DEATHS: usize = 32;
/// Nobody has looked.
const BLANK: u8 = b'.';

/// The place of a state in [`WORST_FIRST`], as a letter: `a` is the worst.
pub(super) fn letter(state: State) -> u8 {
    let place = WORST_FIRST.iter().position(|other| *other == state);
    place
        .and_then(|place| u8::try_from(place).ok())
        .map_or(BLANK, |place| b'a' + place)
}

/// The states of one worker over the last ten minutes. Each mark is the worst state of its five
/// seconds, so that a short trouble is not lost, and the size is always the same.
#[derive(Debug)]
pub(super) struct Strip {
    marks: [u8; BUCKETS],
    bucket: u64,
}

impl Strip {
    pub(super) const fn new(bucket: u64) -> Self {
        Self {
            marks: [BLANK; BUCKETS],
            bucket,
        }
    }

    /// Moves on to this bucket. Meanwhile it was as before, if somebody has looked (`steady`).
    pub(super) fn advance(&mut self, bucket: u64, steady: bool) {
        let passed = bucket.saturating_sub(self.bucket);
        let Some(shift @ 1..) = usize::try_from(passed).ok().map(|n| n.min(BUCKETS)) else {
            return;
        };
        let fill = if steady { self.now() } else { BLANK };
        self.marks.rotate_left(shift);
        if let Some(new) = self.marks.get_mut(BUCKETS - shift..) {
            new.fill(fill);
        }
        if let Some(now) = self.marks.last_mut() {
            *now = BLANK;
        }
        self.bucket = bucket;
    }

    /// It is, or was a moment ago, in this state.
    pub(super) fn mark(&mut self, state: State) {
        let new = letter(state);
        if let Some(now) = self.marks.last_mut() {
            if *now == BLANK || new < *now {
                *now = new;
            }
        }
    }

    /// The mark of the present bucket.
    pub(super) fn now(&self) -> u8 {
        self.marks.last().copied().unwrap_or(BLANK)
    }

    /// The marks, the oldest first, each with how often it comes: `100.18h2a`.
    pub(super) fn text(&self) -> String {
        let mut text = String::new();
        for run in self.marks.chunk_by(|a, b| a == b) {
            text.push_str(&run.len().to_string());
            text.extend(run.first().copied().map(char::from));
        }
        text
    }
}

/// Something that happened, as the page shows it.
#[derive(Clone, Debug)]
pub(super) struct News {
    /// Everything but its number.
    pub fields: Value,
    /// Less worth remembering than others: that a worker came.
    pub minor: bool,
    /// The worker, its incarnation and its death, if that is what happened.
    pub death: Option<(String, u32, Arc<Death>)>,
}

/// The last events, numbered. `epoch` tells the numbers of one process from those of another.
#[derive(Debug)]
pub(super) struct Ring {
    epoch: String,
    next: u64,
    bytes: usize,
    entries: VecDeque<Entry>,
}

#[derive(Debug)]
struct Entry {
    number: u64,
    /// As it goes over the wire.
    message: String,
    minor: bool,
    death: Option<(String, u32, Arc<Death>)>,
}

impl Ring {
    pub(super) const fn new(epoch: String) -> Self {
        Self {
            epoch,
            next: 1,
            bytes: 0,
            entries: VecDeque::new(),
        }
    }

    /// Remembers it, and returns the message that tells it.
    pub(super) fn push(&mut self, news: News) -> String {
        let number = self.next;
        self.next += 1;
        let id = format!("{}-{number}", self.epoch);
        let mut fields = news.fields;
        fields["id"] = json!(id);
        let message = format!("id: {id}\nevent: news\ndata: {fields}\n\n");
        self.bytes += message.len();
        self.entries.push_back(Entry {
            number,
            message: message.clone(),
            minor: news.minor,
            death: news.death,
        });
        self.make_room();
        message
    }

    fn make_room(&mut self) {
        while self.entries.len() > MOST_NEWS || self.bytes > MOST_BYTES {
            let oldest = self.entries.iter().position(|entry| entry.minor);
            match self.entries.remove(oldest.unwrap_or(0)) {
                Some(entry) => self.bytes -= entry.message.len(),
                None => return,
            }
        }
        let deaths = self
            .entries
            .iter_mut()
            .filter(|entry| entry.death.is_some());
        for entry in deaths.rev().skip(MOST_DEATHS) {
            entry.death = None;
        }
    }

    /// What came after the event with this id; everything, if that is not one of these.
    pub(super) fn after(&self, id: Option<&str>) -> String {
        let seen = id
            .and_then(|id| id.rsplit_once('-'))
            .filter(|(epoch, _)| *epoch == self.epoch)
            .and_then(|(_, number)| number.parse().ok())
            .unwrap_or(0);
        let newer = self.entries.iter().filter(|entry| entry.number > seen);
        newer.map(|entry| entry.message.as_str()).collect()
    }

    /// How this incarnation of this worker died, if that is remembered.
    pub(super) fn death(&self, id: &str, incarnation: u32) -> Option<Arc<Death>> {
        let deaths = self.entries.iter().rev().filter_map(|e| e.death.as_ref());
        let mut found = deaths.filter(|(worker, n, _)| worker == id && *n == incarnation);
        found.next().map(|(_, _, death)| Arc::clone(death))
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;
    use crate::health::DeathCause;

    fn news(text: &str, minor: bool) -> News {
        News {
            fields: json!({ "text": text }),
            minor,
            death: None,
        }
    }

    #[test]
    fn a_strip_keeps_the_worst_of_each_bucket() {
        let mut strip = Strip::new(10);
        strip.mark(State::Processing);
        strip.mark(State::Idle);
        assert_eq!(strip.now(), letter(State::Processing));
        strip.advance(11, true);
        strip.mark(State::Idle);
        strip.mark(State::Dead);
        strip.mark(State::Idle);
        assert_eq!(strip.text(), "118.1h1a");
    }

    #[test]
    fn what_lies_between_is_as_before_only_if_somebody_looked() {
        let mut strip = Strip::new(0);
        strip.mark(State::Dead);
        strip.advance(3, true);
        strip.mark(State::Idle);
        assert_eq!(strip.text(), "116.3a1j");
        strip.advance(6, false);
        strip.mark(State::Idle);
        assert_eq!(strip.text(), "113.3a1j2.1j");
    }

    #[test]
    fn a_strip_forgets_what_is_too_old_and_never_goes_back() {
        let mut strip = Strip::new(0);
        strip.mark(State::Dead);
        strip.advance(u64::MAX, true);
        strip.mark(State::Idle);
        strip.advance(5, true);
        assert_eq!(strip.text(), "119a1j");
        strip.advance(u64::MAX, false);
        assert_eq!(strip.text(), "119a1j");
    }

    #[test]
    fn every_state_has_a_letter_of_its_own() {
        let mut letters: Vec<u8> = State::ALL.into_iter().map(letter).collect();
        letters.sort_unstable();
        letters.dedup();
        assert_eq!(letters.len(), State::ALL.len());
        assert_eq!(letter(State::Dead), b'a');
    }

    #[test]
    fn a_ring_goes_on_after_the_last_that_was_seen() {
        let mut ring = Ring::new("x".into());
        for n in 1..=3 {
            ring.push(news(&n.to_string(), false));
        }
        let texts = |after: Option<&str>| ring.after(after).matches("event: news").count();
        assert_eq!(texts(None), 3);
        assert_eq!(texts(Some("x-2")), 1);
        assert_eq!(texts(Some("x-3")), 0);
        for strange in ["y-2", "x-", "x", "", "x-99999999999999999999999", "--"] {
            assert_eq!(texts(Some(strange)), 3, "{strange}");
        }
    }

    #[test]
    fn a_ring_is_bounded_in_number_and_bytes_and_keeps_what_matters() {
        let mut ring = Ring::new("x".into());
        ring.push(news("a death", false));
        for n in 0..10 * MOST_NEWS {
            ring.push(news(&n.to_string(), true));
        }
        assert_eq!(ring.entries.len(), MOST_NEWS);
        assert!(ring.after(None).contains("a death"));
        for _ in 0..MOST_NEWS {
            ring.push(news(&"x".repeat(10_000), false));
        }
        assert!(ring.bytes <= MOST_BYTES && !ring.entries.is_empty());
        let counted: usize = ring.entries.iter().map(|e| e.message.len()).sum();
        assert_eq!(counted, ring.bytes);
        ring.push(news(&"x".repeat(MOST_BYTES), false));
        assert!(ring.bytes <= MOST_BYTES);
    }

    #[test]
    fn a_ring_keeps_the_last_deaths() {
        let mut ring = Ring::new("x".into());
        let death = Arc::new(Death {
            cause: DeathCause::Exited,
            run_id: None,
            task: None,
            at: SystemTime::UNIX_EPOCH,
            gave_up_after: None,
        });
        for n in 1..=100 {
            ring.push(News {
                death: Some(("w".into(), n, Arc::clone(&death))),
                ..news("dead", false)
            });
        }
        assert!(ring.death("w", 100).is_some());
        assert!(ring.death("w", 1).is_none() && ring.death("v", 100).is_none());
        assert_eq!(Arc::strong_count(&death), 1 + MOST_DEATHS);
    }
}
