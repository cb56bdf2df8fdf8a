//! Looks up host names, each at most once at a time.
//!
//! A look-up cannot be cancelled: if the resolver hangs, its thread waits for as long. So callers that
//! give up and come again share one thread, and use an answer that came in the meantime.

use std::collections::HashMap;
use std::net::{IpAddr, ToSocketAddrs};
use std::sync::{Arc, LazyLock};
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::watch;

use crate::sync::catch::catch;

/// Name of the thread; the kernel keeps 15 bytes of it.
const THREAD_NAME: &str = "wh-lookup";
/// How long an answer that no caller waited for may be used.
const LONGEST_USE: Duration = Duration::from_secs(60);

type Answer = Result<Vec<IpAddr>, String>;

/// See the module. The key has the process id, since threads don't survive a fork.
struct Lookups {
    resolve: fn(&str) -> Answer,
    pending: Mutex<HashMap<(u32, String), Lookup>>,
}

struct Lookup {
    answer: watch::Receiver<Option<Answer>>,
    answered: Arc<Mutex<Option<Instant>>>,
}

/// The addresses of a host.
pub(super) async fn addresses(name: &str) -> Answer {
    static LOOKUPS: LazyLock<Lookups> = LazyLock::new(|| Lookups::new(resolve));
    LOOKUPS.find(name).await
}

fn resolve(name: &str) -> Answer {
    let found = (name, 0).to_socket_addrs();
    let found = found.map_err(|error| format!("cannot look up the host: {error}"))?;
    let mut addresses: Vec<IpAddr> = found.map(|address| address.ip()).collect();
    addresses.dedup();
    Ok(addresses)
}

impl Lookups {
    fn new(resolve: fn(&str) -> Answer) -> Self {
        Self {
            resolve,
            pending: Mutex::default(),
        }
    }

    async fn find(&self, name: &str) -> Answer {
        let place = (std::process::id(), name.to_owned());
        let mut answer = self.begin(&place)?;
        let found = match answer.wait_for(Option::is_some).await {
            Ok(answer) => answer.clone(),
            Err(_) => None,
        };
        self.pending.lock().remove(&place);
        found.unwrap_or_else(|| Err("the look-up of the host panicked".to_owned()))
    }

    /// Begins a look-up, unless one is pending, or has an answer that was not used.
    fn begin(&self, place: &(u32, String)) -> Result<watch::Receiver<Option<Answer>>, String> {
        let mut pending = self.pending.lock();
        if let Some(lookup) = pending.get(place) {
            let answered = *lookup.answered.lock();
            if answered.is_none_or(|at| at.elapsed() < LONGEST_USE) {
                return Ok(lookup.answer.clone());
            }
        }
        let (sender, answer) = watch::channel(None);
        let answered = Arc::<Mutex<Option<Instant>>>::default();
        let (resolve, name) = (self.resolve, place.1.clone());
        let done = Arc::clone(&answered);
        thread::Builder::new()
            .name(THREAD_NAME.to_owned())
            .spawn(move || {
                let found = catch(|| resolve(&name)).ok();
                *done.lock() = Some(Instant::now());
                if let Some(found) = found {
                    sender.send_replace(Some(found));
                }
            })
            .map_err(|error| format!("failed to start a thread: {error}"))?;
        let lookup = Lookup {
            answer: answer.clone(),
            answered,
        };
        pending.insert(place.clone(), lookup);
        Ok(answer)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::{Condvar, Mutex as StdMutex};

    use tokio::runtime::Builder;
    use tokio::time::timeout;

    use super::*;

    const SHORT: Duration = Duration::from_millis(10);

    fn run<T>(work: impl Future<Output = T>) -> T {
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        let done = runtime.block_on(work);
        runtime.shutdown_background();
        done
    }

    static CALLS: AtomicUsize = AtomicUsize::new(0);
    static OPEN: StdMutex<bool> = StdMutex::new(false);
    static OPENED: Condvar = Condvar::new();

    /// Hangs until it is opened.
    fn hangs(_name: &str) -> Answer {
        CALLS.fetch_add(1, Ordering::SeqCst);
        let open = OPEN.lock().unwrap();
        drop(OPENED.wait_while(open, |open| !*open).unwrap());
        Ok(vec![IpAddr::from([192, 0, 2, 1])])
    }

    #[test]
    fn callers_that_give_up_share_one_thread_and_its_late_answer() {
        let lookups = Lookups::new(hangs);
        for _ in 0..20 {
            // Each in a runtime of its own, as connections have.
            assert!(run(async { timeout(SHORT, lookups.find("db")).await }).is_err());
        }
        assert_eq!(CALLS.load(Ordering::SeqCst), 1);
        *OPEN.lock().unwrap() = true;
        OPENED.notify_all();
        let late = lookups
            .pending
            .lock()
            .values()
            .next()
            .unwrap()
            .answer
            .clone();
        while late.borrow().is_none() {
            thread::yield_now();
        }
        assert_eq!(run(lookups.find("db")).unwrap().len(), 1);
        assert_eq!(CALLS.load(Ordering::SeqCst), 1, "it was there already");
        assert!(lookups.pending.lock().is_empty());
        assert_eq!(run(lookups.find("db")).unwrap().len(), 1);
        assert_eq!(CALLS.load(Ordering::SeqCst), 2, "asked again");
    }

    #[test]
    fn a_look_up_that_panics_is_an_error_and_is_repeated() {
        let lookups = Lookups::new(|name| panic!("{name}"));
        for _ in 0..2 {
            let error = run(lookups.find("db")).unwrap_err();
            assert!(error.contains("panicked"), "{error}");
        }
    }

    #[test]
    fn this_host_has_an_address() {
        assert!(!run(addresses("localhost")).unwrap().is_empty());
        assert!(run(addresses("no such host")).is_err());
    }
}
