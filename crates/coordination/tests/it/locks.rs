//! Locks.

use std::{sync::Arc, time::Duration};

use commonhold::{
    ErrorKind, ManualClock, MemoryBackend, Store,
    layers::{Fault, FaultPlan, Operation},
};
use commonhold_coordination::{
    Election, Fenced, Locks,
    counter::Counter,
    limit::{DistributedLimiter, OnUnavailable, Rate, TokenBucket},
};
use commonhold_testkit::{eventually, servers::Postgres};
use futures_util::FutureExt as _;
use metrics_util::debugging::{DebugValue, DebuggingRecorder};

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
async fn who_does_not_wait_does_not_wait_after_an_error_that_passed_either() {
    let plan = FaultPlan::new();
    let store = Store::new(MemoryBackend::new());
    let locks = Locks::new(store.clone().layer(Fault::new(&plan))).unwrap();
    let _held = Locks::new(store).unwrap().try_acquire("l", TTL).await.unwrap().unwrap();
    for fault in [FaultPlan::refuse, FaultPlan::lose_reply] {
        fault(&plan, Operation::Transact);
        let tried = tokio::time::timeout(Duration::from_secs(5), locks.try_acquire("l", TTL)).await;
        assert!(tried.expect("it waits").unwrap().is_none());
    }
}

#[tokio::test]
async fn a_guard_that_is_released_is_lost_also_where_the_next_task_has_the_same_lease() {
    let locks = Locks::new(Store::new(MemoryBackend::new())).unwrap();
    let first = locks.try_acquire("l", TTL).await.unwrap().unwrap();
    let mut next = Box::pin(locks.acquire("l", TTL, PATIENCE));
    assert!(next.as_mut().now_or_never().is_none());
    let lost = first.lost();
    first.release().await.unwrap();
    let next = next.await.unwrap().unwrap();
    assert!(lost.is_cancelled() && !next.lost().is_cancelled() && next.is_held());
}

#[tokio::test]
async fn an_error_that_passes_is_waited_out_also_where_a_lock_is_handed_on() {
    let plan = FaultPlan::new();
    let locks = Locks::new(Store::new(MemoryBackend::new()).layer(Fault::new(&plan))).unwrap();
    let first = locks.try_acquire("l", TTL).await.unwrap().unwrap();
    // Another time to live: the store is asked for it.
    let mut next = Box::pin(locks.acquire("l", TTL * 2, PATIENCE));
    assert!(next.as_mut().now_or_never().is_none());
    plan.refuse(Operation::Transact);
    first.release().await.unwrap();
    assert!(next.await.unwrap().is_some());
}

#[tokio::test]
async fn a_release_of_what_another_has_says_so_also_when_it_is_made_twice() {
    let plan = FaultPlan::new();
    let store = Store::new(MemoryBackend::new());
    let locks = Locks::new(store.clone().layer(Fault::new(&plan))).unwrap();
    let guard = locks.try_acquire("l", TTL).await.unwrap().unwrap();
    store.delete("lock:l").await.unwrap();
    let _other = Locks::new(store).unwrap().try_acquire("l", TTL).await.unwrap().unwrap();
    plan.refuse(Operation::Transact);
    assert!(!guard.release().await.unwrap());
}

/// They rise by the clock when the store has forgotten them: so they must not run ahead of it.
#[tokio::test]
async fn tokens_are_spent_by_those_who_get_them_alone() {
    let clock = Arc::new(ManualClock::default());
    clock.advance(TTL);
    let store = Store::new(MemoryBackend::builder().clock(clock).build());
    let locks = Locks::new(store).unwrap();
    let first = locks.try_acquire("l", TTL).await.unwrap().unwrap();
    let token = first.token();
    first.release().await.unwrap();
    for claim in 1..=100 {
        let guard = locks.try_acquire("l", TTL).await.unwrap().unwrap();
        assert_eq!(guard.token(), token + claim);
        match claim % 2 {
            0 => drop(guard),
            _ => drop(guard.release().await.unwrap()),
        }
        locks.settled().await;
    }
}

