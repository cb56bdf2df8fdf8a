//! Call stacks of threads that are blocked in many ways.
#![cfg(all(target_os = "linux", target_arch = "x86_64"))]

use std::fs::File;
use std::hint::black_box;
use std::io::Read;
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::sync::{Arc, Condvar, Mutex, OnceLock, RwLock};
use std::thread;
use std::time::Duration;

use nix::fcntl::{Flock, FlockArg};
use worker_heartbeat::{CallStack, Error, Probe, Registry, WorkerHeartbeat};

/// A worker whose thread calls `work`, and so does not end before `release` is dropped.
fn stack_of(work: impl FnOnce() -> u64 + Send + 'static) -> CallStack {
    let registry = Registry::new();
    let hb = WorkerHeartbeat::builder("blocked")
        .registry(&registry)
        .start()
        .unwrap();
    let probe = hb.probe();
    let (reported, wait) = mpsc::channel();
    // Never joined: it is blocked for ever.
    thread::spawn(move || {
        hb.beat();
        // The first report binds the worker to this thread.
        hb.update_task("run", "waits", worker_heartbeat::Activity::Processing);
        reported.send(()).unwrap();
        black_box(outer(work));
        drop(hb);
    });
    wait.recv().unwrap();
    blocked_stack(&probe)
}

/// The stack once the thread has reached the place where it waits.
fn blocked_stack(probe: &Probe) -> CallStack {
    let mut last = String::new();
    for _ in 0..10_000 {
        match probe.capture_stack() {
            Ok(stack) if names(&stack).any(|name| name.contains("waits_")) => return stack,
            other => last = format!("{other:?}"),
        }
        // Gives the thread the processor until it is blocked: there is no event to wait for.
        thread::sleep(Duration::from_millis(1));
    }
    panic!("{last}");
}

fn names(stack: &CallStack) -> impl Iterator<Item = &str> {
    stack
        .frames
        .iter()
        .filter_map(|frame| frame.function.as_deref())
}

#[inline(never)]
fn outer(work: impl FnOnce() -> u64) -> u64 {
    black_box(work()) + 1
}

/// The place is `function` in this file, the stack is whole, and `outer` called it.
fn check(stack: &CallStack, function: &str) {
    let place = stack.place().unwrap();
    let name = place.function.as_deref().unwrap();
    assert!(name.ends_with(function), "{function}: {stack:#}");
    // Without debug information, as in a release build, there are no lines.
    if let Some(file) = &place.file {
        assert!(file.ends_with("tests/stacks/main.rs"), "{stack:#}");
        assert!(place.line.is_some());
    }
    assert_eq!(stack.cut, None, "{stack:#}");
    let outer = names(stack).position(|name| name.ends_with("::outer"));
    assert!(outer.is_some(), "{stack:#}");
    let bottom = names(stack).any(|name| name.contains("__rust_begin_short_backtrace"));
    assert!(bottom, "{stack:#}");
}

/// Defines a function that is not inlined, with this body.
macro_rules! waits {
    ($name:ident($($arg:ident: $kind:ty),*) $body:block) => {
        #[inline(never)]
        fn $name($($arg: $kind),*) -> u64 {
            let done: u64 = $body;
            black_box(done)
        }
    };
}

waits!(waits_for_mutex(mutex: &Mutex<u64>) { *mutex.lock().unwrap() });
waits!(waits_for_parking_lot(mutex: &parking_lot::Mutex<u64>) { *mutex.lock() });
waits!(waits_for_rwlock(lock: &RwLock<u64>) { *lock.write().unwrap() });
waits!(waits_for_channel(channel: &mpsc::Receiver<u64>) { channel.recv().unwrap_or(0) });
waits!(waits_for_crossbeam(channel: &crossbeam_channel::Receiver<u64>) { channel.recv().unwrap_or(0) });
waits!(waits_for_condvar(pair: &(Mutex<bool>, Condvar)) {
    let guard = pair.1.wait_while(pair.0.lock().unwrap(), |done| !*done);
    u64::from(*guard.unwrap())
});
waits!(waits_asleep() { thread::sleep(Duration::from_secs(3_600)); 1 });
waits!(waits_parked() { while !black_box(false) { thread::park(); } 1 });
waits!(waits_for_socket(stream: &mut TcpStream) { stream.read(&mut [0; 64]).unwrap_or(0) as u64 });
waits!(waits_for_join(other: thread::JoinHandle<u64>) { other.join().unwrap() });
waits!(waits_for_child(child: &mut std::process::Child) {
    u64::from(child.wait().unwrap().success())
});
waits!(waits_for_once(once: &OnceLock<u64>) { *once.get_or_init(waits_in_initializer) });
// Another time than above: an optimizer makes one function of two that are the same.
waits!(waits_in_initializer() { thread::sleep(Duration::from_secs(7_200)); 1 });
waits!(waits_for_file_lock(file: File) {
    u64::from(Flock::lock(file, FlockArg::LockExclusive).is_ok())
});
waits!(waits_with_a_large_frame(mutex: &Mutex<u64>) {
    let mut buffer = [0_u8; 300_000];
    black_box(&mut buffer);
    let locked = *mutex.lock().unwrap();
    locked + u64::from(black_box(&mut buffer)[77])
});
waits!(waits_for_itself(mutex: &Mutex<u64>) {
    let first = mutex.lock().unwrap();
    *first + *mutex.lock().unwrap()
});

