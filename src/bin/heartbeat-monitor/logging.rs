//! The log, on stderr: lines for people, or JSON for machines.

use std::io::Write;
use std::time::SystemTime;

use clap::ValueEnum;
use env_logger::Logger;
use env_logger::fmt::Formatter;
use log::kv::{self, Key, Value, VisitSource};
use log::{Log, Metadata, Record};
use serde_json::{Map, json};

/// How a record of the log is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// A line for people
    #[default]
    Text,
    /// A JSON object on a line
    Json,
}

pub fn start(format: LogFormat) {
    let level = env_logger::Env::default().default_filter_or("info");
    let mut builder = env_logger::Builder::from_env(level);
    if format == LogFormat::Json {
        builder.format(write_json);
    }
    let logger = builder.build();
    let most = logger.filter();
    // No other logger was set before.
    if log::set_boxed_logger(Box::new(WithoutRequests(logger))).is_ok() {
        log::set_max_level(most);
    }
}

/// Leaves out the records of the HTTP client, whatever RUST_LOG says: they show URLs, and the one of
/// `--notify` may be a secret.
struct WithoutRequests(Logger);

impl WithoutRequests {
    fn is_about_requests(target: &str) -> bool {
        target.starts_with("ureq")
    }
}

impl Log for WithoutRequests {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        !Self::is_about_requests(metadata.target()) && self.0.enabled(metadata)
    }

    fn log(&self, record: &Record<'_>) {
        if !Self::is_about_requests(record.target()) {
            self.0.log(record);
        }
    }

    fn flush(&self) {
        self.0.flush();
    }
}

fn write_json(out: &mut Formatter, record: &Record<'_>) -> std::io::Result<()> {
    let mut fields = Map::new();
    let now = humantime::format_rfc3339_millis(SystemTime::now());
    fields.insert("time".to_owned(), now.to_string().into());
    fields.insert("level".to_owned(), record.level().as_str().into());
    fields.insert("target".to_owned(), record.target().into());
    fields.insert("message".to_owned(), record.args().to_string().into());
    // A value that cannot be shown is left out; the message remains.
    let _ = record.key_values().visit(&mut Fields(&mut fields));
    writeln!(out, "{}", json!(fields))
}

/// The named values of a record. They don't replace its own fields.
struct Fields<'a>(&'a mut Map<String, serde_json::Value>);

impl<'kvs> VisitSource<'kvs> for Fields<'_> {
    fn visit_pair(&mut self, key: Key<'kvs>, value: Value<'kvs>) -> Result<(), kv::Error> {
        let number = value.to_u64().map(Into::into);
        let value = number.unwrap_or_else(|| value.to_string().into());
        self.0.entry(key.as_str()).or_insert(value);
        Ok(())
    }
}
