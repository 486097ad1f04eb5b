//! Semaphores with permits that expire, and read-write locks.

use std::{sync::Arc, time::Duration};

use commonhold_core::{Error, ErrorKind, Key, Result};
use tokio::time::Instant;

use crate::{
    guard::{Guard, Lease},
    holders::Holders,
    lease::{self, Leases, Wanted, after},
    state,
};

/// A number of permits in a store, for those that may do something at the same time: `semaphore:NAME` is the entry.
///
/// A permit is a lease: it is held for its time to live and renewed in the background, and comes back with that time
/// when the process is gone. Who comes first goes first; who wants many is not passed by those who want few.
///
/// All must name the same number of permits. While they do not, each goes by its own.
///
/// ```
/// # tokio::runtime::Runtime::new().unwrap().block_on(async {
/// use std::time::Duration;
/// use commonhold_coordination::Locks;
/// use commonhold_core::{MemoryBackend, Store};
///
/// let locks = Locks::new(Store::new(MemoryBackend::new()))?;
/// let exports = locks.semaphore("exports", 3)?;
/// let ttl = Duration::from_secs(30);
/// let two = exports.try_acquire(2, ttl).await?.expect("three are free");
/// assert!(exports.try_acquire(2, ttl).await?.is_none());
/// assert!(exports.acquire(1, ttl, Duration::from_secs(10)).await?.is_some());
/// two.release().await?;
/// # Ok::<(), commonhold_core::Error>(())
/// # }).unwrap();
/// ```
#[derive(Debug, Clone)]
pub struct Semaphore {
    leases: Arc<Leases>,
    key: Key,
    permits: i64,
}

/// The most permits that a semaphore can have.
const MAX_PERMITS: u64 = 1 << 32;

impl Semaphore {
    /// What the keys of semaphores begin with; their names follow.
    pub const KEY_PREFIX: &str = "semaphore:";

    pub(crate) fn new(leases: Arc<Leases>, name: &str, permits: u64) -> Result<Self> {
        let key = state::key(Self::KEY_PREFIX, name)?;
        Ok(Self { leases, key, permits: in_range(permits, MAX_PERMITS)? })
    }

    /// Takes this many permits if they are free and nobody stands in line for them.
    ///
    /// # Errors
    /// `InvalidInput` for none, more than there are, or a time to live that is not from 20 ms to 365 days; those of the
    /// store.
    ///
    /// Cancellation: a dropped future leaves nothing behind; what it may have taken is released in the background.
    pub async fn try_acquire(&self, permits: u64, ttl: Duration) -> Result<Option<Guard>> {
        self.claim(permits, ttl, None).await
    }

    /// Takes this many permits, waiting for them up to `timeout`; `None` if they were not to be had until then.
    ///
    /// # Errors
    /// As [`try_acquire`](Self::try_acquire). Errors that may pass (a store that is away) are waited out. `Timeout` for a
    /// store that hangs, which is given 3 s at least.
    ///
    /// Cancellation: as with [`try_acquire`](Self::try_acquire).
    pub async fn acquire(&self, permits: u64, ttl: Duration, timeout: Duration) -> Result<Option<Guard>> {
        self.claim(permits, ttl, Some(after(timeout))).await
    }

    /// Who holds permits and how many wait for some.
    ///
    /// # Errors
    /// Those of the store; `Corrupt` if something else lies there.
    pub async fn show(&self) -> Result<Holders> {
        Holders::read(&self.leases, &self.key).await
    }

    async fn claim(&self, permits: u64, ttl: Duration, deadline: Option<Instant>) -> Result<Option<Guard>> {
        let weight = in_range(permits, self.permits.unsigned_abs())?;
        claim(&self.leases, &self.key, weight, self.permits, ttl, deadline).await
    }
}

/// A lock in a store that many hold to read, or one to write: `rwlock:NAME` is the entry.
///
/// Who comes first goes first: readers who come after a writer wait for it.
///
/// ```
/// # tokio::runtime::Runtime::new().unwrap().block_on(async {
/// use std::time::Duration;
/// use commonhold_coordination::Locks;
/// use commonhold_core::{MemoryBackend, Store};
///
/// let catalogue = Locks::new(Store::new(MemoryBackend::new()))?.rw_lock("catalogue")?;
/// let (ttl, timeout) = (Duration::from_secs(30), Duration::from_secs(10));
/// let reading = catalogue.read(ttl, timeout).await?.expect("nobody writes");
/// assert!(catalogue.read(ttl, timeout).await?.is_some());
/// assert!(catalogue.write(ttl, Duration::ZERO).await?.is_none());
/// # Ok::<(), commonhold_core::Error>(())
/// # }).unwrap();
/// ```
#[derive(Debug, Clone)]
pub struct RwLock {
    leases: Arc<Leases>,
    key: Key,
}

impl RwLock {
    /// What the keys of read-write locks begin with; their names follow.
    pub const KEY_PREFIX: &str = "rwlock:";

    /// Readers take one, writers all.
    const ALL: i64 = 1 << 32;

    pub(crate) fn new(leases: Arc<Leases>, name: &str) -> Result<Self> {
        Ok(Self { leases, key: state::key(Self::KEY_PREFIX, name)? })
    }

    /// Holds the lock together with other readers, waiting for it up to `timeout`; `None` if it was not to be had.
    ///
    /// # Errors
    /// `InvalidInput` for a time to live that is not from 20 ms to 365 days; those of the store. Errors that may pass
    /// are waited out.
    ///
    /// Cancellation: a dropped future leaves nothing behind; what it may have taken is released in the background.
    pub async fn read(&self, ttl: Duration, timeout: Duration) -> Result<Option<Guard>> {
        claim(&self.leases, &self.key, 1, Self::ALL, ttl, Some(after(timeout))).await
    }

    /// Holds the lock alone, waiting for it up to `timeout`; `None` if it was not to be had.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    ///
    /// Cancellation: as with [`read`](Self::read).
    pub async fn write(&self, ttl: Duration, timeout: Duration) -> Result<Option<Guard>> {
        claim(&self.leases, &self.key, Self::ALL, Self::ALL, ttl, Some(after(timeout))).await
    }

    /// Who holds the lock (readers with the weight 1) and how many wait for it.
    ///
    /// # Errors
    /// Those of the store; `Corrupt` if something else lies there.
    pub async fn show(&self) -> Result<Holders> {
        Holders::read(&self.leases, &self.key).await
    }
}

async fn claim(
    leases: &Arc<Leases>,
    key: &Key,
    weight: i64,
    capacity: i64,
    ttl: Duration,
    deadline: Option<Instant>,
) -> Result<Option<Guard>> {
    let wanted = Wanted { weight, capacity, ..leases.one(key.clone(), ttl) };
    let asked = Instant::now();
    let claimed = leases.claim(&wanted, deadline).await;
    lease::claimed(key, asked, &claimed);
    Ok(claimed?.map(|(held, token)| Guard::new(wanted.key, token, Lease::new(held), None)))
}

fn in_range(permits: u64, most: u64) -> Result<i64> {
    match i64::try_from(permits) {
        Ok(weight) if (1..=most).contains(&permits) => Ok(weight),
        _ => Err(Error::new(ErrorKind::InvalidInput, format!("from 1 to {most} permits, not {permits}"))),
    }
}