#[test]
fn a_thread_that_waits_for_a_lock_shows_where() {
    let held = |mutex: &Arc<Mutex<u64>>| std::mem::forget(mutex.lock().unwrap());
    let mutex = Arc::new(Mutex::new(1));
    held(&mutex);
    let waits = Arc::clone(&mutex);
    check(
        &stack_of(move || waits_for_mutex(&waits)),
        "waits_for_mutex",
    );
    let stack = stack_of(move || waits_with_a_large_frame(&mutex));
    check(&stack, "waits_with_a_large_frame");
    let mutex = Mutex::new(1);
    check(
        &stack_of(move || waits_for_itself(&mutex)),
        "waits_for_itself",
    );
    let mutex = parking_lot::Mutex::new(1);
    std::mem::forget(mutex.lock());
    check(
        &stack_of(move || waits_for_parking_lot(&mutex)),
        "waits_for_parking_lot",
    );
    let lock = RwLock::new(1);
    std::mem::forget(lock.read().unwrap());
    check(
        &stack_of(move || waits_for_rwlock(&lock)),
        "waits_for_rwlock",
    );
}

#[test]
fn a_thread_that_waits_for_another_one_shows_where() {
    let (_sender, channel) = mpsc::channel();
    check(
        &stack_of(move || waits_for_channel(&channel)),
        "waits_for_channel",
    );
    let (_sender, channel) = crossbeam_channel::bounded(1);
    check(
        &stack_of(move || waits_for_crossbeam(&channel)),
        "waits_for_crossbeam",
    );
    let pair = (Mutex::new(false), Condvar::new());
    check(
        &stack_of(move || waits_for_condvar(&pair)),
        "waits_for_condvar",
    );
    check(&stack_of(waits_parked), "waits_parked");
    let other = thread::spawn(waits_asleep);
    check(&stack_of(move || waits_for_join(other)), "waits_for_join");
    let once = OnceLock::new();
    let stack = stack_of(move || waits_for_once(&once));
    check(&stack, "waits_in_initializer");
    assert!(
        names(&stack).any(|name| name.ends_with("waits_for_once")),
        "{stack:#}"
    );
}

#[test]
fn a_thread_that_waits_for_the_kernel_shows_where() {
    check(&stack_of(waits_asleep), "waits_asleep");
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    check(
        &stack_of(move || waits_for_socket(&mut stream)),
        "waits_for_socket",
    );
    let mut child = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
    let _input = child.stdin.take();
    check(
        &stack_of(move || waits_for_child(&mut child)),
        "waits_for_child",
    );
    let path = std::env::temp_dir().join(format!("worker-heartbeat-lock-{}", std::process::id()));
    let held = Flock::lock(File::create(&path).unwrap(), FlockArg::LockExclusive);
    let file = File::open(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    let stack = stack_of(move || waits_for_file_lock(file));
    check(&stack, "waits_for_file_lock");
    drop(held);
}

trait Job: Send {
    fn run(&self) -> u64;
}

struct Sleeper(u64);

impl Job for Sleeper {
    #[inline(never)]
    fn run(&self) -> u64 {
        black_box(waits_asleep()) + self.0
    }
}

#[test]
fn calls_through_pointers_and_futures_are_followed() {
    let job: Box<dyn Job> = Box::new(Sleeper(1));
    let stack = stack_of(move || black_box(&job).run());
    check(&stack, "waits_asleep");
    let method = names(&stack).find(|name| name.ends_with("Job>::run"));
    assert!(
        method.is_some_and(|name| name.contains("Sleeper as")),
        "{stack:#}"
    );

    let stack = stack_of(|| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        runtime.block_on(async {
            tokio::task::yield_now().await;
            waits_asleep()
        })
    });
    check(&stack, "waits_asleep");
}

fn reason(stack: Result<CallStack, Error>) -> String {
    match stack {
        Err(Error::CallStack { reason, .. }) => reason,
        other => panic!("{other:?}"),
    }
}

#[test]
fn where_there_is_no_stack_the_reason_is_given() {
    let registry = Registry::new();
    let start = || {
        WorkerHeartbeat::builder("a")
            .registry(&registry)
            .start()
            .unwrap()
    };
    let hb = start();
    let probe = hb.probe();
    assert_eq!(
        reason(probe.capture_stack()),
        "no thread has reported for it yet"
    );
    hb.update_task("run", "task", worker_heartbeat::Activity::Processing);
    assert_eq!(reason(probe.capture_stack()), "it is the thread that asks");
    drop(hb);
    assert_eq!(reason(probe.capture_stack()), "it is over");
    let error = probe.capture_stack().unwrap_err().to_string();
    assert_eq!(
        error,
        format!("no call stack of worker {:?}: it is over", probe.id())
    );
}

/// A thread that changes all the time: each stack that is returned is one that it had.
#[test]
fn a_stack_that_changes_meanwhile_is_never_mixed_up() {
    #[inline(never)]
    fn deep(depth: u32, channel: &mpsc::Receiver<u64>) -> u64 {
        if depth == 0 {
            waits_for_channel(channel)
        } else {
            black_box(deep(depth - 1, channel)) + 1
        }
    }
    let registry = Registry::new();
    let hb = WorkerHeartbeat::builder("a")
        .registry(&registry)
        .start()
        .unwrap();
    let probe = hb.probe();
    let (sender, channel) = mpsc::channel::<u64>();
    let (reported, wait) = mpsc::channel();
    let worker = thread::spawn(move || {
        hb.update_task("run", "task", worker_heartbeat::Activity::Processing);
        reported.send(()).unwrap();
        let mut n = 0;
        while deep(n % 40, &channel) < 1_000 {
            n += 1;
        }
    });
    wait.recv().unwrap();
    let mut whole = 0;
    for _ in 0..2_000 {
        let _ = sender.send(0);
        if let Ok(stack) = probe.capture_stack() {
            assert_eq!(stack.cut, None, "{stack:#}");
            whole += 1;
        }
    }
    sender.send(1_000).unwrap();
    worker.join().unwrap();
    assert!(whole > 0);
}
