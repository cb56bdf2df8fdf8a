//! Server-sent events: one stream for each subscriber, with at most two messages queued.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes};
use hyper::body::Frame;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{OwnedSemaphorePermit, broadcast, mpsc, watch};
use tokio::task::spawn_blocking;
use tokio::time::{sleep, timeout};

use super::lists::{Lists, Viewer};

/// How often a comment is sent without other messages, so that the client sees a broken connection.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// A stream ends if its client receives nothing for this long.
const SEND_TIMEOUT: Duration = Duration::from_secs(30);
/// A browser reconnects by itself when its stream ends.
const MAX_STREAM: Duration = Duration::from_secs(3_600);
/// How soon a browser reconnects, in milliseconds.
const RETRY: &str = "retry: 1000\n\n";

pub(super) struct StreamRequest {
    pub lists: Arc<Lists>,
    /// The list of workers that is shown. It is kept up to date as long as this exists.
    pub list: Viewer,
    /// Whether to send rows, or events only.
    pub rows: bool,
    /// The id of the last event that the client has seen.
    pub after: Option<String>,
}

/// A body that ends when the client disconnects or the dashboard closes.
pub(super) fn body(
    request: StreamRequest,
    closing: watch::Receiver<bool>,
    permit: OwnedSemaphorePermit,
) -> Body {
    let (sender, receiver) = mpsc::channel(1);
    tokio::spawn(async move {
        let client = sender.clone();
        tokio::select! {
            _ = send_all(request, sender) => {}
            () = client.closed() => {}
            () = closed(closing) => {}
            () = sleep(MAX_STREAM) => {}
        }
        drop(permit);
    });
    Body::new(StreamBody(receiver))
}

async fn closed(mut closing: watch::Receiver<bool>) {
    let _ = closing.wait_for(|closed| *closed).await;
}

/// Sends the whole view and then its changes; the whole view again if the client was too slow.
/// Returns `None` once the client is gone.
async fn send_all(request: StreamRequest, sender: mpsc::Sender<Bytes>) -> Option<Infallible> {
    let StreamRequest {
        lists,
        list,
        rows,
        mut after,
    } = request;
    let client = Client { sender };
    client.send(RETRY.into()).await?;
    let list = Arc::new(list);
    loop {
        let mut changes = None;
        if rows {
            let subscribed = Arc::clone(&list);
            // Encoding many rows blocks.
            let subscribing = spawn_blocking(move || subscribed.live.subscribe());
            let (whole, receiver) = subscribing.await.ok()?;
            client.send(whole).await?;
            changes = Some(receiver);
        }
        let (logged, events) = lists.feed.subscribe(after.take().as_deref());
        client.send(logged).await?;
        client.follow(changes, events).await?;
    }
}

/// One end of a stream.
struct Client {
    sender: mpsc::Sender<Bytes>,
}

/// The functions return `None` once the client is gone.
impl Client {
    /// Returns `Some` if the client was too slow and has missed changes.
    async fn follow(
        &self,
        mut changes: Option<broadcast::Receiver<Bytes>>,
        mut events: broadcast::Receiver<Bytes>,
    ) -> Option<()> {
        loop {
            let message = tokio::select! {
                message = next(&mut changes) => message,
                message = events.recv() => message,
                () = sleep(KEEP_ALIVE) => Ok(": keep-alive\n\n".into()),
            };
            match message {
                Ok(message) => self.send(message).await?,
                Err(RecvError::Lagged(_)) => return Some(()),
                Err(RecvError::Closed) => return None,
            }
        }
    }

    async fn send(&self, bytes: Bytes) -> Option<()> {
        if bytes.is_empty() {
            return Some(());
        }
        let sent = timeout(SEND_TIMEOUT, self.sender.send(bytes)).await;
        sent.ok()?.ok()
    }
}

/// The next message; never, if there are none.
async fn next(receiver: &mut Option<broadcast::Receiver<Bytes>>) -> Result<Bytes, RecvError> {
    match receiver {
        Some(receiver) => receiver.recv().await,
        None => std::future::pending().await,
    }
}

struct StreamBody(mpsc::Receiver<Bytes>);

impl hyper::body::Body for StreamBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let next = self.0.poll_recv(context);
        next.map(|bytes| bytes.map(|bytes| Ok(Frame::data(bytes))))
    }
}
