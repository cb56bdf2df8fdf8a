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
mod memory;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod module;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod symbols;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod unwind;

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
pub(crate) use capture::capture;

/// The call stack of this thread of the process, by its kernel id. `Err` says why there is none.
#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
pub(crate) fn capture(_thread: u32) -> Result<crate::health::CallStack, String> {
    Err("call stacks are read on Linux on x86-64 only".to_owned())
}
