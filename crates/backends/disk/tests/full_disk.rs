//! When the disk is full, writes fail with an error that says where; what was acknowledged stays.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic, missing_docs)]

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use commonhold_core::{ErrorKind, Key, Prefix, PutOptions, StateBackend};
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

async fn open(path: &Path, durability: Durability) -> commonhold_core::Result<DiskBackend> {
    DiskBackend::open(DiskConfig::new(path).durability(durability)).await
}

/// Writes until that fails; says how many keys were acknowledged.
async fn fill(store: &DiskBackend, path: &Path) -> usize {
    for at in 0.. {
        let value = fastrand::Rng::with_seed(at as u64).u128(..).to_string().repeat(at % 500);
        let Err(error) = store.put(&key(at), value.into(), PutOptions::default()).await else { continue };
        assert_eq!(error.kind(), ErrorKind::Overloaded, "{error:?}");
        assert!(error.message().contains(path.to_str().unwrap()), "{error}");
        assert!(error.message().contains("make room"), "{error}");
        return at;
    }
    unreachable!()
}

#[tokio::test]
async fn after_a_full_disk_everything_acknowledged_is_there_and_writing_goes_on_once_there_is_room() {
    let name = "after_a_full_disk_everything_acknowledged_is_there_and_writing_goes_on_once_there_is_room";
    let Some(disk) = on_a_small_disk(name) else { return };
    for (round, durability) in [Durability::Sync, Durability::Buffered].into_iter().enumerate() {
        let path = disk.join(format!("store{round}"));
        let ballast = disk.join("ballast");
        fs::write(&ballast, vec![1; 1 << 20]).unwrap();
        let store = open(&path, durability).await.unwrap();
        let written = fill(&store, &path).await;
        assert!(written > 100);
        // From now on it refuses, and still reads.
        let error = store.put(&key(0), "x".into(), PutOptions::default()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        assert!(error.message().contains("open the store again"), "{error}");
        assert!(store.health().await.is_err());
        assert!(store.get(&key(written - 1)).await.unwrap().is_some());
        drop(store);
        fs::remove_file(&ballast).unwrap();
        let store = open(&path, durability).await.unwrap();
        for at in 0..written {
            let value = fastrand::Rng::with_seed(at as u64).u128(..).to_string().repeat(at % 500);
            assert_eq!(store.get(&key(at)).await.unwrap().unwrap().value, value);
        }
        // The write that failed may have happened.
        assert!(store.count(&Prefix::ALL).await.unwrap() as usize <= written + 1);
        assert!(store.put(&key(0), "new".into(), PutOptions::default()).await.unwrap().is_yes());
        drop(store);
        // Waits for it to be closed.
        drop(open(&path, durability).await);
        drop(open(&path, durability).await);
        fs::remove_dir_all(&path).unwrap();
    }
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
        match open(&path, Durability::Sync).await {
            Ok(store) => drop(store),
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Overloaded, "{error:?}");
                assert!(error.message().contains(disk.to_str().unwrap()), "{error}");
            }
        }
        fs::remove_file(&ballast).unwrap();
    }
    let store = open(&path, Durability::Sync).await.unwrap();
    assert!(store.put(&key(0), "v".into(), PutOptions::default()).await.unwrap().is_yes());
}
