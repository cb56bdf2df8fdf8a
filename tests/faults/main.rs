//! Faults with real processes and threads: stopped and starved ones, a pacemaker that is held up, a
//! fork, threads that cannot be looked at, log implementations and subscribers that misbehave.
//!
//! Each fault strikes a process of its own: this test program once more, with one test, in the role
//! of the child. They come one after the other, since some of them take the processors for
//! themselves.

mod blocked_log;
mod callbacks;
mod evidence;
mod fixtures;
mod fork;
mod fork_and_shutdown;
mod starved;
mod stopped_process;
#[path = "../support/mod.rs"]
mod support;
