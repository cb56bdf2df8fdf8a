//! A shutdown in which something fails: cleanups, logs and stores that hang, a process that is
//! stopped, signals that are ignored or blocked, a thread that unwinds.

use std::thread;
use std::time::{Duration, Instant};

use crate::support::process::{Ended, Process, Stream};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const SECOND: Duration = Duration::from_secs(1);
/// How long an end may take on a busy machine. The times that it must not wait for are much longer.
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

// --- the timeout bounds everything --------------------------------------------------------------

/// Sends a signal to a service that does not end within its timeout of a second, but returns a
/// report.
fn reports_in_time(settings: &str) -> Ended {
    let process = service(&format!("timeout=1000 force=no {settings}"));
    let sent = process.signal(Signal::SIGTERM);
    let ended = process.wait();
    ended.assert_code(1);
    let took = ended.at - sent;
    assert!(took >= SECOND, "{took:?}; {}", ended.transcript);
    assert!(took < SECOND + SOON, "{took:?}; {}", ended.transcript);
    ended.assert_not("exit with status 1");
    ended
}

#[test]
fn without_force_the_report_names_the_cleanup_that_hung() {
    let ended = reports_in_time("workers=idle-1 cleanup=hung");
    let said = &ended.transcript;
    said.assert_order(&[
        "@cleanup three",
        "@cleanup two",
        "@state: cleanup three: completed",
        "@state: cleanup two: running",
        "@state: cleanup one: not run",
    ]);
    ended.assert_not("@cleanup one");
    let faults = "cleanup \"two\" is still running; cleanup \"one\" was not run";
    let words = format!("worker-heartbeat: the shutdown took too long; {faults}");
    let line = said.all(&words);
    assert_eq!(line.len(), 1, "{said}");
    assert_eq!(line[0].to, Stream::Stderr);
    assert!(said.has("@summary: shutdown by SIGTERM, not clean, took "));
    assert!(said.has(faults), "{said}");
}

#[test]
fn without_force_cleanups_that_hung_workers_prevent_are_named() {
    let ended = reports_in_time("workers=hung-1 log=print");
    let said = &ended.transcript;
    for name in ["one", "two", "three"] {
        assert!(said.has(&format!("@state: cleanup {name}: not run")));
    }
    let words = "@log ERROR the shutdown took too long; still at work: hung-1 (stopping: finishing \
                 its task, during run-2 (hanging)); cleanup \"three\" was not run; cleanup \"two\" was not run";
    assert_eq!(said.all(words).len(), 1, "{said}");
    assert!(!said.has_errors(), "{said}");
}

#[test]
fn without_force_a_log_that_blocks_does_not_keep_the_report() {
    for log in ["block", "block-flush", "block-locked"] {
        reports_in_time(&format!("workers=hung-1 log={log}"));
        reports_in_time(&format!("workers=idle-1 cleanup=hung log={log}"));
    }
}

#[test]
fn the_message_of_a_forced_exit_names_the_cleanups_that_were_not_run() {
    let process = service("timeout=500 workers=idle-1 cleanup=hung");
    process.signal(Signal::SIGTERM);
    let ended = process.wait();
    ended.assert_code(1);
    let words = "exit with status 1: the shutdown took too long; cleanup \"two\" is still running; \
                 cleanup \"one\" was not run";
    assert!(ended.transcript.has(words), "{}", ended.transcript);
}

#[test]
fn a_cleanup_that_panics_and_a_log_that_blocks_leave_the_other_cleanups() {
    for log in ["block", "block-locked", "filter", "off", "panic"] {
        let process = service(&format!("workers=idle-1 cleanup=text log={log}"));
        process.signal(Signal::SIGTERM);
        let ended = process.wait();
        ended.assert_code(1);
        let said = &ended.transcript;
        said.assert_order(&["@cleanup three", "@cleanup two", "@cleanup one", "@summary"]);
        let words = "worker-heartbeat: cleanup \"two\" panicked: the disk is full";
        assert_eq!(said.all(words).len(), 1, "{log}: {said}");
    }
}

