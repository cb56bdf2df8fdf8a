//! The history that a reloaded page shows: the states of each worker over the last ten minutes, and
//! the latest events. Pure: the caller passes the time.

use std::collections::VecDeque;
use std::sync::Arc;

use serde_json::json;

use super::events::DashboardEvent;
use crate::health::{Death, State};

/// A strip has this many marks of [`BUCKET_SECONDS`] each: ten minutes.
pub(super) const BUCKETS: usize = 120;
pub(super) const BUCKET_SECONDS: f64 = 5.0;
/// The most events that are kept, and the most bytes of them.
const MAX_EVENTS: usize = 256;
const MAX_BYTES: usize = 256 * 1024;
/// The most call stacks that are kept; a resolved one may take some hundred kB.
const MAX_DEATHS: usize = 32;
/// The mark of a time without readings.
const BLANK: u8 = b'.';

/// The mark of a state: `a` is the worst.
fn letter(state: State) -> u8 {
    u8::try_from(state.severity_rank()).map_or(BLANK, |rank| b'a' + rank)
}

/// The states of one worker over the last ten minutes. Each mark is the worst state of its five
/// seconds, so that a short failure stays visible, and the size is constant.
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

    /// Moves on to this bucket. The buckets in between repeat the latest mark if the readings were
    /// `continuous`, and are blank otherwise.
    pub(super) fn advance(&mut self, bucket: u64, continuous: bool) {
        let passed = bucket.saturating_sub(self.bucket);
        let Some(shift @ 1..) = usize::try_from(passed).ok().map(|n| n.min(BUCKETS)) else {
            return;
        };
        let fill = if continuous { self.latest() } else { BLANK };
        self.marks.rotate_left(shift);
        if let Some(new) = self.marks.get_mut(BUCKETS - shift..) {
            new.fill(fill);
        }
        if let Some(latest) = self.marks.last_mut() {
            *latest = BLANK;
        }
        self.bucket = bucket;
    }

    /// Records that the worker is, or was within the present bucket, in this state.
    pub(super) fn mark(&mut self, state: State) {
        let new = letter(state);
        if let Some(latest) = self.marks.last_mut() {
            if *latest == BLANK || new < *latest {
                *latest = new;
            }
        }
    }

    /// The mark of the present bucket.
    pub(super) fn latest(&self) -> u8 {
        self.marks.last().copied().unwrap_or(BLANK)
    }

    /// The marks, the oldest first, run-length encoded: `100.18h2a`.
    pub(super) fn text(&self) -> String {
        let mut text = String::new();
        for run in self.marks.chunk_by(|a, b| a == b) {
            text.push_str(&run.len().to_string());
            text.extend(run.first().copied().map(char::from));
        }
        text
    }
}

/// The latest events with increasing numbers. `epoch` distinguishes the ids of this log from those of
/// earlier processes.
#[derive(Debug, Default)]
pub(super) struct EventLog {
    epoch: String,
    last: u64,
    bytes: usize,
    entries: VecDeque<LoggedEvent>,
}

#[derive(Debug)]
struct LoggedEvent {
    number: u64,
    /// Encoded as a server-sent event.
    message: String,
    minor: bool,
    death: Option<(String, u32, Arc<Death>)>,
}

impl EventLog {
    pub(super) fn new(epoch: String) -> Self {
        Self {
            epoch,
            ..Self::default()
        }
    }

    /// Returns the message to send.
    pub(super) fn push(&mut self, event: DashboardEvent) -> String {
        self.last += 1;
        let number = self.last;
        let id = format!("{}-{number}", self.epoch);
        let mut fields = event.fields;
        fields["id"] = json!(id);
        let message = format!("id: {id}\nevent: news\ndata: {fields}\n\n");
        self.bytes += message.len();
        self.entries.push_back(LoggedEvent {
            number,
            message: message.clone(),
            minor: event.minor,
            death: event.death,
        });
        self.make_room();
        message
    }

