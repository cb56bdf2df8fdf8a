//! The call stack of a death: resolved when somebody asks for it, one at a time, as long as it
//! takes, but not longer than somebody waits.

use std::fmt::{self, Write};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use crate::health::{Death, DeathCause};

/// The longest text of a call stack, in bytes.
const LONGEST: usize = 64 * 1024;
const TIMEOUT: Duration = Duration::from_secs(10);

/// Why there is no call stack.
pub(super) enum Trouble {
    /// None was taken.
    None,
    /// Others are being resolved, or this one takes too long.
    Busy,
}

/// The death as a text: its place, its thread and its call stack.
pub(super) async fn tell(death: Arc<Death>, turns: Arc<Semaphore>) -> Result<String, Trouble> {
    let told = async {
        // The semaphore is never closed.
        let turn = turns.acquire_owned().await.map_err(|_| Trouble::Busy)?;
        let resolved = spawn_blocking(move || {
            let text = text(&death);
            drop(turn);
            text
        });
        resolved.await.unwrap_or_default().ok_or(Trouble::None)
    };
    timeout(TIMEOUT, told).await.unwrap_or(Err(Trouble::Busy))
}

fn text(death: &Death) -> Option<String> {
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
    let place = location.as_deref().unwrap_or("an unknown place");
    // Fails when there is no more room, which is as it should be.
    let _ = write!(
        text,
        "thread '{thread}' panicked at {place}:\n{message}\n\n"
    );
    match backtrace {
        Some(backtrace) => {
            let _ = write!(text, "{backtrace}");
        }
        None => text.0.push_str("no call stack was taken\n"),
    }
    Some(text.0)
}

/// A text that stops growing.
struct Bounded(String);

impl Write for Bounded {
    fn write_str(&mut self, piece: &str) -> fmt::Result {
        if self.0.len() + piece.len() > LONGEST {
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
        let written = write!(text, "{}y", "x".repeat(LONGEST));
        assert!(written.is_err());
        assert_eq!(text.0.len(), LONGEST);
    }
}
