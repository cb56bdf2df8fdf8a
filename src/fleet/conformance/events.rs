//! Events: what happened, in which order, and how it is read.

use super::*;
use crate::fleet::shapes::{EventFilter, EventPage, FleetEvent, FleetEventKind};

impl Bench<'_> {
    fn page(&self, filter: EventFilter) -> Result<Option<EventPage>, Violation> {
        Ok(self.store.events(&filter.group(&self.name))?)
    }

    /// The events of this case; `None` if the store keeps none.
    fn events(&self) -> Result<Option<Vec<FleetEvent>>, Violation> {
        let page = self.page(EventFilter::new().limit(1_000))?;
        Ok(page.map(|page| page.events))
    }

    /// The name of the worker of this case.
    fn name_of<'e>(&self, event: &'e FleetEvent) -> &'e str {
        let id = event.worker.as_ref().map_or("", |worker| &*worker.id);
        id.strip_prefix(&format!("{}-", self.name)).unwrap_or(id)
    }

    /// Kind and worker of each.
    fn kinds(&self, events: &[FleetEvent]) -> Vec<String> {
        let kind = |event: &FleetEvent| format!("{} {}", event.kind, self.name_of(event));
        events
            .iter()
            .map(|event| kind(event).trim().to_owned())
            .collect()
    }
}

fn failed(error: &str) -> StoredEnding {
    StoredEnding::dead(&DeathCause::Failed {
        error: error.to_owned(),
    })
}

/// A worker that is unwell, for this reason.
fn unwell(key: &WorkerKey, state: State) -> Beat {
    let mut beat = Beat::new(key.clone(), state);
    beat.status.reason = Some("no progress for 6 s, 5 s allowed".into());
    beat.status.run_id = Some("run-7".into());
    beat.status.task = Some("indexing".into());
    beat.status.last_location = Some("src/jobs.rs:42".into());
    beat
}

pub(super) fn deaths(bench: &Bench<'_>) -> Checked {
    if bench.events()?.is_none() {
        return Ok(());
    }
    let key = bench.worker("a")?;
    let mut beat = unwell(&key, State::Stalled);
    beat.status.stack = Some("0: shop::stock::reserve".into());
    bench.beat(beat)?;
    let stop = Stop::new(key.clone(), failed("no disk")).ago(3 * SECOND);
    let stops = [stop];
    ensure_eq!(bench.store.stop(&stops)?, [Answer::Accepted]);
    // The answer was lost: it is sent again.
    ensure_eq!(bench.store.stop(&stops)?, [Answer::Ended]);
    let events = bench.events()?.unwrap_or_default();
    ensure_eq!(bench.kinds(&events), ["unwell a", "died a"]);
    let (unwell, died) = (&events[0], &events[1]);
    ensure_eq!(unwell.state, Some(State::Stalled));
    ensure_eq!(
        unwell.reason.as_deref(),
        Some("no progress for 6 s, 5 s allowed")
    );
    ensure!(
        about(Some(died.age), 3 * SECOND),
        "its age is {:?}",
        died.age
    );
    ensure_eq!(died.worker, Some(key));
    ensure_eq!(died.worker_type, Some(bench.name.clone()));
    ensure_eq!(died.ending, Some(failed("no disk")));
    for event in [unwell, died] {
        ensure_eq!(event.run_id.as_deref(), Some("run-7"));
        ensure_eq!(event.task.as_deref(), Some("indexing"));
        ensure_eq!(event.last_location.as_deref(), Some("src/jobs.rs:42"));
        ensure_eq!(event.stack.as_deref(), Some("0: shop::stock::reserve"));
    }
    ensure_eq!(died.text(), "died: failed: no disk");
    Ok(())
}

