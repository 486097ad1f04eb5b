//! Transactions over several keys.

use std::time::{Duration, Instant};

use bytes::Bytes;
use commonhold_core::{
    Applied, Condition, ErrorKind, Expiry, Key, Prefix, PutOptions, Result, Scan, Transaction,
};

use crate::subject::{Subject, add_one, equals, for_, key};

const HOUR: Duration = Duration::from_secs(3600);

async fn begin(subject: &Subject) -> Box<dyn Transaction> {
    subject.backend.begin().await.unwrap()
}

async fn put(transaction: &mut Box<dyn Transaction>, k: &Key, value: &'static str) {
    let applied = transaction.put(k, value.into(), PutOptions::default()).await.unwrap();
    assert_eq!(applied, Applied::Yes);
}

async fn value(transaction: &mut Box<dyn Transaction>, k: &Key) -> Option<Bytes> {
    transaction.get(k).await.unwrap().map(|entry| entry.value)
}

fn conflicts(outcome: Result<()>) {
    assert_eq!(outcome.unwrap_err().kind(), ErrorKind::Conflict);
}

pub(crate) async fn a_transaction_sees_its_own_writes(subject: Subject) {
    let [a, b, c] = ["a", "b", "c"].map(key);
    subject.put(&a, "1").await;
    subject.put(&b, "1").await;
    let mut transaction = begin(&subject).await;
    assert_eq!(value(&mut transaction, &a).await.unwrap(), "1");
    put(&mut transaction, &a, "2").await;
    assert_eq!(value(&mut transaction, &a).await.unwrap(), "2");
    assert_eq!(transaction.delete(&b, Condition::Always).await.unwrap(), Applied::Yes);
    assert_eq!(value(&mut transaction, &b).await, None);
    assert_eq!(transaction.delete(&b, Condition::Always).await.unwrap(), Applied::No);
    put(&mut transaction, &c, "").await;
    assert_eq!(value(&mut transaction, &c).await.unwrap(), "");
    put(&mut transaction, &b, "3").await;
    assert_eq!(value(&mut transaction, &b).await.unwrap(), "3");
    transaction.commit().await.unwrap();
    assert_eq!(subject.values(&[a, b, c]).await, [Some("2".into()), Some("3".into()), Some("".into())]);
}

pub(crate) async fn nobody_sees_a_transaction_before_it_commits(subject: Subject) {
    let [a, b, c] = ["a", "b", "c"].map(key);
    subject.put(&a, "1").await;
    subject.put(&b, "1").await;
    let mut transaction = begin(&subject).await;
    put(&mut transaction, &a, "2").await;
    let _ = transaction.delete(&b, Condition::Always).await.unwrap();
    put(&mut transaction, &c, "2").await;
    let keys = [a, b, c];
    assert_eq!(subject.values(&keys).await, [Some("1".into()), Some("1".into()), None]);
    let mut other = begin(&subject).await;
    assert_eq!(value(&mut other, &keys[0]).await.unwrap(), "1");
    other.rollback().await.unwrap();
    transaction.commit().await.unwrap();
    assert_eq!(subject.values(&keys).await, [Some("2".into()), None, Some("2".into())]);
}

pub(crate) async fn a_scan_sees_a_transaction_only_after_it_commits(subject: Subject) {
    subject.put(&key("a"), "1").await;
    let mut transaction = begin(&subject).await;
    put(&mut transaction, &key("b"), "2").await;
    let _ = transaction.delete(&key("a"), Condition::Always).await.unwrap();
    assert_eq!(subject.keys(&Prefix::ALL).await, [key("a")]);
    assert_eq!(subject.count(&Prefix::ALL).await, 1);
    transaction.commit().await.unwrap();
    let found = subject.scan(Scan::prefix(Prefix::ALL)).await;
    assert_eq!(
        found.into_iter().map(|(k, entry)| (k, entry.value)).collect::<Vec<_>>(),
        [(key("b"), "2".into())]
    );
}

