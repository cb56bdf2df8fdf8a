//! The calls that a thread is in.

use std::fmt;
use std::sync::Arc;

use crate::sync::printable::Printable;

/// Crates whose functions say what a thread does, not what for.
const LIBRARIES: [&str; 17] = [
    "__rustc",
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

/// Longer names of functions are cut in the short form.
const LONGEST_NAME: usize = 120;
/// The longest text of a stack in a store, a snapshot's JSON or a page, in bytes.
pub(crate) const LONGEST_TEXT: usize = 4 * 1024;

/// The calls that a thread is in, innermost first. The feature `stacks` reads them: of a convicted
/// worker's thread, and on request.
///
/// Displayed, it is the place in the application, and its caller there:
/// `shop::stock::reserve (src/stock.rs:88) called from shop::order::place (src/order.rs:31)`. The
/// alternate form, `{:#}`, is the whole stack, a line a call; those of the application are marked by
/// `>`.
///
/// ```
/// use worker_heartbeat::{Health, Registry, StackCapture, WorkerHeartbeat};
///
/// let hb = WorkerHeartbeat::builder("mailer").start()?;
/// for worker in Registry::global().workers() {
///     if let Some(StackCapture::Taken(stack)) = worker.snapshot().stack {
///         println!("{} hangs at {stack}\n{stack:#}", worker.id());
///     }
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

/// Whether a source file or its directory belongs to the standard library or to a crate that Cargo has
/// downloaded.
pub(crate) fn is_foreign(path: &str) -> bool {
    let parts = ["/rustc/", "/registry/src/", "/git/checkouts/"];
    parts.iter().any(|part| path.contains(part))
}

/// The call stack of a worker's thread, as it was read when the worker was convicted, or why there is
/// none.
///
/// ```
/// use worker_heartbeat::StackCapture;
///
/// let missing = StackCapture::Missing("the thread is running".into());
/// assert_eq!(missing.to_string(), "no call stack: the thread is running");
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum StackCapture {
    /// It is being read.
    Pending,
    /// It was read.
    Taken(Arc<CallStack>),
    /// It was not read, for this reason.
    Missing(String),
}

impl StackCapture {
    /// The stack, if it was read.
    #[must_use]
    pub fn call_stack(&self) -> Option<&CallStack> {
        match self {
            Self::Taken(stack) => Some(stack),
            Self::Pending | Self::Missing(_) => None,
        }
    }

    /// All of it as a text for stores and pages; `None` while it is being read.
    pub(crate) fn text(&self) -> Option<String> {
        match self {
            Self::Pending => None,
            Self::Taken(stack) => Some(stack.text(LONGEST_TEXT)),
            Self::Missing(_) => Some(self.to_string()),
        }
    }
}

impl fmt::Display for StackCapture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pending => f.write_str("no call stack yet"),
            Self::Taken(stack) => stack.fmt(f),
            Self::Missing(why) => write!(f, "no call stack: {}", Printable(why)),
        }
    }
}

impl CallStack {
    /// The innermost call of the application itself: not of the standard library, the C library or a
    /// runtime. The innermost call of all if there is none.
    #[must_use]
    pub fn place(&self) -> Option<&StackFrame> {
        self.own().next().or(self.frames.first())
    }

    /// The call of the application that led to its innermost one.
    fn caller(&self) -> Option<&StackFrame> {
        self.own().nth(1)
    }

    fn own(&self) -> impl Iterator<Item = &StackFrame> {
        let has_files = self.has_files();
        let frames = self.frames.iter();
        frames.filter(move |frame| frame.is_own(has_files))
    }

    /// Whether the files of the application's calls are known.
    fn has_files(&self) -> bool {
        let mut own = self.frames.iter().filter(|frame| frame.is_application());
        own.any(|frame| frame.file.is_some())
    }

