//! The hooked signals of this process: how they reach the thread that waits for them, and what they
//! do in a forked child, which has the hooks and not the thread.
//!
//! Safe code cannot make a hook act differently in a child: the child's memory is a copy of its
//! parent's, and a hook cannot compare process ids. So a switch, [`RESTORED`], turns all hooks off for
//! a child that calls for it, and a child that asks whether a shutdown has begun obeys the signals
//! that came before.

use std::io;
use std::process;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use signal_hook::SigId;
use signal_hook::flag;
use signal_hook::low_level::{emulate_default_handler, unregister};

use super::inherited::{Before, SignalState};
use super::signals::Signal;
use super::wire::{self, Bell};
use crate::error::Error;

/// Hooked signals do again what they did before they were hooked.
static RESTORED: AtomicBool = AtomicBool::new(false);

/// What is hooked in this process, or was hooked in the one that it was forked from.
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
    /// Makes the signal do what it did by default, once [`RESTORED`] is set.
    restore: Option<SigId>,
    /// What wakes the waiting thread.
    calls: Vec<SigId>,
}

/// Where the waiting thread learns of signals.
#[derive(Debug)]
pub(super) struct Ear {
    signals: Arc<Signals>,
    wire: wire::Receiver,
}

/// The right to install a shutdown: one at a time, and one in a process.
pub(super) struct Turn(MutexGuard<'static, Option<Arc<Signals>>>);

impl Turn {
    /// `None` if a shutdown is installed in this process, or is being installed. A child may
    /// install one of its own.
    pub(super) fn take() -> Option<Self> {
        // Not `lock`: in a child, the thread that holds it may not exist.
        let installed = INSTALLED.try_lock()?;
        let is_here = |signals: &Arc<Signals>| !signals.are_inherited();
        (!installed.as_ref().is_some_and(is_here)).then_some(Self(installed))
    }

    /// Hooks these signals, or none of them. Returns also the bell that wakes the waiting thread.
    pub(super) fn install(
        mut self,
        signals: &[Signal],
        hook_ignored: bool,
    ) -> Result<(Ear, Bell), Error> {
        let inherited = self.0.clone();
        let inherited = inherited.as_ref().map_or(&[][..], |there| &there.hooks);
        let mut hooks = choose(signals, hook_ignored, inherited)?;
        // Everything that may run out before the first hook.
        let (bell, wire) = wire::new().map_err(|source| refused("signals", source))?;
        let mut bells = Vec::new();
        for hook in &hooks {
            let bell = bell.try_clone();
            bells.push(bell.map_err(|source| refused(hook.signal.name(), source))?);
        }
        let failed = hooks.iter_mut().zip(bells).find_map(|(hook, bell)| {
            let source = hook.set(bell).err()?;
            Some(refused(hook.signal.name(), source))
        });
        if let Some(error) = failed {
            // A signal that was hooked once keeps its handler.
            hooks.iter().for_each(Hook::silence);
            RESTORED.store(true, Ordering::SeqCst);
            return Err(error);
        }
        // Those of the parent, which wake the parent's thread.
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
        Ok((Ear { signals, wire }, bell))
    }
}

fn refused(signal: &'static str, source: io::Error) -> Error {
    Error::Signal { signal, source }
}

/// The signals that are to be hooked: each once, and those that are ignored only if that is
/// wished. An error if one of them would never arrive.
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

/// From now on, hooked signals do in this process what they did before.
pub(super) fn restore_defaults() {
    RESTORED.store(true, Ordering::SeqCst);
    // Not `lock`, as above.
    if let Some(installed) = INSTALLED.try_lock() {
        installed.iter().for_each(|signals| signals.obey_in_child());
    }
}

impl Hook {
    fn set(&mut self, bell: Bell) -> io::Result<()> {
        // The calls of a signal are made in this order: the thread that wakes finds the flag.
        if self.before == Before::Default {
            let restore = flag::register_conditional_default(self.number, &RESTORED)?;
            self.restore = Some(restore);
        }
        let arrived = Arc::clone(&self.arrived);
        self.calls.push(flag::register(self.number, arrived)?);
        self.calls.extend(bell.ring_on(self.number)?);
        Ok(())
    }

    fn silence(&self) {
        for call in &self.calls {
            unregister(*call);
        }
    }

    fn has_come(&self) -> bool {
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

    /// Ends a forked child by a signal that has come to it, as if that had not been hooked. Costs
    /// one load for each signal while none has come.
    #[inline]
    pub(super) fn obey_in_child(&self) {
        if self.hooks.iter().any(Hook::has_come) {
            self.obey();
        }
    }

    #[cold]
    fn obey(&self) {
        if !self.are_inherited() {
            // The thread that waits for it is about to take it.
            return;
        }
        for hook in self.hooks.iter().filter(|hook| hook.has_come()) {
            hook.arrived.store(false, Ordering::Release);
            if hook.before == Before::Default {
                let _ = emulate_default_handler(hook.number);
            }
        }
    }
}

impl Ear {
    pub(super) const fn signals(&self) -> &Arc<Signals> {
        &self.signals
    }

    /// Waits until a signal comes or the bell rings, but no longer than `timeout`. Returns the
    /// signals that came.
    pub(super) fn wait(&mut self, timeout: Option<Duration>) -> Vec<Signal> {
        self.wire.wait(timeout);
        let hooks = self.signals.hooks.iter();
        hooks
            .filter(|hook| hook.arrived.swap(false, Ordering::AcqRel))
            .map(|hook| hook.signal)
            .collect()
    }
}