pub(crate) async fn a_change_to_what_was_read_is_a_conflict(subject: Subject) {
    let (read, written) = (key("read"), key("written"));
    for way in 0..4 {
        subject.put(&read, "1").await;
        let mut transaction = begin(&subject).await;
        assert_eq!(value(&mut transaction, &read).await.unwrap(), "1");
        put(&mut transaction, &written, "2").await;
        match way {
            0 => subject.put(&read, "2").await,
            1 => assert_eq!(subject.delete(&read).await, Applied::Yes),
            2 => assert_eq!(subject.backend.transact(&read, add_one()).await.unwrap(), "2"),
            _ => {
                let mut other = begin(&subject).await;
                put(&mut other, &read, "2").await;
                other.commit().await.unwrap();
            }
        }
        conflicts(transaction.commit().await);
        assert_eq!(subject.get(&written).await, None, "way {way}: nothing of the transaction is written");
    }
}

pub(crate) async fn a_missing_key_that_appears_is_a_conflict(subject: Subject) {
    let mut transaction = begin(&subject).await;
    assert_eq!(value(&mut transaction, &key("read")).await, None);
    put(&mut transaction, &key("written"), "2").await;
    subject.put(&key("read"), "").await;
    conflicts(transaction.commit().await);
    assert_eq!(subject.get(&key("written")).await, None);
}

pub(crate) async fn a_condition_and_a_delete_read_too(subject: Subject) {
    let (a, b) = (key("a"), key("b"));
    for way in 0..4 {
        subject.put(&a, "1").await;
        let _ = subject.delete(&b).await;
        let mut transaction = begin(&subject).await;
        let when = |condition| PutOptions::default().when(condition);
        let _ = match way {
            0 => transaction.put(&b, "2".into(), when(Condition::Absent)).await,
            1 => transaction.put(&a, "2".into(), when(equals("1"))).await,
            2 => transaction.delete(&a, equals("1")).await,
            _ => transaction.put(&a, "2".into(), when(equals("other"))).await,
        }
        .unwrap();
        put(&mut transaction, &key("c"), "2").await;
        subject.put(&a, "other").await;
        subject.put(&b, "other").await;
        conflicts(transaction.commit().await);
        let values = subject.values(&[a.clone(), b.clone(), key("c")]).await;
        assert_eq!(values, [Some("other".into()), Some("other".into()), None], "way {way}");
    }
}

pub(crate) async fn blind_writes_do_not_conflict(subject: Subject) {
    let k = key("k");
    let mut first = begin(&subject).await;
    let mut second = begin(&subject).await;
    put(&mut first, &k, "first").await;
    put(&mut second, &k, "second").await;
    second.commit().await.unwrap();
    subject.put(&k, "third").await;
    first.commit().await.unwrap();
    assert_eq!(subject.value(&k).await.unwrap(), "first");
}

pub(crate) async fn transactions_on_different_keys_do_not_conflict(subject: Subject) {
    let mut first = begin(&subject).await;
    let mut second = begin(&subject).await;
    for (transaction, k) in [(&mut first, key("a")), (&mut second, key("b"))] {
        assert_eq!(value(transaction, &k).await, None);
        put(transaction, &k, "v").await;
    }
    first.commit().await.unwrap();
    subject.put(&key("c"), "unrelated").await;
    second.commit().await.unwrap();
    assert_eq!(subject.values(&[key("a"), key("b")]).await, [Some("v".into()), Some("v".into())]);
}

/// Two doctors on call, each of whom leaves if the other stays: the anomaly that snapshots alone allow.
pub(crate) async fn write_skew_is_prevented(subject: Subject) {
    let (a, b) = (key("a"), key("b"));
    subject.put(&a, "on call").await;
    subject.put(&b, "on call").await;
    let mut first = begin(&subject).await;
    let mut second = begin(&subject).await;
    for transaction in [&mut first, &mut second] {
        assert_eq!(value(transaction, &a).await.unwrap(), "on call");
        assert_eq!(value(transaction, &b).await.unwrap(), "on call");
    }
    put(&mut first, &a, "away").await;
    put(&mut second, &b, "away").await;
    first.commit().await.unwrap();
    conflicts(second.commit().await);
    assert_eq!(subject.values(&[a, b]).await, [Some("away".into()), Some("on call".into())]);
}

