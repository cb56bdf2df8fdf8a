//! The stores that are measured, each with its servers.

use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use worker_heartbeat::{
    Coordinator, HeartbeatStore, HttpStore, PostgresOptions, PostgresStore, SqliteStore,
};

use crate::client::Work;
use crate::measure::{Reported, Used, cpu_of, peak_mb};
use crate::server::{self, Cluster, schema, sql};

/// Longer than anything takes.
const TIMEOUT: Duration = Duration::from_secs(300);

/// A kind of store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Postgres,
    Sqlite,
    /// A coordinator of a store in PostgreSQL.
    Coordinator,
}

impl Kind {
    pub(crate) const ALL: [Self; 3] = [Self::Postgres, Self::Sqlite, Self::Coordinator];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Postgres => "postgres",
            Self::Sqlite => "sqlite",
            Self::Coordinator => "coordinator",
        }
    }
}

/// The server of this bench.
fn cluster() -> &'static Cluster {
    static SHARED: OnceLock<Cluster> = OnceLock::new();
    SHARED.get_or_init(Cluster::start)
}

pub(crate) fn version() -> String {
    let rows = sql(&cluster().url(), "SHOW server_version");
    rows[0][0].split(' ').next().unwrap_or_default().to_owned()
}

fn connect(url: &str, schema: &str) -> PostgresStore {
    let options = PostgresOptions::new().schema(schema);
    let options = options.statement_timeout(TIMEOUT);
    options.connect(url).expect("a server")
}

/// The store of a place, as a client opens it.
pub(crate) fn open(kind: &str, location: &str, schema: &str) -> Box<dyn HeartbeatStore> {
    match kind {
        "postgres" => Box::new(connect(location, schema)),
        "sqlite" => Box::new(SqliteStore::open(location).expect("a file")),
        _ => {
            let store = HttpStore::builder(location).timeout(TIMEOUT).build();
            Box::new(store.expect("a URL"))
        }
    }
}

/// The process of the coordinator.
pub(crate) fn coordinate(arguments: &[String]) {
    let store = connect(&arguments[0], &arguments[1]);
    let coordinator = Coordinator::new(store)
        .max_workers(usize::MAX / 2)
        .store_timeout(TIMEOUT)
        .serve("127.0.0.1:0")
        .expect("a port");
    println!("http://{}", coordinator.local_addr());
    let mut line = String::new();
    let _ = std::io::stdin().read_line(&mut line);
}

/// A store, empty at first.
pub(crate) struct Place {
    kind: Kind,
    schema: String,
    folder: Option<PathBuf>,
    coordinator: Option<Child>,
    location: String,
}

fn itself() -> Command {
    Command::new(std::env::current_exe().expect("this program"))
}

impl Place {
    pub(crate) fn new(kind: Kind, size: usize) -> Self {
        let mut place = Self {
            kind,
            schema: schema(&format!("fleet_{size}")),
            folder: None,
            coordinator: None,
            location: String::new(),
        };
        match kind {
            Kind::Postgres => place.location = cluster().url(),
            Kind::Sqlite => {
                let folder = std::env::temp_dir().join(&place.schema);
                std::fs::create_dir(&folder).expect("a folder");
                place.location = folder.join("fleet.db").display().to_string();
                place.folder = Some(folder);
            }
            Kind::Coordinator => {
                let mut child = itself()
                    .args(["--role-coordinator", &cluster().url(), &place.schema])
                    .stdin(Stdio::piped())
                    .stdout(Stdio::piped())
                    .spawn()
                    .expect("a process");
                let mut line = String::new();
                let mut said = BufReader::new(child.stdout.take().expect("a pipe"));
                said.read_line(&mut line).expect("an address");
                place.location = line.trim().to_owned();
                place.coordinator = Some(child);
            }
        }
        place
    }

