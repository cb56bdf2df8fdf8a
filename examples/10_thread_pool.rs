//! A thread pool: a job that panics harms no other job, and a job that hangs is reported.
//!
//! ```text
//! cargo run --example 10_thread_pool
//! ```

use std::thread;
use std::time::Duration;

use crossbeam_channel::{Receiver, select, unbounded};
use worker_heartbeat::{
    BoxError, EventKind, Registry, Restart, State, Supervisor, WorkerHeartbeat,
};

type Job = fn(&WorkerHeartbeat);

fn main() -> Result<(), BoxError> {
    let registry = Registry::global();
    let events = registry.subscribe();
    let supervisor = Supervisor::new(registry)
        .restart(Restart::on_failure().backoff(Duration::from_millis(50), Duration::from_secs(1)));
    let (sender, jobs) = unbounded::<(&str, Job)>();
    for number in 1..=3 {
        let builder = WorkerHeartbeat::builder("pool")
            .id(format!("pool-{number}"))
            // The longest that one step of a job may take.
            .stall_after(Duration::from_millis(300));
        let jobs = jobs.clone();
        supervisor.spawn(builder, move |hb: &WorkerHeartbeat| serve(hb, &jobs))?;
    }

    for _ in 0..20 {
        sender.send(("fine", |_| thread::sleep(Duration::from_millis(10))))?;
    }
    sender.send(("slow", slow))?;
    sender.send(("broken", |_| panic!("division by zero")))?;
    sender.send(("hung", |_| thread::sleep(Duration::from_millis(900))))?;
    drop(sender);

    for event in events.iter() {
        match &event.kind {
            EventKind::Became(health) if health.state() != State::Stopping => println!("{event}"),
            EventKind::Restarting { .. } => println!("{event}"),
            EventKind::Recovered { .. } => {
                println!("{event}");
                break;
            }
            _ => {}
        }
    }
    println!("{}", registry.summary());
    assert!(supervisor.shutdown(Duration::from_secs(5)).is_clean());
    Ok(())
}

/// Takes jobs until it is asked to stop.
fn serve(hb: &WorkerHeartbeat, jobs: &Receiver<(&'static str, Job)>) -> Result<(), BoxError> {
    let stop = hb.stop_receiver();
    loop {
        hb.mark_idle();
        select! {
            recv(stop) -> _ => return Ok(()),
            recv(jobs) -> job => match job {
                Ok((name, job)) => {
                    let _task = hb.begin_task(name, "at a job");
                    job(hb);
                }
                // The queue is closed and empty.
                Err(_) => {
                    let _ = stop.recv();
                    return Ok(());
                }
            },
        }
    }
}

/// Takes longer than a step may, but reports its progress.
fn slow(hb: &WorkerHeartbeat) {
    for _ in 0..6 {
        thread::sleep(Duration::from_millis(100));
        hb.beat();
    }
}
