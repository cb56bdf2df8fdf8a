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

/// Hooked signals have their former actions again.
static RESTORED: AtomicBool = AtomicBool::new(false);

/// The hooks of this process, or of the process that it was forked from.
static INSTALLED: Mutex<Option<Arc<Signals>>> = Mutex::new(None);

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

/// The right to install a shutdown: one at a time, and one in a process.
pub(super) struct InstallGuard(MutexGuard<'static, Option<Arc<Signals>>>);

impl InstallGuard {
    /// `None` if a shutdown is installed in this process, or is being installed. A child may
    /// install one of its own.
    pub(super) fn take() -> Option<Self> {
        // Not `lock`: in a child, the thread that holds it may not exist.
        let installed = INSTALLED.try_lock()?;
        let is_here = |signals: &Arc<Signals>| !signals.are_inherited();
        (!installed.as_ref().is_some_and(is_here)).then_some(Self(installed))
    }

    /// Hooks these signals, or none of them. Also returns the sender that wakes the waiting thread.
    pub(super) fn install(
        mut self,
        signals: &[Signal],
        hook_ignored: bool,
    ) -> Result<(SignalListener, WakeSender), Error> {
        let inherited = self.0.clone();
        let inherited = inherited.as_ref().map_or(&[][..], |there| &there.hooks);
        let mut hooks = choose(signals, hook_ignored, inherited)?;
        // All descriptors before the first hook: they may run out.
        let (wake_sender, wake_receiver) =
            self_pipe::new().map_err(|source| refused("signals", source))?;
        let mut wake_senders = Vec::new();
        for hook in &hooks {
            let wake_sender = wake_sender.try_clone();
            wake_senders.push(wake_sender.map_err(|source| refused(hook.signal.name(), source))?);
        }
        let failed = hooks
            .iter_mut()
            .zip(wake_senders)
            .find_map(|(hook, wake_sender)| {
                let source = hook.set(wake_sender).err()?;
                Some(refused(hook.signal.name(), source))
            });
        if let Some(error) = failed {
            // A signal that was hooked once keeps its handler.
            hooks.iter().for_each(Hook::silence);
            RESTORED.store(true, Ordering::SeqCst);
            return Err(error);
        }
        // The hooks of the parent wake the parent's thread.
        for hook in inherited {
            hook.silence();
            hook.restore.map(unregister);
        }
        RESTORED.store(false, Ordering::SeqCst);
        let signals = Arc::new(Signals {
            process: process::id(),
            hooks,
        });
        *self.0 = Some(Arc::clone(&signals));
        Ok((
            SignalListener {
                signals,
                wake_receiver,
            },
            wake_sender,
        ))
    }
}

fn refused(signal: &'static str, error: io::Error) -> Error {
    Error::Signal { signal, error }
}

/// The signals to hook: each once, and ignored ones only on request. An error if one of them would
/// never arrive.
fn choose(signals: &[Signal], hook_ignored: bool, inherited: &[Hook]) -> Result<Vec<Hook>, Error> {
    let state = SignalState::read();
    let mut hooks = Vec::<Hook>::new();
    let mut blocked = Vec::new();
    for signal in signals {
        let Some(number) = signal.number() else {
            continue;
        };
        let known = inherited.iter().find(|hook| hook.signal == *signal);
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
        installed.iter().for_each(|signals| signals.act_in_child());
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
