//! `heartbeat-monitor`, as a real process on real stores.

use std::fs;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::fixtures::{
    Folder, Watch, ends, fill, filled, filled_with_many, monitor, run, stderr, stdout,
};
use crate::support::examples::poll;
use crate::support::postgres;
use crate::support::text_http::{self, exchange, get};
use serde_json::Value;
use worker_heartbeat::fleet::{Beat, Registration};
use worker_heartbeat::{
    Beacon, HeartbeatStore, PostgresOptions, Registry, SqliteStore, State, WorkerHeartbeat,
};

const PASSWORD: &str = "hunter2-secret";

// --- commands that end -------------------------------------------------------------------------------

#[test]
fn help_names_every_command_and_every_exit_status() {
    let help = ends(&["--help"], 0);
    for word in [
        "watch",
        "status",
        "sweep",
        "purge",
        "migrate",
        "events",
        "check",
        "completions",
        "man",
        "--log-format",
        "POSTGRES_URL",
        "Exit status:",
        "0  done",
        "1  `check`",
        "2  the command line",
        "3  the store",
    ] {
        assert!(help.contains(word), "{word} is not in {help}");
    }
    for command in [
        "watch", "status", "sweep", "purge", "migrate", "events", "check",
    ] {
        let help = ends(&[command, "--help"], 0);
        assert!(help.contains("--sqlite <FILE>"), "{help}");
        assert!(help.lines().all(|line| line.len() <= 100), "{help}");
    }
    let version = format!("heartbeat-monitor {}\n", env!("CARGO_PKG_VERSION"));
    assert_eq!(ends(&["--version"], 0), version);
}

#[test]
fn invalid_arguments_end_with_status_2_and_a_reason() {
    for (arguments, why) in [
        (&[][..], "Usage: heartbeat-monitor"),
        (&["status"], "missing store: use --sqlite FILE"),
        (&["gaze"], "unrecognized subcommand 'gaze'"),
        (
            &["status", "--sqlite", "a", "--postgres", "b"],
            "cannot be used with",
        ),
        (
            &["purge", "--sqlite", "a", "--older-than", "soon"],
            "examples: 90s, 5m, 2h, 7d",
        ),
        (&["check", "--max-age", "1s"], "--file <FILE>"),
        (
            &["watch", "--sqlite", "a", "--interval", "2d"],
            "must be at most a day",
        ),
        (&["watch", "--sqlite", ":memory:"], "can't share a store"),
        (
            &["watch", "--sqlite", "a", "--listen", "here"],
            "must be HOST:PORT, such as localhost:7717",
        ),
        (
            &[
                "status",
                "--postgres",
                "postgres://u@h/d",
                "--schema",
                "a b",
            ],
            "invalid schema",
        ),
    ] {
        let said = ends(arguments, 2);
        assert!(said.contains(why), "{arguments:?}: {said}");
    }
    let unreadable = std::os::unix::ffi::OsStrExt::from_bytes(b"stat\xffus");
    let ended = monitor(&[])
        .arg::<&std::ffi::OsStr>(unreadable)
        .output()
        .unwrap();
    assert_eq!(ended.status.code(), Some(2), "{ended:?}");
}

#[test]
fn status_is_a_table_that_nothing_can_break_or_a_json_document() {
    let folder = Folder::new("status");
    let (file, _store) = filled(&folder);
    let table = ends(&["status", "--sqlite", &file], 0);
    let lines: Vec<&str> = table.lines().collect();
    assert_eq!(lines.len(), 5, "{table}");
    assert!(lines[0].starts_with("WORKER"), "{table}");
    assert!(lines[1].starts_with("b-silent") && lines[1].contains(" stale "));
    assert!(lines[1].contains(" 10 min ago "), "{table}");
    assert!(lines[2].starts_with("a-well") && lines[2].contains(" processing "));
    assert!(lines[2].ends_with("run-7  indexing, 3 of 10"), "{table}");
    assert!(lines[3].contains(" stopped "), "{table}");
    assert_eq!(lines[4], "3 workers: 1 processing, 1 stale, 1 stopped");
    let column = lines[0].find("STATE").unwrap();
    assert!(lines[1][column..].starts_with("stale"), "{table}");
    assert!(!table.contains(['\u{1b}', '\u{202e}']), "{table:?}");

    let json: Value =
        serde_json::from_str(&ends(&["status", "--sqlite", &file, "--json"], 0)).unwrap();
    assert_eq!(json["summary"]["total_active"], 1);
    assert_eq!(json["workers"][1]["health"]["state"], "stale");
    assert_eq!(
        json["workers"][0]["worker_type"],
        "evil\u{1b}[2J\u{202e}type"
    );
}

