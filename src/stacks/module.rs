//! The modules of this process, and their call frame information, read from memory: the files may be
//! deleted or replaced meanwhile.
//!
//! The layout is that of the ELF specification and of the Linux Standard Base (`.eh_frame_hdr`).

use std::ops::Range;

use super::memory::{Mappings, Memory};

const SEGMENT: u32 = 1;
const NOTE: u32 = 4;
const FRAME_TABLE: u32 = 0x6474_e550;
const BUILD_ID: u32 = 3;
/// The only encoding of the table that linkers write: version 1; pointer relative, signed 4 bytes;
/// count 4 bytes; entries relative to the table, signed 4 bytes.
const TABLE_FORMAT: [u8; 4] = [1, 0x1b, 0x03, 0x3b];
/// Longer entries and notes are not believed.
const LONGEST_ENTRY: u32 = 64 * 1024;
const LONGEST_NOTE: u64 = 4 * 1024;
const MOST_SEGMENTS: u16 = 128;

/// An executable or a shared library in memory.
#[derive(Clone, Debug)]
pub(super) struct Module {
    pub path: String,
    pub range: Range<u64>,
    /// An address in memory is one in the file plus this.
    pub bias: u64,
    /// In hexadecimal; empty if it has none.
    pub build_id: String,
    /// The address of the table of call frame information.
    table: u64,
    entries: u32,
}

/// The call frame information of one function: a common entry and the function's, in one buffer as they
/// would lie in a small `.eh_frame`.
pub(super) struct FrameInfo {
    /// Where the function begins.
    pub function: u64,
    pub section: Vec<u8>,
    /// Where the buffer would lie, so that relative pointers of the function's entry are right.
    pub section_address: u64,
    /// Where the function's entry begins in the buffer.
    pub entry: usize,
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    let bytes = bytes.get(at..at + 2)?;
    bytes.try_into().ok().map(u16::from_le_bytes)
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..at + 4)?;
    bytes.try_into().ok().map(u32::from_le_bytes)
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    let bytes = bytes.get(at..at + 8)?;
    bytes.try_into().ok().map(u64::from_le_bytes)
}

impl Module {
    /// The module that has code at this address.
    pub(super) fn at(mappings: &Mappings, memory: &Memory, address: u64) -> Option<Self> {
        let mapping = mappings.code_at(address)?;
        let base = mappings.base_of(mapping)?;
        let header: [u8; 64] = memory.bytes(base)?;
        if !header.starts_with(b"\x7fELF\x02\x01") {
            return None;
        }
        let size = u16_at(&header, 54)?;
        let count = u16_at(&header, 56)?.min(MOST_SEGMENTS);
        if size < 56 {
            return None;
        }
        let headers = memory.exactly(
            base.wrapping_add(u64_at(&header, 32)?),
            usize::from(size) * usize::from(count),
        )?;
        let (mut lowest, mut highest, mut table) = (None::<u64>, 0, None);
        let mut notes = Vec::new();
        for segment in headers.chunks_exact(size.into()) {
            let address = u64_at(segment, 16)?;
            match u32_at(segment, 0)? {
                SEGMENT => {
                    let page = address & !0xfff;
                    lowest = Some(lowest.map_or(page, |lowest| lowest.min(page)));
                    highest = highest.max(address.saturating_add(u64_at(segment, 40)?));
                }
                FRAME_TABLE => table = Some(address),
                NOTE => notes.push((address, u64_at(segment, 32)?)),
                _ => {}
            }
        }
        let bias = base.wrapping_sub(lowest?);
        let table = bias.wrapping_add(table?);
        let start: [u8; 12] = memory.bytes(table)?;
        if !start.starts_with(&TABLE_FORMAT) {
            return None;
        }
        let build_id = notes.into_iter().find_map(|(address, length)| {
            let length = usize::try_from(length.min(LONGEST_NOTE)).ok()?;
            build_id(&memory.exactly(bias.wrapping_add(address), length)?)
        });
        Some(Self {
            path: mapping.path.clone(),
            range: base..bias.wrapping_add(highest),
            bias,
            build_id: build_id.unwrap_or_default(),
            table,
            entries: u32_at(&start, 8)?,
        })
    }

    /// The call frame information of the function at this address.
    pub(super) fn frame_info(&self, memory: &Memory, address: u64) -> Option<FrameInfo> {
        let relative = |offset: u32| self.table.wrapping_add_signed(i64::from(offset as i32));
        let entry = |n: u32| self.table + 12 + u64::from(n) * 8;
        // The last entry that begins at the address or before.
        let (mut low, mut high) = (0, self.entries);
        while low < high {
            let middle = low + (high - low) / 2;
            if relative(memory.u32(entry(middle))?) <= address {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        let found = entry(low.checked_sub(1)?);
        let function = relative(memory.u32(found)?);
        let info = relative(memory.u32(found + 4)?);
        let length = memory.u32(info)?;
        let common = (info + 4).wrapping_sub(memory.u32(info + 4)?.into());
        let common_length = memory.u32(common)?;
        if !(4..=LONGEST_ENTRY).contains(&length) || common_length > LONGEST_ENTRY {
            return None;
        }
        let mut section = memory.exactly(common, common_length as usize + 4)?;
        let entry = section.len();
        section.extend(memory.exactly(info, length as usize + 4)?);
        // The distance to the common entry, which now begins the buffer.
        let distance = u32::try_from(entry + 4).ok()?.to_le_bytes();
        section
            .get_mut(entry + 4..entry + 8)?
            .copy_from_slice(&distance);
        Some(FrameInfo {
            function,
            section,
            section_address: info.wrapping_sub(entry as u64),
            entry,
        })
    }
}

/// The build id among these notes, in hexadecimal.
pub(super) fn build_id(notes: &[u8]) -> Option<String> {
    let mut at = 0;
    loop {
        let name_length = u32_at(notes, at)? as usize;
        let length = u32_at(notes, at + 4)? as usize;
        let name = at + 12;
        let content = name + name_length.next_multiple_of(4);
        if u32_at(notes, at + 8)? == BUILD_ID && notes.get(name..name + 3)? == b"GNU" {
            let id = notes.get(content..content.checked_add(length)?)?;
            return Some(id.iter().map(|byte| format!("{byte:02x}")).collect());
        }
        at = content.checked_add(length.next_multiple_of(4))?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_build_id_is_found_among_other_notes() {
        let note = |kind: u32, name: &[u8], content: &[u8]| {
            let mut note = Vec::new();
            note.extend((name.len() as u32).to_le_bytes());
            note.extend((content.len() as u32).to_le_bytes());
            note.extend(kind.to_le_bytes());
            for part in [name, content] {
                note.extend(part);
                note.resize(note.len().next_multiple_of(4), 0);
            }
            note
        };
        let mut notes = note(1, b"GNU\0", b"12345");
        notes.extend(note(3, b"GNU\0", &[0xab, 0x01]));
        assert_eq!(build_id(&notes).unwrap(), "ab01");
        assert_eq!(build_id(&notes[..20]), None);
        assert_eq!(build_id(&[0xff; 40]), None);
        assert_eq!(build_id(&[]), None);
    }

    #[test]
    fn this_program_has_call_frame_information() {
        let mappings = Mappings::read().unwrap();
        let memory = Memory::open().unwrap();
        let code = this_program_has_call_frame_information as fn() as usize as u64;
        let module = Module::at(&mappings, &memory, code).unwrap();
        assert!(module.range.contains(&code));
        let info = module.frame_info(&memory, code + 1).unwrap();
        assert_eq!(info.function, code);
    }
}
