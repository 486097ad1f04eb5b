//! Circuit breakers: in one process, over real stores, and mixed with stores that go away.

use std::{
    future::pending,
    panic::AssertUnwindSafe,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use commonhold::{
    ErrorKind, ManualClock, MemoryBackend, Prefix, Retry, Scan, Store,
    layers::{Fault, FaultPlan, Operation},
};
use commonhold_coordination::breaker::{
    BreakerError, BreakerLayer, DistributedBreaker, Event, HybridBreaker, LocalBreaker, OnUnavailable,
    Permit, Settings, State, TowerLayer, Window,
};
use commonhold_testkit::{eventually, servers::Redis};
use futures_util::{FutureExt as _, StreamExt as _};
use metrics_util::debugging::{DebugValue, DebuggingRecorder};
use tower::{Layer as _, ServiceBuilder, ServiceExt as _, service_fn};

use crate::common::{PATIENCE, Place};

pub(crate) const LONG: Duration = Duration::from_secs(600);
pub(crate) const SECOND: Duration = Duration::from_secs(1);

pub(crate) async fn succeed() -> Result<(), &'static str> {
    Ok(())
}

pub(crate) async fn fail() -> Result<(), &'static str> {
    Err("no answer")
}

fn local(settings: &Settings) -> (LocalBreaker, Arc<ManualClock>) {
    let clock = Arc::new(ManualClock::default());
    clock.advance(LONG);
    (LocalBreaker::with_clock("b", settings, Arc::clone(&clock) as _).unwrap(), clock)
}

pub(crate) fn after(failures: u32) -> Settings {
    Settings::new().failure_threshold(failures).open_for(SECOND).probe_lease(LONG)
}

#[tokio::test]
async fn failures_open_it_and_a_probe_closes_it() {
    let (breaker, clock) = local(&after(2));
    let events = breaker.events();
    for _ in 0..2 {
        assert!(matches!(breaker.execute(fail).await, Err(BreakerError::Inner("no answer"))));
    }
    let refused = breaker.execute(|| async { unreachable!() as Result<(), ()> }).await;
    assert!(matches!(refused, Err(BreakerError::Open { retry_after: SECOND })), "{refused:?}");
    clock.advance(SECOND);
    let probe = breaker.try_acquire().unwrap();
    assert!(probe.is_probe());
    assert_eq!(breaker.state(), State::HalfOpen);
    assert!(matches!(breaker.try_acquire(), Err(BreakerError::Open { retry_after: LONG })));
    probe.success();
    assert!(breaker.execute(succeed).await.is_ok());
    let turns: Vec<_> = events.take(3).collect().await;
    let turn = |from, to| Event { from, to };
    let (closed, open, half_open) = (State::Closed, State::Open, State::HalfOpen);
    assert_eq!(turns, [turn(closed, open), turn(open, half_open), turn(half_open, closed)]);
    let totals = breaker.totals();
    assert_eq!((totals.calls.calls, totals.calls.failures, totals.refused, totals.openings), (4, 2, 2, 1));
}

#[tokio::test]
async fn only_errors_that_are_failures_count_as_such() {
    let (breaker, _clock) = local(&after(1));
    for _ in 0..10 {
        let _ = breaker
            .execute_counting(|error| *error == "no answer", || async { Err::<(), _>("not found") })
            .await;
    }
    assert_eq!(breaker.state(), State::Closed);
    let _ = breaker.execute_counting(|error| *error == "no answer", fail).await;
    assert_eq!(breaker.state(), State::Open);
}

#[tokio::test]
async fn a_call_that_is_dropped_counts_neither_way_and_a_probe_frees_its_place() {
    let (breaker, clock) = local(&after(1));
    let hangs = || pending::<Result<(), ()>>();
    assert!(breaker.execute(hangs).now_or_never().is_none());
    assert_eq!(breaker.status().consecutive_failures, 0);
    breaker.open();
    clock.advance(SECOND);
    {
        let mut probe = Box::pin(breaker.execute(hangs));
        assert!(probe.as_mut().now_or_never().is_none());
        assert!(breaker.try_acquire().is_err(), "the probe is under way");
    }
    assert_eq!(breaker.totals().cancelled, 2);
    assert!(breaker.execute(succeed).await.is_ok(), "its place is free again");
    assert_eq!(breaker.state(), State::Closed);
}

