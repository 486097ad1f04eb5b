//! Semaphores and read-write locks.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use commonhold::{ErrorKind, MemoryBackend, Store};
use commonhold_coordination::Locks;
use commonhold_testkit::eventually;

use crate::common::{PATIENCE, Place};

const TTL: Duration = Duration::from_secs(30);

/// Tasks of several processes take permits; never are more out than there are.
async fn never_too_many(place: Place) {
    let out = Arc::new(AtomicUsize::new(0));
    let mut tasks = tokio::task::JoinSet::new();
    let store = place.open().await;
    for process in 0..3_u64 {
        let locks = Locks::new(store.clone()).unwrap();
        for task in 0..4_u64 {
            let (semaphore, out) = (locks.semaphore("s", 3).unwrap(), Arc::clone(&out));
            tasks.spawn(async move {
                let permits = (process + task) % 3 + 1;
                for _ in 0..5 {
                    let guard = semaphore.acquire(permits, TTL, PATIENCE).await.unwrap().unwrap();
                    let now = out.fetch_add(permits as usize, SeqCst) + permits as usize;
                    assert!(now <= 3, "{now} are out");
                    tokio::task::yield_now().await;
                    out.fetch_sub(permits as usize, SeqCst);
                    assert!(guard.release().await.unwrap());
                }
            });
        }
    }
    tasks.join_all().await;
    let shown = Locks::new(store).unwrap().semaphore("s", 3).unwrap().show().await.unwrap();
    assert_eq!((shown.holders.len(), shown.waiting), (0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn never_are_more_permits_out_than_there_are_in_memory() {
    never_too_many(Place::memory()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn never_are_more_permits_out_than_there_are_in_redis() {
    never_too_many(Place::redis()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn never_are_more_permits_out_than_there_are_in_postgres() {
    never_too_many(Place::postgres()).await;
}

#[tokio::test]
async fn who_wants_many_is_not_passed_by_those_who_want_few() {
    let locks = Locks::new(Store::new(MemoryBackend::new())).unwrap();
    let semaphore = locks.semaphore("s", 3).unwrap();
    let one = semaphore.try_acquire(1, TTL).await.unwrap().unwrap();
    let all = tokio::spawn({
        let semaphore = semaphore.clone();
        async move { semaphore.acquire(3, TTL, PATIENCE).await }
    });
    eventually(PATIENCE, "it stands in line", async || semaphore.show().await.unwrap().waiting == 1).await;
    assert!(semaphore.try_acquire(1, TTL).await.unwrap().is_none());
    one.release().await.unwrap();
    let all = all.await.unwrap().unwrap().unwrap();
    assert_eq!(semaphore.show().await.unwrap().holders[0].weight, 3);
    drop(all);
}

#[tokio::test]
async fn permits_out_of_range_are_refused() {
    let locks = Locks::new(Store::new(MemoryBackend::new())).unwrap();
    assert_eq!(locks.semaphore("s", 0).unwrap_err().kind(), ErrorKind::InvalidInput);
    assert_eq!(locks.semaphore("s", u64::MAX).unwrap_err().kind(), ErrorKind::InvalidInput);
    let semaphore = locks.semaphore("s", 3).unwrap();
    for permits in [0, 4, u64::MAX] {
        assert_eq!(semaphore.try_acquire(permits, TTL).await.unwrap_err().kind(), ErrorKind::InvalidInput);
    }
}

async fn readers_and_writers(place: Place) {
    let locks = Locks::new(place.open().await).unwrap();
    let lock = locks.rw_lock("l").unwrap();
    let one = lock.read(TTL, PATIENCE).await.unwrap().unwrap();
    let other = lock.read(TTL, PATIENCE).await.unwrap().unwrap();
    let writing = tokio::spawn({
        let lock = lock.clone();
        async move { lock.write(TTL, PATIENCE).await }
    });
    eventually(PATIENCE, "it stands in line", async || lock.show().await.unwrap().waiting == 1).await;
    assert!(
        lock.read(TTL, Duration::ZERO).await.unwrap().is_none(),
        "readers wait for a writer that came before"
    );
    one.release().await.unwrap();
    other.release().await.unwrap();
    let writer = writing.await.unwrap().unwrap().unwrap();
    assert!(lock.read(TTL, Duration::ZERO).await.unwrap().is_none());
    assert!(lock.write(TTL, Duration::ZERO).await.unwrap().is_none());
    writer.release().await.unwrap();
    assert!(lock.read(TTL, PATIENCE).await.unwrap().is_some());
}

#[tokio::test]
async fn many_read_or_one_writes_in_memory() {
    readers_and_writers(Place::memory()).await;
}

#[tokio::test]
async fn many_read_or_one_writes_in_redis() {
    readers_and_writers(Place::redis()).await;
}

#[tokio::test]
async fn many_read_or_one_writes_in_postgres() {
    readers_and_writers(Place::postgres()).await;
}
