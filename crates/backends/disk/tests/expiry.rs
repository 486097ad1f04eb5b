//! What has expired is gone: at once for readers, and from the disk when it is swept or compacted.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic, missing_docs)]

use std::{path::Path, sync::Arc, time::Duration};

use bytes::Bytes;
use commonhold_core::{
    Expiry, Key, Maintenance, ManualClock, Prefix, PutOptions, Scan, StateBackend, Timestamp,
};
use commonhold_disk::{DiskBackend, DiskConfig};
use futures_util::TryStreamExt as _;

async fn open(path: &Path, clock: &Arc<ManualClock>) -> DiskBackend {
    DiskBackend::open_with_clock(DiskConfig::new(path), clock.clone()).await.unwrap()
}

fn clock() -> Arc<ManualClock> {
    Arc::new(ManualClock::new(Timestamp::from_millis(1_000_000)))
}

fn for_secs(secs: u64) -> PutOptions {
    PutOptions::default().expiry(Expiry::After(Duration::from_secs(secs)))
}

async fn put(store: &DiskBackend, key: &str, value: impl Into<Bytes>, options: PutOptions) {
    assert!(store.put(&Key::new(key).unwrap(), value.into(), options).await.unwrap().is_yes());
}

async fn get(store: &DiskBackend, key: &str) -> Option<Bytes> {
    store.get(&Key::new(key).unwrap()).await.unwrap().map(|entry| entry.value)
}

async fn detail(store: &DiskBackend, name: &str) -> u64 {
    let stats = store.stats().await.unwrap();
    stats.details.iter().find(|(other, _)| *other == name).unwrap().1
}

#[tokio::test]
async fn a_time_to_live_goes_on_while_the_store_is_closed() {
    let directory = tempfile::tempdir().unwrap();
    let clock = clock();
    let store = open(directory.path(), &clock).await;
    put(&store, "short", "1", for_secs(10)).await;
    put(&store, "long", "2", for_secs(100)).await;
    drop(store);
    clock.advance(Duration::from_secs(10));
    let store = open(directory.path(), &clock).await;
    assert_eq!(get(&store, "short").await, None);
    assert_eq!(
        store.get(&Key::new("long").unwrap()).await.unwrap().unwrap().ttl,
        Some(Duration::from_secs(90))
    );
    assert_eq!(store.count(&Prefix::ALL).await.unwrap(), 1);
}

#[tokio::test]
async fn compaction_removes_what_has_expired_and_brings_no_older_version_back() {
    let directory = tempfile::tempdir().unwrap();
    let clock = clock();
    let store = open(directory.path(), &clock).await;
    put(&store, "k", "old, for ever", PutOptions::default()).await;
    store.maintain(Maintenance::Compact).await.unwrap();
    put(&store, "k", "new, for a while", for_secs(10)).await;
    store.maintain(Maintenance::Compact).await.unwrap();
    clock.advance(Duration::from_secs(10));
    for _ in 0..3 {
        assert_eq!(get(&store, "k").await, None);
        assert_eq!(store.count(&Prefix::ALL).await.unwrap(), 0);
        put(&store, "other", "x", PutOptions::default()).await;
        let _ = store.delete(&Key::new("other").unwrap(), Default::default()).await.unwrap();
        store.maintain(Maintenance::Compact).await.unwrap();
    }
    drop(store);
    let store = open(directory.path(), &clock).await;
    store.maintain(Maintenance::Compact).await.unwrap();
    assert_eq!(get(&store, "k").await, None);
}

#[tokio::test]
async fn compaction_gives_the_space_of_expired_entries_back() {
    let directory = tempfile::tempdir().unwrap();
    let clock = clock();
    let store = open(directory.path(), &clock).await;
    for at in 0..1000 {
        put(
            &store,
            &format!("{at}"),
            fastrand::Rng::with_seed(at).u128(..).to_string().repeat(20),
            for_secs(10),
        )
        .await;
    }
    store.maintain(Maintenance::Compact).await.unwrap();
    assert!(detail(&store, "tables").await > 0);
    clock.advance(Duration::from_secs(10));
    store.maintain(Maintenance::Compact).await.unwrap();
    store.maintain(Maintenance::Compact).await.unwrap();
    assert_eq!(detail(&store, "tables").await, 0);
}

#[tokio::test]
async fn a_sweep_removes_exactly_what_has_expired_and_tells_nobody() {
    let directory = tempfile::tempdir().unwrap();
    let clock = clock();
    let store = open(directory.path(), &clock).await;
    for at in 0..2500 {
        let options = if at % 2 == 0 { for_secs(10) } else { PutOptions::default() };
        put(&store, &format!("{at}"), "v", options).await;
    }
    clock.advance(Duration::from_secs(10));
    let mut changes = store.watch(&Prefix::ALL).await.unwrap();
    let before = detail(&store, "commits").await;
    store.maintain(Maintenance::Sweep).await.unwrap();
    assert!(detail(&store, "commits").await > before);
    assert_eq!(store.count(&Prefix::ALL).await.unwrap(), 1250);
    put(&store, "after", "v", PutOptions::default()).await;
    let first = changes.try_next().await.unwrap().unwrap();
    assert_eq!(first, commonhold_core::Change::Put(Key::new("after").unwrap()));
    let before = detail(&store, "commits").await;
    store.maintain(Maintenance::Sweep).await.unwrap();
    assert_eq!(detail(&store, "commits").await, before, "there is nothing left to remove");
}

#[tokio::test]
async fn a_default_time_to_live_is_given_to_what_is_put_without_one() {
    let directory = tempfile::tempdir().unwrap();
    let clock = clock();
    let config = DiskConfig::new(directory.path()).default_ttl(Some(Duration::from_secs(5)));
    let store = DiskBackend::open_with_clock(config, clock.clone()).await.unwrap();
    put(&store, "default", "v", PutOptions::default()).await;
    put(&store, "own", "v", for_secs(10)).await;
    clock.advance(Duration::from_secs(5));
    assert_eq!((get(&store, "default").await, get(&store, "own").await), (None, Some("v".into())));
}

#[tokio::test]
async fn a_scan_hands_out_nothing_that_expired_while_its_reader_was_away() {
    let directory = tempfile::tempdir().unwrap();
    let clock = clock();
    let store = open(directory.path(), &clock).await;
    for name in ["a", "b", "c"] {
        put(&store, name, "v", for_secs(2)).await;
    }
    put(&store, "d", "v", PutOptions::default()).await;
    let mut scan = store.scan(Scan::prefix(Prefix::ALL));
    scan.try_next().await.unwrap().unwrap();
    clock.advance(Duration::from_secs(1));
    let (_, entry) = scan.try_next().await.unwrap().unwrap();
    assert_eq!(entry.ttl, Some(Duration::from_secs(1)));
    clock.advance(Duration::from_secs(1));
    let rest: Vec<_> = scan.map_ok(|(key, _)| key).try_collect().await.unwrap();
    assert_eq!(rest, [Key::new("d").unwrap()]);
}
