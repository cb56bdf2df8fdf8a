//! Waiting for a shutdown, on a thread and in a task.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::thread;
use std::time::Duration;

use super::{End, Inner, Progress, ShutdownReport};
use crate::registry::Registry;
use crate::registry::core::unreturned::Waits;

/// How often a forked child that waits looks for signals.
const LOOK_IN_CHILD: Duration = Duration::from_millis(100);

impl Inner {
    /// The calling thread's supervised work waits for the end.
    fn waits(&self, blocking: bool) -> Waits {
        Waits::begin(self.registries.iter().map(Registry::core), blocking)
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
        inner.attend();
        let mut progress = inner.progress.lock();
        if let Some(report) = inner.answer(&progress) {
            return report;
        }
        if inner.may_attend(&progress) {
            continue;
        }
        let slice = inner.slice(&progress);
        match slice.or_else(|| in_child.then_some(LOOK_IN_CHILD)) {
            Some(slice) => drop(inner.changed.wait_for(&mut progress, slice)),
            None => inner.changed.wait(&mut progress),
        }
        drop(progress);
        inner.look();
    }
}

pub(super) fn until_requested(
    inner: &Arc<Inner>,
) -> impl Future<Output = ()> + Send + Sync + Unpin + use<> {
    let mut place = Place::new(inner);
    poll_fn(move |context| {
        let requested = |inner: &Inner, _: &Progress| inner.is_requested().then_some(());
        place.poll(context, requested)
    })
}

pub(super) fn until_reported(
    inner: &Arc<Inner>,
) -> impl Future<Output = ShutdownReport> + Send + Sync + Unpin + use<> {
    let mut place = Place::new(inner);
    let mut waits = None;
    poll_fn(move |context| {
        // Of the work that polls it.
        waits.get_or_insert_with(|| place.inner.waits(false));
        place.inner.attend();
        loop {
            match place.poll(context, |inner, progress| {
                if inner.may_attend(progress) {
                    return Some(None);
                }
                inner.answer(progress).map(Some)
            }) {
                Poll::Ready(None) => place.inner.attend(),
                Poll::Ready(Some(report)) => {
                    waits = Some(Waits::default());
                    return Poll::Ready(report);
                }
                Poll::Pending => return Poll::Pending,
            }
        }
    })
}

/// A task's place among those that wait. Dropped, it leaves nothing behind.
struct Place {
    inner: Arc<Inner>,
    number: Option<u64>,
}

impl Place {
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

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(number) = self.number {
            let forgotten = self.inner.progress.lock().waiting.forget(number);
            drop(forgotten);
        }
    }
}
