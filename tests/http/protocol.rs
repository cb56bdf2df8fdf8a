//! The JSON of the store protocol: each request and each answer, byte for byte. Older and newer
//! versions of the library share a coordinator, so none of this may change unnoticed.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use worker_heartbeat::fleet::{
    Answer, Beat, Claim, ClaimAnswer, LeaseKey, ProcessIdentity, Registration, Stop, StoredEnding,
    StoredWorker, Sweep, WorkerFilter, WorkerInfo, WorkerKey, WorkerStatus,
};
use worker_heartbeat::{
    Coordinator, DeathCause, Error, HeartbeatStore, HttpStore, State, StopCause, SweepReport,
    Thresholds,
};

const SECOND: Duration = Duration::from_secs(1);

/// Reads one HTTP message, and returns its first line and its body.
fn message(stream: &mut BufReader<TcpStream>) -> Option<(String, String)> {
    let mut first = String::new();
    if stream.read_line(&mut first).ok()? == 0 {
        return None;
    }
    let mut length = 0;
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).ok()?;
        if line.trim().is_empty() {
            break;
        }
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().unwrap();
        }
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).ok()?;
    Some((first.trim().to_owned(), String::from_utf8(body).unwrap()))
}

/// Makes one call against a coordinator that gives this answer. Returns the result of the call, the
/// path that was requested, and the body that was sent.
fn sent<T>(answer: &str, call: impl FnOnce(&HttpStore) -> Result<T, Error>) -> (T, String, String) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let store = HttpStore::new(format!("http://{}", listener.local_addr().unwrap())).unwrap();
    let answer = format!(
        "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{answer}",
        answer.len()
    );
    let served = thread::spawn(move || {
        let mut stream = BufReader::new(listener.accept().unwrap().0);
        let request = message(&mut stream).unwrap();
        stream.get_mut().write_all(answer.as_bytes()).unwrap();
        request
    });
    let result = call(&store).unwrap();
    let (first, body) = served.join().unwrap();
    let path = first.split(' ').nth(1).unwrap().to_owned();
    (result, path, body)
}

fn key(id: &str, incarnation: u64) -> WorkerKey {
    WorkerKey::new(id, incarnation)
}

fn process() -> ProcessIdentity {
    let mut process = ProcessIdentity::default();
    process.hostname = "host-1".into();
    process.pid = 4711;
    process.started = 77;
    process.boot_id = "boot".into();
    process.pid_namespace = 4_026_531_836;
    process
}

fn thresholds() -> Thresholds {
    let mut thresholds = Thresholds::new(90 * SECOND);
    thresholds.stall_after = Some(300 * SECOND);
    thresholds.startup_grace = 7 * SECOND;
    thresholds.beats_only = true;
    thresholds
}

fn metadata() -> Vec<(String, String)> {
    vec![
        ("version".into(), "1.4.2".into()),
        ("a".into(), "\"".into()),
    ]
}

fn lease() -> LeaseKey {
    LeaseKey::new(key("a", 1), "run-1", 9)
}

fn full_info() -> WorkerInfo {
    let mut info = WorkerInfo::new("poller");
    info.group = "machine-7".into();
    info.interval = Duration::from_millis(1_500);
    info.thresholds = Some(thresholds());
    info.metadata = metadata();
    info.restarts = 3;
    info.process = Some(process());
    info
}

fn full_status() -> WorkerStatus {
    let mut status = WorkerStatus::new(State::Processing);
    status.reason = Some("because".into());
    status.run_id = Some("run-1".into());
    status.task = Some("Researching".into());
    status.progress = Some((3, 10));
    status.beats = 1 << 40;
    status.stack = Some(">   0: shop::stock::reserve (src/stock.rs:88)".into());
    status
}

fn full_registration() -> Registration {
    let mut registration = Registration::new("poller", "a");
    registration.explicit = false;
    registration.info = full_info();
    registration
}

fn full_beat() -> Beat {
    let mut beat = Beat::new(key("a", 1), State::Processing);
    beat.status = full_status();
    beat.heartbeat_age = Some(2 * SECOND);
    beat.progress_age = Some(20 * SECOND);
    beat.metadata = metadata();
    beat
}

fn stops() -> Vec<Stop> {
    [StopCause::Completed, StopCause::Signal("SIGTERM")]
        .map(|cause| {
            let ending = StoredEnding::stopped(&cause);
            Stop::new(key("a", 1), ending).ago(Duration::from_millis(250))
        })
        .into()
}

