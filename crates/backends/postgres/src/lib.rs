//! State in a table of PostgreSQL: shared by many instances, durable, and open to plain SQL.
//!
//! # What it promises
//!
//! - **Values as they are**: the table `(key bytea primary key, value bytea, expires_at timestamptz)` holds the bytes
//!   that were put. It is made on start, by one instance at a time, however many start at once.
//! - **Atomicity**: single operations are single statements; batches and transactions lock their rows in the order of
//!   keys. Nobody sees half of one.
//! - **The server's clock** judges expiry. Expired entries are never seen; their rows are removed in small batches by
//!   one instance at a time ([`PostgresConfig::sweep`]).
//! - **Few round trips**: concurrent single reads, and concurrent single puts, travel in one statement while an
//!   earlier one is in flight. Nothing is delayed when idle. Big batches go by COPY.
//! - **Errors that say whether to try again**: what was not sent, or was refused by the server, changed nothing; a write
//!   whose answer was lost is [`Ambiguous`](commonhold_core::Retry::Ambiguous). The driver repeats nothing.
//! - **It comes back**: connections that broke are made anew when they are needed; with several hosts, on the one that
//!   takes writes.
//!
//! # What it is not
//!
//! - A scan does not see one moment: it reads page by page and holds no connection in between.
//! - [`watch`](commonhold_core::StateBackend::watch) takes [`PostgresConfig::watch`]: a trigger notifies of every change,
//!   those of plain SQL too, and PostgreSQL lets transactions that notify commit only one by one. That costs too much
//!   to be always on. Where a connection was lost, watchers are told that they may have missed something.
//! - A message is at most about 5,900 bytes, together with its channel.
//! - An increment is two round trips, four where others keep getting in its way.
//!
//! # Transactions
//!
//! Unless [`PostgresConfig::isolation`] says otherwise, a transaction reads and writes without holding anything, and is
//! checked when it commits: if something that it read has changed, by whomever, it is a
//! [`Conflict`](commonhold_core::ErrorKind::Conflict), which [`Store::transaction`](commonhold_core::Store::transaction)
//! tries again. With an isolation level it is a transaction of the server: it holds a connection and the locks of what it
//! wrote, and serialization failures are conflicts too.
//!
//! # Replicas
//!
//! With [`PostgresConfig::replica`], reads, scans and counts are spread over the replicas that are known to show all
//! that the primary had written [`PostgresConfig::max_lag`] ago, and go to the primary where there is none. One that
//! fails, or does not answer for a second, is left out until it answers again; the reads that met it go to the primary.
//! So they do where a replica has been promoted, or where its clock is off.
//!
//! Such a read may be older than another instance's last write, and than an earlier read. What this store itself wrote,
//! or was told of as a [watcher](commonhold_core::StateBackend::watch), it does see, unless
//! [`PostgresConfig::read_your_writes`] is off. [`PostgresBackend::token`] carries that over to other instances.
//! Conditions, transitions, batches that write and transactions never read from a replica.
//!
//! # Plain SQL
//!
//! The view `TABLE_readable` shows live entries for people: `key` and `text` where they are UTF-8 and escaped where not,
//! `json` where the value is JSON, `expires_at`, and `raw_key`.
//!
//! ```sql
//! SELECT key, json->>'name' AS name FROM commonhold_readable
//! WHERE json->>'city' = 'Oslo' ORDER BY key;
//! ```
//!
//! # Locks
//!
//! [`AdvisoryLocks`] are locks of the server's own, each held by a session: without a time to live, in the server's order,
//! with fencing tokens. Use them where a lock is to last exactly as long as its holder, and leases in the store where
//! locks are many, or are to survive a failover.
//!
//! # pgbouncer
//!
//! Behind pgbouncer in transaction mode [`PostgresConfig::pgbouncer`] does without prepared statements and without
//! settings of the session; then there is no watching and no publishing, and there are no advisory locks.
//!
//! # Example
//!
//! ```no_run
//! use commonhold_core::{Store, url::StoreUrl};
//! use commonhold_postgres::{PostgresBackend, PostgresConfig};
//!
//! # async fn example() -> commonhold_core::Result<()> {
//! let url = StoreUrl::parse("postgres://app:secret@localhost/app?table=state")?;
//! let store = Store::new(PostgresBackend::open(PostgresConfig::from_url(url)?).await?);
//! store.put("user:1001", r#"{"name": "Ada", "city": "Oslo"}"#).await?;
//! # Ok(())
//! # }
//! ```

mod advisory;
mod backend;
mod batch;
mod checked;
mod clock;
mod config;
mod connect;
mod connection;
mod copy;
mod error;
mod gathered;
mod isolated;
mod lanes;
mod locked;
mod log;
mod names;
mod pool;
mod replicas;
mod scan;
mod schema;
mod seen;
mod server;
mod service;
mod shared;
mod sql;
mod tls;
mod transact;
mod values;
mod watch;
mod ways;
mod write;

pub use self::{
    advisory::{AdvisoryGuard, AdvisoryLocks},
    backend::PostgresBackend,
    config::{Isolation, OPTIONS, PostgresConfig, TlsMode},
    seen::ReadToken,
};

/// The backend's name in errors and metrics.
const NAME: &str = "postgres";
