//! Locks that one holds at a time, with fencing tokens.

use std::{sync::Arc, time::Duration};

use commonhold_core::{Error, ErrorKind, Key, Result, Retry, Store};
use tokio::time::Instant;

use crate::{
    fence::Fence,
    guard::{Guard, Lease},
    holders::Holders,
    lease::{self, Leases, Wanted, after},
    safety::Safety,
    semaphore::{RwLock, Semaphore},
    state,
    turn::Turns,
};

/// How many tokens a claim brings, for those to whom the lock is handed on.
const TOKENS: i64 = 256;

/// Locks in a store, by name: `lock:NAME` is the entry.
///
/// A lock is a lease: it is held for its time to live and renewed in the background, and ends with that time when the
/// process is gone. No lock of this kind can keep a holder that was paused from writing when it wakes up: what it writes
/// must carry the [fencing token](Guard::token) and be refused where a newer one was seen ([`Fenced`](crate::Fenced)).
///
/// Who comes first goes first, and a process is told when a lock is released; one subscription serves all. Tasks of one
/// process hand a lock on to each other for up to 5 ms without asking the store, each with a token of its own, before
/// others have it; with [`fair`](Self::fair) they do not.
///
/// Metrics, also of semaphores, read-write locks and elections, each by `kind`: `commonhold_leases_held`,
/// `commonhold_lease_claims_total` by `outcome` (`acquired`, `not_had`, `failed`), `commonhold_lease_wait_seconds`,
/// `commonhold_leases_lost_total`. What lies in several servers counts in each.
///
/// Cheap to clone; clones share everything. Use one for the whole process.
///
/// ```
/// # tokio::runtime::Runtime::new().unwrap().block_on(async {
/// use std::time::Duration;
/// use commonhold_coordination::Locks;
/// use commonhold_core::{MemoryBackend, Store};
///
/// let locks = Locks::new(Store::new(MemoryBackend::new()))?;
/// let ttl = Duration::from_secs(30);
/// let guard = locks.try_acquire("report", ttl).await?.expect("nobody else has it");
/// assert!(locks.try_acquire("report", ttl).await?.is_none());
/// guard.release().await?;
///
/// let sum = locks.with_lock("report", ttl, Duration::from_secs(10), |_fence| async { 1 + 1 }).await?;
/// assert_eq!(sum, 2);
/// # Ok::<(), commonhold_core::Error>(())
/// # }).unwrap();
/// ```
#[derive(Debug, Clone)]
pub struct Locks {
    shared: Arc<Shared>,
    fair: bool,
}

#[derive(Debug)]
struct Shared {
    leases: Arc<Leases>,
    turns: Arc<Turns<Lease>>,
}

impl Locks {
    /// What the keys of locks begin with; their names follow.
    pub const KEY_PREFIX: &str = "lock:";

    /// Locks in this store.
    ///
    /// # Errors
    /// `Unsupported` if entries of the store have no time to live.
    pub fn new(store: Store) -> Result<Self> {
        let shared = Shared { leases: Arc::new(Leases::new(store)?), turns: Arc::default() };
        Ok(Self { shared: Arc::new(shared), fair: false })
    }

    /// Under which faults the locks keep their promise in this store.
    pub fn safety(&self) -> Safety {
        Safety::of(self.shared.leases.store())
    }

    /// Strictly in the order in which the claims reach the store: tasks of one process do not hand a lock on to each
    /// other. Slower by the way to the store and back, twice.
    #[must_use]
    pub fn fair(mut self) -> Self {
        self.fair = true;
        self
    }

    /// Takes a lock if nobody has it, for 20 ms (in Memcached 24 s) to 365 days unless it is renewed.
    ///
    /// # Errors
    /// `InvalidInput` for another time to live or an empty name; `TooLarge` for a name that makes no key; those of the
    /// store.
    ///
    /// Cancellation: a dropped future leaves no lock behind; what it may have taken is released in the background.
    pub async fn try_acquire(&self, name: impl AsRef<str>, ttl: Duration) -> Result<Option<Guard>> {
        self.claim(name.as_ref(), ttl, None).await
    }

    /// Takes a lock, waiting for it up to `timeout`; `None` if it was not to be had until then.
    ///
    /// # Errors
    /// As [`try_acquire`](Self::try_acquire). Errors that may pass (a store that is away) are waited out. `Timeout` for a
    /// store that hangs, which is given 3 s at least.
    ///
    /// Cancellation: as with [`try_acquire`](Self::try_acquire).
    pub async fn acquire(
        &self,
        name: impl AsRef<str>,
        ttl: Duration,
        timeout: Duration,
    ) -> Result<Option<Guard>> {
        self.claim(name.as_ref(), ttl, Some(after(timeout))).await
    }