const REGISTRATIONS: &str = concat!(
    r#"{"version":1,"each":true,"items":[{"id":"a","explicit":false,"worker_type":"poller","#,
    r#""group":"machine-7","interval_s":1.5,"thresholds":{"stale_after_s":90.0,"#,
    r#""stall_after_s":300.0,"startup_grace_s":7.0,"beats_only":true},"#,
    r#""metadata":{"version":"1.4.2","a":"\""},"restarts":3,"process":{"hostname":"host-1","#,
    r#""pid":4711,"started":77,"boot_id":"boot","pid_namespace":4026531836}},"#,
    r#"{"id":"b","explicit":true,"worker_type":"poller","group":"local","interval_s":30.0,"#,
    r#""thresholds":null,"metadata":{},"restarts":0,"process":null}]}"#,
);

const BEATS: &str = concat!(
    r#"{"version":1,"items":[{"id":"a","incarnation":1,"state":"processing","reason":"because","#,
    r#""heartbeat_age_s":2.0,"progress_age_s":20.0,"run_id":"run-1","task":"Researching","#,
    r#""progress":[3,10],"beats":1099511627776,"metadata":{"version":"1.4.2","a":"\""},"#,
    r#""stack":">   0: shop::stock::reserve (src/stock.rs:88)"},"#,
    r#"{"id":"b","incarnation":2,"state":"never_started","reason":null,"heartbeat_age_s":0.0,"#,
    r#""progress_age_s":0.0,"run_id":null,"task":null,"progress":null,"beats":0,"metadata":{}}]}"#,
);

const STOPS: &str = concat!(
    r#"{"version":1,"items":[{"id":"a","incarnation":1,"ending":{"stopped":true,"#,
    r#""cause":"completed","detail":null},"ago_s":0.25},{"id":"a","incarnation":1,"#,
    r#""ending":{"stopped":true,"cause":"SIGTERM","detail":null},"ago_s":0.25}]}"#,
);

const LIST: &str = concat!(
    r#"{"version":1,"what":{"worker_type":"poller","group":"machine-7","host":{"#,
    r#""hostname":"host-1","pid":4711,"started":77,"boot_id":"boot","pid_namespace":4026531836},"#,
    r#""after":"A","limit":7}}"#,
);

const SWEEP: &str = concat!(
    r#"{"version":1,"what":{"threshold_s":90.0,"watched_for_s":1.0,"#,
    r#""killed":[{"id":"a","incarnation":1},{"id":"b","incarnation":2}],"#,
    r#""gone":[{"id":"b","incarnation":2}],"dry_run":true}}"#,
);

const CLAIM: &str =
    r#"{"version":1,"what":{"worker":{"id":"a","incarnation":1},"run_id":"run-1","ttl_s":60.0}}"#;

const RENEW: &str = concat!(
    r#"{"version":1,"ttl_s":60.0,"each":true,"items":[{"worker":{"id":"a","incarnation":1},"#,
    r#""run_id":"run-1","fence":9}]}"#,
);

const RELEASE: &str =
    r#"{"version":1,"items":[{"worker":{"id":"a","incarnation":1},"run_id":"run-1","fence":9}]}"#;

const REPORT: &str = concat!(
    r#"{"success":true,"marked_offline":["a","b"],"affected_groups":["machine-7"],"#,
    r#""released_leases":["run-1"]}"#,
);

/// A worker that lives, and one that is dead.
const WORKERS: [&str; 2] = [
    concat!(
        r#"{"id":"a","incarnation":1,"worker_type":"poller","group":"machine-7","#,
        r#""health":{"state":"processing","reason":null},"reported":"processing","#,
        r#""reason":"because","run_id":"run-1","task":"Researching","progress":[3,10],"#,
        r#""registered_age_s":100.0,"heartbeat_age_s":2.0,"progress_age_s":20.0,"#,
        r#""beats":1099511627776,"restarts":3,"lease_remaining_s":40.0,"ending":null,"#,
        r#""ended_age_s":null,"interval_s":1.5,"thresholds":{"stale_after_s":90.0,"#,
        r#""stall_after_s":300.0,"startup_grace_s":7.0,"beats_only":true},"#,
        r#""metadata":{"version":"1.4.2","a":"\""},"process":{"hostname":"host-1","pid":4711,"#,
        r#""started":77,"boot_id":"boot","pid_namespace":4026531836}}"#,
    ),
    concat!(
        r#"{"id":"b","incarnation":2,"worker_type":"poller","group":"local","#,
        r#""health":{"state":"dead","reason":"failed: no disk, 3 s ago, during run-2"},"#,
        r#""reported":"active","reason":null,"run_id":"run-2","task":null,"progress":null,"#,
        r#""registered_age_s":100.0,"heartbeat_age_s":null,"progress_age_s":null,"beats":0,"#,
        r#""restarts":0,"lease_remaining_s":null,"ending":{"stopped":false,"cause":"failed","#,
        r#""detail":"no disk"},"ended_age_s":3.0,"interval_s":30.0,"thresholds":null,"#,
        r#""metadata":{},"process":null}"#,
    ),
];

