//! Writing to the log without being harmed by it.

use log::kv::Value;

use super::catch::catch;

const TARGET: &str = "worker_heartbeat";

/// Logs one line. A panic of the log implementation is contained.
pub(crate) fn log_line(level: log::Level, text: std::fmt::Arguments<'_>) {
    log_fields(level, text, &[]);
}

/// As [`log_line`], with those of these fields that have a value as key-values of the record.
pub(crate) fn log_fields(
    level: log::Level,
    text: std::fmt::Arguments<'_>,
    fields: &[(&'static str, Option<&str>)],
) {
    if level > log::STATIC_MAX_LEVEL || level > log::max_level() {
        return;
    }
    let fields = fields.iter();
    let fields = fields.filter_map(|(name, value)| Some((*name, Value::from((*value)?))));
    let fields: Vec<(&str, Value<'_>)> = fields.collect();
    let fields = fields.as_slice();
    drop(catch(|| {
        let mut record = log::Record::builder();
        record
            .level(level)
            .target(TARGET)
            .module_path_static(Some(module_path!()))
            .key_values(&fields);
        log::logger().log(&record.args(text).build());
    }));
}
