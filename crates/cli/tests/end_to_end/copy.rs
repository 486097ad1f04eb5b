//! `copy`, whole and in pieces.

use std::{collections::BTreeMap, time::Duration};

use commonhold::{Expiry, Key, Prefix, PutOptions, Scan, Store, Write};
use futures_util::TryStreamExt as _;

use crate::sandbox::Sandbox;

const HOUR: Duration = Duration::from_secs(3600);

/// Every other entry with a time to live.
async fn fill(sandbox: &Sandbox, entries: u32) {
    let put = |i: u32| Write::Put {
        key: Key::new([b"k\0".as_slice(), &i.to_be_bytes()].concat()).unwrap(),
        value: [&i.to_le_bytes()[..], &[0xff; 100]].concat().into(),
        options: PutOptions::default().expiry(Expiry::from(i.is_multiple_of(2).then_some(HOUR))),
    };
    let fill = async |store: Store| {
        for first in (0..entries).step_by(5_000) {
            store.write_batch((first..entries.min(first + 5_000)).map(put).collect()).await.unwrap();
        }
    };
    sandbox.with_store("from", fill).await;
}

async fn contents(sandbox: &Sandbox, name: &str) -> BTreeMap<Vec<u8>, (Vec<u8>, bool)> {
    let entry = |(key, entry): (Key, commonhold::Entry)| {
        assert!(entry.ttl.is_none_or(|ttl| ttl <= HOUR));
        (key.as_bytes().to_vec(), (entry.value.to_vec(), entry.ttl.is_some()))
    };
    let read =
        async |store: Store| store.scan(Scan::prefix(Prefix::ALL)).map_ok(entry).try_collect().await.unwrap();
    sandbox.with_store(name, read).await
}

async fn assert_same(sandbox: &Sandbox, entries: usize) {
    let (from, to) = (contents(sandbox, "from").await, contents(sandbox, "to").await);
    assert_eq!(from.len(), entries);
    assert!(from == to);
}

#[tokio::test]
async fn a_copy_has_every_entry_with_its_time_to_live() {
    let sandbox = Sandbox::new();
    fill(&sandbox, 10_000).await;
    let report = &sandbox.json(&["copy", "disk:from", "disk:to"])[0];
    assert_eq!((report["copied"].as_u64(), report["verified"].as_u64()), (Some(10_000), Some(10_000)));
    assert_same(&sandbox, 10_000).await;
    let shown = sandbox.ok(&["copy", "disk:from", "disk:to"]);
    assert!(shown.contains("copied 10,000 entries") && shown.contains("the same on both sides"), "{shown}");
}

#[tokio::test]
async fn a_copy_killed_at_any_moment_goes_on_where_it_was() {
    let sandbox = Sandbox::new();
    fill(&sandbox, 50_000).await;
    let args = ["copy", "disk:from", "disk:to"];
    let mut resumed = 0;
    for _ in 0..4 {
        let mut copy = sandbox.start(args);
        copy.wait_for_growth(&sandbox.path("to"), fastrand::u64(1..2 * 1024 * 1024));
        resumed += u32::from(copy.kill().stderr.contains("going on behind"));
    }
    let last = sandbox.run(args);
    assert_eq!(last.code, Some(0), "{last:?}");
    assert!(resumed > 0 || last.stderr.contains("going on behind"), "no copy was killed in the middle");
    assert_same(&sandbox, 50_000).await;
}

#[tokio::test]
async fn ctrl_c_stops_a_copy_cleanly_and_says_how_to_go_on() {
    let sandbox = Sandbox::new();
    fill(&sandbox, 50_000).await;
    let mut copy = sandbox.start(["copy", "disk:from", "disk:to"]);
    copy.wait_for_growth(&sandbox.path("to"), 1024 * 1024);
    copy.interrupt();
    let outcome = copy.end();
    assert_eq!(outcome.code, Some(130), "{outcome:?}");
    assert!(outcome.stderr.contains("the same command goes on"), "{outcome:?}");
    let outcome = sandbox.run(["copy", "disk:from", "disk:to"]);
    assert!(outcome.code == Some(0) && outcome.stderr.contains("going on behind"), "{outcome:?}");
    assert_same(&sandbox, 50_000).await;
}

#[test]
fn a_copy_of_a_prefix_leaves_the_rest_and_begins_anew_when_told() {
    let sandbox = Sandbox::new();
    for key in ["a1", "a2", "b1"] {
        sandbox.ok(&["--store", "disk:from", "put", key, key]);
    }
    let shown = sandbox.ok(&["copy", "disk:from", "disk:to", "--prefix", "a", "--restart"]);
    assert!(shown.contains("verified 2 entries"), "{shown}");
    assert_eq!(sandbox.ok(&["--store", "disk:to", "list"]), "a1\na2\n");
}

#[test]
fn a_store_that_is_not_there_is_not_copied_nor_made() {
    let sandbox = Sandbox::new();
    let outcome = sandbox.run(["copy", "disk:mistyped", "disk:to"]);
    assert!(outcome.code == Some(2) && outcome.stderr.contains("mistyped"), "{outcome:?}");
    assert!(!sandbox.path("mistyped").exists() && !sandbox.path("to").exists());
}

#[test]
fn a_store_is_not_copied_onto_itself() {
    let sandbox = Sandbox::new();
    sandbox.ok(&["--store", "disk:from", "put", "k", "v"]);
    for to in ["disk:from", "disk:./from?durability=buffered", "DISK:../x/../from"] {
        let to = to.replace("../x/..", &sandbox.path(".").display().to_string());
        let outcome = sandbox.run(["copy", "disk:from", &to]);
        assert!(outcome.code == Some(2) && outcome.stderr.contains("same store"), "{to}: {outcome:?}");
    }
}