fn workers() -> Vec<StoredWorker> {
    let mut living = StoredWorker::new(key("a", 1), full_info());
    living.status = full_status();
    // Only a worker that is unwell shows where it hung.
    living.status.stack = None;
    living.registered_age = 100 * SECOND;
    living.heartbeat_age = Some(2 * SECOND);
    living.progress_age = Some(20 * SECOND);
    living.lease_remaining = Some(40 * SECOND);
    let mut dead = StoredWorker::new(key("b", 2), WorkerInfo::new("poller"));
    dead.status = WorkerStatus::new(State::Active);
    dead.status.run_id = Some("run-2".into());
    dead.registered_age = 100 * SECOND;
    let ending = StoredEnding::dead(&DeathCause::Failed {
        error: "no disk".into(),
    });
    dead.ending = Some((ending, 3 * SECOND));
    vec![living, dead]
}

fn sweep() -> Sweep {
    let mut sweep = Sweep::default();
    sweep.watched_for = SECOND;
    sweep.killed = vec![key("a", 1)];
    sweep.gone = vec![key("b", 2)];
    sweep.dry_run = true;
    sweep
}

fn filter() -> WorkerFilter {
    let mut filter = WorkerFilter::default();
    filter.worker_type = Some("poller".into());
    filter.group = Some("machine-7".into());
    filter.host = Some(process());
    filter.after = Some("A".into());
    filter.limit = 7;
    filter
}

fn claim() -> Claim {
    Claim::new(key("a", 1), "run-1", 60 * SECOND)
}

