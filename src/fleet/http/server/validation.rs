//! Reads and checks requests.

use serde_json::{Map, Value};

use super::service::{LONGEST_ID, Refusal};
use crate::error::Error;
use crate::fleet::{Beat, Claim, Registration, Stop, check_run_id, check_ttl};
use crate::serial::{Seconds, pairs};
use crate::sync::printable::prefix;
use crate::worker::{self, LONGEST_VALUE, MOST_METADATA, check_metadata, check_name};

/// Bytes of a worker's free text. A longer one is cut, so that its heartbeat is not refused.
const LONGEST_TEXT: usize = 4_096;
/// Ten years: longer than any limit of a process.
const LONGEST_SECONDS: f64 = 10.0 * 365.0 * 86_400.0;

/// A JSON object from a client that may send anything.
pub(super) struct Fields {
    fields: Map<String, Value>,
    /// Fields that were given by another name than their first one, with that name.
    aliases: Vec<(&'static str, &'static str)>,
}

impl Fields {
    pub(super) fn read(body: &[u8]) -> Result<Self, Refusal> {
        match serde_json::from_slice(body) {
            Ok(Value::Object(fields)) => Ok(Self {
                fields,
                aliases: Vec::new(),
            }),
            Ok(_) => Err(Refusal::bad("the body has to be a JSON object")),
            Err(error) => Err(Refusal::bad(format!("the body is not JSON: {error}"))),
        }
    }

    /// The first of these fields that is present and not `null`.
    fn take(&mut self, names: &[&'static str]) -> Option<Value> {
        let mut first = None;
        for name in names {
            let value = self.fields.remove(*name);
            let value = value.filter(|value| !value.is_null() && first.is_none());
            if let Some(value) = value {
                self.aliases.push((names[0], name));
                first = Some(value);
            }
        }
        first
    }

    /// The name by which a field was given.
    fn given<'n>(&self, name: &'n str) -> &'n str
    where
        'static: 'n,
    {
        let mut aliases = self.aliases.iter();
        let alias = aliases.find(|(first, _)| *first == name);
        alias.map_or(name, |(_, given)| given)
    }

    /// An error that names the field as it was given.
    pub(super) fn named(&self, mut error: Error) -> Error {
        if let Error::Invalid { field, .. } = &mut error {
            *field = self.given(field);
        }
        error
    }