    fn used(&self) -> Used {
        if self.kind == Kind::Sqlite {
            return Used::default();
        }
        let lsn = sql(
            &cluster().url(),
            "SELECT pg_current_wal_lsn() - '0/0'::pg_lsn",
        );
        let mut pids = cluster().processes();
        pids.extend(self.coordinator.iter().map(|child| child.id() as i32));
        Used {
            wal: lsn[0][0].parse().ok(),
            server_cpu: Some(cpu_of(&pids)),
            connections: None,
        }
    }

    /// Runs this work in a process of its own.
    pub(crate) fn client(&self, work: Work, size: usize, repeats: usize) -> Reported {
        let numbers = [size.to_string(), repeats.to_string()];
        let mut command = itself();
        command
            .args([
                "--role-client",
                work.name(),
                self.kind.name(),
                &self.location,
            ])
            .arg(&self.schema)
            .args(numbers);
        self.reported(command)
    }

    /// Runs the operator's program; `None` if it has no such store.
    pub(crate) fn monitor(&self, arguments: &[&str], repeats: usize) -> Option<Reported> {
        let store: &[&str] = match self.kind {
            Kind::Postgres => &["--schema", &self.schema, "--postgres", &self.location],
            Kind::Sqlite => &["--sqlite", &self.location],
            Kind::Coordinator => return None,
        };
        let mut command = itself();
        command
            .args(["--role-program", &repeats.to_string()])
            .arg(env!("CARGO_BIN_EXE_heartbeat-monitor"))
            .args(arguments)
            .args(store);
        Some(self.reported(command))
    }

    fn reported(&self, mut command: Command) -> Reported {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("a process");
        let mut stdin = child.stdin.take().expect("a pipe");
        let said = BufReader::new(child.stdout.take().expect("a pipe"));
        let mut reported = Reported::default();
        let mut before = Used::default();
        for line in said.lines().map_while(Result::ok) {
            match line.as_str() {
                "begin" => before = self.used(),
                "end" => {
                    let after = self.used();
                    let difference =
                        |after: Option<f64>, before: Option<f64>| Some(after? - before?);
                    reported.used = Used {
                        wal: difference(after.wal, before.wal),
                        server_cpu: difference(after.server_cpu, before.server_cpu),
                        connections: self.connections(),
                    };
                }
                line => {
                    reported.read(line);
                    continue;
                }
            }
            // The client waits until that is noted.
            stdin.write_all(b"go on\n").expect("a living process");
        }
        let status = child.wait().expect("an end");
        assert!(status.success(), "{status}");
        reported
    }

    /// The connections that clients have to the server, this bench's own not counted.
    fn connections(&self) -> Option<f64> {
        if self.kind == Kind::Sqlite {
            return None;
        }
        let count = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' \
                     AND pid <> pg_backend_pid()";
        sql(&cluster().url(), count)[0][0].parse().ok()
    }

    /// The size of the store in bytes, indexes included.
    pub(crate) fn bytes(&self) -> f64 {
        if self.kind == Kind::Sqlite {
            let files = ["", "-wal"].map(|end| format!("{}{end}", self.location));
            let sizes = files.iter().filter_map(|file| std::fs::metadata(file).ok());
            return sizes.map(|size| size.len() as f64).sum();
        }
        let size = format!(
            "SELECT sum(pg_total_relation_size(c.oid)) FROM pg_class c WHERE relkind = 'r' AND \
             relnamespace = '{}'::regnamespace",
            self.schema
        );
        sql(&cluster().url(), &size)[0][0]
            .parse()
            .expect("a number")
    }

    pub(crate) fn coordinator_memory(&self) -> Option<f64> {
        let coordinator = self.coordinator.as_ref()?;
        Some(peak_mb(&coordinator.id().to_string()))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(coordinator) = &mut self.coordinator {
            let _ = coordinator.kill();
            let _ = coordinator.wait();
        }
        if let Some(folder) = &self.folder {
            let _ = std::fs::remove_dir_all(folder);
        } else {
            let drop = format!("DROP SCHEMA IF EXISTS \"{}\" CASCADE", self.schema);
            let _ = server::try_sql(&cluster().url(), &drop);
        }
    }
}
