//! A real PostgreSQL server: one of this test program's own, from the installed binaries, or the one
//! that `TEST_DATABASE_URL` names.
#![allow(dead_code, reason = "each program uses its part")]

#[path = "standby.rs"]
mod standby;

use std::env;
use std::fs;
use std::io::{self, Read};
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use tokio_postgres::{NoTls, SimpleQueryMessage};

pub const PASSWORD: &str = "cor-rect:ho%rse/bat?tery";
const PASSWORD_IN_URL: &str = "cor-rect%3Aho%25rse%2Fbat%3Ftery";
const MISSING: &str = "these tests need PostgreSQL: `apt-get install postgresql` or `brew install \
                       postgresql` (only its programs are used), or TEST_DATABASE_URL";

/// Whether a private server syncs to disk, as one in production does. Tests need not.
pub static WAITS_FOR_DISK: AtomicBool = AtomicBool::new(false);

/// A server that is stopped, with its files removed, when this program ends, however it ends.
pub struct Cluster {
    directory: PathBuf,
    programs: PathBuf,
    port: u16,
    /// Cleans up when its standard input ends, which this program holds open.
    cleanup_process: Child,
}

/// The server that tests share; each has a schema of its own.
pub fn url() -> &'static str {
    static URL: OnceLock<String> = OnceLock::new();
    static SHARED: OnceLock<Cluster> = OnceLock::new();
    URL.get_or_init(|| match env::var("TEST_DATABASE_URL") {
        Ok(url) => url,
        Err(_) => SHARED.get_or_init(Cluster::start).url(),
    })
}

/// A private server, for faults; `None` if there is only that of `TEST_DATABASE_URL`.
pub fn own() -> Option<Cluster> {
    if programs().is_none() && env::var("TEST_DATABASE_URL").is_ok() {
        eprintln!("left out: it needs a server of its own; {MISSING}");
        return None;
    }
    Some(Cluster::start())
}

/// The same, for a test that uses the programs of clients; `None` also if they are missing, or older
/// than the server.
pub fn own_with_tools() -> Option<Cluster> {
    let cluster = own()?;
    let server = version(&cluster.programs.join("postgres"));
    let tool = cluster.program("pg_basebackup").map(|tool| version(&tool));
    if tool.is_none_or(|tool| tool < server) {
        eprintln!("left out: it needs pg_basebackup and pg_dump of PostgreSQL {server} or later");
        return None;
    }
    Some(cluster)
}

/// The major version of a program of PostgreSQL.
fn version(program: &Path) -> u32 {
    let output = Command::new(program).arg("--version").output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let word = text
        .split(' ')
        .find(|word| word.starts_with(|c: char| c.is_ascii_digit()));
    let major = word.and_then(|word| {
        word.split(|c: char| !c.is_ascii_digit())
            .next()?
            .parse()
            .ok()
    });
    major.unwrap_or_else(|| panic!("{}: {text}", program.display()))
}

/// A unique name.
pub fn schema(name: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let n = NEXT.fetch_add(1, Ordering::Relaxed);
    format!("test_{name}_{}_{n}", std::process::id())
}

/// Creates a role with the password `x` that may create schemas, and returns its URL.
pub fn role(name: &str, options: &str) -> String {
    // One at a time: concurrent grants on one database fail.
    sql(
        url(),
        &format!(
            "SELECT pg_advisory_xact_lock(4711);
             CREATE ROLE {name} LOGIN PASSWORD 'x' {options};
             DO $$ BEGIN
                 EXECUTE format('GRANT CREATE ON DATABASE %I TO {name}', current_database());
             END $$"
        ),
    );
    let (_, at) = url().split_once('@').unwrap();
    format!("postgres://{name}:x@{at}")
}

/// The rows that the statements return, as text; NULL as such.
pub fn sql(url: &str, text: &str) -> Vec<Vec<String>> {
    try_sql(url, text).unwrap_or_else(|error| panic!("{text}: {error:?}"))
}

pub fn try_sql(url: &str, text: &str) -> Result<Vec<Vec<String>>, tokio_postgres::Error> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let (client, connection) = tokio_postgres::connect(url, NoTls).await?;
        tokio::spawn(connection);
        let messages = client.simple_query(text).await?;
        let rows = messages.into_iter().filter_map(|message| match message {
            SimpleQueryMessage::Row(row) => Some(row),
            _ => None,
        });
        let text = |value: Option<&str>| value.unwrap_or("NULL").to_owned();
        Ok(rows
            .map(|row| (0..row.len()).map(|n| text(row.get(n))).collect())
            .collect())
    })
}

