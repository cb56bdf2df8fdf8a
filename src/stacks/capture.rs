//! Copies a stack, unwinds it, and names its functions.

use std::collections::HashMap;
use std::io;

use parking_lot::Mutex;

use super::NoStack;
use super::memory::{Mappings, Memory};
use super::symbols::Symbol;
use super::unwind::{CodeAddress, End, Unwound};
use crate::health::{CallStack, StackFrame};

/// How often a thread that runs in between is tried again.
const ATTEMPTS: usize = 3;
/// How many addresses keep their names.
const MOST_KNOWN: usize = 4_096;

/// The path and the build id of a module, and an address in its file.
type InFile = (String, String, u64);
type KnownSymbols = HashMap<InFile, Vec<Symbol>>;

/// The names of addresses that were looked up before.
static KNOWN: Mutex<Option<KnownSymbols>> = Mutex::new(None);

/// See [`super::capture`], which limits how many run at a time.
pub(super) fn capture(thread: u32) -> Result<CallStack, NoStack> {
    let unwound = unwind_thread(thread)?;
    // In a forked child, it may have been locked by a thread that the child has not got.
    match KNOWN.try_lock() {
        Some(mut known) => Ok(named(&unwound, known.get_or_insert_default())),
        None => Ok(named(&unwound, &mut HashMap::new())),
    }
}

fn unwind_thread(thread: u32) -> Result<Unwound, NoStack> {
    let failed = |what: &'static str| {
        move |error: io::Error| {
            NoStack::Final(match error.kind() {
                // As of a process that has changed its user, or has switched core dumps off.
                io::ErrorKind::PermissionDenied => {
                    "the process is not dumpable (PR_SET_DUMPABLE, prctl(2))".to_owned()
                }
                io::ErrorKind::NotFound => format!("the kernel does not show {what}"),
                _ => format!("cannot read {what}: {error}"),
            })
        }
    };
    let blocked = || super::memory::blocked(thread).map_err(failed("its registers"));
    let switches = || super::memory::context_switches(thread).map_err(failed("its status"));
    let mut memory = Memory::open().map_err(failed("the memory of this process"))?;
    for _ in 0..ATTEMPTS {
        let before = switches()?;
        let Some(place) = blocked()? else {
            return Err(NoStack::Running);
        };
        memory.copy_stack(place.stack_pointer);
        // Otherwise it ran while its stack was copied.
        if blocked()? == Some(place) && switches()? == before {
            let mappings = Mappings::read().map_err(failed("the mappings of this process"))?;
            return Ok(super::unwind::unwind(
                &mappings,
                &memory,
                place.program_counter,
                place.stack_pointer,
            ));
        }
    }
    Err(NoStack::Running)
}

/// With the names of the functions.
fn named(unwound: &Unwound, known: &mut KnownSymbols) -> CallStack {
    if known.len() > MOST_KNOWN {
        known.clear();
    }
    let in_file = |code: &CodeAddress| {
        let module = unwound.modules.get(code.module?)?;
        let address = code.address.wrapping_sub(module.bias);
        Some((module.path.clone(), module.build_id.clone(), address))
    };
    let mut unknown = HashMap::<(String, String), Vec<u64>>::new();
    for code in &unwound.addresses {
        if let Some(key) = in_file(code).filter(|key| !known.contains_key(key)) {
            let addresses = unknown.entry((key.0, key.1)).or_default();
            if !addresses.contains(&key.2) {
                addresses.push(key.2);
            }
        }
    }
    for ((path, build_id), addresses) in unknown {
        let found = super::symbols::resolve(&path, &build_id, &addresses);
        for (address, symbols) in addresses.into_iter().zip(found) {
            known.insert((path.clone(), build_id.clone(), address), symbols);
        }
    }
    let mut frames = Vec::new();
    for code in &unwound.addresses {
        let module = code.module.and_then(|n| unwound.modules.get(n));
        let symbols = in_file(code).and_then(|key| known.get(&key));
        let frame = StackFrame {
            function: None,
            file: None,
            line: None,
            is_inlined: false,
            module: module.map_or_else(String::new, |module| module.path.clone()),
            build_id: module.map_or_else(String::new, |module| module.build_id.clone()),
            offset: code
                .address
                .wrapping_sub(module.map_or(0, |module| module.bias)),
        };
        match symbols.filter(|symbols| !symbols.is_empty()) {
            None => frames.push(frame),
            Some(symbols) => frames.extend(symbols.iter().map(|symbol| StackFrame {
                function: Some(symbol.function.clone()),
                file: symbol.file.clone(),
                line: symbol.line,
                is_inlined: symbol.is_inlined,
                ..frame.clone()
            })),
        }
    }
    let cut = match unwound.end {
        End::Bottom => None,
        End::Limit => Some("there are more frames"),
        End::Unknown(why) => Some(why),
    };
    CallStack {
        frames,
        cut: cut.map(str::to_owned),
    }
}
