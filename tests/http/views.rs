//! The JSON that each audience sees of workers, byte for byte: those who may see reasons, and everybody
//! else. A field that is new must be added here, for one audience or for both.

use std::net::SocketAddr;
use std::time::Duration;

use worker_heartbeat::fleet::{Beat, ProcessIdentity, Registration, Stop, StoredEnding};
use worker_heartbeat::{
    Activity, DeathCause, HealthEndpoint, HeartbeatStore, MemoryStore, RunningHealthEndpoint, State,
};

use crate::support::World;
use crate::support::coordinator::{exchange, request};

/// Values that the real clock, or a line of this file, decides.
const VARYING: [&str; 10] = [
    "last_location",
    "spawn_location",
    "last_heartbeat",
    "at",
    "incarnation",
    "registered_age_s",
    "heartbeat_age_s",
    "progress_age_s",
    "ended_age_s",
    "tick_age_s",
];

/// The body, with `T` for each value that varies, and without counts that are zero.
fn body(address: SocketAddr, path: &str) -> String {
    // The endpoint caches a reading for 50 ms of real time.
    std::thread::sleep(Duration::from_millis(60));
    let reply = exchange(address, &request("GET", path, "", b"")).expect(path);
    let mut body = VARYING
        .iter()
        .fold(reply.body, |body, name| without_value(&body, name));
    for state in State::ALL {
        body = body.replace(&format!("\"{}\":0,", state.name()), "");
        body = body.replace(&format!(",\"{}\":0}}", state.name()), "}");
    }
    body
}

fn without_value(body: &str, name: &str) -> String {
    let field = format!("\"{name}\":");
    let mut pieces = body.split(&field);
    let mut text = pieces.next().unwrap().to_owned();
    for piece in pieces {
        let (value, rest) = piece.split_at(piece.find([',', '}']).unwrap());
        let shown = if value == "null" { value } else { "T" };
        text.push_str(&format!("{field}{shown}{rest}"));
    }
    text
}

struct Site {
    world: World,
    full: RunningHealthEndpoint,
    public: RunningHealthEndpoint,
}

impl Site {
    fn new(store: &MemoryStore) -> Self {
        let world = World::new();
        let endpoint = HealthEndpoint::new(&world.registry).fleet(store.clone());
        Self {
            full: endpoint.clone().serve("127.0.0.1:0").unwrap(),
            public: endpoint.show_reasons(false).serve("127.0.0.1:0").unwrap(),
            world,
        }
    }

    #[track_caller]
    fn check(&self, path: &str, full: &str, public: &str) {
        assert_eq!(body(self.full.local_addr(), path), full, "full {path}");
        assert_eq!(
            body(self.public.local_addr(), path),
            public,
            "public {path}"
        );
    }
}

