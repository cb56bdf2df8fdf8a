//! The clients: probes at fixed times, scrapes, and dashboards that stay open.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

const CONNECTIONS: u32 = 8;
/// A request that takes longer has no answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// What came of many requests.
#[derive(Default)]
pub(crate) struct Load {
    /// Microseconds from when each `/livez` was due.
    times: Vec<u32>,
    others: usize,
    pub failed: usize,
    took: Duration,
}

impl Load {
    /// So many requests a second. One that is late does not put off those after it: what they wait
    /// counts as theirs.
    pub(crate) fn run(address: SocketAddr, rate: u32, time: Duration) -> Self {
        let begun = Instant::now();
        let clients: Vec<_> = (0..CONNECTIONS)
            .map(|number| {
                thread::spawn(move || {
                    let gap = Duration::from_secs(1) * CONNECTIONS / rate;
                    ask(
                        address,
                        begun + gap * number / CONNECTIONS,
                        gap,
                        begun + time,
                    )
                })
            })
            .collect();
        let mut all = Self::default();
        for client in clients {
            let one = client.join().expect("a client");
            all.times.extend(one.times);
            all.others += one.others;
            all.failed += one.failed;
        }
        all.times.sort_unstable();
        all.took = begun.elapsed();
        all
    }

    /// As if it had been one.
    pub(crate) fn join(&mut self, other: Self) {
        self.times.extend(other.times);
        self.times.sort_unstable();
        self.others += other.others;
        self.failed += other.failed;
        self.took += other.took;
    }

    pub(crate) fn answered(&self) -> usize {
        self.times.len() + self.others
    }

    pub(crate) fn rate(&self) -> f64 {
        self.answered() as f64 / self.took.as_secs_f64()
    }

    pub(crate) fn percentile(&mut self, part: f64) -> u32 {
        let last = self.times.len().saturating_sub(1);
        self.times
            .get((last as f64 * part) as usize)
            .copied()
            .unwrap_or(u32::MAX)
    }
}

fn ask(address: SocketAddr, first: Instant, gap: Duration, end: Instant) -> Load {
    let mut load = Load::default();
    let mut connection = None;
    let mut due = first;
    for number in 0_u32.. {
        if due >= end {
            break;
        }
        thread::sleep(due.saturating_duration_since(Instant::now()));
        let (path, right): (_, &[u16]) = match number % 10 {
            // While a worker is dead or hangs, this is what it has to say.
            0..=6 => ("/livez", &[200, 503]),
            7 => ("/readyz?verbose", &[200, 503]),
            8 => ("/v1/worker/health?worker=steady-1", &[200]),
            _ => ("/v1/workers?limit=20", &[200]),
        };
        match get(&mut connection, address, path) {
            Ok(status) if right.contains(&status) => {
                if path == "/livez" {
                    load.times.push(due.elapsed().as_micros() as u32);
                } else {
                    load.others += 1;
                }
            }
            Ok(status) => {
                eprintln!("{path}: {status}");
                load.failed += 1;
            }
            Err(error) => {
                eprintln!("{path}: {error}");
                load.failed += 1;
                connection = None;
            }
        }
        due += gap;
    }
    load
}

type Connection = Option<BufReader<TcpStream>>;

/// Asks on a connection that is kept open, and returns the status.
fn get(connection: &mut Connection, address: SocketAddr, path: &str) -> io::Result<u16> {
    let reader = match connection {
        Some(reader) => reader,
        None => connection.insert(connect(address)?),
    };
    write!(
        reader.get_mut(),
        "GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n"
    )?;
    let (status, length) = head(reader)?;
    io::copy(&mut reader.take(length), &mut io::sink())?;
    Ok(status)
}

fn connect(address: SocketAddr) -> io::Result<BufReader<TcpStream>> {
    let stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(BufReader::new(stream))
}

/// The status, and the length of the body if the answer has one.
fn head(reader: &mut BufReader<TcpStream>) -> io::Result<(u16, u64)> {
    let bad = || io::Error::from(io::ErrorKind::InvalidData);
    let (mut status, mut length) = (None, 0);
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let line = line.trim_end().to_ascii_lowercase();
        if line.is_empty() {
            return Ok((status.ok_or_else(bad)?, length));
        }
        if status.is_none() {
            status = line
                .split(' ')
                .nth(1)
                .and_then(|status| status.parse().ok());
        } else if let Some(text) = line.strip_prefix("content-length:") {
            length = text.trim().parse().map_err(|_| bad())?;
        }
    }
}

/// A client that reads and counts until it is stopped.
pub(crate) struct Reader {
    stop: Arc<AtomicBool>,
    count: Arc<AtomicUsize>,
    thread: JoinHandle<()>,
}

impl Reader {
    fn start(work: impl FnOnce(&AtomicBool, &AtomicUsize) + Send + 'static) -> Self {
        let (stop, count) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicUsize::new(0)),
        );
        let (stopped, counted) = (Arc::clone(&stop), Arc::clone(&count));
        let thread = thread::spawn(move || work(&stopped, &counted));
        Self {
            stop,
            count,
            thread,
        }
    }

    /// Returns how much it read.
    pub(crate) fn end(self) -> usize {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("a reader");
        self.count.load(Ordering::Relaxed)
    }
}

/// An open dashboard: one stream of events, of which the messages are counted.
pub(crate) fn dashboard(address: SocketAddr) -> Reader {
    Reader::start(move |stop, count| {
        let mut reader = connect(address).expect("a connection");
        write!(
            reader.get_mut(),
            "GET /v1/events?view=process HTTP/1.1\r\nHost: localhost\r\n\r\n"
        )
        .expect("a request");
        let (status, _) = head(&mut reader).expect("an answer");
        assert_eq!(status, 200);
        let mut line = Vec::new();
        while !stop.load(Ordering::Relaxed) {
            line.clear();
            if reader
                .read_until(b'\n', &mut line)
                .expect("a message in time")
                == 0
            {
                panic!("the stream ended");
            }
            if line.starts_with(b"data:") {
                count.fetch_add(1, Ordering::Relaxed);
            }
        }
    })
}

/// What Prometheus does, more often.
pub(crate) fn scrapes(address: SocketAddr) -> Reader {
    Reader::start(move |stop, count| {
        let mut connection = None;
        while !stop.load(Ordering::Relaxed) {
            let status = get(&mut connection, address, "/metrics").expect("a scrape");
            assert_eq!(status, 200);
            count.fetch_add(1, Ordering::Relaxed);
            thread::sleep(Duration::from_secs(1));
        }
    })
}
