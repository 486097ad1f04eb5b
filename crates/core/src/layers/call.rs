//! What a uniform layer knows of the call that it carries out, and of what came back.

use std::fmt;

use bytes::Bytes;
use futures_util::stream::BoxStream;

use crate::{
    backend::{Applied, Entry, Health, Transaction, Write},
    error::Retry,
    key::Key,
    stats::Stats,
};

/// An operation of a backend or a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "each is the method of that name")]
pub enum Operation {
    Get,
    Put,
    Delete,
    GetMany,
    WriteMany,
    Transact,
    Scan,
    Count,
    Clear,
    Watch,
    Publish,
    Subscribe,
    Begin,
    Commit,
    Rollback,
    Health,
    Stats,
    Maintain,
}

impl Operation {
    /// All of them, each at the index that is its number.
    pub(crate) const ALL: [Self; 18] = [
        Self::Get,
        Self::Put,
        Self::Delete,
        Self::GetMany,
        Self::WriteMany,
        Self::Transact,
        Self::Scan,
        Self::Count,
        Self::Clear,
        Self::Watch,
        Self::Publish,
        Self::Subscribe,
        Self::Begin,
        Self::Commit,
        Self::Rollback,
        Self::Health,
        Self::Stats,
        Self::Maintain,
    ];

    /// Its name, as in metrics and error texts.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Get => "get",
            Self::Put => "put",
            Self::Delete => "delete",
            Self::GetMany => "get_many",
            Self::WriteMany => "write_many",
            Self::Transact => "transact",
            Self::Scan => "scan",
            Self::Count => "count",
            Self::Clear => "clear",
            Self::Watch => "watch",
            Self::Publish => "publish",
            Self::Subscribe => "subscribe",
            Self::Begin => "begin",
            Self::Commit => "commit",
            Self::Rollback => "rollback",
            Self::Health => "health",
            Self::Stats => "stats",
            Self::Maintain => "maintain",
        }
    }

    /// Whether it changes nothing that anybody could see, so that repeating it is harmless.
    pub const fn is_read(self) -> bool {
        !matches!(
            self,
            Self::Put
                | Self::Delete
                | Self::WriteMany
                | Self::Transact
                | Self::Clear
                | Self::Publish
                | Self::Commit
        )
    }

    /// What is known of its effect when its answer does not come: a read has none, so it may be repeated.
    pub const fn lost(self) -> Retry {
        if self.is_read() { Retry::Safe } else { Retry::Ambiguous }
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A call on its way to the backend.
#[derive(Debug, Clone, Copy)]
pub struct Call<'a> {
    /// What is called.
    pub operation: Operation,
    /// The backend's name.
    pub backend: &'static str,
    /// The key, where there is just one.
    pub key: Option<&'a Key>,
    /// How many values it puts.
    pub puts: u64,
    /// How many keys it deletes.
    pub deletes: u64,
    /// The bytes of the values that it puts.
    pub bytes: u64,
}

impl<'a> Call<'a> {
    pub(super) fn key(mut self, key: &'a Key) -> Self {
        self.key = Some(key);
        self
    }

    pub(super) fn puts(mut self, puts: u64, bytes: usize) -> Self {
        self.puts += puts;
        self.bytes += bytes as u64;
        self
    }

    pub(super) fn deletes(mut self, deletes: u64) -> Self {
        self.deletes += deletes;
        self
    }

    pub(super) fn writes(self, batch: &[Write]) -> Self {
        batch.iter().fold(self, |call, write| match write {
            Write::Put { value, .. } => call.puts(1, value.len()),
            Write::Delete { .. } => call.deletes(1),
        })
    }
}

/// What a call returns, seen by a layer that does not care what it is.
pub trait Outcome: Send + 'static {
    /// Of the keys read: how many were there, how many were not, and the bytes of their values.
    fn read(&self) -> (u64, u64, u64) {
        (0, 0, 0)
    }
}

impl Outcome for Option<Entry> {
    fn read(&self) -> (u64, u64, u64) {
        match self {
            Some(entry) => (1, 0, entry.value.len() as u64),
            None => (0, 1, 0),
        }
    }
}

impl Outcome for Option<Bytes> {
    fn read(&self) -> (u64, u64, u64) {
        match self {
            Some(value) => (1, 0, value.len() as u64),
            None => (0, 1, 0),
        }
    }
}

impl<T: Send + 'static> Outcome for Vec<Option<T>>
where
    Option<T>: Outcome,
{
    fn read(&self) -> (u64, u64, u64) {
        self.iter()
            .map(Outcome::read)
            .fold((0, 0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1, sum.2 + one.2))
    }
}

impl Outcome for () {}
impl Outcome for u64 {}
impl Outcome for Bytes {}
impl Outcome for Applied {}
impl Outcome for Vec<Applied> {}
impl Outcome for Health {}
impl Outcome for Stats {}
impl Outcome for Box<dyn Transaction> {}
impl<T: 'static> Outcome for BoxStream<'static, crate::Result<T>> {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_operation_stands_at_its_number() {
        for (number, operation) in Operation::ALL.into_iter().enumerate() {
            assert_eq!(operation as usize, number);
        }
    }
}