#[test]
fn all_waiting_threads_get_the_same_report_of_a_hung_cleanup() {
    play("many-wait");
}

#[test]
fn a_cleanup_that_waits_for_the_shutdown_does_not_wait_for_itself() {
    play("waiting-cleanup");
}

#[test]
fn a_cleanup_that_waits_on_another_thread_is_named_when_the_time_is_over() {
    play("cleanup-that-waits-aside");
}

#[test]
fn a_cleanup_can_call_the_shutdown() {
    play("calling-cleanup");
}

#[test]
fn a_store_that_hangs_leaves_time_for_the_cleanups_and_for_other_stores() {
    play("hanging-store");
}

#[test]
fn a_log_that_blocks_does_not_keep_a_trigger() {
    play("blocking-trigger");
}

#[test]
fn a_wait_that_comes_late_runs_the_cleanups_and_ends() {
    play("late-wait");
    play("late-wait-for-ever");
}

#[test]
fn a_registry_that_is_given_twice_is_one() {
    let ended = Process::start("twice").wait();
    ended.assert_code(0);
}

// --- time that the process did not run ----------------------------------------------------------

/// Longer than the timeouts of the tests.
const STOPPED: Duration = Duration::from_secs(4);

#[test]
fn a_process_that_was_stopped_while_it_drained_ends_in_good_order() {
    for force in ["yes", "no"] {
        let mut process = service(&format!("timeout=3000 workers=draining-1 force={force}"));
        process.signal(Signal::SIGTERM);
        process.expect("@begun");
        process.stop_for(STOPPED);
        let health = process.ask("health draining-1");
        assert!(!health.starts_with("stopped"), "{health}");
        process.send_line("finish");
        let ended = process.wait();
        ended.assert_code(0);
        let order = ["@cleanup three", "@cleanup two", "@cleanup one"];
        ended.transcript.assert_order(&order);
        ended.assert_not("too long");
    }
}

#[test]
fn a_process_that_was_stopped_in_a_cleanup_ends_in_good_order() {
    let mut process = service("timeout=3000 workers=idle-1 cleanup=slow");
    process.signal(Signal::SIGTERM);
    process.expect("@cleanup two");
    process.stop_for(STOPPED);
    let ended = process.wait();
    ended.assert_code(0);
    assert!(ended.transcript.has("@cleanup one"));
}

/// A second signal was sent at once; the process receives it late.
#[test]
fn a_second_signal_to_a_process_that_is_stopped_is_a_duplicate() {
    let mut process = service("timeout=60000 workers=draining-1");
    process.signal(Signal::SIGTERM);
    process.expect("@begun");
    process.signal(Signal::SIGSTOP);
    process.signal(Signal::SIGTERM);
    process.stop_for(2 * SECOND);
    // Answers come after the signal, which is received at once.
    for _ in 0..20 {
        let health = process.ask("health draining-1");
        assert!(!health.starts_with("stopped"), "{health}");
        thread::sleep(Duration::from_millis(10));
    }
    process.send_line("finish");
    process.wait().assert_code(0);
}

/// Each observation charges some time: a process that is stopped again and again ends too.
#[test]
fn a_process_that_is_stopped_again_and_again_ends_later() {
    let process = service("timeout=1000 workers=hung-1");
    let sent = process.signal(Signal::SIGTERM);
    let stopped = Duration::from_millis(200);
    // A gap counts as a tenth of the timeout.
    let forgiven = stopped - SECOND / 10;
    let mut stops = 0;
    let deadline = Instant::now() + 4 * SOON;
    while process.is_running() {
        assert!(Instant::now() < deadline, "the process does not end");
        process.stop_for(stopped);
        stops += 1;
        // The time in which the process runs.
        thread::sleep(stopped / 4);
    }
    let ended = process.wait();
    ended.assert_code(1);
    let took = ended.at - sent;
    // During the last stop, the process may have ended already.
    let least = SECOND + forgiven * (stops - 1);
    assert!(
        took >= least,
        "{took:?} with {stops} stops; {}",
        ended.transcript
    );
    let words = "the shutdown took too long; still at work: hung-1";
    assert!(ended.transcript.has(words), "{}", ended.transcript);
}

