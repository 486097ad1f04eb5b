//! The leases in a store, as one process sees them.

use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use commonhold_core::{Error, ErrorKind, Key, Result, Retry, Store};
use tokio::{runtime::Handle, time::Instant};
use tokio_util::task::TaskTracker;

use super::{
    held::Held,
    state::State,
    transition::{Claim, Claimed, Release, Released, Show, micros_of},
    wake::Wakeups,
};
use crate::holders::{process_name, to_label};

/// Times to live that clocks and networks can keep.
const SHORTEST: Duration = Duration::from_millis(20);
const LONGEST: Duration = Duration::from_secs(365 * 24 * 60 * 60);
/// How long a place in the line outlives one who is not heard of.
const PATIENCE: Duration = Duration::from_secs(3);
/// How often one who waits asks, where releases are told and where they are not.
const POLL: (Duration, Duration) = (Duration::from_secs(1), Duration::from_millis(50));
/// How often a claim is made again whose answer did not come, and after how long.
const ATTEMPTS: u32 = 3;
const RETRY_DELAY: Duration = Duration::from_millis(50);

/// Claims leases.
#[derive(Debug)]
pub(crate) struct Leases {
    store: Store,
    /// Names this process.
    process: String,
    label: String,
    claims: AtomicU64,
    wakeups: Arc<Wakeups>,
    runtime: OnceLock<Handle>,
    /// What is given back in the background.
    abandoned: TaskTracker,
}

/// What is asked for.
#[derive(Debug, Clone)]
pub(crate) struct Wanted {
    pub(crate) key: Key,
    /// How much of the capacity.
    pub(crate) weight: i64,
    pub(crate) capacity: i64,
    pub(crate) ttl: Duration,
    /// How many tokens at once.
    pub(crate) tokens: i64,
    pub(crate) label: String,
}

impl Leases {
    /// # Errors
    /// `Unsupported` if entries of the store have no time to live.
    pub(crate) fn new(store: Store) -> Result<Self> {
        if !store.capabilities().ttl {
            let message = "locks, semaphores and elections need a store whose entries can expire";
            return Err(Error::new(ErrorKind::Unsupported, message).at(store.backend().name(), "lease"));
        }
        let process = format!("{:016x}", fastrand::u64(..));
        let wakeups = Wakeups::new(store.clone(), &process);
        let label = to_label(process_name().as_bytes());
        Ok(Self {
            store,
            process,
            label,
            claims: AtomicU64::new(0),
            wakeups,
            runtime: OnceLock::new(),
            abandoned: TaskTracker::new(),
        })
    }

    /// All of something that one holds at a time.
    pub(crate) fn one(&self, key: Key, ttl: Duration) -> Wanted {
        Wanted { key, weight: 1, capacity: 1, ttl, tokens: 1, label: self.label.clone() }
    }

    pub(crate) fn store(&self) -> &Store {
        &self.store
    }

    /// Claims a lease, waiting for it until the deadline. `None` if it is not to be had.
    ///
    /// Dropping the future leaves no lease and no place in the line behind.
    pub(crate) async fn claim(
        self: &Arc<Self>,
        wanted: &Wanted,
        deadline: Option<Instant>,
    ) -> Result<Option<(Held, i64)>> {
        check_ttl(wanted.ttl)?;
        let _ = self.runtime.set(Handle::current());
        let number = self.claims.fetch_add(1, Ordering::Relaxed);
        let owner = format!("{}.{number}", self.process);
        let begun = Begun { leases: self, wanted, owner: owner.clone(), settled: false };
        let claim = Claim {
            owner: owner.clone(),
            label: wanted.label.clone(),
            weight: wanted.weight,
            capacity: wanted.capacity,
            ttl: micros_of(wanted.ttl),
            patience: deadline.map_or(0, |_| micros_of(PATIENCE)),
            tokens: wanted.tokens,
        };
        let place = deadline.map(|_| self.wakeups.wait_for(&owner));
        let mut failures = 0;
        loop {
            // Registered before it is asked: a release in between is heard.
            let released = place.as_ref().map(|place| place.released());
            let sent = Instant::now();
            let claimed = self.store.transact(&wanted.key, claim.clone()).await;
            let pause = match claimed.and_then(|reply| Claimed::decode(&reply)) {
                Ok(Claimed::Granted(token)) => {
                    begun.nothing_is_left();
                    let held = Held::new(Arc::clone(self), wanted, owner, sent);
                    return Ok(Some((held, token)));
                }
                Ok(Claimed::Taken(_)) if deadline.is_none() && failures == 0 => {
                    begun.nothing_is_left();
                    return Ok(None);
                }
                Ok(Claimed::Taken(left)) => {
                    self.poll_interval().min(left + Duration::from_millis(fastrand::u64(1..10)))
                }
                // Making the same claim again takes nothing twice.
                Err(error) if error.retry() != Retry::Never => {
                    failures += 1;
                    let over = deadline.map_or(failures >= ATTEMPTS, |deadline| Instant::now() >= deadline);
                    if over {
                        return Err(error);
                    }
                    RETRY_DELAY.mul_f64(fastrand::f64() + 0.5)
                }
                Err(error) => return Err(error),
            };
            let now = Instant::now();
            let until = match deadline {
                Some(deadline) if now < deadline => deadline.min(now + pause),
                None if failures > 0 => now + pause,
                _ => return Ok(None),
            };
            match released {
                Some(released) => {
                    let _ = tokio::time::timeout_at(until, released).await;
                }
                None => tokio::time::sleep_until(until).await,
            }
        }
    }

