//! Figures about a store and its use.

use std::time::Duration;

/// Figures about a store and its use since it was opened.
///
/// The backend gives sizes; the [`Metrics`](crate::layers::Metrics) layer, which every
/// [`Store`](crate::Store) has, gives the calls and their latency; the [`Retry`](crate::layers::Retry)
/// layer gives the retries.
#[derive(Debug, Clone, Default, PartialEq)]
#[non_exhaustive]
pub struct Stats {
    /// Keys that were read one by one or in batches.
    pub gets: u64,
    /// Values that were put one by one or in batches.
    pub puts: u64,
    /// Keys that were deleted one by one or in batches.
    pub deletes: u64,
    /// Transitions: increments, takes, changes of the time to live.
    pub transitions: u64,
    /// Scans, counts and clears.
    pub scans: u64,
    /// All calls of any kind; a batch is one.
    pub calls: u64,
    /// Keys read that were there.
    pub hits: u64,
    /// Keys read that were not there.
    pub misses: u64,
    /// Calls that failed.
    pub errors: u64,
    /// Calls that were made again after a failure.
    pub retries: u64,
    /// Bytes of the values read.
    pub bytes_read: u64,
    /// Bytes of the values written.
    pub bytes_written: u64,
    /// How long the calls took; a scan, until its first entry.
    pub latency: Latency,
    /// Bytes of memory in use, where the store knows.
    pub memory_bytes: Option<u64>,
    /// How many it may use, where the store knows.
    pub memory_limit_bytes: Option<u64>,
    /// Bytes on disk, where the store knows.
    pub disk_bytes: Option<u64>,
    /// Further figures of the backend: name and value.
    pub details: Vec<(&'static str, u64)>,
}

impl Stats {
    /// The share of keys read that were there, 0 to 1; `None` before the first read.
    pub fn hit_rate(&self) -> Option<f64> {
        let reads = self.hits + self.misses;
        (reads > 0).then(|| self.hits as f64 / reads as f64)
    }
}

/// A summary of latencies, exact to 1 part in 32. Of the calls that are answered at once some stand for all.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Latency {
    /// How many calls they stand for.
    pub count: u64,
    /// Their mean.
    pub mean: Duration,
    /// Half of them took at most this long.
    pub p50: Duration,
    /// 99 of 100 took at most this long.
    pub p99: Duration,
    /// The longest.
    pub max: Duration,
}