#[test]
fn the_details_of_the_status_say_where_an_unwell_worker_hangs() {
    let folder = Folder::new("details");
    let file = folder.file("fleet.db");
    let store = SqliteStore::open(&file).unwrap();
    let keys = ["a", "b"].map(|id| Registration::new("poller", id));
    let keys = store.register(&keys).unwrap();
    let mut beats = [State::Stalled, State::Processing]
        .into_iter()
        .zip(keys)
        .map(|(state, key)| Beat::new(key, state))
        .collect::<Vec<_>>();
    let reason = "no progress for 6 s, 5 s allowed; blocked in futex_wait_queue, at shop::reserve";
    beats[0].status.reason = Some(reason.to_owned());
    beats[0].status.stack = Some("    0: syscall\n>   1: shop::reserve\u{1b}[2J".to_owned());
    store.beat(&beats).unwrap();
    let brief = ends(&["status", "--sqlite", &file], 0);
    assert_eq!(brief.lines().count(), 4, "{brief}");
    assert!(brief.contains("5 s allowed; blocked in futex"), "{brief}");
    for more in [&["--details"][..], &["--details", "--all"]] {
        let table = ends(&[&["status", "--sqlite", &file], more].concat(), 0);
        let lines: Vec<&str> = table.lines().collect();
        assert!(lines[1].starts_with("a "), "{table}");
        assert_eq!(
            lines[2..5],
            [
                &*format!("  {reason}"),
                "        0: syscall",
                r"    >   1: shop::reserve\u{1b}[2J",
            ]
        );
        assert!(lines[5].starts_with("b "), "{table}");
        assert_eq!(lines.len(), 7, "{table}");
    }
}

#[test]
fn a_reader_that_closes_the_pipe_early_is_no_failure() {
    let folder = Folder::new("pipe");
    let file = folder.file("fleet.db");
    let store = SqliteStore::open(&file).unwrap();
    // More than a pipe holds.
    let workers: Vec<_> = (0..3_000)
        .map(|n| Registration::new("poller", format!("worker-{n}")))
        .collect();
    store.register(&workers).unwrap();
    let mut child = monitor(&["status", "--sqlite", &file])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(
        (output.status.code(), stderr(&output)),
        (Some(0), String::new())
    );
}

#[test]
fn a_sweep_that_is_only_tried_changes_nothing() {
    let folder = Folder::new("sweep");
    let (file, store) = filled(&folder);
    let tried = ends(&["sweep", "--sqlite", &file, "--dry-run"], 0);
    assert_eq!(
        tried,
        "worker b-silent: would be marked offline\n\
         group group-b: would be offline as a whole\n\
         1 would be marked offline\n"
    );
    assert_eq!(store.summary().unwrap().states.get(State::Dead), 0);
    let swept = ends(&["sweep", "--sqlite", &file], 0);
    assert!(
        swept.starts_with("worker b-silent: marked offline\n"),
        "{swept}"
    );
    assert_eq!(store.summary().unwrap().states.get(State::Dead), 1);
    assert_eq!(ends(&["sweep", "--sqlite", &file], 0), "0 marked offline\n");

    assert_eq!(ends(&["purge", "--sqlite", &file], 0), "0 deleted\n");
    let purged = ends(&["purge", "--sqlite", &file, "--older-than", "1ns"], 0);
    assert_eq!(purged, "2 deleted\n");
}

