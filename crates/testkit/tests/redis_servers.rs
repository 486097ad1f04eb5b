//! Redis with TLS, behind Sentinels and as a Cluster: they start, fail over and move slots.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    missing_docs,
    reason = "test code"
)]

use std::time::Duration;

use commonhold_testkit::servers::{PASSWORD, Redis, RedisCluster, RedisSentinel};

#[test]
fn a_server_with_tls_refuses_to_speak_without() {
    let redis = Redis::builder().tls().user("alice").start();
    assert_eq!(redis.cli(&["PING"]), "PONG");
    let authority = redis.directory().join("ca.pem");
    let url = format!("rediss://alice:{PASSWORD}@127.0.0.1:{}?tls_ca={}", redis.port(), authority.display());
    assert_eq!(redis.url(), url);
    let port = redis.port().to_string();
    let plain = std::process::Command::new("redis-cli").args(["-p", &port, "PING"]).output().unwrap();
    assert!(!String::from_utf8_lossy(&plain.stdout).contains("PONG"));
    redis.kill();
    redis.start_again();
}

#[test]
fn sentinels_replace_a_primary_that_is_killed() {
    let group = RedisSentinel::start();
    let [old, ..] = &group.servers;
    assert_eq!(group.primary().port(), old.port());
    old.cli(&["SET", "key", "value"]);
    old.cli(&["WAIT", "2", "10000"]);
    old.kill();
    let new = group.wait_for_failover_from(old);
    assert_eq!(new.cli(&["GET", "key"]), "value");
    new.cli(&["SET", "key", "other"]);
    old.start_again();
    group.wait_until_ready();
    assert_eq!(old.cli(&["GET", "key"]), "other");
}

#[test]
fn a_cluster_replaces_a_primary_that_is_killed() {
    let cluster = RedisCluster::start();
    let slot = cluster.slot("key");
    let old = cluster.primary_of(slot);
    old.cli(&["SET", "key", "value"]);
    assert_eq!(old.cli(&["WAIT", "1", "10000"]), "1");
    old.kill();
    cluster.wait_until_whole();
    let new = cluster.primary_of(slot);
    assert_ne!(new.port(), old.port());
    assert_eq!(new.cli(&["GET", "key"]), "value");
    old.start_again();
    cluster.wait_until_whole();
    assert_eq!(old.info("role"), "slave");
}

#[test]
fn slots_move_with_their_keys() {
    let cluster = RedisCluster::with_node_timeout(Duration::from_secs(60));
    let slot = cluster.slot("{tag}");
    let source = cluster.primary_of(slot);
    let target = cluster.nodes[..3].iter().find(|node| node.port() != source.port()).unwrap();
    for key in 0..250 {
        source.cli(&["SET", &format!("{{tag}}{key}"), "value"]);
    }
    cluster.begin_move(slot, target);
    let asks = source.try_cli(&["GET", "{tag}nowhere"]).unwrap_err();
    assert!(asks.starts_with(&format!("ASK {slot}")), "{asks}");
    while cluster.move_keys(slot, target) > 0 {}
    cluster.finish_move(slot, target);
    let moved = source.try_cli(&["GET", "{tag}1"]).unwrap_err();
    assert!(moved.starts_with(&format!("MOVED {slot}")), "{moved}");
    assert_eq!(target.cli(&["CLUSTER", "COUNTKEYSINSLOT", &slot.to_string()]), "250");
    assert_eq!(cluster.primary_of(slot).port(), target.port());
    cluster.move_slots([slot], source);
    assert_eq!(source.cli(&["GET", "{tag}1"]), "value");
    cluster.wait_until_whole();
}
