//! The `events` command: what happened to the workers, and what happens from now on.

use std::io::{self, BufWriter, Write};
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, SystemTime};

use worker_heartbeat::fleet::{EventFilter, FleetEvent};
use worker_heartbeat::{BoxError, HeartbeatStore};

use crate::args::EventsArgs;
use crate::chain;
use crate::commands::CommandResult;
use crate::text::clean;

/// How often the store is asked for new events.
const INTERVAL: Duration = Duration::from_secs(1);
/// Events that are read at a time.
const PAGE: usize = 500;

pub fn events(args: &EventsArgs) -> CommandResult {
    let store = args.store.open_to_read()?;
    let mut out = BufWriter::new(io::stdout().lock());
    let mut cursor = print_latest(&mut out, &*store, args)?;
    out.flush()?;
    if !args.follow {
        return Ok(ExitCode::SUCCESS);
    }
    let mut fails = false;
    loop {
        thread::sleep(INTERVAL);
        match print_new(&mut out, &*store, args, &mut cursor) {
            Ok(()) => {
                if fails {
                    log::info!("the store is reachable again");
                }
                fails = false;
            }
            Err(error) if error.is::<io::Error>() => return Err(error),
            Err(error) => {
                if !fails {
                    log::warn!("{}", clean(&chain(&*error)));
                }
                fails = true;
            }
        }
        out.flush()?;
    }
}

fn filter(args: &EventsArgs) -> EventFilter {
    let mut filter = EventFilter::new().level(args.level);
    filter.worker.clone_from(&args.worker);
    filter.worker_type.clone_from(&args.worker_type);
    filter.group.clone_from(&args.group);
    filter
}

fn kept<T>(page: Option<T>) -> Result<T, BoxError> {
    page.ok_or_else(|| "this store keeps no events".into())
}

/// Prints the latest events, the earliest of them first. Returns where to read on.
fn print_latest(
    out: &mut impl Write,
    store: &dyn HeartbeatStore,
    args: &EventsArgs,
) -> Result<u64, BoxError> {
    let first = kept(store.events(&filter(args).limit(args.limit.min(PAGE)))?)?;
    let cursor = first.cursor;
    let mut more = first.more;
    let mut found = first.events.len();
    // The latest page is read first, and printed last.
    let mut pages = vec![first.events];
    while more && found < args.limit {
        let Some(before) = pages.last().and_then(|page| page.first()) else {
            break;
        };
        let earlier = filter(args).before(before.seq);
        let page = kept(store.events(&earlier.limit((args.limit - found).min(PAGE)))?)?;
        more = page.more;
        found += page.events.len();
        pages.push(page.events);
    }
    for event in pages.iter().rev().flatten() {
        print(out, event, args.json)?;
    }
    Ok(cursor)
}

/// Prints what was recorded after the cursor, and moves it.
fn print_new(
    out: &mut impl Write,
    store: &dyn HeartbeatStore,
    args: &EventsArgs,
    cursor: &mut u64,
) -> Result<(), BoxError> {
    loop {
        let page = kept(store.events(&filter(args).after(*cursor).limit(PAGE))?)?;
        for event in &page.events {
            print(out, event, args.json)?;
        }
        *cursor = page.cursor;
        if !page.more {
            return Ok(());
        }
    }
}

/// One line for an event; below it, where the worker was, and its call stack.
fn print(out: &mut impl Write, event: &FleetEvent, json: bool) -> io::Result<()> {
    if json {
        serde_json::to_writer(&mut *out, event).map_err(io::Error::from)?;
        return writeln!(out);
    }
    let now = SystemTime::now();
    let at = now.checked_sub(event.age).unwrap_or(now);
    let at = humantime::format_rfc3339_seconds(at);
    let level = event.kind.level().as_str();
    writeln!(out, "{at} {level:<5} {}", clean(&event.to_string()))?;
    let named = |name: &str, value: &Option<String>| {
        value
            .as_ref()
            .map(|value| format!("{name} {}", clean(value)))
    };
    let details = [
        named("at", &event.last_location),
        named("run", &event.run_id),
        named("task", &event.task),
        named("type", &event.worker_type),
        named("group", &event.group).filter(|_| event.worker.is_some()),
        named("on", &event.hostname),
        event.pid.map(|pid| format!("pid {pid}")),
    ];
    let details: Vec<String> = details.into_iter().flatten().collect();
    if !details.is_empty() {
        writeln!(out, "  {}", details.join(", "))?;
    }
    for line in event.stack.iter().flat_map(|stack| stack.lines()) {
        writeln!(out, "    {}", clean(line))?;
    }
    Ok(())
}
