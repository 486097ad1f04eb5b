//! Concurrency limiters in one process and over real stores: many tasks and instances.

mod away;

use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering::SeqCst},
    },
    time::Duration,
};

use commonhold::{ErrorKind, Store};
use commonhold_coordination::{
    limit::{ConcurrencyLimiter, Instance, OnUnavailable},
    process_name,
};
use commonhold_testkit::eventually;
use futures_util::{FutureExt as _, future::join_all, poll};

use crate::common::{PATIENCE, Place};

const LEASE: Duration = Duration::from_millis(500);
/// Longer than any test.
const LONG: Duration = Duration::from_secs(600);
const SHARE: OnUnavailable = OnUnavailable::LocalShare { instances: 2 };

type Open = fn(Store, &str, u64, Duration, OnUnavailable) -> commonhold::Result<ConcurrencyLimiter>;

const BOTH: [(&str, Open); 2] =
    [("distributed", ConcurrencyLimiter::distributed), ("hybrid", ConcurrencyLimiter::hybrid)];

async fn never_are_more_in_progress(place: &Place) {
    let (_, distributed) = BOTH[0];
    let (_, hybrid) = BOTH[1];
    let store = place.open().await;
    let limiters = [distributed, distributed, hybrid, hybrid]
        .map(|open| open(store.clone(), "a", 6, LEASE, OnUnavailable::Refuse).unwrap());
    let (now, most) = (Arc::new(AtomicI64::new(0)), Arc::new(AtomicI64::new(0)));
    let tasks = (0..32).map(|task| {
        let (limiter, now, most) = (limiters[task % 4].clone(), now.clone(), most.clone());
        tokio::spawn(async move {
            let permits = 1 + (task as u64 / 4) % 3;
            for _ in 0..10 {
                let permit = limiter.acquire(permits).await.unwrap();
                let mine = permits.cast_signed();
                most.fetch_max(now.fetch_add(mine, SeqCst) + mine, SeqCst);
                tokio::time::sleep(Duration::from_millis(2)).await;
                assert!(permit.is_held());
                now.fetch_sub(mine, SeqCst);
                drop(permit);
            }
        })
    });
    for task in tasks.collect::<Vec<_>>() {
        tokio::time::timeout(2 * PATIENCE, task).await.unwrap().unwrap();
    }
    assert!((4..=6).contains(&most.load(SeqCst)), "{most:?} at {}", place.url);
    // All come back though nobody says so.
    let what = "all permits are free";
    eventually(PATIENCE, what, async || limiters[0].remaining().await.unwrap() == 6).await;
    assert_eq!(limiters[0].try_acquire(6).await.unwrap().unwrap().decision().remaining, 0);
}

/// Of an hour: who waits and is not told asks after a second or two.
const HOUR: Duration = Duration::from_secs(3_600);
/// So many waits take longer than [`PATIENCE`] if nobody is told.
const ROUNDS: usize = 40;

/// Waits until so many instances want permits and have none.
async fn wait(limiter: &ConcurrencyLimiter, count: usize) {
    let all_wait = async || {
        let shown = limiter.show().await.unwrap();
        shown.iter().filter(|one| one.held == 0 && one.wanted > 0).count() == count
    };
    eventually(PATIENCE, "they wait", all_wait).await;
}

async fn who_waits_in_another_instance_is_told(place: &Place) {
    let store = place.open().await;
    let open =
        || ConcurrencyLimiter::distributed(store.clone(), "a", 2, HOUR, OnUnavailable::Refuse).unwrap();
    let (seen, mut holder) = (open(), open());
    let mut held = holder.acquire(2).await.unwrap();
    let rounds = async {
        for round in 0..ROUNDS {
            let waiting = [(); 2].map(|()| {
                let limiter = open();
                tokio::spawn(async move { (limiter.acquire(1).await.unwrap(), limiter) })
            });
            wait(&seen, 2).await;
            // It says that it has less, or with its last clone that it has nothing any more.
            drop(held);
            let _kept = (round % 2 == 0).then_some(holder);
            for waiting in waiting {
                let (permit, limiter) = waiting.await.unwrap();
                assert!(permit.is_held(), "at {}", place.url);
                drop((permit, limiter));
            }
            holder = open();
            held = holder.acquire(2).await.unwrap();
        }
        (holder, held)
    };
    let (_holder, _held) = tokio::time::timeout(PATIENCE, rounds).await.unwrap();
    let shown = &seen.show().await.unwrap()[..];
    let [Instance { label, held: 2, wanted: 2, left }] = shown else { panic!("{shown:?}") };
    assert_eq!(String::from_utf8_lossy(label), process_name());
    assert!(*left > HOUR * 9 / 10 && *left <= HOUR, "{left:?}");
}

