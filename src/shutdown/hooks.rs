//! The hooked signals of this process: how they reach the thread that waits for them, and what they
//! do in a forked child, which has the signal handlers but not the thread.
//!
//! Safe code can't make a handler act differently in a child: the child's memory is a copy of its
//! parent's, and a handler can't compare process ids. So a switch, [`RESTORED`], turns all handlers
//! off in a child that asks for it. A child that asks whether a shutdown has begun acts on the
//! signals that arrived before.

use std::io;
use std::process;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use signal_hook::SigId;
use signal_hook::flag;
use signal_hook::low_level::{emulate_default_handler, unregister};

use super::self_pipe::{self, WakeSender};
use super::signal_state::{Before, SignalState};
use super::signals::Signal;
use crate::error::Error;

/// How long an installation waits for another one.
const INSTALL_PATIENCE: Duration = Duration::from_secs(1);

/// Hooked signals have their former actions again.
static RESTORED: AtomicBool = AtomicBool::new(false);

/// The hooks of this process, or of the process that it was forked from.
static INSTALLED: Mutex<Installed> = Mutex::new(Installed {
    shutdowns: Vec::new(),
    failed: Vec::new(),
});

#[derive(Debug)]
struct Installed {
    /// Each signal belongs to one of them.
    shutdowns: Vec<Arc<Signals>>,
    /// Hooks of an installation that failed, while others are installed. A signal that was hooked once
    /// keeps its handler: these perform the default action.
    failed: Vec<Hook>,
}

/// See [`Installed::failed`].
static ALWAYS: AtomicBool = AtomicBool::new(true);

/// The signals of an installed shutdown.
#[derive(Debug)]
pub(super) struct Signals {
    /// The process that hooked them.
    process: u32,
    hooks: Vec<Hook>,
}

#[derive(Debug)]
struct Hook {
    signal: Signal,
    number: i32,
    before: Before,
    arrived: Arc<AtomicBool>,
    /// Performs the signal's default action once [`RESTORED`] is set.
    restore: Option<SigId>,
    /// The handlers that wake the waiting thread.
    calls: Vec<SigId>,
}

/// The receiving end of the hooks, for the waiting thread.
#[derive(Debug)]
pub(super) struct SignalListener {
    signals: Arc<Signals>,
    wake_receiver: self_pipe::Receiver,
}

