//! Server-sent events: one stream to each watcher, never more than a message or two ahead of it.

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

use super::board::{Board, Message};

/// With nothing to tell, that the stream is alive is said so often.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// A watcher that takes in nothing for so long is given up.
const PATIENCE: Duration = Duration::from_secs(30);
/// Then a watcher has to come again, which a browser does by itself.
const LONGEST_STREAM: Duration = Duration::from_secs(3_600);
/// How soon a browser comes again.
const RETRY: &str = "retry: 1000\n\n";

/// What a stream is made of.
pub(super) struct Wish {
    pub board: Arc<Board>,
    /// The rows too, not only what happens.
    pub rows: bool,
    /// The last event that was seen.
    pub after: Option<String>,
}

/// The body of an answer that goes on until the watcher goes, or the dashboard is closed.
pub(super) fn body(
    wish: Wish,
    closing: watch::Receiver<bool>,
    place: OwnedSemaphorePermit,
) -> Body {
    let (sender, receiver) = mpsc::channel(1);
    tokio::spawn(async move {
        let ended = sender.clone();
        tokio::select! {
            () = send(wish, sender) => {}
            () = ended.closed() => {}
            () = closed(closing) => {}
            () = sleep(LONGEST_STREAM) => {}
        }
        drop(place);
    });
    Body::new(Stream(receiver))
}

async fn closed(mut closing: watch::Receiver<bool>) {
    let _ = closing.wait_for(|closed| *closed).await;
}

/// Tells everything, and then what is new; everything again to a watcher that could not follow.
async fn send(mut wish: Wish, sender: mpsc::Sender<Bytes>) {
    let line = Line(sender);
    if line.send(RETRY.into()).await.is_none() {
        return;
    }
    loop {
        let (board, after) = (Arc::clone(&wish.board), wish.after.take());
        // With many workers that takes a moment.
        let joined = spawn_blocking(move || board.join(after.as_deref())).await;
        let Ok((rows, news, feed)) = joined else {
            return;
        };
        for message in [rows, news] {
            if line.pass_on(message, wish.rows).await.is_none() {
                return;
            }
        }
        if follow(&line, feed, wish.rows).await.is_none() {
            return;
        }
    }
}

/// `Some` if it has to be told everything again, `None` if it is gone.
async fn follow(line: &Line, mut feed: broadcast::Receiver<Message>, rows: bool) -> Option<()> {
    loop {
        match timeout(KEEP_ALIVE, feed.recv()).await {
            Ok(Ok(message)) => line.pass_on(message, rows).await?,
            Ok(Err(RecvError::Lagged(_))) => return Some(()),
            Ok(Err(RecvError::Closed)) => return None,
            Err(_) => line.send(": still here\n\n".into()).await?,
        }
    }
}

/// The way to one watcher.
struct Line(mpsc::Sender<Bytes>);

impl Line {
    async fn pass_on(&self, message: Message, rows: bool) -> Option<()> {
        match message {
            Message::Rows(bytes) if rows => self.send(bytes).await,
            Message::Rows(_) => Some(()),
            Message::News(bytes) => self.send(bytes).await,
        }
    }

    async fn send(&self, bytes: Bytes) -> Option<()> {
        if bytes.is_empty() {
            return Some(());
        }
        timeout(PATIENCE, self.0.send(bytes)).await.ok()?.ok()
    }
}

struct Stream(mpsc::Receiver<Bytes>);

impl hyper::body::Body for Stream {
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
