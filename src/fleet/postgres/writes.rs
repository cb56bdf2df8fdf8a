//! Heartbeats and ends of workers, in batches.

use std::collections::HashSet;

use tokio_postgres::Row;
use tokio_postgres::types::Type;

use super::batch::{Batch, Fault};
use super::error::Failed;
use super::{Connections, column, rows};
use crate::error::{Error, StoreErrorKind};
use crate::fleet::host::ProcessIdentity;
use crate::fleet::shapes::{Answer, Beat, Stop, WorkerKey, WorkerStatus};
use crate::sync::log::log_line;
use crate::sync::printable::Printable;

impl Connections {
    pub(super) fn beat(&self, beats: &[Beat]) -> Result<Vec<Answer>, Error> {
        in_rounds(beats, |beat| &beat.key, |round| self.beat_round(round))
    }

    fn beat_round(&self, beats: &[&Beat]) -> Result<Vec<Answer>, Error> {
        let written = Batch {
            connection: &self.heartbeats,
            texts: &self.texts,
            suspects: &self.suspects,
            send: &|beats| self.send_beats(beats),
            locked: &|beats| self.locked_workers(&column(beats, |beat| &*beat.key.id), false),
        }
        .write(beats);
        let written = match written {
            Ok(written) => written,
            Err(error) => {
                if error.is_busy() {
                    // Another failure changes nothing.
                    drop(self.defer(beats));
                }
                return Err(error);
            }
        };
        let mut deferred = Vec::new();
        let mut answers = Vec::new();
        for (beat, answer) in beats.iter().zip(written) {
            answers.push(match answer {
                Ok(answer) => answer,
                Err(Fault::Locked) => {
                    deferred.push(*beat);
                    Answer::Busy
                }
                Err(Fault::Name) => Answer::Unknown,
                Err(Fault::Data(why)) => self.beat_plainly(beat, &why)?,
            });
        }
        self.defer(&deferred)?;
        Ok(answers)
    }

    fn send_beats(&self, beats: &[&Beat]) -> Result<Vec<Answer>, Failed> {
        let here = ProcessIdentity::current();
        let text = |text: &str| self.texts.text(text).into_owned();
        let refused = self.heartbeats.try_query(
            "beat",
            true,
            "SELECT ord, answer FROM @schema@.beat_workers($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, \
             $11, $12, $13, @session@, $14, $15, $16, $17, $18)",
            &[
                (&column(beats, |beat| rows::text(&beat.key.id)), Type::TEXT_ARRAY),
                (&column(beats, |beat| rows::ordered(beat.key.incarnation)), Type::INT8_ARRAY),
                (&column(beats, |beat| rows::status(beat.status.state)), Type::TEXT_ARRAY),
                (&column(beats, |beat| beat.status.reason.as_deref().map(text)), Type::TEXT_ARRAY),
                (&column(beats, |beat| beat.heartbeat_age.map(rows::age)), Type::INT8_ARRAY),
                (&column(beats, |beat| beat.progress_age.map(rows::age)), Type::INT8_ARRAY),
                (&column(beats, |beat| beat.status.run_id.as_deref().map(text)), Type::TEXT_ARRAY),
                (&column(beats, |beat| beat.status.task.as_deref().map(text)), Type::TEXT_ARRAY),
                (&column(beats, |beat| beat.status.progress.map(|(n, _)| rows::number(n))), Type::INT8_ARRAY),
                (&column(beats, |beat| beat.status.progress.map(|(_, n)| rows::number(n))), Type::INT8_ARRAY),
                (&column(beats, |beat| rows::number(beat.status.beats)), Type::INT8_ARRAY),
                (&column(beats, |beat| {
                    (!beat.metadata.is_empty()).then(|| self.texts.json(&beat.metadata))
                }), Type::TEXT_ARRAY),
                (&column(beats, |beat| beat.status.last_location.as_deref().map(text)), Type::TEXT_ARRAY),
                (&i64::from(here.pid), Type::INT8),
                (&rows::number(here.started), Type::INT8),
                (&here.boot_id, Type::TEXT),
                (&rows::number(here.pid_namespace), Type::INT8),
                (&column(beats, |beat| beat.status.stack.as_deref().map(text)), Type::TEXT_ARRAY),
            ],
        )?;
        answers(beats.len(), &refused)
    }

