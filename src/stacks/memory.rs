//! The memory of this process, read through the kernel: a wrong address is an error, not a crash.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;

/// Most of a stack that is copied at once; what lies beyond is read in place.
const LARGEST_COPY: usize = 256 * 1024;

/// See the module. A copy of the used part of one stack takes precedence over the memory itself, which
/// may change once the thread runs again.
pub(super) struct Memory {
    file: File,
    copied_from: u64,
    copy: Vec<u8>,
}

impl Memory {
    pub(super) fn open() -> io::Result<Self> {
        Ok(Self {
            file: File::open("/proc/self/mem")?,
            copied_from: 0,
            copy: Vec::new(),
        })
    }

    /// Copies the stack from its top on.
    pub(super) fn copy_stack(&mut self, top: u64) {
        self.copy.resize(LARGEST_COPY, 0);
        // A short read: the stack ends before.
        let length = self.file.read_at(&mut self.copy, top).unwrap_or(0);
        self.copy.truncate(length);
        self.copied_from = top;
    }

    pub(super) fn read(&self, address: u64, buffer: &mut [u8]) -> Option<()> {
        let copied = address
            .checked_sub(self.copied_from)
            .and_then(|start| usize::try_from(start).ok())
            .and_then(|start| self.copy.get(start..start.checked_add(buffer.len())?));
        if let Some(copied) = copied {
            buffer.copy_from_slice(copied);
            return Some(());
        }
        self.file.read_exact_at(buffer, address).ok()
    }

    pub(super) fn bytes<const N: usize>(&self, address: u64) -> Option<[u8; N]> {
        let mut bytes = [0; N];
        self.read(address, &mut bytes)?;
        Some(bytes)
    }

    pub(super) fn u32(&self, address: u64) -> Option<u32> {
        self.bytes(address).map(u32::from_le_bytes)
    }

    pub(super) fn u64(&self, address: u64) -> Option<u64> {
        self.bytes(address).map(u64::from_le_bytes)
    }

    /// This many bytes, or nothing.
    pub(super) fn exactly(&self, address: u64, length: usize) -> Option<Vec<u8>> {
        let mut bytes = vec![0; length];
        self.read(address, &mut bytes)?;
        Some(bytes)
    }

    /// As many bytes as can be read, up to this number.
    pub(super) fn up_to(&self, address: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        if self.read(address, &mut bytes).is_none() {
            let length = self.file.read_at(&mut bytes, address).unwrap_or(0);
            bytes.truncate(length);
        }
        bytes
    }
}

/// A mapping of `/proc/self/maps`.
#[derive(Clone, Debug)]
pub(super) struct Mapping {
    pub start: u64,
    pub end: u64,
    /// Where it begins in its file.
    pub offset: u64,
    pub executable: bool,
    /// The file, or a name such as `[vdso]`; empty for anonymous memory.
    pub path: String,
}

impl Mapping {
    fn parse(line: &str) -> Option<Self> {
        let hex = |text| u64::from_str_radix(text, 16).ok();
        let mut fields = line.splitn(6, ' ');
        let (start, end) = fields.next()?.split_once('-')?;
        let permissions = fields.next()?;
        let offset = hex(fields.next()?)?;
        Some(Self {
            start: hex(start)?,
            end: hex(end)?,
            offset,
            executable: permissions.as_bytes().get(2) == Some(&b'x'),
            // The device and the inode come before.
            path: fields.nth(2).unwrap_or_default().trim_start().to_owned(),
        })
    }
}

/// The mappings of this process, in the order of their addresses.
pub(super) struct Mappings(Vec<Mapping>);

impl Mappings {
    pub(super) fn read() -> io::Result<Self> {
        let text = fs::read_to_string("/proc/self/maps")?;
        Ok(Self(text.lines().filter_map(Mapping::parse).collect()))
    }

    /// The executable mapping at this address.
    pub(super) fn code_at(&self, address: u64) -> Option<&Mapping> {
        let found = self
            .0
            .iter()
            .find(|mapping| mapping.start <= address && address < mapping.end);
        found.filter(|mapping| mapping.executable)
    }

    /// Where the file of this mapping begins: the nearest mapping below that has its first bytes. A
    /// file may be mapped several times.
    pub(super) fn base_of(&self, mapping: &Mapping) -> Option<u64> {
        self.0
            .iter()
            .rev()
            .skip_while(|other| other.start > mapping.start)
            .take_while(|other| other.path == mapping.path || other.path.is_empty())
            .find(|other| other.path == mapping.path && other.offset == 0)
            .map(|first| first.start)
    }
}

