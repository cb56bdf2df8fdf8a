//! Names and lines of code addresses, from the files of the modules.
//!
//! A file is read section by section. Debug information gives lines and inlined functions. Where there
//! is none, the symbol tables give names.

use std::fs::File;
use std::os::unix::fs::FileExt;

use addr2line::Context;
use gimli::{Dwarf, EndianSlice, LittleEndian};
use rustc_demangle::demangle;

use super::free_memory::free_memory;

/// Larger debug information is not read: it would take seconds, and as much memory.
const LARGEST_DEBUG_INFORMATION: u64 = 512 * 1024 * 1024;
/// At most this part of the memory that is left is used for it.
const SHARE_OF_MEMORY: u64 = 4;
const LONGEST_NAME: usize = 4 * 1024;
/// Longer names of functions and files are cut: stacks are kept.
const LONGEST_KEPT: usize = 512;
const MOST_SECTIONS: u64 = 64 * 1024;
/// How many symbols are read at once.
const SYMBOLS: usize = 4 * 1024;
const SYMBOL_SIZE: usize = 24;

const SYMBOL_TABLE: u32 = 2;
const NOTE: u32 = 7;
const DYNAMIC_SYMBOL_TABLE: u32 = 11;
const COMPRESSED: u64 = 0x800;
/// Functions, and functions that are chosen when the program is loaded.
const FUNCTIONS: [u8; 2] = [2, 10];

/// A function at an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Symbol {
    pub function: String,
    pub file: Option<String>,
    pub line: Option<u32>,
    /// It was inlined into the next one.
    pub is_inlined: bool,
}

struct Section {
    name: String,
    kind: u32,
    flags: u64,
    offset: u64,
    size: u64,
    link: usize,
}

struct ObjectFile {
    file: File,
    sections: Vec<Section>,
}

/// The functions at each of these addresses, as the file counts them, innermost first. Empty where
/// nothing is known. `build_id`: of the module in memory.
pub(super) fn resolve(path: &str, build_id: &str, addresses: &[u64]) -> Vec<Vec<Symbol>> {
    let mut found = vec![Vec::new(); addresses.len()];
    let file = ObjectFile::open(path);
    // An update may have replaced the file under the running program: its names would be wrong.
    if let Some(file) = file.filter(|file| file.is_of(build_id)) {
        // What fails leaves the others as they are.
        let _ = file.read_debug_information(addresses, &mut found);
        for kind in [SYMBOL_TABLE, DYNAMIC_SYMBOL_TABLE] {
            if found.iter().any(Vec::is_empty) {
                let _ = file.read_symbols(kind, addresses, &mut found);
            }
        }
    }
    found
}

fn number<const N: usize>(bytes: &[u8], at: usize) -> Option<u64> {
    let bytes = bytes.get(at..at.checked_add(N)?)?;
    let fold = |number, byte: &u8| number << 8 | u64::from(*byte);
    Some(bytes.iter().rev().fold(0, fold))
}

/// A text that a zero byte ends.
fn text(bytes: &[u8], at: u64) -> Option<String> {
    let rest = bytes.get(usize::try_from(at).ok()?..)?;
    let text = rest.split(|byte| *byte == 0).next()?;
    Some(String::from_utf8_lossy(text).into_owned())
}

fn readable(name: &str) -> String {
    // Without the hash.
    cut(&format!("{:#}", demangle(name)))
}

fn cut(text: &str) -> String {
    match text.char_indices().nth(LONGEST_KEPT) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

/// The path of a file in the directory in which the compiler was called.
fn relative<'a>(file: &'a str, directory: Option<&str>) -> &'a str {
    let inside = directory.and_then(|directory| file.strip_prefix(directory)?.strip_prefix('/'));
    inside.unwrap_or(file)
}

impl ObjectFile {
    fn open(path: &str) -> Option<Self> {
        // The program itself may have been deleted or replaced meanwhile.
        const PROGRAM: &str = "/proc/self/exe";
        let program = std::fs::read_link(PROGRAM).ok()?;
        let path = if program.as_os_str() == path {
            PROGRAM
        } else {
            path
        };
        // A pipe of that name would block.
        if !std::fs::metadata(path).ok()?.is_file() {
            return None;
        }
        let file = File::open(path).ok()?;
        let mut this = Self {
            file,
            sections: Vec::new(),
        };
        let header = this.read(0, 64)?;
        if !header.starts_with(b"\x7fELF\x02\x01") {
            return None;
        }
        let size = number::<2>(&header, 58)?;
        let count = number::<2>(&header, 60)?;
        if size < 64 || count > MOST_SECTIONS {
            return None;
        }
        let headers = this.read(number::<8>(&header, 40)?, size * count)?;
        let headers: Vec<&[u8]> = headers.chunks_exact(size as usize).collect();
        let section = |header: &&[u8]| {
            Some(Section {
                name: String::new(),
                kind: number::<4>(header, 4)? as u32,
                flags: number::<8>(header, 8)?,
                offset: number::<8>(header, 24)?,
                size: number::<8>(header, 32)?,
                link: number::<4>(header, 40)? as usize,
            })
        };
        this.sections = headers.iter().map(section).collect::<Option<_>>()?;
        let names = this.sections.get(number::<2>(&header, 62)? as usize)?;
        let names = this.read(names.offset, names.size)?;
        for (section, header) in this.sections.iter_mut().zip(&headers) {
            section.name = text(&names, number::<4>(header, 0)?)?;
        }
        Some(this)
    }

