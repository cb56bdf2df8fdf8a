//! Races: two or three threads that act at the same moment, tens of thousands of times.
//!
//! Each test states its invariant. The tests run one at a time, so that each has the processors to
//! itself and every pacemaker of this process is its own: each test ends with none left.

mod ending;
mod events;
mod fixtures;
mod reading;
mod registration;
mod rounds;
#[path = "../support/mod.rs"]
mod support;