    /// Does work while holding a lock, and drops the work where it is if the lock is lost meanwhile.
    ///
    /// # Errors
    /// `Timeout` if the lock was not to be had within `timeout`; `Conflict` if it was lost; those of
    /// [`acquire`](Self::acquire). Not those of the release: it expires then.
    ///
    /// Cancellation: drops the work and releases the lock in the background.
    pub async fn with_lock<F, T>(
        &self,
        name: impl AsRef<str>,
        ttl: Duration,
        timeout: Duration,
        work: impl FnOnce(Fence) -> F,
    ) -> Result<T>
    where
        F: Future<Output = T>,
    {
        let name = name.as_ref();
        let Some(guard) = self.acquire(name, ttl, timeout).await? else {
            let message = format!("the lock {name:?} was not to be had within {timeout:?}");
            return Err(Error::new(ErrorKind::Timeout, message).with_retry(Retry::Safe));
        };
        let lost = guard.lost().clone();
        tokio::select! {
            done = work(guard.fence()) => {
                let _ = guard.release().await.inspect_err(|error| tracing::debug!(%error, "the lock will expire"));
                Ok(done)
            }
            () = lost.cancelled() => {
                let message = format!("the lock {name:?} was lost before the work was done");
                Err(Error::new(ErrorKind::Conflict, message))
            }
        }
    }

    /// Waits until whatever was dropped, locks and claims, is released. To be called before the runtime ends: what is
    /// not released then expires with its time to live only.
    pub async fn settled(&self) {
        self.shared.leases.settled().await;
    }

    /// Who holds a lock and how many wait for it.
    ///
    /// # Errors
    /// Those of the store; `Corrupt` if something else lies there.
    pub async fn show(&self, name: impl AsRef<str>) -> Result<Holders> {
        let key = key(name.as_ref())?;
        Holders::read(&self.shared.leases, &key).await
    }

    /// The semaphore of this name with this many permits. See [`Semaphore`].
    ///
    /// # Errors
    /// `InvalidInput` for no permits or more than 2^32, or for an empty name; `TooLarge` for one that makes no key.
    pub fn semaphore(&self, name: impl AsRef<str>, permits: u64) -> Result<Semaphore> {
        Semaphore::new(Arc::clone(&self.shared.leases), name.as_ref(), permits)
    }

    /// The read-write lock of this name. See [`RwLock`].
    ///
    /// # Errors
    /// `InvalidInput` for an empty name; `TooLarge` for one that makes no key.
    pub fn rw_lock(&self, name: impl AsRef<str>) -> Result<RwLock> {
        RwLock::new(Arc::clone(&self.shared.leases), name.as_ref())
    }

    async fn claim(&self, name: &str, ttl: Duration, deadline: Option<Instant>) -> Result<Option<Guard>> {
        let key = key(name)?;
        let asked = Instant::now();
        let claimed = self.claim_in_turn(&key, ttl, deadline).await;
        lease::claimed(&key, asked, &claimed);
        claimed
    }

    async fn claim_in_turn(
        &self,
        key: &Key,
        ttl: Duration,
        deadline: Option<Instant>,
    ) -> Result<Option<Guard>> {
        let mut turn = None;
        if !self.fair {
            let Some(mine) = self.shared.turns.take(key, deadline).await else { return Ok(None) };
            if let Some(mut lease) = mine.take_left() {
                match lease.hand_on(ttl).await {
                    Ok(Some(token)) => return Ok(Some(Guard::new(key.clone(), token, lease, Some(mine)))),
                    Err(error) if error.retry() == Retry::Never => return Err(error),
                    // It may be held still, under a name that nobody knows any more.
                    Ok(None) | Err(_) => {
                        let _ = lease.held.release().await;
                    }
                }
            }
            turn = Some(mine);
        }
        let tokens = if self.fair { 1 } else { TOKENS };
        let wanted = Wanted { tokens, ..self.shared.leases.one(key.clone(), ttl) };
        let Some((held, token)) = self.shared.leases.claim(&wanted, deadline).await? else { return Ok(None) };
        Ok(Some(Guard::new(wanted.key, token, Lease::new(held), turn)))
    }
}

fn key(name: &str) -> Result<Key> {
    state::key(Locks::KEY_PREFIX, name)
}
