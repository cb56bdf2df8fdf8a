//! Mechanisms for threads, panics and waiting tasks that know nothing of workers.

pub(crate) mod background;
pub(crate) mod catch;
pub(crate) mod describe;
pub(crate) mod last_words;
pub(crate) mod latch;
pub(crate) mod log;
pub(crate) mod panics;
pub(crate) mod printable;
pub(crate) mod procfs;
pub(crate) mod random;
pub(crate) mod thread_pool;
pub(crate) mod threads;
pub(crate) mod wakers;
