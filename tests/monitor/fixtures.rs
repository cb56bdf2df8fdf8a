//! What the tests of the program share: it is run as a real process, on real stores.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use crate::support::examples::poll;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use worker_heartbeat::fleet::{Beat, Registration, Stop, StoredEnding, WorkerKey};
use worker_heartbeat::{HeartbeatStore, SqliteStore, State, StopCause};

/// A directory that is removed when it is dropped.
pub struct Folder(pub PathBuf);

impl Folder {
    pub fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("wh-monitor-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    pub fn file(&self, name: &str) -> String {
        self.0.join(name).to_str().unwrap().to_owned()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

pub fn monitor(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_heartbeat-monitor"));
    command
        .args(arguments)
        .env_remove("POSTGRES_URL")
        .env_remove("RUST_LOG")
        .env_remove("NOTIFY_SOCKET")
        .stdin(Stdio::null());
    command
}

pub fn run(arguments: &[&str]) -> Output {
    monitor(arguments).output().unwrap()
}

pub fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

pub fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// Runs the program to an end with this status, and returns its output.
#[track_caller]
pub fn ends(arguments: &[&str], status: i32) -> String {
    let output = run(arguments);
    assert_eq!(output.status.code(), Some(status), "{output:?}");
    format!("{}{}", stdout(&output), stderr(&output))
}

/// A store with a worker that is well, one that is silent for ten minutes, and one that ended.
pub fn fill(store: &dyn HeartbeatStore) -> Vec<WorkerKey> {
    let mut workers = ["a-well", "b-silent", "c-stopped"].map(|id| {
        let mut registration = Registration::new("poller", id);
        registration.info.interval = Duration::from_secs(600);
        registration.info.group = format!("group-{}", &id[..1]);
        registration
    });
    workers[0].info.worker_type = "evil\u{1b}[2J\u{202e}type".to_owned();
    let keys = store.register(&workers).unwrap();
    let mut beats: Vec<Beat> = keys
        .iter()
        .map(|key| Beat::new(key.clone(), State::Processing))
        .collect();
    beats[0].status.run_id = Some("run-7".to_owned());
    beats[0].status.task = Some("indexing".to_owned());
    beats[0].status.progress = Some((3, 10));
    beats[1].heartbeat_age = Some(Duration::from_secs(600));
    store.beat(&beats).unwrap();
    let stop = Stop::new(keys[2].clone(), StoredEnding::stopped(&StopCause::Stop));
    store.stop(&[stop]).unwrap();
    keys
}

pub fn filled(folder: &Folder) -> (String, SqliteStore) {
    let file = folder.file("fleet.db");
    let store = SqliteStore::open(&file).unwrap();
    fill(&store);
    (file, store)
}

/// Many workers that are stalled, and more that are well.
pub fn filled_with_many(folder: &Folder) -> String {
    let file = folder.file("fleet.db");
    let store = SqliteStore::open(&file).unwrap();
    let workers: Vec<_> = (0..2_500)
        .map(|n| Registration::new("poller", format!("worker-{n:04}")))
        .collect();
    let keys = store.register(&workers).unwrap();
    let beats: Vec<Beat> = keys
        .into_iter()
        .enumerate()
        .map(|(n, key)| {
            let is_stalled = n % 5 == 4;
            Beat::new(
                key,
                if is_stalled {
                    State::Stalled
                } else {
                    State::Idle
                },
            )
        })
        .collect();
    store.beat(&beats).unwrap();
    file
}

/// `watch`, killed when it is dropped.
pub struct Watch {
    pub child: Child,
    log: Arc<Mutex<String>>,
}

impl Watch {
    pub fn start(command: &mut Command) -> Self {
        let mut child = command
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let log = Arc::new(Mutex::new(String::new()));
        let (lines, copy) = (
            BufReader::new(child.stderr.take().unwrap()),
            Arc::clone(&log),
        );
        thread::spawn(move || {
            for line in lines.lines().map_while(Result::ok) {
                copy.lock().unwrap().push_str(&(line + "\n"));
            }
        });
        Self { child, log }
    }

    pub fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    #[track_caller]
    pub fn until(&self, text: &str) {
        poll(text, || self.log().contains(text).then_some(()));
    }

    #[track_caller]
    pub fn address(&self) -> String {
        poll("its address", || {
            let log = self.log();
            let (_, after) = log.split_once("listening at http://")?;
            Some(after.split_once('/')?.0.to_owned())
        })
    }

    #[track_caller]
    pub fn end(&mut self) -> Option<i32> {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).unwrap());
        kill(pid, Signal::SIGTERM).unwrap();
        poll("its end", || self.child.try_wait().unwrap()).code()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
