//! Supervised threads and futures: how they end, start again and are shut down.

mod children;
mod failures;
mod panics;
mod restarts;
mod shutdown;
#[path = "../support/mod.rs"]
mod support;
mod work;
