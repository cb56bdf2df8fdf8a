//! What supervised work may return.

use std::fmt;
use std::process::ExitCode;
use std::sync::Arc;

use crate::error::describe;
use crate::health::Exit;

/// What supervised work may return: it distinguishes a failure from a success, as
/// [`std::process::Termination`] does for `main`.
///
/// Implemented for `()`, for `Result`, for `ExitCode` and [`Exit`], and for common types of values. A
/// type of your own that is always a success needs nothing but `impl Outcome for MyType {}`.
///
/// ```
/// use worker_heartbeat::{Outcome, Registry, WorkerHeartbeat};
///
/// struct Imported {
///     rejected: usize,
/// }
///
/// impl Outcome for Imported {
///     fn failure(&self) -> Option<String> {
///         (self.rejected > 0).then(|| format!("{} files rejected", self.rejected))
///     }
/// }
///
/// let registry = Registry::new();
/// let hb = WorkerHeartbeat::builder("import").registry(&registry).start()?;
/// let imported = hb.run(|| Imported { rejected: 3 })?;
/// assert_eq!(imported.rejected, 3);
/// assert!(hb.health().to_string().contains("failed: 3 files rejected"));
/// # Ok::<(), worker_heartbeat::Error>(())
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` does not say whether supervised work failed",
    label = "this is what the work returns",
    note = "return `()` or a `Result` whose error implements `Display`",
    note = "for a type of your own: `impl Outcome for {Self} {{}}`"
)]
pub trait Outcome {
    /// Why the work failed, as text; `None` if it did not.
    ///
    /// ```
    /// use worker_heartbeat::Outcome;
    ///
    /// assert_eq!(42.failure(), None);
    /// let refused: Result<(), _> = Err("no route to host");
    /// assert_eq!(refused.failure().as_deref(), Some("no route to host"));
    /// ```
    fn failure(&self) -> Option<String> {
        None
    }
}

/// The failure includes the causes of the error if they can be found out. That is so for
/// [`BoxError`](crate::BoxError) and its relatives without `Send` or `Sync`, and for an
/// `Arc<dyn Error + Send + Sync>`; for [`std::io::Error`]; and for types whose alternate form, `{:#}`,
/// has the causes, such as `anyhow::Error` and `eyre::Report`. Of any other type, only what it
/// displays is known: that it is an error cannot be seen through [`Display`](fmt::Display). To
/// include its causes, return it as a [`BoxError`](crate::BoxError), which `?` does.
impl<T, E: fmt::Display + 'static> Outcome for Result<T, E> {
    fn failure(&self) -> Option<String> {
        self.as_ref().err().map(describe)
    }
}

impl<T> Outcome for Option<T> {}
impl<T> Outcome for Vec<T> {}
impl<T: ?Sized> Outcome for Box<T> {}
impl<T: ?Sized> Outcome for Arc<T> {}

macro_rules! successes {
    ($($type:ty),* $(,)?) => { $(impl Outcome for $type {})* };
}

successes!(
    (),
    bool,
    char,
    String,
    &'static str,
    u8,
    u16,
    u32,
    u64,
    u128,
    usize,
    i8,
    i16,
    i32,
    i64,
    i128,
    isize,
    f32,
    f64,
    std::convert::Infallible,
);

/// A failure unless it is [`ExitCode::SUCCESS`], as for `main`.
impl Outcome for ExitCode {
    fn failure(&self) -> Option<String> {
        if *self == Self::SUCCESS {
            return None;
        }
        // It does not say its number.
        let number = (1..=u8::MAX).find(|number| *self == Self::from(*number));
        Some(number.map_or_else(
            || "exit code of a failure".to_owned(),
            |number| format!("exit code {number}"),
        ))
    }
}

/// How other supervised work ended: a failure if that failed, panicked or was given up.
impl Outcome for Exit {
    fn failure(&self) -> Option<String> {
        match self {
            Self::Completed | Self::Cancelled => None,
            Self::Failed { error } => Some(error.clone()),
            Self::Panicked {
                message,
                location: Some(location),
            } => Some(format!("panicked at {location}: {message}")),
            Self::Panicked { message, .. } => Some(format!("panicked: {message}")),
            Self::GaveUp { restarts, death } => {
                let why = death.as_ref().map(|death| format!(": {}", death.cause));
                let why = why.unwrap_or_default();
                Some(format!("gave up after {restarts} restarts{why}"))
            }
        }
    }
}

/// The type of what never returns, which the compiler infers for a block that always panics. It
/// cannot be named yet, but it can be found.
trait Returns {
    type Output;
}

impl<T> Returns for fn() -> T {
    type Output = T;
}

/// For that type alone. The other bounds, which it satisfies, are for other crates: the compiler does
/// not look into `Returns` there, and would refuse every other implementation. A type of theirs does
/// not satisfy all of them.
impl<Never> Outcome for Never
where
    fn() -> !: Returns<Output = Never>,
    Never: Copy + Ord + std::error::Error + std::process::Termination,
{
}

impl<A, B> Outcome for (A, B) {}
impl<A, B, C> Outcome for (A, B, C) {}
