//! The call stack of another thread of this process, without unsafe code, privileges, signals or
//! ptrace(2). Reads `/proc/self` and the files of the modules; knows nothing of workers.
//!
//! The kernel shows the stack pointer and the program counter of a thread that is blocked
//! (`/proc/self/task/<tid>/syscall`, proc(5)). The stack is copied through `/proc/self/mem`, and unwound
//! by the call frame information that is part of every program for the sake of panics. Names and lines
//! come from the files. Linux on x86-64.

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod capture;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod frame_pointer;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod free_memory;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod memory;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod module;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod symbols;
mod turn;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod unwind;

#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
mod capture {
    pub(super) fn capture(_thread: u32) -> Result<crate::health::CallStack, super::NoStack> {
        let why = "call stacks are read on Linux on x86-64 only";
        Err(super::NoStack::Final(why.to_owned()))
    }
}

use std::fmt;

pub(crate) use turn::{LONGEST, capture};

/// Why there is no call stack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum NoStack {
    /// The thread is not blocked: the kernel shows where it is only then.
    #[cfg_attr(
        not(all(target_os = "linux", target_arch = "x86_64")),
        expect(dead_code, reason = "without stacks, none is asked for")
    )]
    Running,
    /// Another attempt may succeed.
    Temporary(String),
    Final(String),
}

impl fmt::Display for NoStack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Running => f.write_str("the thread is running"),
            Self::Temporary(why) | Self::Final(why) => f.write_str(why),
        }
    }
}