#[test]
fn check_reports_by_its_status_whether_all_is_well() {
    let folder = Folder::new("check");
    let (file, store) = filled(&folder);
    let why = ends(&["check", "--sqlite", &file], 1);
    assert!(why.starts_with("1 active, 1 dead"), "{why}");
    assert!(why.contains("b-silent: stale"), "{why}");
    let with = |options: &[&'static str], status| {
        let check = ["check", "--sqlite", &file];
        let all: Vec<&str> = check.into_iter().chain(options.iter().copied()).collect();
        ends(&all, status)
    };
    let tolerant = with(&["--tolerate-dead", "1"], 0);
    assert!(
        tolerant.contains("b-silent: stale"),
        "still shown: {tolerant}"
    );
    with(&["--policy", "liveness"], 1);
    let typo = with(&["--ignore-type", "typo"], 1);
    assert!(typo.ends_with("; no worker has the type typo\n"), "{typo}");
    let odd = with(&["--policy", "lax"], 2);
    assert!(
        odd.contains("must be liveness, startup, readiness, health or strict"),
        "{odd}"
    );
    let silent = store.list(&Default::default()).unwrap()[1].key.clone();
    store.beat(&[Beat::new(silent, State::Idle)]).unwrap();
    assert_eq!(
        ends(&["check", "--sqlite", &file], 0),
        "2 active, 0 dead, 1 stopped\n"
    );
    let expect = |expected| ["check", "--sqlite", &file, "--expect", expected];
    ends(&expect("none=0"), 0);
    assert_eq!(
        ends(&expect("indexer=3"), 1),
        "2 active, 0 dead, 1 stopped; 0 of 3 expected workers of type indexer live\n"
    );
    for odd in ["indexer", "indexer=", "indexer=-1"] {
        assert!(ends(&expect(odd), 2).contains("as in indexer=3"), "{odd}");
    }

    let beacon = folder.file("beacon.json");
    let registry = Registry::new();
    let hb = WorkerHeartbeat::builder("w")
        .registry(&registry)
        .start()
        .unwrap();
    hb.beat();
    let running = Beacon::new(&registry, &beacon).start().unwrap();
    let check = ["check", "--file", &beacon, "--max-age", "1h"];
    assert_eq!(ends(&check, 0), "1 active, 0 dead\n");
    drop(running);
    assert_eq!(ends(&check, 1), "the process stopped\n");
    let missing = ends(&["check", "--file", "/nowhere/beacon.json"], 1);
    assert!(
        missing.starts_with("cannot read /nowhere/beacon.json"),
        "{missing}"
    );
}

#[test]
fn a_check_of_many_unwell_workers_names_five_and_says_how_many_more() {
    let folder = Folder::new("check-many");
    let file = filled_with_many(&folder);
    let said = ends(&["check", "--sqlite", &file], 1);
    assert!(
        said.starts_with("2000 active, 0 dead, 500 stalled; worker-0004: stalled"),
        "{said}"
    );
    assert!(said.trim_end().ends_with("; and 495 more"), "{said}");
    assert!(said.lines().count() == 1 && said.len() < 1_000, "{said}");
}

#[test]
fn a_status_of_many_workers_shows_the_worst_and_all_on_request() {
    let folder = Folder::new("status-many");
    let file = filled_with_many(&folder);
    let table = ends(&["status", "--sqlite", &file], 0);
    let lines: Vec<&str> = table.lines().collect();
    // The head, 1,000 workers, how many more, and the totals.
    assert_eq!(lines.len(), 1_003, "{:?}", &lines[lines.len() - 3..]);
    assert!(lines[1..=500].iter().all(|line| line.contains(" stalled ")));
    assert!(lines[501].starts_with("worker-0000 ") && lines[501].contains(" idle "));
    assert_eq!(
        lines[1_001],
        "… and 1500 more, none in a worse state; --all shows them"
    );
    assert_eq!(lines[1_002], "2500 workers: 2000 idle, 500 stalled");

    let all = ends(&["status", "--sqlite", &file, "--all"], 0);
    let lines: Vec<&str> = all.lines().collect();
    assert_eq!(lines.len(), 2_502);
    assert!(lines[2_500].starts_with("worker-2499 "), "{}", lines[2_500]);

    let json = ends(&["status", "--sqlite", &file, "--json"], 0);
    let json: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["summary"]["states"]["stalled"], 500);
    assert_eq!(json["summary"]["unlisted_workers"], 0);
    let workers = json["workers"].as_array().unwrap();
    assert_eq!(workers.len(), 2_500);
    assert_eq!(workers[2_499]["id"], "worker-2499");
}

#[test]
fn a_status_of_no_workers_is_a_json_document() {
    let folder = Folder::new("status-none");
    let file = folder.file("fleet.db");
    drop(SqliteStore::open(&file).unwrap());
    let json = ends(&["status", "--sqlite", &file, "--json"], 0);
    let json: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["workers"], serde_json::json!([]));
    assert_eq!(json["summary"]["total"], 0);
}

