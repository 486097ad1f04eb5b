//! Circuit breakers that decide in each instance and mix what they know over a store.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use commonhold::{
    ManualClock, MemoryBackend, Store,
    layers::{Fault, FaultPlan, Operation},
};
use commonhold_coordination::breaker::{
    BreakerError, DistributedBreaker, HybridBreaker, OnUnavailable, Permit, Settings, State,
};
use commonhold_testkit::{eventually, servers::Redis};
use futures_util::FutureExt as _;
use tokio::{sync::Semaphore, task::JoinSet};

use crate::{
    breakers::{LONG, SECOND, after, fail, succeed},
    common::{PATIENCE, Place},
};

/// Hybrid breakers of three instances over one shared one.
fn hybrids(store: &Store, own: &Settings, fleet: &Settings) -> Vec<HybridBreaker> {
    let hybrid = |_| {
        let shared = DistributedBreaker::new(store.clone(), "b", fleet, OnUnavailable::Allow).unwrap();
        HybridBreaker::new(own, shared, Duration::from_millis(10)).unwrap()
    };
    (0..3).map(hybrid).collect()
}

async fn until(breaker: &HybridBreaker, state: State) {
    eventually(PATIENCE, &format!("it is {state}"), async || breaker.state() == state).await;
}

async fn mix(place: Place) {
    let store = place.open().await;
    let fleet = after(4).min_reporters(2).half_open_probes(2).open_for(Duration::from_millis(200));
    let all = hybrids(&store, &after(2).open_for(LONG), &fleet);
    // What two instances have seen opens it for the third.
    eventually(PATIENCE, "the shared one opens", async || {
        for breaker in &all[..2] {
            let _ = breaker.execute(fail).await;
            breaker.local().close();
        }
        all[2].shared().show().await.unwrap().state != State::Closed
    })
    .await;
    for breaker in &all {
        until(breaker, State::Open).await;
    }
    assert_eq!(all[2].totals().calls.calls, 0);

    // Two probes are leased to all of them, however many calls there are to be made.
    let (under_way, gate) = (Arc::new(AtomicUsize::new(0)), Arc::new(Semaphore::new(0)));
    let mut calls = JoinSet::new();
    for breaker in [&all[..], &all[..]].concat() {
        let (under_way, gate) = (Arc::clone(&under_way), Arc::clone(&gate));
        calls.spawn(async move {
            let probe = || async {
                under_way.fetch_add(1, SeqCst);
                let _open = gate.acquire().await.unwrap();
                Ok::<_, ()>(())
            };
            while breaker.execute(probe).await.is_err() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        });
    }
    eventually(PATIENCE, "there are two probes", async || under_way.load(SeqCst) == 2).await;
    // Of whom does not matter: both probes may be those of one.
    let refused = || all.iter().map(|breaker| breaker.totals().refused).sum::<u64>();
    let before = refused();
    eventually(PATIENCE, "calls are refused", async || refused() >= before + 20).await;
    assert_eq!(under_way.load(SeqCst), 2);
    assert!(all.iter().all(|breaker| breaker.state() == State::Open));
    // When they have succeeded, all close.
    gate.add_permits(6);
    calls.join_all().await;
    for breaker in &all {
        until(breaker, State::Closed).await;
    }
    assert_eq!(all[0].shared().show().await.unwrap().state, State::Closed);

    all[0].isolate().await.unwrap();
    assert_eq!(all[0].state(), State::Isolated);
    until(&all[1], State::Isolated).await;
    assert!(matches!(all[1].execute(succeed).await, Err(BreakerError::Isolated)));
    all[1].close().await.unwrap();
    assert_eq!(all[1].state(), State::Closed);
    until(&all[0], State::Closed).await;
    until(&all[2], State::Closed).await;
}

#[tokio::test]
async fn hybrid_breakers_mix_what_they_know_in_memory() {
    mix(Place::memory()).await;
}

#[tokio::test]
async fn hybrid_breakers_mix_what_they_know_in_redis() {
    mix(Place::redis()).await;
}

#[tokio::test]
async fn hybrid_breakers_mix_what_they_know_in_a_cluster() {
    mix(Place::cluster()).await;
}

#[tokio::test]
async fn hybrid_breakers_mix_what_they_know_in_postgres() {
    mix(Place::postgres()).await;
}

#[tokio::test]
async fn a_hybrid_breaker_goes_on_alone_and_follows_again_when_the_store_is_back() {
    let redis = Redis::start();
    let store = commonhold::open(&format!("{}?call_timeout=300ms", redis.url())).await.unwrap();
    let fleet = after(1).open_for(LONG);
    let own = after(1).open_for(Duration::from_millis(50));
    let breaker = hybrids(&store, &own, &fleet).remove(0);
    breaker.shared().open().await.unwrap();
    until(&breaker, State::Open).await;
    redis.kill();
    // It follows no more: its own wait is over, its own probe closes it.
    eventually(PATIENCE, "it lets its own probe through", async || breaker.execute(succeed).await.is_ok())
        .await;
    assert_eq!(breaker.state(), State::Closed);
    let _ = breaker.execute(fail).await;
    assert_eq!(breaker.state(), State::Open);
    eventually(PATIENCE, "and closes again", async || breaker.execute(succeed).await.is_ok()).await;
    redis.start_again();
    breaker.shared().isolate().await.ok();
    eventually(PATIENCE, "the store is back", async || breaker.shared().isolate().await.is_ok()).await;
    until(&breaker, State::Isolated).await;
    redis.kill();
    eventually(PATIENCE, "isolation lasts", async || breaker.shared().show().await.is_err()).await;
    assert!(matches!(breaker.execute(succeed).await, Err(BreakerError::Isolated)));
}

