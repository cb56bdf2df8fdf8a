//! The messages of the log, and the effects that a log implementation can have.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, Once, mpsc};
use std::thread;
use std::time::Duration;

use crate::support::executor::block_on;
use crate::support::{PATIENCE, SECOND, World, eventually, name};
use worker_heartbeat::{Activity, Registry, State, StopReport, Supervisor, WorkerHeartbeat};

type Line = (log::Level, String);
type Listener = Box<dyn Fn(&Line) + Send + Sync>;

static LISTENERS: Mutex<Vec<Arc<Listener>>> = Mutex::new(Vec::new());

/// The key-values of each line.
static FIELDS: Mutex<Vec<(String, BTreeMap<String, String>)>> = Mutex::new(Vec::new());

struct Fields(BTreeMap<String, String>);

impl<'a> log::kv::VisitSource<'a> for Fields {
    fn visit_pair(
        &mut self,
        key: log::kv::Key<'a>,
        value: log::kv::Value<'a>,
    ) -> Result<(), log::kv::Error> {
        self.0.insert(key.to_string(), value.to_string());
        Ok(())
    }
}

struct Logger;

impl log::Log for Logger {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        let line = (record.level(), record.args().to_string());
        let mut fields = Fields(BTreeMap::new());
        record.key_values().visit(&mut fields).unwrap();
        FIELDS.lock().unwrap().push((line.1.clone(), fields.0));
        let listeners = LISTENERS.lock().unwrap().clone();
        listeners.iter().for_each(|listener| listener(&line));
    }

    fn flush(&self) {}
}

/// Calls this with every line of all tests of this program.
fn listen(listener: impl Fn(&Line) + Send + Sync + 'static) {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| {
        log::set_logger(&Logger).unwrap();
        log::set_max_level(log::LevelFilter::Info);
    });
    LISTENERS.lock().unwrap().push(Arc::new(Box::new(listener)));
}

/// The later lines that contain this text.
fn lines_with(text: &'static str) -> Arc<Mutex<Vec<Line>>> {
    let lines = Arc::<Mutex<Vec<Line>>>::default();
    let heard = Arc::clone(&lines);
    listen(move |line| {
        if line.1.contains(text) {
            heard.lock().unwrap().push(line.clone());
        }
    });
    lines
}

#[test]
fn records_have_id_type_state_cause_and_run_as_key_values() {
    listen(|_| ());
    let world = World::new();
    let start = |id: &str| world.worker("kv").id(id).start().unwrap();
    let hb = start("kv-1");
    let _task = hb.begin_task("run-7", "sending");
    hb.fail("disk full");
    start("kv-3").begin_task("run-8", "").fail("no mailbox");
    start("kv-2").stop();
    let fields = |text: &str| {
        let all = FIELDS.lock().unwrap();
        let found = all.iter().rfind(|(line, _)| line.contains(text));
        let found = found.unwrap_or_else(|| panic!("{text} is not in {all:?}"));
        let of = |name: &str| found.1.get(name).cloned().unwrap_or_default();
        [of("id"), of("type"), of("state"), of("cause"), of("run")]
    };
    for (text, expected) in [
        ("kv-1: dead", ["kv-1", "kv", "dead", "failed", "run-7"]),
        ("kv-2: stopped", ["kv-2", "kv", "stopped", "stop", ""]),
        ("kv-3: task failed", ["kv-3", "kv", "", "", "run-8"]),
    ] {
        assert_eq!(fields(text), expected, "{text}");
    }
}

#[test]
fn a_log_that_blocks_does_not_hold_up_the_next_pacemaker() {
    // The system's clock: the mock clock waits for a log that blocks.
    let registry = Registry::new();
    let worker = |id: &str| {
        WorkerHeartbeat::builder("w")
            .id(id)
            .interval(Duration::from_millis(10))
            .stale_after(Duration::from_millis(100))
            .registry(&registry)
    };
    let (reached, is_reached) = mpsc::channel();
    let (unblock, held) = mpsc::channel::<()>();
    let held = Mutex::new(held);
    listen(move |(_, text)| {
        if text.starts_with("worker stuck: never started") {
            reached.send(()).unwrap();
            let _ = held.lock().unwrap().recv();
        }
    });
    let stuck = worker("stuck").start().unwrap();
    is_reached.recv().unwrap();
    // Its pacemaker does not end, and is leaked.
    drop(stuck);
    let events = registry.subscribe();
    let next = worker("next").start().unwrap();
    next.beat();
    eventually("observed", || {
        events.try_iter().any(|event| name(&event) == "started")
    });
    assert!(next.is_recent());
    drop(unblock);
}

#[test]
fn an_error_is_logged_however_many_messages_came_before() {
    let world = World::new();
    let lines = lines_with("worker crowded-out: dead: failed: out of memory");
    let victim = world.worker("w").id("crowded-out").start().unwrap();
    for _ in 0..200 {
        world.worker("job").start().unwrap().stop();
    }
    victim.fail("out of memory");
    assert_eq!(lines.lock().unwrap().len(), 1);
}

#[test]
fn suppressed_messages_are_counted_by_kind() {
    let world = World::new();
    let lines = lines_with(" were left out");
    let keeper = world.worker("w").start().unwrap();
    for n in 0..207 {
        let job = world.worker("job").start().unwrap();
        if n < 103 {
            job.fail("no route to host");
        }
    }
    world.seconds(10);
    let times = |line: &str| {
        let lines = lines.lock().unwrap();
        lines.iter().filter(|(_, text)| text == line).count()
    };
    assert_eq!(times("3 errors about workers were left out"), 1);
    assert_eq!(times("4 messages about workers were left out"), 1);
    drop(keeper);
}