/// Where programs may be.
fn folders() -> Vec<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let mut found: Vec<PathBuf> = env::split_paths(&path).collect();
    let mut packaged: Vec<PathBuf> = fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path().join("bin"))
        .collect();
    packaged.sort();
    packaged.reverse();
    found.extend(packaged);
    found
}

fn programs() -> Option<PathBuf> {
    let complete = |folder: &PathBuf| {
        let there = |name| folder.join(name).exists();
        there("initdb") && there("pg_ctl") && there("postgres")
    };
    folders().into_iter().find(complete)
}

/// The server refuses to run as root; this is the user that it runs as instead.
fn unprivileged() -> Option<(u32, u32)> {
    if fs::metadata("/proc/self").ok()?.uid() != 0 {
        return None;
    }
    let users = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let id = |name: &str| {
        let line = users
            .lines()
            .find(|line| line.split(':').next() == Some(name))?;
        let mut fields = line.split(':').skip(2);
        Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
    };
    Some(
        id("postgres")
            .or_else(|| id("nobody"))
            .unwrap_or((65_534, 65_534)),
    )
}

fn as_unprivileged(mut command: Command) -> Command {
    if let Some((user, group)) = unprivileged() {
        command.uid(user).gid(group);
    }
    command.current_dir("/").stdin(Stdio::null());
    command
}

fn run(command: Command) {
    let mut command = as_unprivileged(command);
    // The server would keep a pipe open.
    let status = command.stdout(Stdio::null()).stderr(Stdio::null()).status();
    assert!(status.is_ok_and(|status| status.success()), "{command:?}");
}

impl Cluster {
    pub fn start() -> Self {
        let cluster = Self::prepare();
        let directory = &cluster.directory;
        fs::write(directory.join("password"), PASSWORD).unwrap();
        if let Some((user, group)) = unprivileged() {
            chown(directory.join("password"), Some(user), Some(group)).unwrap();
        }
        let mut initdb = Command::new(cluster.programs.join("initdb"));
        initdb
            .args([
                "-U",
                "tester",
                "-A",
                "scram-sha-256",
                "-E",
                "UTF8",
                "--locale=C",
                "--no-sync",
            ])
            .arg(format!("--pwfile={}", directory.join("password").display()))
            .arg("-D")
            .arg(directory.join("data"));
        run(initdb);
        cluster.restart();
        cluster
    }

