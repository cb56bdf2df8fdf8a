//! The documents of the repository, and the files that they refer to.

use std::fs;
use std::path::{Path, PathBuf};

/// All documents of the repository.
pub fn documents() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folders = ["", "docs", "docs/guide", "examples"].map(|folder| root.join(folder));
    let entries = folders
        .iter()
        .flat_map(|folder| fs::read_dir(folder).into_iter().flatten());
    let files = entries.map(|entry| entry.unwrap().path());
    let documents: Vec<_> = files
        .filter(|file| file.extension().is_some_and(|end| end == "md"))
        .collect();
    assert!(documents.len() >= 3, "{documents:?}");
    documents
}

/// The text without its blocks of code.
fn prose(text: &str) -> String {
    let mut in_code = false;
    let mut prose = String::new();
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            in_code = !in_code;
        } else if !in_code {
            prose += line;
            prose += "\n";
        }
    }
    prose
}

#[test]
fn links_between_the_documents_and_to_files_have_a_target() {
    let mut links = 0;
    for document in documents() {
        let text = prose(&fs::read_to_string(&document).unwrap());
        // Either inline, or as a definition on a line of its own.
        let in_place = text
            .split("](")
            .skip(1)
            .filter_map(|rest| rest.split_once(')'));
        let definitions = text.lines().filter(|line| line.starts_with('['));
        let definitions = definitions.filter_map(|line| line.split_once("]: "));
        let targets = in_place
            .map(|(target, _)| target)
            .chain(definitions.map(|(_, target)| target.trim()));
        for target in targets {
            let file = target.split('#').next().unwrap();
            // An item of the crate, an address, a heading of the same document.
            if target.contains("://") || target.contains("::") || file.is_empty() {
                continue;
            }
            let path = document.parent().unwrap().join(file);
            assert!(path.exists(), "{document:?} links to {target}");
            links += 1;
        }
    }
    assert!(links > 20, "only {links} links were found");
}

#[test]
fn paths_that_the_documents_name_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut paths = 0;
    for document in documents() {
        let text = prose(&fs::read_to_string(&document).unwrap());
        for path in text.split('`').skip(1).step_by(2) {
            let path = path.trim_start_matches("bash ");
            let is_path = [
                "tests/",
                "src/",
                "benches/",
                "scripts/",
                "examples/",
                "docs/",
            ]
            .iter()
            .any(|folder| path.starts_with(folder));
            let of_the_reader = path == "src/main.rs" || path.starts_with("src/jobs.rs");
            if is_path && !of_the_reader && !path.contains([' ', '*', '…', '{']) {
                assert!(root.join(path).exists(), "{document:?} names {path}");
                paths += 1;
            }
        }
    }
    assert!(paths > 20, "only {paths} paths were found");
}

#[test]
fn the_pictures_embedded_in_the_documentation_are_those_of_the_repository() {
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs");
    for (picture, kind) in [
        ("tour.svg", "image/svg+xml"),
        ("dashboard.png", "image/png"),
    ] {
        let name = picture.split_once('.').unwrap().0;
        let data = base64(&fs::read(docs.join(picture)).unwrap());
        let expected = format!("[{name}]: data:{kind};base64,{data}\n");
        let embedded = fs::read_to_string(docs.join(format!("embedded/{name}.md"))).unwrap();
        assert!(
            embedded == expected,
            "{picture}: run `scripts/pictures.py embed`"
        );
    }
    let tour = fs::read_to_string(docs.join("tour.svg")).unwrap();
    let why = "panicked at examples/tour/farm.rs:";
    assert!(tour.contains(why), "the reason of a death is missing");
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let mut three = [0; 3];
        three[..chunk.len()].copy_from_slice(chunk);
        let bits = u32::from_be_bytes([0, three[0], three[1], three[2]]);
        for digit in 0..4 {
            if digit <= chunk.len() {
                let value = bits >> (18 - 6 * digit) & 63;
                text.push(DIGITS[value as usize].into());
            } else {
                text.push('=');
            }
        }
    }
    text
}