#[test]
fn suppressed_messages_are_counted_in_the_log_when_the_last_worker_ends() {
    let world = World::new();
    let lines = lines_with("11 messages about workers were left out");
    let keeper = world.worker("w").start().unwrap();
    for _ in 0..110 {
        drop(world.worker("job").start().unwrap());
    }
    assert!(lines.lock().unwrap().is_empty());
    drop(keeper);
    assert_eq!(
        lines.lock().unwrap().len(),
        1,
        "the worker's own end is one of them"
    );

    let others = lines_with("messages about workers were left out");
    for _ in 0..11 {
        drop(world.worker("job").start().unwrap());
    }
    let of_this_test = |(_, line): &&Line| line.starts_with("1 ") || line.starts_with("11 ");
    let others = others.lock().unwrap();
    assert_eq!(others.iter().filter(of_this_test).count(), 0, "no flood");
}

#[test]
fn the_end_of_a_worker_is_the_last_thing_that_is_logged_of_it() {
    // The log implementation stops the worker that the same tick has found to be late as well.
    let world = World::new();
    let second = Arc::new(Mutex::new(None));
    let lines = lines_with("worker ended-meanwhile: ");
    let first = world
        .worker("w")
        .id("convicted-first")
        .startup_grace(SECOND);
    let first = first.start().unwrap();
    let hb = world
        .worker("w")
        .id("ended-meanwhile")
        .startup_grace(SECOND);
    *second.lock().unwrap() = Some(hb.start().unwrap());
    let ends = Arc::clone(&second);
    listen(move |(_, text)| {
        if text.starts_with("worker convicted-first: never started") {
            drop(ends.lock().unwrap().take());
        }
    });
    world.seconds(2);
    assert!(second.lock().unwrap().is_none());
    let lines = lines.lock().unwrap();
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert!(lines[0].1.contains("stopped"), "{lines:?}");
    drop(first);
}

/// A log that blocks at the first line that contains this text. Returns a receiver that is notified
/// of it, and a sender that unblocks the log when it is dropped.
fn blocks_at(text: &'static str) -> (mpsc::Receiver<()>, mpsc::Sender<()>) {
    let (reached, is_reached) = mpsc::channel();
    let (unblock, held) = mpsc::channel::<()>();
    let held = Mutex::new(held);
    listen(move |(_, line)| {
        if line.contains(text) {
            let _ = reached.send(());
            let _ = held.lock().unwrap().recv();
        }
    });
    (is_reached, unblock)
}

#[test]
fn a_log_that_blocks_does_not_hold_up_the_shutdown_of_a_supervisor() {
    let world = World::new();
    let supervisor = Supervisor::new(&world.registry);
    let (is_reached, unblock) = blocks_at("worker held-up-1: stopping");
    let mut workers = Vec::new();
    for n in 1..=3 {
        let (go, left) = mpsc::channel::<()>();
        let worker = world.worker("w").id(format!("held-up-{n}"));
        let worker = supervisor.spawn(worker, move |hb| {
            hb.update_task("run", "waiting", Activity::Processing);
            hb.stop_receiver().recv()?;
            // It ends when the test unblocks it.
            let _ = left.recv();
            Ok(())
        });
        let worker = worker.unwrap();
        eventually("at work", || {
            worker.probe().health().state() == State::Processing
        });
        workers.push((worker, go));
    }
    let (first, go) = workers.remove(0);
    let stopping = supervisor.clone();
    let (sender, reports) = mpsc::channel();
    thread::spawn(move || {
        first.stop();
        sender.send(StopReport::default()).unwrap();
        is_reached.recv_timeout(PATIENCE).unwrap();
        sender.send(stopping.shutdown(SECOND / 4)).unwrap();
        let report = block_on(stopping.shutdown_async(SECOND / 4));
        sender.send(report).unwrap();
    });
    for hung in [0, 3, 3] {
        let report = reports
            .recv_timeout(PATIENCE)
            .expect("the shutdown returns");
        assert_eq!(report.hung.len(), hung, "{report:?}");
    }

    let lines = lines_with("worker held-up-3: stopp");
    drop(unblock);
    let (last, let_end) = &workers[1];
    eventually("in the log", || lines.lock().unwrap().len() == 1);
    let_end.send(()).unwrap();
    assert!(last.join().is_completed());
    let lines = lines.lock().unwrap();
    let said: Vec<_> = lines.iter().map(|(_, line)| line.as_str()).collect();
    assert!(said[0].contains(": stopping"), "{said:?}");
    assert!(said[1].contains(": stopped"), "{said:?}");
    drop((workers, go));
    assert!(supervisor.shutdown(PATIENCE).is_clean());
}

#[test]
fn a_handle_that_is_dropped_does_not_wait_for_the_log_of_its_children() {
    let world = World::new();
    let hb = world.worker("parent").start().unwrap();
    let children = Supervisor::linked_to(&hb);
    let (is_reached, unblock) = blocks_at("worker child-of-dropped: stopping");
    let (go, left) = mpsc::channel::<()>();
    let child = world.worker("child").id("child-of-dropped");
    let child = children.spawn(child, move |hb| {
        hb.update_task("run", "waiting", Activity::Processing);
        let _ = left.recv();
        Ok(())
    });
    let child = child.unwrap();
    eventually("at work", || {
        child.probe().health().state() == State::Processing
    });
    let (dropped, is_dropped) = mpsc::channel();
    thread::spawn(move || {
        drop(hb);
        dropped.send(()).unwrap();
    });
    is_dropped.recv_timeout(PATIENCE).expect("the drop returns");
    is_reached.recv_timeout(PATIENCE).unwrap();
    drop(unblock);
    drop(go);
    assert!(child.join().is_completed());
}