/// The right to install a shutdown: one at a time.
pub(super) struct InstallGuard(MutexGuard<'static, Installed>);

impl InstallGuard {
    /// `None` if another installation does not end.
    pub(super) fn take() -> Option<Self> {
        // Not `lock`: in a child, the thread that holds it may not exist.
        INSTALLED.try_lock_for(INSTALL_PATIENCE).map(Self)
    }

    /// Hooks these signals, or none of them. Also returns the sender that wakes the waiting thread.
    pub(super) fn install(
        mut self,
        signals: &[Signal],
        hook_ignored: bool,
    ) -> Result<(SignalListener, WakeSender), Error> {
        let installed = &mut *self.0;
        let (inherited, here): (Vec<_>, Vec<_>) = std::mem::take(&mut installed.shutdowns)
            .into_iter()
            .partition(|shutdown| shutdown.are_inherited());
        // A child may install shutdowns of its own; those of its parent stay until one succeeds.
        installed.shutdowns = here.iter().chain(&inherited).map(Arc::clone).collect();
        check_free(signals, &here)?;
        let known = inherited.iter().flat_map(|there| &there.hooks);
        let known: Vec<&Hook> = known.chain(&installed.failed).collect();
        let mut hooks = choose(signals, hook_ignored, &known)?;
        // All descriptors before the first hook: they may run out.
        let (wake_sender, wake_receiver) =
            self_pipe::new().map_err(|error| refused("signals", error))?;
        let mut wake_senders = Vec::new();
        for hook in &hooks {
            let wake_sender = wake_sender.try_clone();
            wake_senders.push(wake_sender.map_err(|error| refused(hook.signal.name(), error))?);
        }
        let failed = hooks
            .iter_mut()
            .zip(wake_senders)
            .find_map(|(hook, wake_sender)| {
                let error = hook.set(wake_sender).err()?;
                Some(refused(hook.signal.name(), error))
            });
        if let Some(error) = failed {
            // A signal that was hooked once keeps its handler.
            hooks.iter().for_each(Hook::silence);
            if here.is_empty() {
                RESTORED.store(true, Ordering::SeqCst);
            } else {
                hooks.iter_mut().for_each(Hook::restore_for_good);
                installed.failed.append(&mut hooks);
            }
            return Err(error);
        }
        // The hooks of the parent wake the parent's thread.
        for hook in known {
            hook.silence();
            hook.restore.map(unregister);
        }
        RESTORED.store(false, Ordering::SeqCst);
        let signals = Arc::new(Signals {
            process: process::id(),
            hooks,
        });
        installed.failed.clear();
        installed.shutdowns = here;
        installed.shutdowns.push(Arc::clone(&signals));
        Ok((
            SignalListener {
                signals,
                wake_receiver,
            },
            wake_sender,
        ))
    }
}

/// An error if one of these signals belongs to another shutdown of this process.
fn check_free(signals: &[Signal], here: &[Arc<Signals>]) -> Result<(), Error> {
    let is_taken = |signal: &&Signal| {
        let mut taken = here.iter().flat_map(|shutdown| shutdown.iter());
        taken.any(|other| other == **signal)
    };
    let taken: Vec<_> = signals
        .iter()
        .filter(is_taken)
        .map(|one| one.name())
        .collect();
    if taken.is_empty() {
        return Ok(());
    }
    let signals = taken.join(", ");
    Err(Error::AlreadyInstalled { signals })
}

fn refused(signal: &'static str, error: io::Error) -> Error {
    Error::Signal { signal, error }
}

/// The signals to hook: each once, and ignored ones only on request. An error if one of them would
/// never arrive.
fn choose(signals: &[Signal], hook_ignored: bool, known: &[&Hook]) -> Result<Vec<Hook>, Error> {
    let state = SignalState::read();
    let mut hooks = Vec::<Hook>::new();
    let mut blocked = Vec::new();
    for signal in signals {
        let Some(number) = signal.number() else {
            continue;
        };
        let known = known.iter().find(|hook| hook.signal == *signal);
        let before = known.map_or_else(|| state.before(number), |hook| hook.before);
        let left = before == Before::Ignored && !hook_ignored;
        if left || hooks.iter().any(|hook| hook.signal == *signal) {
            continue;
        }
        if state.is_blocked_everywhere(number) {
            blocked.push(signal.name());
        }
        hooks.push(Hook {
            signal: *signal,
            number,
            before,
            arrived: Arc::default(),
            restore: None,
            calls: Vec::new(),
        });
    }
    if blocked.is_empty() {
        return Ok(hooks);
    }
    let signals = blocked.join(", ");
    Err(Error::SignalBlocked { signals })
}

/// Restores the former actions of the hooked signals in this process.
pub(super) fn restore_defaults() {
    RESTORED.store(true, Ordering::SeqCst);
    // Not `lock`, as above.
    if let Some(installed) = INSTALLED.try_lock() {
        let shutdowns = installed.shutdowns.iter();
        shutdowns.for_each(|signals| signals.act_in_child());
    }
}

impl Hook {
    fn set(&mut self, wake_sender: WakeSender) -> io::Result<()> {
        // Handlers run in this order: the thread that wakes finds the flag.
        if self.before == Before::Default {
            let restore = flag::register_conditional_default(self.number, &RESTORED)?;
            self.restore = Some(restore);
        }
        let arrived = Arc::clone(&self.arrived);
        self.calls.push(flag::register(self.number, arrived)?);
        self.calls.extend(wake_sender.wake_on_signal(self.number)?);
        Ok(())
    }

    /// Performs the default action from now on.
    fn restore_for_good(&mut self) {
        self.restore.take().map(unregister);
        if self.before == Before::Default {
            self.restore = flag::register_conditional_default(self.number, &ALWAYS).ok();
        }
    }

    fn silence(&self) {
        for call in &self.calls {
            unregister(*call);
        }
    }

    fn has_arrived(&self) -> bool {
        self.arrived.load(Ordering::Relaxed)
    }
}

impl Signals {
    pub(super) fn iter(&self) -> impl Iterator<Item = Signal> {
        self.hooks.iter().map(|hook| hook.signal)
    }

    /// Whether this process is a child of the one that hooked them.
    pub(super) fn are_inherited(&self) -> bool {
        self.process != process::id()
    }

    /// In a forked child, performs the default action of a signal that has arrived. Costs one load for
    /// each signal while none has arrived.
    #[inline]
    pub(super) fn act_in_child(&self) {
        if self.hooks.iter().any(Hook::has_arrived) {
            self.act();
        }
    }

    #[cold]
    fn act(&self) {
        if !self.are_inherited() {
            // The waiting thread is about to take it.
            return;
        }
        for hook in self.hooks.iter().filter(|hook| hook.has_arrived()) {
            hook.arrived.store(false, Ordering::Release);
            if hook.before == Before::Default {
                let _ = emulate_default_handler(hook.number);
            }
        }
    }
}

impl SignalListener {
    pub(super) const fn signals(&self) -> &Arc<Signals> {
        &self.signals
    }

    /// Waits for a signal or a wake-up, for at most `timeout`. Returns the signals that arrived.
    pub(super) fn wait(&mut self, timeout: Option<Duration>) -> Vec<Signal> {
        self.wake_receiver.wait(timeout);
        let hooks = self.signals.hooks.iter();
        hooks
            .filter(|hook| hook.arrived.swap(false, Ordering::AcqRel))
            .map(|hook| hook.signal)
            .collect()
    }
}
