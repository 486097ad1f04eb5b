//! Damaged files are an error, or they were not needed: never a panic, and never a wrong value.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic, missing_docs)]

use std::{
    fs,
    path::{Path, PathBuf},
};

use bytes::Bytes;
use commonhold_core::{ErrorKind, Key, Maintenance, Prefix, Result, Scan, StateBackend, Write};
use commonhold_disk::{DiskBackend, DiskConfig, Durability};
use futures_util::TryStreamExt as _;
use tempfile::TempDir;

const TABLE_KEYS: usize = 600;
const KEYS: usize = 700;

fn config(path: &Path) -> DiskConfig {
    DiskConfig::new(path).durability(Durability::Buffered)
}

fn key(at: usize) -> Key {
    Key::new(format!("{at:05}")).unwrap()
}

fn value(at: usize) -> Bytes {
    fastrand::Rng::with_seed(at as u64).u128(..).to_string().into()
}

/// A store with some keys in tables, the rest in the journal, each by a batch of its own.
async fn store() -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    let store = DiskBackend::open(config(directory.path())).await.unwrap();
    store.write_many((0..TABLE_KEYS).map(|at| Write::put(key(at), value(at))).collect()).await.unwrap();
    store.maintain(Maintenance::Compact).await.unwrap();
    for at in TABLE_KEYS..KEYS {
        store.write_many(vec![Write::put(key(at), value(at))]).await.unwrap();
    }
    store.close().await;
    // Opened again, the journal is cut to what is in it.
    DiskBackend::open(config(directory.path())).await.unwrap().close().await;
    directory
}

fn files(path: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(path).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { found.extend(files(&path)) } else { found.push(path) }
    }
    found.sort();
    found
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &to)
        } else {
            fs::copy(entry.path(), to).unwrap();
        }
    }
}

/// Reads everything, by key and by scan, and writes something. Every value that is read must be right; returns
/// how many keys were there.
async fn read_all(path: &Path) -> Result<usize> {
    let store = DiskBackend::open(config(path)).await?;
    let mut failure = None;
    for at in 0..KEYS {
        match store.get(&key(at)).await {
            Ok(Some(entry)) => assert_eq!(entry.value, value(at), "key {at}"),
            Ok(None) => {}
            Err(error) => failure = Some(error),
        }
    }
    if let Some(error) = failure {
        return Err(error);
    }
    let entries: Vec<_> = store.scan(Scan::prefix(Prefix::ALL)).try_collect().await?;
    for (found, entry) in &entries {
        let at = std::str::from_utf8(found.as_bytes()).unwrap().parse().unwrap();
        assert_eq!(entry.value, value(at));
    }
    Ok(entries.len())
}

#[derive(Debug, Clone, Copy)]
enum Damage {
    Flip(f64),
    CutTo(f64),
    Removed,
    Appended,
}

impl Damage {
    fn inflict(self, path: &Path) {
        let mut bytes = fs::read(path).unwrap();
        let place = |share: f64| (share * bytes.len() as f64) as usize;
        match self {
            Self::Flip(share) => {
                let at = place(share);
                if let Some(byte) = bytes.get_mut(at) {
                    *byte ^= 0xa5;
                }
            }
            Self::CutTo(share) => bytes.truncate(place(share)),
            Self::Removed => return fs::remove_file(path).unwrap(),
            Self::Appended => bytes.extend([0xa5; 100]),
        }
        fs::write(path, bytes).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_file_damaged_in_each_way_is_an_error_or_makes_no_difference() {
    let sound = store().await;
    assert_eq!(read_all(sound.path()).await.unwrap(), KEYS);
    let mut damages: Vec<_> = [0.0, 0.01, 0.1, 0.33, 0.5, 0.77, 0.9, 0.99].map(Damage::Flip).into();
    damages.extend([0.0, 0.3, 0.99].map(Damage::CutTo));
    damages.extend([Damage::Removed, Damage::Appended]);
    let (mut refused, mut harmless) = (0, 0);
    for file in files(sound.path()) {
        let name = file.strip_prefix(sound.path()).unwrap();
        for damage in &damages {
            let damaged = tempfile::tempdir().unwrap();
            copy(sound.path(), damaged.path());
            damage.inflict(&damaged.path().join(name));
            let what = format!("{} {damage:?}", name.display());
            match read_all(damaged.path()).await {
                Ok(KEYS) => harmless += 1,
                // What a cut leaves of a journal looks like what a crash leaves.
                Ok(keys) => {
                    let is_cut_journal = name.extension().is_some_and(|name| name == "jnl")
                        && matches!(damage, Damage::CutTo(_));
                    assert!(is_cut_journal && keys >= TABLE_KEYS, "{what}: {keys} keys and no error");
                }
                Err(error) => {
                    refused += 1;
                    let kinds = [ErrorKind::Corrupt, ErrorKind::Unsupported, ErrorKind::Unavailable];
                    assert!(kinds.contains(&error.kind()), "{what}: {error:?}");
                    let path = damaged.path().file_name().unwrap().to_str().unwrap();
                    assert!(error.message().contains(path), "{what}: {error}");
                }
            }
        }
    }
    assert!(refused > 30 && harmless > 10, "{refused} refused, {harmless} harmless");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_journal_with_any_byte_changed_loses_nothing_silently() {
    let sound = store().await;
    let journal =
        files(sound.path()).into_iter().find(|path| path.extension().is_some_and(|it| it == "jnl")).unwrap();
    let len = fs::metadata(&journal).unwrap().len();
    assert!(len > 1000);
    for _ in 0..40 {
        let damaged = tempfile::tempdir().unwrap();
        copy(sound.path(), damaged.path());
        let at = fastrand::f64();
        Damage::Flip(at).inflict(&damaged.path().join(journal.file_name().unwrap()));
        match read_all(damaged.path()).await {
            Ok(keys) => assert_eq!(keys, KEYS, "changed at {at}"),
            Err(error) => assert_eq!(error.kind(), ErrorKind::Corrupt, "{error:?}"),
        }
    }
}
