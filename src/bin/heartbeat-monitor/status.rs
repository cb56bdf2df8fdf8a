//! The `status` command: the workers of a store, as a table or as JSON.

use std::io::{self, BufWriter, Write};
use std::iter;
use std::process::ExitCode;

use worker_heartbeat::fleet::Pages;
use worker_heartbeat::{BoxError, HeartbeatStore, State};

use crate::args::StatusArgs;
use crate::commands::CommandResult;
use crate::scope::{Scope, UNWELL};
use crate::screen;
use crate::table::{Table, totals};

/// Workers in a table, unless all are asked for.
const MOST_IN_TABLE: usize = 1_000;
/// Workers that are read at a time.
const PAGE: usize = 1_000;

pub fn run(args: &StatusArgs) -> CommandResult {
    let store = args.store.open_to_read()?;
    let scope = args.scope.scope();
    let mut out = BufWriter::with_capacity(1 << 16, io::stdout().lock());
    if args.json {
        write_json(&mut out, &*store, &scope)?;
    } else {
        write_table(&mut out, &*store, &scope, args)?;
    }
    out.flush()?;
    Ok(ExitCode::SUCCESS)
}

fn write_table(
    out: &mut impl Write,
    store: &dyn HeartbeatStore,
    scope: &Scope,
    args: &StatusArgs,
) -> Result<(), BoxError> {
    let mut table = Table::default();
    table.has_details = args.details;
    table.colors = args.color.colors();
    table.width = screen::width();
    let counted = |store: &dyn HeartbeatStore| -> Result<Vec<(State, usize)>, BoxError> {
        let counts = scope.counts(store, false)?;
        let is_asked = |state: &State| scope.states.is_empty() || scope.states.contains(state);
        let counts = counts.states.iter().filter(|(state, _)| is_asked(state));
        Ok(counts.collect())
    };
    if args.all {
        let mut has_rows = false;
        for filter in scope.filters() {
            for page in Pages::new(store, filter.limit(PAGE)) {
                table.write(out, &page?)?;
                has_rows = true;
            }
        }
        if !has_rows {
            table.write(out, &[])?;
        }
        writeln!(out, "{}", totals(counted(store)?.into_iter()))?;
        return Ok(());
    }
    let workers = scope.worst(store, MOST_IN_TABLE)?;
    let counted = counted(store)?;
    table.write(out, &workers)?;
    let total: usize = counted.iter().map(|(_, count)| count).sum();
    if let Some(more @ 1..) = total.checked_sub(workers.len()) {
        writeln!(
            out,
            "… and {more} more, none in a worse state; --all shows them"
        )?;
    }
    writeln!(out, "{}", totals(counted.into_iter()))?;
    Ok(())
}

/// One JSON document, written page by page. Each worker is on a line of its own.
fn write_json(
    out: &mut impl Write,
    store: &dyn HeartbeatStore,
    scope: &Scope,
) -> Result<(), BoxError> {
    let filters = scope.filters();
    let mut pages = filters
        .into_iter()
        .flat_map(|filter| Pages::new(store, filter.limit(PAGE)));
    // An error of the store comes before the first byte.
    let first = pages.next().transpose()?.unwrap_or_default();
    let summary = if scope.is_all() {
        store.summary()?
    } else {
        let unwell = scope.clone().states(UNWELL).worst(store, MOST_IN_TABLE)?;
        scope.count_workers(store)?.summary(unwell)
    };
    let summary = serde_json::to_string_pretty(&summary)?;
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
