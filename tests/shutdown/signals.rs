//! A shutdown by signals, by triggers and by the end of workers.

use std::time::{Duration, Instant};

use crate::programs::service::STALE_AFTER;
use crate::support::process::{Ended, PATIENCE, Process, Stream};
use nix::sys::signal::Signal;

const SIGNALS: [Signal; 4] = [
    Signal::SIGINT,
    Signal::SIGTERM,
    Signal::SIGQUIT,
    Signal::SIGHUP,
];
/// A signal that is repeated within this time is a duplicate.
const DUPLICATE: Duration = Duration::from_secs(1);
/// How long a forced exit may take on a busy machine. The timeouts that it must not wait for are
/// much longer.
const SOON: Duration = Duration::from_secs(10);

fn service(settings: &str) -> Process {
    Process::start(&format!("service {settings}"))
}

/// Runs a scene that checks itself.
fn play(scene: &str) -> Ended {
    let ended = Process::start(scene).wait();
    ended.assert_code(0);
    ended
}

// --- signals ------------------------------------------------------------------------------------

#[test]
fn a_signal_stops_idle_workers_at_once_and_lets_tasks_finish() {
    std::thread::scope(|scope| {
        for signal in SIGNALS {
            scope.spawn(move || stops_in_good_order(signal));
        }
    });
}

fn stops_in_good_order(signal: Signal) {
    let name = signal.as_str();
    let mut process = service("log=print workers=idle-1,draining-1");
    assert_eq!(
        process.ask("shutdown"),
        "requested false, signal None, received false"
    );
    assert_eq!(process.ask("health idle-1"), "idle");
    assert_eq!(process.ask("health draining-1"), "processing");

    let sent = process.signal(signal);
    let stopped = process.expect(&format!("@event worker idle-1: stopped: by {name}"));
    let latency = stopped.at - sent;
    assert!(latency < SOON, "{latency:?}");

    let drained_since = Instant::now();
    while drained_since.elapsed() < 3 * STALE_AFTER {
        let health = process.ask("health draining-1");
        // On a very busy machine the pacemaker may not run for a while; the worker is not to blame.
        let excused = health.starts_with("unobserved");
        assert!(
            health == "stopping: finishing its task" || excused,
            "{health}"
        );
        // Often enough, compared with the time after which the worker would be stale.
        std::thread::sleep(STALE_AFTER / 10);
    }
    assert!(
        process
            .ask("health idle-1")
            .starts_with(&format!("stopped: by {name}"))
    );
    let answer = process.ask("shutdown");
    assert!(
        answer.starts_with("requested true, signal Some("),
        "{answer}"
    );
    assert!(answer.ends_with(", received true"), "{answer}");
    assert_eq!(process.ask("living"), "1");

    process.send_line("finish");
    let finished = Instant::now();
    let ended = process.wait();
    ended.assert_code(0);
    let said = &ended.transcript;
    said.assert_order(&[
        "@cleanup three, 0 living",
        &format!("@ended draining-1: stopped: by {name}"),
        "@cleanup two, 0 living",
        "@cleanup one, 0 living",
    ]);
    assert!(said.has("@event worker draining-1: stopping"));
    assert!(said.has(&format!("@begun {name}, requested true")));
    let logged = said.all(&format!("@log INFO shutdown begun by {name}"));
    assert_eq!(logged.len(), 1, "{said}");
    println!(
        "{name}: idle worker stopped after {latency:.1?}, process ended {:.1?} after its last task",
        ended.at - finished
    );
}

#[test]
fn signals_within_a_second_are_one() {
    let mut process = service("workers=draining-1");
    process.signal(Signal::SIGTERM);
    process.expect("@event worker draining-1: stopping");
    // As service managers do: to the process, to its group, and then the terminal closes.
    for signal in [Signal::SIGTERM, Signal::SIGTERM, Signal::SIGHUP] {
        process.signal(signal);
    }
    // A signal counts when it is received, not later.
    std::thread::sleep(DUPLICATE + DUPLICATE / 5);
    let health = process.ask("health draining-1");
    assert_eq!(health, "stopping: finishing its task");
    assert!(process.ask("shutdown").contains("Some(Terminate)"));
    process.send_line("finish");
    let ended = process.wait();
    ended.assert_code(0);
    let said = &ended.transcript;
    said.assert_order(&["@cleanup three", "@cleanup two", "@cleanup one"]);
    assert_eq!(said.all("@begun").len(), 1, "{said}");
}

/// Sends a signal, and again after more than a second.
fn signal_twice(process: &mut Process, first: Signal, second: Signal) -> Instant {
    process.signal(first);
    process.expect("@begun");
    // The rule allows a second.
    std::thread::sleep(DUPLICATE + DUPLICATE / 5);
    process.signal(second)
}

