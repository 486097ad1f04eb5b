//! Events from files, standard input and other readers, one after the other.

use commonhold_core::{Error, ErrorKind, Result};
use serde::{Deserialize, Serialize};

use super::{
    Chunk, Input, Next, Source,
    csv::{CsvRows, raw},
    error::{Column, RowError, excerpt},
    extract::{Extractor, Problem, Row},
    json::JsonRows,
    tape::Tape,
};
use crate::spec::{Format, JobSpec};

const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// Events from inputs that are read one after the other, each CSV file with a header of its own.
///
/// Its position says how much of each input was read and what that was (its xxh3 hash), so resuming reads
/// everything before it once more and needs no seeking; an input that is not the same there is an error.
pub struct FileSource {
    inputs: std::vec::IntoIter<Input>,
    format: Format,
    extractor: Extractor,
    current: Option<Open>,
    /// The inputs before the current one.
    done: Vec<Mark>,
    header: Option<Vec<u8>>,
    same_headers: bool,
    /// The length of the bad row in front of which the source stands.
    bad: usize,
}

struct Open {
    tape: Tape,
    rows: Rows,
}

enum Rows {
    Csv(CsvRows),
    Json(JsonRows),
}

/// How much of an input was read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Mark {
    input: String,
    bytes: u64,
    lines: u64,
    /// The hash of these bytes in hexadecimal.
    xxh3: String,
    /// Whether they end with a line's end, so that more can follow.
    ends_line: bool,
}

impl FileSource {
    /// The most inputs of one job.
    pub const MAX_INPUTS: usize = 1_000;

    /// Reads these inputs as the spec says. With `same_headers`, CSV files must have the same header, so that rows
    /// of all of them fit under one.
    ///
    /// # Errors
    /// `InvalidConfig` for a spec that fails its [check](JobSpec::check), or no inputs, or more than
    /// [`MAX_INPUTS`](Self::MAX_INPUTS).
    pub fn new(spec: &JobSpec, inputs: Vec<Input>, same_headers: bool) -> Result<Self> {
        spec.check()?;
        if inputs.is_empty() || inputs.len() > Self::MAX_INPUTS {
            let problem = format!("a job reads 1 to {} inputs, not {}", Self::MAX_INPUTS, inputs.len());
            return Err(Error::new(ErrorKind::InvalidConfig, problem));
        }
        Ok(Self {
            inputs: inputs.into_iter(),
            format: spec.format,
            extractor: Extractor::new(spec, &spec.plan()),
            current: None,
            done: Vec::new(),
            header: None,
            same_headers,
            bad: 0,
        })
    }

    /// Opens the next input, up to its first row. `None` if there is no other.
    fn open_next(&mut self) -> Result<Option<&mut Open>> {
        let Some(input) = self.inputs.next() else { return Ok(None) };
        let mut tape = Tape::new(input.name(), input.open()?);
        while tape.available().len() < BYTE_ORDER_MARK.len() && tape.fill()? {}
        if tape.available().starts_with(BYTE_ORDER_MARK) {
            tape.consume(BYTE_ORDER_MARK.len());
        }
        let rows = match self.format {
            Format::Csv => {
                let (rows, header) = CsvRows::open(&mut tape, self.extractor.fields())?;
                if self.same_headers && self.header.as_ref().is_some_and(|first| *first != header) {
                    return Err(tape.error(
                        "the header is not that of the first file, so late events of both do not fit into one file",
                    ));
                }
                self.header.get_or_insert(header);
                Rows::Csv(rows)
            }
            Format::Jsonl => Rows::Json(JsonRows::new(self.extractor.fields())),
        };
        Ok(Some(self.current.insert(Open { tape, rows })))
    }

    /// Reads an input again up to where it was read, and checks that it is still the same.
    fn find(&mut self, mark: &Mark, is_last: bool) -> Result<()> {
        let Some(open) = self.open_next()? else {
            return Err(changed(format!(
                "{} was read by an earlier run and is not given to this one: name the same files in the same order",
                mark.input
            )));
        };
        let tape = &mut open.tape;
        let name = tape.name().to_owned();
        // The header alone may be longer than what was there; then it has changed, too.
        if tape.bytes() > mark.bytes || !tape.skip_to(mark.bytes)? {
            let bytes = tape.bytes();
            return Err(changed(format!(
                "{name} has become shorter: an earlier run read {} bytes (up to line {}), now there are {bytes}",
                mark.bytes, mark.lines
            )));
        }
        if format!("{:032x}", tape.digest()) != mark.xxh3 {
            return Err(changed(format!(
                "{name} has changed within its first {} bytes (up to line {}), which an earlier run has counted",
                mark.bytes,
                mark.lines + 1
            )));
        }
        let has_more = !tape.available().is_empty() || tape.fill()?;
        if has_more && !is_last {
            return Err(changed(format!(
                "{name} has grown since an earlier run read all its {} bytes and went on to the next file",
                mark.bytes
            )));
        }
        if has_more && !mark.ends_line && !matches!(tape.available().first(), Some(b'\n' | b'\r')) {
            return Err(changed(format!(
                "{name} has grown within line {}, which an earlier run counted as it was",
                mark.lines + 1
            )));
        }
        Ok(())
    }

