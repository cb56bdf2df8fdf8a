//! Places in source code.

use std::borrow::Cow;
use std::fmt;
use std::panic::Location;

use crate::sync::printable::{CUT, Printable};

/// A file and a line of source code: where a worker last reported, or where it was started.
///
/// A path that the compiler recorded relative to the workspace is kept: `src/jobs.rs`. Of an absolute
/// one, as for crates of a registry, only the end is kept, from the directory of the crate on:
/// `shop-jobs-1.2.3/src/lib.rs`. So it does not show directories of the machine that built the program.
/// A path of more than 200 bytes keeps its end, after `…`.
///
/// ```
/// use worker_heartbeat::WorkerHeartbeat;
///
/// let hb = WorkerHeartbeat::builder("mailer").start()?;
/// hb.mark_idle();
/// let location = hb.snapshot().last_location.expect("it has reported");
/// println!("last seen at {location}"); // last seen at src/main.rs:4
/// # Ok::<(), worker_heartbeat::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub struct SourceLocation {
    /// The path of the file, with the separators of the machine that compiled it.
    pub file: Cow<'static, str>,
    /// The line, counted from 1.
    pub line: u32,
}

/// The place of a call into this crate, as `#[track_caller]` gives it.
pub(crate) type CallSite = &'static Location<'static>;

impl SourceLocation {
    /// Longer paths are cut.
    const LONGEST_FILE: usize = 200;

    /// The place of a call. `None` if the call came through a function pointer or a trait, as in
    /// `for_each(WorkerHeartbeat::mark_idle)`: the compiler then gives the place of the function itself,
    /// or one in the standard library.
    pub(crate) fn of(site: CallSite) -> Option<Self> {
        let file = site.file();
        (!is_in_this_crate(file) && !is_in_std(file)).then(|| Self {
            file: shortened(file),
            line: site.line(),
        })
    }

    /// From its text, as a store keeps it. `None` if it is not such a text.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (file, line) = text.rsplit_once(':')?;
        let line = line.parse().ok()?;
        (!file.is_empty()).then(|| Self {
            file: Cow::Owned(end_of(file, Self::LONGEST_FILE).into_owned()),
            line,
        })
    }
}

impl fmt::Display for SourceLocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", Printable(&self.file), self.line)
    }
}

/// Of Unix and of Windows: a program may have paths of both.
const SEPARATORS: [char; 2] = ['/', '\\'];

/// Whether the path is that of a file that defines calls of workers.
fn is_in_this_crate(path: &str) -> bool {
    const THIS_FILE: &str = "health/location.rs";
    let sources = file!().split_at(file!().len() - THIS_FILE.len()).0;
    path.strip_prefix(sources)
        .is_some_and(|rest| rest.starts_with("worker") || rest.starts_with("supervisor"))
}

/// Whether the path is that of a file of the standard library.
fn is_in_std(path: &str) -> bool {
    let parts: Vec<&str> = path.split(SEPARATORS).collect();
    parts
        .windows(3)
        .any(|three| matches!(three, ["library", "core" | "alloc" | "std", "src"]))
}

