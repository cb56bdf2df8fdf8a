//! Waiting for a shutdown, blocking and async.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::thread;
use std::time::Duration;

use super::{End, Inner, Progress, ShutdownReport};
use crate::registry::Registry;
use crate::registry::core::unreturned::Waits;

/// How often a waiting forked child polls for signals.
const LOOK_IN_CHILD: Duration = Duration::from_millis(100);

impl Inner {
    /// Marks the calling thread's supervised work as waiting for the shutdown.
    fn waits(&self, blocking: bool) -> Waits {
        Registry::begin_waits(&self.registries, blocking)
    }

    /// The report, if there is one for the calling thread.
    fn answer(&self, progress: &Progress) -> Option<ShutdownReport> {
        match (&progress.end, &progress.running) {
            (End::Reported(report), _) => Some(report.clone()),
            (End::Forced, _) => None,
            // A cleanup that waits for itself.
            (_, Some(running)) if running.thread == thread::current().id() => {
                self.report(progress, Vec::new())
            }
            _ => None,
        }
    }
}

pub(super) fn wait(inner: &Arc<Inner>) -> ShutdownReport {
    // Supervised work that waits is not waited for.
    let _waits = inner.waits(true);
    // Then there is no thread that waits for signals.
    let in_child = inner.signals.are_inherited();
    loop {
        inner.start_drain();
        let mut progress = inner.progress.lock();
        if let Some(report) = inner.answer(&progress) {
            return report;
        }
        if inner.may_start_drain(&progress) {
            continue;
        }
        let slice = inner.slice(&progress);
        match slice.or_else(|| in_child.then_some(LOOK_IN_CHILD)) {
            Some(slice) => drop(inner.changed.wait_for(&mut progress, slice)),
            None => inner.changed.wait(&mut progress),
        }
        drop(progress);
        inner.check_deadline();
    }
}

pub(super) fn until_requested(
    inner: &Arc<Inner>,
) -> impl Future<Output = ()> + Send + Sync + Unpin + use<> {
    let mut slot = WaitSlot::new(inner);
    poll_fn(move |context| {
        let requested = |inner: &Inner, _: &Progress| inner.is_requested().then_some(());
        slot.poll(context, requested)
    })
}

pub(super) fn until_reported(
    inner: &Arc<Inner>,
) -> impl Future<Output = ShutdownReport> + Send + Sync + Unpin + use<> {
    let mut slot = WaitSlot::new(inner);
    let mut waits = None;
    poll_fn(move |context| {
        // Marks the work that polls this future.
        waits.get_or_insert_with(|| slot.inner.waits(false));
        slot.inner.start_drain();
        loop {
            match slot.poll(context, |inner, progress| {
                if inner.may_start_drain(progress) {
                    return Some(None);
                }
                inner.answer(progress).map(Some)
            }) {
                Poll::Ready(None) => slot.inner.start_drain(),
                Poll::Ready(Some(report)) => {
                    waits = Some(Waits::default());
                    return Poll::Ready(report);
                }
                Poll::Pending => return Poll::Pending,
            }
        }
    })
}

/// An async task's entry in the wait list, removed on drop.
struct WaitSlot {
    inner: Arc<Inner>,
    number: Option<u64>,
}

impl WaitSlot {
    fn new(inner: &Arc<Inner>) -> Self {
        Self {
            inner: Arc::clone(inner),
            number: None,
        }
    }

    fn poll<T>(
        &mut self,
        context: &mut Context<'_>,
        ready: impl FnOnce(&Inner, &Progress) -> Option<T>,
    ) -> Poll<T> {
        // Cloned and dropped outside the lock: wakers are code of the executor.
        let waker = context.waker().clone();
        let mut progress = self.inner.progress.lock();
        if let Some(output) = ready(&self.inner, &progress) {
            return Poll::Ready(output);
        }
        let (number, replaced) = progress.waiting.keep(self.number, waker);
        self.number = Some(number);
        drop(progress);
        drop(replaced);
        Poll::Pending
    }
}

impl Drop for WaitSlot {
    fn drop(&mut self) {
        if let Some(number) = self.number {
            let forgotten = self.inner.progress.lock().waiting.forget(number);
            drop(forgotten);
        }
    }
}