#[tokio::test]
async fn a_panic_counts_as_a_failure_and_goes_on() {
    let (breaker, _clock) = local(&after(1));
    let call = breaker.execute(|| async { panic!("at the call") as Result<(), ()> });
    let panic = AssertUnwindSafe(call).catch_unwind().await.unwrap_err();
    assert_eq!(panic.downcast_ref(), Some(&"at the call"));
    assert_eq!(breaker.state(), State::Open);
    let store = Store::new(MemoryBackend::new());
    let shared = DistributedBreaker::new(store, "b", &after(1), OnUnavailable::Refuse).unwrap();
    let call = shared.execute(|| async { panic!("at the call") as Result<(), ()> });
    assert!(AssertUnwindSafe(call).catch_unwind().await.is_err());
    assert_eq!(shared.show().await.unwrap().state, State::Open);
    async fn panics(_: ()) -> Result<(), ()> {
        panic!("in the service")
    }
    fn panics_at_once(_: ()) -> std::future::Ready<Result<(), ()>> {
        panic!("at the call")
    }
    let (breaker, _clock) = local(&after(2));
    let layer = TowerLayer::new(&breaker);
    let call = layer.layer(service_fn(panics)).oneshot(());
    assert!(AssertUnwindSafe(call).catch_unwind().await.is_err());
    let call = layer.layer(service_fn(panics_at_once)).oneshot(());
    assert!(AssertUnwindSafe(call).catch_unwind().await.is_err());
    assert_eq!((breaker.state(), breaker.totals().cancelled), (State::Open, 0));
}

#[tokio::test]
async fn slow_calls_open_it() {
    let settings = Settings::new().slow_call_rate(SECOND, 1.0).minimum_calls(2).open_for(LONG);
    let (breaker, clock) = local(&settings);
    for _ in 0..2 {
        let slow = || async {
            clock.advance(SECOND);
            Ok::<_, ()>(())
        };
        assert!(breaker.execute(slow).await.is_ok());
    }
    assert_eq!(breaker.state(), State::Open);
    assert_eq!(breaker.totals().calls.slow, 2);
}

#[test]
fn a_window_of_any_number_of_calls_opens_when_that_many_fail() {
    for calls in 1..200 {
        let settings = Settings::new().failure_rate(0.5).window(Window::Calls(calls));
        for settings in [settings.clone(), settings.minimum_calls(calls)] {
            let (breaker, _clock) = local(&settings);
            for _ in 0..calls {
                if let Ok(permit) = breaker.try_acquire() {
                    permit.failure();
                }
            }
            assert_eq!(breaker.state(), State::Open, "{settings:?}: {:?}", breaker.status());
        }
    }
}

#[tokio::test]
async fn a_result_from_an_earlier_generation_counts_no_more() {
    let (breaker, _clock) = local(&after(1));
    let (late, later) = (breaker.try_acquire().unwrap(), breaker.try_acquire().unwrap());
    breaker.open();
    late.success();
    assert_eq!(breaker.state(), State::Open);
    breaker.close();
    later.failure();
    assert_eq!((breaker.state(), breaker.totals().late), (State::Closed, 2));
}

#[test]
fn of_many_threads_no_more_make_probes_than_may() {
    let (breaker, clock) = local(&after(1).half_open_probes(3));
    breaker.open();
    clock.advance(SECOND);
    let probes = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        let asked: Vec<_> = (0..8)
            .map(|_| {
                scope.spawn(|| {
                    let permits: Vec<_> = (0..1_000).filter_map(|_| breaker.try_acquire().ok()).collect();
                    probes.fetch_add(permits.len(), SeqCst);
                    permits
                })
            })
            .collect();
        let permits: Vec<_> = asked.into_iter().flat_map(|thread| thread.join().unwrap()).collect();
        assert_eq!(probes.load(SeqCst), 3);
        permits.into_iter().for_each(Permit::success);
    });
    assert_eq!(breaker.state(), State::Closed);
}

