//! The shutdown, in processes of its own: a signal reaches the whole process, and one
//! shutdown only can have it.
//!
//! Each test starts this program again, as [`stage`], in a role.

mod budgets;
mod faults;
mod programs;
mod running_work;
mod signals;
#[path = "../support/mod.rs"]
mod support;
mod triggers;

/// Not a test: the processes that the tests start run this.
#[test]
fn stage() {
    if let Some(role) = support::process::role() {
        programs::play(&role);
    }
}
