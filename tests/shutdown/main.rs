//! The shutdown, in processes of its own: a signal goes to all of a process, and a shutdown can be
//! installed once in it.
//!
//! Each test starts this program again, as [`stage`], in a role.

mod faults;
mod programs;
mod running_work;
mod signals;
#[path = "../support/mod.rs"]
mod support;

/// Not a test: what the processes do that the tests start.
#[test]
fn stage() {
    if let Some(role) = support::process::role() {
        programs::play(&role);
    }
}
