//! Many tasks at once: nothing is lost, doubled or seen half.

use std::{collections::BTreeSet, sync::Arc};

use bytes::Bytes;
use commonhold_core::{
    Applied, Condition, ErrorKind, Key, Prefix, PutOptions, Result, Scan, StateBackend, Step, Transaction,
    Write,
};
use futures_util::{TryStreamExt as _, future::join_all};
use tokio::sync::Barrier;

use crate::subject::{Subject, add_one, equals, key, number, prefix, transition};

const TASKS: usize = 8;
const ROUNDS: usize = 50;

/// Runs a task of each number at the same time and returns their answers in order.
async fn at_once<T: Send + 'static, F: Future<Output = T> + Send + 'static>(
    tasks: usize,
    task: impl Fn(usize) -> F,
) -> Vec<T> {
    let start = Arc::new(Barrier::new(tasks));
    let running: Vec<_> = (0..tasks)
        .map(|i| {
            let (start, task) = (start.clone(), task(i));
            tokio::spawn(async move {
                start.wait().await;
                task.await
            })
        })
        .collect();
    join_all(running).await.into_iter().map(Result::unwrap).collect()
}

fn absent() -> PutOptions {
    PutOptions::default().when(Condition::Absent)
}

pub(crate) async fn no_increment_is_lost_or_doubled(subject: Subject) {
    let replies = at_once(TASKS, |i| {
        let backend = subject.backend.clone();
        async move {
            let mut replies = Vec::new();
            for round in 0..ROUNDS {
                replies.push(number(Some(&backend.transact(&key("hot"), add_one()).await.unwrap())));
                let spread = key(format!("spread {}", (i + round) % 3));
                backend.transact(&spread, add_one()).await.unwrap();
            }
            replies
        }
    })
    .await;
    let total = TASKS * ROUNDS;
    assert_eq!(subject.value(&key("hot")).await.unwrap(), total.to_string());
    for task in &replies {
        assert!(task.is_sorted_by(|a, b| a < b), "a task sees its own increments in order");
    }
    let distinct: BTreeSet<i64> = replies.into_iter().flatten().collect();
    assert_eq!(distinct.len(), total, "every increment has a reply of its own");
    let spread = subject.values(&[key("spread 0"), key("spread 1"), key("spread 2")]).await;
    assert_eq!(spread.iter().map(|value| number(value.as_deref())).sum::<i64>(), total as i64);
}

pub(crate) async fn of_racing_set_if_absent_one_wins(subject: Subject) {
    for round in 0..ROUNDS {
        let k = key(format!("k{round}"));
        let answers = at_once(TASKS, |i| {
            let (backend, k) = (subject.backend.clone(), k.clone());
            async move { backend.put(&k, i.to_string().into(), absent()).await.unwrap() }
        })
        .await;
        let winners: Vec<usize> = (0..TASKS).filter(|&i| answers[i].is_yes()).collect();
        assert_eq!(winners.len(), 1, "winners: {winners:?}");
        assert_eq!(subject.value(&k).await.unwrap(), winners[0].to_string());
    }
}

pub(crate) async fn of_racing_set_if_absent_over_an_expired_entry_one_wins(subject: Subject) {
    let ttl = subject.short_ttl();
    let keys: Vec<Key> = (0..20).map(|i| key(format!("k{i}"))).collect();
    for k in &keys {
        subject.put_for(k, "old", ttl).await;
    }
    subject.until_expired(&keys[19], ttl).await;
    for k in keys {
        let answers = at_once(TASKS, |i| {
            let (backend, k) = (subject.backend.clone(), k.clone());
            async move { backend.put(&k, i.to_string().into(), absent()).await.unwrap() }
        })
        .await;
        assert_eq!(answers.iter().filter(|answer| answer.is_yes()).count(), 1);
    }
}

