//! A TCP proxy that loses answers.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

/// Passes everything on, apart from the answers that a test wants lost. Ends with the program.
pub struct LosingProxy {
    address: SocketAddr,
    state: Arc<State>,
}

struct State {
    target: SocketAddr,
    /// Requests that contain this, and how many of them remain without an answer.
    pattern: Mutex<Vec<u8>>,
    to_lose: AtomicUsize,
    lost: AtomicUsize,
}

impl LosingProxy {
    pub fn start(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(State {
            target,
            pattern: Mutex::default(),
            to_lose: AtomicUsize::new(0),
            lost: AtomicUsize::new(0),
        });
        let shared = Arc::clone(&state);
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let state = Arc::clone(&shared);
                thread::spawn(move || state.serve(client));
            }
        });
        Self { address, state }
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The next requests that contain this are done, and then their connection is closed.
    pub fn lose_answers(&self, pattern: &str, count: usize) {
        *self.state.pattern.lock().unwrap() = pattern.as_bytes().to_vec();
        self.state.to_lose.store(count, Ordering::SeqCst);
    }

    /// How many answers were lost.
    pub fn lost(&self) -> usize {
        self.state.lost.load(Ordering::SeqCst)
    }
}

impl State {
    fn serve(self: Arc<Self>, mut client: TcpStream) {
        let Ok(mut server) = TcpStream::connect(self.target) else {
            return;
        };
        let cut = Arc::new(AtomicBool::new(false));
        let back = (client.try_clone().unwrap(), server.try_clone().unwrap());
        let (state, cutting) = (Arc::clone(&self), Arc::clone(&cut));
        let answers = thread::spawn(move || {
            let (mut client, mut server) = back;
            let mut buffer = [0; 64 * 1024];
            while let Ok(size @ 1..) = server.read(&mut buffer) {
                if cutting.load(Ordering::SeqCst) {
                    state.lost.fetch_add(1, Ordering::SeqCst);
                    break;
                }
                if client.write_all(&buffer[..size]).is_err() {
                    break;
                }
            }
            let _ = client.shutdown(Shutdown::Both);
            let _ = server.shutdown(Shutdown::Both);
        });
        let mut buffer = [0; 64 * 1024];
        while let Ok(size @ 1..) = client.read(&mut buffer) {
            if self.is_lost(&buffer[..size]) {
                cut.store(true, Ordering::SeqCst);
            }
            if server.write_all(&buffer[..size]).is_err() {
                break;
            }
        }
        let _ = server.shutdown(Shutdown::Write);
        let _ = answers.join();
    }

    fn is_lost(&self, request: &[u8]) -> bool {
        let pattern = self.pattern.lock().unwrap();
        let found = !pattern.is_empty() && request.windows(pattern.len()).any(|w| w == &**pattern);
        let less = |left: usize| left.checked_sub(1);
        found
            && self
                .to_lose
                .fetch_update(Ordering::SeqCst, Ordering::SeqCst, less)
                .is_ok()
    }
}
