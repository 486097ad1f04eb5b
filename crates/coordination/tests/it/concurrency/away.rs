//! Stores that go away, replies that are lost, runtimes that end.

use std::time::Duration;

use commonhold::{
    ErrorKind, Store,
    layers::{Fault, FaultPlan, Operation},
};
use commonhold_coordination::limit::{ConcurrencyLimiter, OnUnavailable};
use commonhold_testkit::{
    eventually,
    proxy::{Mode, Proxy},
    servers::Redis,
};
use futures_util::{FutureExt as _, future::join_all, poll};
use metrics_util::debugging::{DebugValue, DebuggingRecorder};

use super::{BOTH, HOUR, LEASE, LONG, SHARE};
use crate::common::{PATIENCE, Place};

#[tokio::test]
async fn permits_whose_lease_cannot_be_renewed_are_lost_before_others_have_them() {
    for (name, open) in BOTH {
        let redis = Redis::start();
        let proxy = Proxy::before(redis.port());
        let store = quick(&redis.url_at(proxy.port())).await;
        let limiter = open(store, name, 2, LEASE, OnUnavailable::Refuse).unwrap();
        let beside = open(quick(&redis.url()).await, name, 2, LEASE, OnUnavailable::Refuse).unwrap();
        let permit = limiter.acquire(2).await.unwrap();
        assert!(permit.is_held());
        proxy.set(Mode::BlackHole);
        let others = beside.acquire(1).await.unwrap();
        assert!(permit.lost().is_cancelled() && !permit.is_held());
        assert!(others.is_held());
        proxy.set(Mode::Pass);
        // It goes back into no account.
        let all = "the limiter goes on";
        eventually(PATIENCE, all, async || {
            limiter.try_acquire(1).await.is_ok_and(|taken| taken.is_ok_and(|one| !one.decision().degraded))
        })
        .await;
        drop(permit);
        let one = limiter.acquire(1).await.unwrap();
        let refused = limiter.try_acquire(1).await.unwrap().unwrap_err();
        assert!(!refused.degraded, "one is here, one there");
        drop((one, others));
        eventually(PATIENCE, all, async || limiter.try_acquire(2).await.unwrap().is_ok()).await;
    }
}

#[tokio::test]
async fn what_a_lost_reply_has_brought_is_known_by_the_next() {
    for (name, open) in BOTH {
        let redis = Redis::start();
        let proxy = Proxy::before(redis.port());
        let limiter = open(quick(&redis.url_at(proxy.port())).await, name, 4, LONG, OnUnavailable::Refuse);
        let limiter = limiter.unwrap();
        let beside = open(quick(&redis.url()).await, name, 4, LONG, OnUnavailable::Refuse).unwrap();
        let one = limiter.acquire(1).await.unwrap();
        proxy.set(Mode::CutReply(0));
        let refusal = limiter.try_acquire(3).await.unwrap().unwrap_err();
        assert!(refusal.degraded);
        assert!(beside.remaining().await.unwrap() == 0, "the store has given them");
        let what = "they are here";
        eventually(PATIENCE, what, async || {
            limiter
                .try_acquire(3)
                .await
                .is_ok_and(|taken| taken.is_ok_and(|three| !three.decision().degraded))
        })
        .await;
        drop(one);
        limiter.release().await.unwrap();
        assert_eq!(beside.remaining().await.unwrap(), 4);
    }
}

async fn quick(url: &str) -> Store {
    commonhold::open(&format!("{url}?call_timeout=300ms")).await.unwrap()
}

