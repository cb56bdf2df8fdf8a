//! Faults with real processes and threads: stopped and starved processes, a blocked pacemaker, a
//! fork, threads that cannot be read, log implementations and subscribers that misbehave.
//!
//! Each fault strikes a process of its own: this test program again, with one test, in the role of
//! the child. The tests run one after the other, since some of them need all processors.

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
