//! Writes that depend on what is there: set-if-absent, compare-and-swap, conditional deletes.

use std::time::Duration;

use commonhold_core::{Applied, Condition, Expiry, PutOptions};

use crate::subject::{Subject, equals, key};

pub(crate) async fn put_if_absent_writes_only_once(subject: Subject) {
    let k = key("k");
    assert_eq!(subject.put_if(&k, "first", Condition::Absent).await, Applied::Yes);
    assert_eq!(subject.put_if(&k, "second", Condition::Absent).await, Applied::No);
    assert_eq!(subject.value(&k).await.unwrap(), "first");
    let _ = subject.delete(&k).await;
    assert_eq!(subject.put_if(&k, "third", Condition::Absent).await, Applied::Yes);
    assert_eq!(subject.value(&k).await.unwrap(), "third");
}

pub(crate) async fn put_if_absent_succeeds_over_an_expired_entry(subject: Subject) {
    let k = key("k");
    subject.put_expired(&k, "old").await;
    assert_eq!(subject.put_if(&k, "new", Condition::Absent).await, Applied::Yes);
    let entry = subject.get(&k).await.unwrap();
    assert_eq!((&entry.value[..], entry.ttl), (&b"new"[..], None));
}

pub(crate) async fn put_if_present_writes_only_over_an_entry(subject: Subject) {
    let k = key("k");
    assert_eq!(subject.put_if(&k, "first", Condition::Present).await, Applied::No);
    assert_eq!(subject.get(&k).await, None);
    subject.put(&k, "first").await;
    assert_eq!(subject.put_if(&k, "second", Condition::Present).await, Applied::Yes);
    assert_eq!(subject.value(&k).await.unwrap(), "second");
}

pub(crate) async fn compare_and_swap_swaps_only_the_expected_value(subject: Subject) {
    let k = key("k");
    assert_eq!(subject.put_if(&k, "new", equals("old")).await, Applied::No);
    assert_eq!(subject.get(&k).await, None, "a missing entry equals nothing");
    subject.put(&k, "old").await;
    for unequal in ["", "ol", "old ", "OLD", "old\0"] {
        assert_eq!(subject.put_if(&k, "new", equals(unequal)).await, Applied::No, "{unequal:?}");
        assert_eq!(subject.value(&k).await.unwrap(), "old");
    }
    assert_eq!(subject.put_if(&k, "new", equals("old")).await, Applied::Yes);
    assert_eq!(subject.value(&k).await.unwrap(), "new");
    assert_eq!(subject.put_if(&k, "newer", equals("old")).await, Applied::No);
    assert_eq!(subject.value(&k).await.unwrap(), "new");
}

pub(crate) async fn compare_and_swap_to_the_same_value_succeeds(subject: Subject) {
    let k = key("k");
    subject.put(&k, "same").await;
    assert_eq!(subject.put_if(&k, "same", equals("same")).await, Applied::Yes);
    assert_eq!(subject.value(&k).await.unwrap(), "same");
}

pub(crate) async fn compare_and_swap_compares_long_values_to_the_last_byte(subject: Subject) {
    let k = key("k");
    let value = vec![b'v'; 100_000];
    let mut other = value.clone();
    other[99_999] = b'w';
    subject.put(&k, value.clone()).await;
    assert_eq!(subject.put_if(&k, "new", equals(other)).await, Applied::No);
    assert_eq!(subject.put_if(&k, "new", equals(value)).await, Applied::Yes);
}

pub(crate) async fn a_conditional_delete_deletes_only_the_expected_value(subject: Subject) {
    let k = key("k");
    subject.put(&k, "old").await;
    assert_eq!(subject.delete_if(&k, equals("other")).await, Applied::No);
    assert_eq!(subject.delete_if(&k, Condition::Absent).await, Applied::No);
    assert_eq!(subject.value(&k).await.unwrap(), "old");
    assert_eq!(subject.delete_if(&k, equals("old")).await, Applied::Yes);
    assert_eq!(subject.get(&k).await, None);
    subject.put(&k, "again").await;
    assert_eq!(subject.delete_if(&k, Condition::Present).await, Applied::Yes);
    assert_eq!(subject.get(&k).await, None);
    assert_eq!(subject.delete_if(&k, Condition::Present).await, Applied::No);
}

pub(crate) async fn an_unmet_condition_leaves_the_time_to_live(subject: Subject) {
    let k = key("k");
    let hour = Duration::from_secs(3600);
    subject.put_for(&k, "old", hour).await;
    for expiry in [Expiry::Never, Expiry::Keep, Expiry::After(Duration::from_secs(7200))] {
        for condition in [Condition::Absent, equals("other")] {
            let options = PutOptions { condition, expiry };
            assert_eq!(subject.put_with(&k, "new", options).await, Applied::No);
        }
    }
    assert_eq!(subject.value(&k).await.unwrap(), "old");
    subject.assert_ttl(&k, hour).await;
}

pub(crate) async fn a_condition_and_a_time_to_live_go_together(subject: Subject) {
    let k = key("k");
    let hour = Duration::from_secs(3600);
    let put = |condition| PutOptions { condition, expiry: Expiry::After(hour) };
    assert_eq!(subject.put_with(&k, "1", put(Condition::Absent)).await, Applied::Yes);
    subject.assert_ttl(&k, hour).await;
    assert_eq!(subject.put_if(&k, "2", Condition::Present).await, Applied::Yes);
    assert_eq!(subject.ttl(&k).await, None);
    assert_eq!(subject.put_with(&k, "3", put(equals("2"))).await, Applied::Yes);
    subject.assert_ttl(&k, hour).await;
}