#[test]
fn a_file_that_is_not_there_is_not_made_by_asking() {
    let folder = Folder::new("missing");
    let file = folder.file("fleet.db");
    for command in ["status", "sweep", "purge", "check"] {
        let said = ends(&[command, "--sqlite", &file], 3);
        assert!(said.contains("there is no file"), "{said}");
    }
    assert!(!Path::new(&file).exists());
    let made = ends(&["migrate", "--sqlite", &file], 0);
    assert_eq!(made, "the tables are up to date\n");
    assert_eq!(
        ends(&["status", "--sqlite", &file], 0).lines().last(),
        Some("0 workers")
    );
    fs::write(
        &file,
        "this is no database, but longer than its header would be",
    )
    .unwrap();
    let said = ends(&["status", "--sqlite", &file], 3);
    assert!(said.contains("heartbeat-monitor: store: cannot"), "{said}");
}

#[test]
fn a_password_is_never_shown() {
    // No server listens at port 1.
    let url = format!("postgres://app:{PASSWORD}@127.0.0.1:1/app");
    let broken = format!("postgres://app:{PASSWORD}@127.0.0.1:x/app");
    for command in ["status", "sweep", "purge", "check", "migrate"] {
        let said = ends(&[command, "--postgres", &url], 3);
        assert!(
            said.contains("127.0.0.1") && !said.contains(PASSWORD),
            "{said}"
        );
        let said = ends(&[command, "--postgres", &broken], 2);
        assert!(
            said.contains("invalid url") && !said.contains(PASSWORD),
            "{said}"
        );
        // A password in the wrong place.
        for arguments in [
            &[command, &url][..],
            &[command, "--sqlite", &url],
            &[&url],
            &["watch", "--listen", &url],
        ] {
            let said = ends(arguments, 2);
            assert!(said.contains("may contain a password"), "{said}");
            assert!(!said.contains(PASSWORD), "{said}");
        }
        let by_environment = monitor(&[command])
            .env("POSTGRES_URL", &url)
            .output()
            .unwrap();
        assert_eq!(by_environment.status.code(), Some(3));
        assert!(!stderr(&by_environment).contains(PASSWORD));
        let help = monitor(&[command, "--help"])
            .env("POSTGRES_URL", &url)
            .output()
            .unwrap();
        assert!(!stdout(&help).contains(PASSWORD));
    }
}

// --- watch -------------------------------------------------------------------------------------------

