//! Names make keys.

use std::time::Duration;

use commonhold::{ErrorKind, MemoryBackend, Result, Store};
use commonhold_coordination::{
    Election, Locks, Redlock,
    breaker::{DistributedBreaker, OnUnavailable as OnOpen, Settings},
    limit::{DistributedLimiter, HybridLimiter, OnUnavailable, Rate, TokenBucket},
};

const SECOND: Duration = Duration::from_secs(1);

#[tokio::test]
async fn a_name_is_neither_empty_nor_longer_than_a_key() {
    let store = || Store::new(MemoryBackend::new());
    let locks = Locks::new(store()).unwrap();
    let redlock = Redlock::new([store(), store(), store()]).unwrap();
    let bucket = TokenBucket::new(Rate::per_second(1).unwrap(), 1).unwrap();
    let refuse = OnUnavailable::Refuse;
    for (name, expected) in [("", ErrorKind::InvalidInput), (&*"x".repeat(1025), ErrorKind::TooLarge)] {
        let outcomes: Vec<(&str, Result<()>)> = vec![
            ("try_acquire", locks.try_acquire(name, SECOND).await.map(drop)),
            ("acquire", locks.acquire(name, SECOND, SECOND).await.map(drop)),
            ("with_lock", locks.with_lock(name, SECOND, SECOND, |_| async {}).await),
            ("show", locks.show(name).await.map(drop)),
            ("semaphore", locks.semaphore(name, 2).map(drop)),
            ("rwlock", locks.rw_lock(name).map(drop)),
            ("redlock", redlock.try_acquire(name, SECOND).await.map(drop)),
            ("election", Election::new(store(), name).map(drop)),
            ("limiter", DistributedLimiter::new(store(), name, bucket, refuse).map(drop)),
            ("hybrid limiter", HybridLimiter::new(store(), name, bucket, SECOND, refuse).map(drop)),
            ("breaker", DistributedBreaker::new(store(), name, &Settings::new(), OnOpen::Allow).map(drop)),
        ];
        for (what, outcome) in outcomes {
            assert_eq!(outcome.unwrap_err().kind(), expected, "{what}: {} bytes", name.len());
        }
    }
}
