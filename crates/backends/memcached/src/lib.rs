//! State in Memcached, over its meta protocol: fast, shared, and forgotten when a server ends or is full.
//!
//! # What it promises
//!
//! - **Few round trips.** One connection for each server carries the requests of all callers; what waits is written
//!   together and answered as it comes.
//! - **Atomicity of single keys.** Conditions, increments and transitions read an entry and write it if it has not
//!   changed since, over the same connection, and try again otherwise.
//! - **Values travel as they are**, and so do keys of up to 250 bytes without blanks and control characters: a plain
//!   client sees both. Other keys of up to 186 bytes are the same bytes inside the server, and travel in base64.
//!   Longer ones lie under their SHA-256, as `commonhold:memcached:sha256:..`.
//! - **A lost connection** is made anew with growing pauses. Until it is there, calls fail at once. A write whose
//!   reply was lost is ambiguous, and never sent again.
//! - **Several servers** share the keys by rendezvous hashing over their names (`HOST:PORT` as configured). When one
//!   is away, its keys are: they do not move, or two clients could hold two truths.
//!
//! # What it is not
//!
//! - It is not durable. A server that is restarted has forgotten everything, and one that is full drops what was not
//!   used for longest, expired or not; [`health`](commonhold_core::StateBackend::health) warns then.
//! - It lists nothing, and so counts and clears nothing; batches are not atomic; there are no transactions, watches
//!   and messages. All of these answer [`Unsupported`](commonhold_core::ErrorKind::Unsupported).
//!
//! # Time
//!
//! Memcached counts whole seconds. An entry lives for at least its time to live, and up to two seconds longer. Times
//! to live beyond 30 days are sent as a date, by the server's own clock; Memcached tells dates to January 2038, and
//! [`max_ttl`](commonhold_core::Capabilities::max_ttl) says what that leaves. A change that keeps the time to live
//! keeps it to the second.
//!
//! Transitions get the time of this machine, as whole seconds are too coarse for them, corrected by that of the
//! server where the two are more than three seconds apart.
//!
//! The server's time is read from an empty entry of this crate's own, `commonhold:memcached:clock`.
//!
//! # Limits
//!
//! Keys up to 1,024 bytes; values up to 1 KiB below 1 MiB unless the servers take more
//! ([`MemcachedConfig::max_value_bytes`]). 65,536 commands or 128 MiB waiting for one server, then
//! [`Overloaded`](commonhold_core::ErrorKind::Overloaded).
//!
//! # Example
//!
//! ```no_run
//! use commonhold_core::{Key, PutOptions, StateBackend};
//! use commonhold_memcached::{MemcachedBackend, MemcachedConfig};
//!
//! # async fn example() -> commonhold_core::Result<()> {
//! let store = MemcachedBackend::open(MemcachedConfig::new(["10.0.0.1", "10.0.0.2"])?).await?;
//! let key = Key::new("user:1001")?;
//! let _ = store.put(&key, "Ada".into(), PutOptions::default()).await?;
//! assert_eq!(store.get(&key).await?.unwrap().value, "Ada");
//! # Ok(())
//! # }
//! ```

mod backend;
mod batch;
mod config;
mod connection;
mod error;
mod expiry;
mod keys;
mod ring;
mod server;
mod update;
mod wire;

pub use self::{
    backend::MemcachedBackend,
    config::{MemcachedConfig, OPTIONS},
};
