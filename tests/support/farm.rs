//! Workers to display, and a server that displays them.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use worker_heartbeat::serve::RunningHealthEndpoint;
use worker_heartbeat::{
    Activity, BoxError, Builder, HealthEndpoint, Registry, Restart, Supervisor, WorkerHeartbeat,
};

pub struct Farm {
    pub registry: Registry,
    lively: Mutex<Vec<WorkerHeartbeat>>,
}

pub struct Site {
    pub server: RunningHealthEndpoint,
    pub url: String,
}

impl Farm {
    pub fn new() -> Self {
        Self {
            registry: Registry::new(),
            lively: Mutex::new(Vec::new()),
        }
    }

    pub fn worker(&self, worker_type: &str) -> Builder {
        WorkerHeartbeat::builder(worker_type).registry(&self.registry)
    }

    pub fn serve(&self) -> Site {
        self.serve_with(|endpoint| endpoint)
    }

    pub fn serve_with(&self, configure: impl FnOnce(HealthEndpoint) -> HealthEndpoint) -> Site {
        let endpoint = configure(HealthEndpoint::new(&self.registry));
        let server = endpoint.serve("127.0.0.1:0").unwrap();
        let url = format!("http://{}/", server.local_addr());
        Site { server, url }
    }

    /// A worker that panics with this message.
    pub fn panics(&self, worker_type: &str, id: &str, message: &str) {
        let message = message.to_owned();
        let supervisor = Supervisor::new(&self.registry).restart(Restart::never());
        let builder = self.worker(worker_type).id(id);
        let worker = supervisor.spawn(builder, move |hb| -> Result<(), BoxError> {
            hb.update_task("run-125", "merging segments", Activity::Processing);
            panic!("{message}")
        });
        worker.unwrap().join();
    }

    /// One worker in each state that can be reached in a moment.
    pub fn one_in_each_state(&self) -> Vec<WorkerHeartbeat> {
        let short = Duration::from_millis(100);
        let start = |builder: Builder| builder.start().unwrap();
        let mut workers = vec![start(self.worker("starting").id("starting"))];
        workers.push(start(self.worker("slow").id("never").startup_grace(short)));
        let hb = start(self.worker("idle").id("idle"));
        hb.mark_idle();
        workers.push(hb);
        let hb = start(self.worker("active").id("active"));
        hb.beat();
        workers.push(hb);
        let hb = start(self.worker("processing").id("processing"));
        hb.update_task("run-1", "at work", Activity::Processing);
        workers.push(hb);
        let hb = start(self.worker("stalled").id("stalled").stall_after(short));
        hb.update_task("run-2", "hanging", Activity::Processing);
        workers.push(hb);
        let hb = start(
            self.worker("stale")
                .id("stale")
                .beats_only()
                .interval(short / 2)
                .stale_after(short),
        );
        hb.beat();
        workers.push(hb);
        let hb = start(self.worker("stopped").id("stopped"));
        hb.beat();
        hb.stop();
        workers.push(hb);
        self.panics("dead", "dead", "out of luck");
        workers
    }

    /// Workers as a typical service has them.
    pub fn realistic(&self) -> Vec<WorkerHeartbeat> {
        let mut kept = Vec::new();
        for n in 1..=6_u64 {
            let hb = self.worker("research").id(format!("research-{n}"));
            let hb = hb.stall_after(Duration::from_secs(300)).start().unwrap();
            hb.beat();
            self.lively.lock().unwrap().push(hb);
        }
        let hb = self.worker("mailer").id("mailer-1").start().unwrap();
        hb.mark_idle();
        kept.push(hb);
        for n in 1..=2 {
            let hb = self
                .worker("embedder")
                .id(format!("embedder-{n}"))
                .start()
                .unwrap();
            let task = hb.begin_task("batch-88", "embedding 4,096 documents");
            task.progress(900 * n, 4_096);
            // Dropping the guard would mark the worker idle.
            std::mem::forget(task);
            kept.push(hb);
        }
        let hb = self
            .worker("payments")
            .id("payments-1")
            .stall_after(Duration::from_secs(1));
        let hb = hb.start().unwrap();
        hb.update_task(
            "order-17",
            "waiting for the bank's answer",
            Activity::Processing,
        );
        kept.push(hb);
        let hb = self.worker("importer").id("importer-1").start().unwrap();
        hb.update_task("import-9", "customers.csv", Activity::Processing);
        hb.fail("row 80,213: invalid UTF-8 in column \"city\"");
        kept.push(hb);
        let hb = self.worker("indexer").id("indexer-1").start().unwrap();
        hb.update_task("run-124", "indexing", Activity::Processing);
        kept.push(hb);
        self.panics("indexer", "indexer-2", "segment 7 is empty");
        self.step(0);
        kept
    }

    fn step(&self, step: u64) {
        const SITES: [&str; 6] = [
            "example.com",
            "example.org",
            "acme.test",
            "initech.test",
            "hooli.test",
            "globex.test",
        ];
        for (n, hb) in (0_u64..).zip(&*self.lively.lock().unwrap()) {
            let turn = step / (4 + n);
            if turn % 4 == 3 {
                hb.mark_idle();
                continue;
            }
            let site = SITES[usize::try_from((turn + n) % 6).unwrap()];
            let run = format!("run-{}", 120 + turn + n * 3);
            let done = step % (4 + n) + 1;
            let task = hb.begin_task(&run, format!("Researching {site}"));
            task.progress(
                usize::try_from(done).unwrap(),
                usize::try_from(5 + n).unwrap(),
            );
            // Dropping the guard would mark the worker idle.
            std::mem::forget(task);
        }
    }

    /// Workers register, end, work and rest for this long.
    pub fn live_for(&self, span: Duration) {
        let begun = Instant::now();
        let mut steps = 0;
        while begun.elapsed() < span {
            steps += 1;
            self.step(steps);
            if steps == 45 {
                self.panics("indexer", "indexer-2", "segment 7 is empty");
            }
            // The pace of the pictured workers.
            std::thread::sleep(Duration::from_secs(1));
        }
    }
}