pub(crate) async fn a_counter_by_compare_and_swap_is_exact(subject: Subject) {
    let k = key("k");
    subject.put(&k, "0").await;
    at_once(TASKS, |_| {
        let (backend, k) = (subject.backend.clone(), k.clone());
        async move {
            for _ in 0..ROUNDS / 2 {
                loop {
                    let old = backend.get(&k).await.unwrap().unwrap().value;
                    let new = (number(Some(&old)) + 1).to_string();
                    let options = PutOptions::default().when(equals(old));
                    if backend.put(&k, new.into(), options).await.unwrap().is_yes() {
                        break;
                    }
                    tokio::task::yield_now().await;
                }
            }
        }
    })
    .await;
    assert_eq!(subject.value(&k).await.unwrap(), (TASKS * (ROUNDS / 2)).to_string());
}

pub(crate) async fn concurrent_takes_hand_each_value_to_one(subject: Subject) {
    for round in 0..ROUNDS {
        let value = Bytes::from(format!("value {round}"));
        subject.put(&key("k"), value.clone()).await;
        let mut taken = at_once(TASKS, |_| {
            let backend = subject.backend.clone();
            let take = transition(|state, _| Ok(Step::delete(Bytes::copy_from_slice(state.unwrap_or(b"")))));
            async move { backend.transact(&key("k"), take).await.unwrap() }
        })
        .await;
        taken.retain(|value| !value.is_empty());
        assert_eq!(taken, [value]);
    }
}

pub(crate) async fn concurrent_deletes_answer_yes_to_one(subject: Subject) {
    for _ in 0..ROUNDS {
        subject.put(&key("k"), "v").await;
        let answers = at_once(TASKS, |_| {
            let backend = subject.backend.clone();
            async move { backend.delete(&key("k"), Condition::Always).await.unwrap() }
        })
        .await;
        assert_eq!(answers.iter().filter(|answer| **answer == Applied::Yes).count(), 1);
    }
}

pub(crate) async fn a_value_is_never_seen_half_written(subject: Subject) {
    let k = key("k");
    let value = |i: usize| Bytes::from(vec![b'a' + i as u8; 1_000 * (i + 1)]);
    subject.put(&k, value(0)).await;
    at_once(TASKS, |i| {
        let (backend, k) = (subject.backend.clone(), k.clone());
        async move {
            for _ in 0..ROUNDS {
                if i % 2 == 0 {
                    let put = backend.put(&k, value(i), PutOptions::default()).await.unwrap();
                    assert!(put.is_yes());
                } else {
                    let seen = backend.get(&k).await.unwrap().unwrap().value;
                    assert!(seen == value(usize::from(seen[0] - b'a')), "a mixture of {} bytes", seen.len());
                }
            }
        }
    })
    .await;
}

pub(crate) async fn a_task_reads_what_it_wrote(subject: Subject) {
    at_once(TASKS, |i| {
        let backend = subject.backend.clone();
        async move {
            let k = key(format!("k{i}"));
            for round in 0..ROUNDS {
                let value = Bytes::from(round.to_string());
                let put = backend.put(&k, value.clone(), PutOptions::default()).await.unwrap();
                assert!(put.is_yes());
                assert_eq!(backend.get(&k).await.unwrap().unwrap().value, value);
            }
        }
    })
    .await;
}

