//! Locks over independent servers.

use std::time::Duration;

use commonhold::{ErrorKind, MemoryBackend, Store};
use commonhold_coordination::Redlock;
use commonhold_testkit::{eventually, servers::Redis};

use crate::common::PATIENCE;

const TTL: Duration = Duration::from_secs(5);

async fn lock(servers: &[Redis]) -> Redlock {
    let mut stores = Vec::new();
    for server in servers {
        let url = format!("{}?connect_timeout=200ms&retries=0", server.url());
        stores.push(commonhold::open(&url).await.unwrap());
    }
    Redlock::new(stores).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_majority_grants_a_lock_while_the_others_are_away() {
    let servers = [Redis::start(), Redis::start(), Redis::start()];
    let (one, other) = (lock(&servers).await, lock(&servers).await);
    let first = one.try_acquire("l", TTL).await.unwrap().unwrap();
    assert!(first.is_held() && first.extend(TTL * 2).await.unwrap());
    assert!(other.try_acquire("l", TTL).await.unwrap().is_none());
    servers[0].kill();
    assert!(other.try_acquire("l", TTL).await.unwrap().is_none());
    let token = first.token();
    assert!(first.release().await);
    let second = other.acquire("l", TTL, PATIENCE).await.unwrap().unwrap();
    assert!(second.token() > token);
    servers[1].kill();
    let lost = tokio::time::timeout(PATIENCE, second.lost().cancelled_owned()).await;
    lost.expect("without a majority the lock is lost");
    assert!(!second.is_held());
    let error = other.try_acquire("l", TTL).await.unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::Timeout), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_rise_from_majority_to_majority_whatever_the_clocks_say() {
    let servers = [Redis::start(), Redis::start(), Redis::start()];
    // As if the clock of this one were a year ahead.
    servers[0].cli(&["SET", "lock:l", "1900000000000000"]);
    let lock = lock(&servers).await;
    let first = lock.try_acquire("l", TTL).await.unwrap().unwrap();
    assert!(first.token() > 1_900_000_000_000_000);
    let token = first.token();
    first.release().await;
    servers[0].kill();
    let second = lock.acquire("l", TTL, PATIENCE).await.unwrap().unwrap();
    assert!(second.token() > token, "{} after {token}", second.token());
}

#[tokio::test(flavor = "multi_thread")]
async fn one_of_many_has_it_at_a_time() {
    let servers = [Redis::start(), Redis::start(), Redis::start()];
    let counter = Store::new(MemoryBackend::new());
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..4 {
        let (lock, counter) = (lock(&servers).await, counter.clone());
        tasks.spawn(async move {
            let mut tokens = Vec::new();
            for _ in 0..5 {
                let guard = lock.acquire("l", TTL, PATIENCE).await.unwrap().unwrap();
                let value: u64 = counter.get_as("n", commonhold::Text).await.unwrap().unwrap_or(0);
                tokio::task::yield_now().await;
                counter.put("n", (value + 1).to_string()).await.unwrap();
                tokens.push(guard.token());
                guard.release().await;
            }
            tokens
        });
    }
    let mut tokens: Vec<u64> = tasks.join_all().await.concat();
    tokens.sort();
    tokens.dedup();
    assert_eq!(tokens.len(), 20);
    assert_eq!(counter.get("n").await.unwrap().unwrap(), "20");
}

#[tokio::test]
async fn what_no_majority_grants_is_given_back() {
    let stores: Vec<Store> = (0..3).map(|_| Store::new(MemoryBackend::new())).collect();
    let single = |store: &Store| commonhold_coordination::Locks::new(store.clone()).unwrap();
    let (first, second) = (single(&stores[0]), single(&stores[1]));
    let _one = first.try_acquire("l", TTL).await.unwrap().unwrap();
    let _other = second.try_acquire("l", TTL).await.unwrap().unwrap();
    let lock = Redlock::new(stores.clone()).unwrap();
    assert!(lock.try_acquire("l", TTL).await.unwrap().is_none());
    eventually(PATIENCE, "the third is free", async || {
        single(&stores[2]).show("l").await.unwrap().holders.is_empty()
    })
    .await;
    assert_eq!(Redlock::new(stores.into_iter().take(2)).unwrap_err().kind(), ErrorKind::InvalidConfig);
}