#[test]
fn a_signal_that_comes_again_ends_the_process() {
    for (settings, signal, to) in [
        ("workers=hung-1,idle-1", Signal::SIGTERM, Stream::Stderr),
        ("workers=hung-1 log=print", Signal::SIGINT, Stream::Stdout),
    ] {
        let mut process = service(settings);
        let sent = signal_twice(&mut process, signal, signal);
        let ended = process.wait();
        ended.assert_code(1);
        let latency = ended.at - sent;
        assert!(latency < SOON, "{latency:?}");
        let words = format!(
            "exit with status 1: {signal} came again; \
             still at work: hung-1 (stopping: finishing its task, during run-2 (hanging))"
        );
        let said = &ended.transcript;
        let lines = said.all(&words);
        assert_eq!(lines.len(), 1, "{words}; {said}");
        assert_eq!(lines[0].to, to, "{said}");
        ended.assert_not("@cleanup");
        println!("{settings}: forced exit {latency:.1?} after the second signal");
    }
}

/// Longer than a duplicate may take, and then time for a forced exit, which would take some
/// milliseconds. The service continues.
#[track_caller]
fn assert_continues(process: &mut Process) {
    let begun = Instant::now();
    while begun.elapsed() < DUPLICATE + DUPLICATE / 2 {
        let health = process.ask("health draining-1");
        assert!(!health.starts_with("stopped"), "{health}");
    }
}

#[test]
fn another_signal_ends_the_process_too_and_is_not_reported_as_repeated() {
    let mut process = service("workers=hung-1");
    signal_twice(&mut process, Signal::SIGTERM, Signal::SIGINT);
    let ended = process.wait();
    ended.assert_code(1);
    let said = &ended.transcript;
    assert!(said.has("SIGINT came after SIGTERM"), "{said}");
}

/// The application has begun the shutdown itself; the service manager's only signal comes later.
#[test]
fn the_first_signal_after_a_trigger_changes_nothing() {
    let mut process = service("workers=draining-1");
    process.send_line("trigger");
    process.expect("@begun");
    assert_continues(&mut process);
    process.signal(Signal::SIGTERM);
    assert_continues(&mut process);
    process.send_line("finish");
    process.wait().assert_code(0);

    let mut process = service("workers=draining-1");
    process.send_line("trigger");
    signal_twice(&mut process, Signal::SIGTERM, Signal::SIGTERM);
    let ended = process.wait();
    ended.assert_code(1);
    let said = &ended.transcript;
    assert!(said.has("SIGTERM came again"), "{said}");
}

#[test]
fn without_force_a_signal_that_comes_again_changes_nothing() {
    let mut process = service("workers=draining-1 force=no");
    let sent = signal_twice(&mut process, Signal::SIGTERM, Signal::SIGTERM);
    // Time for a forced exit, which would take some milliseconds.
    while sent.elapsed() < DUPLICATE / 2 {
        let health = process.ask("health draining-1");
        assert!(!health.starts_with("stopped"), "{health}");
    }
    process.send_line("finish");
    process.wait().assert_code(0);
}

#[test]
fn without_a_shutdown_signals_have_their_default_effect() {
    for signal in SIGNALS {
        let process = Process::start("no-shutdown");
        process.signal(signal);
        process.wait().assert_killed_by(signal);
    }
}

#[test]
fn signals_that_were_not_selected_have_their_default_effect() {
    let process = Process::start("user-signal-only");
    process.signal(Signal::SIGTERM);
    process.wait().assert_killed_by(Signal::SIGTERM);

    let mut process = Process::start("user-signal-only");
    process.signal(Signal::SIGUSR1);
    process.expect("@begun SIGUSR1");
    process.wait().assert_code(0);
}