/// The clock of the tasks is turned when all of them wait: whoever was not woken would have to poll.
#[tokio::test(start_paused = true)]
async fn all_readers_behind_a_writer_are_woken_together() {
    let store = Store::new(MemoryBackend::new());
    let writing = Locks::new(store.clone()).unwrap().rw_lock("l").unwrap();
    let writer = writing.write(TTL, PATIENCE).await.unwrap().unwrap();
    let mut readers = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let reading = Locks::new(store.clone()).unwrap().rw_lock("l").unwrap();
        readers.spawn(async move { reading.read(TTL, PATIENCE).await.unwrap().unwrap() });
    }
    while writing.show().await.unwrap().waiting < 8 {
        tokio::task::yield_now().await;
    }
    let released = tokio::time::Instant::now();
    writer.release().await.unwrap();
    let guards = readers.join_all().await;
    assert!(released.elapsed() < Duration::from_millis(100), "{:?}", released.elapsed());
    assert!(guards.iter().all(|guard| guard.is_held()));
}

#[tokio::test]
async fn a_claim_that_is_dropped_while_postgres_is_slow_leaves_no_lock_behind() {
    let postgres = Postgres::start();
    let url = format!("{}?table=t", postgres.url());
    let (one, other) = (commonhold::open(&url).await.unwrap(), commonhold::open(&url).await.unwrap());
    one.put("x", "y").await.unwrap();
    postgres.sql(
        "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
         IF position(' H '::bytea in NEW.value) > 0 THEN PERFORM pg_sleep(1); END IF; RETURN NEW; END $$; \
         CREATE TRIGGER slow BEFORE INSERT OR UPDATE ON t FOR EACH ROW EXECUTE FUNCTION slow();",
    );
    let locks = Locks::new(one).unwrap();
    let claimed = tokio::time::timeout(Duration::from_millis(300), locks.try_acquire("l", TTL)).await;
    assert!(claimed.is_err());
    locks.settled().await;
    let running = "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND pid <> pg_backend_pid() \
                   AND backend_type = 'client backend'";
    eventually(PATIENCE, "the claim is over", async || postgres.sql(running) == "0").await;
    let shown = Locks::new(other).unwrap().show("l").await.unwrap();
    assert!(shown.holders.is_empty(), "{shown:?}");
}

#[test]
fn locks_are_used_in_one_runtime_after_the_other() {
    let locks = Locks::new(Store::new(MemoryBackend::new())).unwrap();
    for _ in 0..2 {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let guard = runtime.block_on(async {
            drop(locks.try_acquire("l", TTL).await.unwrap().unwrap());
            locks.settled().await;
            assert!(locks.show("l").await.unwrap().holders.is_empty());
            locks.acquire("l", TTL, PATIENCE).await.unwrap().unwrap()
        });
        // Outside of any.
        drop(guard);
        runtime.block_on(locks.settled());
    }
}

#[tokio::test]
async fn a_store_is_closed_with_the_locks_in_it() {
    let place = Place::disk();
    {
        let store = place.open().await;
        let (one, other) = (Locks::new(store.clone()).unwrap(), Locks::new(store).unwrap());
        let guard = one.try_acquire("l", TTL).await.unwrap().unwrap();
        assert!(other.acquire("l", TTL, Duration::from_millis(50)).await.unwrap().is_none());
        guard.release().await.unwrap();
        one.settled().await;
        other.settled().await;
    }
    let soon = Duration::from_secs(5);
    eventually(soon, "the store is closed", async || commonhold::open(&place.url).await.is_ok()).await;
}

