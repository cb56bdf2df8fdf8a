//! Notifications of `heartbeat-monitor watch`: to a receiver that fails and hangs, and to programs that
//! fail, hang and read nothing.

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::thread;

use crate::fixtures::{Folder, Watch, ends, monitor};
use crate::support::examples::poll;
use serde_json::Value;
use worker_heartbeat::fleet::{Beat, Registration, Stop, StoredEnding, WorkerKey};
use worker_heartbeat::{DeathCause, HeartbeatStore, SqliteStore, State};

const SECRET: &str = "T0P-s3cret";
/// The answer of a receiver that gives none.
const HANG: u16 = 0;

/// A request that was received.
#[derive(Clone)]
struct Received {
    head: String,
    body: Value,
}

/// Receives notifications over HTTP.
struct Receiver {
    url: String,
    status: Arc<AtomicU16>,
    received: Arc<Mutex<Vec<Received>>>,
    has_ended: Arc<AtomicBool>,
}

impl Receiver {
    fn start(status: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let receiver = Self {
            url: format!("http://{address}/hooks/{SECRET}?token={SECRET}"),
            status: Arc::new(AtomicU16::new(status)),
            received: Arc::default(),
            has_ended: Arc::default(),
        };
        let status = Arc::clone(&receiver.status);
        let received = Arc::clone(&receiver.received);
        let has_ended = Arc::clone(&receiver.has_ended);
        thread::spawn(move || {
            let mut hanging = Vec::new();
            for stream in listener.incoming().map_while(Result::ok) {
                if has_ended.load(Relaxed) {
                    break;
                }
                hanging.extend(answer(stream, status.load(Relaxed), &received));
            }
        });
        receiver
    }

    fn received(&self) -> Vec<Received> {
        self.received.lock().unwrap().clone()
    }

    /// The events of all notifications so far, as `died a`.
    fn told(&self) -> Vec<String> {
        let received = self.received();
        let events = received
            .iter()
            .flat_map(|request| request.body["events"].as_array().unwrap());
        let word = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        events
            .map(|event| {
                let subject = if event["worker"].is_string() {
                    "worker"
                } else {
                    "group"
                };
                format!("{} {}", word(&event["event"]), word(&event[subject]))
            })
            .collect()
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.has_ended.store(true, Relaxed);
    }
}