    /// The calls in the text of a [`Backtrace`](std::backtrace::Backtrace).
    #[cfg(feature = "http")]
    pub(crate) fn from_backtrace(text: &str) -> Self {
        let mut frames = Vec::<StackFrame>::new();
        for line in text.lines() {
            let line = line.trim();
            if let Some(place) = line.strip_prefix("at ") {
                // A file, a line and a column.
                let mut parts = place.rsplitn(3, ':').skip(1);
                if let (Some(frame), Some(number), Some(file)) =
                    (frames.last_mut(), parts.next(), parts.next())
                {
                    frame.line = number.parse().ok();
                    frame.file = Some(file.strip_prefix("./").unwrap_or(file).to_owned());
                }
                continue;
            }
            let (number, name) = line.split_once(": ").unwrap_or_default();
            let is_numbered = number.parse::<usize>().is_ok();
            if let Some(inlined) = frames.last_mut().filter(|_| !is_numbered) {
                // Several functions at one address.
                inlined.is_inlined = true;
            }
            let name = if is_numbered { name } else { line };
            frames.push(StackFrame {
                function: Some(name.to_owned()),
                file: None,
                line: None,
                is_inlined: false,
                module: String::new(),
                build_id: String::new(),
                offset: 0,
            });
        }
        Self { frames, cut: None }
    }

    /// The alternate form in at most this many bytes: outer calls are left out.
    pub(crate) fn text(&self, most: usize) -> String {
        let mut text = String::new();
        let has_files = self.has_files();
        for (n, frame) in self.frames.iter().enumerate() {
            let line = Line(n, frame, frame.is_own(has_files)).to_string();
            // With room for the last line.
            if text.len() + line.len() + 100 > most {
                let left = self.frames.len() - n;
                text.push_str(&format!("    ...: more frames: {left}"));
                return text;
            }
            text.push_str(&line);
            text.push('\n');
        }
        if let Some(why) = &self.cut {
            text.push_str(&format!("    ...: {}", Printable(why)));
        }
        text.truncate(text.trim_end().len());
        text
    }
}

/// A call in the alternate form, by its number; and whether it is the application's.
struct Line<'a>(usize, &'a StackFrame, bool);

impl fmt::Display for Line<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(n, frame, is_own) = self;
        let mark = if *is_own { '>' } else { ' ' };
        let inlined = if frame.is_inlined { " [inlined]" } else { "" };
        write!(f, "{mark}{n:4}: {frame}{inlined}")
    }
}

impl StackFrame {
    /// Whether the call is the application's own, as far as its name and its file show: not the
    /// standard library's, the C library's, a runtime's or another crate's.
    ///
    /// ```
    /// use worker_heartbeat::CallStack;
    ///
    /// fn own_calls(stack: &CallStack) -> usize {
    ///     stack.frames.iter().filter(|frame| frame.is_application()).count()
    /// }
    /// ```
    #[must_use]
    pub fn is_application(&self) -> bool {
        let Some(function) = &self.function else {
            return false;
        };
        let is_shared_library = self.module.contains(".so") || self.module.starts_with('[');
        // As in `<&alloc::vec::Vec<T> as core::fmt::Debug>::fmt`.
        let name = function.trim_start_matches(['<', '&', '*', '(']);
        let name = name.strip_prefix("dyn ").unwrap_or(name);
        let first = name.split("::").next().unwrap_or_default();
        let is_foreign_file = self.file.as_deref().is_some_and(is_foreign);
        // Functions of C have no path.
        name.contains("::") && !is_shared_library && !is_foreign_file && !LIBRARIES.contains(&first)
    }

    /// Where the files of the application's calls are known, one without a file is of another crate,
    /// which was compiled without lines.
    fn is_own(&self, has_files: bool) -> bool {
        self.is_application() && (self.file.is_some() || !has_files)
    }
}

