//! Rewrites what is between two marker comments of a file.

use std::{fmt, fs, io};

/// Why it could not be done.
#[derive(Debug)]
pub(crate) enum Trouble {
    Read(io::Error),
    Write(io::Error),
    Missing(String),
}

/// Whether the file has the markers, and can be written.
pub(crate) fn check(path: &str, name: &str) -> Result<(), Trouble> {
    let text = fs::read_to_string(path).map_err(Trouble::Read)?;
    between_markers(&text, name, "")?;
    let file = fs::OpenOptions::new().append(true).open(path);
    file.map(drop).map_err(Trouble::Write)
}

/// Puts `text` between `<!-- {name}: begin -->` and `<!-- {name}: end -->`.
pub(crate) fn rewrite(path: &str, name: &str, text: &str) -> Result<(), Trouble> {
    let old = fs::read_to_string(path).map_err(Trouble::Read)?;
    let new = between_markers(&old, name, text)?;
    fs::write(path, new).map_err(Trouble::Write)
}

fn between_markers(old: &str, name: &str, text: &str) -> Result<String, Trouble> {
    let begin = format!("<!-- {name}: begin -->");
    let end = format!("<!-- {name}: end -->");
    let Some((before, rest)) = old.split_once(&begin) else {
        return Err(Trouble::Missing(begin));
    };
    let Some((_, after)) = rest.split_once(&end) else {
        return Err(Trouble::Missing(end));
    };
    Ok(format!(
        "{before}{begin}\n{}\n{end}{after}",
        text.trim_end()
    ))
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Read(error) => write!(f, "it cannot be read: {error}"),
            Self::Write(error) => write!(f, "it cannot be written: {error}"),
            Self::Missing(marker) => write!(f, "it has no line {marker:?} where one is needed"),
        }
    }
}
