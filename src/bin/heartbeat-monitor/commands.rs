//! The commands that do one thing and end.

use std::io::{self, Write};
use std::process::ExitCode;
use std::time::Duration;

use serde_json::json;
use worker_heartbeat::fleet::WorkerFilter;
use worker_heartbeat::{Beacon, BoxError, Error, HeartbeatStore, StoredWorker, Sweeper};

use crate::args::{Check, Migrate, Purge, Status, Sweep};
use crate::{UNWELL, table};

pub type Done = Result<ExitCode, BoxError>;

pub fn status(status: &Status) -> Done {
    let store = status.store.open()?;
    let workers = all(&*store)?;
    let summary = store.summary()?;
    let mut out = io::stdout().lock();
    if status.json {
        let document = json!({"summary": summary, "workers": workers});
        writeln!(out, "{document:#}")?;
    } else {
        table::write(&mut out, &workers)?;
        writeln!(out, "{}", table::totals(&summary))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// All workers, in the order of their ids.
fn all(store: &dyn HeartbeatStore) -> Result<Vec<StoredWorker>, Error> {
    let mut workers = Vec::new();
    let mut filter = WorkerFilter::default();
    loop {
        let page = store.list(&filter)?;
        let more = page.len() >= filter.limit;
        filter.after = page.last().map(|worker| worker.key.id.clone());
        workers.extend(page);
        if !more {
            return Ok(workers);
        }
    }
}

pub fn sweep(sweep: &Sweep) -> Done {
    let report = Sweeper::new(sweep.store.open()?)
        .threshold(sweep.threshold.threshold)
        .watched_for(Duration::MAX)
        .dry_run(sweep.dry_run)
        .sweep()?;
    if !report.success {
        return Err("another sweep is at work; nothing was done".into());
    }
    let would = if sweep.dry_run { "would be " } else { "" };
    let mut out = io::stdout().lock();
    for (kind, what, names) in [
        ("worker", "marked offline", &report.marked_offline),
        ("group", "offline as a whole", &report.affected_groups),
        ("lease of", "released", &report.released_leases),
    ] {
        for name in names {
            writeln!(out, "{kind} {}: {would}{what}", table::clean(name))?;
        }
    }
    let counted = report.marked_offline.len();
    writeln!(out, "{counted} {would}marked offline")?;
    Ok(ExitCode::SUCCESS)
}

pub fn purge(purge: &Purge) -> Done {
    let count = purge.store.open()?.purge(purge.older_than)?;
    writeln!(io::stdout(), "{count} forgotten")?;
    Ok(ExitCode::SUCCESS)
}

pub fn migrate(migrate: &Migrate) -> Done {
    if migrate.print {
        let sql = migrate.store.postgres().migration_sql()?;
        write!(io::stdout(), "{sql}")?;
    } else {
        migrate.store.migrate()?;
        writeln!(io::stdout(), "the tables are up to date")?;
    }
    Ok(ExitCode::SUCCESS)
}

pub fn check(check: &Check) -> Done {
    let found = match &check.file {
        Some(file) => Beacon::check(file, check.max_age),
        None => {
            let summary = check.store.open()?.summary()?;
            let said = table::clean(&summary.to_string());
            if summary.is_healthy() {
                Ok(said)
            } else {
                Err(said)
            }
        }
    };
    let (said, code) = match found {
        Ok(said) => (said, ExitCode::SUCCESS),
        Err(why) => (why, ExitCode::from(UNWELL)),
    };
    // The status says it all, even if nobody reads the words.
    let _ = writeln!(io::stdout(), "{said}");
    Ok(code)
}