    /// A heartbeat that the database refuses as it is: without all that is only for display.
    fn beat_plainly(&self, beat: &Beat, why: &str) -> Result<Answer, Error> {
        let plain = Beat {
            status: WorkerStatus {
                beats: beat.status.beats,
                ..WorkerStatus::new(beat.status.state)
            },
            metadata: Vec::new(),
            ..beat.clone()
        };
        let sent = self.send_beats(&[&plain]);
        self.plainly(&beat.key, why, sent)
    }

    pub(super) fn stop(&self, stops: &[Stop]) -> Result<Vec<Answer>, Error> {
        in_rounds(stops, |stop| &stop.key, |round| self.stop_round(round))
    }

    fn stop_round(&self, stops: &[&Stop]) -> Result<Vec<Answer>, Error> {
        let written = Batch {
            connection: &self.heartbeats,
            texts: &self.texts,
            suspects: &self.suspects,
            send: &|stops| self.send_stops(stops),
            // An end is stored even if a lease is locked.
            locked: &|stops| self.locked_workers(&column(stops, |stop| &*stop.key.id), true),
        }
        .write(stops)?;
        let answered = stops.iter().zip(written).map(|(stop, answer)| {
            Ok(match answer {
                Ok(answer) => answer,
                Err(Fault::Locked) => Answer::Busy,
                Err(Fault::Name) => Answer::Unknown,
                Err(Fault::Data(why)) => {
                    let mut plain = (*stop).clone();
                    plain.ending.detail = None;
                    plain.ending.location = None;
                    let sent = self.send_stops(&[&plain]);
                    self.plainly(&stop.key, &why, sent)?
                }
            })
        });
        answered.collect()
    }

    fn send_stops(&self, stops: &[&Stop]) -> Result<Vec<Answer>, Failed> {
        let endings = column(stops, |stop| &stop.ending);
        let text = |text: &str| self.texts.text(text).into_owned();
        let refused = self.heartbeats.try_query(
            "stop",
            true,
            "SELECT ord, answer FROM @schema@.stop_workers($1, $2, $3, $4, $5, $6, $7)",
            &[
                (
                    &column(stops, |stop| rows::text(&stop.key.id)),
                    Type::TEXT_ARRAY,
                ),
                (
                    &column(stops, |stop| rows::ordered(stop.key.incarnation)),
                    Type::INT8_ARRAY,
                ),
                (&column(&endings, |ending| ending.stopped), Type::BOOL_ARRAY),
                (
                    &column(&endings, |ending| text(&ending.cause)),
                    Type::TEXT_ARRAY,
                ),
                (
                    &column(&endings, |ending| ending.detail.as_deref().map(text)),
                    Type::TEXT_ARRAY,
                ),
                (
                    &column(&endings, |ending| ending.location.as_deref().map(text)),
                    Type::TEXT_ARRAY,
                ),
                (&column(stops, |stop| rows::age(stop.ago)), Type::INT8_ARRAY),
            ],
        )?;
        answers(stops.len(), &refused)
    }

    /// The answer to a write without the texts that may be at fault.
    fn plainly(
        &self,
        key: &WorkerKey,
        why: &str,
        sent: Result<Vec<Answer>, Failed>,
    ) -> Result<Answer, Error> {
        let answer = match sent {
            Ok(sent) => sent.first().copied().unwrap_or(Answer::Invalid),
            Err(failed) => Fault::of(failed)?.answer(),
        };
        if self.logged.note(&key.id) {
            let written = match answer {
                Answer::Invalid => "nothing was written",
                _ => "its texts were not written",
            };
            log_line(
                log::Level::Warn,
                format_args!(
                    "postgres: worker {}: {written}: {}",
                    Printable(&key.id),
                    Printable(why)
                ),
            );
        }
        Ok(answer)
    }

