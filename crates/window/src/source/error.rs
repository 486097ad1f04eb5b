//! A row that is no event: where it stands, and what is wrong with it.

use std::fmt;

use commonhold_core::{Error, ErrorKind};

/// A row that is no event.
///
/// `Display` is one line: `trace.csv:17: column 2 "ContextTokens": "abc" is not a number`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RowError {
    /// The input's name.
    pub input: String,
    /// The line that the row begins on, from 1.
    pub line: u64,
    /// The column, where one is to blame.
    pub column: Option<Column>,
    /// What stands there, escaped and cut.
    pub value: Option<String>,
    /// What is wrong, to follow the value: `is not a number`.
    pub reason: String,
}

/// A column of a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Column {
    /// Its number from 1, where columns are numbered.
    pub number: Option<usize>,
    /// Its name.
    pub name: String,
}

impl fmt::Display for RowError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: ", self.input, self.line)?;
        match &self.column {
            Some(Column { number: Some(number), name }) => write!(f, "column {number} \"{name}\": ")?,
            Some(Column { number: None, name }) => write!(f, "field \"{name}\": ")?,
            None => {}
        }
        if let Some(value) = &self.value {
            write!(f, "\"{value}\" ")?;
        }
        f.write_str(&self.reason)
    }
}

impl std::error::Error for RowError {}

impl From<RowError> for Error {
    fn from(error: RowError) -> Self {
        Self::new(ErrorKind::InvalidInput, error.to_string()).with_source(error)
    }
}

/// Text of a row on one line: at most 80 characters of it, without what a terminal would obey.
pub(super) fn excerpt(bytes: &[u8]) -> String {
    const MAX_CHARS: usize = 80;
    // Bytes beyond what 80 characters can take would only be thrown away.
    let text = String::from_utf8_lossy(bytes.get(..4 * MAX_CHARS).unwrap_or(bytes)).into_owned();
    let mut excerpt: String = text.chars().take(MAX_CHARS).flat_map(char::escape_debug).collect();
    if text.chars().count() > MAX_CHARS || bytes.len() > 4 * MAX_CHARS {
        excerpt.push_str("..");
    }
    excerpt
}
