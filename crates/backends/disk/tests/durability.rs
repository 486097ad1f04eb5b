//! What was acknowledged is there after the store was closed, and after its process was killed.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic, missing_docs)]

use std::{
    collections::HashMap,
    io::{BufRead as _, BufReader, Write as _},
    path::Path,
    process::{Command, Stdio},
    sync::Arc,
    time::Duration,
};

use commonhold_core::{Key, Maintenance, Prefix, PutOptions, StateBackend, Write};
use commonhold_disk::{DiskBackend, DiskConfig, Durability};

const ALL: [Durability; 3] =
    [Durability::Sync, Durability::Interval(Duration::from_millis(5)), Durability::Buffered];

async fn open(path: &Path, durability: Durability) -> DiskBackend {
    // Small memtables, so that tables are written while the process is killed.
    DiskBackend::open(DiskConfig::new(path).durability(durability).memtable_bytes(512 * 1024)).await.unwrap()
}

fn key(name: impl AsRef<[u8]>) -> Key {
    Key::new(name).unwrap()
}

#[tokio::test]
async fn a_store_that_was_closed_can_be_opened_at_once_with_everything_in_it() {
    let directory = tempfile::tempdir().unwrap();
    for (round, durability) in ALL.into_iter().cycle().take(9).enumerate() {
        let store = open(directory.path(), durability).await;
        assert_eq!(store.count(&Prefix::ALL).await.unwrap(), round as u64 * 100);
        for at in 0..100 {
            let _ = store
                .put(&key(format!("{round}:{at}")), vec![7; 500].into(), PutOptions::default())
                .await
                .unwrap();
        }
        match round % 3 {
            0 => store.maintain(Maintenance::Compact).await.unwrap(),
            1 => store.maintain(Maintenance::Flush).await.unwrap(),
            _ => {}
        }
    }
}

#[test]
fn a_store_can_be_closed_outside_of_a_runtime_and_with_one_that_ends() {
    let directory = tempfile::tempdir().unwrap();
    for _ in 0..3 {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let store = runtime.block_on(open(directory.path(), Durability::Buffered));
        drop(runtime);
        drop(store);
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().unwrap();
        let store = runtime.block_on(open(directory.path(), Durability::Buffered));
        runtime.spawn(async move { store });
        drop(runtime);
    }
}

#[tokio::test]
async fn writes_that_wait_are_carried_out_before_the_store_is_closed() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path(), Durability::Sync).await;
    for at in 0..100 {
        drop(store.put(&key(format!("{at}")), "v".into(), PutOptions::default()));
    }
    drop(store);
    let store = open(directory.path(), Durability::Sync).await;
    assert_eq!(store.count(&Prefix::ALL).await.unwrap(), 100);
}

const CHILD: &str = "COMMONHOLD_TEST_CHILD";

/// Not a test of its own: what [`killed`] starts as a process of its own. Writes pairs, and prints each that was
/// acknowledged.
#[test]
fn child_that_writes_until_it_is_killed() {
    let Ok(task) = std::env::var(CHILD) else { return };
    let (durability, path) = task.split_once(' ').unwrap();
    let durability: Durability = durability.parse().unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let store = Arc::new(open(Path::new(path), durability).await);
        let run = std::process::id();
        let writers = (0..8).map(|writer| {
            let store = store.clone();
            tokio::spawn(async move {
                for round in 0.. {
                    let name = format!("{run}:{writer}:{round}");
                    let value = name.repeat(1 + round % 50);
                    let pair =
                        ["a", "b"].map(|side| Write::put(key(format!("{side}:{name}")), value.clone()));
                    store.write_many(pair.into()).await.unwrap();
                    writeln!(std::io::stdout(), "acknowledged {name}").unwrap();
                }
            })
        });
        futures_util::future::join_all(writers.collect::<Vec<_>>()).await;
    });
}

/// Lets a child write and kills it after some acknowledgements; returns all that were printed.
fn killed(path: &Path, durability: Durability) -> Vec<String> {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["child_that_writes_until_it_is_killed", "--exact", "--nocapture"])
        .env(CHILD, format!("{durability} {}", path.display()))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
    let mut acknowledged = Vec::new();
    let enough = fastrand::usize(1..1000);
    let mut read = |lines: &mut dyn Iterator<Item = String>| {
        for line in lines {
            // The harness prints without ending its line.
            if let Some((_, name)) = line.split_once("acknowledged ") {
                acknowledged.push(name.to_owned());
            }
            if acknowledged.len() == enough {
                break;
            }
        }
    };
    read(&mut lines);
    child.kill().unwrap();
    read(&mut lines);
    child.wait().unwrap();
    assert!(acknowledged.len() >= enough);
    acknowledged
}

#[tokio::test]
async fn every_acknowledged_write_survives_sigkill_and_no_batch_is_half_there() {
    for durability in ALL {
        let directory = tempfile::tempdir().unwrap();
        let mut acknowledged = Vec::new();
        for _ in 0..4 {
            acknowledged.extend(killed(directory.path(), durability));
        }
        let store = open(directory.path(), durability).await;
        let mut stored = HashMap::new();
        let mut entries = store.scan(commonhold_core::Scan::prefix(Prefix::ALL));
        while let Some(entry) = futures_util::TryStreamExt::try_next(&mut entries).await.unwrap() {
            stored.insert(entry.0, entry.1.value);
        }
        for name in &acknowledged {
            let round: usize = name.rsplit(':').next().unwrap().parse().unwrap();
            for side in ["a", "b"] {
                assert_eq!(stored[&key(format!("{side}:{name}"))], name.repeat(1 + round % 50));
            }
        }
        for (name, value) in &stored {
            let (side, rest) = name.as_bytes().split_first().unwrap();
            let other = if *side == b'a' { b'b' } else { b'a' };
            assert_eq!(stored.get(&key([&[other], rest].concat())), Some(value), "{name}");
        }
    }
}
