//! Locks that one holds at a time, with fencing tokens.

use std::{fmt, ops::Range, sync::Arc, time::Duration};

use commonhold_core::{Error, ErrorKind, Key, Result, Retry, Store};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::{
    fence::Fence,
    holders::{Holders, label_of_process},
    lease::{Held, Leases, Wanted},
    turn::{Turn, Turns},
};

/// How long the holders of one process hand a lock to each other before others may have it.
const STREAK: Duration = Duration::from_millis(5);
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
    label: String,
    turns: Arc<Turns<Lease>>,
}

/// A lease, and what it needs to be handed on.
#[derive(Debug)]
struct Lease {
    held: Held,
    /// Those that nobody has had.
    tokens: Range<i64>,
    since: Instant,
}

/// A lock that is held. It is renewed in the background until it is released.
///
/// Dropping it releases the lock in the background; [`release`](Self::release) waits until that is done.
#[must_use = "the lock is released when the guard is dropped"]
pub struct Guard {
    name: Key,
    token: i64,
    /// Taken when it is released.
    lease: Option<Lease>,
    turn: Option<Turn<Lease>>,
}

impl Locks {
    /// Locks in this store.
    ///
    /// # Errors
    /// `Unsupported` if entries of the store have no time to live.
    pub fn new(store: Store) -> Result<Self> {
        let leases = Arc::new(Leases::new(store)?);
        let shared = Shared { leases, label: label_of_process(), turns: Arc::default() };
        Ok(Self { shared: Arc::new(shared), fair: false })
    }

    /// Strictly in the order in which the claims reach the store: tasks of one process do not hand a lock on to each
    /// other. Slower by the way to the store and back, twice.
    #[must_use]
    pub fn fair(mut self) -> Self {
        self.fair = true;
        self
    }

    /// Takes a lock if nobody has it, for 20 ms to 365 days unless it is renewed.
    ///
    /// # Errors
    /// `InvalidInput` for such a time to live or name; those of the store.
    ///
    /// Cancellation: a dropped future leaves no lock behind; what it may have taken is released in the background.
    pub async fn try_acquire(&self, name: impl AsRef<str>, ttl: Duration) -> Result<Option<Guard>> {
        self.claim(name.as_ref(), ttl, None).await
    }

    /// Takes a lock, waiting for it up to `timeout`; `None` if it was not to be had until then.
    ///
    /// # Errors
    /// As [`try_acquire`](Self::try_acquire). Errors that may pass (a store that is away) are waited out.
    ///
    /// Cancellation: as with [`try_acquire`](Self::try_acquire).
    pub async fn acquire(
        &self,
        name: impl AsRef<str>,
        ttl: Duration,
        timeout: Duration,
    ) -> Result<Option<Guard>> {
        self.claim(name.as_ref(), ttl, Some(Instant::now() + timeout)).await
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

    /// Who holds a lock and how many wait for it.
    ///
    /// # Errors
    /// Those of the store; `Corrupt` if something else lies there.
    pub async fn show(&self, name: impl AsRef<str>) -> Result<Holders> {
        let key = key(name.as_ref())?;
        Holders::read(&self.shared.leases, &key).await
    }

    async fn claim(&self, name: &str, ttl: Duration, deadline: Option<Instant>) -> Result<Option<Guard>> {
        let key = key(name)?;
        let asked = Instant::now();
        let claimed = self.claim_in_turn(&key, ttl, deadline).await;
        let outcome = match &claimed {
            Ok(Some(_)) => "acquired",
            Ok(None) => "not_had",
            Err(_) => "failed",
        };
        metrics::counter!("commonhold_lock_claims_total", "outcome" => outcome).increment(1);
        metrics::histogram!("commonhold_lock_wait_seconds").record(asked.elapsed().as_secs_f64());
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
                if let Some(token) = lease.hand_on(ttl).await? {
                    return Ok(Some(Guard {
                        name: key.clone(),
                        token,
                        lease: Some(lease),
                        turn: Some(mine),
                    }));
                }
                lease.held.release().await?;
            }
            turn = Some(mine);
        }
        let tokens = if self.fair { 1 } else { TOKENS };
        let (label, name) = (self.shared.label.clone(), key.clone());
        let wanted = Wanted { key: name.clone(), weight: 1, capacity: 1, ttl, tokens, label };
        let Some((held, token)) = self.shared.leases.claim(&wanted, deadline).await? else { return Ok(None) };
        let lease = Lease { held, tokens: token + 1..token + tokens, since: Instant::now() };
        Ok(Some(Guard { name, token, lease: Some(lease), turn }))
    }
}

