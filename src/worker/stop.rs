//! The worker's side of a stop request: asking for it, and waiting for it.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use crossbeam_channel::Receiver;

use super::WorkerHeartbeat;
use crate::cell::Phase;
use crate::clock::Sleeper;

impl WorkerHeartbeat {
    /// Whether the worker was asked to stop. Cheap enough for every turn of a loop.
    ///
    /// ```
    /// use worker_heartbeat::{Registry, Supervisor, WorkerHeartbeat};
    ///
    /// let supervisor = Supervisor::new(Registry::global());
    /// let worker = supervisor.spawn(WorkerHeartbeat::builder("poller"), |hb| {
    ///     while !hb.stop_requested() {
    ///         hb.beat();
    ///         // work
    ///     }
    ///     Ok(())
    /// })?;
    /// worker.stop();
    /// assert!(worker.join().is_completed());
    /// # Ok::<(), worker_heartbeat::Error>(())
    /// ```
    #[must_use]
    pub fn stop_requested(&self) -> bool {
        let worker = self.membership.worker_ref();
        let state = worker.cell().state();
        // A request that came after the worker's end is not in its cell. The work may go on.
        state.stop_requested || (state.phase != Phase::Live && worker.stop_requested())
    }

    /// Waits until the worker is asked to stop: for `select!` in an asynchronous worker.
    ///
    /// ```
    /// use worker_heartbeat::WorkerHeartbeat;
    ///
    /// # async fn next_message() -> String {
    /// #     std::future::pending().await
    /// # }
    /// # tokio::runtime::Builder::new_current_thread().build()?.block_on(async {
    /// let hb = WorkerHeartbeat::builder("mailer").start()?;
    /// let work = hb.supervise(async {
    ///     loop {
    ///         tokio::select! {
    ///             () = hb.wait_for_stop() => break,
    ///             message = next_message() => println!("{message}"),
    ///         }
    ///     }
    /// });
    /// work.stop();
    /// work.await?;
    /// # Ok::<(), worker_heartbeat::Error>(())
    /// # })?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn wait_for_stop(&self) -> impl Future<Output = ()> + '_ {
        StopRequested {
            worker: self,
            number: None,
        }
    }

    /// Waits until the worker is asked to stop, but no longer than this, by the registry's clock.
    /// Returns whether it was asked. It blocks the calling thread.
    ///
    /// For periodic work, in place of `sleep`. Waiting is not progress: mark the worker idle first,
    /// or announce the silence.
    ///
    /// ```
    /// use std::time::Duration;
    /// use worker_heartbeat::{Registry, Supervisor, WorkerHeartbeat};
    ///
    /// let supervisor = Supervisor::new(&Registry::new());
    /// supervisor.spawn(WorkerHeartbeat::builder("janitor"), |hb| {
    ///     loop {
    ///         let task = hb.begin_task("", "removing old files");
    ///         // work
    ///         drop(task); // it is idle now
    ///         if hb.wait_for_stop_timeout(Duration::from_secs(60)) {
    ///             return Ok(());
    ///         }
    ///     }
    /// })?;
    /// assert!(supervisor.shutdown(Duration::from_secs(10)).is_clean());
    /// # Ok::<(), worker_heartbeat::Error>(())
    /// ```
    #[must_use = "it may return because the worker has to stop"]
    pub fn wait_for_stop_timeout(&self, timeout: Duration) -> bool {
        let clock = self.registry().clock();
        let sleeper = Sleeper::new(clock);
        let alarm = Waker::from(Arc::new(sleeper.alarm()));
        let due = clock.now().after(timeout);
        let mut wait = StopRequested {
            worker: self,
            number: None,
        };
        loop {
            let asked = Pin::new(&mut wait).poll(&mut Context::from_waker(&alarm));
            if asked.is_ready() || clock.now() >= due {
                return asked.is_ready();
            }
            sleeper.sleep_until(due);
        }
    }

    /// A channel that receives a message and closes when the worker is asked to stop, or at once if
    /// it was asked before. For threads that wait on channels with [`crossbeam_channel::select!`].
    ///
    /// All receivers share one channel: take one message from each. Ask for one before a loop, not in
    /// every turn. Beyond 131,072 receivers in a life, dropped ones included, a receiver finds its
    /// channel closed and empty.
    ///
    /// ```
    /// use crossbeam_channel::{never, select};
    /// use worker_heartbeat::{Registry, Supervisor, WorkerHeartbeat};
    ///
    /// let supervisor = Supervisor::new(Registry::global());
    /// let worker = supervisor.spawn(WorkerHeartbeat::builder("mailer"), |hb| {
    ///     let (messages, stop) = (never::<String>(), hb.stop_receiver());
    ///     loop {
    ///         select! {
    ///             recv(messages) -> message => println!("{}", message?),
    ///             recv(stop) -> _ => return Ok(()),
    ///         }
    ///     }
    /// })?;
    /// worker.stop();
    /// assert!(worker.join().is_completed());
    /// # Ok::<(), worker_heartbeat::Error>(())
    /// ```
    #[must_use]
    pub fn stop_receiver(&self) -> Receiver<()> {
        self.membership.worker_ref().stop_receiver()
    }
}

/// Resolves when the worker is asked to stop. Dropped, it leaves nothing behind.
struct StopRequested<'a> {
    worker: &'a WorkerHeartbeat,
    number: Option<u64>,
}

impl Future for StopRequested<'_> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if self.worker.stop_requested() {
            return Poll::Ready(());
        }
        let worker = self.worker.membership.worker_ref();
        self.number = Some(worker.on_stop(self.number, context.waker()));
        Poll::Pending
    }
}

impl Drop for StopRequested<'_> {
    fn drop(&mut self) {
        if let Some(number) = self.number {
            self.worker.membership.worker_ref().forget_stop(number);
        }
    }
}
