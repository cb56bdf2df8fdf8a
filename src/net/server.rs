//! A server on a thread of its own, which answers whatever the application's runtime is doing.

use std::future::Future;
use std::io;
use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::runtime::{Handle, Runtime};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, Sleep, sleep, timeout};

use crate::error::Error;
use crate::sync::background::Background;

/// Name of the thread; the kernel keeps 15 bytes of it.
const THREAD_NAME: &str = "wh-server";
/// The most connections at a time. Others wait until one ends; each ends when it is idle.
const MOST_CONNECTIONS: usize = 512;
/// The longest time for a request's head to come in, and for a connection to be idle.
const HEAD_TIMEOUT: Duration = Duration::from_secs(15);
/// A client that takes in nothing for so long is given up.
const WRITE_TIMEOUT: Duration = Duration::from_secs(15);
/// When the server ends, what it is at may take so long.
const FAREWELL: Duration = Duration::from_secs(1);
/// Nothing can be accepted (no file descriptors are left, as a rule): not to be asked all the time.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A server at work. Dropping it ends its thread and frees its port.
#[derive(Debug)]
pub(crate) struct Server {
    address: SocketAddr,
    runtime: Handle,
    ending: watch::Sender<bool>,
    thread: Option<Background>,
}

/// The addresses that this stands for.
pub(crate) fn resolve(
    address: &(impl ToSocketAddrs + ?Sized),
    shown: &str,
) -> Result<Vec<SocketAddr>, Error> {
    let listen = |source| Error::Listen {
        address: shown.to_owned(),
        source,
    };
    let found: Vec<SocketAddr> = address.to_socket_addrs().map_err(listen)?.collect();
    if found.is_empty() {
        return Err(listen(io::Error::from(io::ErrorKind::AddrNotAvailable)));
    }
    Ok(found)
}

impl Server {
    pub(crate) fn start(
        addresses: &[SocketAddr],
        shown: &str,
        router: Router,
    ) -> Result<Self, Error> {
        let failed = |source| Error::Listen {
            address: shown.to_owned(),
            source,
        };
        let listener = TcpListener::bind(addresses).map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let threadless = |source| Error::Thread {
            name: THREAD_NAME.to_owned(),
            source,
        };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .thread_name("wh-store")
            .build()
            .map_err(threadless)?;
        let listener = {
            let _inside = runtime.enter();
            tokio::net::TcpListener::from_std(listener).map_err(failed)?
        };
        let (ending, end) = watch::channel(false);
        let handle = runtime.handle().clone();
        let thread = Background::start(THREAD_NAME, move || run(runtime, listener, router, end))?;
        Ok(Self {
            address,
            runtime: handle,
            ending,
            thread: Some(thread),
        })
    }

    /// Where what belongs to the server can run as long as it does.
    pub(crate) const fn runtime(&self) -> &Handle {
        &self.runtime
    }

    pub(crate) const fn local_addr(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.ending.send_replace(true);
        if let Some(thread) = self.thread.take() {
            thread.join();
        }
    }
}

fn run(
    runtime: Runtime,
    listener: tokio::net::TcpListener,
    router: Router,
    end: watch::Receiver<bool>,
) {
    runtime.block_on(accept(listener, router, end));
    // A store that hangs must not keep the application from ending.
    runtime.shutdown_timeout(FAREWELL);
}

async fn accept(listener: tokio::net::TcpListener, router: Router, mut end: watch::Receiver<bool>) {
    let places = Arc::new(Semaphore::new(MOST_CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            biased;
            _ = end.wait_for(|end| *end) => break,
            Some(_) = connections.join_next() => continue,
            accepted = accept_one(&listener, &places) => accepted,
        };
        let Some((stream, place)) = accepted else {
            continue;
        };
        let (router, end) = (router.clone(), end.clone());
        connections.spawn(async move {
            serve(stream, router, end).await;
            drop(place);
        });
    }
    drop(listener);
    let farewell = async { while connections.join_next().await.is_some() {} };
    // Those that are not done by then are cut off with the runtime.
    let _ = timeout(FAREWELL, farewell).await;
}

async fn accept_one(
    listener: &tokio::net::TcpListener,
    places: &Arc<Semaphore>,
) -> Option<(TcpStream, tokio::sync::OwnedSemaphorePermit)> {
    let place = Arc::clone(places).acquire_owned().await.ok()?;
    match listener.accept().await {
        Ok((stream, _)) => Some((stream, place)),
        Err(_) => {
            sleep(ACCEPT_PAUSE).await;
            None
        }
    }
}

async fn serve(stream: TcpStream, router: Router, mut end: watch::Receiver<bool>) {
    // Answers are small, and waited for.
    let _ = stream.set_nodelay(true);
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .serve_connection(
            TokioIo::new(Patient::new(stream)),
            TowerToHyperService::new(router),
        );
    let mut connection = std::pin::pin!(connection);
    tokio::select! {
        // What is wrong with a connection is the client's own affair.
        _ = connection.as_mut() => return,
        _ = end.wait_for(|end| *end) => connection.as_mut().graceful_shutdown(),
    }
    let _ = connection.await;
}

/// A connection that is given up when nothing can be written for too long. (Hyper limits the time
/// to read a head, and the handlers that to read a body.)
struct Patient {
    stream: TcpStream,
    stuck: Option<Pin<Box<Sleep>>>,
}

impl Patient {
    const fn new(stream: TcpStream) -> Self {
        Self {
            stream,
            stuck: None,
        }
    }

    fn watched<T>(
        &mut self,
        context: &mut Context<'_>,
        written: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.stuck = None;
            return written;
        }
        let stuck = self.stuck.get_or_insert_with(|| {
            Box::pin(tokio::time::sleep_until(Instant::now() + WRITE_TIMEOUT))
        });
        match stuck.as_mut().poll(context) {
            Poll::Ready(()) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl AsyncRead for Patient {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Patient {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.watched(context, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        self.watched(context, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(context);
        self.watched(context, flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
