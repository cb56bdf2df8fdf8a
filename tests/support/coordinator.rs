//! A coordinator, and a minimal HTTP client.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use serde_json::Value;
use worker_heartbeat::RunningCoordinator;
use worker_heartbeat::{Coordinator, HttpStore, MemoryStore, StoredWorker, fleet::WorkerFilter};

/// Long enough for a machine that is busy with other things; only a failure takes that long.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// A coordinator over a store in memory, without a token.
pub fn start(store: &MemoryStore) -> RunningCoordinator {
    Coordinator::new(store.clone())
        .serve("127.0.0.1:0")
        .unwrap()
}

pub fn client(coordinator: &RunningCoordinator) -> HttpStore {
    HttpStore::new(format!("http://{}", coordinator.local_addr())).unwrap()
}

/// An answer, and all that came with it.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    pub head: String,
    pub body: String,
}

impl Reply {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|_| panic!("{self:?}"))
    }

    pub fn error(&self) -> String {
        let error = self.json()["error"].as_str().map(str::to_owned);
        error.unwrap_or_else(|| panic!("{self:?}"))
    }
}

pub fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// Sends these bytes, and reads one answer. `None` if the connection was closed without one.
pub fn exchange(address: SocketAddr, bytes: &[u8]) -> Option<Reply> {
    let mut stream = connect(address);
    // A server that refuses a request may close the connection before it has received all of it.
    let _ = stream.write_all(bytes);
    read(stream)
}

pub fn read(mut stream: TcpStream) -> Option<Reply> {
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    let text = String::from_utf8(answer).unwrap();
    let (head, body) = text.split_once("\r\n\r\n")?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    Some(Reply {
        status,
        head: head.to_ascii_lowercase(),
        body: body.to_owned(),
    })
}

pub fn request(method: &str, path: &str, headers: &str, body: &[u8]) -> Vec<u8> {
    let length = body.len();
    let mut bytes = format!(
        "{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{headers}\
         Content-Length: {length}\r\n\r\n"
    )
    .into_bytes();
    bytes.extend_from_slice(body);
    bytes
}

pub fn post_with(address: SocketAddr, path: &str, headers: &str, body: &[u8]) -> Reply {
    exchange(address, &request("POST", path, headers, body))
        .unwrap_or_else(|| panic!("no answer from {path}"))
}

pub fn post(address: SocketAddr, what: &str, body: &str) -> Reply {
    post_with(address, &format!("/api/worker/{what}"), "", body.as_bytes())
}

/// The body of an answer with status 200.
#[track_caller]
pub fn done(address: SocketAddr, what: &str, body: &str) -> Value {
    let reply = post(address, what, body);
    assert_eq!(reply.status, 200, "{what} {body}: {reply:?}");
    reply.json()
}

pub fn rows(store: &impl worker_heartbeat::HeartbeatStore) -> Vec<StoredWorker> {
    store.list(&WorkerFilter::default()).unwrap()
}

pub fn row(store: &impl worker_heartbeat::HeartbeatStore, id: &str) -> StoredWorker {
    let row = rows(store).into_iter().find(|row| row.key.id == id);
    row.unwrap_or_else(|| panic!("{id} is not listed"))
}

pub fn metadata(row: &StoredWorker, name: &str) -> Option<String> {
    let entry = row.info.metadata.iter().find(|(other, _)| other == name);
    entry.map(|(_, value)| value.clone())
}

/// Repeats the request until there is an answer.
#[track_caller]
pub fn poll<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(begun.elapsed() < PATIENCE, "no {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}