#[test]
fn an_ignored_hangup_stays_ignored() {
    let mut process = Process::start_after(r#"trap "" HUP"#, "inherited-service workers=idle-1");
    process.signal(Signal::SIGHUP);
    // An ignored signal is discarded before `kill` returns.
    assert_eq!(
        process.ask("shutdown"),
        "requested false, signal None, received false"
    );
    assert_eq!(process.ask("health idle-1"), "idle");
    process.signal(Signal::SIGTERM);
    let ended = process.wait();
    ended.assert_code(0);
    let said = &ended.transcript;
    assert!(said.has("@ended idle-1: stopped: by SIGTERM"), "{said}");
}

// --- the timeout --------------------------------------------------------------------------------

/// Sends a signal to a service that will not end by itself within its timeout of a second.
fn overruns(settings: &str) -> Ended {
    let timeout = Duration::from_secs(1);
    let process = service(&format!("timeout=1000 {settings}"));
    let sent = process.signal(Signal::SIGTERM);
    let ended = process.wait();
    ended.assert_code(1);
    let took = ended.at - sent;
    assert!(took >= timeout, "{took:?}; {}", ended.transcript);
    assert!(took < timeout + SOON, "{took:?}; {}", ended.transcript);
    println!("{settings}: ended {:.1?} after its timeout", took - timeout);
    ended
}

#[test]
fn a_hung_worker_is_named_when_the_time_is_over() {
    let words = "exit with status 1: the shutdown took too long; \
                 still at work: hung-1 (stopping: finishing its task, during run-2 (hanging))";
    let ended = overruns("workers=idle-1,hung-1");
    let said = &ended.transcript;
    let line = said.all(&format!("worker-heartbeat: {words}"));
    assert_eq!(line.len(), 1, "{said}");
    assert_eq!(line[0].to, Stream::Stderr);
    assert!(said.has("@event worker idle-1: stopped: by SIGTERM"));
    ended.assert_not("@cleanup");

    let ended = overruns("workers=idle-1,hung-1 log=print");
    let said = &ended.transcript;
    assert_eq!(said.all(&format!("@log ERROR {words}")).len(), 1, "{said}");
    assert!(!said.has_errors(), "{said}");
    ended.assert_not("@cleanup");
}

#[test]
fn all_hung_workers_are_named() {
    let ended = overruns("workers=hung-1,hung-2,idle-1,hung-3");
    let said = &ended.transcript;
    let line = said.all("still at work: ")[0];
    for name in ["hung-1 (", "hung-2 (", "hung-3 ("] {
        assert!(line.text.contains(name), "{said}");
    }
    assert!(!line.text.contains("idle-1"), "{said}");
}

#[test]
fn without_force_the_report_names_hung_workers_at_the_timeout() {
    let ended = overruns("workers=idle-1,hung-1 force=no");
    let said = &ended.transcript;
    assert!(
        said.has("@report: hung-1 hung: stopping: finishing its task"),
        "{said}"
    );
    assert!(!said.has("@report: idle-1"), "{said}");
    ended.assert_not("@cleanup");
    ended.assert_not("exit with status 1");
}

#[test]
fn without_a_call_of_wait_the_process_ends_at_the_timeout() {
    let ended = overruns("workers=idle-1 wait=no");
    let said = &ended.transcript;
    assert!(
        said.has("all workers ended, but wait() was not called"),
        "{said}"
    );
    ended.assert_not("@cleanup");
}

// --- cleanups -----------------------------------------------------------------------------------

#[test]
fn a_hung_cleanup_is_named_when_the_time_is_over() {
    let ended = overruns("workers=idle-1 cleanup=hung");
    let said = &ended.transcript;
    said.assert_order(&[
        "@cleanup three",
        "@cleanup two",
        "the shutdown took too long; cleanup \"two\" is still running",
    ]);
    ended.assert_not("@cleanup one");
}

#[test]
fn a_signal_during_a_hung_cleanup_ends_the_process() {
    let mut process = service("workers=idle-1 cleanup=hung");
    let sent = signal_twice(&mut process, Signal::SIGTERM, Signal::SIGTERM);
    let ended = process.wait();
    ended.assert_code(1);
    let latency = ended.at - sent;
    assert!(latency < SOON, "{latency:?}");
    let words = "SIGTERM came again; cleanup \"two\" is still running";
    assert!(ended.transcript.has(words), "{}", ended.transcript);
    println!("forced exit {latency:.1?} after the second signal");
}

#[test]
fn a_cleanup_that_panics_does_not_stop_the_others() {
    for (kind, message) in [
        ("text", "the disk is full"),
        ("bomb", "a value that is not a text"),
    ] {
        let process = service(&format!("workers=idle-1 log=print cleanup={kind}"));
        process.signal(Signal::SIGTERM);
        let ended = process.wait();
        ended.assert_code(1);
        ended.transcript.assert_order(&[
            "@cleanup three",
            "@cleanup two",
            &format!("@log ERROR cleanup \"two\" panicked: {message}"),
            "@cleanup one",
            "@report: cleanup three: None",
            &format!("@report: cleanup two: Some({message:?})"),
            "@report: cleanup one: None",
        ]);
    }
}

// --- logs ---------------------------------------------------------------------------------------

#[test]
fn a_log_that_blocks_does_not_keep_the_process() {
    overruns("workers=hung-1 log=block");
    let ended = overruns("workers=hung-1 log=block-flush");
    let said = &ended.transcript;
    assert!(said.has("@log ERROR exit with status 1"), "{said}");

    // Only the log failed here. Whether the shutdown counts as clean does not matter.
    let timeout = Duration::from_secs(1);
    let process = service("timeout=1000 workers=idle-1 log=block");
    let sent = process.signal(Signal::SIGTERM);
    let ended = process.wait();
    let (status, took) = (ended.status, ended.at - sent);
    assert!(matches!(status.code(), Some(0 | 1)), "{status}");
    assert!(took < timeout + SOON, "{took:?}; {}", ended.transcript);
    println!("workers=idle-1 log=block: ended after {took:.1?} with {status}");
}

#[test]
fn a_log_that_blocks_leaves_time_for_the_cleanups() {
    let process = service("timeout=4000 workers=idle-1 log=block cleanup=slow");
    process.signal(Signal::SIGTERM);
    let ended = process.wait();
    ended.assert_code(0);
    let order = ["@cleanup three", "@cleanup two", "@cleanup one"];
    ended.transcript.assert_order(&order);
}

#[test]
fn a_log_that_panics_does_not_keep_the_process() {
    let process = service("workers=idle-1 log=panic");
    process.signal(Signal::SIGTERM);
    let ended = process.wait();
    ended.assert_code(0);
    let order = ["@cleanup three", "@cleanup two", "@cleanup one"];
    ended.transcript.assert_order(&order);

    overruns("workers=hung-1 log=panic");
}

/// The process has nothing to wait for except the log.
#[test]
fn what_ended_the_process_is_logged_however_fast_it_ends() {
    for workers in ["", "idle-1", "idle-1,idle-2"] {
        let process = service(&format!("log=slow workers={workers}"));
        process.signal(Signal::SIGTERM);
        let ended = process.wait();
        ended.assert_code(0);
        let said = &ended.transcript;
        assert!(said.has("@log INFO shutdown begun by SIGTERM"), "{said}");
        for name in workers.split(',').filter(|name| !name.is_empty()) {
            assert!(
                said.has(&format!("@log INFO worker {name}: stopped")),
                "{said}"
            );
        }
    }
}

#[test]
fn every_end_is_logged_before_the_process_ends() {
    let mut process = service("log=slow workers=draining-1,draining-2,draining-3");
    process.signal(Signal::SIGTERM);
    process.expect("@log INFO shutdown begun by SIGTERM");
    process.send_line("finish");
    let ended = process.wait();
    ended.assert_code(0);
    let said = &ended.transcript;
    for n in 1..=3 {
        let words = format!("@log INFO worker draining-{n}: stopped");
        assert!(said.has(&words), "{said}");
    }
}

#[test]
fn a_blocking_log_does_not_delay_requests_to_stop() {
    let mut process = service("log=block workers=draining-1,idle-1,draining-2,idle-2");
    process.signal(Signal::SIGTERM);
    process.expect("@begun SIGTERM");
    for (name, state) in [
        ("draining-1", "stopping"),
        ("idle-1", "stopped: by SIGTERM"),
        ("draining-2", "stopping"),
        ("idle-2", "stopped: by SIGTERM"),
    ] {
        process.ask_until(&format!("health {name}"), state);
    }
}

// --- scenes that check themselves ---------------------------------------------------------------

#[test]
fn a_shutdown_is_installed_once_and_with_a_timeout_that_is_allowed() {
    play("install");
}

#[test]
fn a_refused_installation_hooks_nothing() {
    for signal in SIGNALS {
        let process = Process::start("refused-install");
        process.signal(signal);
        process.wait().assert_killed_by(signal);
    }
}

#[test]
fn an_installation_that_failed_half_way_hooks_nothing() {
    for signal in SIGNALS {
        let process = Process::start_after("ulimit -n 40", "failed-install");
        process.signal(signal);
        process.wait().assert_killed_by(signal);
    }
}

#[test]
fn the_application_can_begin_it_and_two_can_wait_for_it() {
    play("trigger");
}

#[test]
fn the_loop_in_the_documentation_ends_in_good_order() {
    let process = Process::start("main-loop");
    process.signal(Signal::SIGTERM);
    process.wait().assert_code(0);
}

#[test]
fn workers_that_register_late_are_asked_to_stop_too() {
    play("latecomers");
}

#[test]
fn supervised_workers_are_not_started_again() {
    let started = Instant::now();
    play("supervised");
    assert!(
        started.elapsed() < PATIENCE,
        "the shutdown waited for a backoff"
    );
}

#[test]
fn an_error_during_the_shutdown_is_reported() {
    play("error-on-the-way-out");
}

#[test]
fn workers_of_several_registries_are_stopped() {
    play("registries");
}

#[test]
fn a_waker_that_blocks_does_not_keep_the_process() {
    let ended = Process::start("blocking-waker").wait();
    ended.assert_code(1);
    let words = "the shutdown took too long; still at work: stuck (";
    assert!(ended.transcript.has(words), "{}", ended.transcript);
}

#[test]
fn tasks_that_were_accepted_are_not_cut_short() {
    // The moment is short: on a busy machine one attempt may miss it.
    for _ in 0..3 {
        play("accepted-tasks");
    }
}

#[test]
fn a_waker_that_polls_at_once_is_not_blocked() {
    play("polling-waker");
}
