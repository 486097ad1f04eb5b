//! A million keys, and values of a mebibyte.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use commonhold_core::{Prefix, Scan};
use commonhold_testkit::servers::Redis;
use futures_util::TryStreamExt as _;

use crate::common::config;

const KEYS: usize = 1_000_000;

const PATIENCE: Duration = Duration::from_secs(30);

#[tokio::test(flavor = "multi_thread")]
async fn a_million_keys_are_listed_once_each_and_cleared_while_others_write() {
    let redis = Redis::builder().config("enable-debug-command yes").start();
    redis.cli(&["DEBUG", "POPULATE", &KEYS.to_string(), "many", "100"]);
    let config = config(&redis.url()).timeouts(PATIENCE, PATIENCE, PATIENCE);
    let store = commonhold_core::Store::new(commonhold_redis::RedisBackend::open(config).await.unwrap());
    let over = Arc::new(AtomicBool::new(false));
    let writer = tokio::spawn({
        let (store, over) = (store.clone(), over.clone());
        async move {
            let mut round = 0u64;
            while !over.load(Ordering::SeqCst) {
                store.put(format!("many:{}", round * 7919 % KEYS as u64), "overwritten").await.unwrap();
                store.put(format!("more:{round}"), "v").await.unwrap();
                store.put(format!("many:+{round}"), "comes and goes").await.unwrap();
                store.delete(format!("many:+{round}")).await.unwrap();
                round += 1;
            }
            round
        }
    });

    let mut scan = Scan::prefix(Prefix::new("many:").unwrap()).keys_only();
    scan.page = 5_000;
    let mut seen = vec![false; KEYS];
    let mut entries = store.scan(scan);
    while let Some((key, _)) = entries.try_next().await.unwrap() {
        let number = std::str::from_utf8(&key.as_bytes()[b"many:".len()..]).unwrap();
        if !number.starts_with('+') {
            let number: usize = number.parse().unwrap();
            assert!(!std::mem::replace(&mut seen[number], true), "{number} came twice");
        }
    }
    assert!(seen.iter().all(|seen| *seen), "keys that were there all the while did not come");

    over.store(true, Ordering::SeqCst);
    let rounds = writer.await.unwrap();
    assert!(store.count("many:").await.unwrap() >= KEYS as u64);
    assert!(store.clear("many:").await.unwrap() >= KEYS as u64);
    assert_eq!(store.count("many:").await.unwrap(), 0);
    assert_eq!(store.count("").await.unwrap(), rounds, "what others wrote is there");
}

#[tokio::test]
async fn large_values_are_not_scanned_in_one_reply() {
    // It closes a connection on which more than this waits to be sent.
    let redis = Redis::builder().config("client-output-buffer-limit normal 32mb 0 0").start();
    let config = config(&redis.url()).timeouts(PATIENCE, PATIENCE, PATIENCE);
    let store = commonhold_core::Store::new(commonhold_redis::RedisBackend::open(config).await.unwrap());
    for i in 0..100 {
        store.put(format!("large{i}"), vec![b'v'; 1 << 20]).await.unwrap();
    }
    let mut entries = store.scan(Scan::prefix(Prefix::new("large").unwrap()));
    let mut count = 0;
    while let Some((_, entry)) = entries.try_next().await.unwrap() {
        assert_eq!(entry.value.len(), 1 << 20);
        count += 1;
    }
    assert_eq!(count, 100);
}
