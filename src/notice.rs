//! Something that is said once, to any number of channels, without keeping account of them.

use crossbeam_channel::{Receiver, Sender, bounded, unbounded};

/// Receivers beyond this number find their channel closed instead of a message in it. A channel does
/// not say how many of its receivers were dropped, and a program may ask for one in every turn of a
/// loop: this is a megabyte, for as long as one of them is left.
const MOST_MESSAGES: usize = 131_072;

/// See the module. All receivers share one channel, so that those that were dropped cost nothing.
#[derive(Debug)]
pub(crate) struct Notice<T> {
    said: Option<T>,
    channel: Option<(Sender<T>, Receiver<T>)>,
    handed_out: usize,
}

impl<T: Copy> Notice<T> {
    pub(crate) const fn new() -> Self {
        Self {
            said: None,
            channel: None,
            handed_out: 0,
        }
    }

    /// A channel that gets a message when it is said, at once if it has been, and is closed then.
    pub(crate) fn receiver(&mut self) -> Receiver<T> {
        if let Some(said) = self.said {
            let (sender, receiver) = bounded(1);
            // There is room for it.
            let _ = sender.try_send(said);
            return receiver;
        }
        self.handed_out += 1;
        let (_, receiver) = self.channel.get_or_insert_with(unbounded);
        receiver.clone()
    }

    pub(crate) fn say(&mut self, what: T) {
        self.said = Some(what);
        let Some((sender, receiver)) = self.channel.take() else {
            return;
        };
        // So that a channel is known to be closed if all others were dropped.
        drop(receiver);
        let mut messages = 0..self.handed_out.min(MOST_MESSAGES);
        while messages.next().is_some() && sender.try_send(what).is_ok() {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everybody_hears_it_early_or_late() {
        let mut notice = Notice::new();
        let early = [notice.receiver(), notice.receiver()];
        assert!(early[0].try_recv().is_err());
        notice.say(7);
        for receiver in early {
            assert_eq!(receiver.recv(), Ok(7));
        }
        let late = notice.receiver();
        assert_eq!(late.recv(), Ok(7));
        assert!(late.recv().is_err(), "and it is closed then");
    }

    #[test]
    fn receivers_that_were_dropped_cost_nothing() {
        let mut notice = Notice::new();
        for _ in 0..100_000 {
            drop(notice.receiver());
        }
        let kept = notice.receiver();
        notice.say(());
        assert_eq!(kept.recv(), Ok(()));
        assert!(kept.len() <= MOST_MESSAGES);
    }

    #[test]
    fn all_of_many_get_their_message() {
        let mut notice = Notice::new();
        let receivers: Vec<_> = (0..100_000).map(|_| notice.receiver()).collect();
        notice.say(7);
        let heard = receivers.iter().filter(|receiver| receiver.recv() == Ok(7));
        assert_eq!(heard.count(), receivers.len());
        assert!(receivers[0].recv().is_err(), "and it is closed then");
    }

    #[test]
    fn nothing_is_sent_to_receivers_that_were_all_dropped() {
        let mut notice = Notice::new();
        let receivers: Vec<_> = (0..1_000).map(|_| notice.receiver()).collect();
        drop(receivers);
        notice.say(());
        assert_eq!(notice.receiver().len(), 1, "a late one gets its own");
    }
}