    fn make_room(&mut self) {
        while self.entries.len() > MAX_EVENTS || self.bytes > MAX_BYTES {
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
        for entry in deaths.rev().skip(MAX_DEATHS) {
            entry.death = None;
        }
    }

    /// The messages after the event with this id; all messages if the id is not from this log.
    pub(super) fn after(&self, id: Option<&str>) -> String {
        let seen = id
            .and_then(|id| id.rsplit_once('-'))
            .filter(|(epoch, _)| *epoch == self.epoch)
            .and_then(|(_, number)| number.parse().ok())
            .unwrap_or(0);
        let newer = self.entries.iter().filter(|entry| entry.number > seen);
        newer.map(|entry| entry.message.as_str()).collect()
    }

    /// How this incarnation of this worker died, if that is still logged.
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

    fn event(text: &str, minor: bool) -> DashboardEvent {
        DashboardEvent {
            fields: json!({ "text": text }),
            minor,
            death: None,
        }
    }

    /// With the letters of the states processing and idle.
    fn with_letters(text: &str) -> String {
        text.replace('P', &char::from(letter(State::Processing)).to_string())
            .replace('I', &char::from(letter(State::Idle)).to_string())
    }

    #[test]
    fn a_strip_keeps_the_worst_of_each_bucket() {
        let mut strip = Strip::new(10);
        strip.mark(State::Processing);
        strip.mark(State::Idle);
        assert_eq!(strip.latest(), letter(State::Processing));
        strip.advance(11, true);
        strip.mark(State::Idle);
        strip.mark(State::Dead);
        strip.mark(State::Idle);
        assert_eq!(strip.text(), with_letters("118.1P1a"));
    }

    #[test]
    fn the_buckets_in_between_repeat_the_latest_mark_only_if_readings_were_continuous() {
        let mut strip = Strip::new(0);
        strip.mark(State::Dead);
        strip.advance(3, true);
        strip.mark(State::Idle);
        assert_eq!(strip.text(), with_letters("116.3a1I"));
        strip.advance(6, false);
        strip.mark(State::Idle);
        assert_eq!(strip.text(), with_letters("113.3a1I2.1I"));
    }

    #[test]
    fn a_strip_drops_old_marks_and_never_goes_back() {
        let mut strip = Strip::new(0);
        strip.mark(State::Dead);
        strip.advance(u64::MAX, true);
        strip.mark(State::Idle);
        strip.advance(5, true);
        assert_eq!(strip.text(), with_letters("119a1I"));
        strip.advance(u64::MAX, false);
        assert_eq!(strip.text(), with_letters("119a1I"));
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
    fn a_log_resumes_after_the_last_event_that_was_seen() {
        let mut log = EventLog::new("x".into());
        for n in 1..=3 {
            log.push(event(&n.to_string(), false));
        }
        let texts = |after: Option<&str>| log.after(after).matches("event: news").count();
        assert_eq!(texts(None), 3);
        assert_eq!(texts(Some("x-2")), 1);
        assert_eq!(texts(Some("x-3")), 0);
        for strange in ["y-2", "x-", "x", "", "x-99999999999999999999999", "--"] {
            assert_eq!(texts(Some(strange)), 3, "{strange}");
        }
    }

    #[test]
    fn a_log_is_bounded_in_number_and_bytes_and_drops_minor_events_first() {
        let mut log = EventLog::new("x".into());
        log.push(event("a death", false));
        for n in 0..10 * MAX_EVENTS {
            log.push(event(&n.to_string(), true));
        }
        assert_eq!(log.entries.len(), MAX_EVENTS);
        assert!(log.after(None).contains("a death"));
        for _ in 0..MAX_EVENTS {
            log.push(event(&"x".repeat(10_000), false));
        }
        assert!(log.bytes <= MAX_BYTES && !log.entries.is_empty());
        let counted: usize = log.entries.iter().map(|e| e.message.len()).sum();
        assert_eq!(counted, log.bytes);
        log.push(event(&"x".repeat(MAX_BYTES), false));
        assert!(log.bytes <= MAX_BYTES);
    }

    #[test]
    fn a_log_keeps_the_latest_deaths() {
        let mut log = EventLog::new("x".into());
        let death = Arc::new(Death {
            cause: DeathCause::Exited,
            run_id: None,
            task: None,
            last_location: None,
            at: SystemTime::UNIX_EPOCH,
            gave_up_after: None,
            unheard_for: None,
        });
        for n in 1..=100 {
            log.push(DashboardEvent {
                death: Some(("w".into(), n, Arc::clone(&death))),
                ..event("dead", false)
            });
        }
        assert!(log.death("w", 100).is_some());
        assert!(log.death("w", 1).is_none() && log.death("v", 100).is_none());
        assert_eq!(Arc::strong_count(&death), 1 + MAX_DEATHS);
    }
}
