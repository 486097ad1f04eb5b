//! The typed surface that users hold, over the backend under test.

use std::time::Duration;

use bytes::Bytes;
use commonhold_core::{Error, ErrorKind, Expiry, Json, Key, PutOptions, Store, Text};
use futures_util::TryStreamExt as _;

use crate::subject::{Subject, key};

const HOUR: Duration = Duration::from_secs(3600);

fn store(subject: &Subject) -> Store {
    Store::from(subject.backend.clone())
}

pub(crate) async fn an_increment_counts_in_decimal_text(subject: Subject) {
    let store = store(&subject);
    assert_eq!(store.increment("n", 5).await.unwrap(), 5);
    assert_eq!(store.increment("n", -7).await.unwrap(), -2);
    assert_eq!(store.get("n").await.unwrap().unwrap(), "-2");
    store.put("n", "41").await.unwrap();
    assert_eq!(store.increment("n", 1).await.unwrap(), 42);
    assert_eq!(store.increment("n", 0).await.unwrap(), 42);
    assert_eq!(store.get_as::<i64, _>("n", Text).await.unwrap(), Some(42));
}

pub(crate) async fn an_increment_of_what_is_no_integer_is_refused_and_changes_nothing(subject: Subject) {
    let store = store(&subject);
    for text in ["", "x", "1.5", " 1", "1 ", "+1", "01", "0x1", "9223372036854775808", "1\0"] {
        store.put("n", text).await.unwrap();
        let error = store.increment("n", 1).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotInteger, "{text:?}");
        assert_eq!(store.get("n").await.unwrap().unwrap(), text);
    }
}

pub(crate) async fn an_increment_past_the_range_of_i64_is_refused_and_changes_nothing(subject: Subject) {
    let store = store(&subject);
    for (limit, delta) in
        [(i64::MAX, 1), (i64::MAX, i64::MAX), (i64::MIN, -1), (i64::MIN, i64::MIN), (-2, i64::MIN)]
    {
        store.put("n", limit.to_string()).await.unwrap();
        let error = store.increment("n", delta).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotInteger, "{limit} + {delta}");
        assert_eq!(store.get("n").await.unwrap().unwrap(), limit.to_string());
    }
    assert_eq!(store.increment("max", i64::MAX).await.unwrap(), i64::MAX);
    assert_eq!(store.increment("min", i64::MIN).await.unwrap(), i64::MIN);
    assert_eq!(store.increment("min", i64::MAX).await.unwrap(), -1);
}

pub(crate) async fn an_increment_keeps_the_time_to_live(subject: Subject) {
    let store = store(&subject);
    store.put_with_ttl("n", "1", HOUR).await.unwrap();
    assert_eq!(store.increment("n", 1).await.unwrap(), 2);
    subject.assert_ttl(&key("n"), HOUR).await;
    assert_eq!(store.increment_with_ttl("n", 1, HOUR * 2).await.unwrap(), 3);
    subject.assert_ttl(&key("n"), HOUR).await;
    assert_eq!(store.increment_with_ttl("new", 1, HOUR * 2).await.unwrap(), 1);
    subject.assert_ttl(&key("new"), HOUR * 2).await;
    assert_eq!(store.increment("for ever", 1).await.unwrap(), 1);
    assert_eq!(store.ttl("for ever").await.unwrap(), Some(None));
    assert_eq!(store.increment_with_ttl("for ever", 1, HOUR).await.unwrap(), 2);
    assert_eq!(store.ttl("for ever").await.unwrap(), Some(None));
}

pub(crate) async fn an_increment_over_an_expired_counter_begins_at_zero(subject: Subject) {
    subject.put_expired(&key("n"), "41").await;
    let store = store(&subject);
    assert_eq!(store.increment_with_ttl("n", 1, HOUR).await.unwrap(), 1);
    subject.assert_ttl(&key("n"), HOUR).await;
}

pub(crate) async fn get_and_delete_hands_over_the_value(subject: Subject) {
    let store = store(&subject);
    assert_eq!(store.get_and_delete("k").await.unwrap(), None);
    for value in [Bytes::new(), Bytes::from("v"), Bytes::from(vec![0, 0xff, 0]), Bytes::from(vec![0])] {
        store.put("k", value.clone()).await.unwrap();
        assert_eq!(store.get_and_delete("k").await.unwrap(), Some(value));
        assert!(!store.contains("k").await.unwrap());
    }
    assert_eq!(store.get_and_delete("k").await.unwrap(), None);
}

