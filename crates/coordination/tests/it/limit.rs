//! Rate limiters over real stores, many tasks, stores that go away and replies that are lost.

use std::{future::Future, time::Duration};

use commonhold::{
    ErrorKind, Retry, Store,
    layers::{Fault, FaultPlan, Operation, Timeout},
};
use commonhold_coordination::limit::{
    Decision, DistributedLimiter, HybridLimiter, Limit, OnUnavailable, Rate, SlidingWindow, TokenBucket,
};
use commonhold_testkit::{
    eventually,
    proxy::{Mode, Proxy},
    servers::Redis,
};
use futures_util::{FutureExt as _, future::join_all, poll};
use metrics_util::debugging::{DebugValue, DebuggingRecorder, Snapshotter};

use crate::common::{PATIENCE, Place};

const DAY: Duration = Duration::from_secs(86_400);
const LEASE: Duration = Duration::from_millis(500);

/// Nothing of any account flows in while a test runs.
fn fixed(burst: u64) -> TokenBucket {
    TokenBucket::new(Rate::per_day(1).unwrap(), burst).unwrap()
}

/// Lets 16 tasks for each limiter make 40 calls, and counts how many are allowed.
async fn rush<L, F>(limiters: Vec<L>, call: impl Fn(L) -> F + Clone + Send + 'static) -> u64
where
    L: Clone + Send + 'static,
    F: Future<Output = Decision> + Send,
{
    let tasks = limiters.into_iter().flat_map(|limiter| vec![limiter; 16]).map(|limiter| {
        let call = call.clone();
        tokio::spawn(async move {
            let mut allowed = 0;
            for _ in 0..40 {
                allowed += u64::from(call(limiter.clone()).await.allowed);
            }
            allowed
        })
    });
    join_all(tasks).await.into_iter().map(Result::unwrap).sum()
}

async fn gives_exactly_the_limit(place: &Place) {
    for (name, limit) in
        [("bucket", Limit::from(fixed(500))), ("window", SlidingWindow::new(500, DAY).unwrap().into())]
    {
        let open = async |_| {
            DistributedLimiter::new(place.open().await, name, limit, OnUnavailable::Refuse).unwrap()
        };
        let limiters = join_all((0..2).map(open)).await;
        let limiter = limiters[0].clone();
        assert_eq!(limiter.peek().await.unwrap().remaining, 500);
        let allowed =
            rush(limiters, async |limiter: DistributedLimiter| limiter.try_acquire(1).await.unwrap());
        assert_eq!(allowed.await, 500, "{name} at {}", place.url);
        let peeked = limiter.peek().await.unwrap();
        assert!(!peeked.allowed && peeked.remaining == 0 && peeked.retry_after > Duration::from_secs(3_600));
        assert!(!limiter.acquire_timeout(1, Duration::from_secs(60)).await.unwrap().allowed);
        limiter.reset().await.unwrap();
        assert_eq!(limiter.try_acquire(500).await.unwrap().remaining, 0);
        assert_eq!(limiter.try_acquire(501).await.unwrap_err().kind(), ErrorKind::InvalidInput);
    }
}

async fn leases_no_more_than_the_limit_and_takes_back_what_is_idle(place: &Place) {
    for (name, limit) in
        [("bucket", Limit::from(fixed(1_000))), ("window", SlidingWindow::new(1_000, DAY).unwrap().into())]
    {
        let open = async |_| {
            let store = place.open().await;
            HybridLimiter::new(store, name, limit, LEASE, OnUnavailable::Refuse).unwrap()
        };
        let limiters = join_all((0..3).map(open)).await;
        let allowed =
            rush(limiters.clone(), async |limiter: HybridLimiter| limiter.try_acquire(1).await.unwrap())
                .await;
        assert!((100..=1_000).contains(&allowed), "{allowed} at {}", place.url);
        let store = place.open().await;
        let direct = DistributedLimiter::new(store, name, limit, OnUnavailable::Refuse).unwrap();
        // One gives back when it is told, one when it is dropped, one because nobody asks it any more.
        limiters[0].release().await.unwrap();
        let idle = limiters[2].clone();
        drop(limiters);
        let what = "the portions come back";
        eventually(PATIENCE, what, async || direct.peek().await.unwrap().remaining == 1_000 - allowed).await;
        assert_eq!(direct.try_acquire(1_000 - allowed).await.unwrap().allowed, allowed < 1_000);
        assert!(!idle.try_acquire(1).await.unwrap().allowed);
    }
}

macro_rules! over {
    ($($place:ident),*) => {$(
        mod $place {
            use super::*;

            #[tokio::test(flavor = "multi_thread")]
            async fn many_tasks_of_two_instances_get_exactly_the_limit() {
                gives_exactly_the_limit(&Place::$place()).await;
            }

            #[tokio::test(flavor = "multi_thread")]
            async fn three_instances_lease_no_more_than_the_limit_and_what_is_idle_comes_back() {
                leases_no_more_than_the_limit_and_takes_back_what_is_idle(&Place::$place()).await;
            }
        }
    )*};
}

over!(redis, cluster, postgres);

#[tokio::test(flavor = "multi_thread")]
async fn in_one_process_a_store_in_memory_will_do() {
    let store = Place::memory().open().await;
    let limiter = DistributedLimiter::new(store.clone(), "a", fixed(500), OnUnavailable::Refuse).unwrap();
    let calls =
        rush(vec![limiter; 2], async |limiter: DistributedLimiter| limiter.try_acquire(1).await.unwrap());
    assert_eq!(calls.await, 500);
    let hybrid = HybridLimiter::new(store, "a", fixed(500), LEASE, OnUnavailable::Refuse).unwrap();
    assert!(!hybrid.try_acquire(1).await.unwrap().allowed, "both forms share one budget");
}

#[tokio::test]
async fn waiting_gets_what_flows_in() {
    let store = Place::redis().open().await;
    let bucket = TokenBucket::new(Rate::per_second(50).unwrap(), 2).unwrap();
    let window = SlidingWindow::new(2, Duration::from_millis(40)).unwrap();
    for (name, limit) in [("bucket", Limit::from(bucket)), ("window", window.into())] {
        let limiter = DistributedLimiter::new(store.clone(), name, limit, OnUnavailable::Refuse).unwrap();
        for _ in 0..4 {
            assert!(limiter.acquire(2).await.unwrap().allowed);
        }
        let leased = format!("leased {name}");
        let hybrid = HybridLimiter::new(store.clone(), &leased, limit, LEASE, OnUnavailable::Refuse).unwrap();
        for _ in 0..4 {
            assert!(hybrid.acquire(2).await.unwrap().allowed);
        }
    }
}

#[tokio::test]
async fn what_instances_give_back_is_had_by_those_who_wait_though_it_would_flow_in_a_day() {
    let store = Place::redis().open().await;
    let hybrid = || HybridLimiter::new(store.clone(), "a", fixed(10), LEASE, OnUnavailable::Refuse).unwrap();
    let (idle, waiting) = (hybrid(), hybrid());
    let direct = DistributedLimiter::new(store.clone(), "a", fixed(10), OnUnavailable::Refuse).unwrap();
    assert!(idle.try_acquire(1).await.unwrap().allowed);
    let rest = direct.peek().await.unwrap().remaining;
    assert!(direct.try_acquire(rest).await.unwrap().allowed);
    assert!(waiting.acquire_timeout(1, PATIENCE).await.unwrap().allowed);
    assert!(direct.acquire_timeout(1, PATIENCE).await.unwrap().allowed);
}

#[tokio::test]
async fn what_an_instance_has_spent_refills_once_it_is_released_or_dropped() {
    let store = Place::memory().open().await;
    let (limit, lease) =
        (TokenBucket::new(Rate::per_second(100).unwrap(), 10).unwrap(), Duration::from_secs(600));
    for (name, dropped) in [("released", false), ("dropped", true)] {
        let hybrid = HybridLimiter::new(store.clone(), name, limit, lease, OnUnavailable::Refuse).unwrap();
        let direct = DistributedLimiter::new(store.clone(), name, limit, OnUnavailable::Refuse).unwrap();
        assert!(hybrid.try_acquire(10).await.unwrap().allowed);
        if dropped {
            drop(hybrid);
        } else {
            hybrid.release().await.unwrap();
        }
        eventually(PATIENCE, name, async || direct.try_acquire(1).await.unwrap().allowed).await;
    }
}

#[tokio::test]
async fn what_lies_under_the_key_and_is_no_limiter_is_an_error_and_not_an_outage() {
    let store = Place::redis().open().await;
    store.put("limit:a", "bucket of apples").await.unwrap();
    let limiter = DistributedLimiter::new(store.clone(), "a", fixed(5), OnUnavailable::Allow).unwrap();
    assert_eq!(limiter.try_acquire(1).await.unwrap_err().kind(), ErrorKind::Corrupt);
    let hybrid = HybridLimiter::new(store.clone(), "a", fixed(5), LEASE, OnUnavailable::Allow).unwrap();
    assert_eq!(hybrid.try_acquire(1).await.unwrap_err().kind(), ErrorKind::Corrupt);
    limiter.reset().await.unwrap();
    assert!(limiter.try_acquire(1).await.unwrap().allowed);
    let error = HybridLimiter::new(store, "a", fixed(5), Duration::ZERO, OnUnavailable::Allow).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
}

#[tokio::test]
async fn where_the_clocks_of_instances_decide_leases_are_longer_than_those_may_be_apart() {
    let store = Place::memcached().open().await;
    let open = |lease| HybridLimiter::new(store.clone(), "a", fixed(5), lease, OnUnavailable::Refuse);
    assert_eq!(open(Duration::from_secs(20)).unwrap_err().kind(), ErrorKind::InvalidInput);
    let limiter = open(Duration::from_secs(30)).unwrap();
    assert!(limiter.try_acquire(5).await.unwrap().allowed);
    assert!(!limiter.try_acquire(1).await.unwrap().allowed);
}

/// The forms and outcomes of the decisions that the metrics have counted.
fn counted(snapshotter: &Snapshotter) -> Vec<(String, String)> {
    let snapshot = snapshotter.snapshot().into_vec().into_iter();
    let counted = snapshot.filter(|(key, _, _, value)| {
        key.key().name() == "commonhold_limit_decisions_total"
            && matches!(value, DebugValue::Counter(count) if *count > 0)
    });
    let label = |key: &metrics::Key, name: &str| {
        key.labels().find(|label| label.key() == name).unwrap().value().to_owned()
    };
    counted.map(|(key, ..)| (label(key.key(), "form"), label(key.key(), "outcome"))).collect()
}

#[tokio::test]
async fn limiters_that_are_metered_as_one_have_no_series_of_their_own() {
    let recorder = DebuggingRecorder::new();
    let seen = recorder.snapshotter();
    let _recording = metrics::set_default_local_recorder(&recorder);
    let store = Place::memory().open().await;
    for user in 0..3 {
        let (store, name) = (store.clone(), format!("user {user}"));
        let distributed =
            DistributedLimiter::new(store.clone(), &name, fixed(1), OnUnavailable::Refuse).unwrap();
        assert!(distributed.metered_as("users").try_acquire(1).await.unwrap().allowed);
        let hybrid = HybridLimiter::new(store, &name, fixed(1), LEASE, OnUnavailable::Refuse).unwrap();
        assert!(!hybrid.metered_as("users").try_acquire(1).await.unwrap().allowed);
    }
    let series = seen.snapshot().into_vec();
    let names = series.iter().flat_map(|(key, ..)| key.key().labels()).filter(|label| label.key() == "name");
    assert!(names.clone().count() > 0 && names.clone().all(|label| label.value() == "users"), "{series:?}");
}

async fn quick(url: &str) -> Store {
    commonhold::open(&format!("{url}?call_timeout=300ms")).await.unwrap()
}

#[tokio::test]
async fn a_store_that_is_killed_fails_open_closed_or_to_a_local_share_as_the_caller_chose() {
    let share = OnUnavailable::LocalShare { instances: 2 };
    let limit = TokenBucket::new(Rate::per_second(1_000_000).unwrap(), 10).unwrap();
    for (rule, outcome) in [
        (OnUnavailable::Allow, "failed_open"),
        (OnUnavailable::Refuse, "failed_closed"),
        (share, "share_allowed"),
    ] {
        let redis = Redis::start();
        let store = quick(&redis.url()).await;
        let recorder = DebuggingRecorder::new();
        let seen = recorder.snapshotter();
        let _recording = metrics::set_default_local_recorder(&recorder);
        let distributed = DistributedLimiter::new(store.clone(), "a", limit, rule).unwrap();
        let hybrid = HybridLimiter::new(store.clone(), "b", limit, LEASE, rule).unwrap();
        assert!(!distributed.try_acquire(1).await.unwrap().degraded);
        assert!(!hybrid.try_acquire(1).await.unwrap().degraded);
        hybrid.release().await.unwrap();
        redis.kill();
        if rule == share {
            // The shares begin empty and refill.
            let _refused = distributed.try_acquire(1).await.unwrap();
            let _refused = hybrid.try_acquire(1).await.unwrap();
            assert!(distributed.acquire(1).await.unwrap().degraded);
            assert!(hybrid.acquire(1).await.unwrap().degraded);
            assert!(!distributed.try_acquire(10).await.unwrap().allowed, "a share is half of it");
        } else {
            let allowed = rule == OnUnavailable::Allow;
            let decisions = [distributed.try_acquire(1).await.unwrap(), hybrid.try_acquire(1).await.unwrap()];
            for decision in decisions {
                assert_eq!((decision.allowed, decision.degraded), (allowed, true));
            }
            assert_eq!(distributed.acquire(1).await.is_ok(), allowed);
            assert_eq!(hybrid.acquire(1).await.is_ok(), allowed);
        }
        let counted = counted(&seen);
        for form in ["distributed", "hybrid"] {
            assert!(counted.contains(&(form.into(), outcome.into())), "{form} {outcome}: {counted:?}");
        }
        redis.start_again();
        eventually(PATIENCE, "the store decides again", async || {
            let decisions = [distributed.try_acquire(1).await.unwrap(), hybrid.try_acquire(1).await.unwrap()];
            decisions.iter().all(|decision| decision.allowed && !decision.degraded)
        })
        .await;
    }
}

#[tokio::test(start_paused = true)]
async fn while_the_store_hangs_all_calls_but_one_are_decided_at_once() {
    let plan = FaultPlan::new();
    for _ in 0..100 {
        plan.hang(Operation::Transact);
    }
    let store = Place::memory().open().await;
    let store = store.layer(Fault::new(&plan)).layer(Timeout::new(Duration::from_secs(1)));
    let distributed = DistributedLimiter::new(store.clone(), "a", fixed(10), OnUnavailable::Allow).unwrap();
    let hybrid = HybridLimiter::new(store, "b", fixed(10), LEASE, OnUnavailable::Allow).unwrap();
    assert!(distributed.try_acquire(1).await.unwrap().degraded);
    assert!(hybrid.try_acquire(1).await.unwrap().degraded);
    tokio::time::advance(Duration::from_secs(10)).await;
    let mut asking = (Box::pin(distributed.try_acquire(1)), Box::pin(hybrid.try_acquire(1)));
    assert!(poll!(&mut asking.0).is_pending() && poll!(&mut asking.1).is_pending());
    for _ in 0..10 {
        assert!(distributed.try_acquire(1).now_or_never().unwrap().unwrap().degraded);
        assert!(hybrid.try_acquire(1).now_or_never().unwrap().unwrap().degraded);
    }
    assert!(asking.0.await.unwrap().degraded && asking.1.await.unwrap().degraded);
}

#[tokio::test]
async fn a_call_whose_reply_is_lost_is_charged_at_most_once_and_says_so() {
    let redis = Redis::start();
    let proxy = Proxy::before(redis.port());
    let store = quick(&redis.url_at(proxy.port())).await;
    let direct = quick(&redis.url()).await;
    let limiter = DistributedLimiter::new(store, "a", fixed(100), OnUnavailable::Refuse).unwrap();
    let beside = DistributedLimiter::new(direct, "a", fixed(100), OnUnavailable::Refuse).unwrap();
    assert!(limiter.try_acquire(1).await.unwrap().allowed);
    proxy.set(Mode::CutReply(0));
    let error = limiter.acquire(10).await.unwrap_err();
    assert_eq!(error.retry(), Retry::Ambiguous, "{error}");
    assert_eq!(beside.peek().await.unwrap().remaining, 89);
    eventually(PATIENCE, "the store decides again", async || !limiter.try_acquire(1).await.unwrap().degraded)
        .await;
    assert_eq!(beside.peek().await.unwrap().remaining, 88);
}

#[tokio::test]
async fn a_portion_whose_reply_is_lost_is_asked_for_again_and_nothing_is_lost() {
    let redis = Redis::start();
    let proxy = Proxy::before(redis.port());
    let store = quick(&redis.url_at(proxy.port())).await;
    let direct = quick(&redis.url()).await;
    let long = Duration::from_secs(600);
    let limiter = HybridLimiter::new(store, "a", fixed(100), long, OnUnavailable::Refuse).unwrap();
    let beside = DistributedLimiter::new(direct, "a", fixed(100), OnUnavailable::Refuse).unwrap();
    assert!(limiter.try_acquire(1).await.unwrap().allowed);
    proxy.set(Mode::CutReply(0));
    assert!(limiter.try_acquire(60).await.unwrap().degraded);
    assert!(beside.peek().await.unwrap().remaining < 40, "the store has given them");
    eventually(PATIENCE, "the store decides again", async || {
        limiter.try_acquire(60).await.is_ok_and(|decision| decision.allowed && !decision.degraded)
    })
    .await;
    limiter.release().await.unwrap();
    assert_eq!(beside.peek().await.unwrap().remaining, 39);
}