const A_FULL: &str = r#"{"activity":"processing","alive":true,"beats":4,"failed_tasks":0,"future":null,"group":"machine-7","health":{"reason":null,"state":"processing"},"heartbeat_age_s":T,"id":"a","incarnation":T,"interval_s":30.0,"last_death":{"at":T,"cause":"failed","gave_up_after":null,"last_location":T,"reason":"failed: s3cret","run_id":"s3cret-run","task":"s3cret-task","unheard_for_s":null},"last_heartbeat":T,"last_location":T,"late_beats":0,"late_updates":0,"metadata":{"key":"s3cret"},"progress":[3,10],"progress_age_s":T,"reason":null,"restarts":1,"run_id":"s3cret-run","spawn_location":T,"stack":null,"state":"processing","step":"s3cret-step","store":null,"task":"s3cret-task","task_age_s":0.0,"thresholds":{"beats_only":false,"stale_after_s":90.0,"stall_after_s":10.0,"startup_grace_s":90.0},"tick_age_s":T,"worker_type":"poller"}"#;
const A_PUBLIC: &str = r#"{"activity":"processing","alive":true,"beats":4,"failed_tasks":0,"group":"machine-7","health":{"reason":null,"state":"processing"},"heartbeat_age_s":T,"id":"a","incarnation":T,"interval_s":30.0,"last_death":null,"last_heartbeat":T,"late_beats":0,"late_updates":0,"metadata":null,"progress":[3,10],"progress_age_s":T,"reason":null,"restarts":1,"run_id":null,"state":"processing","step":null,"store":null,"task":null,"task_age_s":0.0,"thresholds":{"beats_only":false,"stale_after_s":90.0,"stall_after_s":10.0,"startup_grace_s":90.0},"tick_age_s":T,"worker_type":"poller"}"#;
const B_FULL: &str = r#"{"activity":"active","alive":false,"beats":1,"failed_tasks":0,"future":null,"group":"local","health":{"reason":"failed: s3cret, during s3cret-run (s3cret-task)","state":"dead"},"heartbeat_age_s":T,"id":"b","incarnation":T,"interval_s":30.0,"last_death":null,"last_heartbeat":T,"last_location":T,"late_beats":0,"late_updates":0,"metadata":{},"progress":null,"progress_age_s":null,"reason":"failed: s3cret, during s3cret-run (s3cret-task)","restarts":0,"run_id":"s3cret-run","spawn_location":T,"stack":null,"state":"dead","step":null,"store":null,"task":"s3cret-task","task_age_s":null,"thresholds":{"beats_only":false,"stale_after_s":90.0,"stall_after_s":null,"startup_grace_s":90.0},"tick_age_s":T,"worker_type":"poller"}"#;
const B_PUBLIC: &str = r#"{"activity":"active","alive":false,"beats":1,"failed_tasks":0,"group":"local","health":{"reason":null,"state":"dead"},"heartbeat_age_s":T,"id":"b","incarnation":T,"interval_s":30.0,"last_death":null,"last_heartbeat":T,"late_beats":0,"late_updates":0,"metadata":null,"progress":null,"progress_age_s":null,"reason":null,"restarts":0,"run_id":null,"state":"dead","step":null,"store":null,"task":null,"task_age_s":null,"thresholds":{"beats_only":false,"stale_after_s":90.0,"stall_after_s":null,"startup_grace_s":90.0},"tick_age_s":T,"worker_type":"poller"}"#;

/// The same without the verdict beside the details.
fn details(worker: &str) -> String {
    let (start, end) = worker.split_once(",\"restarts\"").unwrap();
    let start = &start[..start.rfind(",\"reason\":").unwrap()];
    let (middle, end) = end.split_once(",\"state\":").unwrap();
    let end = &end[end.find(",\"step\"").unwrap()..];
    let all = format!("{start},\"restarts\"{middle}{end}");
    all.replace("\"alive\":true,", "")
        .replace("\"alive\":false,", "")
}