macro_rules! over {
    ($($place:ident),*) => {$(
        mod $place {
            use super::*;

            #[tokio::test(flavor = "multi_thread")]
            async fn never_are_more_in_progress_than_the_limit_and_all_permits_come_back() {
                never_are_more_in_progress(&Place::$place()).await;
            }

            #[tokio::test]
            async fn who_waits_in_another_instance_is_told_what_comes_back() {
                who_waits_in_another_instance_is_told(&Place::$place()).await;
            }
        }
    )*};
}

over!(redis, cluster, postgres, disk, memory);

#[tokio::test]
async fn where_the_clocks_of_instances_decide_leases_are_longer_than_those_may_be_apart() {
    let store = Place::memcached().open().await;
    for (name, open) in BOTH {
        let open = |lease| open(store.clone(), name, 3, lease, OnUnavailable::Refuse);
        assert_eq!(open(Duration::from_secs(20)).unwrap_err().kind(), ErrorKind::InvalidInput);
        let [one, other] = [(); 2].map(|()| open(Duration::from_secs(30)).unwrap());
        let two = one.acquire(2).await.unwrap();
        assert!(two.is_held() && other.try_acquire(2).await.unwrap().is_err());
        drop(two);
        one.release().await.unwrap();
        assert!(other.acquire_timeout(3, PATIENCE).await.unwrap().unwrap().is_held());
    }
}