    fn poll_interval(&self) -> Duration {
        let interval = if self.wakeups.can_wake() { POLL.0 } else { POLL.1 };
        interval.mul_f64(fastrand::f64() + 0.5)
    }

    /// Gives back what this owner holds, and says whether it held something. Whoever waits is told.
    pub(crate) async fn release(&self, key: &Key, owner: &str, capacity: i64) -> Result<bool> {
        let release = Release { owner: owner.to_owned(), capacity };
        let mut failures = 0;
        loop {
            match self.store.transact(key, release.clone()).await {
                Ok(reply) => {
                    let Released { held, next } = Released::decode(&reply);
                    if !next.is_empty() {
                        self.wakeups.tell(&next).await;
                    }
                    // One whose answer was lost held it.
                    return Ok(held || failures > 0);
                }
                Err(error) if error.retry() == Retry::Never || failures + 1 == ATTEMPTS => return Err(error),
                Err(_) => {
                    failures += 1;
                    tokio::time::sleep(RETRY_DELAY.mul_f64(fastrand::f64() + 0.5)).await;
                }
            }
        }
    }

    /// Gives back in the background. It expires if that fails.
    pub(crate) fn abandon(self: &Arc<Self>, key: Key, owner: String, capacity: i64) {
        let Some(runtime) = self.runtime.get() else { return };
        let leases = Arc::clone(self);
        let release = async move {
            if let Err(error) = leases.release(&key, &owner, capacity).await {
                tracing::debug!(%key, %error, "not given back: it will expire");
            }
        };
        self.abandoned.spawn_on(release, runtime);
    }

    /// Waits until all that was dropped is given back.
    pub(crate) async fn settled(&self) {
        self.abandoned.close();
        self.abandoned.wait().await;
        self.abandoned.reopen();
    }

    /// The time of the store in microseconds, who holds and who waits.
    pub(crate) async fn show(&self, key: &Key) -> Result<(i64, State)> {
        Show::decode(&self.store.transact(key, Show).await?)
    }
}

/// A claim that may have been granted. Dropping it gives back what it may have.
struct Begun<'a> {
    leases: &'a Arc<Leases>,
    wanted: &'a Wanted,
    owner: String,
    settled: bool,
}

impl Begun<'_> {
    fn nothing_is_left(mut self) {
        self.settled = true;
    }
}

impl Drop for Begun<'_> {
    fn drop(&mut self) {
        if !self.settled {
            self.leases.abandon(self.wanted.key.clone(), self.owner.clone(), self.wanted.capacity);
        }
    }
}

/// This long from now, or a year.
pub(crate) fn after(timeout: Duration) -> Instant {
    Instant::now() + timeout.min(LONGEST)
}

pub(super) fn check_ttl(ttl: Duration) -> Result<()> {
    if (SHORTEST..=LONGEST).contains(&ttl) {
        return Ok(());
    }
    let message = format!("a lease lasts from {SHORTEST:?} to 365 days, not {ttl:?}");
    Err(Error::new(ErrorKind::InvalidInput, message))
}
