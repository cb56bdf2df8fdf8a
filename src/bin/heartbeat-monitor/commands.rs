//! The commands that do one thing and exit.

use std::io::{self, Write};
use std::process::ExitCode;
use std::time::Duration;

use serde_json::json;
use worker_heartbeat::fleet::{Pages, WorkerFilter};
use worker_heartbeat::{Beacon, BoxError, HeartbeatStore, StoredWorker, Sweeper};

use crate::args::{CheckArgs, MigrateArgs, PurgeArgs, StatusArgs, SweepArgs};
use crate::{UNHEALTHY, table};

pub type CommandResult = Result<ExitCode, BoxError>;

pub fn status(args: &StatusArgs) -> CommandResult {
    let store = args.store.open_to_read()?;
    let pages = Pages::new(&*store, WorkerFilter::new());
    let workers: Vec<StoredWorker> = pages.collect::<Result<Vec<_>, _>>()?.concat();
    let summary = store.summary()?;
    let mut out = io::stdout().lock();
    if args.json {
        let document = json!({"summary": summary, "workers": workers});
        writeln!(out, "{document:#}")?;
    } else {
        table::write(&mut out, &workers)?;
        writeln!(out, "{}", table::totals(&summary))?;
    }
    Ok(ExitCode::SUCCESS)
}

pub fn sweep(args: &SweepArgs) -> CommandResult {
    let report = Sweeper::new(args.store.open()?)
        .threshold(args.threshold)
        .watched_for(Duration::MAX)
        .dry_run(args.dry_run)
        .retention(args.retention.retention())
        .sweep()?;
    if !report.success {
        return Err("another sweep is running; nothing was done".into());
    }
    let would_be = if args.dry_run { "would be " } else { "" };
    let mut out = io::stdout().lock();
    for (kind, change, names) in [
        ("worker", "marked offline", &report.marked_offline),
        ("group", "offline as a whole", &report.affected_groups),
        ("lease of", "released", &report.released_leases),
    ] {
        for name in names {
            writeln!(out, "{kind} {}: {would_be}{change}", table::clean(name))?;
        }
    }
    for name in &report.busy {
        let name = table::clean(name);
        writeln!(
            out,
            "worker {name}: not marked, because another client locks it"
        )?;
    }
    if report.forgotten > 0 {
        writeln!(out, "{} {would_be}forgotten", report.forgotten)?;
    }
    let count = report.marked_offline.len();
    writeln!(out, "{count} {would_be}marked offline")?;
    Ok(ExitCode::SUCCESS)
}

pub fn purge(args: &PurgeArgs) -> CommandResult {
    let count = args.store.open()?.purge(args.older_than)?;
    writeln!(io::stdout(), "{count} deleted")?;
    Ok(ExitCode::SUCCESS)
}

pub fn migrate(args: &MigrateArgs) -> CommandResult {
    if let Some(role) = &args.grants {
        let sql = args.store.postgres().grants_sql(role)?;
        write!(io::stdout(), "{sql}")?;
    } else if args.print {
        let sql = args.store.postgres().migration_sql()?;
        write!(io::stdout(), "{sql}")?;
    } else {
        args.store.migrate()?;
        writeln!(io::stdout(), "the tables are up to date")?;
    }
    Ok(ExitCode::SUCCESS)
}

pub fn check(args: &CheckArgs) -> CommandResult {
    let result = match &args.file {
        Some(file) => Beacon::check(file, args.max_age),
        None => {
            let summary = args.store.open_to_read()?.summary()?;
            let text = table::clean(&summary.to_string());
            if summary.is_healthy() {
                Ok(text)
            } else {
                Err(text)
            }
        }
    };
    let (text, code) = match result {
        Ok(summary) => (summary, ExitCode::SUCCESS),
        Err(problem) => (problem, ExitCode::from(UNHEALTHY)),
    };
    // The exit status is the result, even if stdout is closed.
    let _ = writeln!(io::stdout(), "{text}");
    Ok(code)
}
