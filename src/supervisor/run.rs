//! Supervises work on the calling thread.

use super::stopping::stop_linked;
use super::{InCharge, Outcome, end_of_work};
use crate::error::Error;
use crate::sync::panics;
use crate::sync::threads;
use crate::worker::WorkerHeartbeat;

impl WorkerHeartbeat {
    /// Runs work on the calling thread and supervises it: for scoped threads, for jobs of a pool, for
    /// `main`. The work may borrow.
    ///
    /// The worker ends with the work, as with a [supervised future](Self::supervise): as stopped if
    /// it completed, [`finite`](crate::Builder::finite) or not; as dead if it panicked or returned a
    /// [failure](Outcome). A panic is caught: the record keeps its message, location and call stack,
    /// and the caller does not unwind. Workers that are [linked](crate::Supervisor::linked_to) to
    /// this one are stopped, and awaited.
    ///
    /// A worker that has ended already still runs the work. Its record changes only if it was stopped
    /// and the work fails.
    ///
    /// The call installs the panic hook, if no [`Supervisor`](crate::Supervisor) has.
    ///
    /// # Errors
    /// [`Error::Panicked`] if the work panicked. What the work returned is the `Ok` value, a
    /// `Result` of its own included: `hb.run(|| import(&files))??`.
    ///
    /// ```
    /// use worker_heartbeat::{Registry, WorkerHeartbeat};
    ///
    /// let registry = Registry::new();
    /// let sizes = [3, 0, 4];
    /// std::thread::scope(|scope| {
    ///     for (n, size) in sizes.iter().enumerate() {
    ///         let hb = WorkerHeartbeat::builder("share").id(format!("share-{n}"));
    ///         let hb = hb.registry(&registry).start().unwrap();
    ///         scope.spawn(move || hb.run(|| 12 / size));
    ///     }
    /// });
    /// let health = |id| registry.get(id).unwrap().health().to_string();
    /// assert!(health("share-0").starts_with("stopped: completed"));
    /// assert!(health("share-1").contains("attempt to divide by zero"));
    /// # Ok::<(), worker_heartbeat::Error>(())
    /// ```
    pub fn run<T: Outcome>(&self, work: impl FnOnce() -> T) -> Result<T, Error> {
        let membership = self.membership();
        let charge = InCharge::of(membership);
        let at_work = membership.begin_work();
        let on_thread = at_work.on_this_thread();
        membership.worker_ref().run_on(Some(threads::current()));
        let outcome = panics::supervise(&charge, work);
        let (end, result) = end_of_work(&charge, self.id(), outcome);
        membership.end(end);
        stop_linked(membership);
        drop(on_thread);
        result
    }
}
