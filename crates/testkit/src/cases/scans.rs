//! Listing, counting and clearing by prefix.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use commonhold_core::{Applied, Entry, ErrorKind, Key, Prefix, Scan, Write};
use futures_util::{StreamExt as _, TryStreamExt as _};

use crate::subject::{Subject, key, prefix};

/// Puts an entry of these names each.
async fn put_all(subject: &Subject, names: &[impl AsRef<[u8]>]) {
    let batch = names.iter().map(|name| Write::put(key(name), name.as_ref().to_vec())).collect();
    let answers = subject.write_many(batch).await;
    assert!(answers.iter().all(|answer| answer.is_yes()));
}

fn sorted(names: &[impl AsRef<[u8]>]) -> Vec<Key> {
    let mut keys: Vec<Key> = names.iter().map(key).collect();
    keys.sort();
    keys
}

pub(crate) async fn a_prefix_is_matched_byte_for_byte(subject: Subject) {
    let all: Vec<Vec<u8>> = (0..=255u8)
        .flat_map(|byte| [vec![b'p', byte], vec![b'p', byte, b'x'], vec![b'p', b'p', byte], vec![byte, b'q']])
        .collect();
    put_all(&subject, &all).await;
    for byte in 0..=255u8 {
        for searched in [vec![byte], vec![b'p', byte], vec![b'p', b'p', byte]] {
            let mut expected: Vec<Key> =
                all.iter().filter(|name| name.starts_with(&searched)).map(key).collect();
            expected.sort();
            expected.dedup();
            let found = subject.keys(&prefix(&searched)).await;
            assert_eq!(found, expected, "prefix {:?}", prefix(&searched));
            assert_eq!(subject.count(&prefix(&searched)).await, expected.len() as u64);
        }
    }
}

pub(crate) async fn patterns_in_a_prefix_are_plain_bytes(subject: Subject) {
    let patterns = [
        "*",
        "?",
        "[a-z]",
        "[^x]",
        "\\",
        "\\*",
        "%",
        "_",
        "'",
        "\"",
        "' OR '1'='1",
        "a*",
        "a?",
        "a%",
        "a_",
        "^",
        "$",
        "{a,b}",
    ];
    let others = ["a", "ab", "abc", "x", "a b", "\n"];
    let all: Vec<&str> = patterns.iter().chain(&others).copied().collect();
    put_all(&subject, &all).await;
    for searched in patterns {
        let expected: Vec<&str> = all.iter().filter(|name| name.starts_with(searched)).copied().collect();
        assert_eq!(subject.keys(&prefix(searched)).await, sorted(&expected), "prefix {searched:?}");
        assert_eq!(subject.count(&prefix(searched)).await, expected.len() as u64, "prefix {searched:?}");
    }
}

pub(crate) async fn a_prefix_of_only_0xff_has_an_end(subject: Subject) {
    put_all(&subject, &[&[0xff][..], &[0xff, 0xff], &[0xff, 0xff, 0xff], &[0xff, 0xfe], &[0xfe, 0xff], b"a"])
        .await;
    let expected = sorted(&[&[0xff][..], &[0xff, 0xff], &[0xff, 0xff, 0xff], &[0xff, 0xfe]]);
    assert_eq!(subject.keys(&prefix([0xff])).await, expected);
    assert_eq!(subject.keys(&prefix([0xff, 0xff])).await, sorted(&[&[0xff, 0xff][..], &[0xff, 0xff, 0xff]]));
    assert_eq!(subject.count(&prefix([0xff, 0xff])).await, 2);
    assert_eq!(subject.backend.clear(&prefix([0xff, 0xff])).await.unwrap(), 2);
    assert_eq!(subject.keys(&Prefix::ALL).await, sorted(&[&[0xff][..], &[0xff, 0xfe], &[0xfe, 0xff], b"a"]));
}

pub(crate) async fn the_empty_prefix_matches_every_key(subject: Subject) {
    assert_eq!(subject.keys(&Prefix::ALL).await, Vec::<Key>::new());
    let names = [&b"a"[..], b"z", b"\0", &[0xff], b"middle"];
    put_all(&subject, &names).await;
    assert_eq!(subject.keys(&Prefix::ALL).await, sorted(&names));
    assert_eq!(subject.count(&Prefix::ALL).await, 5);
}

pub(crate) async fn a_prefix_matches_the_key_that_it_is(subject: Subject) {
    put_all(&subject, &["user", "user:1", "use", "uses"]).await;
    assert_eq!(subject.keys(&prefix("user")).await, sorted(&["user", "user:1"]));
    let longest = vec![b'x'; subject.max_key_len()];
    put_all(&subject, &[&longest]).await;
    assert_eq!(subject.keys(&prefix(&longest)).await, [key(&longest)]);
}

