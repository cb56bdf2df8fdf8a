//! What belongs to the whole process: its environment, its log, its panic hook, and panics that end
//! it.
//!
//! Each test that changes one of these runs in a process of its own. The tests of the log share the
//! log of this program: no other test here writes to it.

mod abort;
mod environment;
mod logs;
mod panic_hook;
#[path = "../support/mod.rs"]
mod support;
mod unwinding;

/// Not a test: the processes that the tests of the environment start run this.
#[test]
fn stage() {
    if support::process::role().is_some() {
        environment::play();
    }
}
