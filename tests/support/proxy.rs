//! A proxy before a coordinator, that does what a test says.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

use super::coordinator::{exchange, request};

/// A request that the proxy received.
#[derive(Clone, Debug)]
pub struct Seen {
    /// The operation: the last part of the path.
    pub operation: String,
    pub body: String,
    /// How many came before it, on any connection, and on this one.
    pub before: usize,
    pub before_here: usize,
}

/// What the proxy does with a request.
pub enum Reaction {
    /// Passes it on.
    Forward,
    /// Answers with these bytes, and keeps the connection.
    Answer(Vec<u8>),
    /// Passes it on, with these bytes before the answer.
    Before(&'static str),
    /// Answers with these bytes, and closes the connection.
    Last(Vec<u8>),
    /// Sends this chunk again and again.
    Endless(String),
    /// Closes the connection.
    Close,
}

/// What a proxy does with a request of which it has read the head only. `None`: it reads the body.
type OnHead = Box<dyn Fn(usize) -> Option<Reaction> + Send + Sync>;
type OnRequest = Box<dyn Fn(&Seen) -> Reaction + Send + Sync>;

pub struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    coordinator: SocketAddr,
    on_head: OnHead,
    on_request: OnRequest,
    seen: Mutex<Vec<Seen>>,
    ended: AtomicBool,
}

impl Proxy {
    pub fn new(
        coordinator: SocketAddr,
        on_request: impl Fn(&Seen) -> Reaction + Send + Sync + 'static,
    ) -> Self {
        Self::with(coordinator, Box::new(|_| None), Box::new(on_request))
    }

    /// Refuses bodies that are announced to be larger than this, without reading them.
    pub fn hasty(coordinator: SocketAddr, largest: usize) -> Self {
        let on_head = move |length: usize| (length > largest).then(|| Reaction::Last(too_large()));
        Self::with(
            coordinator,
            Box::new(on_head),
            Box::new(|_| Reaction::Forward),
        )
    }

    /// Refuses bodies that are larger than this.
    pub fn limited(coordinator: SocketAddr, largest: usize) -> Self {
        Self::new(coordinator, move |seen| {
            if seen.body.len() > largest {
                Reaction::Answer(too_large())
            } else {
                Reaction::Forward
            }
        })
    }

    fn with(coordinator: SocketAddr, on_head: OnHead, on_request: OnRequest) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            coordinator,
            on_head,
            on_request,
            seen: Mutex::default(),
            ended: AtomicBool::new(false),
        });
        let serving = Arc::clone(&shared);
        let thread = thread::spawn(move || {
            for stream in listener.incoming() {
                if serving.ended.load(Ordering::SeqCst) {
                    return;
                }
                let serving = Arc::clone(&serving);
                thread::spawn(move || serving.serve(stream.unwrap()));
            }
        });
        Self {
            address,
            shared,
            thread: Some(thread),
        }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The requests since the last call of this.
    pub fn take(&self) -> Vec<Seen> {
        std::mem::take(&mut self.shared.seen.lock().unwrap())
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::SeqCst);
        drop(TcpStream::connect(self.address));
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

impl Shared {
    fn serve(&self, stream: TcpStream) {
        let mut stream = BufReader::new(stream);
        let mut before_here = 0;
        // The client ends the connection.
        while self.serve_one(&mut stream, before_here).is_some() {
            before_here += 1;
        }
    }

    fn serve_one(&self, stream: &mut BufReader<TcpStream>, before_here: usize) -> Option<()> {
        let mut first = String::new();
        stream.read_line(&mut first).ok().filter(|read| *read > 0)?;
        let path = first.split(' ').nth(1)?.to_owned();
        let (mut length, mut headers) = (0, String::new());
        loop {
            let mut line = String::new();
            stream.read_line(&mut line).ok()?;
            if line.trim().is_empty() {
                break;
            }
            let lower = line.to_ascii_lowercase();
            if let Some(value) = lower.strip_prefix("content-length:") {
                length = value.trim().parse().ok()?;
            } else if lower.starts_with("authorization:") {
                headers += &line;
            }
        }
        let reaction = match (self.on_head)(length) {
            Some(reaction) => reaction,
            None => {
                let mut body = vec![0; length];
                stream.read_exact(&mut body).ok()?;
                let body = String::from_utf8(body).ok()?;
                let mut seen = self.seen.lock().unwrap();
                let request = Seen {
                    operation: path.rsplit('/').next()?.to_owned(),
                    body,
                    before: seen.len(),
                    before_here,
                };
                seen.push(request.clone());
                drop(seen);
                match (self.on_request)(&request) {
                    Reaction::Forward => Reaction::Answer(self.forward(&path, &headers, &request)?),
                    Reaction::Before(prefix) => {
                        let answer = self.forward(&path, &headers, &request)?;
                        Reaction::Answer([prefix.as_bytes(), &answer].concat())
                    }
                    other => other,
                }
            }
        };
        let stream = stream.get_mut();
        match reaction {
            Reaction::Answer(answer) => stream.write_all(&answer).ok(),
            Reaction::Last(answer) => {
                let _ = stream.write_all(&answer);
                None
            }
            Reaction::Endless(chunk) => {
                let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
                stream.write_all(head.as_bytes()).ok()?;
                let chunk = format!("{:x}\r\n{chunk}\r\n", chunk.len());
                let many = chunk.repeat(64);
                while stream.write_all(many.as_bytes()).is_ok() {}
                None
            }
            Reaction::Close | Reaction::Forward | Reaction::Before(_) => None,
        }
    }

    fn forward(&self, path: &str, headers: &str, seen: &Seen) -> Option<Vec<u8>> {
        let body = seen.body.as_bytes();
        let reply = exchange(self.coordinator, &request("POST", path, headers, body))?;
        Some(answer(reply.status, "application/json", &reply.body))
    }
}

/// An answer that keeps the connection.
pub fn answer(status: u16, content_type: &str, body: &str) -> Vec<u8> {
    let length = body.len();
    format!(
        "HTTP/1.1 {status} X\r\nContent-Type: {content_type}\r\nContent-Length: {length}\r\n\r\n{body}"
    )
    .into_bytes()
}

/// As nginx answers.
pub fn too_large() -> Vec<u8> {
    let page = "<html><head><title>413 Request Entity Too Large</title></head></html>";
    answer(413, "text/html", page)
}
