//! Histories of concurrent operations on a few keys, with outcomes unknown where replies were lost, and whether
//! one copy of the data, asked by one client after the other, could have answered so.
//!
//! ```
//! use commonhold_core::{MemoryBackend, Store};
//! use commonhold_testkit::history::{Load, record};
//!
//! # tokio::runtime::Runtime::new().unwrap().block_on(async {
//! let store = Store::new(MemoryBackend::new());
//! let load = Load { operations: 200, ..Load::default() };
//! let history = record(&[store], &load, async |progress| {
//!     progress.reaches(100).await;
//!     // .. kill the server, start it again ..
//! })
//! .await;
//! history.assert_linearizable();
//! # });
//! ```

mod linearizability;
mod record;

use std::{fmt, time::Duration};

use commonhold_core::{Error, ErrorKind};

pub use self::record::{Load, Progress, record};

/// What is done to a key, whose value is an integer or nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Operation {
    /// Reads the value.
    Get,
    /// Puts a value, whatever there was.
    Put(i64),
    /// Deletes the value.
    Delete,
    /// Puts `new` if the value is `expected`.
    CompareAndSwap {
        /// The value that must be there; `None`: there must be none.
        expected: Option<i64>,
        /// The value that is put.
        new: i64,
    },
    /// Adds to the value, nothing counting as 0.
    Increment(i64),
}

/// What is known of the outcome of an operation. One that certainly was not carried out is in no history.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// A get read this.
    Read(Option<i64>),
    /// A put was carried out.
    Done,
    /// Whether a compare-and-swap did, or a delete found something.
    Was(bool),
    /// The sum after an increment.
    Sum(i64),
    /// It may have been carried out at any time after it began, also much later, or not at all.
    Unknown,
}

/// An operation and its outcome. Times are numbers of one clock that counts beginnings and ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Event {
    /// The key's number.
    pub key: usize,
    /// What was asked.
    pub operation: Operation,
    /// What was answered.
    pub outcome: Outcome,
    /// When it began.
    pub begun: u64,
    /// When it ended, or if its outcome is unknown, when that became known.
    pub ended: u64,
}

/// What a number of clients did at once.
#[derive(Debug, Clone, Default)]
pub struct History {
    /// In no particular order.
    pub events: Vec<Event>,
    /// The failures, in the order in which they came. Those that say that nothing was done have no event.
    pub errors: Vec<Error>,
    /// The longest time in which no operation succeeded: how long it took until the store worked again.
    pub longest_outage: Duration,
}

impl History {
    /// How many outcomes are unknown.
    pub fn unknown(&self) -> usize {
        self.events.iter().filter(|event| event.outcome == Outcome::Unknown).count()
    }

    /// The kinds of the failures and how often each came, in the order of their first one.
    pub fn error_kinds(&self) -> Vec<(ErrorKind, usize)> {
        let mut kinds: Vec<(ErrorKind, usize)> = Vec::new();
        for error in &self.errors {
            match kinds.iter_mut().find(|(kind, _)| *kind == error.kind()) {
                Some((_, count)) => *count += 1,
                None => kinds.push((error.kind(), 1)),
            }
        }
        kinds
    }

    /// Looks for an order of the operations on each key that explains all outcomes: each takes effect at once, at
    /// some moment between its beginning and its end. That holds for the whole if it does for each key.
    ///
    /// The search is that of Wing and Gong ("Testing and Verifying Concurrent Objects", 1993) with the memory of
    /// Lowe ("Testing for Linearizability", 2017). It takes a second for some thousand operations a key; that
    /// grows with the number of clients and of unknown outcomes on one key.
    ///
    /// # Errors
    /// The first key for which there is none, and where the search got stuck.
    pub fn check(&self) -> Result<(), Violation> {
        let keys = self.events.iter().map(|event| event.key + 1).max().unwrap_or(0);
        (0..keys).try_for_each(|key| {
            let events = self.events.iter().filter(|event| event.key == key).copied().collect();
            linearizability::check(key, events)
        })
    }

    /// [`check`](Self::check), and that something was checked.
    ///
    /// # Panics
    /// If there is no such order, or no operation whose outcome is known.
    pub fn assert_linearizable(&self) {
        assert!(self.events.len() > self.unknown(), "no operation succeeded: {:?}", self.errors.first());
        if let Err(violation) = self.check() {
            panic!("{violation}");
        }
    }
}

/// A key whose history no order explains.
#[derive(Debug, Clone)]
pub struct Violation {
    /// The key's number.
    pub key: usize,
    /// How many operations the best attempt could put in order, of how many whose outcome is known.
    pub explained: (usize, usize),
    /// The value behind those.
    pub value: Option<i64>,
    /// The operations of which one had to be the next and none could be.
    pub stuck: Vec<Event>,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { key, explained: (explained, all), value, stuck } = self;
        write!(f, "key {key}: no order of the operations explains their outcomes. ")?;
        writeln!(
            f,
            "{explained} of {all} can be put in order; then the value is {value:?}, and next is one of"
        )?;
        for Event { operation, outcome, begun, ended, .. } in stuck {
            writeln!(f, "  {begun}..{ended}: {operation:?} -> {outcome:?}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Violation {}
