//! A standby of a server, and the failover to it.

use std::iter;
use std::path::PathBuf;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use super::{Cluster, PASSWORD, PASSWORD_IN_URL, folders, run, sql};

/// How long a server may take for anything.
const PATIENCE: Duration = Duration::from_secs(60);

fn wait(what: &str, done: impl Fn() -> bool) {
    let begun = Instant::now();
    while !done() {
        assert!(
            begun.elapsed() < PATIENCE,
            "{what}: not within {PATIENCE:?}"
        );
        thread::sleep(Duration::from_millis(10));
    }
}

impl Cluster {
    /// A program of the client: it may be installed elsewhere than those of the server.
    pub(super) fn program(&self, name: &str) -> Option<PathBuf> {
        let mut folders = iter::once(self.programs.clone()).chain(folders());
        folders.find_map(|folder| Some(folder.join(name)).filter(|file| file.exists()))
    }

    fn installed(&self, name: &str) -> PathBuf {
        self.program(name)
            .unwrap_or_else(|| panic!("{name} is not installed"))
    }

    /// A standby of this server, which streams its changes.
    pub fn standby(&self) -> Self {
        let standby = Self::prepare();
        let mut backup = Command::new(self.installed("pg_basebackup"));
        backup
            .env("PGPASSWORD", PASSWORD)
            .args(["-R", "-X", "stream", "-c", "fast", "--no-sync", "-d"])
            .arg(format!("{}?application_name=standby", self.url()))
            .arg("-D")
            .arg(standby.directory.join("data"));
        run(backup);
        standby.restart();
        standby.catch_up(self);
        standby
    }

    /// Waits until this standby has all changes of its primary.
    pub fn catch_up(&self, primary: &Self) {
        let position = &sql(&primary.url(), "SELECT pg_current_wal_lsn()")[0][0];
        let reached = format!("SELECT pg_last_wal_replay_lsn() >= '{position}'");
        wait("the standby catches up", || {
            sql(&self.url(), &reached)[0][0] == "t"
        });
    }

    /// From now on, this standby receives nothing.
    pub fn cut_off(&self) {
        sql(&self.url(), "ALTER SYSTEM SET primary_conninfo = ''");
        sql(&self.url(), "SELECT pg_reload_conf()");
        let receivers = "SELECT count(*) FROM pg_stat_wal_receiver";
        wait("the standby is cut off", || {
            sql(&self.url(), receivers)[0][0] == "0"
        });
    }

    /// From now on, commits of this primary wait for its standby.
    pub fn replicate_synchronously(&self) {
        sql(
            &self.url(),
            "ALTER SYSTEM SET synchronous_standby_names = 'standby'",
        );
        sql(&self.url(), "SELECT pg_reload_conf()");
        let state = "SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync'";
        wait("the standby is synchronous", || {
            sql(&self.url(), state)[0][0] == "1"
        });
    }

    /// Kills all processes of the server at once.
    pub fn kill(&self) {
        let pids = self.processes();
        let kill = |pids: &[i32]| {
            let pids = pids.iter().map(ToString::to_string);
            Command::new("kill")
                .arg("-KILL")
                .args(pids)
                .output()
                .unwrap()
        };
        let (main, others) = pids.split_at(1);
        assert!(kill(main).status.success());
        // Some may have ended meanwhile.
        kill(others);
    }

    /// This standby becomes a primary, which waits for no standby.
    pub fn promote(&self) {
        self.ctl(&["-w", "-t", "60", "promote"]);
        sql(&self.url(), "ALTER SYSTEM RESET synchronous_standby_names");
        sql(&self.url(), "SELECT pg_reload_conf()");
    }

    /// The URL of whichever of these servers accepts writes.
    pub fn url_of_primary(servers: &[&Self]) -> String {
        let hosts = servers
            .iter()
            .map(|server| format!("127.0.0.1:{}", server.port));
        let hosts: Vec<String> = hosts.collect();
        format!(
            "postgres://tester:{PASSWORD_IN_URL}@{}/postgres?target_session_attrs=read-write",
            hosts.join(",")
        )
    }

    /// Copies the rows of these tables, without sequences, to another database.
    pub fn copy_rows(&self, tables: &[&str], database: &str) {
        let mut shell = Command::new("sh");
        shell
            .env("PGPASSWORD", PASSWORD)
            .args([
                "-c",
                r#"dump="$1" to="$2"; shift 2; "$dump" -a "$@" | "$0" -q -v ON_ERROR_STOP=1 "$to""#,
            ])
            .args([self.installed("psql"), self.installed("pg_dump")])
            .args([self.url_of(database), self.url()])
            .args(tables.iter().map(|table| format!("--table={table}")));
        run(shell);
    }

    pub fn url_of(&self, database: &str) -> String {
        self.url().replace("/postgres", &format!("/{database}"))
    }
}