pub(crate) async fn a_scan_sees_each_key_once_while_others_are_written_and_deleted(subject: Subject) {
    let stay: Vec<Key> = (0..300).map(|i| key(format!("k{i:03}"))).collect();
    subject.write_many(stay.iter().map(|k| Write::put(k.clone(), "v")).collect()).await;
    let finished = Arc::new(tokio::sync::Notify::new());
    let (backend, done) = (subject.backend.clone(), finished.clone());
    let writer = tokio::spawn(async move {
        let mut done = std::pin::pin!(done.notified());
        for i in 0usize.. {
            let comes = key(format!("k{:03}+", i * 7 % 300));
            assert!(backend.put(&comes, "v".into(), PutOptions::default()).await.unwrap().is_yes());
            let stays = key(format!("k{:03}", i * 11 % 300));
            assert!(backend.put(&stays, "w".into(), PutOptions::default()).await.unwrap().is_yes());
            let goes = key(format!("k{:03}+", (i * 7 + 1) % 300));
            let _ = backend.delete(&goes, Condition::Always).await.unwrap();
            tokio::select! {
                biased;
                () = &mut done => return,
                () = tokio::task::yield_now() => {}
            }
        }
    });
    for page in [1, 7, 64, 512, 7, 1] {
        let mut scan = Scan::prefix(prefix("k"));
        scan.page = page;
        let mut entries = subject.backend.scan(scan);
        let mut seen = Vec::new();
        while let Some((k, entry)) = entries.try_next().await.unwrap() {
            assert!(entry.value == "v" || entry.value == "w");
            seen.push(k);
            tokio::task::yield_now().await;
        }
        let distinct: BTreeSet<&Key> = seen.iter().collect();
        assert_eq!(distinct.len(), seen.len(), "a key came twice, pages of {page}");
        let missing: Vec<&Key> = stay.iter().filter(|k| !distinct.contains(k)).collect();
        assert_eq!(missing, Vec::<&Key>::new(), "pages of {page}");
    }
    finished.notify_one();
    writer.await.unwrap();
}

const ACCOUNTS: usize = 5;
const PER_ACCOUNT: i64 = 100;

fn account(i: usize) -> Key {
    key(format!("account {i}"))
}

/// Reads a balance, and lets others go on before the next one.
async fn balance(transaction: &mut Box<dyn Transaction>, i: usize) -> i64 {
    tokio::task::yield_now().await;
    number(transaction.get(&account(i)).await.unwrap().map(|entry| entry.value).as_deref())
}

/// Moves one from one account to another, unless it meets a concurrent change or there is nothing to move.
async fn transfer(backend: &dyn StateBackend, from: usize, to: usize) -> Result<()> {
    let mut transaction = backend.begin().await?;
    let (a, b) = (balance(&mut transaction, from).await, balance(&mut transaction, to).await);
    tokio::task::yield_now().await;
    if a > 0 {
        for (i, balance) in [(from, a - 1), (to, b + 1)] {
            let put = transaction.put(&account(i), balance.to_string().into(), PutOptions::default()).await?;
            assert!(put.is_yes());
        }
    }
    transaction.commit().await
}

pub(crate) async fn concurrent_transactions_keep_the_sum(subject: Subject) {
    for i in 0..ACCOUNTS {
        subject.put(&account(i), PER_ACCOUNT.to_string()).await;
    }
    let commits = at_once(TASKS, |i| {
        let backend = subject.backend.clone();
        async move {
            let mut commits = 0;
            for round in 0..ROUNDS {
                let from = (i + round) % ACCOUNTS;
                let to = (from + 1 + i % (ACCOUNTS - 1)) % ACCOUNTS;
                match transfer(&*backend, from, to).await {
                    Ok(()) => commits += 1,
                    Err(error) => assert_eq!(error.kind(), ErrorKind::Conflict, "{error}"),
                }
                // A transaction that only reads sees the sum too, if it commits.
                let mut reader = backend.begin().await.unwrap();
                let mut sum = 0;
                for i in 0..ACCOUNTS {
                    sum += balance(&mut reader, i).await;
                }
                if reader.commit().await.is_ok() {
                    assert_eq!(sum, PER_ACCOUNT * ACCOUNTS as i64);
                }
            }
            commits
        }
    })
    .await;
    assert!(commits.into_iter().sum::<usize>() > 0, "not one transaction of many went through");
    let accounts: Vec<Key> = (0..ACCOUNTS).map(account).collect();
    let sum: i64 = subject.values(&accounts).await.iter().map(|value| number(value.as_deref())).sum();
    assert_eq!(sum, PER_ACCOUNT * ACCOUNTS as i64);
}

