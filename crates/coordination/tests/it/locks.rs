//! Locks.

use std::{sync::Arc, time::Duration};

use commonhold::{
    ErrorKind, MemoryBackend, Store,
    layers::{Fault, FaultPlan, Operation},
};
use commonhold_coordination::{Fenced, Locks};
use commonhold_testkit::eventually;

use crate::common::{PATIENCE, Place};

const TTL: Duration = Duration::from_secs(30);

async fn check(place: Place) {
    // Two processes, as the store sees them.
    let (one, other) = {
        let store = place.open().await;
        (Locks::new(store.clone()).unwrap(), Locks::new(store).unwrap())
    };
    let first = one.try_acquire("l", TTL).await.unwrap().unwrap();
    assert!(first.is_held() && first.name() == "l");
    assert!(other.try_acquire("l", TTL).await.unwrap().is_none());
    assert!(one.try_acquire("l", TTL).await.unwrap().is_none());
    assert!(other.acquire("l", TTL, Duration::from_millis(20)).await.unwrap().is_none());
    assert!(one.acquire("l", TTL, Duration::from_millis(20)).await.unwrap().is_none());
    let held = one.show("l").await.unwrap();
    assert_eq!(held.holders.len(), 1);
    assert_eq!(held.holders[0].token, first.token());
    assert!(held.holders[0].left <= TTL && held.holders[0].left > TTL / 2, "{held:?}");
    assert!(first.extend(TTL * 2).await.unwrap());
    assert_eq!(one.show("l").await.unwrap().holders[0].ttl, TTL * 2);

    let waiting = tokio::spawn({
        let other = other.clone();
        async move { other.acquire("l", TTL, PATIENCE).await }
    });
    eventually(PATIENCE, "it stands in line", async || one.show("l").await.unwrap().waiting == 1).await;
    let lost = first.lost();
    let token = first.token();
    assert!(first.release().await.unwrap());
    assert!(lost.is_cancelled());
    let second = waiting.await.unwrap().unwrap().unwrap();
    assert!(second.token() > token);
    drop(second);
    let third = one.acquire("l", TTL, PATIENCE).await.unwrap().unwrap();
    assert!(third.token() > token + 1);
    let fences = other.with_lock("m", TTL, PATIENCE, |fence| async move { fence }).await.unwrap();
    assert!(fences.token() > 0);
    assert!(other.show("m").await.unwrap().holders.is_empty());
}

#[tokio::test]
async fn one_holds_a_lock_at_a_time_in_memory() {
    check(Place::memory()).await;
}

#[tokio::test]
async fn one_holds_a_lock_at_a_time_on_disk() {
    check(Place::disk()).await;
}

#[tokio::test]
async fn one_holds_a_lock_at_a_time_in_redis() {
    check(Place::redis()).await;
}

#[tokio::test]
async fn one_holds_a_lock_at_a_time_in_a_cluster() {
    check(Place::cluster()).await;
}

#[tokio::test]
async fn one_holds_a_lock_at_a_time_in_postgres() {
    check(Place::postgres()).await;
}

#[tokio::test]
async fn one_holds_a_lock_at_a_time_in_memcached() {
    check(Place::memcached()).await;
}

/// Tasks of several processes count under a lock, by reading and writing: what is lost would show.
async fn count(place: Place, fair: bool) {
    let store = place.open().await;
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..3 {
        let locks = Locks::new(place_again(&place, &store).await).unwrap();
        let locks = if fair { locks.fair() } else { locks };
        for _ in 0..4 {
            let (locks, store) = (locks.clone(), store.clone());
            tasks.spawn(async move {
                let mut tokens = Vec::new();
                for _ in 0..10 {
                    let guard = locks.acquire("l", TTL, PATIENCE).await.unwrap().unwrap();
                    let fenced = Fenced::new(store.clone(), guard.fence()).unwrap();
                    let value = fenced.get("n").await.unwrap().unwrap_or_else(|| "0".into());
                    let value: u64 = std::str::from_utf8(&value).unwrap().parse().unwrap();
                    fenced.put("n", (value + 1).to_string()).await.unwrap();
                    tokens.push(guard.token());
                    assert!(guard.release().await.unwrap());
                }
                assert!(tokens.is_sorted());
                tokens
            });
        }
    }
    let mut tokens: Vec<u64> = tasks.join_all().await.concat();
    tokens.sort();
    tokens.dedup();
    assert_eq!(tokens.len(), 120, "no token comes twice");
    assert_eq!(store.get("n").await.unwrap().unwrap(), "120");
}

