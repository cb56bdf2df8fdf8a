//! What the log is told, and what a log implementation can do to the rest.

mod support;

use std::sync::{Arc, Mutex, Once, mpsc};
use std::time::Duration;

use support::{World, eventually, name};
use worker_heartbeat::{Registry, WorkerHeartbeat};

type Line = (log::Level, String);
type Listener = Box<dyn Fn(&Line) + Send + Sync>;

static LISTENERS: Mutex<Vec<Arc<Listener>>> = Mutex::new(Vec::new());

struct Logger;

impl log::Log for Logger {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        let line = (record.level(), record.args().to_string());
        let listeners = LISTENERS.lock().unwrap().clone();
        listeners.iter().for_each(|listener| listener(&line));
    }

    fn flush(&self) {}
}

/// Calls this with every line, of all tests of this program.
fn listen(listener: impl Fn(&Line) + Send + Sync + 'static) {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| {
        log::set_logger(&Logger).unwrap();
        log::set_max_level(log::LevelFilter::Info);
    });
    LISTENERS.lock().unwrap().push(Arc::new(Box::new(listener)));
}

/// The lines from here on that contain this text.
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
    let (let_go, held) = mpsc::channel::<()>();
    let held = Mutex::new(held);
    listen(move |(_, text)| {
        if text.starts_with("worker stuck: never started") {
            reached.send(()).unwrap();
            let _ = held.lock().unwrap().recv();
        }
    });
    let stuck = worker("stuck").start().unwrap();
    is_reached.recv().unwrap();
    // Its pacemaker does not end, and is left behind.
    drop(stuck);
    let events = registry.subscribe();
    let next = worker("next").start().unwrap();
    next.beat();
    eventually("observed", || {
        events.try_iter().any(|event| name(&event) == "started")
    });
    assert!(next.is_recent());
    drop(let_go);
}