    fn mark(tape: &mut Tape) -> Mark {
        Mark {
            input: tape.name().to_owned(),
            bytes: tape.bytes(),
            lines: tape.lines(),
            xxh3: format!("{:032x}", tape.digest()),
            ends_line: tape.ends_line(),
        }
    }

    /// Leaves the current input for the next one, if there is one.
    fn advance(&mut self) -> Result<bool> {
        if self.inputs.len() == 0 {
            return Ok(false);
        }
        if let Some(mut open) = self.current.take() {
            self.done.push(Self::mark(&mut open.tape));
        }
        Ok(self.open_next()?.is_some())
    }
}

fn changed(problem: String) -> Error {
    let message =
        format!("{problem}. Give the input as it was, or begin anew with --restart or another --job");
    Error::new(ErrorKind::InvalidInput, message)
}

impl Source for FileSource {
    fn resume(&mut self, position: &serde_json::Value) -> Result<()> {
        let marks = Vec::<Mark>::deserialize(position).map_err(|error| {
            Error::new(ErrorKind::Corrupt, "the stored position is damaged").with_source(error)
        })?;
        for (n, mark) in marks.iter().enumerate() {
            let is_last = n + 1 == marks.len();
            self.find(mark, is_last)?;
            if !is_last && let Some(mut open) = self.current.take() {
                self.done.push(Self::mark(&mut open.tape));
            }
        }
        Ok(())
    }

    fn next(&mut self, chunk: &mut Chunk) -> Result<Next> {
        loop {
            let Some(open) = &mut self.current else {
                if self.advance()? {
                    continue;
                }
                return Ok(Next::End);
            };
            match open.next(&mut self.extractor, chunk)? {
                Step::Event => return Ok(Next::Event),
                Step::Bad(error, length) => {
                    self.bad = length;
                    return Ok(Next::Bad(error));
                }
                Step::End if self.advance()? => {}
                Step::End => return Ok(Next::End),
            }
        }
    }

    fn skip(&mut self) {
        if let Some(open) = &mut self.current {
            open.tape.consume(std::mem::take(&mut self.bad));
        }
    }

    fn position(&mut self) -> serde_json::Value {
        let current = self.current.as_mut().map(|open| Self::mark(&mut open.tape));
        let marks: Vec<Mark> = self.done.iter().cloned().chain(current).collect();
        // Text and numbers can always be written down.
        serde_json::to_value(marks).unwrap_or_default()
    }

    fn bytes(&self) -> u64 {
        let done: u64 = self.done.iter().map(|mark| mark.bytes).sum();
        done + self.current.as_ref().map_or(0, |open| open.tape.bytes())
    }

    fn header(&self) -> Option<&[u8]> {
        self.header.as_deref()
    }
}

enum Step {
    Event,
    Bad(RowError, usize),
    End,
}

impl Open {
    fn next(&mut self, extractor: &mut Extractor, chunk: &mut Chunk) -> Result<Step> {
        let (length, outcome) = match &mut self.rows {
            Rows::Csv(rows) => {
                let Some(length) = rows.next(&mut self.tape)? else { return Ok(Step::End) };
                let raw = raw(&self.tape, length);
                let outcome = match rows.check() {
                    Ok(()) => extractor.extract(rows, raw, chunk).map_err(|problem| {
                        let number = rows.column_number(problem.field);
                        blame_field(&self.tape, extractor, rows, number, &problem)
                    }),
                    Err(problem) => Err(blame_row(&self.tape, None, problem)),
                };
                (length, outcome)
            }
            Rows::Json(rows) => {
                let Some(length) = rows.next(&mut self.tape)? else { return Ok(Step::End) };
                let raw = raw(&self.tape, length);
                let outcome = match rows.parse(raw) {
                    Ok(()) => extractor
                        .extract(rows, raw, chunk)
                        .map_err(|problem| blame_field(&self.tape, extractor, rows, None, &problem)),
                    Err(problem) => Err(blame_row(&self.tape, Some(raw), problem)),
                };
                (length, outcome)
            }
        };
        match outcome {
            Ok(()) => {
                self.tape.consume(length);
                Ok(Step::Event)
            }
            Err(error) => Ok(Step::Bad(error, length)),
        }
    }
}

fn blame_row(tape: &Tape, value: Option<&[u8]>, reason: String) -> RowError {
    let input = tape.name().to_owned();
    RowError { input, line: tape.lines() + 1, column: None, value: value.map(excerpt), reason }
}

fn blame_field(
    tape: &Tape,
    extractor: &Extractor,
    row: &impl Row,
    number: Option<usize>,
    problem: &Problem,
) -> RowError {
    let value = row.field(problem.field).ok().filter(|value| !value.is_empty());
    let name = extractor.fields().get(problem.field).cloned().unwrap_or_default();
    RowError { column: Some(Column { number, name }), ..blame_row(tape, value, problem.reason.to_owned()) }
}

impl std::fmt::Debug for FileSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FileSource").field("format", &self.format).finish_non_exhaustive()
    }
}