#[test]
fn watch_marks_the_dead_serves_everything_and_ends_in_good_order() {
    let folder = Folder::new("watch");
    let (file, beacon) = (folder.file("fleet.db"), folder.file("beacon.json"));
    let mut watch = Watch::start(&mut monitor(&[
        "watch",
        "--sqlite",
        &file,
        "--interval",
        "100ms",
        "--listen",
        "127.0.0.1:0",
        "--beacon",
        &beacon,
    ]));
    let address = watch.address();
    // A worker sends one heartbeat over HTTP, and then no more.
    let body = r#"{"worker_id": "gpu-7", "interval": 0.1, "stale_after": 0.3}"#;
    let post = |what: &str, body: &str| {
        let request = format!(
            "POST /api/worker/{what} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\
             Content-Length: {}\r\n\r\n{body}",
            body.len()
        );
        exchange(&address, request.as_bytes())
    };
    assert_eq!(post("register", body).status, 200);
    assert_eq!(post("heartbeat", r#"{"worker_id": "gpu-7"}"#).status, 200);
    watch.until("worker gpu-7 marked offline");
    watch.until("group local is offline as a whole");
    poll("readiness", || {
        (get(&address, "/readyz").status == 200).then_some(())
    });
    assert_eq!(get(&address, "/livez").status, 200);
    let own = get(&address, "/v1/worker/health");
    assert!(own.body.contains("1 active, 0 dead"), "{own:?}");
    let metrics = get(&address, "/metrics").body;
    for line in [
        "worker_heartbeat_workers{worker_type=\"sweeper\",state=\"active\"} 1",
        "worker_heartbeat_sweep_marked_offline_total{target=\"store\"} 1",
        "worker_heartbeat_fleet_up 1",
    ] {
        assert!(metrics.contains(line), "{line} is not in {metrics}");
    }
    poll("a beacon that says so", || {
        (stdout(&run(&["check", "--file", &beacon])) == "1 active, 0 dead\n").then_some(())
    });
    let table = ends(&["status", "--sqlite", &file], 0);
    assert!(
        table.contains("gpu-7") && table.contains(" dead "),
        "{table}"
    );

    assert_eq!(watch.end(), Some(0), "{}", watch.log());
    watch.until("ended by SIGTERM");
    assert_eq!(
        ends(&["check", "--file", &beacon], 1),
        "the process stopped\n"
    );
}

#[test]
fn a_watch_over_a_store_that_is_down_says_so_and_no_password() {
    let url = format!("postgres://app:{PASSWORD}@127.0.0.1:1/app");
    let mut watch = Watch::start(
        monitor(&["watch", "--interval", "100ms", "--listen", "127.0.0.1:0"])
            .env("POSTGRES_URL", &url)
            .env("RUST_LOG", "trace"),
    );
    let address = watch.address();
    watch.until("store: cannot");
    let ready = poll("the failing check", || {
        let ready = get(&address, "/readyz?verbose");
        ready
            .body
            .contains("[-]store failed: store: cannot")
            .then_some(ready)
    });
    assert_eq!(ready.status, 503);
    assert_eq!(
        get(&address, "/livez").status,
        200,
        "the store does not affect liveness"
    );
    for path in [
        "/",
        "/metrics",
        "/v1/workers",
        "/v1/worker/health",
        "/readyz?verbose",
    ] {
        let page = get(&address, path);
        assert!(!page.body.contains(PASSWORD), "{path}: {page:?}");
    }
    assert_eq!(watch.end(), Some(0), "{}", watch.log());
    assert!(!watch.log().contains(PASSWORD), "{}", watch.log());
}

#[test]
fn other_hosts_need_a_token() {
    let folder = Folder::new("token");
    let file = folder.file("fleet.db");
    let arguments = ["watch", "--sqlite", &file, "--listen", "0.0.0.0:0"];
    let refused = ends(&arguments, 2);
    assert!(refused.contains("without a token"), "{refused}");
    let token = folder.file("token");
    let with_token = [&arguments[..], &["--token-file", &token]].concat();
    assert!(
        ends(&with_token, 3).contains("cannot read"),
        "there is no such file"
    );
    fs::write(&token, "\n").unwrap();
    assert!(ends(&with_token, 2).contains("invalid token"));
    fs::File::create(&token)
        .unwrap()
        .write_all(b"s3cret\n")
        .unwrap();
    let mut watch = Watch::start(&mut monitor(&with_token));
    let address = watch.address().replace("0.0.0.0", "127.0.0.1");
    let post = |headers: &str| {
        let request = format!(
            "POST /api/worker/register HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{headers}\
             Content-Length: 2\r\n\r\n{{}}"
        );
        exchange(&address, request.as_bytes()).status
    };
    assert_eq!(post(""), 401);
    assert_eq!(post("Authorization: Bearer s3cret\r\n"), 200);
    let strangers = get(&address, "/v1/worker/health");
    assert!(strangers.body.contains(r#""reason":null"#), "{strangers:?}");
    assert_eq!(watch.end(), Some(0), "{}", watch.log());
}

#[test]
fn the_unit_file_has_a_token() {
    let unit = include_str!("../../examples/service/heartbeat-monitor.service");
    assert!(
        unit.lines()
            .any(|line| line.starts_with("LoadCredential=token:/")),
        "{unit}"
    );
    let command = unit
        .lines()
        .find_map(|line| line.strip_prefix("ExecStart="))
        .unwrap();
    let folder = Folder::new("unit");
    fs::write(folder.file("token"), "s3cret").unwrap();
    let command = command.replace("%d", folder.0.to_str().unwrap());
    let command = command.replace(":7717", ":0");
    let arguments: Vec<&str> = command.split(' ').skip(1).collect();
    let file = folder.file("fleet.db");
    let mut watch = Watch::start(&mut monitor(
        &[&arguments[..], &["--sqlite", &file]].concat(),
    ));
    let address = watch.address();
    let request = "POST /api/worker/register HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\
                   Content-Length: 2\r\n\r\n{}";
    assert_eq!(exchange(&address, request.as_bytes()).status, 401);
    assert_eq!(watch.end(), Some(0), "{}", watch.log());
    // There is no way to do without where a token is needed.
    ends(
        &[
            "watch",
            "--sqlite",
            &file,
            "--listen",
            "127.0.0.1:0",
            "--no-token",
        ],
        2,
    );
}

#[test]
fn with_few_descriptors_probes_are_answered_and_the_beacon_is_written() {
    let folder = Folder::new("descriptors");
    let (file, beacon) = (folder.file("fleet.db"), folder.file("beacon.json"));
    let mut command = Command::new("sh");
    command
        .args([
            "-c",
            "ulimit -n 64 && exec \"$0\" \"$@\"",
            env!("CARGO_BIN_EXE_heartbeat-monitor"),
        ])
        .args([
            "watch",
            "--sqlite",
            &file,
            "--interval",
            "1s",
            "--listen",
            "127.0.0.1:0",
        ])
        .args(["--beacon", &beacon])
        .env_remove("POSTGRES_URL")
        .env_remove("RUST_LOG")
        .env_remove("NOTIFY_SOCKET");
    let watch = Watch::start(&mut command);
    let address = watch.address();
    let (mut idle, mut times) = (Vec::new(), Vec::new());
    let written = || fs::metadata(&beacon).ok().map(|file| file.ino());
    poll("the first beacon", || written().map(drop));
    // It is written every 10 s.
    for _ in 0..2 {
        let before = written();
        poll("another beacon", || {
            idle.extend((0..20).map(|_| text_http::connect(&address)));
            let begun = Instant::now();
            let answer = get(&address, "/livez");
            assert_eq!(answer.status, 200, "{answer:?}");
            times.push(begun.elapsed());
            (written() != before).then_some(())
        });
        idle.drain(..idle.len().saturating_sub(200));
    }
    // A busy machine may delay some.
    times.sort_unstable();
    let median = times[times.len() / 2];
    assert!(median < Duration::from_secs(1), "{times:?}");
    assert!(!watch.log().contains("os error 24"), "{}", watch.log());
}

// --- PostgreSQL --------------------------------------------------------------------------------------

#[test]
fn every_command_works_on_postgresql() {
    let schema = postgres::schema("monitor");
    let ask = |arguments: &[&str]| {
        let arguments = [arguments, &["--schema", &schema]].concat();
        let output = monitor(&arguments)
            .env("POSTGRES_URL", postgres::url())
            .output()
            .unwrap();
        assert!(!stderr(&output).contains(postgres::PASSWORD), "{output:?}");
        // Its log is not part of its output.
        let logged = output.status.success();
        let errors = if logged {
            String::new()
        } else {
            stderr(&output)
        };
        (output.status.code(), stdout(&output) + &errors)
    };
    let (status, said) = ask(&["status"]);
    assert_eq!(status, Some(3), "the tables are missing: {said}");
    let (status, sql) = ask(&["migrate", "--print"]);
    assert_eq!(status, Some(0));
    assert!(
        sql.contains(&schema) && sql.contains("CREATE TABLE"),
        "{sql}"
    );
    let (status, sql) = ask(&["migrate", "--grants", "app"]);
    assert_eq!(status, Some(0));
    let grant = format!("GRANT USAGE ON SCHEMA \"{schema}\" TO \"app\";");
    assert!(sql.starts_with(&grant), "{sql}");
    assert_eq!(
        ask(&["migrate"]),
        (Some(0), "the tables are up to date\n".to_owned())
    );
    let store = PostgresOptions::new()
        .schema(schema.as_str())
        .connect(postgres::url())
        .unwrap();
    fill(&store);
    let (status, table) = ask(&["status"]);
    assert_eq!(status, Some(0), "{table}");
    assert!(
        table.ends_with("3 workers: 1 processing, 1 stale, 1 stopped\n"),
        "{table}"
    );
    assert_eq!(ask(&["check"]).0, Some(1));
    let (_, tried) = ask(&["sweep", "--dry-run"]);
    assert!(tried.ends_with("1 would be marked offline\n"), "{tried}");
    let (_, swept) = ask(&["sweep"]);
    assert!(swept.ends_with("1 marked offline\n"), "{swept}");
    assert_eq!(ask(&["purge", "--older-than", "1ns"]).1, "2 deleted\n");
}
