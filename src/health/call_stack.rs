//! The calls that a thread is in.

use std::fmt;

use crate::sync::printable::Printable;

/// Crates whose functions say what a thread does, not what for.
const LIBRARIES: [&str; 16] = [
    "alloc",
    "async_std",
    "core",
    "crossbeam",
    "crossbeam_channel",
    "crossbeam_utils",
    "futures",
    "futures_util",
    "hyper",
    "lock_api",
    "parking_lot",
    "parking_lot_core",
    "smol",
    "std",
    "tokio",
    "worker_heartbeat",
];

/// The calls that a thread is in, innermost first, as
/// [`Probe::capture_stack`](crate::Probe::capture_stack) reads them.
///
/// Displayed, it is the place in the application: `shop::stock::reserve (src/stock.rs:88)`. The
/// alternate form, `{:#}`, is the whole stack, a line a call.
///
/// ```
/// use worker_heartbeat::WorkerHeartbeat;
///
/// let hb = WorkerHeartbeat::builder("mailer").start()?;
/// match hb.probe().capture_stack() {
///     Ok(stack) => println!("{stack:#}"),
///     Err(error) => println!("{error}"), // no call stack of worker "mailer-4711-1": ...
/// }
/// # Ok::<(), worker_heartbeat::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct CallStack {
    /// The calls, innermost first.
    pub frames: Vec<StackFrame>,
    /// Why outer calls are missing; `None` if the stack is whole.
    pub cut: Option<String>,
}

/// One call of a [`CallStack`].
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct StackFrame {
    /// The function; `None` if the module names none, as a stripped program.
    pub function: Option<String>,
    /// The source file, if the module has debug information.
    pub file: Option<String>,
    /// The line in it.
    pub line: Option<u32>,
    /// The function was inlined into that of the next call.
    pub is_inlined: bool,
    /// The file of the program or shared library; empty if it is unknown.
    pub module: String,
    /// The module's build id in hexadecimal; empty if it has none.
    pub build_id: String,
    /// The address in the module: addr2line(1) and other programs take it.
    pub offset: u64,
}

impl CallStack {
    /// The innermost call of the application itself: not of the standard library, the C library or a
    /// runtime. The innermost call of all if there is none.
    #[must_use]
    pub fn place(&self) -> Option<&StackFrame> {
        let own = self.frames.iter().find(|frame| frame.is_application());
        own.or(self.frames.first())
    }
}

impl StackFrame {
    /// Whether the call is the application's own, as far as its name and its file show.
    fn is_application(&self) -> bool {
        let Some(function) = &self.function else {
            return false;
        };
        let is_shared_library = self.module.contains(".so") || self.module.starts_with('[');
        // As in `<&alloc::vec::Vec<T> as core::fmt::Debug>::fmt`.
        let name = function.trim_start_matches(['<', '&', '*', '(']);
        let name = name.strip_prefix("dyn ").unwrap_or(name);
        let first = name.split("::").next().unwrap_or_default();
        let is_foreign_file = self.file.as_ref().is_some_and(|file| {
            ["/rustc/", "/.cargo/registry/", "/.cargo/git/"]
                .iter()
                .any(|part| file.contains(part))
        });
        // Functions of C have no path.
        name.contains("::") && !is_shared_library && !is_foreign_file && !LIBRARIES.contains(&first)
    }
}

impl fmt::Display for StackFrame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.function {
            Some(function) => write!(f, "{}", Printable(function))?,
            None if self.module.is_empty() => write!(f, "{:#x}", self.offset)?,
            None => {
                write!(f, "{}+{:#x}", Printable(&self.module), self.offset)?;
                if !self.build_id.is_empty() {
                    write!(f, " (build {})", self.build_id)?;
                }
            }
        }
        match (&self.file, self.line) {
            (Some(file), Some(line)) => write!(f, " ({}:{line})", Printable(file)),
            (Some(file), None) => write!(f, " ({})", Printable(file)),
            _ => Ok(()),
        }
    }
}

impl fmt::Display for CallStack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !f.alternate() {
            return match self.place() {
                Some(place) => place.fmt(f),
                None => f.write_str("unknown"),
            };
        }
        for (n, frame) in self.frames.iter().enumerate() {
            let inlined = if frame.is_inlined { " [inlined]" } else { "" };
            writeln!(f, "{n:4}: {frame}{inlined}")?;
        }
        match &self.cut {
            Some(why) => writeln!(f, "   ...: {why}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(function: &str, file: &str, module: &str) -> StackFrame {
        StackFrame {
            function: (!function.is_empty()).then(|| function.to_owned()),
            file: (!file.is_empty()).then(|| file.to_owned()),
            line: (!file.is_empty()).then_some(88),
            is_inlined: false,
            module: module.to_owned(),
            build_id: String::new(),
            offset: 0x1234,
        }
    }

    #[test]
    fn the_place_is_the_innermost_call_of_the_application() {
        let program = "/usr/bin/shop";
        let mut stack = CallStack {
            frames: vec![
                frame("__lll_lock_wait", "", "/lib/libc.so.6"),
                frame("syscall", "", program),
                frame(
                    "std::sys::sync::mutex::lock",
                    "/rustc/1/std/mutex.rs",
                    program,
                ),
                frame("<&std::sync::Mutex<T> as shop::Lock>::lock", "", program),
                frame(
                    "redis::connect",
                    "/home/a/.cargo/registry/src/x/redis/lib.rs",
                    program,
                ),
                frame("shop::stock::reserve", "src/stock.rs", program),
                frame("shop::main", "src/main.rs", program),
            ],
            cut: None,
        };
        assert_eq!(stack.to_string(), "shop::stock::reserve (src/stock.rs:88)");
        stack.frames.truncate(2);
        assert_eq!(stack.to_string(), "__lll_lock_wait");
        stack.frames.clear();
        assert_eq!(stack.to_string(), "unknown");
        let method = frame("<shop::Stock as core::ops::Drop>::drop", "", program);
        assert!(method.is_application());
    }

    #[test]
    fn the_whole_stack_has_a_line_for_each_call() {
        let mut inlined = frame("a::b", "src/a.rs", "/bin/a");
        inlined.is_inlined = true;
        let mut stripped = frame("", "", "/bin/a");
        stripped.build_id = "ab01".to_owned();
        let stack = CallStack {
            frames: vec![inlined, stripped, frame("", "", "")],
            cut: Some("no call frame information".to_owned()),
        };
        assert_eq!(
            format!("{stack:#}"),
            "   0: a::b (src/a.rs:88) [inlined]\n   1: /bin/a+0x1234 (build ab01)\n   2: 0x1234\n   \
             ...: no call frame information\n"
        );
    }
}