#[tokio::test]
async fn a_store_that_is_killed_fails_open_closed_or_to_a_local_share_as_the_caller_chose() {
    for (form, open) in BOTH {
        for (rule, outcome) in [
            (OnUnavailable::Allow, "failed_open"),
            (OnUnavailable::Refuse, "failed_closed"),
            (SHARE, "share_allowed"),
        ] {
            let redis = Redis::start();
            let store = quick(&redis.url()).await;
            let recorder = DebuggingRecorder::new();
            let seen = recorder.snapshotter();
            let _recording = metrics::set_default_local_recorder(&recorder);
            let limiter = open(store, "a", 4, LEASE, rule).unwrap();
            drop(limiter.acquire(1).await.unwrap());
            limiter.release().await.unwrap();
            redis.kill();
            match rule {
                OnUnavailable::Allow => {
                    let permits = join_all((0..6).map(|_| limiter.acquire(1))).await;
                    for permit in &permits {
                        let permit = permit.as_ref().unwrap();
                        assert!(permit.decision().degraded && permit.is_held());
                    }
                }
                OnUnavailable::Refuse => {
                    let refusal = limiter.try_acquire(1).await.unwrap().unwrap_err();
                    assert!(refusal.degraded && refusal.retry_after > Duration::ZERO);
                    assert_eq!(limiter.acquire(1).await.unwrap_err().kind(), ErrorKind::Unavailable);
                }
                OnUnavailable::LocalShare { .. } => {
                    let two = limiter.acquire(2).await.unwrap();
                    assert!(two.decision().degraded);
                    assert!(limiter.try_acquire(1).await.unwrap().unwrap_err().degraded);
                    assert!(limiter.acquire(3).await.is_err(), "a share is half of it");
                    let mut next = Box::pin(limiter.acquire(1));
                    assert!(poll!(&mut next).is_pending());
                    drop(two);
                    assert!(next.await.unwrap().decision().degraded);
                }
            }
            let counted = seen.snapshot().into_vec().into_iter().any(|(key, _, _, value)| {
                let has = |name, value| {
                    key.key().labels().any(|label| label.key() == name && label.value() == value)
                };
                has("outcome", outcome)
                    && has("form", form)
                    && matches!(value, DebugValue::Counter(count) if count > 0)
            });
            assert!(counted, "{form} {outcome}");
            redis.start_again();
            eventually(PATIENCE, "the store decides again", async || {
                let taken = limiter.try_acquire(4).await.unwrap();
                taken.is_ok_and(|permit| !permit.decision().degraded)
            })
            .await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn while_the_store_hangs_calls_are_decided_at_once_but_for_the_first() {
    for (_, open) in BOTH {
        let plan = FaultPlan::new();
        for _ in 0..100 {
            plan.hang(Operation::Transact);
        }
        let store = Place::memory().open().await;
        let store =
            store.layer(Fault::new(&plan)).layer(commonhold::layers::Timeout::new(Duration::from_secs(1)));
        let limiter = open(store, "a", 1, LEASE, OnUnavailable::Allow).unwrap();
        assert!(limiter.acquire(1).await.unwrap().decision().degraded);
        for _ in 0..10 {
            let permit = limiter.acquire(1).now_or_never().unwrap().unwrap();
            assert!(permit.decision().degraded);
        }
    }
}

#[tokio::test]
async fn permits_are_lost_in_time_though_the_store_neither_answers_nor_gives_up() {
    for (name, open) in BOTH {
        let plan = FaultPlan::new();
        let store = Place::memory().open().await.layer(Fault::new(&plan));
        let limiter = open(store, name, 1, LEASE, OnUnavailable::Refuse).unwrap();
        let permit = limiter.acquire(1).await.unwrap();
        for _ in 0..100 {
            plan.hang(Operation::Transact);
        }
        tokio::time::timeout(PATIENCE, permit.lost().cancelled()).await.unwrap();
        assert!(!permit.is_held());
    }
}

#[tokio::test]
async fn a_reply_that_comes_after_its_lease_is_the_store_being_away() {
    for (name, open) in BOTH {
        let plan = FaultPlan::new();
        let store = Place::memory().open().await.layer(Fault::new(&plan));
        let limiter = open(store, name, 4, LEASE / 5, OnUnavailable::Allow).unwrap();
        plan.delay(Operation::Transact, LEASE / 2);
        assert!(limiter.acquire(2).await.unwrap().decision().degraded);
        eventually(PATIENCE, "the store decides again", async || {
            !limiter.acquire(1).await.unwrap().decision().degraded
        })
        .await;
    }
}

#[tokio::test]
async fn an_error_that_the_caller_must_mend_is_told_though_the_store_was_away_before() {
    for (name, open) in BOTH {
        let plan = FaultPlan::new();
        let store = Place::memory().open().await;
        let limiter =
            open(store.clone().layer(Fault::new(&plan)), name, 2, HOUR, OnUnavailable::Refuse).unwrap();
        let _held = limiter.acquire(1).await.unwrap();
        plan.refuse(Operation::Transact);
        assert!(limiter.try_acquire(2).await.unwrap_or_else(|error| panic!("{error}")).is_err());
        let key = format!("concurrency:{name}");
        store.put(key.as_str(), "apples").await.unwrap();
        eventually(PATIENCE, "it is told", async || {
            limiter.try_acquire(2).await.is_err_and(|error| error.kind() == ErrorKind::Corrupt)
        })
        .await;
        store.delete(key.as_str()).await.unwrap();
        assert!(!limiter.acquire(1).await.unwrap().decision().degraded);
    }
}

#[tokio::test]
async fn whom_the_rule_refuses_is_counted_though_it_would_have_waited() {
    let recorder = DebuggingRecorder::new();
    let seen = recorder.snapshotter();
    let _recording = metrics::set_default_local_recorder(&recorder);
    let plan = FaultPlan::new();
    let store = Place::memory().open().await.layer(Fault::new(&plan));
    let limiter = ConcurrencyLimiter::distributed(store, "a", 2, LEASE, OnUnavailable::Refuse).unwrap();
    plan.refuse(Operation::Transact);
    assert!(limiter.acquire(1).await.is_err());
    let counted = seen.snapshot().into_vec().into_iter().any(|(key, _, _, value)| {
        key.key().labels().any(|label| label.value() == "failed_closed") && value == DebugValue::Counter(1)
    });
    assert!(counted);
}

#[test]
fn a_runtime_that_is_not_driven_keeps_no_call_of_another_from_asking() {
    for (name, open) in BOTH {
        let idle = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let store = idle.block_on(Place::memory().open());
        let limiter = open(store, name, 2, LEASE, OnUnavailable::Refuse).unwrap();
        let _held = idle.block_on(limiter.acquire(1)).unwrap();
        let driven = tokio::runtime::Runtime::new().unwrap();
        driven.block_on(async {
            let taken = tokio::time::timeout(PATIENCE, limiter.try_acquire(1)).await.unwrap();
            assert!(taken.unwrap().unwrap().is_held());
        });
    }
}

#[test]
fn what_cannot_be_renewed_ends_by_itself_and_without_a_runtime_it_is_an_error() {
    for (name, open) in BOTH {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let handle = runtime.handle().clone();
        let store = runtime.block_on(Place::memory().open());
        let limiter = open(store.clone(), name, 2, LEASE, OnUnavailable::Refuse).unwrap();
        runtime.shutdown_background();
        let held = handle.block_on(limiter.acquire(1)).unwrap();
        assert!(handle.block_on(limiter.try_acquire(2)).unwrap().is_err());
        let taken = limiter.acquire(2).now_or_never().unwrap();
        assert_eq!(taken.map(drop).unwrap_err().kind(), ErrorKind::Closed);
        let other = tokio::runtime::Runtime::new().unwrap();
        other.block_on(async {
            let beside = open(store, name, 2, LEASE, OnUnavailable::Refuse).unwrap();
            drop(beside.acquire_timeout(2, PATIENCE).await.unwrap().unwrap());
            assert!(!held.is_held());
        });
    }
}

#[test]
fn a_runtime_that_ends_takes_neither_permits_nor_those_in_line_with_it() {
    for (name, open) in BOTH {
        let runtimes = [(); 2].map(|()| tokio::runtime::Runtime::new().unwrap());
        let [first, second] = runtimes;
        let limiter = second.block_on(async {
            let store = Place::redis().open().await;
            open(store, name, 2, LEASE, OnUnavailable::Refuse).unwrap()
        });
        // The task that asks runs on the first.
        let held = first.block_on(limiter.acquire(2)).unwrap();
        let waits = second.spawn({
            let limiter = limiter.clone();
            async move { limiter.acquire_timeout(2, PATIENCE).await.unwrap().is_ok() }
        });
        second.block_on(async {
            let what = "it stands in line";
            eventually(PATIENCE, what, async || limiter.try_acquire(1).await.unwrap().is_err()).await;
        });
        first.shutdown_background();
        drop(held);
        assert!(second.block_on(waits).unwrap());
    }
}

#[test]
fn without_a_runtime_permits_are_given_back_though_nobody_can_be_told() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let limiter = runtime.block_on(async {
        let store = Place::memory().open().await;
        let [limiter, other] = [(); 2].map(|()| {
            ConcurrencyLimiter::hybrid(store.clone(), "a", 2, LONG, OnUnavailable::Refuse).unwrap()
        });
        drop(limiter.acquire(2).await.unwrap());
        assert!(other.try_acquire(1).await.unwrap().is_err());
        limiter
    });
    drop(runtime);
    limiter.release().now_or_never().unwrap().unwrap();
    assert_eq!(limiter.remaining().now_or_never().unwrap().unwrap(), 2);
}