impl StackFrame {
    fn write(&self, f: &mut fmt::Formatter<'_>, longest: usize) -> fmt::Result {
        match &self.function {
            Some(function) => match function.char_indices().nth(longest) {
                Some((end, _)) => write!(f, "{}…", Printable(&function[..end]))?,
                None => write!(f, "{}", Printable(function))?,
            },
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

impl fmt::Display for StackFrame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.write(f, usize::MAX)
    }
}

impl fmt::Display for CallStack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if f.alternate() {
            let has_files = self.has_files();
            for (n, frame) in self.frames.iter().enumerate() {
                writeln!(f, "{}", Line(n, frame, frame.is_own(has_files)))?;
            }
            return match &self.cut {
                Some(why) => writeln!(f, "    ...: {}", Printable(why)),
                None => Ok(()),
            };
        }
        let Some(place) = self.place() else {
            return f.write_str("unknown");
        };
        place.write(f, LONGEST_NAME)?;
        if let Some(caller) = self.caller() {
            f.write_str(" called from ")?;
            caller.write(f, LONGEST_NAME)?;
        }
        Ok(())
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
                    "/usr/local/cargo/registry/src/x/redis/lib.rs",
                    program,
                ),
                frame("shop::stock::reserve", "src/stock.rs", program),
                frame("shop::main", "src/main.rs", program),
            ],
            cut: None,
        };
        assert_eq!(
            stack.to_string(),
            "shop::stock::reserve (src/stock.rs:88) called from shop::main (src/main.rs:88)"
        );
        stack.frames.pop();
        assert_eq!(stack.to_string(), "shop::stock::reserve (src/stock.rs:88)");
        let long = "shop::".repeat(100);
        stack.frames[5].function = Some(long.clone());
        let shown = format!("{}… (src/stock.rs:88)", &long[..LONGEST_NAME]);
        assert_eq!(stack.to_string(), shown);
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
            ">   0: a::b (src/a.rs:88) [inlined]\n    1: /bin/a+0x1234 (build ab01)\n    2: 0x1234\n    \
             ...: no call frame information\n"
        );
        assert_eq!(stack.text(LONGEST_TEXT), format!("{stack:#}").trim_end());
    }

    #[cfg(feature = "http")]
    #[test]
    fn a_panic_is_told_in_the_same_form() {
        let text = "   0: __rustc::rust_begin_unwind\n             at /rustc/1/std/panicking.rs:689:5\n   \
                    1: shop::stock::reserve\n             at ./src/stock.rs:88:9\n      \
                    shop::order::place\n             at ./src/order.rs:31:5\n   2: main\n";
        let stack = CallStack::from_backtrace(text);
        assert_eq!(
            stack.to_string(),
            "shop::stock::reserve (src/stock.rs:88) called from shop::order::place (src/order.rs:31)"
        );
        assert_eq!(
            stack.text(LONGEST_TEXT),
            "    0: __rustc::rust_begin_unwind (/rustc/1/std/panicking.rs:689)\n\
             >   1: shop::stock::reserve (src/stock.rs:88) [inlined]\n\
             >   2: shop::order::place (src/order.rs:31)\n    3: main"
        );
        let real = std::backtrace::Backtrace::force_capture().to_string();
        let stack = CallStack::from_backtrace(&real);
        let own = "a_panic_is_told_in_the_same_form";
        let mut names = stack
            .frames
            .iter()
            .filter_map(|frame| frame.function.as_ref());
        assert!(names.any(|name| name.contains(own)), "{real}");
        assert!(CallStack::from_backtrace("disabled backtrace").frames.len() == 1);
    }

    #[test]
    fn a_text_of_limited_length_says_how_many_frames_are_left_out() {
        let stack = CallStack {
            frames: vec![frame("a::b\n\u{1b}[2J", "src/a.rs", "/bin/a"); 1_000],
            cut: None,
        };
        let text = stack.text(LONGEST_TEXT);
        assert!(text.len() <= LONGEST_TEXT && text.len() > LONGEST_TEXT / 2);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], r">   0: a::b\n\u{1b}[2J (src/a.rs:88)");
        let left = 1_000 - (lines.len() - 1);
        assert_eq!(
            *lines.last().unwrap(),
            format!("    ...: more frames: {left}")
        );
        // A frame that alone is too long.
        let stack = CallStack {
            frames: vec![frame(&"a::".repeat(LONGEST_TEXT), "", "/bin/a")],
            cut: None,
        };
        assert_eq!(stack.text(LONGEST_TEXT), "    ...: more frames: 1");
    }
}
