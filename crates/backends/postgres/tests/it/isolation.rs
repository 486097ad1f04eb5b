//! Transactions at the server's own isolation levels.

use std::time::Duration;

use crate::common::Table;
use commonhold_core::{
    Applied, Condition, ErrorKind, Expiry, Key, PutOptions, Result, StateBackend, Store, Text, Transaction,
};
use commonhold_postgres::{Isolation, PostgresBackend};

fn key(name: &str) -> Key {
    Key::new(name).unwrap()
}

async fn open(table: &Table, isolation: Isolation) -> PostgresBackend {
    PostgresBackend::open(table.config().isolation(Some(isolation)).pool(4)).await.unwrap()
}

async fn value(transaction: &mut Box<dyn Transaction>, name: &str) -> Option<String> {
    let entry = transaction.get(&key(name)).await.unwrap();
    entry.map(|entry| String::from_utf8(entry.value.to_vec()).unwrap())
}

async fn put(transaction: &mut Box<dyn Transaction>, name: &str, value: &'static str) -> Result<Applied> {
    transaction.put(&key(name), value.into(), PutOptions::default()).await
}

#[tokio::test]
async fn each_level_shows_what_it_says() {
    for (isolation, second_look) in
        [(Isolation::ReadCommitted, "2"), (Isolation::RepeatableRead, "1"), (Isolation::Serializable, "1")]
    {
        let table = Table::new();
        let backend = open(&table, isolation).await;
        let store = Store::new(PostgresBackend::open(table.config()).await.unwrap());
        store.put("k", "1").await.unwrap();
        let mut transaction = backend.begin().await.unwrap();
        assert_eq!(value(&mut transaction, "k").await.unwrap(), "1");
        store.put("k", "2").await.unwrap();
        assert_eq!(value(&mut transaction, "k").await.unwrap(), second_look, "{isolation}");
        transaction.commit().await.unwrap();
    }
}

#[tokio::test]
async fn conditions_deletes_and_times_to_live_work_within() {
    let table = Table::new();
    let backend = open(&table, Isolation::Serializable).await;
    let mut transaction = backend.begin().await.unwrap();
    let when = |condition| PutOptions::default().when(condition);
    let hour = PutOptions::default().expiry(Expiry::After(Duration::from_secs(3600)));
    assert!(transaction.put(&key("a"), "1".into(), hour).await.unwrap().is_yes());
    assert!(!transaction.put(&key("a"), "2".into(), when(Condition::Absent)).await.unwrap().is_yes());
    assert!(!transaction.put(&key("b"), "2".into(), when(Condition::Present)).await.unwrap().is_yes());
    let swap = when(Condition::Equals("1".into())).expiry(Expiry::Keep);
    assert!(transaction.put(&key("a"), "3".into(), swap).await.unwrap().is_yes());
    assert!(!transaction.delete(&key("a"), Condition::Equals("1".into())).await.unwrap().is_yes());
    assert!(!transaction.delete(&key("a"), Condition::Absent).await.unwrap().is_yes());
    let zero = PutOptions::default().expiry(Expiry::After(Duration::ZERO));
    let refused = transaction.put(&key("a"), "4".into(), zero).await;
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::InvalidInput);
    let entry = transaction.get(&key("a")).await.unwrap().unwrap();
    assert!(entry.value == "3" && entry.ttl.unwrap() > Duration::from_secs(3000));
    transaction.commit().await.unwrap();
    assert_eq!(backend.get(&key("a")).await.unwrap().unwrap().value, "3");
}

#[tokio::test]
async fn write_skew_is_a_conflict_where_it_is_serializable() {
    let table = Table::new();
    let backend = open(&table, Isolation::Serializable).await;
    let mut first = backend.begin().await.unwrap();
    let mut second = backend.begin().await.unwrap();
    for transaction in [&mut first, &mut second] {
        assert_eq!(value(transaction, "a").await, None);
        assert_eq!(value(transaction, "b").await, None);
    }
    let _ = put(&mut first, "a", "1").await.unwrap();
    let _ = put(&mut second, "b", "1").await.unwrap();
    first.commit().await.unwrap();
    let error = second.commit().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict);
    assert_eq!(backend.get(&key("b")).await.unwrap(), None);
}

#[tokio::test]
async fn after_an_error_within_nothing_commits() {
    let table = Table::new();
    let backend = open(&table, Isolation::RepeatableRead).await;
    let _ = backend.put(&key("k"), "1".into(), PutOptions::default()).await.unwrap();
    let mut transaction = backend.begin().await.unwrap();
    assert_eq!(value(&mut transaction, "k").await.unwrap(), "1");
    let _ = put(&mut transaction, "other", "1").await.unwrap();
    let _ = backend.put(&key("k"), "2".into(), PutOptions::default()).await.unwrap();
    assert_eq!(put(&mut transaction, "k", "3").await.unwrap_err().kind(), ErrorKind::Conflict);
    assert_eq!(transaction.commit().await.unwrap_err().kind(), ErrorKind::Conflict);
    assert_eq!(backend.get(&key("other")).await.unwrap(), None);
}

#[tokio::test]
async fn serialization_failures_are_tried_again_by_the_store() {
    let table = Table::new();
    let store = Store::new(open(&table, Isolation::Serializable).await);
    let tasks = (0..4).map(|_| {
        let store = store.clone();
        tokio::spawn(async move {
            for _ in 0..5 {
                let add = store.transaction(|tx| async move {
                    let n: i64 = tx.get_as("n", Text).await?.unwrap_or(0);
                    tx.put("n", (n + 1).to_string()).await
                });
                add.await.unwrap();
            }
        })
    });
    for task in tasks.collect::<Vec<_>>() {
        task.await.unwrap();
    }
    assert_eq!(store.get("n").await.unwrap().unwrap(), "20");
}

#[tokio::test]
async fn a_dropped_transaction_lets_go_of_its_locks_and_its_connection() {
    let table = Table::new();
    let config = table.config().isolation(Some(Isolation::Serializable)).pool(1);
    let backend = PostgresBackend::open(config).await.unwrap();
    for round in 0..10 {
        let mut transaction = backend.begin().await.unwrap();
        let _ = put(&mut transaction, "k", "never").await.unwrap();
        if round % 2 == 0 {
            drop(transaction);
        } else {
            transaction.rollback().await.unwrap();
        }
    }
    let _ = backend.put(&key("k"), "1".into(), PutOptions::default()).await.unwrap();
    assert_eq!(backend.count(&commonhold_core::Prefix::ALL).await.unwrap(), 1);
}
