//! The health endpoint, over real sockets.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::support::coordinator::{Reply, exchange, poll, request};
use crate::support::{SECOND, World};
use proptest::prelude::*;
use serde_json::Value;
use worker_heartbeat::serve::RunningHealthEndpoint;
use worker_heartbeat::{Activity, HealthEndpoint, Registry, Shutdown, State, WorkerHeartbeat};

pub(crate) struct Site {
    pub(crate) world: World,
    server: RunningHealthEndpoint,
}

impl Site {
    fn new() -> Self {
        Self::with(|endpoint| endpoint)
    }

    pub(crate) fn with(configure: impl FnOnce(HealthEndpoint) -> HealthEndpoint) -> Self {
        let world = World::new();
        let endpoint = configure(HealthEndpoint::new(&world.registry));
        let server = endpoint.serve("127.0.0.1:0").unwrap();
        Self { world, server }
    }

    /// A fresh answer, read after the last action of the test.
    pub(crate) fn get(&self, path: &str) -> Reply {
        // The endpoint caches a reading for 50 ms of real time.
        std::thread::sleep(Duration::from_millis(60));
        get(self.server.local_addr(), path)
    }

    pub(crate) fn status(&self, path: &str) -> u16 {
        self.get(path).status
    }
}

fn get(address: SocketAddr, path: &str) -> Reply {
    exchange(address, &request("GET", path, "", b"")).expect(path)
}

#[test]
fn the_process_and_each_worker_report_whether_they_are_alive_and_why_not() {
    let site = Site::new();
    let path = "/v1/worker/health";
    let reply = site.get(path);
    assert_eq!(reply.status, 503);
    assert_eq!(reply.json()["reason"], "there are no workers");
    assert_eq!(reply.json()["last_heartbeat"], 0.0);

    let hb = site.world.worker("poller").id("a").start().unwrap();
    let reply = site.get(path);
    assert_eq!(
        (reply.status, reply.json()["alive"].as_bool()),
        (200, Some(true))
    );
    assert_eq!(reply.json()["state"], "starting");
    hb.update_task("run-1", "Researching", Activity::Processing);
    let reply = site.get(path);
    assert!(reply.head.contains("cache-control: no-store"), "{reply:?}");
    let worker = reply.json();
    assert_eq!(worker["state"], "processing");
    let now = site.world.registry.clock().wall();
    let now = now
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap()
        .as_secs_f64();
    assert!(
        (worker["last_heartbeat"].as_f64().unwrap() - now).abs() < 2.0,
        "{worker}"
    );

    hb.fail("no space left on device");
    let reply = site.get(path);
    assert_eq!(reply.status, 503);
    let reason = reply.json()["reason"].as_str().unwrap().to_owned();
    assert!(
        reason.contains("failed: no space left on device"),
        "{reason}"
    );

    let one = site.get("/v1/worker/health?worker=a");
    assert_eq!(one.status, 503);
    let one = one.json();
    assert_eq!(
        (&one["alive"], &one["state"]),
        (&false.into(), &"dead".into())
    );
    assert!(
        one["reason"].as_str().unwrap().contains("no space left"),
        "{one}"
    );
    assert_eq!(one["run_id"], "run-1");
    let other = site.world.worker("poller").id("b c").start().unwrap();
    other.beat();
    assert_eq!(site.status("/v1/worker/health?worker=b%20c"), 200);
    assert_eq!(site.status("/v1/worker/health?worker=unknown"), 404);
}

#[test]
fn without_workers_no_pacemaker_is_needed_and_the_process_is_live() {
    let site = Site::new();
    assert_eq!(site.get("/livez").body, "ok");
    let hb = site.world.worker("poller").start().unwrap();
    hb.beat();
    drop(hb);
    site.world.seconds(3600);
    assert_eq!(site.get("/livez").body, "ok");
    assert_eq!(site.get("/readyz").body, "ok");
}

