//! A server that has no connection left for a process that lost its own.

use std::thread;

use tokio::runtime::Runtime;
use tokio_postgres::{Client, NoTls};
use worker_heartbeat::fleet::{Answer, ProcessIdentity, Registration, Sweep, WorkerFilter};
use worker_heartbeat::{HeartbeatStore, PostgresOptions, PostgresStore, State};

use crate::SECOND;
use crate::support::postgres::{role, schema, sql, url};

struct Place {
    name: String,
    url: String,
    runtime: Runtime,
    /// Connections of others.
    held: Vec<Client>,
}

impl Place {
    fn url(&self, application: &str) -> String {
        format!("{}?application_name={application}", self.url)
    }

    fn store(&self, application: &str) -> PostgresStore {
        let options = PostgresOptions::new().schema(&self.name);
        options.connect(&self.url(application)).unwrap()
    }

    fn take_all(&mut self) {
        let url = self.url("others");
        loop {
            let connected = self.runtime.block_on(async {
                let (client, connection) = tokio_postgres::connect(&url, NoTls).await.ok()?;
                tokio::spawn(connection);
                Some(client)
            });
            match connected {
                Some(client) => self.held.push(client),
                None => return,
            }
        }
    }
}

fn sweep(store: &PostgresStore, times: usize) -> Vec<String> {
    let mut marked = Vec::new();
    for _ in 0..times {
        marked.extend(store.sweep(&Sweep::default()).unwrap().marked_offline);
        // The grace for sessions is real time.
        thread::sleep(SECOND);
    }
    marked
}

#[test]
fn a_process_that_cannot_connect_again_is_not_gone() {
    let name = schema("exhausted");
    let mut place = Place {
        name: name.clone(),
        url: role(&name, "CONNECTION LIMIT 8"),
        runtime: Runtime::new().unwrap(),
        held: Vec::new(),
    };
    let watcher = place.store("watcher");
    let cut_off = place.store("cut_off");
    let mut registration = Registration::new("poller", "a");
    registration.info.process = Some(ProcessIdentity::current());
    let key = cut_off.register(&[registration]).unwrap().remove(0);
    assert_eq!(crate::beat(&cut_off, &key), Answer::Accepted);
    assert_eq!(sweep(&watcher, 1), [""; 0]);
    place.take_all();
    let ended = format!(
        "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity
         WHERE usename = '{name}' AND application_name = 'cut_off'"
    );
    assert!(!sql(url(), &ended).is_empty());
    place.take_all();
    assert!(cut_off.keep_alive().is_err(), "no connection is left");
    assert_eq!(sweep(&watcher, 10), [""; 0]);
    let rows = watcher.list(&WorkerFilter::default()).unwrap();
    assert_eq!(rows[0].health().state(), State::Active);
    // A process that does not use a connection that is free, is gone.
    drop(place.held);
    assert_eq!(sweep(&watcher, 10), ["a"]);
}
