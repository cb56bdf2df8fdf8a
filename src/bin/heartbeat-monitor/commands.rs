//! The commands that do one thing and exit.

use std::io::{self, BufWriter, Write};
use std::iter;
use std::process::ExitCode;
use std::time::Duration;

use worker_heartbeat::fleet::{Pages, WorkerFilter};
use worker_heartbeat::{Beacon, BoxError, HeartbeatStore, Sweeper};

use crate::args::{CheckArgs, MigrateArgs, PurgeArgs, StatusArgs, SweepArgs};
use crate::table::Table;
use crate::{UNHEALTHY, table};

pub type CommandResult = Result<ExitCode, BoxError>;

/// Workers in a table, unless all are asked for.
const MOST_IN_TABLE: usize = 1_000;
/// Workers that are read at a time.
const PAGE: usize = 1_000;

pub fn status(args: &StatusArgs) -> CommandResult {
    let store = args.store.open_to_read()?;
    let mut out = BufWriter::with_capacity(1 << 16, io::stdout().lock());
    if args.json {
        write_json(&mut out, &*store)?;
    } else if args.all {
        let mut pages = Pages::new(&*store, WorkerFilter::new().limit(PAGE));
        let mut table = Table::new(args.details);
        table.write(&mut out, &pages.next().transpose()?.unwrap_or_default())?;
        for page in pages {
            table.write(&mut out, &page?)?;
        }
        writeln!(out, "{}", table::totals(&store.counts()?.states))?;
    } else {
        let mut workers = store.list(&WorkerFilter::new().limit(MOST_IN_TABLE + 1))?;
        let states = store.counts()?.states;
        if workers.len() > MOST_IN_TABLE {
            workers = store.worst_first(&WorkerFilter::new().limit(MOST_IN_TABLE))?;
        }
        Table::new(args.details).write(&mut out, &workers)?;
        if let Some(more @ 1..) = states.total().checked_sub(workers.len()) {
            writeln!(
                out,
                "… and {more} more, none in a worse state; --all shows them"
            )?;
        }
        writeln!(out, "{}", table::totals(&states))?;
    }
    out.flush()?;
    Ok(ExitCode::SUCCESS)
}

/// One JSON document, written page by page. Each worker is on a line of its own.
fn write_json(out: &mut impl Write, store: &dyn HeartbeatStore) -> Result<(), BoxError> {
    let mut pages = Pages::new(store, WorkerFilter::new().limit(PAGE));
    // An error of the store comes before the first byte.
    let first = pages.next().transpose()?.unwrap_or_default();
    let summary = serde_json::to_string_pretty(&store.summary()?)?;
    write!(out, "{{\n\"summary\": {summary},\n\"workers\": [")?;
    let mut separator = "\n";
    for page in iter::once(Ok(first)).chain(pages) {
        for worker in page? {
            out.write_all(separator.as_bytes())?;
            serde_json::to_writer(&mut *out, &worker).map_err(io::Error::from)?;
            separator = ",\n";
        }
    }
    writeln!(out, "\n]\n}}")?;
    Ok(())
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
            let mut summary = args.store.open_to_read()?.summary()?;
            for (worker_type, count) in &args.expect {
                summary.expect_workers(worker_type, *count);
            }
            let mut policy = args.policy.clone().tolerate_dead(args.tolerate_dead);
            for worker_type in &args.ignore_type {
                policy = policy.ignore_type(worker_type);
            }
            let verdict = summary.verdict(&policy);
            let mut text = summary.to_string();
            for worker_type in &verdict.unknown_types {
                text += &format!("; no worker has the type {worker_type}");
            }
            let text = table::clean(&text);
            if verdict.is_well() {
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
