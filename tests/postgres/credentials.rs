//! Credentials that change, and connections that the application lends.

use std::fs;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use tokio::runtime::{Builder, Runtime};
use tokio_postgres::{Client, NoTls};
use worker_heartbeat::fleet::{Beat, Claim, ClaimAnswer, WorkerFilter, conformance};
use worker_heartbeat::{
    BoxError, FleetConfig, HeartbeatStore, LentClient, PostgresCredentials, PostgresOptions,
    PostgresStore, Registry, State, StoreErrorKind, WorkerHeartbeat,
};

use crate::support::postgres::{Cluster, own, schema, sql, url};
use crate::{SECOND, worker};

fn terminate(cluster: &Cluster) {
    sql(
        &cluster.url(),
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
         WHERE application_name = 'worker-heartbeat'",
    );
}

#[test]
fn credentials_are_asked_for_at_each_connect() {
    let Some(cluster) = own() else { return };
    let role = |name: &str, password: &str| {
        let create = format!("CREATE ROLE {name} SUPERUSER LOGIN PASSWORD '{password}'");
        sql(&cluster.url(), &create);
    };
    role("first", "secret-1");
    role("second", "secret-2");
    let tester = cluster.url();
    let host = tester.split('@').nth(1).unwrap();
    let given = Arc::new(Mutex::new(("first", "secret-1")));
    let asked = Arc::new(AtomicUsize::new(0));
    let options = {
        let (given, asked) = (Arc::clone(&given), Arc::clone(&asked));
        PostgresOptions::new().schema("x").credentials(move || {
            asked.fetch_add(1, Ordering::Relaxed);
            let (user, password) = *given.lock().unwrap();
            Ok::<_, BoxError>(PostgresCredentials::new(password).user(user))
        })
    };
    let store = options
        .connect(&format!("postgres://nobody@{host}"))
        .unwrap();
    let key = worker(&store, "a");
    assert_eq!(asked.load(Ordering::Relaxed), 1);
    let user = || {
        let text = "SELECT DISTINCT usename FROM pg_stat_activity \
                    WHERE application_name = 'worker-heartbeat'";
        sql(&cluster.url(), text).concat().concat()
    };
    assert_eq!(user(), "first");
    // The user is replaced, as a Vault does.
    *given.lock().unwrap() = ("second", "secret-2");
    sql(&cluster.url(), "ALTER ROLE first NOLOGIN");
    terminate(&cluster);
    assert_eq!(
        crate::beat(&store, &key),
        worker_heartbeat::fleet::Answer::Accepted
    );
    assert_eq!(user(), "second");
    assert_eq!(asked.load(Ordering::Relaxed), 2);
    // A wrong one is told, without it.
    *given.lock().unwrap() = ("second", "wrong-password");
    terminate(&cluster);
    let error = store.list(&WorkerFilter::default()).unwrap_err();
    assert!(
        matches!(
            &error,
            worker_heartbeat::Error::Store {
                kind: StoreErrorKind::Denied,
                ..
            }
        ),
        "{error:?}"
    );
    for text in [format!("{error:?}"), format!("{store:?}")] {
        assert!(
            !text.contains("secret-") && !text.contains("wrong-"),
            "{text}"
        );
    }
}

#[test]
fn a_password_file_is_read_at_each_connect() {
    let Some(cluster) = own() else { return };
    let set = |password: &str| {
        sql(
            &cluster.url(),
            &format!("ALTER ROLE app PASSWORD '{password}'"),
        );
    };
    sql(&cluster.url(), "CREATE ROLE app SUPERUSER LOGIN");
    let file = std::env::temp_dir().join(schema("password"));
    let tester = cluster.url();
    let host = tester.split('@').nth(1).unwrap();
    let url = format!("postgres://app@{host}");
    let options = || PostgresOptions::new().schema("x").password_file(&file);
    let error = options().connect(&url).unwrap_err().to_string();
    assert!(
        error.contains("cannot read") && error.contains("password"),
        "{error}"
    );
    set("old");
    fs::write(&file, "old\n").unwrap();
    let store = options().connect(&url).unwrap();
    let key = worker(&store, "a");
    set("new");
    fs::write(&file, "new").unwrap();
    terminate(&cluster);
    let claim = Claim::new(key, "run", SECOND);
    assert!(matches!(
        store.claim(&claim).unwrap(),
        ClaimAnswer::Granted(_)
    ));
    fs::remove_file(&file).unwrap();
}