#[test]
fn a_worker_that_hangs_fails_the_liveness_probe() {
    let site = Site::new();
    let hb = site
        .world
        .worker("poller")
        .id("a")
        .stall_after(10 * SECOND)
        .start()
        .unwrap();
    hb.update_task("run-1", "", Activity::Processing);
    let seen_at = line!() - 1;
    assert_eq!(site.get("/livez").body, "ok");
    site.world.seconds(11);
    let reply = site.get("/livez");
    assert_eq!(reply.status, 503);
    assert_eq!(
        reply.body,
        format!(
            "[+]pacemaker ok\n[-]workers failed: 1 stalled; a: stalled: no progress for 11 s, 10 s \
             allowed; cause unknown, last seen at {}:{seen_at}, during run-1\nfailed\n",
            file!()
        )
    );
    assert_eq!(site.status("/livez?exclude=workers"), 200);
    hb.beat();
    assert_eq!(site.status("/livez"), 200);
    assert_eq!(
        site.get("/livez?verbose").body,
        "[+]pacemaker ok\n[+]workers ok\nok\n"
    );
}

#[test]
fn a_process_is_started_once_all_that_are_expected_have_started() {
    let site = Site::new();
    assert_eq!(site.status("/startupz"), 200, "no worker is expected");
    site.world.registry.expect_workers("poller", 2);
    assert_eq!(site.status("/startupz"), 503);
    let workers = ["a", "b"].map(|id| site.world.worker("poller").id(id).start().unwrap());
    let reply = site.get("/readyz?verbose");
    assert_eq!(reply.status, 503);
    assert!(
        reply.body.contains("[-]started failed: 2 starting"),
        "{reply:?}"
    );
    workers.iter().for_each(|hb| hb.beat());
    for path in ["/startupz", "/readyz", "/livez"] {
        assert_eq!(site.status(path), 200, "{path}");
    }
}

#[test]
fn a_process_that_drains_is_live_and_not_ready() {
    let world = World::new();
    // It must not end this process, in which other tests run.
    let shutdown = Shutdown::builder()
        .registry(&world.registry)
        .timeout(Duration::from_secs(3_600))
        .force_exit(false)
        .install()
        .unwrap();
    let broken = Arc::new(AtomicBool::new(true));
    let seen = Arc::clone(&broken);
    let endpoint = HealthEndpoint::new(&world.registry)
        .shutdown(&shutdown)
        .check("database", move || {
            if seen.load(Ordering::SeqCst) {
                Err("connection refused".to_owned())
            } else {
                Ok(())
            }
        })
        .check("bomb", || panic!("on purpose"));
    let server = endpoint.serve("127.0.0.1:0").unwrap();
    let site = Site { world, server };
    let hb = site.world.worker("poller").start().unwrap();
    hb.update_task("run-1", "", Activity::Processing);
    let body = site.get("/readyz").body;
    assert!(
        body.contains("[-]database failed: connection refused\n"),
        "{body}"
    );
    assert!(body.contains("[-]bomb failed: it panicked\n"), "{body}");
    broken.store(false, Ordering::SeqCst);
    assert_eq!(site.status("/readyz?exclude=bomb"), 200);
    shutdown.trigger();
    assert_eq!(site.status("/livez"), 200);
    let reply = site.get("/readyz?exclude=bomb");
    assert_eq!(reply.status, 503);
    assert!(
        reply
            .body
            .contains("[-]shutdown failed: it is shutting down"),
        "{reply:?}"
    );
}

#[test]
fn reasons_are_hidden_from_other_hosts() {
    let site = Site::with(|endpoint| {
        endpoint
            .show_reasons(false)
            .check("db", || Err("s3cret".into()))
    });
    let hb = site
        .world
        .worker("poller")
        .id("a")
        .metadata("key", "s3cret")
        .start()
        .unwrap();
    hb.update_task("s3cret", "s3cret", Activity::Processing);
    hb.fail("s3cret");
    for path in [
        "/v1/worker/health",
        "/v1/worker/health?worker=a",
        "/v1/workers",
        "/livez?verbose",
        "/readyz?verbose",
    ] {
        let reply = site.get(path);
        assert!(!reply.body.contains("s3cret"), "{path}: {reply:?}");
        assert!(!reply.body.is_empty());
    }
    assert_eq!(
        site.get("/v1/worker/health?worker=a").json()["state"],
        "dead"
    );
}