/// Two hybrid breakers that follow an open one whose wait is over, and the clock of both and of the store, which stands
/// still; what becomes of what the first asks the store is as planned.
async fn led_by_a_clock(fleet: &Settings) -> (HybridBreaker, HybridBreaker, Arc<ManualClock>, FaultPlan) {
    let (clock, plan) = (Arc::new(ManualClock::default()), FaultPlan::new());
    clock.advance(LONG);
    let store = Store::new(MemoryBackend::builder().clock(Arc::clone(&clock) as _).build());
    let hybrid = |store: Store| {
        let shared = DistributedBreaker::new(store, "b", fleet, OnUnavailable::Allow).unwrap();
        let interval = Duration::from_millis(10);
        HybridBreaker::with_clock(&after(5), shared, interval, Arc::clone(&clock) as _).unwrap()
    };
    let (first, second) = (hybrid(store.clone().layer(Fault::new(&plan))), hybrid(store));
    second.open().await.unwrap();
    until(&first, State::Open).await;
    clock.advance(SECOND);
    (first, second, clock, plan)
}

/// A call that is let through when the store has leased a probe for it.
async fn leased(breaker: &HybridBreaker) -> Permit {
    let mut permit = None;
    eventually(PATIENCE, "a probe is leased", async || {
        permit = breaker.try_acquire().ok();
        permit.is_some()
    })
    .await;
    permit.unwrap()
}

#[tokio::test]
async fn a_probe_that_a_hybrid_breaker_has_not_used_is_not_used_after_its_lease() {
    let lease = Duration::from_millis(200);
    let (first, second, clock, _plan) = led_by_a_clock(&after(1).probe_lease(lease)).await;
    // A call is refused, and a probe is leased for the next, which comes later than the lease lasts.
    assert!(first.try_acquire().is_err());
    eventually(PATIENCE, "a probe is leased", async || second.shared().show().await.unwrap().probes == 1)
        .await;
    clock.advance(lease);
    let probe = leased(&second).await;
    assert!(first.try_acquire().is_err(), "two probes where one may be under way");
    probe.success();
    until(&first, State::Closed).await;
}

#[tokio::test]
async fn the_result_of_a_probe_is_told_again_until_the_store_has_taken_it() {
    let (first, second, _clock, plan) = led_by_a_clock(&after(1)).await;
    let probe = leased(&first).await;
    plan.refuse(Operation::Transact);
    plan.lose_reply(Operation::Transact);
    probe.success();
    until(&second, State::Closed).await;
    until(&first, State::Closed).await;
    assert_eq!(plan.pending(), 0);
}

#[tokio::test]
async fn a_probe_whose_lease_was_lost_on_the_way_is_asked_for_again() {
    let (first, second, _clock, plan) = led_by_a_clock(&after(1)).await;
    assert!(first.try_acquire().is_err());
    // What is told in each interval arrives; then a probe is asked for.
    plan.delay(Operation::Transact, Duration::ZERO);
    plan.lose_reply(Operation::Transact);
    eventually(PATIENCE, "a probe succeeds", async || {
        // Alone, it has probes of its own, of which the store knows nothing.
        if let Ok(probe) = first.try_acquire() {
            probe.success();
        }
        second.state() == State::Closed
    })
    .await;
    assert_eq!(plan.pending(), 0);
}

#[tokio::test]
async fn a_call_never_waits_for_a_store_that_hangs() {
    let plan = FaultPlan::new();
    let store = Store::new(MemoryBackend::new()).layer(Fault::new(&plan));
    for _ in 0..100 {
        plan.hang(Operation::Transact);
    }
    let breaker = hybrids(&store, &after(2), &after(2)).remove(0);
    for _ in 0..2 {
        assert!(breaker.execute(fail).now_or_never().is_some());
    }
    assert!(breaker.execute(succeed).now_or_never().unwrap().is_err());
}

#[tokio::test]
async fn the_background_task_ends_with_the_last_handle() {
    let plan = FaultPlan::new();
    let store = Store::new(MemoryBackend::new());
    let breakers = hybrids(&store.clone().layer(Fault::new(&plan)), &after(1), &after(1));
    let kept = breakers[0].local().clone();
    drop(breakers);
    plan.refuse(Operation::Transact);
    eventually(PATIENCE, "a part of one keeps its task going", async || plan.pending() == 0).await;
    let tasks = || tokio::runtime::Handle::current().metrics().num_alive_tasks();
    assert_eq!(tasks(), 1);
    drop(kept);
    eventually(PATIENCE, "the task has ended", async || tasks() == 0).await;
}