#[test]
fn a_client_sends_these_requests_and_reads_these_answers() {
    let registrations = [full_registration(), Registration::new("poller", "b")];
    let answer = r#"{"answers":[{"id":"a-7","incarnation":7},{"id":"b","incarnation":8}]}"#;
    let (keys, path, body) = sent(answer, |store| store.register(&registrations));
    assert_eq!((&*path, &*body), ("/api/store/register", REGISTRATIONS));
    assert_eq!(keys, [key("a-7", 7), key("b", 8)]);

    let beats = [full_beat(), Beat::new(key("b", 2), State::NeverStarted)];
    let answer = r#"{"answers":["accepted","unknown"]}"#;
    let (answers, path, body) = sent(answer, |store| store.beat(&beats));
    assert_eq!((&*path, &*body), ("/api/store/beat", BEATS));
    assert_eq!(answers, [Answer::Accepted, Answer::Unknown]);

    let stops = stops();
    let answer = r#"{"answers":["superseded","ended"]}"#;
    let (answers, path, body) = sent(answer, |store| store.stop(&stops));
    assert_eq!((&*path, &*body), ("/api/store/stop", STOPS));
    assert_eq!(answers, [Answer::Superseded, Answer::Ended]);

    let answer = format!(r#"{{"workers":[{}],"more":false}}"#, WORKERS.join(","));
    let (listed, path, body) = sent(&answer, |store| store.list(&filter()));
    assert_eq!((&*path, &*body), ("/api/store/list", LIST));
    let shown = |workers: &[StoredWorker]| format!("{workers:#?}");
    assert_eq!(shown(&listed), shown(&workers()));

    let (report, path, body) = sent(REPORT, |store| store.sweep(&sweep()));
    assert_eq!((&*path, &*body), ("/api/store/sweep", SWEEP));
    assert_eq!(report.marked_offline, ["a", "b"]);
    assert_eq!(report.released_leases, ["run-1"]);

    let (count, path, body) = sent("3", |store| store.purge(2 * SECOND));
    assert_eq!(
        (&*path, &*body),
        ("/api/store/purge", r#"{"version":1,"what":2.0}"#)
    );
    assert_eq!(count, 3);

    for (text, expected) in [
        (r#"{"granted":9}"#, ClaimAnswer::Granted(9)),
        (r#""taken""#, ClaimAnswer::Taken),
        (
            r#"{"refused":"ended"}"#,
            ClaimAnswer::Refused(Answer::Ended),
        ),
    ] {
        let (answer, path, body) = sent(text, |store| store.claim(&claim()));
        assert_eq!((&*path, &*body), ("/api/store/claim", CLAIM));
        assert_eq!(answer, expected);
    }

    let answer = r#"{"answers":[true]}"#;
    let (held, path, body) = sent(answer, |store| store.renew(&[lease()], 60 * SECOND));
    assert_eq!((&*path, &*body), ("/api/store/renew", RENEW));
    assert_eq!(held, [true]);
    let (held, path, body) = sent(answer, |store| store.release(&[lease()]));
    assert_eq!((&*path, &*body), ("/api/store/release", RELEASE));
    assert_eq!(held, [true]);
}

/// A store that records its arguments, and always returns the same answers.
#[derive(Clone, Debug, Default)]
struct Script {
    called: Arc<Mutex<String>>,
}

impl Script {
    fn note(&self, call: String) {
        *self.called.lock().unwrap() = call;
    }
}

impl HeartbeatStore for Script {
    fn register(&self, workers: &[Registration]) -> Result<Vec<WorkerKey>, Error> {
        self.note(format!("{workers:?}"));
        Ok(workers.iter().map(|worker| key(&worker.id, 7)).collect())
    }

    fn beat(&self, beats: &[Beat]) -> Result<Vec<Answer>, Error> {
        // The time that a heartbeat spent in the coordinator is added to its ages.
        let mut beats = beats.to_vec();
        for beat in &mut beats {
            let whole = |age: Duration| Duration::from_secs(age.as_secs());
            beat.heartbeat_age = beat.heartbeat_age.map(whole);
            beat.progress_age = beat.progress_age.map(whole);
        }
        self.note(format!("{beats:?}"));
        Ok([Answer::Accepted, Answer::Unknown][..beats.len()].to_vec())
    }

    fn stop(&self, stops: &[Stop]) -> Result<Vec<Answer>, Error> {
        self.note(format!("{stops:?}"));
        Ok([Answer::Superseded, Answer::Ended][..stops.len()].to_vec())
    }

    fn list(&self, filter: &WorkerFilter) -> Result<Vec<StoredWorker>, Error> {
        self.note(format!("{filter:?}"));
        Ok(workers())
    }

    fn sweep(&self, sweep: &Sweep) -> Result<SweepReport, Error> {
        self.note(format!("{sweep:?}"));
        let mut report = SweepReport::default();
        report.success = true;
        report.marked_offline = vec!["a".into(), "b".into()];
        report.affected_groups = vec!["machine-7".into()];
        report.released_leases = vec!["run-1".into()];
        Ok(report)
    }

    fn purge(&self, age: Duration) -> Result<usize, Error> {
        self.note(format!("{age:?}"));
        Ok(3)
    }

    fn claim(&self, claim: &Claim) -> Result<ClaimAnswer, Error> {
        self.note(format!("{claim:?}"));
        Ok(match &*claim.run_id {
            "run-1" => ClaimAnswer::Granted(9),
            "run-2" => ClaimAnswer::Taken,
            _ => ClaimAnswer::Refused(Answer::Superseded),
        })
    }

    fn renew(&self, leases: &[LeaseKey], ttl: Duration) -> Result<Vec<bool>, Error> {
        self.note(format!("{leases:?} {ttl:?}"));
        Ok(vec![true; leases.len()])
    }

    fn release(&self, leases: &[LeaseKey]) -> Result<Vec<bool>, Error> {
        self.note(format!("{leases:?}"));
        Ok(vec![false; leases.len()])
    }
}

fn ask(address: SocketAddr, operation: &str, body: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    let request = format!(
        "POST /api/store/{operation} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes()).unwrap();
    let (first, answer) = message(&mut BufReader::new(stream)).unwrap();
    assert_eq!(first, "HTTP/1.1 200 OK", "{operation}: {answer}");
    answer
}

#[test]
fn a_coordinator_reads_these_requests_and_gives_these_answers() {
    let store = Script::default();
    let coordinator = Coordinator::new(store.clone())
        .serve("127.0.0.1:0")
        .unwrap();
    let address = coordinator.local_addr();
    let called = || store.called.lock().unwrap().clone();

    let answer = ask(address, "register", REGISTRATIONS);
    let expected = r#"{"answers":[{"id":"a","incarnation":7},{"id":"b","incarnation":7}]}"#;
    assert_eq!(answer, expected);
    let registrations = [full_registration(), Registration::new("poller", "b")];
    assert_eq!(called(), format!("{registrations:?}"));

    let answer = ask(address, "beat", BEATS);
    assert_eq!(answer, r#"{"answers":["accepted","unknown"]}"#);
    let beats = [full_beat(), Beat::new(key("b", 2), State::NeverStarted)];
    assert_eq!(called(), format!("{beats:?}"));

    let answer = ask(address, "stop", STOPS);
    assert_eq!(answer, r#"{"answers":["superseded","ended"]}"#);
    let stops = stops();
    assert_eq!(called(), format!("{stops:?}"));

    let answer = ask(address, "list", LIST);
    let expected = format!(r#"{{"workers":[{}],"more":false}}"#, WORKERS.join(","));
    assert_eq!(answer, expected);
    assert_eq!(called(), format!("{:?}", filter()));

    assert_eq!(ask(address, "sweep", SWEEP), REPORT);
    assert_eq!(called(), format!("{:?}", sweep()));

    assert_eq!(ask(address, "purge", r#"{"version":1,"what":2.0}"#), "3");
    assert_eq!(called(), "2s");

    for (run_id, expected) in [
        ("run-1", r#"{"granted":9}"#),
        ("run-2", r#""taken""#),
        ("run-3", r#"{"refused":"superseded"}"#),
    ] {
        let body = CLAIM.replace("run-1", run_id);
        assert_eq!(ask(address, "claim", &body), expected);
        assert!(called().contains(run_id), "{}", called());
    }

    assert_eq!(ask(address, "renew", RENEW), r#"{"answers":["renewed"]}"#);
    assert_eq!(called(), format!("{:?} 60s", [lease()]));
    // From a client that does not know answers of their own.
    let renew = RENEW.replace(r#""each":true,"#, "");
    assert_eq!(ask(address, "renew", &renew), r#"{"answers":[true]}"#);
    assert_eq!(called(), format!("{:?} 60s", [lease()]));
    assert_eq!(ask(address, "release", RELEASE), r#"{"answers":[false]}"#);
    assert_eq!(called(), format!("{:?}", [lease()]));
}

/// A panic keeps its message and its location apart, in a stop and in a list.
#[test]
fn the_location_of_a_panic_is_a_field_of_its_own() {
    const ENDING: &str = concat!(
        r#"{"stopped":false,"cause":"panicked","detail":"no module named server","#,
        r#""location":"src/jobs.rs:19:5"}"#,
    );
    let ending = StoredEnding::dead(&DeathCause::Panicked {
        message: "no module named server".into(),
        location: Some("src/jobs.rs:19:5".into()),
        thread: "jobs".into(),
        backtrace: None,
    });
    let stop = Stop::new(key("a", 1), ending.clone());
    let answer = r#"{"answers":["accepted"]}"#;
    let (_, _, body) = sent(answer, |store| store.stop(std::slice::from_ref(&stop)));
    let expected = format!(
        r#"{{"version":1,"items":[{{"id":"a","incarnation":1,"ending":{ENDING},"ago_s":0.0}}]}}"#
    );
    assert_eq!(body, expected);

    let worker = WORKERS[1].replace(
        r#"{"stopped":false,"cause":"failed","detail":"no disk"}"#,
        ENDING,
    );
    let answer = format!(r#"{{"workers":[{worker}],"more":false}}"#);
    let (listed, _, _) = sent(&answer, |store| store.list(&WorkerFilter::new()));
    assert_eq!(listed[0].ending, Some((ending, 3 * SECOND)));
}

/// Fields that a request may omit, as other implementations do.
#[test]
fn optional_fields_have_their_defaults() {
    let store = Script::default();
    let coordinator = Coordinator::new(store.clone())
        .serve("127.0.0.1:0")
        .unwrap();
    let address = coordinator.local_addr();
    let called = || store.called.lock().unwrap().clone();

    ask(
        address,
        "register",
        r#"{"version":1,"items":[{"id":"b","explicit":true,"worker_type":"poller","group":"local","interval_s":30}]}"#,
    );
    assert_eq!(
        called(),
        format!("{:?}", [Registration::new("poller", "b")])
    );

    ask(
        address,
        "beat",
        r#"{"version":1,"items":[{"id":"b","incarnation":2,"state":"active","beats":0}]}"#,
    );
    let mut beat = Beat::new(key("b", 2), State::Active);
    (beat.heartbeat_age, beat.progress_age) = (None, None);
    assert_eq!(called(), format!("{:?}", [beat]));

    ask(address, "list", r#"{"version":1,"what":{"limit":10000}}"#);
    // A page has at most 1,000 workers, whatever the request's limit.
    let mut filter = WorkerFilter::default();
    filter.limit = 1_000;
    assert_eq!(called(), format!("{filter:?}"));

    let request =
        r#"{"version":1,"what":{"threshold_s":90,"watched_for_s":1,"killed":[],"dry_run":false}}"#;
    ask(address, "sweep", request);
    let mut sweep = Sweep::default();
    sweep.watched_for = SECOND;
    assert_eq!(called(), format!("{sweep:?}"));
}
