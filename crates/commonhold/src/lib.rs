//! Commonhold holds the state that the instances of an application have in common: one interface over memory,
//! embedded disk, Redis, PostgreSQL and Memcached, and what is built on it.
//!
//! # What it is
//! - [`Store`]: a typed handle over any backend. [`open`] makes one from a URL.
//! - Backends with the same exact semantics, held to them by one conformance kit: [`MemoryBackend`], and with the
//!   features of their names `disk` (on by default), `redis`, `postgres`, `memcached` and `sled`.
//! - [`layers`]: retry, timeout, concurrency limit, metrics, traces, namespaces around any backend.
//! - [`copy`]: the entries of one store into another, to move between any two.
//! - With the feature `coordination`: [`coordination`], locks, elections, counters, rate limiters, circuit breakers.
//! - With the feature `window`: [`window`], keyed windows over a stream of events, exactly once.
//!
//! # What it is not
//! Not a database, a consensus protocol or a message broker. One process owns a disk store at a time.
//!
//! # Example
//! ```
//! # tokio::runtime::Runtime::new().unwrap().block_on(async {
//! # let directory = tempfile::tempdir().unwrap();
//! # let url = format!("disk:{}", directory.path().join("state").display());
//! use std::time::Duration;
//!
//! let store = commonhold::open(&url).await?; // "disk:./commonhold-data", "memory:"
//! store.put_with_ttl("session:1", "alice", Duration::from_secs(1800)).await?;
//! assert!(!store.set_if_not_exists("session:1", "bob").await?);
//! assert_eq!(store.increment("visits", 1).await?, 1);
//!
//! store.transaction(|tx| async move {
//!     let visits: i64 = tx.get_as("visits", commonhold::Text).await?.unwrap_or(0);
//!     tx.put("last", visits.to_string()).await
//! }).await?;
//! # Ok::<(), commonhold::Error>(())
//! # }).unwrap();
//! ```

pub mod copy;
mod open;

pub use commonhold_core::*;

pub use self::open::{Scheme, open, schemes};

/// Locks, elections, counters, rate limiters and circuit breakers.
#[cfg(feature = "coordination")]
pub use commonhold_coordination as coordination;
/// The embedded backend on disk.
#[cfg(feature = "disk")]
pub use commonhold_disk as disk;
/// Memcached, one server or several.
#[cfg(feature = "memcached")]
pub use commonhold_memcached as memcached;
/// PostgreSQL.
#[cfg(feature = "postgres")]
pub use commonhold_postgres as postgres;
/// Redis: standalone, Sentinel, Cluster.
#[cfg(feature = "redis")]
pub use commonhold_redis as redis;
/// Existing sled databases, to move off them.
#[cfg(feature = "sled")]
pub use commonhold_sled as sled;
/// Keyed windows over a stream of events.
#[cfg(feature = "window")]
pub use commonhold_window as window;