#[test]
fn each_audience_sees_its_fields_and_no_others() {
    let site = Site::new(&MemoryStore::new());
    let fail = |id: &str| {
        let hb = site.world.worker("poller").id(id).start().unwrap();
        hb.update_task("s3cret-run", "s3cret-task", Activity::Processing);
        hb.fail("s3cret");
    };
    fail("a");
    fail("b");
    let builder = site.world.worker("poller").id("a").group("machine-7");
    let builder = builder.stall_after(Duration::from_secs(10));
    let a = builder.metadata("key", "s3cret").start().unwrap();
    a.beat();
    let task = a.begin_task("s3cret-run", "s3cret-task");
    task.step("s3cret-step");
    task.progress(3, 10);
    site.world.registry.expect_workers("mailer", 2);

    site.check("/v1/worker/health?worker=a", A_FULL, A_PUBLIC);
    site.check("/v1/worker/health?worker=b", B_FULL, B_PUBLIC);
    site.check(
        "/v1/worker/details?worker=a",
        &details(A_FULL),
        &details(A_PUBLIC),
    );
    site.check(
        "/v1/worker/details?worker=b",
        &details(B_FULL),
        &details(B_PUBLIC),
    );
    site.check(
        "/v1/worker/health",
        r#"{"alive":false,"draining":false,"failures":[{"reason":"1 dead; b: dead: failed: s3cret, during s3cret-run (s3cret-task)","rule":"workers"},{"reason":"0 of 2 expected workers of type mailer live","rule":"expected"}],"last_heartbeat":T,"policy":"health","reason":"1 active, 1 dead; b: dead: failed: s3cret, during s3cret-run (s3cret-task); 0 of 2 expected workers of type mailer live","state":"dead","tick_age_s":T,"tolerated":[],"total_active_workers":1,"total_dead_workers":1,"unknown_types":[]}"#,
        r#"{"alive":false,"draining":false,"failures":[{"reason":null,"rule":"workers"},{"reason":null,"rule":"expected"}],"last_heartbeat":T,"policy":"health","reason":null,"state":"dead","tick_age_s":T,"tolerated":[],"total_active_workers":1,"total_dead_workers":1,"unknown_types":[]}"#,
    );
    let list = |unwell: &str, missing: &str, workers: &str| {
        let counts = r#""groups":{"local":{"state":"offline","states":{"dead":1}},"machine-7":{"state":"online","states":{"processing":1}}}"#;
        let types = r#""stats_by_type":{"poller":{"active":1,"dead":1,"states":{"dead":1,"processing":1},"total":2}}"#;
        format!(
            r#"{{"dead_workers":[{{"group":"local","health":{{"reason":{unwell},"state":"dead"}},"id":"b","restarting":false,"worker_type":"poller"}}],{counts},"missing":{missing},"overdue_workers":[],"stalled_workers":[],{types},"tick_age_s":T,"total_active_workers":1,"total_dead_workers":1,"total_workers":2,"view":"process","workers":[{workers}]}}"#
        )
    };
    site.check(
        "/v1/workers?view=process",
        &list(
            r#""failed: s3cret, during s3cret-run (s3cret-task)""#,
            r#"[{"expected":2,"living":0,"worker_type":"mailer"}]"#,
            &format!("{A_FULL},{B_FULL}"),
        ),
        &list("null", "null", &format!("{A_PUBLIC},{B_PUBLIC}")),
    );
    site.check(
        "/readyz",
        "[+]pacemaker ok\n[-]workers failed: 1 dead; b: dead: failed: s3cret, during s3cret-run (s3cret-task)\n[+]started ok\n[-]expected failed: 0 of 2 expected workers of type mailer live\n[+]shutdown ok\nfailed\n",
        "[+]pacemaker ok\n[-]workers failed: reason withheld\n[+]started ok\n[-]expected failed: reason withheld\n[+]shutdown ok\nfailed\n",
    );
}

