//! What is awaited can be awaited in a task of its own: these compile.

use std::time::Duration;

use commonhold::{MemoryBackend, Store};
use commonhold_coordination::{
    Election, Fenced, Locks,
    breaker::{DistributedBreaker, HybridBreaker, LocalBreaker, OnUnavailable as OnOpen, Settings},
    counter::{Counter, HybridCounter},
    limit::{
        ConcurrencyLimiter, DistributedLimiter, HybridLimiter, LocalLimiter, OnUnavailable, Rate, TokenBucket,
    },
};

const SECOND: Duration = Duration::from_secs(1);

#[tokio::test]
async fn everything_can_be_awaited_in_a_task_of_its_own() {
    let store = Store::new(MemoryBackend::new());
    let bucket = TokenBucket::new(Rate::per_second(100).unwrap(), 100).unwrap();
    let mut tasks = tokio::task::JoinSet::new();
    let limiter = LocalLimiter::new(bucket);
    tasks.spawn(async move { limiter.acquire_timeout(1, SECOND).await.map(drop) });
    let limiter = DistributedLimiter::new(store.clone(), "l", bucket, OnUnavailable::Refuse).unwrap();
    tasks.spawn(async move {
        limiter.try_acquire(1).await?.allowed.then_some(()).unwrap();
        limiter.acquire(1).await?.allowed.then_some(()).unwrap();
        limiter.acquire_timeout(1, SECOND).await.map(drop)
    });
    let limiter = HybridLimiter::new(store.clone(), "h", bucket, SECOND, OnUnavailable::Refuse).unwrap();
    tasks.spawn(async move {
        limiter.acquire(1).await?.allowed.then_some(()).unwrap();
        limiter.release().await
    });
    let limiter = ConcurrencyLimiter::hybrid(store.clone(), "c", 2, SECOND, OnUnavailable::Refuse).unwrap();
    tasks.spawn(async move {
        limiter.try_acquire(1).await?.map(drop).unwrap();
        limiter.acquire(1).await.map(drop)?;
        limiter.acquire_timeout(1, SECOND).await?.map(drop).unwrap();
        limiter.remaining().await?;
        limiter.release().await
    });
    let settings = Settings::new().failure_threshold(3);
    let breaker = LocalBreaker::new("b", &settings).unwrap();
    tasks.spawn(async move {
        breaker.execute(|| async { Ok::<_, String>(()) }).await.unwrap();
        Ok(())
    });
    let breaker = DistributedBreaker::new(store.clone(), "b", &settings, OnOpen::Allow).unwrap();
    tasks.spawn(async move {
        breaker.execute(|| async { Ok::<_, String>(()) }).await.unwrap();
        breaker.show().await.map(drop)
    });
    let shared = DistributedBreaker::new(store.clone(), "h", &settings, OnOpen::Allow).unwrap();
    let breaker = HybridBreaker::new(&settings, shared, SECOND).unwrap();
    tasks.spawn(async move {
        breaker.execute(|| async { Ok::<_, String>(()) }).await.unwrap();
        Ok(())
    });
    let locks = Locks::new(store.clone()).unwrap();
    tasks.spawn(async move {
        let guard = locks.acquire("l", SECOND, SECOND).await?.unwrap();
        guard.extend(SECOND).await?;
        guard.release().await?;
        locks.with_lock("l", SECOND, SECOND, |_| async {}).await
    });
    let election = Election::new(store.clone(), "e").unwrap();
    tasks.spawn(async move {
        election.campaign("me", SECOND).await?.resign().await?;
        election.run_while_leader("me", SECOND, |_| async {}).await
    });
    let (counter, fenced) = (Counter::new(store.clone(), "c").unwrap(), locks_fence(&store));
    tasks.spawn(async move {
        counter.increment(1).await?;
        counter.increment_once("id", 1).await?;
        fenced.put("k", "v").await?;
        let hybrid = HybridCounter::builder(store, "n")?.build().await?;
        hybrid.add(1).await?;
        hybrid.close().await
    });
    for outcome in tasks.join_all().await {
        outcome.unwrap();
    }
}

fn locks_fence(store: &Store) -> Fenced {
    Fenced::new(store.clone(), commonhold_coordination::Fence::new(1)).unwrap()
}
