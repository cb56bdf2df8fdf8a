//! Threads that hang in many ways, and their call stacks.

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
use worker_heartbeat::{Activity, CallStack, Probe, Registry, WorkerHeartbeat};

/// A worker whose thread calls `work`, which never returns.
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
        hb.update_task("run", "waits", Activity::Processing);
        reported.send(()).unwrap();
        black_box(outer(work));
        drop(hb);
    });
    wait.recv().unwrap();
    blocked_stack(&probe)
}

/// The stack once the thread has reached the place where it waits: it is the same for a while.
fn blocked_stack(probe: &Probe) -> CallStack {
    let (mut last, mut same) = (None, 0);
    for _ in 0..10_000 {
        let stack = probe.capture_stack().ok();
        same = if stack.is_some() && stack == last {
            same + 1
        } else {
            0
        };
        if let Some(stack) = stack.clone().filter(|_| same >= 20) {
            return stack;
        }
        last = stack;
        // Gives the thread the processor until it is blocked: there is no event to wait for.
        thread::sleep(Duration::from_millis(1));
    }
    panic!("{last:?}");
}

#[inline(never)]
fn outer(work: impl FnOnce() -> u64) -> u64 {
    black_box(work()) + 1
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
waits!(waits_in_a_call_of_c() { u64::from(nix::sys::signal::SigSet::empty().wait().is_ok()) });

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

fn held() -> Arc<Mutex<u64>> {
    let mutex = Arc::new(Mutex::new(1));
    std::mem::forget(mutex.lock().unwrap());
    mutex
}

/// The names of the functions that wait, and the stacks of threads that are in them.
pub fn all() -> Vec<(&'static str, CallStack)> {
    let mut all = Vec::new();
    let mut add = |name, stack| all.push((name, stack));
    let mutex = held();
    add("waits_for_mutex", stack_of(move || waits_for_mutex(&mutex)));
    let mutex = held();
    let stack = stack_of(move || waits_with_a_large_frame(&mutex));
    add("waits_with_a_large_frame", stack);
    let mutex = Mutex::new(1);
    add(
        "waits_for_itself",
        stack_of(move || waits_for_itself(&mutex)),
    );
    let mutex = parking_lot::Mutex::new(1);
    std::mem::forget(mutex.lock());
    let stack = stack_of(move || waits_for_parking_lot(&mutex));
    add("waits_for_parking_lot", stack);
    let lock = RwLock::new(1);
    std::mem::forget(lock.read().unwrap());
    add(
        "waits_for_rwlock",
        stack_of(move || waits_for_rwlock(&lock)),
    );

    let (sender, channel) = mpsc::channel();
    std::mem::forget(sender);
    add(
        "waits_for_channel",
        stack_of(move || waits_for_channel(&channel)),
    );
    let (sender, channel) = crossbeam_channel::bounded(1);
    std::mem::forget(sender);
    add(
        "waits_for_crossbeam",
        stack_of(move || waits_for_crossbeam(&channel)),
    );
    let pair = (Mutex::new(false), Condvar::new());
    add(
        "waits_for_condvar",
        stack_of(move || waits_for_condvar(&pair)),
    );
    add("waits_parked", stack_of(waits_parked));
    let other = thread::spawn(waits_asleep);
    add("waits_for_join", stack_of(move || waits_for_join(other)));
    let once = OnceLock::new();
    add(
        "waits_in_initializer",
        stack_of(move || waits_for_once(&once)),
    );

    add("waits_asleep", stack_of(waits_asleep));
    add("waits_in_a_call_of_c", stack_of(waits_in_a_call_of_c));
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let stack = stack_of(move || waits_for_socket(&mut stream));
    add("waits_for_socket", stack);
    let mut child = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
    let input = child.stdin.take();
    add(
        "waits_for_child",
        stack_of(move || waits_for_child(&mut child)),
    );
    drop(input);
    let path = std::env::temp_dir().join(format!("worker-heartbeat-lock-{}", std::process::id()));
    let lock = Flock::lock(File::create(&path).unwrap(), FlockArg::LockExclusive);
    let file = File::open(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    add(
        "waits_for_file_lock",
        stack_of(move || waits_for_file_lock(file)),
    );
    drop(lock);

    let job: Box<dyn Job> = Box::new(Sleeper(1));
    add("waits_asleep", stack_of(move || black_box(&job).run()));
    let stack = stack_of(|| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        runtime.block_on(async {
            tokio::task::yield_now().await;
            waits_asleep()
        })
    });
    add("waits_asleep", stack);
    all
}

/// The functions from the one that waits for the channel on. Within it, the thread may wait for the message
/// or for the lock of the channel.
fn waiting_calls(stack: &CallStack) -> Vec<Option<String>> {
    let functions = stack.frames.iter().map(|frame| frame.function.clone());
    functions
        .skip_while(|function| {
            let function = function.as_deref().unwrap_or_default();
            !function.contains("waits_for_channel")
        })
        .collect()
}

/// What became of the captures of a thread that changes all the time.
#[derive(Debug, Default)]
pub struct Changing {
    /// The thread waits at one of the depths.
    pub known: usize,
    /// It ran.
    pub running: usize,
}

/// Captures the stack of a thread that waits in 40 depths, one after the other. Panics at a stack that it
/// never had.
pub fn changing(captures: usize) -> Changing {
    const DEPTHS: u32 = 40;
    #[inline(never)]
    fn deep(depth: u32, channel: &mpsc::Receiver<u64>) -> u64 {
        if depth == 0 {
            waits_for_channel(channel)
        } else {
            black_box(deep(depth - 1, channel)) + 1
        }
    }
    let registry = Registry::new();
    let hb = WorkerHeartbeat::builder("changing")
        .registry(&registry)
        .start()
        .unwrap();
    let probe = hb.probe();
    let (sender, channel) = mpsc::channel::<u64>();
    let (reported, wait) = mpsc::channel();
    let worker = thread::spawn(move || {
        hb.update_task("run", "task", Activity::Processing);
        reported.send(()).unwrap();
        let mut n = 0;
        while black_box(deep(n % DEPTHS, &channel)) < 1_000 {
            n += 1;
        }
    });
    wait.recv().unwrap();
    let known: Vec<_> = (0..DEPTHS)
        .map(|_| {
            let stack = blocked_stack(&probe);
            sender.send(0).unwrap();
            waiting_calls(&stack)
        })
        .collect();
    let mut counts = Changing::default();
    for _ in 0..captures {
        let _ = sender.send(0);
        match probe.capture_stack() {
            Ok(stack) => {
                assert!(known.contains(&waiting_calls(&stack)), "{stack:#}");
                counts.known += 1;
            }
            Err(_) => counts.running += 1,
        }
    }
    sender.send(1_000).unwrap();
    worker.join().unwrap();
    counts
}