// --- last messages ------------------------------------------------------------------------------

#[test]
fn last_messages_that_the_log_rejects_go_to_stderr() {
    for log in [
        "none",
        "off",
        "filter",
        "block",
        "block-locked",
        "block-flush",
        "panic",
        "panic-flush",
    ] {
        let process = service(&format!("timeout=500 workers=hung-1 log={log}"));
        process.signal(Signal::SIGTERM);
        let ended = process.wait();
        ended.assert_code(1);
        let words = "worker-heartbeat: exit with status 1: the shutdown took too long; still at \
                     work: hung-1 (stopping: finishing its task, during run-2 (hanging))";
        let said = &ended.transcript;
        let lines = said.all(words);
        assert_eq!(lines.len(), 1, "{log}: {said}");
        assert_eq!(lines[0].to, Stream::Stderr, "{log}: {said}");
    }
}

#[test]
fn last_messages_that_the_log_accepts_are_written_once() {
    let process = service("timeout=500 workers=hung-1 log=print");
    process.signal(Signal::SIGTERM);
    let ended = process.wait();
    ended.assert_code(1);
    let said = &ended.transcript;
    assert_eq!(said.all("exit with status 1").len(), 1, "{said}");
    assert!(!said.has_errors(), "{said}");
}

#[test]
fn message_and_exit_status_agree_when_main_returns_at_the_same_time() {
    for scene in ["main-returns", "another-thread-exits"] {
        let ended = Process::start(scene).wait();
        ended.assert_code(1);
        let words = "@log ERROR exit with status 1";
        assert!(ended.transcript.has(words), "{}", ended.transcript);
    }
}

#[test]
fn message_and_exit_status_agree_however_close_the_end_is() {
    let (mut forced, mut ended_itself) = (0, 0);
    for n in 0..20 {
        // The worker ends within some milliseconds of the timeout.
        let ended = Process::start(&format!("close-race {}", 192 + n)).wait();
        let said = &ended.transcript;
        let words = said.has("exit with status 1");
        match ended.status.code() {
            Some(1) => forced += 1,
            Some(0) => ended_itself += 1,
            other => panic!("{other:?}; {said}"),
        }
        assert_eq!(ended.status.code() == Some(1), words, "{said}");
        assert_eq!(said.has("@returned"), !words, "{said}");
    }
    println!("{forced} forced, {ended_itself} ended by themselves");
}

// --- a thread that unwinds ----------------------------------------------------------------------

#[test]
fn a_destructor_can_shut_down_while_its_thread_unwinds() {
    for scene in ["unwinding", "unwinding-install", "unwinding-log"] {
        let ended = play(scene);
        let said = &ended.transcript;
        said.assert_order(&["@cleaned up", "@report: true", "@caught: the work failed"]);
    }
}

/// A hook that shuts the process down when a worker has panicked.
#[test]
fn a_panic_hook_can_shut_down() {
    let ended = play("panic-hook");
    ended
        .transcript
        .assert_order(&["@cleaned up", "@report: true"]);
}

// --- the state of signals at the start ----------------------------------------------------------

const SIGNALS: [Signal; 4] = [
    Signal::SIGINT,
    Signal::SIGTERM,
    Signal::SIGQUIT,
    Signal::SIGHUP,
];

/// A program that ignores these signals, and no others, however the tests were started.
fn ignoring(signals: &str) -> [&str; 3] {
    let option = format!("--ignore-signal={signals}");
    ["env", "--default-signal", option.leak()]
}

#[test]
fn signals_that_were_ignored_at_the_start_stay_ignored() {
    let mut process = Process::start_by(
        &ignoring("INT,QUIT,HUP"),
        "inherited-service workers=idle-1",
    );
    for signal in [Signal::SIGINT, Signal::SIGQUIT, Signal::SIGHUP] {
        process.signal(signal);
        // An ignored signal is discarded before `kill` returns.
        let answer = process.ask("shutdown");
        assert!(answer.starts_with("requested false"), "{signal}: {answer}");
    }
    process.signal(Signal::SIGTERM);
    let ended = process.wait();
    ended.assert_code(0);
    let said = &ended.transcript;
    assert!(said.has("@ended idle-1: stopped: by SIGTERM"), "{said}");
}