pub(super) fn recoveries(bench: &Bench<'_>) -> Checked {
    if bench.events()?.is_none() {
        return Ok(());
    }
    let key = bench.worker("a")?;
    bench.beat(unwell(&key, State::Stalled))?;
    // The same state again is no event, and another one is.
    bench.beat(unwell(&key, State::Stalled))?;
    bench.beat(unwell(&key, State::Overdue))?;
    let mut with_stack = unwell(&key, State::Overdue);
    with_stack.status.stack = Some("0: shop::stock::reserve".into());
    bench.beat(with_stack)?;
    bench.well(&key)?;
    bench.well(&key)?;
    bench.stop(&key, stopped())?;
    let events = bench.events()?.unwrap_or_default();
    ensure_eq!(
        bench.kinds(&events),
        [
            "unwell a",
            "unwell a",
            "stack_captured a",
            "recovered a",
            "stopped a"
        ]
    );
    ensure_eq!(events[1].state, Some(State::Overdue));
    ensure_eq!(events[2].stack.as_deref(), Some("0: shop::stock::reserve"));
    ensure_eq!(
        events[3].reason.as_deref(),
        Some("was overdue: no progress for 6 s, 5 s allowed")
    );
    Ok(())
}

pub(super) fn restarts(bench: &Bench<'_>) -> Checked {
    if bench.events()?.is_none() {
        return Ok(());
    }
    let here = ProcessIdentity::current();
    let life = |n: u32, last: Option<&str>| {
        let here = here.clone();
        let death = last.map(|error| StoredDeath::new(failed(error), Duration::ZERO));
        bench.register_with("a", move |worker| {
            worker.info.process = Some(here);
            worker.info.restarts = n;
            worker.last_death = death;
        })
    };
    let key = life(0, None)?;
    bench.well(&key)?;
    // Its end was stored.
    bench.stop(&key, failed("one"))?;
    bench.well(&life(1, Some("one"))?)?;
    // It was restarted before its end was stored.
    bench.well(&life(2, Some("two"))?)?;
    bench.well(&life(3, Some("two"))?)?;
    // The same life again: its answer was lost.
    let key = life(3, Some("two"))?;
    bench.stop(&key, stopped())?;
    let events = bench.events()?.unwrap_or_default();
    let texts: Vec<String> = events.iter().map(FleetEvent::text).collect();
    ensure_eq!(
        texts,
        [
            "died: failed: one",
            "registered again after its death: failed: one",
            "died: failed: two",
            "registered again after its death: failed: two",
            "died: failed: two",
            "registered again after its death: failed: two",
            "stopped: by stop()",
        ]
    );
    let row = bench.row(&key)?;
    ensure_eq!(
        row.last_death.map(|death| death.cause().to_string()),
        Some("failed: two".to_owned())
    );
    Ok(())
}

pub(super) fn fences(bench: &Bench<'_>) -> Checked {
    if bench.events()?.is_none() {
        return Ok(());
    }
    let first = bench.worker("a")?;
    bench.worker("a")?;
    let events = bench.events()?.unwrap_or_default();
    ensure_eq!(bench.kinds(&events), ["superseded a"]);
    ensure_eq!(events[0].worker, Some(first));
    ensure_eq!(
        events[0].reason.as_deref(),
        Some("another process registered its id")
    );
    Ok(())
}

pub(super) fn sweeps(bench: &Bench<'_>) -> Checked {
    if bench.events()?.is_none() {
        return Ok(());
    }
    bench.silent("a", 91 * SECOND)?;
    let killed = bench.worker("b")?;
    let sweep = Sweep {
        killed: vec![killed],
        ..Sweep::default()
    };
    let dry_run = Sweep {
        dry_run: true,
        ..sweep.clone()
    };
    bench.sweep(&dry_run)?;
    ensure_eq!(bench.events()?.unwrap_or_default().len(), 0);
    bench.sweep(&sweep)?;
    bench.sweep(&sweep)?;
    let mut events = bench.events()?.unwrap_or_default();
    // In any order; the group follows.
    events[..2].sort_by(|a, b| bench.name_of(a).cmp(bench.name_of(b)));
    ensure_eq!(bench.kinds(&events), ["died a", "died b", "group_offline"]);
    ensure_eq!(events[0].text(), "died: lost: not heard of any more");
    ensure_eq!(events[1].text(), "died: its process was killed");
    // One of its workers returns; the group is told of once.
    bench.worker("a")?;
    bench.sweep(&Sweep::default())?;
    bench.sweep(&Sweep::default())?;
    let events = bench.events()?.unwrap_or_default();
    ensure_eq!(bench.kinds(&events)[3..], ["recovered a", "group_online"]);
    let page = bench.store.events(&EventFilter::new().limit(1_000))?;
    let all = page.unwrap_or_default().events;
    ensure!(
        all.iter().any(|event| event.kind == FleetEventKind::Swept),
        "no event tells of the sweep"
    );
    Ok(())
}

