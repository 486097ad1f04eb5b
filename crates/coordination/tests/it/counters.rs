//! Counters.

use std::{collections::HashMap, time::Duration};

use commonhold::{
    ErrorKind, MemoryBackend, Store,
    layers::{Fault, FaultPlan, Operation},
};
use commonhold_coordination::counter::{Counter, HybridCounter};
use commonhold_testkit::eventually;
use futures_util::future::join_all;
use metrics_util::debugging::{DebugValue, DebuggingRecorder};

use crate::common::{PATIENCE, Place};

/// Tasks of several processes count, and each value comes once.
async fn exact(place: Place) {
    let mut tasks = tokio::task::JoinSet::new();
    let store = place.open().await;
    for _ in 0..3 {
        let counter = Counter::new(store.clone(), "n").unwrap();
        for _ in 0..20 {
            let counter = counter.clone();
            tasks.spawn(async move {
                let mut values = Vec::new();
                for _ in 0..10 {
                    values.push(counter.increment(1).await.unwrap());
                }
                assert!(values.is_sorted());
                values
            });
        }
    }
    let mut values = tasks.join_all().await.concat();
    values.sort();
    assert_eq!(values, (1..=600).collect::<Vec<i64>>());
    assert_eq!(store.get("n").await.unwrap().unwrap(), "600");
}