#[test]
fn a_request_to_loopback_with_another_host_name_is_untrusted() {
    let site = Site::new();
    let hb = site.world.worker("poller").id("a").start().unwrap();
    hb.fail("s3cret");
    let ask = |path: &str, host: &str| {
        let request = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        exchange(site.server.local_addr(), request.as_bytes()).unwrap()
    };
    for path in [
        "/v1/worker/health",
        "/v1/worker/health?worker=a",
        "/v1/workers",
        "/livez",
    ] {
        let strange = ask(path, "rebound.example");
        assert!(!strange.body.contains("s3cret"), "{path}: {strange:?}");
        let own = ask(path, "127.0.0.1:80");
        assert_eq!(own.status, strange.status);
        assert!(own.body.contains("s3cret"), "{path}: {own:?}");
    }
}

#[test]
fn all_workers_are_listed_in_pages() {
    let site = Site::new();
    let start = |n| {
        site.world
            .worker("poller")
            .id(format!("w{n:03}"))
            .start()
            .unwrap()
    };
    let workers: Vec<_> = (0..250).map(start).collect();
    workers.iter().for_each(|hb| hb.beat());
    workers[7].fail("no luck");
    let first = site.get("/v1/workers").json();
    assert_eq!(first["total_active_workers"], 249);
    assert_eq!(first["total_dead_workers"], 1);
    assert_eq!(first["dead_workers"][0]["id"], "w007");
    assert_eq!(first["stats_by_type"]["poller"]["total"], 250);
    let ids = |page: &Value| -> Vec<String> {
        let page = page["workers"].as_array().unwrap().iter();
        page.map(|worker| worker["id"].as_str().unwrap().to_owned())
            .collect()
    };
    let mut seen = ids(&first);
    assert_eq!(seen.len(), 100);
    while let Some(last) = seen.last().cloned() {
        let page = ids(&site
            .get(&format!("/v1/workers?after={last}&limit=90"))
            .json());
        if page.is_empty() {
            break;
        }
        seen.extend(page);
    }
    assert_eq!(seen.len(), 250);
    assert!(seen.is_sorted());
    for limit in ["0", "1001", "-1", "x", ""] {
        let reply = site.get(&format!("/v1/workers?limit={limit}"));
        assert_eq!(
            (reply.status, reply.error().as_str()),
            (400, "invalid limit; allowed: 1 to 1000")
        );
    }
}

#[test]
fn the_endpoint_answers_while_workers_hold_their_locks_and_the_pacemaker_is_blocked() {
    let site = Site::new();
    let hb = site.world.worker("poller").id("a").start().unwrap();
    hb.beat();
    assert_eq!(site.status("/livez"), 200);
    // The pacemaker does not tick: the clock jumped, and only a reader that waits in vain detects
    // it.
    site.world.time.suspend(3_600 * SECOND);
    let begun = Instant::now();
    let reply = site.get("/livez");
    assert!(begun.elapsed() < 20 * SECOND, "{reply:?}");
    assert_eq!(
        reply.status, 200,
        "the reader woke the pacemaker: {reply:?}"
    );
}

/// A log that blocks, on the pacemaker's thread, when it logs this worker's conviction.
struct HeldUp(Mutex<()>);

const HELD_UP: &str = "holds-up-the-log";
static LOG: HeldUp = HeldUp(Mutex::new(()));

impl log::Log for HeldUp {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }
    fn log(&self, record: &log::Record<'_>) {
        if record.args().to_string().contains(HELD_UP) {
            drop(self.0.lock());
        }
    }
    fn flush(&self) {}
}