/// A connection of its own where there are connections.
async fn place_again(place: &Place, store: &Store) -> Store {
    match store.capabilities().shared {
        true => place.open().await,
        false => store.clone(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_between_holders_in_memory() {
    count(Place::memory(), false).await;
    count(Place::memory(), true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_between_holders_in_redis() {
    count(Place::redis(), false).await;
    count(Place::redis(), true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_between_holders_in_postgres() {
    count(Place::postgres(), false).await;
    count(Place::postgres(), true).await;
}

#[tokio::test]
async fn a_claim_that_is_dropped_leaves_neither_a_lock_nor_a_place_in_the_line() {
    let store = Place::memory().open().await;
    let (one, other) = (Locks::new(store.clone()).unwrap(), Locks::new(store).unwrap());
    let guard = one.try_acquire("l", TTL).await.unwrap().unwrap();
    let waiting = tokio::spawn({
        let other = other.clone();
        async move { other.acquire("l", TTL, PATIENCE).await }
    });
    let next = tokio::spawn({
        let other = other.clone();
        async move { other.acquire("l", TTL, PATIENCE).await }
    });
    eventually(PATIENCE, "it stands in line", async || one.show("l").await.unwrap().waiting == 1).await;
    waiting.abort();
    next.abort();
    eventually(PATIENCE, "it leaves the line", async || one.show("l").await.unwrap().waiting == 0).await;
    guard.release().await.unwrap();
    assert!(one.try_acquire("l", TTL).await.unwrap().is_some());
}

#[tokio::test]
async fn a_claim_whose_answer_is_lost_is_made_again_and_takes_nothing_twice() {
    let plan = FaultPlan::new();
    let store = Store::new(MemoryBackend::new());
    let locks = Locks::new(store.clone().layer(Fault::new(&plan))).unwrap();
    plan.lose_reply(Operation::Transact);
    let guard = locks.try_acquire("l", TTL).await.unwrap().unwrap();
    assert_eq!(locks.show("l").await.unwrap().holders[0].token, guard.token());
    plan.lose_reply(Operation::Transact);
    assert!(guard.release().await.unwrap());
    assert!(locks.show("l").await.unwrap().holders.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_holder_that_cannot_renew_knows_before_anybody_else_can_have_the_lock() {
    let plan = FaultPlan::new();
    let store = Store::new(MemoryBackend::new());
    let locks = Locks::new(store.clone().layer(Fault::new(&plan))).unwrap();
    let guard = locks.try_acquire("l", TTL).await.unwrap().unwrap();
    let begun = tokio::time::Instant::now();
    for _ in 0..1_000 {
        plan.refuse(Operation::Transact);
    }
    guard.lost().cancelled().await;
    let passed = begun.elapsed();
    assert!(passed < TTL && passed > TTL - TTL / 50, "{passed:?}");
    assert!(!guard.is_held());
}

#[tokio::test(start_paused = true)]
async fn a_lock_is_renewed_for_as_long_as_it_is_held() {
    let locks = Locks::new(Store::new(MemoryBackend::new())).unwrap();
    let guard = locks.try_acquire("l", TTL).await.unwrap().unwrap();
    for _ in 0..10 {
        tokio::time::sleep(TTL).await;
        assert!(guard.is_held());
    }
}

#[tokio::test(start_paused = true)]
async fn a_lock_whose_time_is_shortened_is_held_for_no_longer_than_that() {
    let plan = FaultPlan::new();
    let locks = Locks::new(Store::new(MemoryBackend::new()).layer(Fault::new(&plan))).unwrap();
    let guard = locks.try_acquire("l", TTL * 10).await.unwrap().unwrap();
    // Whether this reaches the store is not known.
    plan.lose_reply(Operation::Transact);
    guard.extend(TTL).await.unwrap_err();
    for _ in 0..1_000 {
        plan.refuse(Operation::Transact);
    }
    let begun = tokio::time::Instant::now();
    guard.lost().cancelled().await;
    assert!(begun.elapsed() <= TTL, "{:?}", begun.elapsed());
}

#[tokio::test]
async fn work_is_dropped_when_its_lock_is_lost() {
    let store = Store::new(MemoryBackend::new());
    let locks = Locks::new(store.clone()).unwrap();
    let ttl = Duration::from_millis(60);
    let dropped = Arc::new(());
    let work = locks.with_lock("l", ttl, PATIENCE, |_| {
        let (store, kept) = (store.clone(), Arc::clone(&dropped));
        async move {
            // Somebody clears the store.
            store.delete("lock:l").await.unwrap();
            std::future::pending::<()>().await;
            drop(kept);
        }
    });
    assert_eq!(work.await.unwrap_err().kind(), ErrorKind::Conflict);
    assert_eq!(Arc::strong_count(&dropped), 1);
}

#[tokio::test]
async fn names_and_times_out_of_range_are_refused() {
    let locks = Locks::new(Store::new(MemoryBackend::new())).unwrap();
    for ttl in
        [Duration::ZERO, Duration::from_millis(19), Duration::from_secs(366 * 24 * 60 * 60), Duration::MAX]
    {
        assert_eq!(locks.try_acquire("l", ttl).await.unwrap_err().kind(), ErrorKind::InvalidInput, "{ttl:?}");
    }
    let long = "l".repeat(2_000);
    assert_eq!(locks.try_acquire(&long, TTL).await.unwrap_err().kind(), ErrorKind::TooLarge);
    let guard = locks.try_acquire("\u{e4} *?[]{}\0", TTL).await.unwrap().unwrap();
    assert_eq!(guard.extend(Duration::MAX).await.unwrap_err().kind(), ErrorKind::InvalidInput);
}