    fn wrong(&self, names: &[&'static str], expected: &str) -> Refusal {
        let name = self.given(names.first().copied().unwrap_or_default());
        Refusal::bad(format!("{name} has to be {expected}"))
    }

    pub(super) fn text(&mut self, names: &[&'static str]) -> Result<Option<String>, Refusal> {
        match self.take(names) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(self.wrong(names, "a text")),
        }
    }

    /// A worker's free text.
    pub(super) fn words(&mut self, names: &[&'static str]) -> Result<Option<String>, Refusal> {
        Ok(self.text(names)?.map(cut))
    }

    pub(super) fn whole(&mut self, names: &[&'static str]) -> Result<Option<u64>, Refusal> {
        let value = self.take(names);
        value
            .map(|value| {
                value
                    .as_u64()
                    .ok_or_else(|| self.wrong(names, "a whole number"))
            })
            .transpose()
    }

    pub(super) fn flag(&mut self, name: &'static str) -> Result<bool, Refusal> {
        self.take(&[name])
            .map_or(Some(false), |value| value.as_bool())
            .ok_or_else(|| self.wrong(&[name], "true or false"))
    }

    pub(super) fn seconds(&mut self, names: &[&'static str]) -> Result<Option<Seconds>, Refusal> {
        let value = self.take(names);
        let seconds = |value: Value| {
            let seconds = value.as_f64().and_then(Seconds::new);
            seconds.ok_or_else(|| self.wrong(names, "a number of seconds, 0 or more"))
        };
        value.map(seconds).transpose()
    }

    /// `[3, 10]` or `{"done": 3, "total": 10}`.
    pub(super) fn progress(&mut self) -> Result<Option<(u64, u64)>, Refusal> {
        let Some(value) = self.take(&["progress"]) else {
            return Ok(None);
        };
        let pair = match &value {
            Value::Array(steps) if steps.len() == 2 => steps[0].as_u64().zip(steps[1].as_u64()),
            Value::Object(steps) => {
                let steps = |name| steps.get(name).and_then(Value::as_u64);
                steps("done").zip(steps("total"))
            }
            _ => None,
        };
        let expected = "[done, total] or {\"done\": …, \"total\": …}, whole numbers";
        pair.map(Some)
            .ok_or_else(|| self.wrong(&["progress"], expected))
    }

    pub(super) fn worker_id(&mut self) -> Result<String, Refusal> {
        let id = self.text(&["worker_id"])?;
        let id = id.ok_or_else(|| Refusal::bad("worker_id is missing"))?;
        check_id(&id)?;
        Ok(id)
    }

    pub(super) fn run_id(&mut self) -> Result<String, Refusal> {
        let run_id = self.text(&["run_id"])?;
        let run_id = run_id.ok_or_else(|| Refusal::bad("run_id is missing"))?;
        check_run_id(&run_id)?;
        Ok(run_id)
    }

    pub(super) fn ttl(&mut self) -> Result<std::time::Duration, Refusal> {
        let ttl = self.seconds(&["ttl", "ttl_s"])?;
        let ttl = ttl.ok_or_else(|| Refusal::bad("ttl_s is missing"))?.0;
        check_ttl(ttl).map_err(|error| self.named(error))?;
        Ok(ttl)
    }

    /// All other fields, as metadata: texts as they are, other values as JSON.
    pub(super) fn rest(mut self) -> Result<Vec<(String, String)>, Refusal> {
        let mut metadata = Vec::new();
        let named = match self.take(&["metadata"]) {
            None => Map::new(),
            Some(Value::Object(named)) => named,
            Some(_) => return Err(self.wrong(&["metadata"], "an object")),
        };
        if named.len() + self.fields.len() > MOST_METADATA {
            return Err(Refusal::bad(format!(
                "{} unknown fields and metadata entries; allowed: at most {MOST_METADATA}",
                named.len() + self.fields.len()
            )));
        }
        for (name, value) in named.into_iter().chain(self.fields) {
            match value {
                Value::Null => {}
                Value::String(text) => pairs::set(&mut metadata, name, text),
                other => pairs::set(&mut metadata, name, other.to_string()),
            }
        }
        check_metadata(&metadata)?;
        Ok(metadata)
    }
}

fn cut(mut text: String) -> String {
    text.truncate(prefix(&text, LONGEST_TEXT).len());
    text
}

fn cut_some(text: &mut Option<String>) {
    *text = text.take().map(cut);
}

pub(super) fn check_id(id: &str) -> Result<(), Error> {
    worker::check_id("worker_id", id, LONGEST_ID)
}

/// Checks a registration. The process has checked its names and limits; this makes sure that a store
/// gets nothing that it cannot keep.
pub(super) fn check_registration(worker: &Registration) -> Result<(), Refusal> {
    check_id(&worker.id)?;
    check_name("worker_type", &worker.info.worker_type)?;
    check_name("group", &worker.info.group)?;
    check_amount(&worker.info.metadata)?;
    let limits = worker.info.thresholds.iter().flat_map(|own| {
        [own.stale_after, own.startup_grace]
            .into_iter()
            .chain(own.stall_after)
            .chain(own.task_deadline)
            .chain(own.progress_after)
    });
    for limit in limits.chain([worker.info.interval]) {
        if limit.as_secs_f64() > LONGEST_SECONDS {
            return Err(Refusal::bad(format!("a limit of {limit:?} is too long")));
        }
    }
    let names = worker.info.process.iter();
    let mut names = names.flat_map(|process| [&process.hostname, &process.boot_id]);
    if names.any(|name| name.len() > LONGEST_ID) {
        return Err(Refusal::bad("the name of a host or of a boot is too long"));
    }
    Ok(())
}

/// Checks a heartbeat, and cuts its texts.
pub(super) fn check_beat(beat: &mut Beat) -> Result<(), Refusal> {
    check_id(&beat.key.id)?;
    check_amount(&beat.metadata)?;
    cut_some(&mut beat.status.reason);
    cut_some(&mut beat.status.run_id);
    cut_some(&mut beat.status.task);
    cut_some(&mut beat.status.last_location);
    cut_some(&mut beat.status.stack);
    Ok(())
}

pub(super) fn check_stop(stop: &mut Stop) -> Result<(), Refusal> {
    check_id(&stop.key.id)?;
    cut_some(&mut stop.ending.detail);
    cut_some(&mut stop.ending.location);
    Ok(())
}

pub(super) fn check_claim(claim: &Claim) -> Result<(), Refusal> {
    check_id(&claim.worker.id)?;
    check_run_id(&claim.run_id)?;
    check_ttl(claim.ttl)?;
    Ok(())
}

/// Checks the size of metadata. Names may contain any characters, as in a process.
fn check_amount(metadata: &[(String, String)]) -> Result<(), Refusal> {
    let fits = |(name, value): &(String, String)| {
        !name.is_empty() && name.len() <= LONGEST_VALUE && value.len() <= LONGEST_VALUE
    };
    if metadata.len() > MOST_METADATA || !metadata.iter().all(fits) {
        return Err(Refusal::bad(format!(
            "metadata: at most {MOST_METADATA} entries of at most {LONGEST_VALUE} bytes are allowed"
        )));
    }
    Ok(())
}
