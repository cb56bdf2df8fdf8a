//! What belongs to a whole process: its environment, its log, its panic hook, and panics that end it.
//!
//! Each test that changes something of this kind runs in a process of its own. The tests of the log have
//! that of this program for themselves: no other test here writes to it.

mod abort;
mod environment;
mod logs;
mod panic_hook;
#[path = "../support/mod.rs"]
mod support;
mod unwinding;

/// Not a test: what the processes do that the tests of the environment start.
#[test]
fn stage() {
    if support::process::role().is_some() {
        environment::play();
    }
}
