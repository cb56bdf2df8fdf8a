//! A hand-written health endpoint: 200 while the worker is well, 503 and the reason otherwise.
//!
//! ```text
//! cargo run --example 02_health_handler -- 127.0.0.1:8080 --die-after 5
//! curl -i http://127.0.0.1:8080/v1/worker/health
//! ```
//!
//! The worker panics after 5 s, and the answer changes to 503. Ctrl-C ends the example.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use worker_heartbeat::{BoxError, Probe, Registry, Supervisor, WorkerHeartbeat};

const PATH: &str = "/v1/worker/health";
const USAGE: &str = "Usage: 02_health_handler [ADDRESS] [--die-after SECONDS]";
/// Limit for a whole request, however slowly its bytes arrive.
const TIME_LIMIT: Duration = Duration::from_secs(2);
const LONGEST_REQUEST: usize = 8 * 1024;

fn main() -> Result<ExitCode, BoxError> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let (address, die_after) = match arguments[..] {
        [] => ("127.0.0.1:8080", None),
        ["--die-after", seconds] => ("127.0.0.1:8080", Some(seconds)),
        [address] if !address.starts_with('-') => (address, None),
        [address, "--die-after", seconds] => (address, Some(seconds)),
        _ => return Ok(usage_error("invalid arguments")),
    };
    let die_after = match die_after.map(str::parse).transpose() {
        Ok(seconds) => seconds.map(Duration::from_secs),
        Err(error) => return Ok(usage_error(&format!("--die-after: {error}"))),
    };

    let worker = Supervisor::new(Registry::global()).spawn(
        WorkerHeartbeat::builder("jobs")
            .id("jobs-1")
            .stall_after(Duration::from_secs(5)),
        move |hb| do_jobs(hb, die_after),
    )?;
    let listener = TcpListener::bind(address)
        .map_err(|error| format!("cannot listen on {address}: {error}"))?;
    println!("Press Ctrl-C to stop.");
    println!("listening on http://{}{PATH}", listener.local_addr()?);
    for client in listener.incoming() {
        let probe = worker.probe();
        // One thread per client, so that a slow one delays no other. Where no thread or connection
        // can be had, the client retries.
        if let Ok(client) = client {
            drop(thread::Builder::new().spawn(move || answer(client, &probe)));
        } else {
            thread::sleep(Duration::from_millis(100));
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn usage_error(complaint: &str) -> ExitCode {
    eprintln!("{complaint}\n{USAGE}");
    ExitCode::from(2)
}

fn do_jobs(hb: &WorkerHeartbeat, die_after: Option<Duration>) -> Result<(), BoxError> {
    let begun = Instant::now();
    for job in 1.. {
        let _task = hb.begin_task(format_args!("job-{job}"), "doing a job");
        thread::sleep(Duration::from_millis(100));
        if die_after.is_some_and(|limit| begun.elapsed() >= limit) {
            panic!("no module named \"server\"");
        }
    }
    Ok(())
}

/// Takes one snapshot, so that all fields describe the same moment.
fn health(probe: &Probe) -> (&'static str, String) {
    let snapshot = probe.snapshot();
    let alive = snapshot.health.is_recent();
    let json = format!(
        r#"{{"alive": {alive}, "last_heartbeat": {:?}, "state": {}, "reason": {}}}"#,
        snapshot.last_heartbeat_unix(),
        quoted(snapshot.health.state().name()),
        quoted(&snapshot.health.to_string()),
    );
    let status = if alive {
        "200 OK"
    } else {
        "503 Service Unavailable"
    };
    (status, json)
}

fn quoted(text: &str) -> String {
    let mut json = String::from('"');
    for character in text.chars() {
        match character {
            '"' | '\\' => json.extend(['\\', character]),
            '\0'..='\x1f' => json += &format!("\\u{:04x}", u32::from(character)),
            _ => json.push(character),
        }
    }
    json + "\""
}

// --- a minimal HTTP server; a real service has one, and passes the probe to its handler -------------

fn answer(mut client: TcpStream, probe: &Probe) -> io::Result<()> {
    let deadline = Instant::now() + TIME_LIMIT;
    let (status, body) = match read_head(&mut client, deadline) {
        Ok(head) => respond(&head, probe),
        Err(status) => (status, String::new()),
    };
    let allow = if status.starts_with("405") {
        "Allow: GET\r\n"
    } else {
        ""
    };
    let length = body.len();
    client.set_write_timeout(Some(TIME_LIMIT))?;
    client.write_all(
        format!(
            "HTTP/1.1 {status}\r\nContent-Type: application/json\r\n{allow}\
             Content-Length: {length}\r\nConnection: close\r\n\r\n{body}"
        )
        .as_bytes(),
    )?;
    // To close a socket with unread data resets the connection, and the client loses the answer.
    client.shutdown(Shutdown::Write)?;
    let mut rest = [0; 1024];
    for _ in 0..LONGEST_REQUEST / rest.len() {
        if read_until(&mut client, &mut rest, deadline)? == 0 {
            break;
        }
    }
    Ok(())
}

fn respond(head: &str, probe: &Probe) -> (&'static str, String) {
    let words: Vec<_> = head.lines().next().unwrap_or("").split(' ').collect();
    match words[..] {
        [method, target, "HTTP/1.0" | "HTTP/1.1"] => match (method, target.split('?').next()) {
            ("GET", Some(PATH)) => health(probe),
            (_, Some(PATH)) => ("405 Method Not Allowed", String::new()),
            _ => ("404 Not Found", String::new()),
        },
        _ => ("400 Bad Request", String::new()),
    }
}

/// Reads up to the empty line. The error is the status of the answer.
fn read_head(client: &mut TcpStream, deadline: Instant) -> Result<String, &'static str> {
    let mut head = Vec::new();
    let mut chunk = [0; 1024];
    while !head.windows(4).any(|end| end == b"\r\n\r\n") {
        if head.len() >= LONGEST_REQUEST {
            return Err("431 Request Header Fields Too Large");
        }
        match read_until(client, &mut chunk, deadline) {
            Ok(0) => return Err("400 Bad Request"),
            Ok(length) => head.extend_from_slice(&chunk[..length]),
            Err(_) => return Err("408 Request Timeout"),
        }
    }
    String::from_utf8(head).map_err(|_| "400 Bad Request")
}

/// A limit per read would not do: a client that sends a byte now and then could go on for hours.
fn read_until(client: &mut TcpStream, into: &mut [u8], deadline: Instant) -> io::Result<usize> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return Err(io::ErrorKind::TimedOut.into());
    }
    client.set_read_timeout(Some(left))?;
    client.read(into)
}