#[test]
fn each_signal_can_be_ignored_at_the_start() {
    for ignored in SIGNALS {
        let name = ignored.as_str().trim_start_matches("SIG");
        let ended = Process::start_by(&ignoring(name), "inherited-signals").wait();
        ended.assert_code(0);
        let hooked = ended.transcript.all("@signals")[0].text.clone();
        for signal in SIGNALS {
            let is_hooked = hooked.contains(signal.as_str());
            assert_eq!(is_hooked, signal != ignored, "{ignored}: {hooked}");
        }
    }
}

/// A shell without job control ignores SIGINT and SIGQUIT for programs that it starts in the
/// background.
#[test]
fn a_background_job_of_a_shell_is_not_shut_down_by_ctrl_c() {
    let shell = r#""$0" "$@" & wait "$!""#;
    let shell = ["env", "--default-signal", "sh", "-c", shell];
    let mut process = Process::start_by(&shell, "inherited-job");
    let job = process.job();
    for signal in [Signal::SIGINT, Signal::SIGQUIT] {
        kill(job, signal).unwrap();
    }
    kill(job, Signal::SIGTERM).unwrap();
    process.expect("@begun SIGTERM");
    process.wait().assert_code(0);

    let mut process = Process::start_by(&shell, "inherited-job-hooks-all");
    let job = process.job();
    kill(job, Signal::SIGINT).unwrap();
    process.expect("@begun SIGINT");
    process.wait().assert_code(0);
}

#[test]
fn a_signal_that_is_blocked_at_the_start_is_refused_by_name() {
    for (blocked, named) in [
        ("--block-signal=TERM", "SIGTERM"),
        ("--block-signal=HUP", "SIGHUP"),
        ("--block-signal", "SIGINT, SIGTERM, SIGQUIT, SIGHUP"),
    ] {
        let ended =
            Process::start_by(&["env", "--default-signal", blocked], "inherited-blocked").wait();
        ended.assert_code(0);
        let words = format!("@refused {named}: cannot hook {named}: every thread");
        assert!(ended.transcript.has(&words), "{}", ended.transcript);
    }
}

#[test]
fn a_signal_that_is_blocked_can_be_left_out() {
    let mut process = Process::start_by(
        &["env", "--default-signal", "--block-signal=TERM"],
        "inherited-left-out",
    );
    process.signal(Signal::SIGINT);
    process.expect("@begun SIGINT");
    process.wait().assert_code(0);
}

#[test]
fn a_signal_that_only_the_installing_thread_blocks_is_received() {
    let mut process = Process::start("blocked-here");
    process.signal(Signal::SIGTERM);
    process.expect("@begun SIGTERM");
    process.wait().assert_code(0);
}

// --- asynchronous forms -------------------------------------------------------------------------

#[test]
fn workers_of_a_current_thread_runtime_continue_while_it_waits() {
    play("current-thread");
}

#[test]
fn waiting_works_on_an_executor_of_twelve_lines() {
    play("block-on");
}

#[test]
fn a_cleanup_that_hangs_does_not_block_an_executor() {
    play("async-hung-cleanup");
}

#[test]
fn futures_that_wait_can_be_dropped_and_made_again() {
    play("cancelled-waits");
}

#[test]
fn a_signal_wakes_futures() {
    let mut process = Process::start("async-signal");
    process.signal(Signal::SIGTERM);
    process.expect("@begun");
    process.wait().assert_code(0);
}

impl Process {
    /// The process that prints its own id.
    fn job(&mut self) -> Pid {
        let line = self.expect("@pid ").text;
        Pid::from_raw(line.rsplit(' ').next().unwrap().parse().unwrap())
    }

    fn is_running(&self) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid()));
        stat.is_ok_and(|stat| !stat.contains(") Z "))
    }
}
