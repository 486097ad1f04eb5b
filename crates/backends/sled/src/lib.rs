//! Reads and writes existing sled 0.34 databases, to move off them: `commonhold copy sled:OLD disk:NEW`.
//!
//! # What it promises
//!
//! - **Values as they are.** What plain sled has written is read, and what is written here plain sled reads: the
//!   values of one tree, without anything around them.
//! - **Expiry beside them**, in the tree `commonhold.expiry` (or `commonhold.expiry.TREE`), written together with the
//!   value. It holds for the value that it was put with; one that plain sled puts in its place does not expire.
//!   Expired entries are never seen; [`Maintenance::Sweep`](commonhold_core::Maintenance::Sweep) removes them.
//! - **Atomicity** of batches, conditions, transitions and transactions, also through a crash.
//! - **Errors** that name the path: for a directory that is held by another process, somebody else's, or damaged.
//!
//! # What it is not
//!
//! - It is nothing for new data: sled 0.34 is of 2021 and no longer maintained. The default store is `disk:`.
//! - Scans are ordered, but see what is written meanwhile; it has no snapshots.
//! - Keys of a tree that are empty or over 1,024 bytes cannot be taken over; a scan that meets one fails.
//! - Databases that were written with sled's compression are refused.
//!
//! # Example
//!
//! ```
//! use commonhold_core::{Key, PutOptions, StateBackend};
//! use commonhold_sled::{SledBackend, SledConfig};
//!
//! # tokio::runtime::Runtime::new().unwrap().block_on(async {
//! # let directory = tempfile::tempdir().unwrap();
//! # let path = directory.path().join("old");
//! let old = sled::open(&path).unwrap();
//! old.insert("user:1001", "Ada").unwrap();
//! drop(old);
//!
//! let store = SledBackend::open(SledConfig::new(&path)).await?;
//! assert_eq!(store.get(&Key::new("user:1001")?).await?.unwrap().value, "Ada");
//! # Ok::<(), commonhold_core::Error>(())
//! # }).unwrap();
//! ```

mod backend;
mod config;
mod error;
mod trees;

pub use self::{
    backend::SledBackend,
    config::{Durability, OPTIONS, SledConfig},
};