#[test]
fn each_audience_sees_its_fields_of_a_worker_in_a_store() {
    let store = MemoryStore::new();
    let site = Site::new(&store);
    let mut registration = Registration::new("indexer", "f");
    let mut process = ProcessIdentity::default();
    process.hostname = "s3cret-host".into();
    process.pid = 4711;
    registration.info.process = Some(process);
    registration.info.metadata = vec![("key".into(), "s3cret".into())];
    let key = store.register(&[registration]).unwrap().remove(0);
    let mut beat = Beat::new(key.clone(), State::Processing);
    beat.status.reason = Some("s3cret".into());
    beat.status.run_id = Some("s3cret-run".into());
    beat.status.task = Some("s3cret-task".into());
    beat.heartbeat_age = Some(Duration::ZERO);
    store.beat(&[beat]).unwrap();
    let path = "/v1/worker/details?worker=f&view=fleet";
    site.check(
        path,
        r#"{"beats":0,"ended_age_s":null,"ending":null,"group":"local","health":{"reason":null,"state":"processing"},"heartbeat_age_s":T,"id":"f","incarnation":T,"interval_s":30.0,"lease_remaining_s":null,"metadata":{"key":"s3cret"},"process":{"boot_id":"","hostname":"s3cret-host","pid":4711,"pid_namespace":0,"started":0},"progress":null,"progress_age_s":T,"reason":"s3cret","registered_age_s":T,"reported":"processing","restarts":0,"run_id":"s3cret-run","task":"s3cret-task","thresholds":null,"worker_type":"indexer"}"#,
        r#"{"beats":0,"ended_age_s":null,"ending":null,"group":"local","health":{"reason":null,"state":"processing"},"heartbeat_age_s":T,"id":"f","incarnation":T,"interval_s":30.0,"lease_remaining_s":null,"metadata":null,"process":null,"progress":null,"progress_age_s":T,"reason":null,"registered_age_s":T,"reported":"processing","restarts":0,"run_id":null,"task":null,"thresholds":null,"worker_type":"indexer"}"#,
    );
    // With a store, the list is that of the fleet.
    let list = |worker: &str, missing: &str| {
        let states = r#"{"processing":1}"#;
        format!(
            r#"{{"dead_workers":[],"groups":{{"local":{{"state":"online","states":{states}}}}},"missing":{missing},"overdue_workers":[],"stalled_workers":[],"stats_by_type":{{"indexer":{{"active":1,"dead":0,"states":{states},"total":1}}}},"total_active_workers":1,"total_dead_workers":0,"total_workers":1,"view":"fleet","workers":[{worker}]}}"#
        ).replace("\"dead\":0,", "")
    };
    let worker = |reason: &str, private: [&str; 4]| {
        let [metadata, process, run, task] = private;
        format!(
            r#"{{"alive":true,"beats":0,"ended_age_s":null,"ending":null,"group":"local","health":{{"reason":null,"state":"processing"}},"heartbeat_age_s":T,"id":"f","incarnation":T,"interval_s":30.0,"lease_remaining_s":null,"metadata":{metadata},"process":{process},"progress":null,"progress_age_s":T,"reason":{reason},"registered_age_s":T,"reported":"processing","restarts":0,"run_id":{run},"state":"processing","task":{task},"thresholds":null,"worker_type":"indexer"}}"#
        )
    };
    let process =
        r#"{"boot_id":"","hostname":"s3cret-host","pid":4711,"pid_namespace":0,"started":0}"#;
    let private = [
        r#"{"key":"s3cret"}"#,
        process,
        r#""s3cret-run""#,
        r#""s3cret-task""#,
    ];
    for path in [
        "/v1/workers",
        "/v1/workers?view=fleet&state=processing&q=F&type=indexer",
    ] {
        site.check(
            path,
            &list(&worker(r#""s3cret""#, private), "[]"),
            &list(&worker("null", ["null"; 4]), "null"),
        );
    }
    for (path, found) in [
        ("?state=dead", false),
        ("?after=f", false),
        ("?after=e&group=local", true),
    ] {
        let found_it =
            body(site.full.local_addr(), &format!("/v1/workers{path}")).contains(r#""id":"f""#);
        assert_eq!(found_it, found, "{path}");
    }
    let invalid = exchange(
        site.full.local_addr(),
        &request("GET", "/v1/workers?state=x", "", b""),
    );
    assert_eq!(invalid.unwrap().status, 400);

    let panicked = StoredEnding::dead(&DeathCause::Panicked {
        message: "s3cret".into(),
        location: Some("s3cret.rs:1:1".into()),
        thread: String::new(),
        backtrace: None,
    });
    store.stop(&[Stop::new(key, panicked)]).unwrap();
    let public = body(site.public.local_addr(), path);
    assert!(
        public.contains(r#""ending":{"cause":"panicked","detail":null,"stopped":false}"#),
        "{public}"
    );
    assert!(!public.contains("s3cret"), "{public}");
    let full = body(site.full.local_addr(), path);
    assert!(full.contains(r#""location":"s3cret.rs:1:1""#), "{full}");
}
