//! Databases that plain sled wrote, and what plain sled finds afterwards.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic, missing_docs)]

use std::{
    fs,
    path::Path,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use commonhold_core::{
    Error, ErrorKind, Expiry, Key, Maintenance, ManualClock, Prefix, PutOptions, Scan, StateBackend,
    Timestamp,
};
use commonhold_sled::{SledBackend, SledConfig};
use futures_util::TryStreamExt as _;

const MINUTE: Duration = Duration::from_secs(60);

fn key(bytes: impl AsRef<[u8]>) -> Key {
    Key::new(bytes).unwrap()
}

/// Does something with the database as anybody would who uses sled, and leaves it closed.
fn plainly<T>(path: &Path, act: impl FnOnce(&sled::Db) -> T) -> T {
    let begun = Instant::now();
    // Threads of its own may hold it for a moment after it was dropped.
    let db = loop {
        match sled::open(path) {
            Ok(db) => break db,
            Err(error) => assert!(begun.elapsed() < MINUTE, "{error}"),
        }
        thread::sleep(Duration::from_millis(5));
    };
    let done = act(&db);
    db.flush().unwrap();
    close(path, db);
    done
}

/// Waits until its own threads do not hold it any more, either.
fn close(path: &Path, db: sled::Db) {
    drop(db);
    let begun = Instant::now();
    let file = fs::File::open(path.join("db")).unwrap();
    while file.try_lock().is_err() {
        assert!(begun.elapsed() < MINUTE, "{} is not closed", path.display());
        thread::sleep(Duration::from_millis(5));
    }
}

async fn open(path: &Path) -> SledBackend {
    SledBackend::open(SledConfig::new(path)).await.unwrap()
}

async fn refusal(config: SledConfig) -> Error {
    let error = SledBackend::open(config.clone()).await.unwrap_err();
    assert!(error.to_string().contains(&*config_path(&config)), "{error}");
    error
}

fn config_path(config: &SledConfig) -> String {
    let text = format!("{config:?}");
    text.split('"').nth(1).unwrap().to_owned()
}

#[tokio::test]
async fn what_plain_sled_wrote_is_read_and_what_is_written_plain_sled_reads() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    plainly(path, |db| {
        for i in 0..1000u32 {
            db.insert(i.to_be_bytes(), &[i as u8; 10]).unwrap();
        }
        db.insert([0xff, 0, b'\n'], b"").unwrap();
    });
    let store = open(path).await;
    let entries: Vec<_> = store.scan(Scan::prefix(Prefix::ALL)).try_collect().await.unwrap();
    assert_eq!(entries.len(), 1001);
    for (i, (key, entry)) in (0..1000u32).zip(&entries) {
        assert_eq!(
            (key.as_bytes(), &entry.value[..], entry.ttl),
            (&i.to_be_bytes()[..], &[i as u8; 10][..], None)
        );
    }
    assert_eq!(entries[1000].0, key([0xff, 0, b'\n']));
    let minute = PutOptions::default().expiry(Expiry::After(MINUTE));
    let _ = store.put(&key("new"), "value".into(), minute).await.unwrap();
    drop(store);
    plainly(path, |db| assert_eq!(db.get("new").unwrap().unwrap(), "value"));
}

#[tokio::test]
async fn an_expiry_holds_only_for_the_value_that_it_was_put_with() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    let clock = Arc::new(ManualClock::new(Timestamp::from_millis(1_700_000_000_000)));
    let open = async || SledBackend::open_with_clock(SledConfig::new(path), clock.clone()).await.unwrap();
    let store = open().await;
    for name in ["stays", "replaced"] {
        let minute = PutOptions::default().expiry(Expiry::After(MINUTE));
        let _ = store.put(&key(name), "with a time to live".into(), minute).await.unwrap();
    }
    drop(store);
    plainly(path, |db| drop(db.insert("replaced", "by plain sled").unwrap()));
    let store = open().await;
    assert_eq!(store.get(&key("replaced")).await.unwrap().unwrap().ttl, None);
    assert_eq!(store.get(&key("stays")).await.unwrap().unwrap().ttl, Some(MINUTE));
    clock.advance(MINUTE);
    assert_eq!(store.get(&key("stays")).await.unwrap(), None);
    store.maintain(Maintenance::Sweep).await.unwrap();
    assert_eq!(store.get(&key("replaced")).await.unwrap().unwrap().value, "by plain sled");
    drop(store);
    plainly(path, |db| assert!(db.get("stays").unwrap().is_none() && db.len() == 1));
}

#[tokio::test]
async fn trees_are_apart_and_one_that_does_not_exist_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    plainly(path, |db| {
        db.open_tree("sessions").unwrap().insert("k", "of sessions").unwrap();
        db.insert("k", "of the default tree").unwrap();
    });
    let store = SledBackend::open(SledConfig::new(path).tree("sessions")).await.unwrap();
    assert_eq!(store.get(&key("k")).await.unwrap().unwrap().value, "of sessions");
    drop(store);
    let store = open(path).await;
    assert_eq!(store.get(&key("k")).await.unwrap().unwrap().value, "of the default tree");
    let others = store.health().await.unwrap().details.into_iter().find(|(name, _)| name == "other trees");
    assert_eq!(others.unwrap().1, "sessions");
    drop(store);
    let error = refusal(SledConfig::new(path).tree("session")).await;
    assert_eq!(error.kind(), ErrorKind::InvalidConfig);
    assert!(error.to_string().contains("did you mean \"sessions\"?"), "{error}");
}

#[tokio::test]
async fn a_directory_of_somebody_else_or_a_file_is_refused_and_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("letter.txt"), "Dear all").unwrap();
    assert_eq!(refusal(SledConfig::new(directory.path())).await.kind(), ErrorKind::InvalidConfig);
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    assert_eq!(
        refusal(SledConfig::new(directory.path().join("letter.txt"))).await.kind(),
        ErrorKind::InvalidConfig
    );
}

#[tokio::test]
async fn a_database_that_is_held_open_is_unavailable() {
    let directory = tempfile::tempdir().unwrap();
    let held = sled::open(directory.path()).unwrap();
    let error = refusal(SledConfig::new(directory.path())).await;
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.to_string().contains("another process"), "{error}");
    close(directory.path(), held);
    open(directory.path()).await;
}

#[tokio::test]
async fn damage_is_an_error_that_names_the_path() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    plainly(path, |db| drop(db.insert("k", "v").unwrap()));
    fs::write(path.join("conf"), "not what it was").unwrap();
    let error = refusal(SledConfig::new(path)).await;
    assert!(matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::Unsupported), "{error}");
}

#[tokio::test]
async fn a_key_that_cannot_be_taken_over_is_an_error_and_not_left_out() {
    let directory = tempfile::tempdir().unwrap();
    plainly(directory.path(), |db| drop(db.insert(vec![b'k'; 1025], "v").unwrap()));
    let store = open(directory.path()).await;
    let scanned: Result<Vec<_>, _> = store.scan(Scan::prefix(Prefix::ALL)).try_collect().await;
    let error = scanned.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TooLarge);
    assert!(error.to_string().contains("1025"), "{error}");
}
