//! Texts that name a run, a task or a step.

use std::borrow::Cow;
use std::cell::Cell;
use std::fmt;
use std::rc::Rc;
use std::sync::Arc;

use crate::sync::describe::write_to;

/// A name of a run, a task or a step: a text, a number, or the result of [`format_args!`].
///
/// A text is used unchanged. Other values are formatted into a reused buffer of the calling thread;
/// once that is large enough, nothing is allocated.
///
/// ```
/// use worker_heartbeat::{Activity, Registry, WorkerHeartbeat};
///
/// let registry = Registry::new();
/// let hb = WorkerHeartbeat::builder("mailer").registry(&registry).start()?;
/// hb.update_task("run-123", "sending", Activity::Processing);
/// for (n, address) in ["a@example.com", "b@example.com"].iter().enumerate() {
///     let _mail = hb.begin_task(n, format_args!("to {address}"));
/// }
/// # Ok::<(), worker_heartbeat::Error>(())
/// ```
///
/// A type of your own:
///
/// ```
/// use worker_heartbeat::Text;
///
/// struct RunId(u64);
///
/// impl Text for RunId {
///     fn with_str<R>(&self, read: impl FnOnce(&str) -> R) -> R {
///         format_args!("run-{}", self.0).with_str(read)
///     }
/// }
///
/// assert_eq!(RunId(7).with_str(str::to_owned), "run-7");
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` does not name a run, a task or a step",
    note = "for what implements `Display`, write `format_args!(\"{{}}\", value)`",
    note = "for a type of your own, implement `worker_heartbeat::Text`"
)]
pub trait Text {
    /// Passes the text to `read`.
    fn with_str<R>(&self, read: impl FnOnce(&str) -> R) -> R;
}

/// The largest buffer that a thread keeps.
const LARGEST_KEPT: usize = 4 * 1_024;

thread_local! {
    /// As many as one call uses at once: for a run and its task.
    static BUFFERS: [Cell<String>; 2] = const { [const { Cell::new(String::new()) }; 2] };
}

/// A buffer that no text of this thread is in.
fn take_buffer() -> String {
    let taken = BUFFERS.try_with(|[first, second]| {
        let buffer = first.take();
        if buffer.capacity() > 0 {
            buffer
        } else {
            second.take()
        }
    });
    // At the end of a thread, its thread-locals are gone.
    taken.unwrap_or_default()
}

fn keep_buffer(mut buffer: String) {
    if buffer.capacity() > LARGEST_KEPT {
        return;
    }
    buffer.clear();
    let _ = BUFFERS.try_with(|[first, second]| {
        let kept = first.replace(buffer);
        if kept.capacity() > 0 {
            second.set(kept);
        }
    });
}

/// The buffer is taken while in use: formatting a value may name a task itself.
impl Text for fmt::Arguments<'_> {
    fn with_str<R>(&self, read: impl FnOnce(&str) -> R) -> R {
        if let Some(text) = self.as_str() {
            return read(text);
        }
        let mut buffer = take_buffer();
        write_to(&mut buffer, *self);
        let result = read(&buffer);
        keep_buffer(buffer);
        result
    }
}

impl Text for str {
    #[inline]
    fn with_str<R>(&self, read: impl FnOnce(&str) -> R) -> R {
        read(self)
    }
}

impl<T: Text + ?Sized> Text for &T {
    #[inline]
    fn with_str<R>(&self, read: impl FnOnce(&str) -> R) -> R {
        (**self).with_str(read)
    }
}

impl<T: Text + ?Sized> Text for &mut T {
    #[inline]
    fn with_str<R>(&self, read: impl FnOnce(&str) -> R) -> R {
        (**self).with_str(read)
    }
}

macro_rules! texts {
    ($($type:ty),*) => {$(
        impl Text for $type {
            #[inline]
            fn with_str<R>(&self, read: impl FnOnce(&str) -> R) -> R {
                read(self)
            }
        }
    )*};
}

texts!(String, Cow<'_, str>, Box<str>, Rc<str>, Arc<str>);

macro_rules! formatted {
    ($($type:ty),*) => {$(
        impl Text for $type {
            fn with_str<R>(&self, read: impl FnOnce(&str) -> R) -> R {
                format_args!("{self}").with_str(read)
            }
        }
    )*};
}

formatted!(
    char, u8, u16, u32, u64, u128, usize, i8, i16, i32, i64, i128, isize
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_buffers_of_a_run_and_of_its_task_are_both_kept() {
        let capacities = || {
            BUFFERS.with(|kept| {
                kept.each_ref().map(|one| {
                    let buffer = one.take();
                    let capacity = buffer.capacity();
                    one.set(buffer);
                    capacity
                })
            })
        };
        let (run, task) = ("r".repeat(300), "t".repeat(200));
        let name = || {
            format_args!("{run}").with_str(|run| {
                format_args!("{task}")
                    .with_str(|task| assert_eq!((run.len(), task.len()), (300, 200)));
            });
        };
        // In the first turns each buffer grows to the longer text.
        (0..3).for_each(|_| name());
        let before = capacities();
        assert!(before.iter().all(|capacity| *capacity >= 200), "{before:?}");
        name();
        let mut after = capacities();
        after.sort_unstable();
        let mut before = before;
        before.sort_unstable();
        assert_eq!(after, before, "nothing is allocated any more");
        // A large buffer is not kept, and takes no other with it.
        format_args!("{}", "x".repeat(LARGEST_KEPT + 1)).with_str(|text| {
            assert_eq!(text.len(), LARGEST_KEPT + 1);
        });
        assert!(
            capacities()
                .iter()
                .all(|capacity| *capacity <= LARGEST_KEPT)
        );
    }
}
