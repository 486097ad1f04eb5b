//! Concurrent writers share commits, and none of them blocks an async thread.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic, missing_docs)]

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, ThreadId},
};

use bytes::Bytes;
use commonhold_core::{
    Key, Prefix, PutOptions, Result, Scan, StateBackend, Step, Timestamp, Transition, Write,
};
use commonhold_disk::{DiskBackend, DiskConfig, Durability};
use futures_util::{FutureExt as _, TryStreamExt as _, future::join_all};
use tempfile::TempDir;

async fn open(directory: &TempDir, durability: Durability) -> DiskBackend {
    DiskBackend::open(DiskConfig::new(directory.path()).durability(durability)).await.unwrap()
}

fn key(name: impl AsRef<str>) -> Key {
    Key::new(name.as_ref()).unwrap()
}

async fn detail(store: &DiskBackend, name: &str) -> u64 {
    let stats = store.stats().await.unwrap();
    stats.details.iter().find(|(other, _)| *other == name).unwrap().1
}

#[tokio::test]
async fn sixty_four_writers_share_a_few_syncs() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(&directory, Durability::Sync).await;
    let puts = (0..64).map(|writer| {
        let store = &store;
        async move {
            for round in 0..5 {
                let key = key(format!("{writer}:{round}"));
                assert!(store.put(&key, "v".into(), PutOptions::default()).await.unwrap().is_yes());
            }
        }
    });
    join_all(puts).await;
    assert_eq!(detail(&store, "operations written").await, 320);
    let commits = detail(&store, "commits").await;
    assert!((5..160).contains(&commits), "{commits} commits for 320 writes");
}

/// Remembers on which thread it was applied.
#[derive(Debug, Default)]
struct WhichThread(Mutex<Option<ThreadId>>);

impl Transition for WhichThread {
    fn name(&self) -> &'static str {
        "which_thread"
    }

    fn apply(&self, _: Option<&[u8]>, _: Timestamp) -> Result<Step> {
        *self.0.lock().unwrap() = Some(thread::current().id());
        Ok(Step::put("v", Default::default(), Bytes::new()))
    }
}

async fn writing_thread(store: &DiskBackend) -> ThreadId {
    let transition = Arc::new(WhichThread::default());
    store.transact(&key("k"), transition.clone()).await.unwrap();
    transition.0.lock().unwrap().unwrap()
}

#[tokio::test]
async fn what_waits_for_the_disk_runs_on_another_thread_and_what_does_not_runs_in_place() {
    let directory = tempfile::tempdir().unwrap();
    let here = thread::current().id();
    let store = open(&directory, Durability::Sync).await;
    for _ in 0..5 {
        assert_ne!(writing_thread(&store).await, here);
    }
    drop(store);
    let store = open(&directory, Durability::Buffered).await;
    // The first one has to look how much room there is.
    writing_thread(&store).await;
    // A read that was slow, by whatever the machine does meanwhile, sends the next ones away for a while.
    let mut runs_in_place = false;
    for _ in 0..1000 {
        runs_in_place |= writing_thread(&store).await == here;
    }
    assert!(runs_in_place);
}

#[tokio::test]
async fn the_async_thread_goes_on_while_writes_are_synced() {
    let directory = tempfile::tempdir().unwrap();
    let store = Arc::new(open(&directory, Durability::Sync).await);
    let writer = tokio::spawn({
        let store = store.clone();
        async move {
            for round in 0..20 {
                let _ = store.put(&key(format!("{round}")), "v".into(), PutOptions::default()).await.unwrap();
            }
        }
    });
    let mut ticks = 0;
    while !writer.is_finished() {
        ticks += 1;
        tokio::task::yield_now().await;
    }
    assert!(ticks > 20, "the only async thread ran {ticks} times beside 20 syncs");
}