/// Answers the request; a connection that is to hang is returned.
fn answer(
    mut stream: TcpStream,
    status: u16,
    received: &Mutex<Vec<Received>>,
) -> Option<TcpStream> {
    let mut bytes = Vec::new();
    let mut chunk = [0; 4096];
    let (head, length) = loop {
        let count = stream.read(&mut chunk).ok().filter(|count| *count > 0)?;
        bytes.extend_from_slice(&chunk[..count]);
        let text = String::from_utf8_lossy(&bytes);
        if let Some((head, _)) = text.split_once("\r\n\r\n") {
            let head = head.to_ascii_lowercase();
            let (_, length) = head.split_once("content-length: ").unwrap();
            let length: usize = length.lines().next().unwrap().trim().parse().unwrap();
            break (head, length);
        }
    };
    while bytes.len() < head.len() + 4 + length {
        let count = stream.read(&mut chunk).ok().filter(|count| *count > 0)?;
        bytes.extend_from_slice(&chunk[..count]);
    }
    let body = serde_json::from_slice(&bytes[head.len() + 4..]).unwrap();
    received.lock().unwrap().push(Received { head, body });
    if status == HANG {
        return Some(stream);
    }
    let text = format!("HTTP/1.1 {status} Said\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    // The client may have given up.
    let _ = stream.write_all(text.as_bytes());
    None
}

/// A store with these workers, all well.
fn fleet(folder: &Folder, ids: &[String]) -> (String, SqliteStore, Vec<WorkerKey>) {
    let file = folder.file("fleet.db");
    let store = SqliteStore::open(&file).unwrap();
    let workers = ids.iter().map(|id| {
        let mut worker = Registration::new("indexer", id);
        worker.info.group = format!("group-{}", &id[..1]);
        worker
    });
    let keys = store.register(&workers.collect::<Vec<_>>()).unwrap();
    beat(&store, &keys, State::Idle);
    (file, store, keys)
}

fn ids(ids: &[&str]) -> Vec<String> {
    ids.iter().map(|id| (*id).to_owned()).collect()
}

fn beat(store: &SqliteStore, keys: &[WorkerKey], state: State) {
    let beats: Vec<_> = keys
        .iter()
        .map(|key| Beat::new(key.clone(), state))
        .collect();
    store.beat(&beats).unwrap();
}

fn die(store: &SqliteStore, keys: &[WorkerKey]) {
    let ending = StoredEnding::dead(&DeathCause::Failed {
        error: "no disk".into(),
    });
    let stops: Vec<_> = keys
        .iter()
        .map(|key| Stop::new(key.clone(), ending.clone()))
        .collect();
    store.stop(&stops).unwrap();
}

/// A watch that has read who is unwell at its start.
#[track_caller]
fn watch(file: &str, options: &[&str], environment: &[(&str, &str)]) -> Watch {
    let arguments = [
        "watch",
        "--sqlite",
        file,
        "--interval",
        "100ms",
        "--notify-every",
        "100ms",
    ];
    let mut command = monitor(&[&arguments[..], options].concat());
    for proxy in [
        "HTTP_PROXY",
        "http_proxy",
        "ALL_PROXY",
        "all_proxy",
        "HTTPS_PROXY",
        "https_proxy",
    ] {
        command.env_remove(proxy);
    }
    command
        .env("RUST_LOG", "trace")
        .env_remove("HEARTBEAT_NOTIFY_URL");
    let watch = Watch::start(command.envs(environment.iter().copied()));
    watch.until("0 events to notify of");
    watch
}

#[test]
fn deaths_recoveries_and_groups_are_posted_without_a_secret_in_the_log() {
    let folder = Folder::new("notify");
    let (file, store, keys) = fleet(&folder, &ids(&["a-1", "a-2", "b-1"]));
    let receiver = Receiver::start(200);
    let options = ["--link", "https://monitor.example.com/"];
    let mut watch = watch(&file, &options, &[("HEARTBEAT_NOTIFY_URL", &receiver.url)]);
    die(&store, &keys[..1]);
    beat(&store, &keys[2..], State::Stalled);
    poll("both", || (receiver.told().len() == 2).then_some(()));
    let mut told = receiver.told();
    told.sort();
    assert_eq!(told, ["died a-1", "stalled b-1"]);
    beat(&store, &keys[2..], State::Idle);
    poll("the recovery", || {
        receiver
            .told()
            .contains(&"recovered b-1".to_owned())
            .then_some(())
    });
    die(&store, &keys[1..2]);
    poll("the group", || {
        receiver
            .told()
            .contains(&"group_offline group-a".to_owned())
            .then_some(())
    });
    let received = receiver.received();
    let events = received
        .iter()
        .flat_map(|request| request.body["events"].as_array().unwrap());
    let death = events
        .clone()
        .find(|event| event["worker"] == "a-1")
        .unwrap();
    assert_eq!(death["state"], "dead");
    assert!(
        death["reason"]
            .as_str()
            .unwrap()
            .starts_with("failed: no disk"),
        "{death}"
    );
    assert!(death["since"].as_str().unwrap().ends_with('Z'), "{death}");
    assert_eq!(
        death["link"],
        "https://monitor.example.com/#view=fleet&worker=a-1"
    );
    let first = &received[0];
    assert!(first.head.starts_with("post /hooks/"), "{}", first.head);
    assert!(
        first.head.contains("content-type: application/json"),
        "{}",
        first.head
    );
    assert!(!first.body["text"].as_str().unwrap().is_empty());
    assert_eq!(watch.end(), Some(0), "{}", watch.log());
    watch.until("ended by SIGTERM");
    assert!(
        watch.log().contains("notifying http://127.0.0.1:"),
        "{}",
        watch.log()
    );
    assert!(!watch.log().contains(SECRET), "{}", watch.log());
}

#[test]
fn a_receiver_that_fails_or_hangs_gets_it_later_and_delays_no_sweep() {
    let folder = Folder::new("notify-retry");
    let (file, store, keys) = fleet(&folder, &ids(&["a", "b", "c"]));
    let receiver = Receiver::start(500);
    let mut watch = watch(&file, &["--notify", &receiver.url], &[]);
    die(&store, &keys[..1]);
    poll("two attempts", || {
        (receiver.received().len() >= 2).then_some(())
    });
    let log = watch.log();
    assert_eq!(
        log.matches("cannot notify").count(),
        1,
        "once an episode: {log}"
    );
    assert!(
        log.contains("it answered with status 500; it is tried again"),
        "{log}"
    );

    receiver.status.store(HANG, Relaxed);
    let before = receiver.received().len();
    poll("an attempt that hangs", || {
        (receiver.received().len() > before).then_some(())
    });
    // Meanwhile, sweeps find what they are to find.
    let silent = Registration::new("indexer", "silent");
    let silent = store.register(&[silent]).unwrap().remove(0);
    let mut beat = Beat::new(silent, State::Idle);
    beat.heartbeat_age = Some(std::time::Duration::from_secs(600));
    store.beat(&[beat]).unwrap();
    ends(&["sweep", "--sqlite", &file], 0);
    poll("another reading", || {
        let log = watch.log();
        let (_, after) = log.split_once("tried again")?;
        // With its group.
        after.contains("2 events to notify of").then_some(())
    });
    receiver.status.store(200, Relaxed);
    watch.until("notified http://127.0.0.1:");
    poll("the other death", || {
        receiver
            .told()
            .contains(&"died silent".to_owned())
            .then_some(())
    });
    let received = receiver.received();
    let id = |request: &Received| request.body["id"].as_str().unwrap().to_owned();
    let first = id(&received[0]);
    let same = received.iter().filter(|request| id(request) == first);
    assert!(
        same.clone().count() >= 3,
        "a receiver can tell that it is the same one"
    );
    for request in same {
        let header = format!("idempotency-key: {}", first.to_ascii_lowercase());
        assert!(request.head.contains(&header), "{}", request.head);
        assert_eq!(request.body, received[0].body);
    }
    assert_eq!(watch.end(), Some(0), "{}", watch.log());
    assert!(!watch.log().contains(SECRET), "{}", watch.log());
}

#[test]
fn a_storm_is_one_notification_of_bounded_size() {
    let folder = Folder::new("notify-storm");
    let names: Vec<_> = (0..2_800)
        .map(|n| format!("{}{n}", "worker-".repeat(20)))
        .collect();
    let (file, store, keys) = fleet(&folder, &names);
    let receiver = Receiver::start(200);
    let mut watch = watch(&file, &["--notify", &receiver.url], &[]);
    die(&store, &keys);
    let told = |request: &Received| {
        let events = request.body["events"].as_array().unwrap().len() as u64;
        events + request.body["more"].as_u64().unwrap()
    };
    let received = poll("all of them", || {
        let received = receiver.received();
        // With the group.
        (received.iter().map(told).sum::<u64>() == 2_801).then_some(received)
    });
    assert_eq!(received.len(), 1);
    assert!(received[0].body.to_string().len() <= 48 * 1024);
    let text = received[0].body["text"].as_str().unwrap();
    assert!(
        text.contains("2800 workers died") && text.len() < 2_000,
        "{text}"
    );
    assert_eq!(watch.end(), Some(0), "{}", watch.log());
}

/// Writes a program by another process: a file that this one has open for writing cannot be run by
/// a test that forks meanwhile.
fn program(folder: &Folder, name: &str, script: &str) -> String {
    let file = folder.file(name);
    let written = Command::new("sh")
        .args([
            "-c",
            "printf '#!/bin/sh\n%s\n' \"$1\" >\"$0\" && chmod +x \"$0\"",
            &file,
            script,
        ])
        .status()
        .unwrap();
    assert!(written.success());
    file
}

#[test]
fn a_program_gets_the_event_on_its_standard_input_and_no_secret() {
    let folder = Folder::new("notify-program");
    let (file, store, keys) = fleet(&folder, &ids(&["a", "b"]));
    let out = folder.file("out");
    // It fails the first time.
    let script = "if [ -e \"$0.failed\" ]; then cat >\"$0.tmp\" && env >\"$0.env\" && mv \"$0.tmp\" \"${0%/*}/out\"
        else echo >\"$0.failed\"; exit 3; fi";
    let program = program(&folder, "program", script);
    // Both ways at once: neither waits for the other one.
    let receiver = Receiver::start(HANG);
    let mut watch = watch(
        &file,
        &["--notify-command", &program],
        &[("HEARTBEAT_NOTIFY_URL", &receiver.url)],
    );
    die(&store, &keys[..1]);
    let text = poll("its output", || fs::read_to_string(&out).ok());
    let document: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(document["events"][0]["worker"], "a");
    watch.until("program: exit status: 3; it is tried again");
    watch.until("program at attempt 2");
    let environment = fs::read_to_string(folder.file("program.env")).unwrap();
    assert!(environment.contains("NOTIFICATION_ID="), "{environment}");
    assert!(!environment.contains(SECRET), "{environment}");
    let children = || {
        let parent = format!(" {} ", watch.child.id());
        let entries = fs::read_dir("/proc").unwrap().flatten();
        let stats = entries.filter_map(|entry| fs::read_to_string(entry.path().join("stat")).ok());
        stats
            .filter(|stat| stat.contains(&parent) && stat.contains(") Z "))
            .count()
    };
    poll("no process that nobody collects", || {
        (children() == 0).then_some(())
    });
    assert_eq!(watch.end(), Some(0), "{}", watch.log());
}

#[test]
fn a_program_that_hangs_or_reads_nothing_delays_neither_sweeps_nor_the_end() {
    let folder = Folder::new("notify-deaf");
    let (file, store, keys) = fleet(&folder, &ids(&["a", "b"]));
    let program = program(&folder, "program", "echo >\"$0.began\"; exec sleep 1000");
    let mut watch = watch(&file, &["--notify-command", &program], &[]);
    die(&store, &keys[..1]);
    poll("the program", || {
        fs::metadata(folder.file("program.began")).ok()
    });
    die(&store, &keys[1..]);
    poll("another reading", || {
        let log = watch.log();
        let readings = log.matches("events to notify of").count();
        let told = log.matches("1 events to notify of").count()
            + log.matches("2 events to notify of").count();
        (readings > 5 && told >= 1).then_some(())
    });
    assert_eq!(watch.end(), Some(0), "{}", watch.log());
    watch.until("not notified of before the end: ");
}

#[test]
fn a_url_that_cannot_be_used_is_refused_and_not_shown() {
    let folder = Folder::new("notify-invalid");
    let file = folder.file("fleet.db");
    for url in [
        "T0P-s3cret",
        "ftp://host/T0P-s3cret",
        "https://me:T0P-s3cret@host/",
    ] {
        let said = ends(&["watch", "--sqlite", &file, "--notify", url], 2);
        assert!(said.contains("--notify takes a URL"), "{said}");
        assert!(!said.contains(SECRET), "{said}");
    }
}
