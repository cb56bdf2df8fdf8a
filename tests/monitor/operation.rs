//! How `heartbeat-monitor watch` is operated: by names, signals and logs.

use std::fs;

use crate::fixtures::{Folder, Watch, monitor};
use crate::support::examples::poll;
use crate::support::text_http::{exchange, get};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

#[test]
fn a_name_is_listened_at() {
    let folder = Folder::new("listen-name");
    let file = folder.file("fleet.db");
    let arguments = ["watch", "--sqlite", &file, "--listen", "localhost:0"];
    let mut watch = Watch::start(&mut monitor(&arguments));
    let address = watch.address();
    assert_eq!(get(&address, "/livez").status, 200);
    assert_eq!(watch.end(), Some(0), "{}", watch.log());
}

#[test]
fn the_token_is_read_again_on_sighup() {
    let folder = Folder::new("token-again");
    let (file, token) = (folder.file("fleet.db"), folder.file("token"));
    fs::write(&token, "first\n").unwrap();
    let arguments = [
        "watch",
        "--sqlite",
        &file,
        "--listen",
        "127.0.0.1:0",
        "--token-file",
        &token,
    ];
    let mut watch = Watch::start(&mut monitor(&arguments));
    let address = watch.address();
    let post = |token: &str| {
        let request = format!(
            "POST /api/worker/register HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\
             Authorization: Bearer {token}\r\nContent-Length: 2\r\n\r\n{{}}"
        );
        exchange(&address, request.as_bytes()).status
    };
    let pid = Pid::from_raw(i32::try_from(watch.child.id()).unwrap());
    let hang_up = || kill(pid, Signal::SIGHUP).unwrap();
    assert_eq!((post("first"), post("second")), (200, 401));
    watch.until("sweeping");
    fs::write(&token, "second\n").unwrap();
    hang_up();
    watch.until("read the token again");
    assert_eq!((post("first"), post("second")), (401, 200));

    // One that cannot be used changes nothing.
    fs::write(&token, "\n").unwrap();
    hang_up();
    watch.until("the token remains as it was: invalid token");
    fs::remove_file(&token).unwrap();
    hang_up();
    watch.until("the token remains as it was: cannot read");
    assert_eq!(post("second"), 200);
    assert!(!watch.log().contains("second"), "{}", watch.log());
    assert_eq!(watch.end(), Some(0), "{}", watch.log());
}

#[test]
fn every_line_of_a_json_log_is_an_object() {
    let folder = Folder::new("json-log");
    let file = folder.file("fleet.db");
    let arguments = [
        "watch",
        "--sqlite",
        &file,
        "--interval",
        "100ms",
        "--listen",
        "127.0.0.1:0",
        "--log-format",
        "json",
    ];
    let mut watch = Watch::start(monitor(&arguments).env("RUST_LOG", "trace"));
    watch.until("listening at");
    watch.until("sweeping");
    let address = poll("its address", || {
        let log = watch.log();
        let (_, after) = log.split_once("listening at http://")?;
        Some(after.split_once('/')?.0.to_owned())
    });
    let body = r#"{"worker_id": "gpu\"-7", "interval": 0.1, "stale_after": 0.3}"#;
    for path in ["register", "heartbeat"] {
        let request = format!(
            "POST /api/worker/{path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\
             Content-Length: {}\r\n\r\n{body}",
            body.len()
        );
        assert_eq!(exchange(&address, request.as_bytes()).status, 200);
    }
    watch.until("marked offline");
    assert_eq!(watch.end(), Some(0), "{}", watch.log());
    watch.until("ended by SIGTERM");
    let log = watch.log();
    let mut death = None;
    for line in log.lines() {
        let record: Value = serde_json::from_str(line).unwrap_or_else(|_| panic!("{line}"));
        for field in ["time", "level", "target", "message"] {
            assert!(record[field].is_string(), "{line}");
        }
        if record["message"] == r#"worker gpu"-7 marked offline"# {
            death = Some(record);
        }
    }
    assert_eq!(death.expect("a record of the death")["level"], "WARN");
}
