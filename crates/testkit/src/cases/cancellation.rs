//! Futures that are dropped before they are done: the old value or the new one, never a mixture.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
};

use bytes::Bytes;
use commonhold_core::{Applied, Condition, Key, PutOptions, Write};
use futures_util::future::{BoxFuture, join_all};

use crate::subject::{Subject, add_one, key, number, prefix};

/// No operation is expected to be polled more often than this.
const MAX_POLLS: usize = 1_000;

/// A future that is dropped after some polls.
struct CutOff<F> {
    future: Option<Pin<Box<F>>>,
    polls_left: usize,
}

/// Polls a future this often, when it asks for it, and drops it. The answer, if it was done by then.
fn cut_off<F: Future>(future: F, polls: usize) -> CutOff<F> {
    CutOff { future: Some(Box::pin(future)), polls_left: polls }
}

impl<F: Future> Future for CutOff<F> {
    type Output = Option<F::Output>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        if self.polls_left > 0
            && let Some(future) = &mut self.future
        {
            let poll = future.as_mut().poll(context);
            self.polls_left -= 1;
            if let Poll::Ready(answer) = poll {
                return Poll::Ready(Some(answer));
            }
            if self.polls_left > 0 {
                return Poll::Pending;
            }
        }
        self.future = None;
        Poll::Ready(None)
    }
}

/// Starts an operation again and again on fresh keys, lets it be polled once more each time, and calls `check`
/// after each, until one is done. `check` is told whether it was.
async fn cut_off_everywhere<T>(
    operation: impl Fn(usize) -> BoxFuture<'static, T>,
    mut check: impl AsyncFnMut(usize, bool),
) {
    for polls in 0..MAX_POLLS {
        let done = cut_off(operation(polls), polls).await.is_some();
        check(polls, done).await;
        if done {
            return;
        }
    }
    panic!("not done after {MAX_POLLS} polls");
}

fn k(name: &str, polls: usize) -> Key {
    key(format!("{name} {polls}"))
}

pub(crate) async fn a_dropped_put_leaves_the_old_value_or_the_new_one(subject: Subject) {
    for polls in 0..50 {
        subject.put(&k("k", polls), "old").await;
    }
    let backend = subject.backend.clone();
    let put = move |polls| -> BoxFuture<'static, _> {
        let backend = backend.clone();
        Box::pin(
            async move { backend.put(&k("k", polls), "new".into(), PutOptions::default()).await.unwrap() },
        )
    };
    cut_off_everywhere(put, async |polls, done| {
        let value = subject.value(&k("k", polls)).await;
        let old = if polls < 50 { Some("old".into()) } else { None };
        assert!(value == Some("new".into()) || (!done && value == old), "{value:?}, done: {done}");
        assert!(polls > 0 || value == old, "done without being polled");
    })
    .await;
    subject.put(&key("after"), "works").await;
    assert_eq!(subject.value(&key("after")).await.unwrap(), "works");
}

pub(crate) async fn a_dropped_delete_leaves_the_old_value_or_none(subject: Subject) {
    for polls in 0..50 {
        subject.put(&k("k", polls), "old").await;
    }
    let backend = subject.backend.clone();
    let delete = move |polls| -> BoxFuture<'static, _> {
        let backend = backend.clone();
        Box::pin(async move { backend.delete(&k("k", polls), Condition::Always).await.unwrap() })
    };
    cut_off_everywhere(delete, async |polls, done| {
        let value = subject.value(&k("k", polls)).await;
        assert!(value.is_none() || (!done && value == Some("old".into())), "{value:?}, done: {done}");
    })
    .await;
    assert_eq!(subject.delete(&key("k after")).await, Applied::No);
}

pub(crate) async fn a_dropped_transition_is_applied_once_or_not_at_all(subject: Subject) {
    let backend = subject.backend.clone();
    let increment = move |polls| -> BoxFuture<'static, _> {
        let backend = backend.clone();
        Box::pin(async move { backend.transact(&k("k", polls), add_one()).await.unwrap() })
    };
    cut_off_everywhere(increment, async |polls, done| {
        let value = number(subject.value(&k("k", polls)).await.as_deref());
        assert!(value == 1 || (!done && value == 0), "{value}, done: {done}");
        let next = subject.backend.transact(&k("k", polls), add_one()).await.unwrap();
        assert!((value + 1..=2).contains(&number(Some(&next))), "after {value} came {next:?}");
    })
    .await;
}