pub(super) fn pages(bench: &Bench<'_>) -> Checked {
    let Some(start) = bench.page(EventFilter::new())? else {
        return Ok(());
    };
    ensure!(start.events.is_empty() && !start.more, "{start:?}");
    let names = ["a", "b", "c", "d", "e"];
    for name in names {
        let key = bench.worker(name)?;
        bench.stop(&key, failed(name))?;
    }
    let page = |filter: EventFilter| {
        let page = bench.page(filter)?.unwrap_or_default();
        let names: String = page
            .events
            .iter()
            .map(|event| bench.name_of(event))
            .collect();
        Ok::<_, Violation>((names, page))
    };
    // Forward, from where nothing had happened yet.
    let from = EventFilter::new().after(start.cursor).limit(2);
    let (first, one) = page(from.clone())?;
    ensure_eq!((first.as_str(), one.more), ("ab", true));
    let (second, two) = page(from.clone().after(one.cursor))?;
    ensure_eq!((second.as_str(), two.more), ("cd", true));
    let (third, three) = page(from.after(two.cursor))?;
    ensure_eq!((third.as_str(), three.more), ("e", false));
    let (none, four) = page(EventFilter::new().after(three.cursor))?;
    ensure_eq!((none.as_str(), four.more), ("", false));
    ensure!(four.cursor >= three.cursor, "the cursor goes back");
    // Backward, from the latest.
    let (latest, one) = page(EventFilter::new().limit(2))?;
    ensure_eq!((latest.as_str(), one.more), ("de", true));
    ensure!(one.cursor >= one.events[1].seq, "its cursor is too low");
    let before = one.events[0].seq;
    let (earlier, two) = page(EventFilter::new().before(before).limit(10))?;
    ensure_eq!((earlier.as_str(), two.more), ("abc", false));
    // What happens next is after either cursor.
    let key = bench.worker("f")?;
    bench.stop(&key, stopped())?;
    for cursor in [one.cursor, three.cursor, four.cursor] {
        let (next, _) = page(EventFilter::new().after(cursor))?;
        ensure_eq!(next, "f");
    }
    let (of_level, _) = page(EventFilter::new().level(log::Level::Error))?;
    ensure_eq!(of_level, "abcde");
    let (of_worker, _) = page(EventFilter::new().worker(bench.id("c")))?;
    ensure_eq!(of_worker, "c");
    let (of_type, _) = page(EventFilter::new().worker_type(&bench.name).limit(1))?;
    ensure_eq!(of_type, "f");
    let (of_other_type, _) = page(EventFilter::new().worker_type("other"))?;
    ensure_eq!(of_other_type, "");
    Ok(())
}

pub(super) fn endings(bench: &Bench<'_>) -> Checked {
    if bench.events()?.is_none() {
        return Ok(());
    }
    let stop = bench.worker("graceful")?;
    bench.stop(&stop, stopped())?;
    bench.stop(&stop, stopped())?;
    let fail = bench.worker("failed")?;
    bench.stop(&fail, failed("no disk"))?;
    let exit = StoredEnding::stopped(&StopCause::ProcessExit { status: None });
    for (name, state) in [("exited", State::Active), ("too-late", State::Stopping)] {
        let key = bench.worker(name)?;
        bench.beat(Beat::new(key.clone(), state))?;
        bench.stop(&key, exit.clone())?;
    }
    let gone = bench.worker("gone")?;
    let killed = bench.worker("killed")?;
    bench.beat(Beat::new(killed.clone(), State::Stopping))?;
    bench.sweep(&Sweep {
        killed: vec![killed],
        gone: vec![gone],
        ..Sweep::default()
    })?;
    let counts = bench.store.counts()?;
    let endings = counts.endings.get(&bench.name).cloned().unwrap_or_default();
    let endings: Vec<String> = endings
        .iter()
        .map(|(how, total)| format!("{total} {how}"))
        .collect();
    ensure_eq!(endings, ["1 failed", "1 gone", "2 graceful", "2 timed_out"]);
    Ok(())
}
