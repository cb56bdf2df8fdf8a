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

use super::live_view::{LiveView, StreamMessage};

/// How often a comment is sent without other messages, so that the client sees a broken connection.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// A stream ends if its client receives nothing for this long.
const SEND_TIMEOUT: Duration = Duration::from_secs(30);
/// A browser reconnects by itself when its stream ends.
const MAX_STREAM: Duration = Duration::from_secs(3_600);
/// How soon a browser reconnects, in milliseconds.
const RETRY: &str = "retry: 1000\n\n";

pub(super) struct StreamRequest {
    pub live: Arc<LiveView>,
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
async fn send_all(mut request: StreamRequest, sender: mpsc::Sender<Bytes>) -> Option<Infallible> {
    let client = Client {
        sender,
        wants_rows: request.rows,
    };
    client.send(RETRY.into()).await?;
    loop {
        let (live, after) = (Arc::clone(&request.live), request.after.take());
        // Encoding many rows blocks.
        let subscribing = spawn_blocking(move || live.subscribe(after.as_deref()));
        let (whole, changes) = subscribing.await.ok()?;
        for message in whole {
            client.send_message(message).await?;
        }
        client.follow(changes).await?;
    }
}

/// One end of a stream.
struct Client {
    sender: mpsc::Sender<Bytes>,
    wants_rows: bool,
}

/// The functions return `None` once the client is gone.
impl Client {
    /// Returns `Some` if the client was too slow and has missed changes.
    async fn follow(&self, mut changes: broadcast::Receiver<StreamMessage>) -> Option<()> {
        loop {
            match timeout(KEEP_ALIVE, changes.recv()).await {
                Ok(Ok(message)) => self.send_message(message).await?,
                Ok(Err(RecvError::Lagged(_))) => return Some(()),
                Ok(Err(RecvError::Closed)) => return None,
                Err(_) => self.send(": keep-alive\n\n".into()).await?,
            }
        }
    }

    async fn send_message(&self, message: StreamMessage) -> Option<()> {
        match message {
            StreamMessage::Rows(_) if !self.wants_rows => Some(()),
            StreamMessage::Rows(bytes) | StreamMessage::Events(bytes) => self.send(bytes).await,
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
