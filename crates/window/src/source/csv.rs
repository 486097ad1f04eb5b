//! Rows of comma-separated values, RFC 4180.

use commonhold_core::Result;
use csv_core::{ReadRecordResult, Reader};

use super::{error::excerpt, extract::Row, tape::Tape};

/// The current row of a CSV file, and where in it the needed fields stand.
pub(super) struct CsvRows {
    parser: Box<Reader>,
    /// The row's fields one after the other, without quotes, and where each ends.
    text: Vec<u8>,
    ends: Vec<usize>,
    count: usize,
    /// Whether the input ended within quotes.
    unclosed: bool,
    /// For each needed field its column, from 0.
    columns: Vec<usize>,
    /// The number of columns of the header.
    width: usize,
}

impl CsvRows {
    /// Reads the header, and finds the needed fields in it. Also returns the header as it stands in the file.
    ///
    /// # Errors
    /// `InvalidInput` if there is none, or if a field is not in it exactly once.
    pub(super) fn open(tape: &mut Tape, fields: &[String]) -> Result<(Self, Vec<u8>)> {
        let mut rows = Self {
            parser: Box::new(Reader::new()),
            text: vec![0; 1024],
            ends: vec![0; 32],
            count: 0,
            unclosed: false,
            columns: Vec::new(),
            width: 0,
        };
        let Some(length) = rows.next(tape)? else {
            return Err(tape.error("the file is empty where a CSV header belongs"));
        };
        rows.width = rows.count;
        let names: Vec<&[u8]> = (0..rows.width).filter_map(|column| rows.column(column)).collect();
        let mut columns = Vec::with_capacity(fields.len());
        for field in fields {
            let mut found = names.iter().enumerate().filter(|(_, name)| **name == field.as_bytes());
            match (found.next(), found.next()) {
                (Some((column, _)), None) => columns.push(column),
                (None, _) => {
                    return Err(
                        tape.error(format!("there is no column \"{field}\"; there are {}", list(&names)))
                    );
                }
                (Some(_), Some(_)) => {
                    return Err(
                        tape.error(format!("there are two columns \"{field}\"; there are {}", list(&names)))
                    );
                }
            }
        }
        rows.columns = columns;
        let header = raw(tape, length).to_vec();
        tape.consume(length);
        Ok((rows, header))
    }

    /// Reads the next row, but does not consume it. Returns its length with its line's end; `None` at the end.
    pub(super) fn next(&mut self, tape: &mut Tape) -> Result<Option<usize>> {
        if !skip_blank_lines(tape)? {
            return Ok(None);
        }
        let (mut length, mut text, mut ends) = (0, 0, 0);
        // Ends the last row of an input, except within quotes. Nothing at all ends it there, too.
        let mut last: &[u8] = b"\n";
        loop {
            let at_end = length == tape.available().len() && !tape.fill()?;
            self.unclosed = at_end && last.is_empty();
            let input = if at_end { last } else { tape.available().get(length..).unwrap_or_default() };
            let (result, consumed, written, ended) = self.parser.read_record(
                input,
                self.text.get_mut(text..).unwrap_or_default(),
                self.ends.get_mut(ends..).unwrap_or_default(),
            );
            (text, ends) = (text + written, ends + ended);
            if at_end {
                last = last.get(consumed..).unwrap_or_default();
            } else {
                length += consumed;
            }
            match result {
                ReadRecordResult::InputEmpty => {}
                ReadRecordResult::OutputFull => self.text.resize(2 * self.text.len(), 0),
                ReadRecordResult::OutputEndsFull => self.ends.resize(2 * self.ends.len(), 0),
                ReadRecordResult::Record => break,
                ReadRecordResult::End => return Ok(None),
            }
        }
        self.count = ends;
        Ok(Some(length))
    }

    /// What is wrong with the shape of the current row.
    pub(super) fn check(&self) -> Result<(), String> {
        if self.unclosed {
            return Err("a quote is opened in this row and never closed".to_owned());
        }
        if self.count == self.width {
            return Ok(());
        }
        Err(format!("the row has {} where the header has {}", fields(self.count), fields(self.width)))
    }

    /// The number of the column, from 1, in which a needed field stands.
    pub(super) fn column_number(&self, field: usize) -> Option<usize> {
        self.columns.get(field).map(|column| column + 1)
    }

    fn column(&self, column: usize) -> Option<&[u8]> {
        let start = column.checked_sub(1).and_then(|before| self.ends.get(before)).copied().unwrap_or(0);
        self.text.get(start..*self.ends.get(column)?)
    }
}

impl Row for CsvRows {
    fn field(&self, field: usize) -> Result<&[u8], &'static str> {
        self.columns.get(field).and_then(|column| self.column(*column)).ok_or("is missing")
    }
}

/// A row as it stands in the input, without its line's end.
pub(super) fn raw(tape: &Tape, length: usize) -> &[u8] {
    let mut raw = tape.available().get(..length).unwrap_or_default();
    while let [rest @ .., b'\n' | b'\r'] = raw {
        raw = rest;
    }
    raw
}

/// Goes to the next byte that begins a row. Says whether there is one.
pub(super) fn skip_blank_lines(tape: &mut Tape) -> Result<bool> {
    loop {
        let blank = tape.available().iter().take_while(|byte| matches!(byte, b'\n' | b'\r')).count();
        tape.consume(blank);
        if !tape.available().is_empty() {
            return Ok(true);
        }
        if !tape.fill()? {
            return Ok(false);
        }
    }
}

fn fields(count: usize) -> String {
    if count == 1 { "1 field".to_owned() } else { format!("{count} fields") }
}

fn list(names: &[&[u8]]) -> String {
    const SHOWN: usize = 50;
    let mut shown: Vec<String> =
        names.iter().take(SHOWN).map(|name| format!("\"{}\"", excerpt(name))).collect();
    if names.len() > SHOWN {
        shown.push(format!("and {} more", names.len() - SHOWN));
    }
    shown.join(", ")
}
