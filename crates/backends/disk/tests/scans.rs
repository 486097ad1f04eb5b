//! Scans see one moment, hold little memory, and let go of the store when they are dropped.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic, missing_docs)]

use std::sync::Arc;

use commonhold_core::{Key, Maintenance, Prefix, PutOptions, Scan, StateBackend, Write};
use commonhold_disk::{DiskBackend, DiskConfig, Durability};
use futures_util::TryStreamExt as _;

fn config(path: &std::path::Path) -> DiskConfig {
    DiskConfig::new(path).durability(Durability::Buffered).memtable_bytes(DiskConfig::MIN_MEMTABLE_BYTES)
}

fn key(at: usize) -> Key {
    Key::new(format!("{at:06}")).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_scan_sees_the_moment_at_which_it_began_while_everything_is_overwritten_and_compacted() {
    let directory = tempfile::tempdir().unwrap();
    let store = Arc::new(DiskBackend::open(config(directory.path())).await.unwrap());
    let write = |round: &'static str| {
        let store = store.clone();
        async move {
            for page in 0..20 {
                let batch = (0..250).map(|at| Write::put(key(page * 250 + at), round)).collect();
                store.write_many(batch).await.unwrap();
            }
        }
    };
    write("before").await;
    let mut scan = store.scan(Scan { page: 100, ..Scan::prefix(Prefix::ALL) });
    let first = scan.try_next().await.unwrap().unwrap();
    assert_eq!(first.0, key(0));
    write("after").await;
    let _ = store.put(&Key::new("new").unwrap(), "after".into(), PutOptions::default()).await.unwrap();
    let _ = store.delete(&key(4999), Default::default()).await.unwrap();
    store.maintain(Maintenance::Compact).await.unwrap();
    let mut seen = 1;
    while let Some((found, entry)) = scan.try_next().await.unwrap() {
        assert_eq!((found, entry.value), (key(seen), "before".into()));
        seen += 1;
    }
    assert_eq!(seen, 5000);
    assert_eq!(store.count(&Prefix::ALL).await.unwrap(), 5000);
}

#[tokio::test]
async fn a_dropped_scan_lets_go_of_the_store() {
    let directory = tempfile::tempdir().unwrap();
    let store = DiskBackend::open(config(directory.path())).await.unwrap();
    store.write_many((0..1000).map(|at| Write::put(key(at), "v")).collect()).await.unwrap();
    let mut scan = store.scan(Scan { page: 10, ..Scan::prefix(Prefix::ALL) });
    scan.try_next().await.unwrap().unwrap();
    let transaction = store.begin().await.unwrap();
    drop(store);
    // Both still hold the store open; this one reads on.
    assert_eq!(scan.try_next().await.unwrap().unwrap().0, key(1));
    assert!(
        DiskBackend::open(config(directory.path())).await.unwrap_err().message().contains("this process")
    );
    drop((scan, transaction));
    let store = DiskBackend::open(config(directory.path())).await.unwrap();
    assert_eq!(store.count(&Prefix::ALL).await.unwrap(), 1000);
}

#[tokio::test]
async fn a_scan_begins_behind_a_key_wherever_that_lies() {
    let directory = tempfile::tempdir().unwrap();
    let store = DiskBackend::open(config(directory.path())).await.unwrap();
    let keys = ["a", "b", "b\0", "b1", "b\u{ff}", "c"].map(|key| Key::new(key).unwrap());
    store.write_many(keys.iter().map(|key| Write::put(key.clone(), "v")).collect()).await.unwrap();
    for (after, expected) in [("a", 4), ("b", 3), ("b1", 1), ("b\u{ff}", 0), ("c", 0), ("bz", 1)] {
        let scan = Scan::prefix(Prefix::new("b").unwrap()).after(Key::new(after).unwrap());
        let found: Vec<_> = store.scan(scan).try_collect().await.unwrap();
        assert_eq!(found.len(), expected, "after {after}");
    }
}
