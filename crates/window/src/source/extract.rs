//! From the fields of a row to an event.

use commonhold_core::Timestamp;

use super::{Chunk, Event};
use crate::{
    aggregate::{Plan, Values, hash},
    number::Number,
    spec::JobSpec,
    time::{TimeUnit, parse_epoch, parse_time},
};

/// The longest key of an event, in bytes; with several key fields, all of them together.
pub const MAX_KEY_BYTES: usize = 512;

/// Which fields are needed, and what for. Scratch memory is kept from row to row.
pub(super) struct Extractor {
    fields: Vec<String>,
    unit: Option<TimeUnit>,
    time: usize,
    keys: Vec<usize>,
    numbers: Vec<usize>,
    texts: Vec<usize>,
    key: Vec<u8>,
    parsed: Vec<Number>,
    hashes: Vec<u64>,
}

/// What is wrong with a row: in which of the needed fields, and what.
pub(super) struct Problem {
    pub(super) field: usize,
    pub(super) reason: &'static str,
}

/// The fields of a row.
pub(super) trait Row {
    /// The text of one of the needed fields, or why there is none.
    fn field(&self, field: usize) -> Result<&[u8], &'static str>;
}

impl Extractor {
    pub(super) fn new(spec: &JobSpec, plan: &Plan) -> Self {
        let mut fields = Vec::new();
        let mut place = |name: &String| {
            fields.iter().position(|known| known == name).unwrap_or_else(|| {
                fields.push(name.clone());
                fields.len() - 1
            })
        };
        let time = place(&spec.time);
        let keys = spec.keys.iter().map(&mut place).collect();
        let numbers = plan.numbers().iter().map(&mut place).collect();
        let texts = plan.texts().iter().map(&mut place).collect();
        Self {
            fields,
            unit: spec.time_unit,
            time,
            keys,
            numbers,
            texts,
            key: Vec::new(),
            parsed: Vec::new(),
            hashes: Vec::new(),
        }
    }

    /// The names of the needed fields.
    pub(super) fn fields(&self) -> &[String] {
        &self.fields
    }

    /// Appends the event in this row to the chunk.
    pub(super) fn extract(&mut self, row: &impl Row, raw: &[u8], chunk: &mut Chunk) -> Result<(), Problem> {
        let time = self.time_of(row)?;
        self.read_key(row)?;
        self.parsed.clear();
        for &field in &self.numbers {
            let number =
                row.field(field).and_then(Number::parse).map_err(|reason| Problem { field, reason })?;
            self.parsed.push(number);
        }
        self.hashes.clear();
        for &field in &self.texts {
            let text = row.field(field).map_err(|reason| Problem { field, reason })?;
            self.hashes.push(hash(text));
        }
        let values = Values { numbers: &self.parsed, hashes: &self.hashes };
        chunk.push(Event { time, key: &self.key, values, row: raw });
        Ok(())
    }

    fn time_of(&self, row: &impl Row) -> Result<Timestamp, Problem> {
        row.field(self.time)
            .and_then(|text| match self.unit {
                Some(unit) => parse_epoch(text, unit),
                None => parse_time(text),
            })
            .map_err(|reason| Problem { field: self.time, reason })
    }

    /// One field is the key as it stands; several are a row of CSV, so that different fields never make one key.
    fn read_key(&mut self, row: &impl Row) -> Result<(), Problem> {
        self.key.clear();
        for (n, &field) in self.keys.iter().enumerate() {
            let problem = |reason| Problem { field, reason };
            let text = row.field(field).map_err(problem)?;
            if std::str::from_utf8(text).is_err() {
                return Err(problem("is not UTF-8, which keys must be"));
            }
            if n > 0 {
                self.key.push(b',');
            }
            let quoted = self.keys.len() > 1 && text.iter().any(|b| matches!(b, b'"' | b',' | b'\r' | b'\n'));
            if quoted {
                push_quoted(&mut self.key, text);
            } else {
                self.key.extend_from_slice(text);
            }
            if self.key.len() > MAX_KEY_BYTES {
                return Err(problem("makes the key longer than 512 bytes"));
            }
        }
        Ok(())
    }
}

fn push_quoted(out: &mut Vec<u8>, text: &[u8]) {
    out.push(b'"');
    for &byte in text {
        if byte == b'"' {
            out.push(b'"');
        }
        out.push(byte);
    }
    out.push(b'"');
}