/// A path without the directories above the crate's own.
fn shortened(path: &'static str) -> Cow<'static, str> {
    /// Directories that packages have besides `src`.
    const OTHERS: usize = 3;
    let is_absolute = path.starts_with(SEPARATORS) || path.as_bytes().get(1) == Some(&b':');
    if !is_absolute {
        return end_of(path, SourceLocation::LONGEST_FILE);
    }
    // Where each part begins, from the last on.
    let mut starts: Vec<usize> = path
        .match_indices(SEPARATORS)
        .map(|(at, _)| at + 1)
        .collect();
    starts.reverse();
    let is_src = |start: &usize| {
        let part = path[*start..].split(SEPARATORS).next();
        matches!(part, Some("src"))
    };
    let kept = starts
        .iter()
        .position(is_src)
        .map_or(OTHERS - 1, |src| src + 1);
    let start = starts.get(kept).or(starts.last()).copied().unwrap_or(0);
    end_of(&path[start..], SourceLocation::LONGEST_FILE)
}

/// The end of a text, of at most so many bytes, marked if it was cut.
fn end_of(text: &str, longest: usize) -> Cow<'_, str> {
    if text.len() <= longest {
        return Cow::Borrowed(text);
    }
    let mut start = text.len() - (longest - CUT.len_utf8());
    while !text.is_char_boundary(start) {
        start += 1;
    }
    Cow::Owned(format!("{CUT}{}", &text[start..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_an_absolute_path_the_end_is_kept_from_the_crate_on() {
        for (given, shown) in [
            ("src/jobs.rs", "src/jobs.rs"),
            ("crates/shop/src/jobs.rs", "crates/shop/src/jobs.rs"),
            ("../shop/src/jobs.rs", "../shop/src/jobs.rs"),
            (r"src\jobs.rs", r"src\jobs.rs"),
            (
                "/home/ada/.cargo/registry/src/index.crates.io-1949/shop-1.2.3/src/lib.rs",
                "shop-1.2.3/src/lib.rs",
            ),
            (
                "/home/ada/src/github.com/ada/shop/src/bin/shop.rs",
                "shop/src/bin/shop.rs",
            ),
            (
                r"C:\Users\ada\.cargo\registry\src\index-1949\shop-1.2.3\src\a\b.rs",
                r"shop-1.2.3\src\a\b.rs",
            ),
            // The path of a registry and that of the crate, as cross compilers mix them.
            (
                r"C:\Users\ada\.cargo/registry/src/index-1949/shop-1.2.3\src/lib.rs",
                r"shop-1.2.3\src/lib.rs",
            ),
            (r"\\server\share\shop\src\lib.rs", r"shop\src\lib.rs"),
            ("/home/ada/shop/tests/all/main.rs", "tests/all/main.rs"),
            (
                "/build/target/debug/build/shop-0f1e/out/jobs.rs",
                "shop-0f1e/out/jobs.rs",
            ),
            ("/src/lib.rs", "src/lib.rs"),
            ("/jobs.rs", "jobs.rs"),
            ("/", ""),
            ("", ""),
        ] {
            assert_eq!(shortened(given), shown, "{given}");
        }
    }

    #[test]
    fn a_place_in_the_standard_library_is_not_that_of_a_report() {
        for path in [
            "/rustc/59807616e1fa/library/core/src/ops/function.rs",
            r"/rustc/59807616e1fa\library\core\src\ops\function.rs",
            "/home/ada/.rustup/toolchains/stable/lib/rustlib/src/rust/library/std/src/thread.rs",
        ] {
            assert!(is_in_std(path), "{path}");
        }
        assert!(!is_in_std("library/src/core.rs"));
        assert!(!is_in_std("library/core/lib.rs"));
    }

    #[test]
    fn a_long_path_keeps_its_end_between_two_characters() {
        let long: &'static str = format!("{}/jobs.rs", "ä".repeat(200)).leak();
        let short = shortened(long);
        assert!(
            short.len() <= SourceLocation::LONGEST_FILE,
            "{}",
            short.len()
        );
        assert!(short.starts_with("…ä") && short.ends_with("ä/jobs.rs"));
    }

    #[test]
    fn a_text_comes_back_as_it_was() {
        let here = SourceLocation::of(Location::caller()).unwrap();
        assert_eq!(here.file, file!());
        assert_eq!(SourceLocation::parse(&here.to_string()), Some(here));
        let drive = SourceLocation::parse(r"C:\a.rs:7").unwrap();
        assert_eq!((&*drive.file, drive.line), (r"C:\a.rs", 7));
        for odd in [
            "",
            ":",
            ":7",
            "src/a.rs",
            "src/a.rs:",
            "src/a.rs:-1",
            "a:99999999999",
        ] {
            assert_eq!(SourceLocation::parse(odd), None, "{odd}");
        }
        let long = SourceLocation::parse(&format!("{}:7", "x".repeat(9_999))).unwrap();
        assert_eq!(long.file.len(), SourceLocation::LONGEST_FILE);
    }

    #[test]
    fn an_odd_path_cannot_break_a_line() {
        let odd = SourceLocation {
            file: "src/a\u{fffd}\n\u{1b}[2J.rs".into(),
            line: 7,
        };
        assert_eq!(odd.to_string(), "src/a\u{fffd}\\n\\u{1b}[2J.rs:7");
    }
}
