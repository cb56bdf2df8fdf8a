//! A service under a service manager, and one that writes a beacon: real processes of the example
//! `service`.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::support::examples::{PATIENCE, binary, poll};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use worker_heartbeat::{Beacon, Error, Registry, SystemdNotifier, WorkerHeartbeat};

const MAX_AGE: Duration = Duration::from_secs(3600);

/// A directory that is removed when it is dropped.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("wh-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// The service, killed when it is dropped.
struct Service(Child);

impl Service {
    /// `WATCHDOG_PID=$$` names the service itself.
    fn start(environment: &str, arguments: &[&str], socket: Option<&Path>) -> Self {
        let mut command = Command::new("sh");
        command
            .arg("-c")
            .arg(format!("{environment} exec \"$0\" \"$@\""))
            .arg(binary("service"))
            .args(arguments)
            .env_remove("NOTIFY_SOCKET")
            .env_remove("WATCHDOG_USEC")
            .env_remove("WATCHDOG_PID")
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        if let Some(socket) = socket {
            command.env("NOTIFY_SOCKET", socket);
        }
        Self(command.spawn().unwrap())
    }

    fn send(&self, signal: Signal) {
        kill(Pid::from_raw(i32::try_from(self.0.id()).unwrap()), signal).unwrap();
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The socket of systemd, with the messages that it receives.
struct Manager {
    socket: UnixDatagram,
    path: PathBuf,
    heard: Vec<String>,
}

impl Manager {
    fn new(folder: &Folder) -> Self {
        let path = folder.file("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        Self {
            socket,
            path,
            heard: Vec::new(),
        }
    }

    /// The next message.
    #[track_caller]
    fn next(&mut self) -> String {
        let mut buffer = [0; 4096];
        let length = self.socket.recv(&mut buffer).unwrap();
        let text = String::from_utf8(buffer[..length].to_vec()).unwrap();
        self.heard.push(text.clone());
        text
    }

    #[track_caller]
    fn until(&mut self, word: &str) -> String {
        loop {
            let said = self.next();
            if has(&said, word) {
                return said;
            }
        }
    }
}

/// Whether one of its lines begins with this.
fn has(message: &str, word: &str) -> bool {
    message.lines().any(|line| line.starts_with(word))
}

#[test]
fn systemd_gets_ready_watchdog_status_and_stopping_notifications() {
    let folder = Folder::new("systemd");
    let mut manager = Manager::new(&folder);
    let environment = "WATCHDOG_USEC=400000 WATCHDOG_PID=$$";
    let arguments = ["--hang-after", "1"];
    let service = Service::start(environment, &arguments, Some(&manager.path));

    let ready = manager.until("READY=1");
    assert!(has(&ready, "STATUS=2 active, 0 dead"), "{ready}");
    assert!(
        manager
            .heard
            .iter()
            .filter(|said| has(said, "READY=1"))
            .count()
            == 1,
        "{:#?}",
        manager.heard
    );
    // More often than every 0.4 s, or systemd would have killed it.
    (0..4).for_each(|_| assert!(has(&manager.until("WATCHDOG=1"), "STATUS=2 active")));

    manager.until("STATUS=1 active, 0 dead, 1 stalled");
    for _ in 0..4 {
        let said = manager.next();
        assert!(!has(&said, "WATCHDOG=1"), "a worker hangs: {said}");
        assert!(has(&said, "STATUS=1 active, 0 dead, 1 stalled"), "{said}");
    }
    for said in &manager.heard {
        let well = !said.contains("stalled");
        assert!(well || !has(said, "WATCHDOG=1"), "{said}");
    }

    service.send(Signal::SIGTERM);
    manager.until("STOPPING=1");
}

#[test]
fn another_process_s_watchdog_is_not_fed() {
    let folder = Folder::new("systemd-other");
    let mut manager = Manager::new(&folder);
    let environment = "WATCHDOG_USEC=200000 WATCHDOG_PID=1";
    let mut service = Service::start(environment, &[], Some(&manager.path));
    manager.until("READY=1");
    service.send(Signal::SIGTERM);
    manager.until("STOPPING=1");
    let status = poll("the end", || service.0.try_wait().unwrap());
    assert_eq!((status.code(), status.signal()), (Some(0), None));
    assert!(
        !manager.heard.iter().any(|said| has(said, "WATCHDOG=1")),
        "{:#?}",
        manager.heard
    );
}

#[test]
fn without_a_service_manager_there_is_no_thread() {
    // These tests do not run under a service manager that waits for notifications.
    if std::env::var_os("NOTIFY_SOCKET").is_some() {
        return;
    }
    let registry = Registry::new();
    let systemd = SystemdNotifier::start(&registry).unwrap();
    assert!(!systemd.is_active() && systemd.watchdog().is_none());
}

#[test]
fn a_beacon_shows_a_hung_worker_and_a_killed_process() {
    let folder = Folder::new("beacon");
    let file = folder.file("beacon.json");
    let arguments = ["--beacon", file.to_str().unwrap(), "--hang-after", "1"];
    let mut service = Service::start("", &arguments, None);
    let says = |wanted: &str| {
        poll(wanted, || match Beacon::check(&file, MAX_AGE) {
            Ok(said) | Err(said) => said.contains(wanted).then_some(()),
        });
    };
    says("2 active, 0 dead");
    assert!(Beacon::check(&file, MAX_AGE).is_ok());
    says("1 stalled");
    assert!(Beacon::check(&file, MAX_AGE).is_err());
    let mode = fs::metadata(&file).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600, "reasons are private");
    service.send(Signal::SIGKILL);
    service.0.wait().unwrap();
    let why = Beacon::check(&file, MAX_AGE).unwrap_err();
    assert_eq!(why, format!("the process {} is gone", service.0.id()));
}

#[test]
fn a_process_that_ends_in_good_order_says_so_in_its_beacon() {
    let folder = Folder::new("beacon-end");
    let file = folder.file("beacon.json");
    let arguments = ["--beacon", file.to_str().unwrap()];
    let mut service = Service::start("", &arguments, None);
    poll("a beacon", || Beacon::check(&file, MAX_AGE).ok());
    service.send(Signal::SIGINT);
    poll("the end", || service.0.try_wait().unwrap());
    let why = Beacon::check(&file, MAX_AGE).unwrap_err();
    assert_eq!(why, "the process stopped");
}

#[test]
fn a_beacon_that_is_old_foreign_torn_or_missing_is_a_failure_with_its_reason() {
    let folder = Folder::new("beacon-bad");
    let file = folder.file("beacon.json");
    let why = |max_age| Beacon::check(&file, max_age).unwrap_err();
    assert!(why(MAX_AGE).starts_with("cannot read "), "{}", why(MAX_AGE));
    for text in [
        "",
        "{",
        "[]",
        "7",
        "{\"alive\": true}",
        "\u{0}",
        "{\"beacon\": 2}",
    ] {
        fs::write(&file, text).unwrap();
        assert!(why(MAX_AGE).ends_with("is not a beacon"), "{text}");
    }
    fs::write(&file, [0xff, 0xfe]).unwrap();
    assert!(why(MAX_AGE).starts_with("cannot read "));
    fs::write(&file, r#"{"beacon": 1, "alive": true}"#).unwrap();
    assert_eq!(why(MAX_AGE), "its time is missing or invalid");
    let long_ago = r#"{"beacon": 1, "alive": true, "written_at": 1000.0}"#;
    fs::write(&file, long_ago).unwrap();
    assert!(why(MAX_AGE).ends_with("allowed: 1 h"), "{}", why(MAX_AGE));
}

#[test]
fn a_beacon_is_replaced_as_a_whole_while_it_is_read() {
    let folder = Folder::new("beacon-whole");
    let file = folder.file("beacon.json");
    let registry = Registry::new();
    let hb = WorkerHeartbeat::builder("poller")
        .id("a\"b\"")
        .registry(&registry)
        .start()
        .unwrap();
    hb.beat();
    let beacon = Beacon::new(&registry, &file)
        .interval(Duration::from_millis(100))
        .start()
        .unwrap();
    let inode = |file: &Path| std::os::unix::fs::MetadataExt::ino(&fs::metadata(file).unwrap());
    let first = inode(&file);
    let mut reads = 0;
    poll("another one", || {
        assert_eq!(
            Beacon::check(&file, MAX_AGE).as_deref(),
            Ok("1 active, 0 dead")
        );
        reads += 1;
        (inode(&file) != first && reads > 20).then_some(())
    });
    hb.fail("no\ndisk");
    let why = poll("the death", || Beacon::check(&file, MAX_AGE).err());
    assert!(why.contains(r#"a"b": dead: failed: no\ndisk"#), "{why}");
    drop(beacon);
    assert_eq!(
        Beacon::check(&file, MAX_AGE).unwrap_err(),
        "the process stopped"
    );
}

#[test]
fn a_beacon_that_cannot_be_written_is_an_error_at_once() {
    let registry = Registry::new();
    let error = Beacon::new(&registry, "/nowhere/beacon.json").start();
    let text = error.unwrap_err().to_string();
    assert!(
        text.starts_with("cannot write /nowhere/beacon.json: "),
        "{text}"
    );
    let short = Beacon::new(&registry, "/nowhere/beacon.json").interval(Duration::ZERO);
    assert!(matches!(short.start(), Err(Error::Invalid { .. })));
}

/// A flag that the program does not know would show only where the files are used.
#[test]
fn the_command_lines_of_units_manifests_and_compose_are_understood() {
    let files = [
        include_str!("../../examples/service/heartbeat-monitor.service"),
        include_str!("../../examples/service/kubernetes.yaml"),
        include_str!("../../examples/deploy/kubernetes.yaml"),
        include_str!("../../examples/deploy/compose.yaml"),
        include_str!("../../examples/deploy/Dockerfile"),
    ];
    let lines = files.iter().flat_map(|file| file.lines());
    let words = lines
        .filter(|line| !line.trim_start().starts_with('#'))
        .map(|line| {
            let separators = |letter: char| letter.is_whitespace() || "[],\"".contains(letter);
            line.split(separators)
                .skip_while(|word| !["watch", "check"].contains(word))
                .filter(|word| !word.is_empty())
                .collect::<Vec<_>>()
        });
    let commands: Vec<_> = words.filter(|words| words.len() > 1).collect();
    assert_eq!(commands.len(), 5, "{commands:?}");
    for command in commands {
        let ran = Command::new(env!("CARGO_BIN_EXE_heartbeat-monitor"))
            .args(&command)
            .arg("--help")
            .output()
            .unwrap();
        let error = String::from_utf8_lossy(&ran.stderr);
        assert!(ran.status.success(), "{command:?}: {error}");
    }
}