pub(crate) async fn a_scan_returns_values(subject: Subject) {
    subject.put(&key("a"), "1").await;
    subject.put(&key("b"), "").await;
    subject.put(&key("c"), vec![0, 0xff]).await;
    let found: BTreeMap<Key, Entry> = subject.scan(Scan::prefix(Prefix::ALL)).await.into_iter().collect();
    let entry = |value: &'static [u8]| Entry { value: value.into(), ttl: None };
    let expected = [(key("a"), entry(b"1")), (key("b"), entry(b"")), (key("c"), entry(&[0, 0xff]))];
    assert_eq!(found, BTreeMap::from(expected));
}

pub(crate) async fn a_scan_returns_the_time_left(subject: Subject) {
    subject.put_for(&key("a"), "1", Duration::from_secs(3600)).await;
    subject.put(&key("b"), "1").await;
    let found: BTreeMap<Key, Entry> = subject.scan(Scan::prefix(Prefix::ALL)).await.into_iter().collect();
    subject.assert_ttl_is(found[&key("a")].ttl.unwrap(), Duration::from_secs(3600));
    assert_eq!(found[&key("b")].ttl, None);
}

pub(crate) async fn a_scan_of_keys_leaves_the_values_out(subject: Subject) {
    put_all(&subject, &["a1", "a2", "b1"]).await;
    let mut found = subject.scan(Scan::prefix(prefix("a")).keys_only()).await;
    found.sort_by(|(a, _), (b, _)| a.cmp(b));
    assert_eq!(found.iter().map(|(key, _)| key.clone()).collect::<Vec<_>>(), sorted(&["a1", "a2"]));
    assert!(found.iter().all(|(_, entry)| entry.value.is_empty()));
}

pub(crate) async fn pages_do_not_show_in_what_a_scan_returns(subject: Subject) {
    let names: Vec<String> = (0..100).map(|i| format!("k{i}")).collect();
    put_all(&subject, &names).await;
    put_all(&subject, &["j", "l"]).await;
    for page in [1, 2, 3, 7, 50, 99, 100, 101, Scan::MAX_PAGE] {
        let mut scan = Scan::prefix(prefix("k"));
        scan.page = page;
        let mut found: Vec<Key> = subject.scan(scan).await.into_iter().map(|(key, _)| key).collect();
        found.sort();
        assert_eq!(found, sorted(&names), "pages of {page}");
    }
}

pub(crate) async fn a_page_out_of_range_is_refused(subject: Subject) {
    put_all(&subject, &["a"]).await;
    for page in [0, Scan::MAX_PAGE + 1, usize::MAX] {
        let mut scan = Scan::prefix(Prefix::ALL);
        scan.page = page;
        let answer: Result<Vec<_>, _> = subject.backend.scan(scan).try_collect().await;
        assert_eq!(answer.unwrap_err().kind(), ErrorKind::InvalidInput, "pages of {page}");
    }
}

pub(crate) async fn a_scan_can_be_dropped_midway(subject: Subject) {
    let names: Vec<String> = (0..50).map(|i| format!("k{i}")).collect();
    put_all(&subject, &names).await;
    for taken in [0, 1, 5, 49] {
        let mut scan = Scan::prefix(Prefix::ALL);
        scan.page = 4;
        let some: Vec<_> = subject.backend.scan(scan).take(taken).try_collect().await.unwrap();
        assert_eq!(some.len(), taken);
        subject.put(&key("k0"), "again").await;
    }
    assert_eq!(subject.backend.clear(&Prefix::ALL).await.unwrap(), 50);
}

pub(crate) async fn a_scan_does_not_hinder_writes_between_its_pages(subject: Subject) {
    let names: Vec<String> = (0..30).map(|i| format!("k{i:02}")).collect();
    put_all(&subject, &names).await;
    let mut scan = Scan::prefix(prefix("k"));
    scan.page = 3;
    let mut entries = subject.backend.scan(scan);
    let mut seen = Vec::new();
    while let Some((k, _)) = entries.try_next().await.unwrap() {
        // Those that stay are overwritten; others come and go before, behind and around the scan.
        if !k.as_bytes().ends_with(b"+") {
            let other = key([k.as_bytes(), b"+"].concat());
            subject.put(&k, "overwritten").await;
            subject.put(&other, "new").await;
            if seen.len() % 2 == 0 {
                assert_eq!(subject.delete(&other).await, Applied::Yes);
            }
        }
        seen.push(k);
    }
    let distinct: BTreeSet<&Key> = seen.iter().collect();
    assert_eq!(distinct.len(), seen.len(), "a key came twice");
    seen.retain(|k| !k.as_bytes().ends_with(b"+"));
    seen.sort();
    assert_eq!(seen, sorted(&names), "each key that was there all the while comes exactly once");
}

