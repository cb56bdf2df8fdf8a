//! Examples as real processes.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use nix::sys::signal::{self, Signal};
use nix::unistd::Pid;

/// Long enough for a machine that is busy with other things; only a failure takes that long.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Where the examples' sources are.
pub fn sources() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples")
}

/// A running example. Killed when it is dropped.
pub struct Example {
    child: Child,
    stdout: Arc<Mutex<String>>,
    stderr: Arc<Mutex<String>>,
    readers: Vec<thread::JoinHandle<()>>,
}

/// An example that has ended.
#[derive(Debug)]
pub struct Ended {
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
}

impl Ended {
    /// Asserts that these texts are in the output, in this order.
    #[track_caller]
    pub fn assert_prints(&self, texts: &[&str]) {
        let mut rest = &self.stdout[..];
        for text in texts {
            let Some(at) = rest.find(text) else {
                panic!("{text:?} is missing, or not in order, in:\n{}", self.stdout);
            };
            rest = &rest[at + text.len()..];
        }
    }

    #[track_caller]
    pub fn assert_success(&self) {
        assert_eq!(self.status.code(), Some(0), "{self:#?}");
    }
}

impl Example {
    pub fn start(name: &str, arguments: &[&str]) -> Self {
        Self::start_in(Path::new(env!("CARGO_MANIFEST_DIR")), name, arguments)
    }

    pub fn start_in(folder: &Path, name: &str, arguments: &[&str]) -> Self {
        let mut child = Command::new(binary(name))
            .args(arguments)
            .current_dir(folder)
            // Call stacks on stderr would take time.
            .env("RUST_BACKTRACE", "0")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let (stdout, out_reader) = collect(child.stdout.take().unwrap());
        let (stderr, err_reader) = collect(child.stderr.take().unwrap());
        Self {
            child,
            stdout,
            stderr,
            readers: vec![out_reader, err_reader],
        }
    }

    /// Waits until the output contains a match, and returns it.
    #[track_caller]
    pub fn wait_for<T>(&self, what: &str, find: impl Fn(&str) -> Option<T>) -> T {
        poll(what, || find(&self.stdout.lock().unwrap()))
    }

    pub fn send(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).unwrap();
        signal::kill(Pid::from_raw(pid), signal).unwrap();
    }

    /// Waits for its end.
    #[track_caller]
    pub fn end(mut self) -> Ended {
        let status = poll("the end of the example", || self.child.try_wait().unwrap());
        for reader in self.readers.drain(..) {
            reader.join().unwrap();
        }
        Ended {
            status,
            stdout: self.stdout.lock().unwrap().clone(),
            stderr: self.stderr.lock().unwrap().clone(),
        }
    }
}

impl Drop for Example {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs an example to its end.
#[track_caller]
pub fn run(name: &str, arguments: &[&str]) -> Ended {
    Example::start(name, arguments).end()
}

/// Repeats the request until there is an answer.
#[track_caller]
pub fn poll<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(begun.elapsed() < PATIENCE, "waited for {what} in vain");
        // Between two requests: no event announces the answer.
        thread::sleep(Duration::from_millis(10));
    }
}

/// The executable, next to the test's own. `cargo test` builds it, `cargo test --test docs`
/// does not: its age is checked, so that no outdated program is tested.
pub fn binary(name: &str) -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let profile = test.parent().and_then(Path::parent).unwrap();
    let mut binary = profile.join("examples").join(name);
    binary.set_extension(std::env::consts::EXE_EXTENSION);
    let built = modified(&binary).unwrap_or_else(|| {
        panic!("{binary:?} is not built: run `cargo test` or `cargo build --examples`")
    });
    let folder = sources().join(name);
    let files = std::fs::read_dir(&folder).into_iter().flatten().flatten();
    let newest = files
        .map(|file| file.path())
        .chain([folder.with_extension("rs")])
        .filter_map(|file| modified(&file))
        .max();
    assert!(
        newest.is_some_and(|newest| newest <= built),
        "{binary:?} is older than its source: run `cargo test` or `cargo build --examples`"
    );
    binary
}

fn modified(file: &Path) -> Option<SystemTime> {
    file.metadata().ok()?.modified().ok()
}

/// Reads the output as it arrives, so that the example never waits for its reader.
fn collect(mut from: impl Read + Send + 'static) -> (Arc<Mutex<String>>, thread::JoinHandle<()>) {
    let text = Arc::new(Mutex::new(String::new()));
    let kept = Arc::clone(&text);
    let reader = thread::spawn(move || {
        let mut bytes = Vec::new();
        let mut chunk = [0; 4096];
        while let Ok(length @ 1..) = from.read(&mut chunk) {
            bytes.extend_from_slice(&chunk[..length]);
            // A character may be cut at the end; the next read completes it.
            *kept.lock().unwrap() = String::from_utf8_lossy(&bytes).into_owned();
        }
    });
    (text, reader)
}