#[tokio::test]
async fn where_processes_tell_the_time_a_lease_outlasts_what_they_may_be_apart() {
    let locks = Locks::new(Place::memcached().open().await).unwrap();
    let error = locks.try_acquire("l", Duration::from_secs(20)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    assert!(error.to_string().contains("from 24s"), "{error}");
    let guard = locks.try_acquire("l", TTL).await.unwrap().unwrap();
    assert!(guard.deadline() < std::time::Instant::now() + TTL - Duration::from_secs(6));
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
async fn a_lock_for_a_short_time_is_renewed_in_time_beside_and_after_those_for_a_long_one() {
    let locks = Locks::new(Store::new(MemoryBackend::new())).unwrap();
    let long = locks.try_acquire("long", TTL * 1_000).await.unwrap().unwrap();
    let beside = locks.try_acquire("beside", TTL).await.unwrap().unwrap();
    long.release().await.unwrap();
    let after = locks.try_acquire("after", TTL).await.unwrap().unwrap();
    let again = locks.try_acquire("long", TTL).await.unwrap().unwrap();
    for _ in 0..3 {
        tokio::time::sleep(TTL).await;
        assert!(beside.is_held() && after.is_held() && again.is_held());
    }
}

#[test]
fn locks_are_renewed_on_their_own_runtime_whatever_becomes_of_others() {
    let runtime = || {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        builder.enable_time().start_paused(true).build().unwrap()
    };
    let (ended, idle, alive) = (runtime(), runtime(), runtime());
    let locks = Locks::new(Store::new(MemoryBackend::new())).unwrap();
    let claim = |name| {
        let locks = locks.clone();
        async move { locks.try_acquire(name, TTL).await.unwrap().unwrap() }
    };
    let _of_ended = ended.block_on(claim("of one that has ended"));
    let _of_idle = idle.block_on(claim("of one that nobody drives"));
    drop(ended);
    alive.block_on(async {
        let guard = claim("of one that is alive").await;
        for _ in 0..3 {
            tokio::time::sleep(TTL).await;
            assert!(guard.is_held());
        }
    });
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

#[tokio::test(start_paused = true)]
async fn the_metrics_say_what_is_held_and_what_became_of_claims() {
    let recorder = DebuggingRecorder::new();
    let seen = recorder.snapshotter();
    let _recording = metrics::set_default_local_recorder(&recorder);
    // What has changed since the last time.
    let told = || {
        let told = seen.snapshot().into_vec().into_iter().filter_map(|(key, _, _, value)| {
            let labels: Vec<&str> = key.key().labels().map(metrics::Label::value).collect();
            let number = match value {
                DebugValue::Counter(count) => count as f64,
                DebugValue::Gauge(value) => value.into_inner(),
                DebugValue::Histogram(_) => return None,
            };
            Some((format!("{} {}", key.key().name(), labels.join(" ")), number))
        });
        told.collect::<std::collections::HashMap<String, f64>>()
    };
    let plan = FaultPlan::new();
    let store = Store::new(MemoryBackend::new()).layer(Fault::new(&plan));
    let locks = Locks::new(store.clone()).unwrap();
    let guard = locks.try_acquire("l", TTL).await.unwrap().unwrap();
    assert!(locks.try_acquire("l", TTL).await.unwrap().is_none());
    let permits = locks.semaphore("s", 2).unwrap().try_acquire(1, TTL).await.unwrap().unwrap();
    let reading = locks.rw_lock("r").unwrap().read(TTL, TTL).await.unwrap().unwrap();
    let lead = Election::new(store, "e").unwrap().campaign("me", TTL).await.unwrap();
    let first = told();
    for kind in ["lock", "semaphore", "rwlock", "election"] {
        assert_eq!(first[&format!("commonhold_leases_held {kind}")], 1.0, "{kind}");
        assert_eq!(first[&format!("commonhold_lease_claims_total {kind} acquired")], 1.0, "{kind}");
    }
    assert_eq!(first["commonhold_lease_claims_total lock not_had"], 1.0);

    permits.release().await.unwrap();
    reading.release().await.unwrap();
    lead.resign().await.unwrap();
    for _ in 0..1_000 {
        plan.refuse(Operation::Transact);
    }
    guard.lost().cancelled().await;
    drop(guard);
    let last = told();
    for kind in ["lock", "semaphore", "rwlock", "election"] {
        assert_eq!(last[&format!("commonhold_leases_held {kind}")], -1.0, "{kind}");
    }
    assert_eq!(last["commonhold_leases_lost_total lock"], 1.0);
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_is_over_when_its_answer_comes_is_asked_for_again() {
    let plan = FaultPlan::new();
    let store = Store::new(MemoryBackend::new()).layer(Fault::new(&plan));
    let locks = Locks::new(store.clone()).unwrap();
    plan.delay(Operation::Transact, TTL * 2);
    let guard = locks.try_acquire("l", TTL).await.unwrap().unwrap();
    assert!(guard.is_held());
    guard.release().await.unwrap();
    for _ in 0..3 {
        plan.delay(Operation::Transact, TTL * 2);
    }
    assert_eq!(locks.try_acquire("m", TTL).await.unwrap_err().kind(), ErrorKind::Timeout);
    plan.delay(Operation::Transact, TTL * 2);
    assert!(Election::new(store, "e").unwrap().campaign("me", TTL).await.unwrap().is_leader());
}

#[tokio::test(start_paused = true)]
async fn a_lease_whose_answer_comes_late_is_renewed_before_it_is_over() {
    let plan = FaultPlan::new();
    let locks = Locks::new(Store::new(MemoryBackend::new()).layer(Fault::new(&plan))).unwrap();
    plan.delay(Operation::Transact, TTL - TTL / 10);
    let guard = locks.try_acquire("l", TTL).await.unwrap().unwrap();
    tokio::time::sleep(TTL * 3).await;
    assert!(guard.is_held());
}

#[tokio::test(start_paused = true)]
async fn a_store_that_hangs_keeps_nobody_for_much_longer_than_it_wants_to_wait() {
    let plan = FaultPlan::new();
    let locks = Locks::new(Store::new(MemoryBackend::new()).layer(Fault::new(&plan))).unwrap();
    plan.hang(Operation::Transact);
    let asked = tokio::time::Instant::now();
    let error = locks.acquire("l", TTL, Duration::from_secs(1)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout);
    assert!(asked.elapsed() < Duration::from_secs(5), "{:?}", asked.elapsed());
}

/// Whether this comes to no end on a runtime that has ended. There are no timers on it: a panic is an end.
fn hangs_on_an_ended_runtime<F: Future>(work: impl FnOnce(Store) -> F + Send + 'static) -> bool {
    let (done, ended) = std::sync::mpsc::channel::<()>();
    std::thread::spawn(move || {
        let _done = done;
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let handle = runtime.handle().clone();
        runtime.shutdown_timeout(PATIENCE);
        handle.block_on(work(Store::new(MemoryBackend::new())));
    });
    ended.recv_timeout(PATIENCE) == Err(std::sync::mpsc::RecvTimeoutError::Timeout)
}

#[test]
fn nothing_hangs_on_a_runtime_that_has_ended() {
    assert!(!hangs_on_an_ended_runtime(async |store| {
        let _guard = Locks::new(store).unwrap().try_acquire("l", TTL).await.unwrap().unwrap();
    }));
    assert!(!hangs_on_an_ended_runtime(async |store| {
        let _guard = Locks::new(store.clone()).unwrap().try_acquire("l", TTL).await.unwrap().unwrap();
        let _waits = Locks::new(store).unwrap().fair().acquire("l", TTL, TTL).await;
    }));
    // The second finds the first on its way.
    let hanging = |store: Store| {
        let plan = FaultPlan::new();
        plan.hang(Operation::Transact);
        plan.hang(Operation::Put);
        store.layer(Fault::new(&plan))
    };
    assert!(!hangs_on_an_ended_runtime(async move |store| {
        let counter = Counter::new(hanging(store), "n").unwrap();
        let (mut one, mut other) = (Box::pin(counter.increment(1)), Box::pin(counter.increment(1)));
        let _ = (futures_util::poll!(&mut one), futures_util::poll!(&mut other));
    }));
    assert!(!hangs_on_an_ended_runtime(async move |store| {
        let bucket = TokenBucket::new(Rate::per_second(1).unwrap(), 1).unwrap();
        let limiter = DistributedLimiter::new(hanging(store), "l", bucket, OnUnavailable::Refuse).unwrap();
        let (mut one, mut other) = (Box::pin(limiter.try_acquire(1)), Box::pin(limiter.try_acquire(1)));
        let _ = (futures_util::poll!(&mut one), futures_util::poll!(&mut other));
    }));
}
