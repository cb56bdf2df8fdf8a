//! A worker: its states, its tasks, its lives, and the rules by which it is judged.

mod deadlines;
mod ended_threads;
mod incarnations;
mod locations;
mod model;
mod pace;
mod polls;
mod rules;
mod states;
#[path = "../support/mod.rs"]
mod support;
mod tasks;
