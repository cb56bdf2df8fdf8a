//! Races: two or three threads that really meet, tens of thousands of times.
//!
//! Each test states its invariant. They run one at a time, so that the processors are theirs and
//! every pacemaker of this process is their own: each of them ends with none left.

mod ending;
mod events;
mod fixtures;
mod reading;
mod registration;
mod rounds;
#[path = "../support/mod.rs"]
mod support;