/// What the kernel shows of a thread that does not run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Blocked {
    /// The number of its system call; `None` outside of one, as in a page fault.
    pub system_call: Option<i64>,
    pub stack_pointer: u64,
    pub program_counter: u64,
}

/// `Ok(None)`: the thread is running.
pub(super) fn blocked(thread: u32) -> io::Result<Option<Blocked>> {
    let text = fs::read_to_string(format!("/proc/self/task/{thread}/syscall"))?;
    if text.trim() == "running" {
        return Ok(None);
    }
    let odd = || io::Error::other(format!("unknown format of its system call: {text:?}"));
    parse_blocked(&text).map(Some).ok_or_else(odd)
}

fn parse_blocked(text: &str) -> Option<Blocked> {
    let hex = |text: &str| u64::from_str_radix(text.strip_prefix("0x")?, 16).ok();
    let mut fields = text.split_ascii_whitespace();
    let number: i64 = fields.next()?.parse().ok()?;
    let mut last = fields.rev();
    let program_counter = hex(last.next()?)?;
    Some(Blocked {
        system_call: (number >= 0).then_some(number),
        stack_pointer: hex(last.next()?)?,
        program_counter,
    })
}

/// How often the thread was taken off a processor: as long as this does not change, it did not run.
pub(super) fn context_switches(thread: u32) -> io::Result<u64> {
    let status = fs::read_to_string(format!("/proc/self/task/{thread}/status"))?;
    let counts = status
        .lines()
        .filter(|line| line.contains("ctxt_switches"))
        .filter_map(|line| line.rsplit('\t').next()?.trim().parse::<u64>().ok());
    Ok(counts.sum())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mappings_are_read() {
        let line = "7f00-8000 r-xp 00001000 fe:00 1234   /usr/lib/a b.so (deleted)";
        let mapping = Mapping::parse(line).unwrap();
        assert_eq!((mapping.start, mapping.end), (0x7f00, 0x8000));
        assert_eq!((mapping.offset, mapping.executable), (0x1000, true));
        assert_eq!(mapping.path, "/usr/lib/a b.so (deleted)");
        let anonymous = Mapping::parse("7f00-8000 rw-p 00000000 00:00 0").unwrap();
        assert_eq!((anonymous.executable, &*anonymous.path), (false, ""));
        for odd in ["", "7f00", "x-y r-xp 0 fe:00 1"] {
            assert!(Mapping::parse(odd).is_none(), "{odd:?}");
        }
    }

    #[test]
    fn the_nearest_first_mapping_of_a_file_is_its_base() {
        let mapping = |start, offset, path: &str| Mapping {
            start,
            end: start + 0x100,
            offset,
            executable: true,
            path: path.to_owned(),
        };
        let mappings = Mappings(vec![
            mapping(0x1000, 0, "a"),
            mapping(0x1100, 0x100, "a"),
            mapping(0x2000, 0, "b"),
            mapping(0x3000, 0, "a"),
            mapping(0x3100, 0x100, "a"),
        ]);
        let base = |address| mappings.base_of(mappings.code_at(address).unwrap());
        assert_eq!(base(0x1110), Some(0x1000));
        assert_eq!(base(0x3110), Some(0x3000));
        assert!(mappings.code_at(0x1200).is_none());
    }

    #[test]
    fn registers_are_read() {
        let futex = "202 0x7f 0x80 0x0 0x0 0x0 0xffffffff 0x7ffd0010 0x7f0000001234\n";
        let blocked = parse_blocked(futex).unwrap();
        assert_eq!(blocked.system_call, Some(202));
        assert_eq!(blocked.stack_pointer, 0x7ffd_0010);
        assert_eq!(blocked.program_counter, 0x7f00_0000_1234);
        let fault = parse_blocked("-1 0x7ffd0010 0x1234").unwrap();
        assert_eq!(fault.system_call, None);
        for odd in ["", "202", "202 0x1", "x 0x1 0x2", "202 1 2"] {
            assert_eq!(parse_blocked(odd), None, "{odd:?}");
        }
    }

    #[test]
    fn memory_that_is_not_there_is_not_read() {
        let memory = Memory::open().unwrap();
        let value = std::hint::black_box(0x0123_4567_89ab_cdef_u64);
        let address = std::ptr::from_ref(&value).addr() as u64;
        assert_eq!(memory.u64(address), Some(value));
        assert_eq!(memory.u64(8), None);
        assert_eq!(memory.u64(u64::MAX - 3), None);
        assert!(memory.up_to(8, 16).is_empty());
    }
}