pub(crate) async fn a_transaction_sees_no_batch_half(subject: Subject) {
    let keys: Arc<Vec<Key>> = Arc::new((0..10).map(|i| key(format!("k{i}"))).collect());
    let looks = at_once(TASKS, |i| {
        let (backend, keys) = (subject.backend.clone(), keys.clone());
        async move {
            let mut looks = 0;
            for round in 0..ROUNDS {
                if i % 2 == 0 {
                    let value = format!("{i} {round}");
                    let batch = keys.iter().map(|k| Write::put(k.clone(), value.clone())).collect();
                    assert!(backend.write_many(batch).await.unwrap().iter().all(|answer| answer.is_yes()));
                    continue;
                }
                let mut reader = backend.begin().await.unwrap();
                let mut values = BTreeSet::new();
                for k in keys.iter() {
                    values.insert(reader.get(k).await.unwrap().map(|entry| entry.value));
                }
                if reader.commit().await.is_ok() {
                    assert_eq!(values.len(), 1, "half a batch: {values:?}");
                    looks += 1;
                }
            }
            looks
        }
    })
    .await;
    // With the writers gone, a look must succeed; so the loop above did not pass for want of commits alone.
    let mut reader = subject.backend.begin().await.unwrap();
    assert!(reader.get(&keys[0]).await.unwrap().is_some());
    reader.commit().await.unwrap();
    drop(looks);
}

pub(crate) async fn a_snapshot_scan_sees_no_batch_half(subject: Subject) {
    let keys: Arc<Vec<Key>> = Arc::new((0..400).map(|i| key(format!("k{i}"))).collect());
    at_once(TASKS, |i| {
        let (backend, keys) = (subject.backend.clone(), keys.clone());
        async move {
            for round in 0..ROUNDS / 2 {
                if i % 2 == 0 {
                    let value = format!("{i} {round}");
                    let batch = keys.iter().map(|k| Write::put(k.clone(), value.clone())).collect();
                    assert!(backend.write_many(batch).await.unwrap().iter().all(|answer| answer.is_yes()));
                    continue;
                }
                let mut scan = Scan::prefix(Prefix::ALL);
                scan.page = 3;
                let mut entries = backend.scan(scan);
                let mut found = Vec::new();
                while let Some(entry) = entries.try_next().await.unwrap() {
                    found.push(entry);
                    tokio::task::yield_now().await;
                }
                let values: BTreeSet<Bytes> = found.iter().map(|(_, entry)| entry.value.clone()).collect();
                assert!(values.len() <= 1, "half a batch: {values:?}");
                assert!(found.is_empty() || found.len() == keys.len(), "{} keys", found.len());
            }
        }
    })
    .await;
}

/// Two batches with the same conditions: the one that comes second meets the first one's writes.
pub(crate) async fn of_racing_conditional_batches_one_wins(subject: Subject) {
    for round in 0..ROUNDS / 2 {
        let answers = at_once(TASKS, |i| {
            let backend = subject.backend.clone();
            async move {
                let mut names = vec!["a", "b", "c"];
                names.rotate_left(i % 3);
                let put = |name| Write::Put {
                    key: key(format!("{name}{round}")),
                    value: i.to_string().into(),
                    options: absent(),
                };
                match backend.write_many(names.into_iter().map(put).collect()).await {
                    Ok(_) => true,
                    Err(error) => {
                        assert_eq!(error.kind(), ErrorKind::Conflict, "{error}");
                        false
                    }
                }
            }
        })
        .await;
        let winners: Vec<usize> = (0..TASKS).filter(|&i| answers[i]).collect();
        assert_eq!(winners.len(), 1, "winners: {winners:?}");
        let keys = ["a", "b", "c"].map(|name| key(format!("{name}{round}")));
        assert_eq!(subject.values(&keys).await, vec![Some(winners[0].to_string().into()); 3]);
    }
}
