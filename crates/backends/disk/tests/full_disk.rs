//! When the disk is full, writes fail with an error that says where; what was acknowledged stays.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic, missing_docs)]

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use commonhold_core::{Error, ErrorKind, Key, Prefix, PutOptions, Retry, StateBackend};
use commonhold_disk::{DiskBackend, DiskConfig, Durability};

const CHILD: &str = "COMMONHOLD_TEST_SMALL_DISK";

/// Runs the test of this name again, on a file system of 4 MiB that goes away with it.
fn on_a_small_disk(name: &str) -> Option<PathBuf> {
    if let Ok(path) = std::env::var(CHILD) {
        return Some(path.into());
    }
    let directory = tempfile::tempdir().unwrap();
    let script = "mount -t tmpfs -o size=4m small \"$1\" && shift && exec \"$@\"";
    let status = Command::new("unshare")
        .args(["--mount", "--map-root-user", "sh", "-c", script, "sh"])
        .arg(directory.path())
        .arg(std::env::current_exe().unwrap())
        .args([name, "--exact", "--nocapture"])
        .env(CHILD, directory.path())
        .status()
        .expect("util-linux has to be installed");
    assert!(status.success(), "{status}");
    None
}

fn key(at: usize) -> Key {
    Key::new(format!("{at}")).unwrap()
}

fn value(at: usize) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(at as u64);
    let len = random.usize(..10_000);
    std::iter::repeat_with(|| random.u8(..)).take(len).collect()
}

fn config(path: &Path, durability: Durability) -> DiskConfig {
    DiskConfig::new(path).durability(durability)
}

/// Writes until that fails; says how many keys were acknowledged, and the error.
async fn fill(store: &DiskBackend) -> (usize, Error) {
    for at in 0.. {
        match store.put(&key(at), value(at).into(), PutOptions::default()).await {
            Ok(applied) => assert!(applied.is_yes()),
            Err(error) => return (at, error),
        }
    }
    unreachable!()
}

/// Fills the disk, makes room, and looks whether everything is there; returns the error of the first write
/// that failed.
async fn fill_and_recover(disk: &Path, config: DiskConfig) -> Error {
    let ballast = disk.join("ballast");
    fs::write(&ballast, vec![1; 1 << 20]).unwrap();
    let store = DiskBackend::open(config.clone()).await.unwrap();
    let (written, failure) = fill(&store).await;
    assert!(written > 100);
    assert!(failure.message().contains(disk.to_str().unwrap()), "{failure}");
    // From now on it refuses, and still reads.
    let error = store.put(&key(0), "x".into(), PutOptions::default()).await.unwrap_err();
    assert_eq!((error.kind(), error.retry()), (ErrorKind::Unavailable, Retry::Never));
    assert!(error.message().contains("open the store again"), "{error}");
    assert!(store.health().await.is_err());
    assert_eq!(store.get(&key(written - 1)).await.unwrap().unwrap().value, value(written - 1));
    drop(store);
    fs::remove_file(&ballast).unwrap();
    let store = DiskBackend::open(config.clone()).await.unwrap();
    for at in 0..written {
        assert_eq!(store.get(&key(at)).await.unwrap().unwrap().value, value(at));
    }
    // The write that failed may have happened.
    assert!(store.count(&Prefix::ALL).await.unwrap() as usize <= written + 1);
    assert!(store.put(&key(0), "new".into(), PutOptions::default()).await.unwrap().is_yes());
    store.close().await;
    failure
}

#[tokio::test]
async fn after_a_full_disk_everything_acknowledged_is_there_and_writing_goes_on_once_there_is_room() {
    let name = "after_a_full_disk_everything_acknowledged_is_there_and_writing_goes_on_once_there_is_room";
    let Some(disk) = on_a_small_disk(name) else { return };
    for durability in [Durability::Sync, Durability::Buffered] {
        let path = disk.join("store");
        let error = fill_and_recover(&disk, config(&path, durability)).await;
        assert_eq!((error.kind(), error.retry()), (ErrorKind::Overloaded, Retry::Ambiguous), "{error}");
        assert!(error.message().contains("make room"), "{error}");
        fs::remove_dir_all(&path).unwrap();
    }
}

#[tokio::test]
async fn nothing_is_lost_if_the_disk_is_full_while_tables_are_written() {
    let name = "nothing_is_lost_if_the_disk_is_full_while_tables_are_written";
    let Some(disk) = on_a_small_disk(name) else { return };
    let config = config(&disk.join("store"), Durability::Sync).memtable_bytes(DiskConfig::MIN_MEMTABLE_BYTES);
    let error = fill_and_recover(&disk, config).await;
    assert!([ErrorKind::Overloaded, ErrorKind::Unavailable].contains(&error.kind()), "{error}");
}

#[tokio::test]
async fn a_store_cannot_be_created_on_a_full_disk_and_can_once_there_is_room() {
    let name = "a_store_cannot_be_created_on_a_full_disk_and_can_once_there_is_room";
    let Some(disk) = on_a_small_disk(name) else { return };
    let path = disk.join("store");
    let ballast = disk.join("ballast");
    // Bytes left for the store, from none to almost enough.
    for left in [0, 4096, 8192, 16_384, 32_768] {
        let mut fill = vec![1; (4 << 20) - left];
        while fs::write(&ballast, &fill).is_err() {
            fill.truncate(fill.len() - 4096);
        }
        match DiskBackend::open(config(&path, Durability::Sync)).await {
            Ok(store) => drop(store),
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Overloaded, "{error:?}");
                assert!(error.message().contains(disk.to_str().unwrap()), "{error}");
            }
        }
        fs::remove_file(&ballast).unwrap();
    }
    let store = DiskBackend::open(config(&path, Durability::Sync)).await.unwrap();
    assert!(store.put(&key(0), "v".into(), PutOptions::default()).await.unwrap().is_yes());
}

#[tokio::test]
async fn a_disk_that_is_nearly_full_is_warned_of() {
    let Some(disk) = on_a_small_disk("a_disk_that_is_nearly_full_is_warned_of") else { return };
    let store = DiskBackend::open(config(&disk.join("store"), Durability::Sync)).await.unwrap();
    let warnings = store.health().await.unwrap().warnings;
    assert!(warnings.iter().any(|warning| warning.contains("MiB left")), "{warnings:?}");
}