pub(crate) async fn an_update_is_not_lost(subject: Subject) {
    let k = key("k");
    subject.put(&k, "0").await;
    let mut first = begin(&subject).await;
    let mut second = begin(&subject).await;
    for transaction in [&mut first, &mut second] {
        assert_eq!(value(transaction, &k).await.unwrap(), "0");
        put(transaction, &k, "1").await;
    }
    first.commit().await.unwrap();
    conflicts(second.commit().await);
}

pub(crate) async fn a_rollback_leaves_nothing(subject: Subject) {
    subject.put(&key("k"), "old").await;
    let mut transaction = begin(&subject).await;
    put(&mut transaction, &key("k"), "new").await;
    put(&mut transaction, &key("other"), "new").await;
    transaction.rollback().await.unwrap();
    assert_eq!(subject.values(&[key("k"), key("other")]).await, [Some("old".into()), None]);
}

pub(crate) async fn a_dropped_transaction_leaves_nothing_and_holds_nothing(subject: Subject) {
    subject.put(&key("k"), "old").await;
    let mut transaction = begin(&subject).await;
    assert_eq!(value(&mut transaction, &key("k")).await.unwrap(), "old");
    put(&mut transaction, &key("k"), "new").await;
    drop(transaction);
    assert_eq!(subject.value(&key("k")).await.unwrap(), "old");
    subject.put(&key("k"), "newer").await;
    let mut transaction = begin(&subject).await;
    assert_eq!(value(&mut transaction, &key("k")).await.unwrap(), "newer");
    put(&mut transaction, &key("k"), "newest").await;
    transaction.commit().await.unwrap();
    assert_eq!(subject.value(&key("k")).await.unwrap(), "newest");
}

pub(crate) async fn a_transaction_that_only_reads_or_does_nothing_commits(subject: Subject) {
    subject.put(&key("k"), "v").await;
    let mut reads = begin(&subject).await;
    assert_eq!(value(&mut reads, &key("k")).await.unwrap(), "v");
    assert_eq!(value(&mut reads, &key("missing")).await, None);
    reads.commit().await.unwrap();
    begin(&subject).await.commit().await.unwrap();
    begin(&subject).await.rollback().await.unwrap();
    assert_eq!(subject.value(&key("k")).await.unwrap(), "v");
}

pub(crate) async fn an_unmet_condition_in_a_transaction_answers_no_and_lets_it_go_on(subject: Subject) {
    let (a, b) = (key("a"), key("b"));
    subject.put(&a, "1").await;
    let mut transaction = begin(&subject).await;
    let when = |condition| PutOptions::default().when(condition);
    assert_eq!(transaction.put(&a, "2".into(), when(Condition::Absent)).await.unwrap(), Applied::No);
    assert_eq!(transaction.put(&b, "2".into(), when(Condition::Present)).await.unwrap(), Applied::No);
    assert_eq!(transaction.put(&b, "2".into(), when(equals(""))).await.unwrap(), Applied::No);
    assert_eq!(transaction.delete(&a, equals("2")).await.unwrap(), Applied::No);
    assert_eq!(transaction.delete(&b, Condition::Always).await.unwrap(), Applied::No);
    assert_eq!(transaction.put(&a, "3".into(), when(equals("1"))).await.unwrap(), Applied::Yes);
    assert_eq!(transaction.put(&a, "4".into(), when(equals("3"))).await.unwrap(), Applied::Yes);
    assert_eq!(transaction.put(&b, "1".into(), when(Condition::Absent)).await.unwrap(), Applied::Yes);
    assert_eq!(transaction.delete(&b, equals("1")).await.unwrap(), Applied::Yes);
    transaction.commit().await.unwrap();
    assert_eq!(subject.values(&[a, b]).await, [Some("4".into()), None]);
}

pub(crate) async fn an_invalid_write_in_a_transaction_is_refused_and_the_rest_commits(subject: Subject) {
    let k = key("k");
    let mut transaction = begin(&subject).await;
    put(&mut transaction, &k, "1").await;
    let long = usize::try_from(subject.backend.capabilities().max_value_bytes).unwrap() + 1;
    let long = transaction.put(&k, vec![b'v'; long].into(), PutOptions::default()).await;
    assert_eq!(long.unwrap_err().kind(), ErrorKind::TooLarge);
    assert_eq!(value(&mut transaction, &k).await.unwrap(), "1");
    transaction.commit().await.unwrap();
    assert_eq!(subject.value(&k).await.unwrap(), "1");
}