pub(crate) async fn expire_and_persist_change_the_time_to_live_alone(subject: Subject) {
    let store = store(&subject);
    assert!(!store.expire("missing", HOUR).await.unwrap());
    assert!(!store.persist("missing").await.unwrap());
    assert_eq!(store.ttl("missing").await.unwrap(), None);
    assert!(!store.contains("missing").await.unwrap());
    store.put("k", "v").await.unwrap();
    assert!(store.expire("k", HOUR).await.unwrap());
    subject.assert_ttl(&key("k"), HOUR).await;
    assert!(store.persist("k").await.unwrap());
    assert_eq!(store.ttl("k").await.unwrap(), Some(None));
    for refused in [Duration::ZERO, Duration::MAX] {
        assert_eq!(store.expire("k", refused).await.unwrap_err().kind(), ErrorKind::InvalidInput);
        let put = store.put_with_ttl("k", "w", refused).await;
        assert_eq!(put.unwrap_err().kind(), ErrorKind::InvalidInput);
    }
    assert_eq!(store.get("k").await.unwrap().unwrap(), "v");
    let ttl = subject.short_ttl();
    assert!(store.expire("k", ttl).await.unwrap());
    subject.until_expired(&key("k"), ttl).await;
    assert!(!store.contains("k").await.unwrap());
    assert!(!store.expire("k", HOUR).await.unwrap());
    assert!(!store.persist("k").await.unwrap());
}

pub(crate) async fn the_store_says_which_conditions_held(subject: Subject) {
    let store = store(&subject);
    assert!(store.set_if_not_exists("k", "1").await.unwrap());
    assert!(!store.set_if_not_exists("k", "2").await.unwrap());
    assert!(store.compare_and_swap("k", Some("1"), "3").await.unwrap());
    assert!(!store.compare_and_swap("k", Some("1"), "4").await.unwrap());
    assert!(!store.compare_and_swap("k", None::<Bytes>, "4").await.unwrap());
    assert_eq!(store.get("k").await.unwrap().unwrap(), "3");
    assert!(store.delete("k").await.unwrap());
    assert!(!store.delete("k").await.unwrap());
    assert!(store.compare_and_swap("k", None::<Bytes>, "5").await.unwrap());
    assert_eq!(store.get("k").await.unwrap().unwrap(), "5");
}

pub(crate) async fn the_store_puts_gets_and_deletes_batches(subject: Subject) {
    let store = store(&subject);
    store.batch_put([("a", "1"), ("b", "2"), ("a", "3")]).await.unwrap();
    let keys = ["b", "missing", "a"].map(key);
    let values = store.batch_get(&keys).await.unwrap();
    assert_eq!(values, [Some("2".into()), None, Some("3".into())]);
    assert_eq!(store.batch_delete(["a", "missing", "a", "b"]).await.unwrap(), 2);
    assert_eq!(store.batch_get(&keys).await.unwrap(), [None, None, None]);
}

pub(crate) async fn the_store_lists_counts_and_clears(subject: Subject) {
    let store = store(&subject);
    store.batch_put([("user:1", "a"), ("user:2", "b"), ("users", "c")]).await.unwrap();
    let mut keys: Vec<Key> = store.list_keys("user:").unwrap().try_collect().await.unwrap();
    keys.sort();
    assert_eq!(keys, [key("user:1"), key("user:2")]);
    assert_eq!(store.count("user:").await.unwrap(), 2);
    assert_eq!(store.clear("user:").await.unwrap(), 2);
    assert_eq!(store.count("").await.unwrap(), 1);
}

pub(crate) async fn the_store_carries_typed_values(subject: Subject) {
    let store = store(&subject);
    store.put_as("k", &vec![1u64, u64::MAX], Json).await.unwrap();
    assert_eq!(store.get_as::<Vec<u64>, _>("k", Json).await.unwrap(), Some(vec![1, u64::MAX]));
    assert_eq!(store.get_as::<Vec<u64>, _>("missing", Json).await.unwrap(), None);
    store.put("k", "not [json").await.unwrap();
    assert_eq!(store.get_as::<Vec<u64>, _>("k", Json).await.unwrap_err().kind(), ErrorKind::Corrupt);
}

pub(crate) async fn the_store_repeats_a_transaction_until_it_goes_through(subject: Subject) {
    let store = store(&subject);
    let tasks = (0..4).map(|_| {
        let store = store.clone();
        tokio::spawn(async move {
            for _ in 0..10 {
                let add = |transaction: commonhold_core::StoreTransaction| async move {
                    let n: i64 = transaction.get_as("n", Text).await?.unwrap_or(0);
                    transaction.put_as("n", &(n + 1), Text).await
                };
                store.transaction(add).await.unwrap();
            }
        })
    });
    futures_util::future::join_all(tasks).await.into_iter().for_each(|task| task.unwrap());
    assert_eq!(store.get("n").await.unwrap().unwrap(), "40");
    let fails = store.transaction(|transaction| async move {
        transaction.put("n", "lost").await?;
        Err::<(), _>(Error::new(ErrorKind::InvalidInput, "refused by the caller"))
    });
    assert_eq!(fails.await.unwrap_err().kind(), ErrorKind::InvalidInput);
    assert_eq!(store.get("n").await.unwrap().unwrap(), "40");
}

pub(crate) async fn the_store_puts_under_a_condition_and_keeps_the_time_to_live(subject: Subject) {
    let store = store(&subject);
    store.put_with_ttl("k", "1", HOUR).await.unwrap();
    let options = PutOptions::default().when(crate::subject::equals("1")).expiry(Expiry::Keep);
    assert!(store.put_with("k", "2", options).await.unwrap().is_yes());
    subject.assert_ttl(&key("k"), HOUR).await;
    assert_eq!(store.get_entry("k").await.unwrap().unwrap().value, "2");
}
