//! A complete service: systemd or Kubernetes restarts it when a worker hangs.
//!
//! ```text
//! cargo run --example service --features beacon,http,prometheus,systemd
//! cargo run --example service --features beacon,http,prometheus,systemd -- --listen 127.0.0.1:8080 --beacon /tmp/beacon.json --hang-after 5
//! ```
//!
//! Built with the feature `postgres`, too, `--postgres URL` lets other programs see its workers.
//!
//! Beside this file: a unit for systemd, and manifests for Kubernetes with probes over HTTP and with
//! the beacon file. Ctrl-C ends the example.

use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use worker_heartbeat::{
    Beacon, BoxError, HealthEndpoint, Policy, Registry, Restart, Shutdown, Supervisor,
    SystemdNotifier, WorkerHeartbeat,
};

fn main() -> Result<ExitCode, BoxError> {
    let Some(options) = Options::read() else {
        eprintln!(
            "Usage: service [--listen ADDRESS] [--beacon FILE] [--hang-after SECONDS] [--postgres URL]"
        );
        return Ok(ExitCode::from(2));
    };
    let registry = Registry::global();
    let shutdown = Shutdown::builder().install()?;

    // The service starts and works while the database is down.
    #[cfg(feature = "postgres")]
    let _attachment = options
        .postgres
        .map(|url| {
            let store = worker_heartbeat::PostgresStore::connect_lazy(&url)?;
            registry.attach(store, worker_heartbeat::FleetConfig::new())
        })
        .transpose()?;

    // The process is ready only when both live.
    registry.expect_workers("indexer", 2);
    let supervisor = Supervisor::new(registry).restart(Restart::on_failure());
    for id in ["indexer-1", "indexer-2"] {
        let builder = WorkerHeartbeat::builder("indexer")
            .id(id)
            .stall_after(Duration::from_secs(1));
        let hang_after = options.hang_after.filter(|_| id == "indexer-2");
        supervisor.spawn(builder, move |hb: &WorkerHeartbeat| index(hb, hang_after))?;
    }

    // Three reporters: to a service manager, to a file, and over HTTP.
    let _systemd = SystemdNotifier::start(registry)?;
    let _beacon = options
        .beacon
        .map(|file| Beacon::new(registry, file).start())
        .transpose()?;
    let server = HealthEndpoint::new(registry)
        .shutdown(&shutdown)
        // The supervisor is faster than a restart of the process.
        .policy(Policy::liveness().tolerate_restarting())
        .policy(Policy::readiness())
        .serve(options.listen.as_str())?;
    println!("Press Ctrl-C to stop.");
    println!("http://{}/livez", server.local_addr());

    Ok(shutdown.wait().exit_code())
}

fn index(hb: &WorkerHeartbeat, hang_after: Option<Duration>) -> Result<(), BoxError> {
    let begun = Instant::now();
    for number in 1.. {
        if hb.stop_requested() {
            break;
        }
        let task = hb.begin_task(format_args!("run-{number}"), "indexing");
        for page in 1..=10 {
            task.progress(page, 10);
            thread::sleep(Duration::from_millis(20));
        }
        if hang_after.is_some_and(|after| begun.elapsed() > after) {
            // Stands for a lock that is never released, or an answer that never comes.
            loop {
                thread::park();
            }
        }
    }
    Ok(())
}

struct Options {
    #[cfg(feature = "postgres")]
    postgres: Option<String>,
    listen: String,
    beacon: Option<String>,
    hang_after: Option<Duration>,
}

impl Options {
    /// `None` if the arguments are invalid.
    fn read() -> Option<Self> {
        let mut options = Self {
            #[cfg(feature = "postgres")]
            postgres: None,
            listen: "127.0.0.1:0".to_owned(),
            beacon: None,
            hang_after: None,
        };
        let mut arguments = std::env::args().skip(1);
        while let Some(argument) = arguments.next() {
            let (name, value) = match argument.split_once('=') {
                Some((name, value)) => (name.to_owned(), value.to_owned()),
                None => (argument, arguments.next()?),
            };
            match name.as_str() {
                #[cfg(feature = "postgres")]
                "--postgres" => options.postgres = Some(value),
                "--listen" => options.listen = value,
                "--beacon" => options.beacon = Some(value),
                "--hang-after" => {
                    let seconds = value.parse().ok()?;
                    options.hang_after = Duration::try_from_secs_f64(seconds).ok();
                }
                _ => return None,
            }
        }
        Some(options)
    }
}
