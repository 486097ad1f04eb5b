//! State in a directory of this machine, durable before it is acknowledged: the embedded default of Commonhold.
//!
//! # What it promises
//!
//! - **Durability** as configured ([`Durability`]). In `sync`, the default, a write is on the disk before it is
//!   answered and before anybody sees it; concurrent writers share one `fsync`.
//! - **Atomicity**. Writes go one after the other through a single writer, so batches, conditions, transitions
//!   and transactions are atomic, and nobody sees half of one, also not after a crash.
//! - **Scans** are ordered and see the state of the moment at which they begin, whatever is written meanwhile.
//! - **Expiry** to the millisecond. An expired entry is never seen; its space comes back when tables are
//!   compacted, or with [`Maintenance::Sweep`](commonhold_core::Maintenance::Sweep) and
//!   [`Compact`](commonhold_core::Maintenance::Compact).
//! - **Errors instead of surprises**. A second process, somebody else's directory, missing or damaged files, a
//!   full disk: each is an error that names the path, and nothing is lost or overwritten.
//! - **The async threads do not wait for the disk**: what does runs on blocking threads. Reads and unsynced
//!   writes that come from memory are carried out in place. That rests on prediction: the first read that finds
//!   its block not in memory, and a write or read that meets the engine at the moment in which it finishes a
//!   table, do wait in place.
//!
//! # What it is not
//!
//! - It is not shared: one process at a time, and not over a network file system.
//! - Damage is detected, not repaired: journals and tables carry checksums, but no second copy. A journal whose
//!   end was cut off reads like one after a crash.
//! - `buffered` and `interval` survive the end of the process by any means, but not that of the machine: their
//!   last writes may be lost then, though never half of a batch.
//!
//! # Limits
//!
//! Keys up to 1,024 bytes, values up to 64 MiB ([`DiskConfig::max_value_bytes`]), 65,536 writes or 128 MiB waiting
//! for the disk (then [`Overloaded`](commonhold_core::ErrorKind::Overloaded)). Memory: the memtables (8 MiB
//! each, up to four while the disk is behind) and the cache (32 MiB).
//!
//! Opening checks and replays the journals, which hold 64 MiB or somewhat more: below a second after 400,000
//! records of 100 bytes on the machine of the authors.
//!
//! # Example
//!
//! ```
//! use commonhold_core::{Key, PutOptions, StateBackend};
//! use commonhold_disk::{DiskBackend, DiskConfig};
//!
//! # async fn example() -> commonhold_core::Result<()> {
//! # let directory = tempfile::tempdir().unwrap();
//! # let path = directory.path().join("state");
//! let key = Key::new("user:1001")?;
//! let store = DiskBackend::open(DiskConfig::new(&path)).await?;
//! let _ = store.put(&key, "Ada".into(), PutOptions::default()).await?;
//! drop(store);
//!
//! let store = DiskBackend::open(DiskConfig::new(&path)).await?;
//! assert_eq!(store.get(&key).await?.unwrap().value, "Ada");
//! # Ok(())
//! # }
//! # tokio::runtime::Runtime::new().unwrap().block_on(example()).unwrap();
//! ```

mod backend;
mod config;
mod directory;
mod engine;
mod error;
mod group;
mod journal;
mod journal_sync;
mod purge;
mod record;
mod scan;
mod shared;
mod view;
mod writer;

pub use self::{
    backend::DiskBackend,
    config::{DiskConfig, Durability, InvalidDurability},
};