pub(crate) async fn a_dropped_batch_is_written_as_a_whole_or_not_at_all(subject: Subject) {
    let names = ["a", "b", "c", "d", "e", "f"];
    let keys = move |polls| names.map(|name| k(name, polls));
    for polls in 0..50 {
        for k in &keys(polls)[3..] {
            subject.put(k, "old").await;
        }
    }
    let backend = subject.backend.clone();
    let batch = move |polls| -> BoxFuture<'static, _> {
        let backend = backend.clone();
        let put = |k: &Key| Write::put(k.clone(), "new");
        let mut batch: Vec<Write> = keys(polls)[..5].iter().map(put).collect();
        batch.push(Write::delete(keys(polls)[5].clone()));
        Box::pin(async move { backend.write_many(batch).await.unwrap() })
    };
    cut_off_everywhere(batch, async |polls, done| {
        // One atomic look: a batch that was cut off may be carried out later, between two of them.
        let seen = look(&subject, &keys(polls)).await;
        let new: Vec<Option<Bytes>> = (0..6).map(|i| (i < 5).then(|| "new".into())).collect();
        let old: Vec<Option<Bytes>> = (0..6).map(|i| (polls < 50 && i >= 3).then(|| "old".into())).collect();
        assert!(seen == new || (!done && seen == old), "half a batch: {seen:?}, done: {done}");
    })
    .await;
    assert_eq!(subject.write_many(vec![Write::put(key("after"), "works")]).await, [Applied::Yes]);
}

pub(crate) async fn a_dropped_commit_is_written_as_a_whole_or_not_at_all(subject: Subject) {
    let names = ["a", "b", "c"];
    let keys = move |polls| names.map(|name| k(name, polls));
    let backend = subject.backend.clone();
    let commit = move |polls| -> BoxFuture<'static, _> {
        let backend = backend.clone();
        Box::pin(async move {
            let mut transaction = backend.begin().await.unwrap();
            for k in keys(polls) {
                assert!(transaction.get(&k).await.unwrap().is_none());
                assert!(transaction.put(&k, "new".into(), PutOptions::default()).await.unwrap().is_yes());
            }
            transaction.commit().await.unwrap();
        })
    };
    cut_off_everywhere(commit, async |polls, done| {
        let seen = look(&subject, &keys(polls)).await;
        let (new, old) = (vec![Some(Bytes::from("new")); 3], vec![None; 3]);
        assert!(seen == new || (!done && seen == old), "half a transaction: {seen:?}, done: {done}");
        subject.put(&keys(polls)[0], "not locked").await;
    })
    .await;
}

/// The values under these keys at one moment, if the store has a way to say: else one by one, which is as good
/// where nothing is carried out after it was cut off.
async fn look(subject: &Subject, keys: &[Key]) -> Vec<Option<Bytes>> {
    if !subject.backend.capabilities().transactions {
        return subject.values(keys).await;
    }
    loop {
        let mut reader = subject.backend.begin().await.unwrap();
        let mut values = Vec::new();
        for k in keys {
            values.push(reader.get(k).await.unwrap().map(|entry| entry.value));
        }
        if reader.commit().await.is_ok() {
            return values;
        }
    }
}

pub(crate) async fn a_dropped_clear_leaves_whole_entries_and_can_be_repeated(subject: Subject) {
    for polls in 0..=MAX_POLLS {
        let keys: Vec<Key> = (0..200).map(|i| key(format!("k{i}"))).collect();
        subject.write_many(keys.iter().map(|k| Write::put(k.clone(), "v")).collect()).await;
        subject.put(&key("other"), "v").await;
        let done = cut_off(subject.backend.clear(&prefix("k")), polls).await;
        let left = subject.values(&keys).await;
        assert!(left.iter().flatten().all(|value| value == "v"));
        assert_eq!(subject.value(&key("other")).await.unwrap(), "v");
        subject.backend.clear(&prefix("k")).await.unwrap();
        assert_eq!(subject.count(&prefix("k")).await, 0);
        if let Some(cleared) = done {
            assert_eq!(cleared.unwrap(), 200);
            return;
        }
    }
    panic!("not done after {MAX_POLLS} polls");
}

pub(crate) async fn increments_that_are_dropped_count_once_or_not_at_all(subject: Subject) {
    let hot = key("hot");
    let started = Arc::new(AtomicUsize::new(0));
    let acknowledged = Arc::new(AtomicUsize::new(0));
    let tasks = (0..8usize).map(|task| {
        let (backend, hot) = (subject.backend.clone(), hot.clone());
        let (started, acknowledged) = (started.clone(), acknowledged.clone());
        tokio::spawn(async move {
            for round in 0..50 {
                // Every sixth is let run to its end.
                let polls = match (task + round) % 6 {
                    5 => usize::MAX,
                    polls => polls,
                };
                started.fetch_add(usize::from(polls > 0), Ordering::SeqCst);
                let add = async { backend.transact(&hot, add_one()).await };
                if let Some(answer) = cut_off(add, polls).await {
                    answer.unwrap();
                    acknowledged.fetch_add(1, Ordering::SeqCst);
                }
            }
        })
    });
    join_all(tasks).await.into_iter().for_each(|task| task.unwrap());
    let count = usize::try_from(number(subject.value(&hot).await.as_deref())).unwrap();
    let (started, acknowledged) = (started.load(Ordering::SeqCst), acknowledged.load(Ordering::SeqCst));
    assert!(acknowledged > 0);
    assert!(
        (acknowledged..=started).contains(&count),
        "{acknowledged} acknowledged, {count} counted, {started} started"
    );
    subject.backend.transact(&hot, add_one()).await.unwrap();
}