#[test]
fn a_blocked_pacemaker_is_waited_for_once_and_not_for_each_worker() {
    let gate = LOG.0.lock().unwrap();
    log::set_logger(&LOG).unwrap();
    log::set_max_level(log::LevelFilter::Warn);
    let registry = Registry::new();
    let workers: Vec<_> = (0..200)
        .map(|_| WorkerHeartbeat::builder("poller").registry(&registry))
        .map(|builder| builder.start().unwrap())
        .collect();
    workers.iter().for_each(WorkerHeartbeat::beat);
    let hung = WorkerHeartbeat::builder("poller")
        .id(HELD_UP)
        .stall_after(Duration::from_millis(20))
        .registry(&registry)
        .start()
        .unwrap();
    hung.beat();
    let unobserved = |hb: &WorkerHeartbeat| hb.health().state() == State::Unobserved;
    poll("the pacemaker to be held up", || {
        unobserved(&workers[0]).then_some(())
    });
    let server = HealthEndpoint::new(&registry).serve("127.0.0.1:0").unwrap();
    for path in [
        "/livez",
        "/v1/worker/health",
        "/v1/workers?limit=1000",
        "/metrics",
    ] {
        let begun = Instant::now();
        let reply = get(server.local_addr(), path);
        // A tenth of a second for each of two hundred workers would be twenty seconds.
        assert!(
            begun.elapsed() < 5 * SECOND,
            "{path}: {:?}",
            begun.elapsed()
        );
        let fails = path == "/livez" || path == "/v1/worker/health";
        assert_eq!(reply.status == 503, fails, "{path}: {reply:?}");
    }
    drop(gate);
}

#[test]
fn a_check_that_hangs_fails_readiness_and_nothing_else() {
    let (open, gate) = std::sync::mpsc::channel::<()>();
    let gate = Mutex::new(gate);
    let site = Site::with(|endpoint| {
        endpoint.check("db", move || {
            let _ = gate.lock().unwrap().recv();
            Ok(())
        })
    });
    std::thread::scope(|scope| {
        let address = site.server.local_addr();
        let ready = scope.spawn(move || get(address, "/readyz"));
        let begun = Instant::now();
        assert_eq!(site.status("/livez"), 200);
        assert!(begun.elapsed() < 4 * SECOND, "{:?}", begun.elapsed());
        let ready = ready.join().unwrap();
        assert_eq!(ready.status, 503);
        assert!(
            ready.body.contains("[-]checks failed: no answer in 5s"),
            "{ready:?}"
        );
    });
    drop(open);
}

#[test]
fn a_process_without_a_live_worker_is_not_live() {
    let site = Site::new();
    let alive = || site.get("/v1/worker/health").json()["alive"].clone();
    assert_eq!(alive(), false, "there are no workers");
    let hb = site.world.worker("poller").id("a").start().unwrap();
    assert_eq!(alive(), true, "it is starting");
    hb.beat();
    assert_eq!(alive(), true);
    drop(hb);
    assert_eq!(alive(), false, "all are stopped");
    site.world.registry.purge(Duration::ZERO);
    assert_eq!(alive(), false);
}

#[test]
fn a_process_in_which_a_thousand_workers_hang_answers_in_bounded_size() {
    let site = Site::new();
    let workers: Vec<_> = (0..1_000)
        .map(|n| {
            let builder = site.world.worker("task").id(format!("w{n:04}"));
            builder.stall_after(SECOND).start().unwrap()
        })
        .collect();
    workers.iter().for_each(|hb| hb.beat());
    site.world.seconds(3);
    let page = site.get("/v1/workers?limit=1");
    let totals = page.json();
    assert_eq!(totals["stalled_workers"].as_array().unwrap().len(), 100);
    assert_eq!(totals["stats_by_type"]["task"]["states"]["stalled"], 1_000);
    assert_eq!(totals["workers"].as_array().unwrap().len(), 1);
    let health = site.get("/v1/worker/health").body;
    assert!(health.contains("w0004: stalled") && health.contains("and 995 more"));
    assert!(health.len() < 2_000, "{health}");
}

