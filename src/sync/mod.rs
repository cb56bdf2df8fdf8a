//! What runs beside the workers: threads, panics, tasks that wait, and what the kernel says of both.
//! Knows no worker.

pub(crate) mod background;
pub(crate) mod describe;
pub(crate) mod last_words;
pub(crate) mod latch;
pub(crate) mod panics;
pub(crate) mod procfs;
pub(crate) mod random;
pub(crate) mod threads;
pub(crate) mod wakers;
