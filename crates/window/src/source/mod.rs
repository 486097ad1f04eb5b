//! Where events come from: sources, and the chunks in which they hand events over.

mod csv;
mod error;
mod extract;
mod files;
mod input;
mod json;
mod tape;

use commonhold_core::{Result, Timestamp};

pub use self::{
    error::{Column, RowError},
    extract::MAX_KEY_BYTES,
    files::FileSource,
    input::Input,
    tape::MAX_ROW_BYTES,
};
use crate::{aggregate::Values, number::Number};

/// A stream of events in an order that is always the same, with positions that can be found again.
///
/// It is used on a thread of its own, where it may block.
pub trait Source: Send + 'static {
    /// Goes to a position that an earlier source over the same input gave. Called before anything is read.
    ///
    /// # Errors
    /// If what lies before the position is not there any more, or not what was read then.
    fn resume(&mut self, position: &serde_json::Value) -> Result<()>;

    /// Appends the next event to the chunk.
    ///
    /// # Errors
    /// What keeps it from going on. A row that is no event is not an error but [`Next::Bad`].
    fn next(&mut self, chunk: &mut Chunk) -> Result<Next>;

    /// Goes past the row that [`Next::Bad`] was about.
    fn skip(&mut self);

    /// The position behind the last event, or before a row that was bad and has not been skipped.
    fn position(&mut self) -> serde_json::Value;

    /// How many bytes lie before the position.
    fn bytes(&self) -> u64;

    /// What a file must begin with so that rows can be read from it again: a header, without a line's end.
    fn header(&self) -> Option<&[u8]>;
}

/// What a source came to.
#[derive(Debug)]
pub enum Next {
    /// An event, which is in the chunk.
    Event,
    /// A row that is no event. The source stays in front of it until [`Source::skip`].
    Bad(RowError),
    /// The end of the input.
    End,
}

/// An event, as a source hands it over.
#[derive(Debug, Clone, Copy)]
pub struct Event<'a> {
    /// When it happened.
    pub time: Timestamp,
    /// What keeps its windows apart from others: UTF-8, at most [`MAX_KEY_BYTES`].
    pub key: &'a [u8],
    /// What it contributes.
    pub values: Values<'a>,
    /// The row that it came from, without a line's end.
    pub row: &'a [u8],
}

/// Events, one after the other in memory that is used again.
#[derive(Debug, Default)]
pub struct Chunk {
    times: Vec<Timestamp>,
    keys: Arena,
    rows: Arena,
    keeps_rows: bool,
    numbers: Vec<Number>,
    hashes: Vec<u64>,
}

/// Byte strings in one allocation.
#[derive(Debug, Default)]
struct Arena {
    bytes: Vec<u8>,
    ends: Vec<usize>,
}

impl Arena {
    fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
        self.ends.push(self.bytes.len());
    }

    fn get(&self, index: usize) -> &[u8] {
        let start = index.checked_sub(1).and_then(|before| self.ends.get(before)).copied().unwrap_or(0);
        self.ends.get(index).and_then(|end| self.bytes.get(start..*end)).unwrap_or_default()
    }

    fn clear(&mut self) {
        self.bytes.clear();
        self.ends.clear();
    }
}

impl Chunk {
    /// An empty chunk, which keeps rows only if it is told to.
    pub fn new(keeps_rows: bool) -> Self {
        Self { keeps_rows, ..Self::default() }
    }

    /// Appends an event. Every event of a chunk has the same number of values.
    pub fn push(&mut self, event: Event<'_>) {
        self.times.push(event.time);
        self.keys.push(event.key);
        if self.keeps_rows {
            self.rows.push(event.row);
        }
        self.numbers.extend_from_slice(event.values.numbers);
        self.hashes.extend_from_slice(event.values.hashes);
    }

    /// How many events there are.
    pub fn len(&self) -> usize {
        self.times.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.times.is_empty()
    }

    /// The events in their order.
    pub fn events(&self) -> impl Iterator<Item = Event<'_>> {
        let (numbers, hashes) = match self.len() {
            0 => (0, 0),
            events => (self.numbers.len() / events, self.hashes.len() / events),
        };
        self.times.iter().enumerate().map(move |(n, time)| Event {
            time: *time,
            key: self.keys.get(n),
            values: Values {
                numbers: self.numbers.get(n * numbers..(n + 1) * numbers).unwrap_or_default(),
                hashes: self.hashes.get(n * hashes..(n + 1) * hashes).unwrap_or_default(),
            },
            row: self.rows.get(n),
        })
    }

    /// Bytes that keys and rows take, which are not bounded by the number of events.
    pub(crate) fn text_bytes(&self) -> usize {
        self.keys.bytes.len() + self.rows.bytes.len()
    }

    pub(crate) fn clear(&mut self) {
        self.times.clear();
        self.keys.clear();
        self.rows.clear();
        self.numbers.clear();
        self.hashes.clear();
    }
}
