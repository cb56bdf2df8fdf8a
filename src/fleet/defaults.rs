//! What a store does by default, by calls that every store has.

use std::collections::HashSet;

use super::host::ProcessIdentity;
use super::pages::Pages;
use super::shapes::{Registration, StoredWorker, WorkerFilter, WorkerKey};
use super::store::{HeartbeatStore, check_count};
use crate::error::Error;
use crate::sync::describe::chain;

/// Bytes of an id.
const LONGEST_ID: usize = 512;

/// The worker with this id, as a list begins with it.
pub(crate) fn find_in_list<S: HeartbeatStore + ?Sized>(
    store: &S,
    id: &str,
) -> Result<Option<StoredWorker>, Error> {
    let next = WorkerFilter::new().after(just_before(id, LONGEST_ID));
    let found = store.list(&next.limit(1))?;
    Ok(found.into_iter().find(|worker| worker.key.id == id))
}

/// A text before this id, with no other id in between: a list after it begins with the id.
///
/// In the order of bytes, which is that of code points, `b` follows right after `a` with as many of
/// the last code point as an id can hold.
fn just_before(id: &str, longest: usize) -> String {
    let mut characters = id.chars();
    let last = characters.next_back();
    let mut before = characters.as_str().to_owned();
    let previous = last.and_then(|last| match last {
        '\u{e000}' => Some('\u{d7ff}'),
        last => char::from_u32((last as u32).checked_sub(1)?),
    });
    if let Some(previous) = previous {
        before.push(previous);
        while before.len() <= longest {
            before.push(char::MAX);
        }
    }
    before
}

/// The most refusals that are searched for one by one. With more of them, the store is usually full.
const MOST_REFUSALS: usize = 32;

/// Registers these workers. Where the store refuses one of them, the others are registered without it.
pub(crate) fn register_in_parts<S: HeartbeatStore + ?Sized>(
    store: &S,
    workers: &[Registration],
) -> Result<Vec<Result<WorkerKey, Error>>, Error> {
    let mut answers = Vec::with_capacity(workers.len());
    let mut refusals = 0;
    // The parts that are left, the next one last.
    let mut parts = vec![workers];
    while let Some(part) = parts.pop() {
        match store.register(part) {
            Ok(keys) => {
                let keys = check_count("register", part.len(), Ok(keys))?;
                answers.extend(keys.into_iter().map(Ok));
            }
            Err(Error::Invalid { .. }) if part.len() > 1 && refusals < MOST_REFUSALS => {
                let (some, others) = part.split_at(part.len() / 2);
                parts.extend([others, some]);
            }
            Err(Error::Invalid {
                field,
                value,
                allowed,
            }) => {
                refusals += 1;
                let refusal = || Err(Error::invalid(field, value.clone(), allowed.clone()));
                answers.extend(part.iter().map(|_| refusal()));
            }
            // Those that are registered already must not be registered again.
            Err(error) if !answers.is_empty() => {
                let rest = workers.len() - answers.len();
                answers.extend((0..rest).map(|_| Err(Error::store("register", chain(&error)))));
                return Ok(answers);
            }
            Err(error) => return Err(error),
        }
    }
    Ok(answers)
}

/// The processes of a host by its workers.
pub(crate) fn processes_by_list<S: HeartbeatStore + ?Sized>(
    store: &S,
    host: &ProcessIdentity,
) -> Result<Vec<ProcessIdentity>, Error> {
    let mut processes = HashSet::new();
    for page in Pages::new(store, WorkerFilter::new().host(host.clone())) {
        processes.extend(page?.into_iter().filter_map(|worker| worker.info.process));
    }
    Ok(processes.into_iter().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_id_lies_between() {
        let ids = ["a", "ab", "b", "a\u{e000}", "ä", "🦀", "a 1", "a-1", "a-0z"];
        for id in ids {
            let before = just_before(id, 512);
            assert!(*before < *id, "{id}");
            for other in ids.iter().chain(&["", "aa", "a-0", "a\u{d7ff}\u{10ffff}"]) {
                assert!(**other <= *before || **other >= *id, "{other} and {id}");
            }
        }
    }
}
