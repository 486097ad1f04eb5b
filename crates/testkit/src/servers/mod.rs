//! Real servers as processes: on free loopback ports, in temporary directories, ended with the test.
//!
//! ```no_run
//! use commonhold_testkit::servers::Redis;
//!
//! let redis = Redis::start();
//! println!("{} answers {}", redis.url(), redis.cli(&["PING"]));
//! redis.kill();
//! redis.start_again();
//! ```
//!
//! A server is ended and its directory removed when its value is dropped, when the test panics, and when the
//! test's process is killed: a watchdog process waits for each of these. A server that is not installed panics
//! with the line that installs it; nothing is ever skipped.
//!
//! Starting a server takes between 30 ms (Redis) and a few seconds (a Cluster). Tests that do no harm to the
//! server take the one of [`shared`] and a [`unique`] name on it.
//!
//! All calls block the thread, for a minute at most, and are short; an asynchronous test may make them.

#[macro_use]
mod control;

mod account;
mod certificates;
mod directory;
mod memcached;
mod pgbouncer;
pub(crate) mod port;
mod postgres;
mod process;
mod program;
mod redis;
mod redis_cluster;
mod redis_sentinel;
pub mod shared;

use std::sync::atomic::{AtomicU64, Ordering};

pub use self::{
    certificates::{Certificates, SERVER_NAMES},
    memcached::Memcached,
    pgbouncer::PgBouncer,
    postgres::{Postgres, PostgresBuilder},
    program::{INSTALL, missing, shift_clock},
    redis::{Redis, RedisBuilder},
    redis_cluster::RedisCluster,
    redis_sentinel::{RedisSentinel, SERVICE},
};

/// The password of the servers that have one.
pub const PASSWORD: &str = "correct-horse";

/// `name` with a suffix that nobody else uses: no other call, process or run. It has letters, digits and `_`
/// only if `name` has, so it is good for a table, a key prefix or a channel; it adds at most 30 characters.
///
/// ```
/// use commonhold_testkit::servers::unique;
///
/// assert_ne!(unique("orders"), unique("orders"));
/// ```
pub fn unique(name: &str) -> String {
    static CALLS: AtomicU64 = AtomicU64::new(0);
    let call = CALLS.fetch_add(1, Ordering::Relaxed);
    // A pid comes back, on a server that was there before; the random part does not.
    format!("{name}_{}_{:x}_{call}", std::process::id(), fastrand::u32(..))
}