    /// A directory for a server that does not run yet.
    fn prepare() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let programs = programs().expect(MISSING);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("worker-heartbeat-pg-{}-{n}", std::process::id());
        let directory = env::temp_dir().join(name);
        fs::create_dir(&directory).unwrap();
        let cleanup_process = start_cleanup_process(&programs, &directory);
        if let Some((user, group)) = unprivileged() {
            chown(&directory, Some(user), Some(group)).unwrap();
        }
        Self {
            programs,
            port: free_port(),
            directory,
            cleanup_process,
        }
    }

    pub fn url(&self) -> String {
        format!(
            "postgres://tester:{PASSWORD_IN_URL}@127.0.0.1:{}/postgres",
            self.port
        )
    }

    fn ctl(&self, arguments: &[&str]) {
        let mut ctl = Command::new(self.programs.join("pg_ctl"));
        ctl.arg("-D")
            .arg(self.directory.join("data"))
            .args(arguments);
        run(ctl);
    }

    pub fn restart(&self) {
        let options = format!(
            "-p {} -k {} -c listen_addresses=127.0.0.1 -c max_connections=200 -c fsync={} \
             -c shared_buffers=128MB -c logging_collector=off",
            self.port,
            self.directory.display(),
            WAITS_FOR_DISK.load(Ordering::Relaxed)
        );
        let log = self.directory.join("log");
        self.ctl(&[
            "-w",
            "-t",
            "60",
            "-l",
            &log.display().to_string(),
            "-o",
            &options,
            "start",
        ]);
    }

    /// As if its host lost power.
    pub fn crash(&self) {
        self.ctl(&["-m", "immediate", "stop"]);
    }

    /// The URL of a proxy in front of it that pools transactions; `None` if none is installed. It
    /// ends with the server.
    pub fn pooled_url(&self) -> Option<String> {
        self.proxy_url("transaction")
    }

    /// The same, with the proxy's `pool_mode`. It has three connections to the server.
    pub fn proxy_url(&self, mode: &str) -> Option<String> {
        let path = env::var_os("PATH").unwrap_or_default();
        let mut folders = env::split_paths(&path).chain([PathBuf::from("/usr/sbin")]);
        let program = folders.find_map(|folder| {
            let program = folder.join("pgbouncer");
            program.exists().then_some(program)
        })?;
        let port = free_port();
        let settings = self.directory.join(format!("pgbouncer-{port}.ini"));
        let text = format!(
            "[databases]\n\
             postgres = host=127.0.0.1 port={} user=tester password='{PASSWORD}'\n\
             [pgbouncer]\n\
             listen_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\n\
             auth_type = any\npool_mode = {mode}\ndefault_pool_size = 3\n\
             server_round_robin = 1\nlogfile = {}\n",
            self.port,
            self.directory.join("pgbouncer.log").display(),
        );
        fs::write(&settings, text).unwrap();
        // A shell supervises the proxy, and ends it with the server.
        let mut shell = Command::new("sh");
        shell
            .args([
                "-c",
                r#""$0" -q "$1" & while [ -f "$2/data/postmaster.pid" ]; do sleep 0.2; done; kill $!"#,
            ])
            .arg(program)
            .arg(settings)
            .arg(&self.directory);
        let mut shell = as_unprivileged(shell);
        shell.stdout(Stdio::null()).stderr(Stdio::null());
        drop(shell.spawn().unwrap());
        let url = format!("postgres://tester@127.0.0.1:{port}/postgres");
        while try_sql(&url, "SELECT 1").is_err() {
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        Some(url)
    }

    /// From now on, it also accepts TLS, as `localhost` and `127.0.0.1`, with a certificate of an
    /// unknown authority. Returns the path of the authority's certificate.
    pub fn enable_tls(&self) -> &'static str {
        let file = |name: &str, text: &str| {
            let path = self.directory.join("data").join(name);
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
            if let Some((user, group)) = unprivileged() {
                chown(&path, Some(user), Some(group)).unwrap();
            }
        };
        file("server.crt", include_str!("tls/server.pem"));
        file("server.key", include_str!("tls/server.key"));
        sql(&self.url(), "ALTER SYSTEM SET ssl = on");
        sql(&self.url(), "SELECT pg_reload_conf()");
        concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/tls/ca.pem")
    }

    /// The process ids of the server and of all its children.
    pub fn processes(&self) -> Vec<i32> {
        let file = self.directory.join("data/postmaster.pid");
        let text = fs::read_to_string(file).unwrap();
        let main: i32 = text.lines().next().unwrap().trim().parse().unwrap();
        let children = fs::read_dir("/proc")
            .unwrap()
            .flatten()
            .filter_map(|entry| {
                let pid: i32 = entry.file_name().to_str()?.parse().ok()?;
                let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
                let parent = stat.rsplit_once(')')?.1.split_whitespace().nth(1)?;
                (parent == main.to_string()).then_some(pid)
            });
        std::iter::once(main).chain(children).collect()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        drop(self.cleanup_process.stdin.take());
        // It closes its output when it is done.
        if let Some(mut output) = self.cleanup_process.stdout.take() {
            let _ = output.read_to_end(&mut Vec::new());
        }
        let _ = self.cleanup_process.wait();
    }
}

fn start_cleanup_process(programs: &Path, directory: &Path) -> Child {
    let mut shell = Command::new("sh");
    shell
        .args([
            "-c",
            r#"trap '' INT TERM HUP; read -r _; exec 2>/dev/null
            [ -f "$1/data/postmaster.pid" ] && kill -CONT "$(head -n 1 "$1/data/postmaster.pid")"
            "$0" -D "$1/data" -m immediate stop >/dev/null; rm -rf "$1""#,
        ])
        .arg(programs.join("pg_ctl"))
        .arg(directory);
    let mut shell = as_unprivileged(shell);
    let spawned = shell.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
    spawned.unwrap()
}

fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0));
    listener
        .and_then(|listener| io::Result::Ok(listener.local_addr()?.port()))
        .unwrap()
}
