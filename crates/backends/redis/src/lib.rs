//! State in Redis: one server, a primary that Sentinels watch over, or a Cluster.
//!
//! # What it promises
//!
//! - **Values as they are**: a key of the store is a string of the server, of the same name behind
//!   [`RedisConfig::key_prefix`]. What others put there is read too; keys that hold lists, hashes and so on are taken for
//!   absent.
//! - **Atomicity**: single operations and batches are single commands, scripts, or `MULTI` and `EXEC`. In a Cluster,
//!   batches and transactions are atomic where the prefix has a hash tag, as `{app}:`.
//! - **The server's clock** judges expiry.
//! - **Few round trips**: concurrent single reads, and concurrent single writes, travel together while an earlier one is
//!   in flight. Nothing is delayed when idle.
//! - **Errors that say whether to try again**: what was not sent, or was refused by the server, changed nothing; a write
//!   whose answer was lost is [`Ambiguous`](commonhold_core::Retry::Ambiguous). The driver repeats nothing.
//! - **It comes back**: connections that broke are made anew when they are needed. Where several servers or Sentinels
//!   are named, each connection's server is asked once in a second of use whether it still is the primary, and left
//!   if not.
//!
//! # What it is not
//!
//! - Redis replicates asynchronously: what it acknowledged last may be lost in a failover.
//! - A scan lists keys in no order and does not see one moment.
//!
//! # Watching
//!
//! [`watch`](commonhold_core::StateBackend::watch) changes a setting of the server: it adds `Kg$` to
//! `notify-keyspace-events` if that does not notify of strings and generic commands yet, and leaves it so. While something
//! is watched the setting is checked every 5 s, and added to again if somebody has changed it; watchers are then told
//! that they may have missed something. A user who may not `CONFIG SET` needs it to be set in `redis.conf`; one who may
//! not `CONFIG GET` cannot watch.
mod backend;
mod cluster;
mod config;
mod driver;
mod error;
mod flight;
mod health;
mod keyspace;
mod lanes;
mod listener;
mod node;
mod pool;
mod primary;
mod reads;
mod scan;
mod seen;
mod servers;
mod slot;
mod transaction;
mod transitions;
mod url;
mod watch;
mod writes;

pub use self::{
    backend::RedisBackend,
    config::{ReadFrom, RedisConfig},
    url::OPTIONS,
};