    /// Which of these workers' rows other transactions lock. `ends`: against a change of life.
    pub(super) fn locked_workers(
        &self,
        ids: &[&str],
        ends: bool,
    ) -> Result<HashSet<String>, Failed> {
        let ids = column(ids, |id| rows::text(id));
        let locked = self.heartbeats.try_query(
            "find locked workers",
            true,
            "SELECT id FROM @schema@.locked_workers($1, $2) id",
            &[(&ids, Type::TEXT_ARRAY), (&ends, Type::BOOL)],
        )?;
        names(&locked)
    }

    /// Records heartbeats that cannot be written to their rows now, so that no sweep takes their
    /// workers for silent.
    fn defer(&self, beats: &[&Beat]) -> Result<(), Error> {
        if beats.is_empty() {
            return Ok(());
        }
        let ids = column(beats, |beat| rows::text(&beat.key.id));
        let incarnations = column(beats, |beat| rows::ordered(beat.key.incarnation));
        let ages = column(beats, |beat| beat.heartbeat_age.map(rows::age));
        let deferred = self.heartbeats.query(
            "beat",
            true,
            "SELECT @schema@.defer_heartbeats($1, $2, $3)",
            &[
                (&ids, Type::TEXT_ARRAY),
                (&incarnations, Type::INT8_ARRAY),
                (&ages, Type::INT8_ARRAY),
            ],
        );
        deferred.map(|_| ())
    }
}

impl Fault {
    /// The fault of an item that was sent alone.
    fn of(failed: Failed) -> Result<Self, Error> {
        use super::error::Cause;
        match failed.cause {
            Cause::Locked => Ok(Self::Locked),
            Cause::Encoding | Cause::Data => Ok(Self::Data(failed.error.to_string())),
            Cause::Other => Err(failed.error),
        }
    }

    const fn answer(&self) -> Answer {
        match self {
            Self::Locked => Answer::Busy,
            Self::Name => Answer::Unknown,
            Self::Data(_) => Answer::Invalid,
        }
    }
}

impl Error {
    fn is_busy(&self) -> bool {
        matches!(self, Self::Store { kind, .. } if *kind == StoreErrorKind::Busy)
    }
}

/// Sends several statements if a worker is in the batch more than once: each statement has every
/// worker at most once. Sorted by id, so that two batches cannot deadlock.
fn in_rounds<T>(
    items: &[T],
    key: impl Fn(&T) -> &WorkerKey,
    send: impl Fn(&[&T]) -> Result<Vec<Answer>, Error>,
) -> Result<Vec<Answer>, Error> {
    let mut answers = vec![Answer::Accepted; items.len()];
    let mut left: Vec<usize> = (0..items.len()).collect();
    while !left.is_empty() {
        let mut seen = HashSet::new();
        let (mut round, later): (Vec<usize>, Vec<usize>) =
            left.into_iter().partition(|n| seen.insert(key(&items[*n])));
        round.sort_unstable_by_key(|n| key(&items[*n]));
        let batch: Vec<&T> = round.iter().map(|n| &items[*n]).collect();
        for (n, answer) in round.into_iter().zip(send(&batch)?) {
            answers[n] = answer;
        }
        left = later;
    }
    Ok(answers)
}

/// The answers to this many items: the rows name those that were refused.
fn answers(asked: usize, refused: &[Row]) -> Result<Vec<Answer>, Failed> {
    let mut answers = vec![Answer::Accepted; asked];
    for row in refused {
        let refused = (|| Ok((row.try_get::<_, i64>(0)?, row.try_get::<_, &str>(1)?)))();
        let (ord, name) = refused.map_err(|error| rows::unreadable("read answers", &error))?;
        let place = usize::try_from(ord - 1).ok();
        if let Some(answer) = place.and_then(|n| answers.get_mut(n)) {
            *answer = rows::answer(name);
        }
    }
    Ok(answers)
}

pub(super) fn names(found: &[Row]) -> Result<HashSet<String>, Failed> {
    let names: Result<_, _> = found.iter().map(|row| row.try_get(0)).collect();
    Ok(names.map_err(|error| rows::unreadable("read names", &error))?)
}