/// It is not asked by a second thread meanwhile.
#[test]
fn a_provider_that_hangs_costs_its_limit_and_one_thread() {
    let asked = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&asked);
    let (hold, held) = std::sync::mpsc::channel::<()>();
    let held = Mutex::new(held);
    let limit = Duration::from_millis(200);
    let options = PostgresOptions::new()
        .connect_timeout(limit)
        .credentials(move || {
            counted.fetch_add(1, Ordering::Relaxed);
            let _ = held.lock().unwrap().recv();
            Err::<String, _>("no token")
        });
    let store = options.connect_lazy(url()).unwrap();
    for expected in [
        "no answer within 200ms",
        "has not returned",
        "has not returned",
    ] {
        let error = store
            .list(&WorkerFilter::default())
            .unwrap_err()
            .to_string();
        assert!(error.contains(expected), "{error}");
    }
    assert_eq!(asked.load(Ordering::Relaxed), 1);
    drop(hold);
    let begun = Instant::now();
    loop {
        let error = store
            .list(&WorkerFilter::default())
            .unwrap_err()
            .to_string();
        if error.contains("no token") {
            break;
        }
        assert!(begun.elapsed() < 20 * SECOND, "{error}");
        thread::sleep(Duration::from_millis(20));
    }
}

fn runtime() -> Runtime {
    Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap()
}

async fn client() -> Result<Client, tokio_postgres::Error> {
    let (client, connection) = tokio_postgres::connect(url(), NoTls).await?;
    tokio::spawn(connection);
    Ok(client)
}

const LEFT: &str = "SELECT current_setting('statement_timeout'), current_setting('lock_timeout'), \
                    coalesce(current_setting('worker_heartbeat.session', true), '')";

#[test]
fn a_lent_connection_serves_a_store() {
    let runtime = runtime();
    let client = runtime.block_on(client()).unwrap();
    let token = client.cancel_token();
    let store = PostgresOptions::new()
        .schema(schema("lent"))
        .statement_timeout(60 * SECOND)
        .with_client(client)
        .unwrap();
    conformance::assert_conforms(&store);
    // From a task of that runtime, too; and by several threads at once.
    let blocking = store.clone();
    let listed = runtime.block_on(async move {
        tokio::task::spawn_blocking(move || blocking.list(&WorkerFilter::default())).await
    });
    listed.unwrap().unwrap();
    assert_eq!(store.keep_alive_interval(), None);
    let registry = Registry::new();
    let attachment = registry.attach(store.clone(), FleetConfig::new()).unwrap();
    let hb = WorkerHeartbeat::builder("lent")
        .registry(&registry)
        .start()
        .unwrap();
    assert!(attachment.flush(60 * SECOND));
    assert!(hb.claim("run-of-lent", SECOND).unwrap().is_some());
    // Its end is told, by every call.
    drop((hb, attachment, token));
    drop(runtime);
    for _ in 0..2 {
        let error = store.list(&WorkerFilter::default()).unwrap_err();
        assert!(
            matches!(
                &error,
                worker_heartbeat::Error::Store {
                    kind: StoreErrorKind::Unreachable,
                    ..
                }
            ),
            "{error:?}"
        );
    }
}

/// As deadpool's: a connection goes back when it is dropped.
#[derive(Clone, Default)]
struct Pool {
    idle: Arc<Mutex<Vec<Client>>>,
    opened: Arc<AtomicUsize>,
}

struct Object {
    client: Option<Client>,
    pool: Pool,
}

impl Pool {
    async fn get(&self) -> Result<Object, tokio_postgres::Error> {
        let idle = self.idle.lock().unwrap().pop();
        let opened = match idle {
            Some(opened) => opened,
            None => {
                self.opened.fetch_add(1, Ordering::Relaxed);
                client().await?
            }
        };
        Ok(Object {
            client: Some(opened),
            pool: self.clone(),
        })
    }
}

