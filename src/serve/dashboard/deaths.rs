//! The text of a death: the place and the message of its panic, and the call stack, which is
//! resolved only on request.

use std::fmt::{self, Write};
use std::sync::Arc;
use std::time::Duration;

use tokio::task::spawn_blocking;
use tokio::time::timeout;

use super::Dashboard;
use crate::health::{CallStack, Death, DeathCause, Health};
use crate::net::response::RequestError;

/// The longest text, in bytes.
const MAX_BYTES: usize = 64 * 1024;
const TIMEOUT: Duration = Duration::from_secs(10);

impl Dashboard {
    /// How this incarnation of the worker died; without an incarnation, its latest death.
    pub(super) async fn death(&self, id: &str, incarnation: Option<u32>) -> Option<Arc<Death>> {
        let logged = incarnation.and_then(|n| self.process.feed.death(id, n));
        if logged.is_some() {
            return logged;
        }
        let (registry, id) = (self.subject.registry.clone(), id.to_owned());
        let read = spawn_blocking(move || {
            let snapshot = registry.get(&id)?.snapshot();
            match (snapshot.health, incarnation) {
                (Health::Dead { death, .. }, None) => Some(death),
                (Health::Dead { death, .. }, Some(n)) if n == snapshot.incarnation => Some(death),
                (_, None) => snapshot.last_death,
                (_, Some(_)) => None,
            }
        });
        read.await.ok()?
    }

    /// The text of a panic. Resolving its call stack goes on after a timeout, so that a later request
    /// finds it resolved.
    pub(super) async fn panic_text(&self, death: Arc<Death>) -> Result<String, RequestError> {
        let permits = Arc::clone(&self.resolving);
        let resolve = async {
            // The semaphore is never closed.
            let permit = permits.acquire_owned().await.ok()?;
            let resolving = spawn_blocking(move || {
                let text = panic_text(&death);
                drop(permit);
                text
            });
            Some(resolving.await.unwrap_or_default())
        };
        match timeout(TIMEOUT, resolve).await {
            Ok(Some(Some(text))) => Ok(text),
            Ok(Some(None)) => Err(RequestError::not_found("no call stack: it did not panic")),
            Ok(None) | Err(_) => Err(RequestError::busy(
                "call stacks are being resolved; retry later",
            )),
        }
    }
}

fn panic_text(death: &Death) -> Option<String> {
    let DeathCause::Panicked {
        message,
        location,
        thread,
        backtrace,
    } = &death.cause
    else {
        return None;
    };
    let mut text = Bounded(String::new());
    let location = location.as_deref().unwrap_or("an unknown place");
    // Writing fails once the text is full, and what was written until then is the result.
    let _ = write!(
        text,
        "thread '{thread}' panicked at {location}:\n{message}\n\n"
    );
    match backtrace {
        Some(backtrace) => {
            let stack = CallStack::from_backtrace(&backtrace.to_string());
            let _ = match stack.place().filter(|place| place.is_application()) {
                Some(_) => write!(text, "in {stack}\n\n{stack:#}"),
                None => write!(text, "{stack:#}"),
            };
        }
        None => text.0.push_str("the call stack was not captured\n"),
    }
    Some(text.0)
}

/// A text of at most [`MAX_BYTES`].
struct Bounded(String);

impl Write for Bounded {
    fn write_str(&mut self, piece: &str) -> fmt::Result {
        if self.0.len() + piece.len() > MAX_BYTES {
            return Err(fmt::Error);
        }
        self.0.push_str(piece);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_bounded() {
        let mut text = Bounded(String::new());
        let written = write!(text, "{}y", "x".repeat(MAX_BYTES));
        assert!(written.is_err());
        assert_eq!(text.0.len(), MAX_BYTES);
    }
}