#[tokio::test]
async fn a_tower_service_and_a_store_stand_behind_it() {
    let (breaker, _clock) = local(&after(1));
    let service = ServiceBuilder::new()
        .layer(TowerLayer::new(&breaker))
        .service(service_fn(|answer: Result<u8, &'static str>| async move { answer }));
    assert_eq!(service.clone().oneshot(Ok(1)).await.ok(), Some(1));
    assert!(matches!(service.clone().oneshot(Err("x")).await, Err(BreakerError::Inner("x"))));
    assert!(matches!(service.oneshot(Ok(1)).await, Err(BreakerError::Open { .. })));

    let store = Store::new(MemoryBackend::new());
    let breaker = DistributedBreaker::new(store, "b", &after(1), OnUnavailable::Refuse).unwrap();
    let service = ServiceBuilder::new()
        .layer(TowerLayer::new(&breaker).failing_if(|result: &Result<u8, ()>| *result == Ok(2)))
        .service(service_fn(|answer: u8| async move { Ok(answer) }));
    assert_eq!(service.clone().oneshot(1).await.ok(), Some(1));
    assert_eq!(breaker.show().await.unwrap().state, State::Closed);
    assert_eq!(service.clone().oneshot(2).await.ok(), Some(2));
    assert!(matches!(service.oneshot(1).await, Err(BreakerError::Open { .. })));

    let plan = FaultPlan::new();
    let (breaker, clock) = local(&after(1));
    let store = Store::new(MemoryBackend::new()).layer(Fault::new(&plan)).layer(BreakerLayer::new(&breaker));
    store.put("k", "text").await.unwrap();
    assert_eq!(store.increment("k", 1).await.unwrap_err().kind(), ErrorKind::NotInteger);
    assert_eq!(breaker.state(), State::Closed, "the call was at fault");
    plan.refuse(Operation::Get);
    assert!(store.get("k").await.is_err());
    let error = store.get("k").await.unwrap_err();
    assert_eq!((error.kind(), error.retry()), (ErrorKind::Unavailable, Retry::Safe));
    assert!(error.to_string().contains("circuit breaker \"b\" is open"), "{error}");
    assert!(store.scan(Scan::prefix(Prefix::default())).next().await.unwrap().is_err());
    clock.advance(SECOND);
    let entries: Vec<_> = store.scan(Scan::prefix(Prefix::default())).collect().await;
    assert_eq!((entries.len(), breaker.state()), (1, State::Closed));
}

#[tokio::test]
async fn a_layer_asks_a_breaker_that_all_instances_share() {
    let (shared, breakers_are_away) = (Store::new(MemoryBackend::new()), FaultPlan::new());
    let breaker = |store| DistributedBreaker::new(store, "b", &after(2), OnUnavailable::Refuse).unwrap();
    let one = breaker(shared.clone().layer(Fault::new(&breakers_are_away)));
    let other = breaker(shared);
    let (plan, backend) = (FaultPlan::new(), Store::new(MemoryBackend::new()));
    let store = |breaker| backend.clone().layer(Fault::new(&plan)).layer(BreakerLayer::new(breaker));
    let (mine, theirs) = (store(&one), store(&other));

    mine.put("k", "text").await.unwrap();
    assert_eq!(mine.increment("k", 1).await.unwrap_err().kind(), ErrorKind::NotInteger);
    assert_eq!(mine.scan(Scan::prefix(Prefix::default())).count().await, 1);
    plan.refuse(Operation::Get);
    assert!(mine.get("k").await.is_err());
    plan.refuse(Operation::Scan);
    assert!(theirs.scan(Scan::prefix(Prefix::default())).next().await.unwrap().is_err());
    assert_eq!(one.show().await.unwrap().state, State::Open, "what both have seen");

    for store in [&mine, &theirs] {
        let error = store.get("k").await.unwrap_err();
        assert_eq!((error.kind(), error.retry()), (ErrorKind::Unavailable, Retry::Safe));
        assert!(error.to_string().contains("circuit breaker \"b\" is open"), "{error}");
        let first = store.scan(Scan::prefix(Prefix::default())).next().await.unwrap();
        assert_eq!(first.unwrap_err().kind(), ErrorKind::Unavailable);
    }

    one.close().await.unwrap();
    assert_eq!(mine.get("k").await.unwrap().as_deref(), Some(&b"text"[..]));
    for _ in 0..2 {
        breakers_are_away.refuse(Operation::Transact);
    }
    let error = mine.get("k").await.unwrap_err();
    assert!(error.to_string().contains("circuit breaker \"b\" is away"), "{error}");
}

/// Three instances, as the store sees them.
async fn three(place: &Place, settings: &Settings) -> Vec<DistributedBreaker> {
    let first = place.open().await;
    let mut breakers = Vec::new();
    for _ in 0..3 {
        let store = if first.capabilities().shared { place.open().await } else { first.clone() };
        breakers.push(DistributedBreaker::new(store, "b", settings, OnUnavailable::Refuse).unwrap());
    }
    breakers
}

async fn share(place: Place) {
    let wait = Duration::from_millis(20);
    let settings = after(4).open_for(wait).half_open_probes(2).min_reporters(2);
    let all = three(&place, &settings).await;
    for _ in 0..10 {
        assert!(all[0].execute(fail).await.is_err());
    }
    assert_eq!(all[1].show().await.unwrap().state, State::Closed, "the word of one");
    let late = all[2].try_acquire().await.unwrap();
    assert!(all[1].execute(fail).await.is_err());
    let status = all[2].show().await.unwrap();
    assert_eq!((status.state, status.trips), (State::Open, 1));
    late.failure().await;

    // Two probes in all of the fleet, whoever asks.
    let mut probes = Vec::new();
    eventually(PATIENCE, "the wait is over", async || {
        match all[0].try_acquire().await {
            Ok(probe) => probes.push(probe),
            Err(BreakerError::Open { .. }) => {}
            Err(other) => panic!("{other}"),
        }
        !probes.is_empty()
    })
    .await;
    let second = all[1].try_acquire().await.unwrap();
    assert!(probes[0].is_probe() && second.is_probe());
    for breaker in &all {
        assert!(matches!(breaker.try_acquire().await, Err(BreakerError::Open { .. })));
    }
    drop(second);
    let mut third = None;
    eventually(PATIENCE, "a dropped probe is given back", async || {
        third = all[2].try_acquire().await.ok();
        third.is_some()
    })
    .await;
    third.unwrap().success().await;
    assert_eq!(all[1].show().await.unwrap().state, State::HalfOpen);
    probes.pop().unwrap().success().await;
    assert_eq!(all[1].show().await.unwrap().state, State::Closed);
    assert!(all[2].execute(succeed).await.is_ok());

    all[0].isolate().await.unwrap();
    assert!(matches!(all[1].execute(succeed).await, Err(BreakerError::Isolated)));
    all[2].close().await.unwrap();
    assert!(all[1].execute(fail).await.is_err());
    assert_eq!(all[0].show().await.unwrap().consecutive_failures, 1);
    all[0].reset().await.unwrap();
    assert_eq!(all[0].show().await.unwrap().consecutive_failures, 0);
}

#[tokio::test]
async fn instances_share_a_breaker_in_memory() {
    share(Place::memory()).await;
}

#[tokio::test]
async fn instances_share_a_breaker_on_disk() {
    share(Place::disk()).await;
}

#[tokio::test]
async fn instances_share_a_breaker_in_redis() {
    share(Place::redis()).await;
}

#[tokio::test]
async fn instances_share_a_breaker_in_a_cluster() {
    share(Place::cluster()).await;
}

#[tokio::test]
async fn instances_share_a_breaker_in_postgres() {
    share(Place::postgres()).await;
}

#[tokio::test]
async fn instances_share_a_breaker_in_memcached() {
    share(Place::memcached()).await;
}

#[tokio::test]
async fn whoever_opens_it_for_longer_it_stays_open_as_long_as_each_instance_says() {
    let clock = Arc::new(ManualClock::default());
    let store = Store::new(MemoryBackend::builder().clock(Arc::clone(&clock) as _).build());
    let shared = |settings: Settings| {
        DistributedBreaker::new(store.clone(), "b", &settings, OnUnavailable::Refuse).unwrap()
    };
    let by_hand = shared(after(1).open_for(Duration::from_secs(24 * 60 * 60)));
    let instance = shared(after(5).open_for(LONG));
    by_hand.open().await.unwrap();
    assert_eq!(instance.show().await.unwrap().retry_after, LONG);
    clock.advance(SECOND);
    let refused = instance.try_acquire().await;
    assert!(matches!(refused, Err(BreakerError::Open { retry_after: LONG })), "{refused:?}");
    clock.advance(LONG);
    assert!(by_hand.try_acquire().await.unwrap().is_probe());
}

#[tokio::test]
async fn the_same_question_again_takes_no_second_probe() {
    let plan = FaultPlan::new();
    let store = Store::new(MemoryBackend::new());
    let settings = after(1).half_open_probes(2).open_for(Duration::from_millis(1));
    let shared = |store| DistributedBreaker::new(store, "b", &settings, OnUnavailable::Refuse).unwrap();
    let (faulty, other) = (shared(store.clone().layer(Fault::new(&plan))), shared(store));
    other.open().await.unwrap();
    eventually(PATIENCE, "the wait is over", async || other.show().await.unwrap().retry_after.is_zero())
        .await;
    plan.lose_reply(Operation::Transact);
    let probe = faulty.try_acquire().await.unwrap();
    assert!(probe.is_probe() && plan.pending() == 0);
    assert_eq!(other.show().await.unwrap().probes, 1);
    // A result that may have arrived is not told twice.
    plan.lose_reply(Operation::Transact);
    probe.success().await;
    assert_eq!(plan.pending(), 0);
}

#[tokio::test]
async fn without_its_store_a_shared_breaker_does_as_the_caller_chose() {
    for rule in [OnUnavailable::Allow, OnUnavailable::Refuse] {
        let redis = Redis::start();
        let store = commonhold::open(&format!("{}?call_timeout=300ms", redis.url())).await.unwrap();
        let shared = DistributedBreaker::new(store, "b", &after(1), rule).unwrap();
        assert!(shared.execute(succeed).await.is_ok());
        redis.kill();
        match (rule, shared.execute(succeed).await) {
            (OnUnavailable::Allow, Ok(())) | (OnUnavailable::Refuse, Err(BreakerError::Unavailable(_))) => {}
            other => panic!("{other:?}"),
        }
        redis.start_again();
        eventually(PATIENCE, "the store decides again", async || {
            shared.execute(fail).await.is_err_and(|error| matches!(error, BreakerError::Open { .. }))
        })
        .await;
    }
}

#[tokio::test]
async fn the_metrics_show_states_outcomes_and_transitions() {
    let recorder = DebuggingRecorder::new();
    let seen = recorder.snapshotter();
    let breaker = metrics::with_local_recorder(&recorder, || local(&after(1)).0);
    let _ = breaker.execute(succeed).await;
    let _ = breaker.execute(fail).await;
    let _ = breaker.execute(fail).await;
    let snapshot = seen.snapshot().into_vec();
    let value = |name: &str, label: &str| {
        let found = snapshot.iter().find(|(key, ..)| {
            key.key().name() == name && (label.is_empty() || key.key().labels().any(|l| l.value() == label))
        });
        match &found.unwrap().3 {
            DebugValue::Counter(count) => *count as f64,
            DebugValue::Gauge(value) => value.into_inner(),
            DebugValue::Histogram(_) => panic!("{name} is a histogram"),
        }
    };
    assert_eq!(value("commonhold_breaker_state", ""), 2.0);
    assert_eq!(value("commonhold_breaker_transitions_total", "open"), 1.0);
    for outcome in ["success", "failure", "refused"] {
        assert_eq!(value("commonhold_breaker_calls_total", outcome), 1.0, "{outcome}");
    }
}

#[tokio::test]
async fn what_an_instance_shows_follows_a_store_that_has_forgotten_the_breaker() {
    let recorder = DebuggingRecorder::new();
    let seen = recorder.snapshotter();
    let store = Store::new(MemoryBackend::new());
    let breaker = metrics::with_local_recorder(&recorder, || {
        DistributedBreaker::new(store.clone(), "b", &after(1), OnUnavailable::Refuse).unwrap()
    });
    let events = breaker.events();
    breaker.isolate().await.unwrap();
    store.delete("breaker:b").await.unwrap();
    assert!(breaker.execute(succeed).await.is_ok());
    let turns: Vec<_> = events.take(2).map(|event| event.to).collect().await;
    assert_eq!(turns, [State::Isolated, State::Closed]);
    let snapshot = seen.snapshot().into_vec();
    let state = snapshot.iter().find(|(key, ..)| key.key().name() == "commonhold_breaker_state").unwrap();
    assert_eq!(state.3, DebugValue::Gauge(0.0.into()));
}

#[tokio::test]
async fn what_cannot_be_is_refused_when_it_is_made() {
    let store = Store::new(MemoryBackend::new());
    let kind = |error: commonhold::Error| error.kind();
    assert_eq!(kind(LocalBreaker::new("b", &Settings::new()).unwrap_err()), ErrorKind::InvalidConfig);
    let shared = DistributedBreaker::new(store, "b", &after(1), OnUnavailable::Allow).unwrap();
    for interval in [Duration::ZERO, Duration::MAX] {
        let error = HybridBreaker::new(&after(1), shared.clone(), interval).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidConfig);
    }
    let without_runtime =
        std::thread::spawn(move || HybridBreaker::new(&after(1), shared, SECOND).unwrap_err().kind());
    assert_eq!(without_runtime.join().unwrap(), ErrorKind::InvalidConfig);
}
