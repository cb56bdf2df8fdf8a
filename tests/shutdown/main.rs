//! The shutdown, in processes of its own: a signal reaches the whole process, and a process can
//! install one shutdown only.
//!
//! Each test starts this program again, as [`stage`], in a role.

mod faults;
mod programs;
mod running_work;
mod signals;
#[path = "../support/mod.rs"]
mod support;

/// Not a test: the processes that the tests start run this.
#[test]
fn stage() {
    if let Some(role) = support::process::role() {
        programs::play(&role);
    }
}
