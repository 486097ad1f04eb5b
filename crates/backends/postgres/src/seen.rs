//! What reads from replicas must show at least: this store's own writes, and what it observed of others'.

use std::{
    fmt,
    hash::BuildHasher as _,
    str::FromStr,
    sync::atomic::{AtomicU64, Ordering::SeqCst},
};

use commonhold_core::{Error, ErrorKind, Key, Result};
use foldhash::fast::RandomState;
use tokio_postgres::types::PgLsn;

/// Keys whose hashes fall together are taken for one: a read too many goes to the primary then.
const BUCKETS: usize = 4096;

/// How far somebody has seen a store's writes: a position in the primary's write-ahead log. As text, `16/B374D848`.
///
/// An instance that hands its [`token`](crate::PostgresBackend::token) on, with its reply to a user perhaps, and another
/// that [observes](crate::PostgresBackend::observe) it, together let that user read what they wrote.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ReadToken(pub(crate) u64);

impl fmt::Display for ReadToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", PgLsn::from(self.0))
    }
}

impl FromStr for ReadToken {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let position: PgLsn = text.parse().map_err(|_| {
            Error::new(ErrorKind::InvalidInput, "a read token is a position in the log, as in 16/B374D848")
        })?;
        Ok(Self(position.into()))
    }
}

/// Numbers this store's writes when they are done. Whoever asks for the primary's position afterwards gets one that
/// covers them.
#[derive(Debug)]
pub(crate) struct Seen {
    writes: AtomicU64,
    /// The number of the last write to the keys of each bucket; no buckets where nobody wants to know.
    keys: Vec<AtomicU64>,
    /// The number of the last write to who knows which keys.
    any: AtomicU64,
    hasher: RandomState,
    observed: AtomicU64,
}

impl Seen {
    pub(crate) fn new(own_writes: bool) -> Self {
        let buckets = if own_writes { BUCKETS } else { 0 };
        Self {
            writes: AtomicU64::new(0),
            keys: (0..buckets).map(|_| AtomicU64::new(0)).collect(),
            any: AtomicU64::new(0),
            hasher: RandomState::default(),
            observed: AtomicU64::new(0),
        }
    }

    /// Says that a write to this key is done, or may be.
    pub(crate) fn wrote(&self, key: &Key) {
        if let Some(bucket) = self.bucket(key) {
            bucket.fetch_max(self.writes.fetch_add(1, SeqCst) + 1, SeqCst);
        }
    }

    /// Says that writes to any keys are done, or may be.
    pub(crate) fn wrote_anything(&self) {
        if !self.keys.is_empty() {
            self.any.fetch_max(self.writes.fetch_add(1, SeqCst) + 1, SeqCst);
        }
    }

    /// The number of the last write so far.
    pub(crate) fn writes(&self) -> u64 {
        self.writes.load(SeqCst)
    }

    /// The number of the last write that reads of these keys must show.
    pub(crate) fn of<'a>(&self, keys: impl IntoIterator<Item = &'a Key>) -> u64 {
        let buckets = keys.into_iter().filter_map(|key| self.bucket(key));
        let last = buckets.map(|bucket| bucket.load(SeqCst)).max().unwrap_or(0);
        last.max(self.any.load(SeqCst))
    }

    fn bucket(&self, key: &Key) -> Option<&AtomicU64> {
        if self.keys.is_empty() {
            return None;
        }
        self.keys.get(self.hasher.hash_one(key.as_bytes()) as usize % BUCKETS)
    }

    /// The position that reads must show because it was observed.
    pub(crate) fn observed(&self) -> u64 {
        self.observed.load(SeqCst)
    }

    pub(crate) fn observe(&self, token: ReadToken) {
        self.observed.fetch_max(token.0, SeqCst);
    }

    /// Says that this position, though `observed` before the primary was asked for its own, is beyond that: it is
    /// of a primary that is no more, and there is nothing more to show.
    pub(crate) fn forget_beyond(&self, position: u64, observed: u64) {
        if observed > position {
            // Where another was observed meanwhile, the next look sees to it.
            let _changed = self.observed.compare_exchange(observed, position, SeqCst, SeqCst);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_travels_as_text() {
        let token: ReadToken = "16/B374D848".parse().unwrap();
        assert_eq!(token.to_string(), "16/B374D848");
        assert!(token > "16/0".parse().unwrap());
        assert_eq!("16".parse::<ReadToken>().unwrap_err().kind(), ErrorKind::InvalidInput);
    }

    #[test]
    fn a_read_of_a_key_must_show_its_last_write_and_all_that_may_have_been_to_it() {
        let seen = Seen::new(true);
        let [a, b] = ["a", "b"].map(|name| Key::new(name).unwrap());
        assert_eq!(seen.of([&a]), 0);
        seen.wrote(&a);
        seen.wrote(&b);
        assert_eq!((seen.of([&a]), seen.of([&b]), seen.of([&a, &b]), seen.writes()), (1, 2, 2, 2));
        seen.wrote_anything();
        assert_eq!((seen.of([&a]), seen.of([])), (3, 3));
        let careless = Seen::new(false);
        careless.wrote(&a);
        careless.wrote_anything();
        assert_eq!((careless.of([&a]), careless.writes()), (0, 0));
    }

    #[test]
    fn a_position_beyond_the_primarys_own_is_forgotten_and_one_observed_meanwhile_is_not() {
        let seen = Seen::new(true);
        seen.observe(ReadToken(10));
        seen.observe(ReadToken(7));
        assert_eq!(seen.observed(), 10);
        seen.forget_beyond(20, 10);
        assert_eq!(seen.observed(), 10);
        seen.forget_beyond(5, 10);
        assert_eq!(seen.observed(), 5);
        seen.observe(ReadToken(12));
        seen.forget_beyond(5, 5);
        seen.forget_beyond(6, 11);
        assert_eq!(seen.observed(), 12);
    }
}
