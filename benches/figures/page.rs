//! Rewrites what is between two marker comments of a file.

use std::{fmt, fs, io};

/// Why the file is not rewritten.
#[derive(Debug)]
pub(crate) enum PageError {
    Read(io::Error),
    Write(io::Error),
    Missing(String),
}

/// Whether the file has the markers, and can be written.
pub(crate) fn check(path: &str, name: &str) -> Result<(), PageError> {
    let text = fs::read_to_string(path).map_err(PageError::Read)?;
    between_markers(&text, name, "")?;
    let file = fs::OpenOptions::new().append(true).open(path);
    file.map(drop).map_err(PageError::Write)
}

/// Puts `text` between `<!-- {name}: begin -->` and `<!-- {name}: end -->`.
pub(crate) fn rewrite(path: &str, name: &str, text: &str) -> Result<(), PageError> {
    let old = fs::read_to_string(path).map_err(PageError::Read)?;
    let new = between_markers(&old, name, text)?;
    fs::write(path, new).map_err(PageError::Write)
}

fn between_markers(old: &str, name: &str, text: &str) -> Result<String, PageError> {
    let begin = format!("<!-- {name}: begin -->");
    let end = format!("<!-- {name}: end -->");
    let Some((before, rest)) = old.split_once(&begin) else {
        return Err(PageError::Missing(begin));
    };
    let Some((_, after)) = rest.split_once(&end) else {
        return Err(PageError::Missing(end));
    };
    Ok(format!(
        "{before}{begin}\n{}\n{end}{after}",
        text.trim_end()
    ))
}

impl fmt::Display for PageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Read(error) => write!(f, "it cannot be read: {error}"),
            Self::Write(error) => write!(f, "it cannot be written: {error}"),
            Self::Missing(marker) => write!(f, "it has no line {marker:?} where one is needed"),
        }
    }
}
