//! Whatever the directory is, opening it gives the store or an error that names it; nothing is lost.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic, missing_docs)]

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::{Command, Stdio},
};

use commonhold_core::{Error, ErrorKind, Key, PutOptions, Retry, StateBackend};
use commonhold_disk::{DiskBackend, DiskConfig};

async fn open(path: &Path) -> Result<DiskBackend, Error> {
    DiskBackend::open(DiskConfig::new(path)).await
}

fn key() -> Key {
    Key::new("k").unwrap()
}

async fn put_and_close(path: &Path) {
    let store = open(path).await.unwrap();
    assert!(store.put(&key(), "v".into(), PutOptions::default()).await.unwrap().is_yes());
    store.close().await;
}

async fn assert_refused(path: &Path, kind: ErrorKind, says: &str) {
    let error = open(path).await.unwrap_err();
    assert_eq!(error.kind(), kind, "{error}");
    assert!(error.message().contains(path.file_name().unwrap().to_str().unwrap()), "{error}");
    assert!(error.message().contains(says), "{error}");
    assert_eq!((error.backend(), error.operation()), ("disk", "open"));
}

#[tokio::test]
async fn where_no_directory_can_be_another_one_is_asked_for() {
    assert_refused(Path::new("/proc/commonhold"), ErrorKind::InvalidConfig, "choose another directory").await;
}

#[tokio::test]
async fn a_directory_that_is_not_there_is_created_with_its_parents() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a/b/c");
    put_and_close(&path).await;
    assert_eq!(open(&path).await.unwrap().get(&key()).await.unwrap().unwrap().value, "v");
}

#[tokio::test]
async fn a_directory_of_somebody_else_is_refused_and_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("thesis.txt"), "42").unwrap();
    assert_refused(directory.path(), ErrorKind::InvalidConfig, "thesis.txt").await;
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
}

#[tokio::test]
async fn a_file_and_a_path_below_one_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("file");
    fs::write(&file, "x").unwrap();
    assert_refused(&file, ErrorKind::InvalidConfig, "another directory").await;
    assert_refused(&file.join("below"), ErrorKind::InvalidConfig, "another directory").await;
    assert_eq!(fs::read(&file).unwrap(), b"x");
}

#[tokio::test]
async fn a_place_where_nothing_may_be_created_is_refused() {
    // Root may write anywhere but here.
    assert_refused(Path::new("/sys/commonhold"), ErrorKind::Unauthorized, "right").await;
}

const CHILD: &str = "COMMONHOLD_TEST_OPEN_CHILD";

/// Not a test of its own: what other tests start as a process of its own. Opens a store, says how that went, and
/// holds it until its standard input ends.
#[test]
fn child_that_opens_a_store() {
    let Ok(path) = std::env::var(CHILD) else { return };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().unwrap();
    let opened = runtime.block_on(open(Path::new(&path)));
    match &opened {
        Ok(_) => writeln!(std::io::stdout(), "\nopened").unwrap(),
        Err(error) => writeln!(std::io::stdout(), "\nrefused: {error}").unwrap(),
    }
    std::io::stdin().lines().for_each(drop);
}

/// The test above in a process of its own, below this command if one is given.
fn child(path: &Path, below: &[&str]) -> (std::process::Child, String) {
    let this = std::env::current_exe().unwrap();
    let this = this.to_str().unwrap();
    let mut line = below.to_vec();
    line.extend([this, "child_that_opens_a_store", "--exact", "--nocapture"]);
    let mut child = Command::new(line[0])
        .args(&line[1..])
        .env(CHILD, path)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.as_mut().unwrap()).lines().map(Result::unwrap);
    let answer = lines.into_iter().find(|line| line == "opened" || line.starts_with("refused: ")).unwrap();
    (child, answer)
}