pub(crate) async fn an_ordered_scan_returns_keys_in_bytewise_order(subject: Subject) {
    let mut names: Vec<Vec<u8>> =
        (0..=255u8).flat_map(|byte| [vec![byte], vec![b'm', byte], vec![byte, 0]]).collect();
    names.reverse();
    put_all(&subject, &names).await;
    let mut expected = sorted(&names);
    expected.dedup();
    for page in [1, 10, 512] {
        let mut scan = Scan::prefix(Prefix::ALL);
        scan.page = page;
        let found: Vec<Key> = subject.scan(scan).await.into_iter().map(|(key, _)| key).collect();
        assert_eq!(found, expected, "pages of {page}");
    }
}

pub(crate) async fn an_ordered_scan_begins_after_a_key(subject: Subject) {
    let names = ["a", "b", "b1", "b1\0", "b2", "b3", "b\u{7f}", "c"];
    put_all(&subject, &names).await;
    let long = "b".repeat(subject.max_key_len());
    let afters =
        ["a", "b", "b0", "b1", "b1\0", "b1\0\0", "b2", "b3", "b\u{7f}", "b\u{7f}x", "c", "z", &*long];
    for after in afters {
        for searched in ["b", "", "b1", "zz"] {
            let expected: Vec<Key> = sorted(&names)
                .into_iter()
                .filter(|k| k.starts_with(&prefix(searched)) && *k > key(after))
                .collect();
            for page in [1, 2, 512] {
                let mut scan = Scan::prefix(prefix(searched)).after(key(after));
                scan.page = page;
                let found: Vec<Key> = subject.scan(scan).await.into_iter().map(|(key, _)| key).collect();
                assert_eq!(found, expected, "after {after:?} under {searched:?}, pages of {page}");
            }
        }
    }
}

pub(crate) async fn a_snapshot_scan_sees_the_moment_of_its_first_poll(subject: Subject) {
    let names: Vec<String> = (0..1_000).map(|i| format!("k{i:03}")).collect();
    put_all(&subject, &names).await;
    let mut scan = Scan::prefix(prefix("k"));
    scan.page = 3;
    let mut entries = subject.backend.scan(scan);
    subject.put(&key("k999+"), "k999+").await;
    let mut found = vec![entries.try_next().await.unwrap().unwrap()];
    subject.write_many(names.iter().map(|name| Write::put(key(name), "overwritten")).collect()).await;
    assert_eq!(subject.delete(&key("k500")).await, Applied::Yes);
    assert_eq!(subject.delete(&key("k999")).await, Applied::Yes);
    subject.put(&key("k500+"), "new").await;
    subject.put(&key("k999++"), "new").await;
    found.extend(entries.try_collect::<Vec<_>>().await.unwrap());
    found.sort_by(|(a, _), (b, _)| a.cmp(b));
    let there = names.into_iter().chain(["k999+".to_owned()]);
    let entry = |name: String| (key(&name), Entry { value: name.into(), ttl: None });
    let expected: Vec<(Key, Entry)> = there.map(entry).collect();
    assert!(found == expected, "not the state of one moment: {found:?}");
}

pub(crate) async fn count_counts_the_entries_under_a_prefix(subject: Subject) {
    assert_eq!(subject.count(&Prefix::ALL).await, 0);
    let names: Vec<String> = (0..2_000).map(|i| format!("k{i}")).collect();
    put_all(&subject, &names).await;
    put_all(&subject, &["j", "l"]).await;
    assert_eq!(subject.count(&prefix("k")).await, 2_000);
    assert_eq!(subject.count(&prefix("k19")).await, 111);
    assert_eq!(subject.count(&Prefix::ALL).await, 2_002);
    assert_eq!(subject.count(&prefix("none")).await, 0);
    let _ = subject.delete(&key("k0")).await;
    subject.put(&key("k1"), "again").await;
    assert_eq!(subject.count(&prefix("k")).await, 1_999);
}

pub(crate) async fn clear_deletes_what_is_under_the_prefix_and_says_how_much(subject: Subject) {
    assert_eq!(subject.backend.clear(&Prefix::ALL).await.unwrap(), 0);
    let names: Vec<String> = (0..1_500).map(|i| format!("a*{i}")).collect();
    put_all(&subject, &names).await;
    put_all(&subject, &["a", "ab", "a+", "b*1"]).await;
    assert_eq!(subject.backend.clear(&prefix("a*")).await.unwrap(), 1_500);
    assert_eq!(subject.backend.clear(&prefix("a*")).await.unwrap(), 0);
    assert_eq!(subject.keys(&Prefix::ALL).await, sorted(&["a", "ab", "a+", "b*1"]));
    assert_eq!(subject.value(&key("a*7")).await, None);
    assert_eq!(subject.backend.clear(&Prefix::ALL).await.unwrap(), 4);
    assert_eq!(subject.count(&Prefix::ALL).await, 0);
    subject.put(&key("a*7"), "usable").await;
    assert_eq!(subject.keys(&prefix("a*")).await, [key("a*7")]);
}
