//! Copies a stack, unwinds it, and names its functions.

use std::collections::HashMap;
use std::io;
use std::time::Duration;

use parking_lot::Mutex;

use super::memory::{Mappings, Memory};
use super::symbols::Symbol;
use super::unwind::{CodeAddress, End, Unwound};
use crate::health::{CallStack, StackFrame};

/// How often a thread that runs in between is tried again.
const ATTEMPTS: usize = 3;
/// How long a capture waits for another one.
const PATIENCE: Duration = Duration::from_secs(1);
/// How many addresses keep their names.
const MOST_KNOWN: usize = 4_096;

/// By module and address in its file.
type KnownSymbols = HashMap<(String, u64), Vec<Symbol>>;

/// One capture at a time: what is held is small, and reading debug information takes memory. The names
/// of addresses that were looked up before.
static KNOWN: Mutex<Option<KnownSymbols>> = Mutex::new(None);

/// The call stack of this thread of the process, by its kernel id. `Err` says why there is none.
pub(crate) fn capture(thread: u32) -> Result<CallStack, String> {
    let own = std::fs::read_link("/proc/thread-self").ok();
    if own.is_some_and(|own| own.ends_with(thread.to_string())) {
        return Err("it is the thread that asks".to_owned());
    }
    let Some(mut known) = KNOWN.try_lock_for(PATIENCE) else {
        return Err("another call stack is being read".to_owned());
    };
    let unwound = unwind_thread(thread)?;
    Ok(named(&unwound, known.get_or_insert_default()))
}

fn unwind_thread(thread: u32) -> Result<Unwound, String> {
    let failed = |what: &'static str| {
        move |error: io::Error| match error.kind() {
            // As of a process that has changed its user, or has switched core dumps off.
            io::ErrorKind::PermissionDenied => {
                "the process is not dumpable (PR_SET_DUMPABLE, prctl(2))".to_owned()
            }
            io::ErrorKind::NotFound => format!("the kernel does not show {what}"),
            _ => format!("cannot read {what}: {error}"),
        }
    };
    let blocked = || super::memory::blocked(thread).map_err(failed("its registers"));
    let switches = || super::memory::context_switches(thread).map_err(failed("its status"));
    let mut memory = Memory::open().map_err(failed("the memory of this process"))?;
    for _ in 0..ATTEMPTS {
        let before = switches()?;
        let Some(place) = blocked()? else {
            return Err("the thread is running".to_owned());
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
    Err("the thread keeps running".to_owned())
}

/// With the names of the functions.
fn named(unwound: &Unwound, known: &mut KnownSymbols) -> CallStack {
    if known.len() > MOST_KNOWN {
        known.clear();
    }
    let in_file = |code: &CodeAddress| {
        let module = unwound.modules.get(code.module?)?;
        Some((module.path.clone(), code.address.wrapping_sub(module.bias)))
    };
    let mut unknown = HashMap::<String, Vec<u64>>::new();
    for code in &unwound.addresses {
        if let Some(key) = in_file(code).filter(|key| !known.contains_key(key)) {
            let addresses = unknown.entry(key.0).or_default();
            if !addresses.contains(&key.1) {
                addresses.push(key.1);
            }
        }
    }
    for (path, addresses) in unknown {
        let found = super::symbols::resolve(&path, &addresses);
        for (address, symbols) in addresses.into_iter().zip(found) {
            known.insert((path.clone(), address), symbols);
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
