//! The real work: CRC-32 of every file below a folder.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// Large enough to be fast, small enough that a beat comes often.
const CHUNK: usize = 64 * 1024;
const SKIPPED: [&str; 2] = ["target", ".git"];

/// The result for a file that was read to its end.
#[derive(Debug)]
pub struct Checksum {
    pub path: PathBuf,
    pub bytes: u64,
    pub crc: u32,
}

/// All files below a folder, in order, without unreadable ones and without following links. Calls
/// `beat` for each folder.
pub fn files_below(folder: &Path, mut beat: impl FnMut()) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        beat();
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            match entry.file_type() {
                Ok(kind) if kind.is_file() => files.push(entry.path()),
                Ok(kind) if kind.is_dir() && !is_skipped(&entry) => folders.push(entry.path()),
                _ => {}
            }
        }
    }
    files.sort_unstable();
    files
}

fn is_skipped(folder: &fs::DirEntry) -> bool {
    SKIPPED.iter().any(|name| folder.file_name() == *name)
}

/// Reads a file to its end. Calls `go_on` after each chunk; if that returns false, there is no
/// checksum.
pub fn checksum(path: &Path, mut go_on: impl FnMut() -> bool) -> io::Result<Option<Checksum>> {
    let mut file = File::open(path)?;
    let mut chunk = vec![0; CHUNK];
    let (mut crc, mut bytes) = (u32::MAX, 0);
    loop {
        let length = file.read(&mut chunk)?;
        if length == 0 {
            let path = path.to_owned();
            return Ok(Some(Checksum {
                path,
                bytes,
                crc: !crc,
            }));
        }
        crc = chunk[..length].iter().fold(crc, |crc, byte| {
            TABLE[usize::from(*byte ^ crc as u8)] ^ (crc >> 8)
        });
        bytes += length as u64;
        if !go_on() {
            return Ok(None);
        }
    }
}

/// The remainders of all bytes, for the polynomial of Ethernet, zip and PNG.
const TABLE: [u32; 256] = {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < table.len() {
        let mut remainder = byte as u32;
        let mut bit = 0;
        while bit < 8 {
            let carry = remainder & 1 == 1;
            remainder >>= 1;
            if carry {
                remainder ^= 0xEDB8_8320;
            }
            bit += 1;
        }
        table[byte] = remainder;
        byte += 1;
    }
    table
};
