//! Many tasks at once: nothing is lost, doubled or seen half.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use bytes::Bytes;
use commonhold_core::{
    Applied, Condition, ErrorKind, Key, Prefix, PutOptions, Result, Scan, StateBackend, Step, Transaction,
    Write,
};
use futures_util::{TryStreamExt as _, future::join_all};
use tokio::{sync::Barrier, task::JoinHandle};

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

/// Work that a task does over and over while the case goes on.
struct Meanwhile {
    over: Arc<AtomicBool>,
    rounds: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl Meanwhile {
    fn start<F: Future<Output = ()> + Send + 'static>(work: impl Fn(usize) -> F + Send + 'static) -> Self {
        let (over, rounds) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let (until, count) = (over.clone(), rounds.clone());
        let task = tokio::spawn(async move {
            while !until.load(Ordering::SeqCst) {
                work(count.fetch_add(1, Ordering::SeqCst)).await;
                tokio::task::yield_now().await;
            }
        });
        Self { over, rounds, task }
    }

    /// Waits until one round has begun and ended meanwhile.
    async fn one_round(&self) {
        let enough = self.rounds.load(Ordering::SeqCst) + 2;
        while self.rounds.load(Ordering::SeqCst) < enough && !self.task.is_finished() {
            tokio::task::yield_now().await;
        }
    }

    async fn stop(self) {
        self.over.store(true, Ordering::SeqCst);
        self.task.await.unwrap();
    }
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
    match subject.clock() {
        Some(_) => subject.until_expired(&keys[19], ttl).await,
        None => {
            // Each by itself: the clocks of several servers do not tick together.
            for k in &keys {
                subject.until_expired(k, ttl).await;
            }
        }
    }
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
    let value = |i: usize| Bytes::from(vec![b'a' + (i % 8) as u8; 1_000 * (i % 8 + 1)]);
    subject.put(&k, value(0)).await;
    let (backend, written) = (subject.backend.clone(), k.clone());
    let writer = Meanwhile::start(move |i| {
        let (backend, k) = (backend.clone(), written.clone());
        async move { assert!(backend.put(&k, value(i), PutOptions::default()).await.unwrap().is_yes()) }
    });
    let (mut last, mut changes) = (value(0), 0);
    while changes < ROUNDS {
        let seen = subject.value(&k).await.unwrap();
        assert!(seen == value(usize::from(seen[0] - b'a')), "a mixture of {} bytes", seen.len());
        changes += usize::from(seen != last);
        last = seen;
        tokio::task::yield_now().await;
    }
    writer.stop().await;
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
    let backend = subject.backend.clone();
    let writer = Meanwhile::start(move |i| {
        let backend = backend.clone();
        async move {
            let comes = key(format!("k{:03}+", i * 7 % 300));
            assert!(backend.put(&comes, "v".into(), PutOptions::default()).await.unwrap().is_yes());
            let stays = key(format!("k{:03}", i * 11 % 300));
            assert!(backend.put(&stays, "w".into(), PutOptions::default()).await.unwrap().is_yes());
            let goes = key(format!("k{:03}+", (i * 7 + 1) % 300));
            let _ = backend.delete(&goes, Condition::Always).await.unwrap();
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
    writer.stop().await;
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
    let keys: Vec<Key> = (0..10).map(|i| key(format!("k{i}"))).collect();
    let (backend, written) = (subject.backend.clone(), keys.clone());
    let writer = Meanwhile::start(move |i| {
        let backend = backend.clone();
        let batch = written.iter().map(|k| Write::put(k.clone(), i.to_string())).collect();
        async move {
            assert!(backend.write_many(batch).await.unwrap().iter().all(|answer| answer.is_yes()));
        }
    });
    let look = async || {
        let mut reader = subject.backend.begin().await.unwrap();
        let mut values = BTreeSet::new();
        for k in &keys {
            values.insert(reader.get(k).await.unwrap().map(|entry| entry.value));
        }
        // What a transaction saw counts only if it commits.
        if reader.commit().await.is_ok() {
            assert_eq!(values.len(), 1, "half a batch: {values:?}");
        }
        tokio::task::yield_now().await;
    };
    for _ in 0..10 {
        writer.one_round().await;
        for _ in 0..50 {
            look().await;
        }
    }
    writer.stop().await;
    look().await;
}

pub(crate) async fn a_snapshot_scan_sees_no_batch_half(subject: Subject) {
    let keys: Vec<Key> = (0..400).map(|i| key(format!("k{i}"))).collect();
    let batch = move |value: String| keys.iter().map(|k| Write::put(k.clone(), value.clone())).collect();
    subject.write_many(batch("first".to_owned())).await;
    let backend = subject.backend.clone();
    let writer = Meanwhile::start(move |i| {
        let (backend, batch) = (backend.clone(), batch(i.to_string()));
        async move {
            assert!(backend.write_many(batch).await.unwrap().iter().all(|answer| answer.is_yes()));
        }
    });
    for _ in 0..10 {
        let mut scan = Scan::prefix(Prefix::ALL);
        scan.page = 3;
        let mut entries = subject.backend.scan(scan);
        let (mut values, mut count) = (BTreeSet::new(), 0);
        while let Some((_, entry)) = entries.try_next().await.unwrap() {
            values.insert(entry.value);
            count += 1;
            if count % 100 == 1 {
                writer.one_round().await;
            }
        }
        assert_eq!((values.len(), count), (1, 400), "half a batch: {values:?}");
    }
    writer.stop().await;
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
