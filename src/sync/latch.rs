//! A latch: set once, and sent to any number of channels, without a list of them.

use crossbeam_channel::{Receiver, Sender, bounded, unbounded};

/// Receivers beyond this number find their channel closed and empty. A channel does not count its
/// dropped receivers, and a program may ask for one in every turn of a loop: this limits the messages
/// to a megabyte, for as long as a receiver is left.
const MOST_MESSAGES: usize = 131_072;

/// See the module. All receivers share one channel, so that dropped ones cost nothing.
#[derive(Debug)]
pub(crate) struct Latch<T> {
    value: Option<T>,
    channel: Option<(Sender<T>, Receiver<T>)>,
    handed_out: usize,
}

impl<T: Clone> Latch<T> {
    pub(crate) const fn new() -> Self {
        Self {
            value: None,
            channel: None,
            handed_out: 0,
        }
    }

    /// A channel that gets the value when it is set, at once if it has been, and is closed then.
    pub(crate) fn receiver(&mut self) -> Receiver<T> {
        if let Some(value) = &self.value {
            let (sender, receiver) = bounded(1);
            // The channel has room.
            let _ = sender.try_send(value.clone());
            return receiver;
        }
        self.handed_out += 1;
        let (_, receiver) = self.channel.get_or_insert_with(unbounded);
        receiver.clone()
    }

    pub(crate) fn set(&mut self, what: T) {
        self.value = Some(what.clone());
        let Some((sender, receiver)) = self.channel.take() else {
            return;
        };
        // Then sending fails once all other receivers were dropped.
        drop(receiver);
        let mut messages = 0..self.handed_out.min(MOST_MESSAGES);
        while messages.next().is_some() && sender.try_send(what.clone()).is_ok() {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn early_and_late_receivers_get_the_value() {
        let mut latch = Latch::new();
        let early = [latch.receiver(), latch.receiver()];
        assert!(early[0].try_recv().is_err());
        latch.set(7);
        for receiver in early {
            assert_eq!(receiver.recv(), Ok(7));
        }
        let late = latch.receiver();
        assert_eq!(late.recv(), Ok(7));
        assert!(late.recv().is_err(), "and it is closed then");
    }

    #[test]
    fn receivers_that_were_dropped_cost_nothing() {
        let mut latch = Latch::new();
        for _ in 0..100_000 {
            drop(latch.receiver());
        }
        let kept = latch.receiver();
        latch.set(());
        assert_eq!(kept.recv(), Ok(()));
        assert!(kept.len() <= MOST_MESSAGES);
    }

    #[test]
    fn all_of_many_get_their_message() {
        let mut latch = Latch::new();
        let receivers: Vec<_> = (0..100_000).map(|_| latch.receiver()).collect();
        latch.set(7);
        let heard = receivers.iter().filter(|receiver| receiver.recv() == Ok(7));
        assert_eq!(heard.count(), receivers.len());
        assert!(receivers[0].recv().is_err(), "and it is closed then");
    }

    #[test]
    fn nothing_is_sent_to_receivers_that_were_all_dropped() {
        let mut latch = Latch::new();
        let receivers: Vec<_> = (0..1_000).map(|_| latch.receiver()).collect();
        drop(receivers);
        latch.set(());
        assert_eq!(latch.receiver().len(), 1, "a late one gets its own");
    }
}