#[tokio::test(start_paused = true)]
async fn in_one_process_who_comes_first_goes_first_and_who_leaves_lets_the_others_by() {
    let limiter = ConcurrencyLimiter::local(3).unwrap();
    let two = limiter.try_acquire(2).await.unwrap().unwrap();
    assert_eq!((two.permits(), two.decision().remaining, two.is_held()), (2, 1, true));
    let mut many = Box::pin(limiter.acquire(3));
    assert!(poll!(&mut many).is_pending());
    let mut few = Box::pin(limiter.acquire(1));
    assert!(poll!(&mut few).is_pending(), "who wants many is not passed");
    let refusal = limiter.try_acquire(1).await.unwrap().unwrap_err();
    assert!(!refusal.allowed && !refusal.degraded && refusal.retry_after > Duration::ZERO);
    drop(many);
    let one = few.now_or_never().unwrap().unwrap();
    assert_eq!(limiter.remaining().await.unwrap(), 0);
    assert!(limiter.acquire_timeout(1, Duration::from_secs(1)).await.unwrap().is_err());
    let mut next = Box::pin(limiter.acquire(2));
    assert!(poll!(&mut next).is_pending());
    drop(two);
    let next = next.now_or_never().unwrap().unwrap();
    assert!(!next.lost().is_cancelled());
    // Answered, but not looked at any more.
    let mut never_seen = Box::pin(limiter.acquire(3));
    assert!(poll!(&mut never_seen).is_pending());
    drop((one, next));
    drop(never_seen);
    assert_eq!(limiter.remaining().await.unwrap(), 3);
    assert!(limiter.acquire_timeout(3, Duration::ZERO).await.unwrap().is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn in_one_process_threads_never_have_more_than_the_limit() {
    let limiter = ConcurrencyLimiter::local(5).unwrap();
    let (now, most) = (Arc::new(AtomicI64::new(0)), Arc::new(AtomicI64::new(0)));
    let tasks = (0..16).map(|_| {
        let (limiter, now, most) = (limiter.clone(), now.clone(), most.clone());
        tokio::spawn(async move {
            for _ in 0..500 {
                let permit = limiter.acquire(1).await.unwrap();
                most.fetch_max(now.fetch_add(1, SeqCst) + 1, SeqCst);
                tokio::task::yield_now().await;
                now.fetch_sub(1, SeqCst);
                drop(permit);
            }
        })
    });
    join_all(tasks).await.into_iter().for_each(|done| done.unwrap());
    assert!((2..=5).contains(&most.load(SeqCst)), "{most:?}");
    assert_eq!(limiter.remaining().await.unwrap(), 5);
}

#[tokio::test]
async fn what_cannot_be_is_refused_and_says_so() {
    let store = Place::memory().open().await;
    let kind = |result: commonhold::Result<ConcurrencyLimiter>| result.unwrap_err().kind();
    assert_eq!(kind(ConcurrencyLimiter::local(0)), ErrorKind::InvalidInput);
    for (_, open) in BOTH {
        let open = |name, permits, lease, rule| open(store.clone(), name, permits, lease, rule);
        assert_eq!(kind(open("", 1, LEASE, OnUnavailable::Allow)), ErrorKind::InvalidInput);
        assert_eq!(kind(open("a", 0, LEASE, OnUnavailable::Allow)), ErrorKind::InvalidInput);
        assert_eq!(kind(open("a", (1 << 32) + 1, LEASE, OnUnavailable::Allow)), ErrorKind::InvalidInput);
        assert_eq!(kind(open("a", 1, LEASE / 10, OnUnavailable::Allow)), ErrorKind::InvalidInput);
        assert_eq!(kind(open("a", 1, LONG * 7, OnUnavailable::Allow)), ErrorKind::InvalidInput);
        assert_eq!(kind(open("a", 1, LEASE, SHARE)), ErrorKind::InvalidInput);
        let none = OnUnavailable::LocalShare { instances: 0 };
        assert_eq!(kind(open("a", 1, LEASE, none)), ErrorKind::InvalidInput);
        let limiter = open("a", 2, LEASE, OnUnavailable::Allow).unwrap();
        for permits in [0, 3, u64::MAX] {
            assert_eq!(limiter.try_acquire(permits).await.unwrap_err().kind(), ErrorKind::InvalidInput);
            assert_eq!(limiter.acquire(permits).await.unwrap_err().kind(), ErrorKind::InvalidInput);
        }
    }
}

#[tokio::test]
async fn what_lies_under_the_key_and_is_no_limiter_is_an_error_and_not_an_outage() {
    let store = Place::redis().open().await;
    for (name, open) in BOTH {
        let key = format!("concurrency:{name}");
        store.put(key.as_str(), "concurrency of apples").await.unwrap();
        let limiter = open(store.clone(), name, 2, LEASE, OnUnavailable::Allow).unwrap();
        assert_eq!(limiter.try_acquire(1).await.unwrap_err().kind(), ErrorKind::Corrupt);
        assert_eq!(limiter.acquire(1).await.unwrap_err().kind(), ErrorKind::Corrupt);
        assert_eq!(limiter.remaining().await.unwrap_err().kind(), ErrorKind::Corrupt);
        store.delete(key.as_str()).await.unwrap();
        assert!(limiter.try_acquire(2).await.unwrap().is_ok());
    }
}

#[tokio::test]
async fn a_distributed_limiter_says_what_is_left_for_all_and_gives_back_at_once_and_a_hybrid_one_keeps_some()
{
    let store = Place::redis().open().await;
    let [distributed, beside] = [(); 2].map(|()| {
        ConcurrencyLimiter::distributed(store.clone(), "a", 5, LONG, OnUnavailable::Refuse).unwrap()
    });
    let permit = distributed.try_acquire(2).await.unwrap().unwrap();
    assert_eq!(permit.decision().remaining, 3);
    assert_eq!(beside.try_acquire(4).await.unwrap().unwrap_err().remaining, 3);
    drop(permit);
    let back = "it is back in the store";
    eventually(PATIENCE, back, async || beside.remaining().await.unwrap() == 5).await;

    let hybrid = ConcurrencyLimiter::hybrid(store, "b", 5, LONG, OnUnavailable::Refuse).unwrap();
    drop(hybrid.try_acquire(4).await.unwrap().unwrap());
    assert_eq!(hybrid.try_acquire(3).now_or_never().unwrap().unwrap().unwrap().permits(), 3);
    hybrid.release().await.unwrap();
    assert!(hybrid.try_acquire(3).now_or_never().is_none(), "it must ask");
}

#[tokio::test]
async fn permits_of_a_limiter_that_was_dropped_or_released_are_had_by_others() {
    let store = Place::redis().open().await;
    for (name, open) in BOTH {
        let [one, other] =
            [(); 2].map(|()| open(store.clone(), name, 4, LONG / 10, OnUnavailable::Refuse).unwrap());
        drop(one.try_acquire(4).await.unwrap().unwrap());
        one.release().await.unwrap();
        let all = other.try_acquire(4).await.unwrap().unwrap();
        // The permit keeps what it needs.
        drop(other);
        assert!(all.is_held() && one.try_acquire(1).await.unwrap().is_err());
        let wanting = async || one.show().await.unwrap().iter().filter(|it| it.wanted > it.held).count();
        assert_eq!(wanting().await, 1);
        one.release().await.unwrap();
        assert_eq!(wanting().await, 0);
        drop(all);
        let what = "they come back";
        eventually(PATIENCE, what, async || one.try_acquire(4).await.unwrap().is_ok()).await;
    }
}

#[tokio::test]
async fn who_waits_in_another_instance_has_what_comes_back() {
    let store = Place::redis().open().await;
    for (name, open) in BOTH {
        let [one, other] =
            [(); 2].map(|()| open(store.clone(), name, 1, LEASE, OnUnavailable::Refuse).unwrap());
        for _ in 0..3 {
            let held = one.acquire(1).await.unwrap();
            let mut waiting = Box::pin(other.acquire_timeout(1, PATIENCE));
            assert!(poll!(&mut waiting).is_pending());
            drop(held);
            drop(waiting.await.unwrap().unwrap());
        }
    }
}

#[tokio::test]
async fn who_is_told_and_cannot_use_what_is_free_tells_the_next() {
    let store = Place::redis().open().await;
    for (name, open) in BOTH {
        let open = || open(store.clone(), name, 2, HOUR, OnUnavailable::Refuse).unwrap();
        let [holder, many, few, tries] = [(); 4].map(|()| open());
        let rounds = async {
            for _ in 0..ROUNDS / 2 {
                let [one, other] = [holder.acquire(1).await.unwrap(), holder.acquire(1).await.unwrap()];
                // This one does not wait, and the next needs more than comes back.
                assert!(tries.try_acquire(1).await.unwrap().is_err());
                let mut waits_for_two = tokio::spawn({
                    let many = many.clone();
                    async move { many.acquire(2).await.unwrap() }
                });
                wait(&holder, 2).await;
                let waits_for_one = tokio::spawn({
                    let few = few.clone();
                    async move { few.acquire(1).await.unwrap() }
                });
                wait(&holder, 3).await;
                drop(one);
                holder.release().await.unwrap();
                drop((waits_for_one.await.unwrap(), other));
                few.release().await.unwrap();
                holder.release().await.unwrap();
                drop((&mut waits_for_two).await.unwrap());
                many.release().await.unwrap();
                tries.release().await.unwrap();
            }
        };
        tokio::time::timeout(PATIENCE, rounds).await.expect(name);
    }
}

#[tokio::test]
async fn the_next_is_told_before_release_returns_though_the_process_ends_then() {
    let place = Place::redis();
    let store = place.open().await;
    let open = |store| ConcurrencyLimiter::distributed(store, "a", 1, HOUR, OnUnavailable::Refuse).unwrap();
    let limiter = open(store);
    let rounds = async {
        for _ in 0..ROUNDS {
            let (holds, held) = tokio::sync::oneshot::channel();
            let url = place.url.clone();
            let holder = std::thread::spawn(move || {
                tokio::runtime::Runtime::new().unwrap().block_on(async {
                    let limiter = open(commonhold::open(&url).await.unwrap());
                    let permit = limiter.acquire(1).await.unwrap();
                    holds.send(()).unwrap();
                    wait(&limiter, 1).await;
                    drop(permit);
                    limiter.release().await.unwrap();
                });
            });
            held.await.unwrap();
            drop(limiter.acquire(1).await.unwrap());
            limiter.release().await.unwrap();
            holder.join().unwrap();
        }
    };
    tokio::time::timeout(PATIENCE, rounds).await.unwrap();
}

#[tokio::test]
async fn an_instance_that_waits_with_many_gets_a_share_of_one_that_works_with_many() {
    let store = Place::redis().open().await;
    for (name, open) in BOTH {
        let served = [(); 2].map(|()| Arc::new(AtomicI64::new(0)));
        let mut tasks = tokio::task::JoinSet::new();
        for served in served.clone() {
            let limiter = open(store.clone(), name, 4, LEASE, OnUnavailable::Refuse).unwrap();
            for _ in 0..12 {
                let (limiter, served) = (limiter.clone(), served.clone());
                tasks.spawn(async move {
                    loop {
                        let _permit = limiter.acquire(1).await.unwrap();
                        tokio::time::sleep(Duration::from_millis(2)).await;
                        served.fetch_add(1, SeqCst);
                    }
                });
            }
            // The first has had all of it by then.
            let what = "it works";
            eventually(PATIENCE, what, async || served.load(SeqCst) > 20).await;
        }
        let counts = || served.each_ref().map(|served| served.load(SeqCst));
        let before = counts();
        eventually(PATIENCE, "both get on", async || {
            counts().into_iter().zip(before).all(|(now, before)| now > before + 100)
        })
        .await;
    }
}

#[tokio::test]
async fn who_asks_for_what_is_free_has_it_at_once_whatever_was_refused_before() {
    let store = Place::memory().open().await;
    let rounds = async {
        for round in 0..ROUNDS {
            for (name, open) in BOTH {
                let [one, other] = [(); 2].map(|()| {
                    open(store.clone(), &format!("{name}{round}"), 5, HOUR, OnUnavailable::Refuse).unwrap()
                });
                let two = other.acquire(2).await.unwrap();
                // What many were refused few can have.
                assert!(one.try_acquire(5).await.unwrap().is_err());
                let few = tokio::time::timeout(PATIENCE, one.acquire(1)).await.unwrap().unwrap();
                let (many, few_more) = tokio::join!(one.try_acquire(4), one.try_acquire(1));
                assert!(many.unwrap().is_err() && few_more.unwrap().is_ok());
                // What was refused while it was in use can be had when it is not.
                drop((two, few));
                other.release().await.unwrap();
                one.release().await.unwrap();
                let all = tokio::time::timeout(PATIENCE, one.acquire(5)).await.unwrap().unwrap();
                let waits = tokio::spawn({
                    let one = one.clone();
                    async move { one.acquire(1).await.map(drop) }
                });
                eventually(PATIENCE, "it stands in line", async || {
                    one.try_acquire(1).await.unwrap().is_err()
                })
                .await;
                drop(all);
                tokio::time::timeout(PATIENCE, waits).await.unwrap().unwrap().unwrap();
                drop(tokio::time::timeout(PATIENCE, one.acquire(5)).await.unwrap().unwrap());
            }
            let [one, other] = [(); 2].map(|()| {
                ConcurrencyLimiter::distributed(
                    store.clone(),
                    &format!("c{round}"),
                    1,
                    HOUR,
                    OnUnavailable::Refuse,
                )
                .unwrap()
            });
            let only = other.acquire(1).await.unwrap();
            assert!(one.try_acquire(1).await.unwrap().is_err());
            drop(only);
            other.release().await.unwrap();
            drop(tokio::time::timeout(PATIENCE, one.acquire(1)).await.unwrap().unwrap());
        }
    };
    tokio::time::timeout(PATIENCE, rounds).await.unwrap();
}

#[tokio::test]
async fn nobody_is_refused_by_the_answer_to_another_request() {
    let store = Place::redis().open().await;
    for (name, open) in BOTH {
        let limiter = open(store.clone(), name, 4, HOUR, OnUnavailable::Refuse).unwrap();
        for round in 0..50 {
            let (taken, released) = tokio::join!(limiter.try_acquire(2), limiter.release());
            released.unwrap();
            assert!(taken.unwrap().is_ok(), "{name}: all were free in round {round}");
            // One whose reply nobody waits for.
            drop(limiter.release().now_or_never());
        }
    }
}