#[tokio::test]
async fn a_second_process_is_told_who_holds_the_store() {
    let directory = tempfile::tempdir().unwrap();
    put_and_close(directory.path()).await;
    let (mut holder, answer) = child(directory.path(), &[]);
    assert_eq!(answer, "opened");
    let error = open(directory.path()).await.unwrap_err();
    assert_eq!((error.kind(), error.retry()), (ErrorKind::Unavailable, Retry::Safe));
    for says in [format!("held by process {} (opening-", holder.id()), " since 20".into(), "end it".into()] {
        assert!(error.message().contains(&says), "{error}");
    }
    // Killed, it holds nothing any more, whatever it has left behind.
    holder.kill().unwrap();
    holder.wait().unwrap();
    assert_eq!(open(directory.path()).await.unwrap().get(&key()).await.unwrap().unwrap().value, "v");
}

#[tokio::test]
async fn the_same_process_is_told_that_it_has_the_store_open_already() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path()).await.unwrap();
    let name = directory.path().file_name().unwrap();
    let detour = directory.path().join("..").join(name);
    assert!(open(&detour).await.unwrap_err().message().contains("share the handle"));
    drop(store);
    open(&detour).await.unwrap();
}

#[tokio::test]
async fn a_directory_without_permission_is_refused_and_unchanged() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store");
    put_and_close(&path).await;
    for mode in [0o000, 0o500] {
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        // Permissions do not bind root; its powers over files are taken away from the child.
        let as_root: &[&str] =
            &["setpriv", "--bounding-set", "-all", "--inh-caps", "-all", "--reuid", "65534"];
        let below = if fs::read_dir(&path).is_ok() || mode == 0o500 && is_root() { as_root } else { &[] };
        let parent = directory.path();
        fs::set_permissions(parent, fs::Permissions::from_mode(0o755)).unwrap();
        let (mut child, answer) = child(&path, below);
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(answer.contains("unauthorized: ") && answer.contains("store"), "{answer}");
    }
    fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).unwrap();
    assert_eq!(open(&path).await.unwrap().get(&key()).await.unwrap().unwrap().value, "v");
}

fn is_root() -> bool {
    fs::read_to_string("/proc/self/status").unwrap().contains("\nUid:\t0\t")
}

#[tokio::test]
async fn a_creation_that_was_interrupted_is_begun_anew() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("owner"), "process 1 (x) since then").unwrap();
    put_and_close(directory.path()).await;
    let directory = tempfile::tempdir().unwrap();
    for file in ["owner", "lock"] {
        fs::write(directory.path().join(file), "").unwrap();
    }
    fs::write(directory.path().join("0.jnl"), [0; 4096]).unwrap();
    fs::create_dir(directory.path().join("keyspaces")).unwrap();
    put_and_close(directory.path()).await;
    assert_eq!(open(directory.path()).await.unwrap().get(&key()).await.unwrap().unwrap().value, "v");
}

#[tokio::test]
async fn a_creation_that_lacks_only_its_last_step_keeps_what_is_there() {
    let directory = tempfile::tempdir().unwrap();
    put_and_close(directory.path()).await;
    fs::remove_file(directory.path().join("format")).unwrap();
    assert_eq!(open(directory.path()).await.unwrap().get(&key()).await.unwrap().unwrap().value, "v");
    // But without the engine's version it is no creation that was interrupted.
    fs::remove_file(directory.path().join("format")).unwrap();
    fs::remove_file(directory.path().join("version")).unwrap();
    let error = open(directory.path()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert!(error.message().contains("version"), "{error}");
}

#[tokio::test]
async fn a_store_of_a_later_version_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    put_and_close(directory.path()).await;
    fs::write(directory.path().join("format"), "commonhold disk store, format 2\n").unwrap();
    let error = open(directory.path()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_those_who_create_a_store_at_once_one_has_it_and_the_others_learn_who() {
    for _ in 0..30 {
        let directory = tempfile::tempdir().unwrap();
        let opening: Vec<_> = (0..4)
            .map(|_| {
                let path = directory.path().to_owned();
                tokio::spawn(async move { open(&path).await })
            })
            .collect();
        let mut opened = Vec::new();
        for result in opening {
            match result.await.unwrap() {
                Ok(store) => opened.push(store),
                Err(error) => assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}"),
            }
        }
        assert_eq!(opened.len(), 1);
    }
}