impl LentClient for Object {
    fn client(&self) -> &Client {
        self.client.as_ref().unwrap()
    }
}

impl Drop for Object {
    fn drop(&mut self) {
        self.pool.idle.lock().unwrap().extend(self.client.take());
    }
}

#[test]
fn a_pool_of_the_application_serves_a_store() {
    let runtime = runtime();
    let pool = Pool::default();
    let lending = pool.clone();
    let store: PostgresStore = PostgresOptions::new()
        .schema(schema("pool"))
        .statement_timeout(60 * SECOND)
        .with_pool(runtime.handle().clone(), move || {
            let pool = lending.clone();
            async move { pool.get().await }
        })
        .unwrap();
    conformance::assert_conforms(&store);
    let key = worker(&store, "a");
    thread::scope(|scope| {
        for n in 0..8 {
            let (store, key) = (&store, &key);
            scope.spawn(move || {
                for _ in 0..10 {
                    store
                        .beat(&[Beat::new(key.clone(), State::Active)])
                        .unwrap();
                    store
                        .claim(&Claim::new(key.clone(), format!("run-{n}"), SECOND))
                        .unwrap();
                    store.list(&WorkerFilter::default()).unwrap();
                }
            });
        }
    });
    let opened = pool.opened.load(Ordering::Relaxed);
    let idle = std::mem::take(&mut *pool.idle.lock().unwrap());
    println!("{opened} connections were opened");
    assert_eq!(idle.len(), opened, "all are given back");
    assert!(opened <= 4);
    // Nothing is left on them.
    for client in idle {
        let rows = runtime.block_on(client.query(LEFT, &[])).unwrap();
        let left: Vec<String> = (0..3).map(|n| rows[0].get(n)).collect();
        assert_eq!(left, ["0", "0", ""]);
    }
}

/// A connection of the application that panics whenever it is used.
struct Panicking;

impl worker_heartbeat::LentClient for Panicking {
    fn client(&self) -> &tokio_postgres::Client {
        panic!("lent by mistake")
    }
}

#[test]
fn a_lent_connection_that_panics_holds_up_no_later_call() {
    let runtime = runtime();
    let store = PostgresOptions::new()
        .schema(schema("panics"))
        .with_pool(runtime.handle().clone(), || async {
            Ok::<_, std::io::Error>(Panicking)
        })
        .unwrap();
    for _ in 0..3 {
        // As the uploader and the sweeper do, which go on after a panic.
        let listed = std::panic::catch_unwind(|| store.list(&WorkerFilter::default()));
        assert!(listed.is_err() || listed.unwrap().is_err());
    }
}

/// A connection of the application that panics in the middle of a call, while it is told to.
struct Flaky {
    client: tokio_postgres::Client,
    panics: Arc<AtomicBool>,
}

impl worker_heartbeat::LentClient for Flaky {
    fn client(&self) -> &tokio_postgres::Client {
        assert!(!self.panics.load(Ordering::Relaxed), "lent by mistake");
        &self.client
    }
}

#[test]
fn a_lent_connection_that_panics_during_a_call_leaves_no_place_in_use() {
    let runtime = runtime();
    let panics = Arc::new(AtomicBool::new(false));
    let lend = Arc::clone(&panics);
    // The server is started first, if this is the first test of it.
    let server = url();
    let store = PostgresOptions::new()
        .schema(schema("panics_later"))
        .statement_timeout(20 * SECOND)
        .with_pool(runtime.handle().clone(), move || {
            let panics = Arc::clone(&lend);
            async move {
                let (client, connection) =
                    tokio_postgres::connect(server, tokio_postgres::NoTls).await?;
                tokio::spawn(connection);
                Ok::<_, tokio_postgres::Error>(Flaky { client, panics })
            }
        })
        .unwrap();
    let list = || {
        let list = || store.list(&WorkerFilter::default());
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(list))
    };
    assert!(list().unwrap().unwrap().is_empty());
    panics.store(true, Ordering::Relaxed);
    // More than a store may have at once.
    for _ in 0..6 {
        let listed = list();
        assert!(listed.is_err() || listed.unwrap().is_err());
    }
    panics.store(false, Ordering::Relaxed);
    assert!(list().unwrap().unwrap().is_empty());
}