impl Lease {
    /// A token for the next one, if the lease lasts this long or can be made to.
    async fn hand_on(&mut self, ttl: Duration) -> Result<Option<i64>> {
        let lasts = self.held.deadline() > Instant::now() + ttl / 2 && self.held.ttl() == ttl;
        if !lasts && !self.held.extend(ttl).await? {
            return Ok(None);
        }
        Ok(self.tokens.next().filter(|_| self.held.is_held()))
    }

    fn may_be_handed_on(&self) -> bool {
        self.held.is_held() && self.since.elapsed() < STREAK && !self.tokens.is_empty()
    }
}

impl Guard {
    /// The name of the lock.
    pub fn name(&self) -> &str {
        let key = self.name.as_bytes();
        std::str::from_utf8(key).ok().and_then(|key| key.strip_prefix(PREFIX)).unwrap_or_default()
    }

    /// The fencing token: greater than that of every earlier holder, whatever happened to the lock or the store in
    /// between, as long as the store's clock did not step back by more than a day while its data was lost or the lock
    /// was unused.
    pub fn token(&self) -> u64 {
        self.token.unsigned_abs()
    }

    /// The token as what [fenced writes](crate::Fenced) take.
    pub fn fence(&self) -> Fence {
        Fence::new(self.token())
    }

    /// Whether the lock is still held for sure. It may be lost the moment after: only a [fence](Self::fence) keeps
    /// what is written later from doing harm.
    pub fn is_held(&self) -> bool {
        self.lease.as_ref().is_some_and(|lease| lease.held.is_held())
    }

    /// Until when the lock is held for sure if it is not renewed again, on the monotonic clock of this machine. That
    /// clock stands still while the machine is suspended.
    ///
    /// Earlier than the store's own end by the time that the request took, and by 1 % of the time to live and 2 ms, by
    /// which the clocks may differ in speed.
    pub fn deadline(&self) -> std::time::Instant {
        self.lease.as_ref().map_or_else(Instant::now, |lease| lease.held.deadline()).into_std()
    }

    /// Cancelled the moment at which it is no longer sure that the lock is held, and when it is released.
    pub fn lost(&self) -> CancellationToken {
        self.lease.as_ref().map_or_else(cancelled, |lease| lease.held.lost().clone())
    }

    /// Holds the lock for this long from now, and for as long from each renewal on. Says whether it was still held.
    ///
    /// # Errors
    /// `InvalidInput` for a time to live that is not from 20 ms to 365 days; those of the store: it may then be
    /// extended or not.
    pub async fn extend(&self, ttl: Duration) -> Result<bool> {
        match &self.lease {
            Some(lease) => lease.held.extend(ttl).await,
            None => Ok(false),
        }
    }

    /// Releases the lock, and says whether it was held until now.
    ///
    /// # Errors
    /// Those of the store: it is tried again in the background then, and expires at the latest with its time to live.
    ///
    /// Cancellation: a dropped future releases the lock in the background.
    pub async fn release(mut self) -> Result<bool> {
        match self.hand_on() {
            // The turn ends afterwards: the next one finds the lock free.
            Some((lease, _turn)) => lease.held.release().await,
            None => Ok(true),
        }
    }

    /// Leaves the lock to the next task of this process, or returns what is to be released.
    fn hand_on(&mut self) -> Option<(Lease, Option<Turn<Lease>>)> {
        let lease = self.lease.take()?;
        match self.turn.take() {
            Some(turn) if lease.may_be_handed_on() => {
                turn.leave(lease).map(|(turn, lease)| (lease, Some(turn)))
            }
            turn => Some((lease, turn)),
        }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        drop(self.hand_on());
    }
}

impl fmt::Debug for Guard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, token, .. } = self;
        f.debug_struct("Guard")
            .field("name", name)
            .field("token", token)
            .field("held", &self.is_held())
            .finish()
    }
}

/// What the keys of locks begin with.
const PREFIX: &str = "lock:";

fn key(name: &str) -> Result<Key> {
    Key::new(format!("{PREFIX}{name}"))
}

fn cancelled() -> CancellationToken {
    let token = CancellationToken::new();
    token.cancel();
    token
}