pub(crate) async fn a_transaction_sets_keeps_and_removes_times_to_live(subject: Subject) {
    let [a, b, c] = ["a", "b", "c"].map(key);
    subject.put_for(&b, "1", HOUR).await;
    subject.put_for(&c, "1", HOUR).await;
    let mut transaction = begin(&subject).await;
    let keep = PutOptions::default().expiry(Expiry::Keep);
    assert!(transaction.put(&a, "2".into(), for_(HOUR * 2)).await.unwrap().is_yes());
    assert!(transaction.put(&a, "3".into(), keep.clone()).await.unwrap().is_yes());
    assert!(transaction.put(&b, "2".into(), keep).await.unwrap().is_yes());
    put(&mut transaction, &c, "2").await;
    let refused = transaction.put(&a, "4".into(), for_(Duration::ZERO)).await;
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::InvalidInput);
    subject.assert_ttl_is(transaction.get(&a).await.unwrap().unwrap().ttl.unwrap(), HOUR * 2);
    transaction.commit().await.unwrap();
    assert_eq!(subject.value(&a).await.unwrap(), "3");
    subject.assert_ttl(&a, HOUR * 2).await;
    subject.assert_ttl(&b, HOUR).await;
    assert_eq!(subject.ttl(&c).await, None);
}

pub(crate) async fn a_transaction_does_not_see_expired_entries(subject: Subject) {
    let k = key("k");
    subject.put_expired(&k, "old").await;
    let mut transaction = begin(&subject).await;
    assert_eq!(value(&mut transaction, &k).await, None);
    assert_eq!(transaction.delete(&k, Condition::Always).await.unwrap(), Applied::No);
    let absent = PutOptions::default().when(Condition::Absent);
    assert_eq!(transaction.put(&k, "new".into(), absent).await.unwrap(), Applied::Yes);
    transaction.commit().await.unwrap();
    assert_eq!(subject.value(&k).await.unwrap(), "new");
}

pub(crate) async fn an_entry_that_expires_during_a_transaction_is_gone_in_it_too(subject: Subject) {
    let (k, mut ttl) = (key("k"), subject.short_ttl());
    // It has to be seen before it expires, however busy the machine is.
    let mut transaction = loop {
        let started = Instant::now();
        subject.put_for(&k, "old", ttl).await;
        let mut transaction = begin(&subject).await;
        match value(&mut transaction, &k).await {
            Some(seen) => {
                assert_eq!(seen, "old");
                break transaction;
            }
            None => assert!(started.elapsed() >= ttl, "expired early"),
        }
        transaction.rollback().await.unwrap();
        ttl *= 2;
    };
    assert!(transaction.put(&key("own"), "new".into(), for_(ttl)).await.unwrap().is_yes());
    subject.put_for(&key("later"), "x", ttl).await;
    subject.until_expired(&key("later"), ttl).await;
    assert_eq!(value(&mut transaction, &k).await, None);
    assert_eq!(value(&mut transaction, &key("own")).await, None);
    transaction.rollback().await.unwrap();
}

pub(crate) async fn a_transaction_over_a_thousand_keys_commits_as_a_whole(subject: Subject) {
    let keys: Vec<Key> = (0..1_000).map(|i| key(format!("k{i}"))).collect();
    for round in ["1", "2"] {
        let mut transaction = begin(&subject).await;
        for k in &keys {
            assert_eq!(value(&mut transaction, k).await, (round == "2").then(|| "1".into()));
            put(&mut transaction, k, round).await;
        }
        transaction.commit().await.unwrap();
    }
    assert!(subject.values(&keys).await.iter().all(|value| value.as_deref() == Some(b"2")));
    let mut late = begin(&subject).await;
    for k in &keys {
        assert_eq!(value(&mut late, k).await.unwrap(), "2");
        put(&mut late, k, "3").await;
    }
    subject.put(&keys[999], "changed").await;
    conflicts(late.commit().await);
    assert!(subject.values(&keys[..999]).await.iter().all(|value| value.as_deref() == Some(b"2")));
}