#[tokio::test(flavor = "multi_thread")]
async fn each_increment_has_its_exact_value_in_memory() {
    exact(Place::memory()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_increment_has_its_exact_value_in_redis() {
    exact(Place::redis()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_increment_has_its_exact_value_in_postgres() {
    exact(Place::postgres()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_increment_has_its_exact_value_in_memcached() {
    exact(Place::memcached()).await;
}

#[tokio::test]
async fn a_sum_that_leaves_the_range_refuses_only_those_that_leave_it() {
    let store = Store::new(MemoryBackend::new());
    let counter = Counter::new(store.clone(), "n").unwrap();
    store.put("n", (i64::MAX - 5).to_string()).await.unwrap();
    let (one, two, three) = tokio::join!(counter.increment(5), counter.increment(5), counter.increment(-5));
    let values = [one, two, three];
    assert!(values.iter().any(|value| value.is_ok()), "{values:?}");
    for value in &values {
        assert!(
            value.as_ref().is_ok_and(|value| *value > 0)
                || value.as_ref().is_err_and(|error| error.kind() == ErrorKind::NotInteger)
        );
    }
    let added: i64 =
        [5, 5, -5].iter().zip(&values).filter(|(_, value)| value.is_ok()).map(|(delta, _)| delta).sum();
    assert_eq!(counter.get().await.unwrap(), i64::MAX - 5 + added);
    assert!(counter.decrement(i64::MIN).await.is_err());
    let (one, other) = tokio::join!(counter.increment(i64::MIN), counter.increment(i64::MIN));
    assert!(one.is_ok() != other.is_ok(), "{one:?} {other:?}");
}

#[tokio::test]
async fn what_is_no_integer_is_left_alone() {
    let store = Store::new(MemoryBackend::new());
    let counter = Counter::new(store.clone(), "n").unwrap();
    for text in ["x", "+1", "01", "1 "] {
        store.put("n", text).await.unwrap();
        assert_eq!(counter.increment(1).await.unwrap_err().kind(), ErrorKind::NotInteger);
        assert_eq!(counter.increment_once("id", 1).await.unwrap_err().kind(), ErrorKind::NotInteger);
        assert_eq!(counter.get().await.unwrap_err().kind(), ErrorKind::NotInteger);
        assert_eq!(store.get("n").await.unwrap().unwrap(), text);
    }
}

#[tokio::test]
async fn a_counter_expires_as_a_whole() {
    let store = Place::redis().open().await;
    let counter = Counter::new(store.clone(), "n").unwrap().ttl(Duration::from_millis(200)).unwrap();
    counter.increment(1).await.unwrap();
    counter.increment(1).await.unwrap();
    assert!(store.ttl("n").await.unwrap().flatten().is_some());
    eventually(PATIENCE, "it expires", async || counter.get().await.unwrap() == 0).await;
    assert_eq!(counter.increment(1).await.unwrap(), 1);
    assert_eq!(counter.clone().ttl(Duration::ZERO).unwrap_err().kind(), ErrorKind::InvalidInput);
}

async fn once(place: Place) {
    let store = place.open().await;
    let counter = Counter::new(store.clone(), "n").unwrap();
    let mut tasks = tokio::task::JoinSet::new();
    for task in 0..30 {
        let counter = Counter::new(store.clone(), "n").unwrap();
        tasks.spawn(async move {
            counter.increment_once(format!("id {}", task % 10), 1 << (task % 10)).await.unwrap()
        });
    }
    let values = tasks.join_all().await;
    assert_eq!(counter.get().await.unwrap(), (1 << 10) - 1);
    assert!(values.iter().all(|value| *value < 1 << 10));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_increment_with_an_id_counts_once() {
    once(Place::memory()).await;
    once(Place::redis()).await;
    once(Place::postgres()).await;
    once(Place::cluster()).await;
    let counter = Counter::new(Place::memcached().open().await, "n").unwrap();
    assert_eq!(counter.increment_once("id", 1).await.unwrap_err().kind(), ErrorKind::Unsupported);
}

#[tokio::test]
async fn an_increment_with_an_id_is_made_again_when_its_reply_is_lost() {
    let plan = FaultPlan::new();
    let counter = Counter::new(Store::new(MemoryBackend::new()).layer(Fault::new(&plan)), "n").unwrap();
    plan.lose_reply(Operation::WriteMany);
    assert_eq!(counter.increment_once("id", 3).await.unwrap(), 3);
    plan.lose_reply(Operation::Transact);
    counter.increment(1).await.unwrap_err();
    assert_eq!(counter.get().await.unwrap(), 4);
}

async fn hybrid(place: Place) {
    let store = place.open().await;
    let mut counters = Vec::new();
    for _ in 0..3 {
        let builder = HybridCounter::builder(store.clone(), "n").unwrap();
        counters.push(builder.interval(Duration::from_millis(5)).build().await.unwrap());
    }
    for round in 0..100 {
        for counter in &counters {
            counter.add(round).await.unwrap();
        }
        tokio::task::yield_now().await;
    }
    assert!(counters[0].get().await.unwrap() >= 4950);
    for counter in counters {
        counter.close().await.unwrap();
    }
    assert_eq!(store.get("n").await.unwrap().unwrap(), "14850");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_counted_here_is_in_the_store_in_the_end() {
    hybrid(Place::memory()).await;
    hybrid(Place::redis()).await;
    hybrid(Place::postgres()).await;
}

#[tokio::test]
async fn a_flush_whose_reply_is_lost_counts_once_and_one_that_fails_is_made_later() {
    let (plan, store) = (FaultPlan::new(), Store::new(MemoryBackend::new()));
    let away = store.clone().layer(Fault::new(&plan));
    let counter = HybridCounter::builder(away, "n").unwrap().interval(PATIENCE).build().await.unwrap();
    counter.add(1).await.unwrap();
    plan.lose_reply(Operation::WriteMany);
    counter.flush().await.unwrap();
    assert_eq!(store.get("n").await.unwrap().unwrap(), "1");
    counter.add(i64::MAX).await.unwrap();
    assert_eq!(counter.add(1).await.unwrap_err().kind(), ErrorKind::NotInteger);
    assert_eq!(counter.flush().await.unwrap_err().kind(), ErrorKind::NotInteger, "the sum is out of range");
    assert!(store.delete("n").await.unwrap());
    counter.flush().await.unwrap();
    assert_eq!(counter.get().await.unwrap(), i64::MAX);
}

#[tokio::test]
async fn much_is_flushed_before_the_interval_is_over() {
    let store = Store::new(MemoryBackend::new());
    let builder = HybridCounter::builder(store.clone(), "n").unwrap().interval(PATIENCE * 100).flush_at(10);
    let counter = builder.build().await.unwrap();
    counter.add(9).await.unwrap();
    counter.add(2).await.unwrap();
    eventually(PATIENCE, "it is flushed", async || store.get("n").await.unwrap().is_some_and(|n| n == "11"))
        .await;
    drop(counter);
}

#[tokio::test]
async fn with_a_journal_nothing_is_lost_when_the_process_ends_and_nothing_counts_twice() {
    let journal = Place::disk();
    let (plan, store) = (FaultPlan::new(), Store::new(MemoryBackend::new()));
    let journal_store = journal.open().await;
    // The process ends after the store has counted, before the journal knows.
    let forgetful = journal_store.clone().layer(Fault::new(&plan));
    let counter = HybridCounter::builder(store.clone(), "n").unwrap().interval(PATIENCE).journal(forgetful);
    let counter = counter.build().await.unwrap();
    // Before it is added: a counter flushes once when it begins, too.
    for _ in 0..100 {
        plan.refuse(Operation::Delete);
    }
    counter.add(5).await.unwrap();
    counter.flush().await.unwrap_err();
    assert_eq!(store.get("n").await.unwrap().unwrap(), "5");
    counter.add(7).await.unwrap();
    std::mem::forget(counter);
    let again = HybridCounter::builder(store.clone(), "n").unwrap().interval(PATIENCE).journal(journal_store);
    let again = again.build().await.unwrap();
    assert_eq!(again.get().await.unwrap(), 12);
    again.close().await.unwrap();
    assert_eq!(store.get("n").await.unwrap().unwrap(), "12");
}

#[test]
fn a_counter_outlives_the_runtimes_that_it_is_used_on() {
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (ended, used) = (runtime(), runtime());
    let counter = Counter::new(Store::new(MemoryBackend::new()), "n").unwrap();
    ended.block_on(async {
        // Those who find one on its way travel together: a task of this runtime carries them out.
        let sums = futures_util::future::join_all((0..3).map(|_| counter.increment(1))).await;
        assert!(sums.into_iter().all(|sum| sum.is_ok()));
    });
    drop(ended);
    let wait = async { tokio::time::timeout(PATIENCE, counter.increment(1)).await };
    assert_eq!(used.block_on(wait).expect("it hangs").unwrap(), 4);
}

#[tokio::test]
async fn ids_of_one_counter_are_not_those_of_another_whatever_they_are_called() {
    let store = Store::new(MemoryBackend::new());
    let (short, long) = (Counter::new(store.clone(), "s").unwrap(), Counter::new(store, "s:1").unwrap());
    assert_eq!(short.increment_once("1:x", 5).await.unwrap(), 5);
    assert_eq!(long.increment_once("x", 3).await.unwrap(), 3);
    assert_eq!((short.get().await.unwrap(), long.get().await.unwrap()), (5, 3));
}

#[test]
fn a_hybrid_counter_that_is_dropped_outside_of_its_runtime_is_flushed() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let store = Store::new(MemoryBackend::new());
    let counter = runtime.block_on(async {
        let builder = HybridCounter::builder(store.clone(), "n").unwrap();
        let counter = builder.interval(PATIENCE).build().await.unwrap();
        // The flush that it begins with is over.
        counter.add(1).await.unwrap();
        counter.flush().await.unwrap();
        counter.add(7).await.unwrap();
        counter
    });
    drop(counter);
    runtime.block_on(eventually(PATIENCE, "it is flushed", async || {
        store.get("n").await.unwrap().as_deref() == Some(b"8")
    }));
}

#[tokio::test]
async fn the_metrics_say_how_many_increments_took_how_many_requests() {
    let recorder = DebuggingRecorder::new();
    let seen = recorder.snapshotter();
    let counter = metrics::with_local_recorder(&recorder, || {
        Counter::new(Store::new(MemoryBackend::new()), "n").unwrap()
    });
    let increments = join_all((0..10).map(|_| counter.increment(1))).await;
    assert!(increments.iter().all(Result::is_ok));
    let told = seen.snapshot().into_vec().into_iter();
    let told: HashMap<_, _> = told.map(|(key, _, _, value)| (key.key().name().to_owned(), value)).collect();
    assert_eq!(told["commonhold_counter_increments_total"], DebugValue::Counter(10));
    assert!(matches!(told["commonhold_counter_requests_total"], DebugValue::Counter(1..=10)));
}

#[tokio::test]
async fn the_metrics_say_how_often_a_counter_was_flushed_and_could_not_be() {
    let recorder = DebuggingRecorder::new();
    let seen = recorder.snapshotter();
    let _recording = metrics::set_default_local_recorder(&recorder);
    let store = Store::new(MemoryBackend::new());
    let interval = Duration::from_secs(3600);
    let builder = HybridCounter::builder(store.clone(), "n").unwrap().interval(interval);
    let counter = builder.build().await.unwrap();
    counter.add(1).await.unwrap();
    counter.flush().await.unwrap();
    store.put("n", "no number").await.unwrap();
    counter.add(1).await.unwrap();
    counter.flush().await.unwrap_err();
    let told = seen.snapshot().into_vec().into_iter().filter_map(|(key, _, _, value)| {
        Some((key.key().labels().find(|label| label.key() == "outcome")?.value().to_owned(), value))
    });
    let told: HashMap<_, _> = told.collect();
    assert_eq!(told["flushed"], DebugValue::Counter(1));
    assert_eq!(told["failed"], DebugValue::Counter(1));
}
