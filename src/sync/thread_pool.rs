//! A thread pool for jobs that block: a limited number of threads, each of which ends when no job is
//! left.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use parking_lot::Mutex;

use super::background::Background;
use super::catch::catch;
use crate::error::Error;

type Job = Box<dyn FnOnce() + Send>;

/// See the module. A cheap clone. Jobs begin in the order in which they were added.
#[derive(Clone)]
pub(crate) struct ThreadPool {
    name: &'static str,
    most: usize,
    jobs: Arc<Mutex<Jobs>>,
}

#[derive(Default)]
struct Jobs {
    /// The jobs that have not begun.
    waiting: BTreeMap<u64, Job>,
    last: u64,
    threads: usize,
}

impl ThreadPool {
    /// At most this many threads, with this name.
    pub(crate) fn new(name: &'static str, most: usize) -> Self {
        Self {
            name,
            most,
            jobs: Arc::default(),
        }
    }

    /// Adds a job. Returns the number by which it can be withdrawn.
    ///
    /// # Errors
    /// If its thread can't be started; the job is dropped then.
    pub(crate) fn add(&self, job: impl FnOnce() + Send + 'static) -> Result<u64, Error> {
        let mut jobs = self.jobs.lock();
        jobs.last += 1;
        let number = jobs.last;
        jobs.waiting.insert(number, Box::new(job));
        if jobs.threads >= self.most {
            return Ok(number);
        }
        jobs.threads += 1;
        drop(jobs);
        let jobs = Arc::clone(&self.jobs);
        if let Err(error) = Background::start(self.name, move || work(&jobs)) {
            self.jobs.lock().threads -= 1;
            // Another thread may have begun it meanwhile.
            if self.withdraw(number) {
                return Err(error);
            }
        }
        Ok(number)
    }

    /// Drops a job that has not begun. Returns whether there was one.
    pub(crate) fn withdraw(&self, number: u64) -> bool {
        // Not dropped under the lock: it may own anything.
        let withdrawn = self.jobs.lock().waiting.remove(&number);
        withdrawn.is_some()
    }
}

/// A thread's work.
fn work(jobs: &Mutex<Jobs>) {
    loop {
        let mut all = jobs.lock();
        let Some((_, job)) = all.waiting.pop_first() else {
            all.threads -= 1;
            return;
        };
        drop(all);
        drop(catch(job));
    }
}

impl fmt::Debug for ThreadPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let jobs = self.jobs.lock();
        f.debug_struct("ThreadPool")
            .field("name", &self.name)
            .field("waiting", &jobs.waiting.len())
            .field("threads", &jobs.threads)
            .finish()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use std::sync::mpsc;
    use std::time::Duration;

    #[test]
    fn jobs_beyond_the_limit_wait_and_can_be_withdrawn() {
        let pool = ThreadPool::new("pool", 2);
        let (done, is_done) = mpsc::channel();
        let (release, held) = mpsc::channel::<()>();
        let held = Arc::new(Mutex::new(held));
        let numbers: Vec<_> = (0..6)
            .map(|n| {
                let (done, held) = (done.clone(), Arc::clone(&held));
                let job = move || {
                    let _ = held.lock().recv();
                    let _ = done.send(n);
                    if n == 0 {
                        panic!("contained");
                    }
                };
                pool.add(job).unwrap()
            })
            .collect();
        assert_eq!(pool.jobs.lock().threads, 2);
        assert!(pool.withdraw(numbers[4]));
        assert!(!pool.withdraw(numbers[4]), "it is gone");
        drop(release);
        let patience = Duration::from_secs(60);
        let mut ran: Vec<_> = (0..5)
            .map(|_| is_done.recv_timeout(patience).unwrap())
            .collect();
        ran.sort_unstable();
        assert_eq!(ran, [0, 1, 2, 3, 5]);
        assert!(!pool.withdraw(numbers[0]), "it has run");
    }

    #[test]
    fn threads_end_and_others_start_as_jobs_come() {
        let pool = ThreadPool::new("pool", 1);
        for turn in 0..100 {
            let (done, is_done) = mpsc::channel();
            pool.add(move || done.send(turn).unwrap()).unwrap();
            assert_eq!(is_done.recv_timeout(Duration::from_secs(60)), Ok(turn));
        }
    }
}
