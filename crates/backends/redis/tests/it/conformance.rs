//! The Redis backend passes the conformance kit, however the servers are arranged.

use std::sync::Arc;

use commonhold_redis::{RedisBackend, RedisConfig};
use commonhold_testkit::{
    MAX_VALUE_BYTES, Subject, conformance,
    servers::{shared, unique},
};

use crate::common::config;

/// Of all cases, three ask for what a list without order or a scan of one moment would give.
const CASES: usize = 150;

async fn subject(config: RedisConfig, prefix: String) -> Subject {
    let config = config.key_prefix(prefix).max_value_bytes(MAX_VALUE_BYTES);
    Subject::new(Arc::new(RedisBackend::open(config).await.unwrap()))
}

conformance!(standalone, CASES, || {
    // Glob characters in it, to see them escaped.
    subject(config(shared::redis_url()), format!("[{}]*?:", unique("kit")))
});

conformance!(behind_sentinels, CASES, || subject(config(shared::redis_sentinel_url()), unique("kit:")));

/// Without batches and transactions over keys that lie on several nodes.
const CLUSTER_CASES: usize = 117;

conformance!(cluster, CLUSTER_CASES, || subject(config(shared::redis_cluster_url()), unique("kit:")));

conformance!(cluster_in_one_slot, CASES, || {
    subject(config(shared::redis_cluster_url()), format!("{{{}}}:", unique("kit")))
});