    /// Whether it has this build id; `true` if that is empty.
    fn is_of(&self, build_id: &str) -> bool {
        let notes = self
            .sections
            .iter()
            .filter(|section| section.kind == NOTE && section.size <= LONGEST_NAME as u64);
        let mut own = notes.filter_map(|section| {
            super::module::build_id(&self.read(section.offset, section.size)?)
        });
        build_id.is_empty() || own.next().is_some_and(|own| own == build_id)
    }

    fn read(&self, offset: u64, size: u64) -> Option<Vec<u8>> {
        // A damaged file may name any size.
        let end = offset.checked_add(size)?;
        if end > self.file.metadata().ok()?.len() {
            return None;
        }
        let mut bytes = vec![0; usize::try_from(size).ok()?];
        self.file.read_exact_at(&mut bytes, offset).ok()?;
        Some(bytes)
    }

    fn read_debug_information(&self, addresses: &[u64], found: &mut [Vec<Symbol>]) -> Option<()> {
        let needed = |section: &&Section| {
            section.name.starts_with(".debug_") && section.flags & COMPRESSED == 0
        };
        let needed: Vec<&Section> = self.sections.iter().filter(needed).collect();
        let size: u64 = needed.iter().map(|section| section.size).sum();
        let most = LARGEST_DEBUG_INFORMATION.min(free_memory() / SHARE_OF_MEMORY);
        if size == 0 || size > most {
            return None;
        }
        let read: Vec<(&str, Vec<u8>)> = needed
            .iter()
            .map(|section| Some((&*section.name, self.read(section.offset, section.size)?)))
            .collect::<Option<_>>()?;
        let content = |name| {
            let section = read.iter().find(|(other, _)| *other == name);
            section.map_or(&[][..], |(_, content)| content)
        };
        let load = |id: gimli::SectionId| {
            Ok::<_, gimli::Error>(EndianSlice::new(content(id.name()), LittleEndian))
        };
        let context = Context::from_dwarf(Dwarf::load(load).ok()?).ok()?;
        for (address, found) in addresses.iter().zip(found) {
            let Ok(mut frames) = context.find_frames(*address).skip_all_loads() else {
                continue;
            };
            let unit = context.find_dwarf_and_unit(*address).skip_all_loads();
            let directory = unit.and_then(|unit| unit.comp_dir);
            let directory = directory.map(|directory| directory.to_string_lossy());
            // Those of other crates stay absolute, by which they are known.
            let directory = directory.filter(|directory| !crate::health::is_foreign(directory));
            while let Ok(Some(frame)) = frames.next() {
                let name = frame.function.as_ref();
                let Some(name) = name.and_then(|name| Some(name.raw_name().ok()?.into_owned()))
                else {
                    continue;
                };
                let place = frame.location.as_ref();
                found.push(Symbol {
                    function: readable(&name),
                    file: place.and_then(|place| {
                        // As in the message of a panic: from the workspace on.
                        Some(cut(relative(place.file?, directory.as_deref())))
                    }),
                    line: place.and_then(|place| place.line),
                    is_inlined: true,
                });
            }
            if let Some(outermost) = found.last_mut() {
                outermost.is_inlined = false;
            }
        }
        Some(())
    }

    fn read_symbols(&self, kind: u32, addresses: &[u64], found: &mut [Vec<Symbol>]) -> Option<()> {
        let table = self.sections.iter().find(|section| section.kind == kind)?;
        let names = self.sections.get(table.link)?;
        let chunk = (SYMBOLS * SYMBOL_SIZE) as u64;
        let mut at = 0;
        while at < table.size {
            let symbols = self.read(table.offset + at, chunk.min(table.size - at))?;
            for symbol in symbols.chunks_exact(SYMBOL_SIZE) {
                if !FUNCTIONS.contains(&(symbol[4] & 0xf)) {
                    continue;
                }
                let start = number::<8>(symbol, 8)?;
                let range = start..start.saturating_add(number::<8>(symbol, 16)?);
                for (address, found) in addresses.iter().zip(&mut *found) {
                    if range.contains(address) && found.is_empty() {
                        let name = number::<4>(symbol, 0)?;
                        let rest = names.size.saturating_sub(name);
                        let name = names.offset + name;
                        let name = self.read(name, rest.min(LONGEST_NAME as u64))?;
                        found.push(Symbol {
                            function: readable(&text(&name, 0)?),
                            file: None,
                            line: None,
                            is_inlined: false,
                        });
                    }
                }
            }
            at += chunk;
        }
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_other_formats_give_nothing() {
        for path in ["/proc/self/status", "/nonexistent", "/tmp", "[vdso]", ""] {
            assert_eq!(resolve(path, "", &[0x1000]), [vec![]], "{path}");
        }
    }
}