#[tokio::test]
async fn a_write_that_is_no_longer_waited_for_happens_in_full_or_not_at_all() {
    for durability in [Durability::Sync, Durability::Buffered] {
        let directory = tempfile::tempdir().unwrap();
        let store = open(&directory, durability).await;
        for round in 0..100 {
            let pair = ["a", "b"].map(|side| Write::put(key(format!("{side}{round}")), "v"));
            // Polled once, then dropped.
            let _ = store.write_many(pair.into()).into_future().now_or_never();
        }
        drop(store);
        let store = open(&directory, durability).await;
        for round in 0..100 {
            let pair = store.get_many(&["a", "b"].map(|side| key(format!("{side}{round}")))).await.unwrap();
            assert_eq!(pair[0], pair[1]);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_sees_half_of_a_batch() {
    for durability in [Durability::Sync, Durability::Buffered] {
        let directory = tempfile::tempdir().unwrap();
        let store = Arc::new(open(&directory, durability).await);
        let keys: Vec<_> = (0..50).map(|at| key(format!("{at:02}"))).collect();
        let writer = tokio::spawn({
            let (store, keys) = (store.clone(), keys.clone());
            async move {
                for round in 0..200 {
                    let batch = keys.iter().map(|key| Write::put(key.clone(), round.to_string())).collect();
                    store.write_many(batch).await.unwrap();
                }
            }
        });
        let mut read = 0;
        while !writer.is_finished() || read == 0 {
            let entries = store.get_many(&keys).await.unwrap();
            assert!(entries.iter().all(|entry| *entry == entries[0]), "{entries:?}");
            // Whoever has seen the first key's new value sees that or a later one of the last key.
            let number = |entry: Option<commonhold_core::Entry>| {
                entry.map_or(-1, |entry| {
                    String::from_utf8(entry.value.to_vec()).unwrap().parse::<i32>().unwrap()
                })
            };
            let first = number(store.get(&keys[0]).await.unwrap());
            let last = number(store.get(&keys[49]).await.unwrap());
            assert!(first <= last, "{first} before {last}");
            read += 1;
        }
        writer.await.unwrap();
    }
}

#[derive(Debug)]
struct Panics;

impl Transition for Panics {
    fn name(&self) -> &'static str {
        "panics"
    }

    fn apply(&self, _: Option<&[u8]>, _: Timestamp) -> Result<Step> {
        panic!("on purpose")
    }
}

#[tokio::test]
async fn a_transition_that_panics_is_an_error_and_its_neighbours_are_written() {
    for durability in [Durability::Sync, Durability::Buffered] {
        let directory = tempfile::tempdir().unwrap();
        let store = open(&directory, durability).await;
        let [a, b, c] = ["a", "b", "c"].map(key);
        let (before, panicked, after) = tokio::join!(
            store.transact(&a, Arc::new(WhichThread::default())),
            store.transact(&b, Arc::new(Panics)),
            store.transact(&c, Arc::new(WhichThread::default())),
        );
        before.unwrap();
        assert!(panicked.unwrap_err().message().contains("on purpose"));
        after.unwrap();
        assert_eq!(store.count(&Default::default()).await.unwrap(), 2);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_one_read_has_seen_no_later_one_misses_whichever_way_it_is_made() {
    let directory = tempfile::tempdir().unwrap();
    let store = Arc::new(open(&directory, Durability::Sync).await);
    let done = Arc::new(AtomicBool::new(false));
    let read = key("000");
    assert!(store.put(&read, Bytes::from(vec![0; 8]), PutOptions::default()).await.unwrap().is_yes());
    let writers: Vec<_> = (0..128)
        .map(|writer| {
            let (store, done) = (store.clone(), done.clone());
            tokio::spawn(async move {
                let key = key(format!("{writer:03}"));
                for round in 1u64.. {
                    let value = Bytes::copy_from_slice(&round.to_be_bytes());
                    assert!(store.put(&key, value, PutOptions::default()).await.unwrap().is_yes());
                    if done.load(Ordering::Relaxed) {
                        break;
                    }
                }
            })
        })
        .collect();
    for round in 0..10_000 {
        let one = store.get(&read).await.unwrap().unwrap().value;
        let many = store.get_many(std::slice::from_ref(&read)).await.unwrap().remove(0).unwrap().value;
        assert!(one <= many, "{one:?} was there, then {many:?}");
        if round % 50 == 0 {
            let scan = Scan::prefix(Prefix::new("000").unwrap());
            let (_, scanned) = store.scan(scan).try_next().await.unwrap().unwrap();
            assert!(many <= scanned.value, "{many:?} was there, then {:?}", scanned.value);
        }
    }
    done.store(true, Ordering::Relaxed);
    for writer in writers {
        writer.await.unwrap();
    }
}
