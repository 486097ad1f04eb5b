//! Servers that many tests use at once: those that the environment names, or one of each for this process.
//!
//! `cargo xtask test` starts them once for the whole run and sets the variables. A test takes a name of its own
//! on them ([`unique`](super::unique)) and does them no harm.

use std::{env, sync::OnceLock, time::Duration};

use super::{Memcached, Postgres, Redis, RedisCluster, RedisSentinel};

/// A standalone Redis: `COMMONHOLD_TEST_REDIS_URL`, or one that this process starts.
pub fn redis_url() -> &'static str {
    static SERVER: OnceLock<Redis> = OnceLock::new();
    static URL: OnceLock<String> = OnceLock::new();
    URL.get_or_init(|| given(REDIS).unwrap_or_else(|| SERVER.get_or_init(Redis::start).url()))
}

/// A Redis Cluster: `COMMONHOLD_TEST_REDIS_CLUSTER_URL`, or one that this process starts.
pub fn redis_cluster_url() -> &'static str {
    static SERVERS: OnceLock<RedisCluster> = OnceLock::new();
    static URL: OnceLock<String> = OnceLock::new();
    URL.get_or_init(|| {
        given(REDIS_CLUSTER)
            .unwrap_or_else(|| SERVERS.get_or_init(|| RedisCluster::with_node_timeout(PATIENCE)).url())
    })
}

/// Redis behind Sentinels: `COMMONHOLD_TEST_REDIS_SENTINEL_URL`, or one that this process starts.
pub fn redis_sentinel_url() -> &'static str {
    static SERVERS: OnceLock<RedisSentinel> = OnceLock::new();
    static URL: OnceLock<String> = OnceLock::new();
    URL.get_or_init(|| {
        given(REDIS_SENTINEL).unwrap_or_else(|| SERVERS.get_or_init(RedisSentinel::start).url())
    })
}

/// A PostgreSQL database: `COMMONHOLD_TEST_POSTGRES_URL`, or one that this process starts.
pub fn postgres_url() -> &'static str {
    static SERVER: OnceLock<Postgres> = OnceLock::new();
    static URL: OnceLock<String> = OnceLock::new();
    URL.get_or_init(|| given(POSTGRES).unwrap_or_else(|| SERVER.get_or_init(Postgres::start).url()))
}

/// Two Memcached servers in one URL: `COMMONHOLD_TEST_MEMCACHED_URL`, or two that this process starts.
pub fn memcached_url() -> &'static str {
    static SERVERS: OnceLock<[Memcached; 2]> = OnceLock::new();
    static URL: OnceLock<String> = OnceLock::new();
    URL.get_or_init(|| {
        given(MEMCACHED).unwrap_or_else(|| {
            let [one, other] = SERVERS.get_or_init(|| [Memcached::start(), Memcached::start()]);
            format!("memcached://{},{}", one.address(), other.address())
        })
    })
}

/// Names the Redis of [`redis_url`].
pub const REDIS: &str = "COMMONHOLD_TEST_REDIS_URL";
/// Names the Cluster of [`redis_cluster_url`].
pub const REDIS_CLUSTER: &str = "COMMONHOLD_TEST_REDIS_CLUSTER_URL";
/// Names the Sentinels of [`redis_sentinel_url`].
pub const REDIS_SENTINEL: &str = "COMMONHOLD_TEST_REDIS_SENTINEL_URL";
/// Names the database of [`postgres_url`].
pub const POSTGRES: &str = "COMMONHOLD_TEST_POSTGRES_URL";
/// Names the servers of [`memcached_url`].
pub const MEMCACHED: &str = "COMMONHOLD_TEST_MEMCACHED_URL";

/// Nobody kills a shared server, and a busy machine is to cause no failover.
const PATIENCE: Duration = Duration::from_secs(60);

fn given(variable: &str) -> Option<String> {
    env::var(variable).ok().filter(|url| !url.is_empty())
}
