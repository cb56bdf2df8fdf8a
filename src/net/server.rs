//! A server on a dedicated thread, so that it responds even if the application's runtime is blocked.

use std::future::Future;
use std::io;
use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::extract::ConnectInfo;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::runtime::{Handle, Runtime};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Sleep, sleep, timeout};

use super::connections::{Connection, ConnectionCounts, Connections};
use super::descriptors::Descriptors;
use crate::error::Error;
use crate::sync::background::Background;

/// Name of the thread; the kernel keeps 15 bytes of it.
const THREAD_NAME: &str = "wh-server";
/// Concurrent connections; for a further one, another is closed. An idle connection ends after
/// [`HEAD_TIMEOUT`].
const MAX_CONNECTIONS: usize = 512;
/// The longest time to receive the head of a request, which includes the idle time before it.
const HEAD_TIMEOUT: Duration = Duration::from_secs(15);
/// A connection is closed if its client receives nothing for this long.
const WRITE_TIMEOUT: Duration = Duration::from_secs(15);
/// The time that open requests get when the server stops.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(1);
/// The pause after a failed accept, which usually means that no file descriptors are left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(10);

/// A running server. Dropping it ends its thread and frees its port.
#[derive(Debug)]
pub(crate) struct Server {
    address: SocketAddr,
    runtime: Handle,
    stop: watch::Sender<bool>,
    thread: Option<Background>,
}

/// The socket addresses of `address`; errors show it as `display`.
pub(crate) fn resolve(
    address: &(impl ToSocketAddrs + ?Sized),
    display: &str,
) -> Result<Vec<SocketAddr>, Error> {
    let found = address.to_socket_addrs().map_err(listen_error(display))?;
    let found: Vec<SocketAddr> = found.collect();
    if found.is_empty() {
        return Err(listen_error(display)(
            io::ErrorKind::AddrNotAvailable.into(),
        ));
    }
    Ok(found)
}

fn listen_error(display: &str) -> impl Fn(io::Error) -> Error {
    move |error| Error::Listen {
        address: display.to_owned(),
        error,
    }
}

impl Server {
    pub(crate) fn start(
        addresses: &[SocketAddr],
        display: &str,
        router: Router,
        counts: Arc<ConnectionCounts>,
    ) -> Result<Self, Error> {
        let failed = listen_error(display);
        let listener = TcpListener::bind(addresses).map_err(&failed)?;
        listener.set_nonblocking(true).map_err(&failed)?;
        let address = listener.local_addr().map_err(&failed)?;
        let thread_error = |error| Error::Thread {
            name: THREAD_NAME.to_owned(),
            error,
        };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .thread_name("wh-store")
            .build()
            .map_err(thread_error)?;
        let listener = {
            let _context = runtime.enter();
            tokio::net::TcpListener::from_std(listener).map_err(&failed)?
        };
        let (stop, stopped) = watch::channel(false);
        let handle = runtime.handle().clone();
        let serve = move || run(runtime, listener, router, counts, stopped);
        let thread = Background::start(THREAD_NAME, serve)?;
        Ok(Self {
            address,
            runtime: handle,
            stop,
            thread: Some(thread),
        })
    }

    /// Runtime handle for tasks that live as long as the server.
    pub(crate) const fn runtime(&self) -> &Handle {
        &self.runtime
    }

    pub(crate) const fn local_addr(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.send_replace(true);
        if let Some(thread) = self.thread.take() {
            thread.join();
        }
    }
}

fn run(
    runtime: Runtime,
    listener: tokio::net::TcpListener,
    router: Router,
    counts: Arc<ConnectionCounts>,
    stopped: watch::Receiver<bool>,
) {
    runtime.block_on(accept(listener, router, counts, stopped));
    // A store that hangs must not keep the application from ending.
    runtime.shutdown_timeout(SHUTDOWN_TIMEOUT);
}

async fn accept(
    listener: tokio::net::TcpListener,
    router: Router,
    counts: Arc<ConnectionCounts>,
    mut stopped: watch::Receiver<bool>,
) {
    let open = Connections::new(counts);
    let descriptors = Descriptors::of_process();
    let mut tasks = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            biased;
            _ = stopped.wait_for(|stopped| *stopped) => break,
            Some(_) = tasks.join_next() => continue,
            accepted = listener.accept() => accepted,
        };
        let count = open.count();
        let Ok((stream, peer)) = accepted else {
            open.shrink_to(count.saturating_sub(1)).await;
            if count == 0 {
                sleep(ACCEPT_PAUSE).await;
            }
            continue;
        };
        // A new connection always gets a place: it may be a probe.
        // As long as one uses a reserved descriptor, there are no more of them: the next ones may get
        // lower descriptors, which those that are closed leave.
        let is_reserved = descriptors.are_reserved(&stream);
        let most = if is_reserved || open.use_reserve() {
            count.saturating_sub(1)
        } else {
            MAX_CONNECTIONS - 1
        };
        open.shrink_to(most).await;
        let connection = open.open(is_reserved);
        tasks.spawn(serve(
            stream,
            peer,
            connection,
            router.clone(),
            stopped.clone(),
        ));
    }
    drop(listener);
    let drained = async { while tasks.join_next().await.is_some() {} };
    // The end of the runtime closes the remaining connections.
    let _ = timeout(SHUTDOWN_TIMEOUT, drained).await;
}

async fn serve(
    stream: TcpStream,
    peer: SocketAddr,
    connection: Connection,
    router: Router,
    stopped: watch::Receiver<bool>,
) {
    tokio::select! {
        () = answer_all(stream, peer, &connection, router, stopped) => {}
        () = connection.displaced() => {}
    }
    // Only now, because the descriptor is closed, is its place free.
    drop(connection);
}

/// Answers the requests of one connection.
async fn answer_all(
    stream: TcpStream,
    peer: SocketAddr,
    connection: &Connection,
    router: Router,
    mut stopped: watch::Receiver<bool>,
) {
    // Responses are small, and their clients wait for them.
    let _ = stream.set_nodelay(true);
    let stream = WriteTimeout {
        stream,
        deadline: None,
    };
    let router = TowerToHyperService::new(router);
    let service = service_fn(|mut request: hyper::Request<hyper::body::Incoming>| {
        let state = connection.state();
        state.received(request.uri().path());
        request.extensions_mut().insert(ConnectInfo(peer));
        request.extensions_mut().insert(state.clone());
        let answering = router.call(request);
        async move {
            let response = answering.await;
            state.answered();
            response
        }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    tokio::select! {
        // An error of a connection concerns only its client.
        _ = connection.as_mut() => return,
        _ = stopped.wait_for(|stopped| *stopped) => connection.as_mut().graceful_shutdown(),
    }
    let _ = connection.await;
}

/// A connection that fails when nothing can be written for too long. (Hyper limits the time to read
/// a head, and the handlers limit the time to read a body.)
struct WriteTimeout {
    stream: TcpStream,
    deadline: Option<Pin<Box<Sleep>>>,
}

impl WriteTimeout {
    fn limit<T>(
        &mut self,
        context: &mut Context<'_>,
        written: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.deadline = None;
            return written;
        }
        let deadline = self
            .deadline
            .get_or_insert_with(|| Box::pin(sleep(WRITE_TIMEOUT)));
        let elapsed = deadline.as_mut().poll(context);
        elapsed.map(|()| Err(io::ErrorKind::TimedOut.into()))
    }
}

impl AsyncRead for WriteTimeout {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for WriteTimeout {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.limit(context, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        self.limit(context, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(context);
        self.limit(context, flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