#[cfg(all(feature = "stacks", target_os = "linux", target_arch = "x86_64"))]
#[test]
fn the_call_stack_of_a_stalled_worker_is_shown_with_its_reason() {
    let sites = [true, false].map(|shown| Site::with(|endpoint| endpoint.show_reasons(shown)));
    for (site, shown) in sites.iter().zip([true, false]) {
        // Its clock is not the real one.
        site.world.registry.capture_stacks(true);
        let builder = site.world.worker("shop").id("a");
        let hb = builder.stall_after(SECOND).start().unwrap();
        let (release, wait) = std::sync::mpsc::channel::<()>();
        let (reported, ready) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            hb.update_task("order-7", "reserving", Activity::Processing);
            reported.send(()).unwrap();
            wait.recv().ok();
            drop(hb);
        });
        ready.recv().unwrap();
        // Until the thread is blocked, and its stack was read.
        let worker = poll("its call stack", || {
            site.world.seconds(2);
            let snapshot = site.world.registry.get("a").unwrap().snapshot();
            let stack = snapshot
                .stack
                .as_ref()
                .and_then(|stack| stack.call_stack())?;
            stack
                .frames
                .len()
                .gt(&3)
                .then(|| site.get("/v1/workers").json()["workers"][0].clone())
        });
        let stack = worker["stack"].as_str();
        assert_eq!(stack.is_some(), shown, "{worker}");
        if let Some(stack) = stack {
            assert!(stack.lines().any(|line| line.starts_with('>')), "{stack}");
            assert!(
                worker["reason"].as_str().unwrap().contains(", at "),
                "{worker}"
            );
        }
        drop(release);
        thread.join().unwrap();
    }
}

#[test]
fn types_named_like_hidden_fields_are_counted_for_untrusted_callers_too() {
    let site = Site::with(|endpoint| endpoint.show_reasons(false));
    let hb = site.world.worker("reason").group("task").start().unwrap();
    hb.beat();
    let totals = site.get("/v1/workers").json();
    assert_eq!(totals["stats_by_type"]["reason"]["active"], 1);
    assert_eq!(totals["groups"]["task"]["state"], "online");
}

#[test]
fn unknown_paths_and_methods_are_refused() {
    let site = Site::new();
    assert_eq!(site.status("/nothing"), 404);
    let address = site.server.local_addr();
    let posted = exchange(address, &request("POST", "/livez", "", b"")).unwrap();
    assert_eq!(posted.status, 405);
    drop(site);
    assert!(
        std::net::TcpStream::connect(address).is_err(),
        "the port is free"
    );
}

#[test]
fn no_query_makes_it_panic() {
    let site = Site::new();
    let hb = site.world.worker("poller").id("a").start().unwrap();
    hb.beat();
    let address = site.server.local_addr();
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
        cases: 500,
        failure_persistence: None,
        ..ProptestConfig::default()
    });
    let path = prop_oneof![
        Just("/v1/workers"),
        Just("/v1/worker/health"),
        Just("/livez"),
        Just("/readyz"),
        Just("/startupz")
    ];
    let query =
        "(worker|after|limit|exclude|verbose|[!-~]{1,5})=[!-\"$-~]{0,40}(&[!-\"$-~]{0,20}){0,3}";
    runner
        .run(&(path, query), |(path, query)| {
            let reply = get(address, &format!("{path}?{query}"));
            prop_assert!(
                matches!(reply.status, 200 | 400 | 404 | 503),
                "{query}: {reply:?}"
            );
            Ok(())
        })
        .unwrap();
}

#[test]
fn what_an_application_reports_forges_no_line_of_a_probe() {
    let site = Site::with(|endpoint| {
        let report = || Err("x\n[+]all ok\u{202e}".to_owned());
        endpoint.check("a\n[+]b", report)
    });
    let body = site.get("/readyz?verbose").body;
    assert!(
        body.contains("[-]a\\n[+]b failed: x\\n[+]all ok\\u{202e}\n"),
        "{body}"
    );
}
