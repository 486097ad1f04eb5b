//! The leases in a store, as one process sees them.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use commonhold_core::{Error, ErrorKind, Key, Result, Retry, Store};
use tokio::{runtime::Handle, time::Instant};
use tokio_util::task::TaskTracker;

use super::{
    held::{Beginning, Held},
    schedule::Schedule,
    state::State,
    transition::{Claim, Claimed, Release, Released, Show, micros_of},
    wake::Wakeups,
};
use crate::holders::{process_name, to_label};

/// Times to live that clocks and networks can keep.
const SHORTEST: Duration = Duration::from_millis(20);
const LONGEST: Duration = Duration::from_secs(365 * 24 * 60 * 60);
/// How long a place in the line, or what is granted to it, outlives one who is not heard of: the time to live, but within
/// these.
const PATIENCE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(3));
/// How often one who waits asks at least, where it is told what is granted and where it is not. Also for this not longer
/// than half of a place's time.
const POLL: (Duration, Duration) = (Duration::from_secs(1), Duration::from_millis(50));
/// How often a claim is made again whose answer did not come, and after how long.
const ATTEMPTS: u32 = 3;
const RETRY_DELAY: Duration = Duration::from_millis(50);
/// How long one who waits gives the store for its answer at least, however short the wait.
const ANSWER: Duration = Duration::from_secs(3);

/// Claims leases.
#[derive(Debug)]
pub(crate) struct Leases {
    store: Store,
    /// Names this process.
    process: String,
    label: Arc<str>,
    claims: AtomicU64,
    wakeups: Arc<Wakeups>,
    schedule: Schedule,
    /// Of the last claim.
    runtime: Mutex<Option<Handle>>,
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
    pub(crate) label: Arc<str>,
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
        let label = to_label(process_name().as_bytes()).into();
        Ok(Self {
            store,
            process,
            label,
            claims: AtomicU64::new(0),
            wakeups,
            schedule: Schedule::default(),
            runtime: Mutex::default(),
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

    pub(super) fn schedule(&self) -> &Schedule {
        &self.schedule
    }

    pub(super) fn clock_error(&self) -> Duration {
        self.store.capabilities().clock_error
    }

    /// # Errors
    /// `InvalidInput` for a time to live that clocks and networks cannot keep.
    pub(super) fn check_ttl(&self, ttl: Duration) -> Result<()> {
        let shortest = SHORTEST.max(4 * self.clock_error());
        if (shortest..=LONGEST).contains(&ttl) {
            return Ok(());
        }
        let message = format!("a lease in this store lasts from {shortest:?} to 365 days, not {ttl:?}");
        Err(Error::new(ErrorKind::InvalidInput, message))
    }

    /// Claims a lease, waiting for it until the deadline. `None` if it is not to be had.
    ///
    /// Dropping the future leaves no lease and no place in the line behind.
    pub(crate) async fn claim(
        self: &Arc<Self>,
        wanted: &Wanted,
        deadline: Option<Instant>,
    ) -> Result<Option<(Held, i64)>> {
        self.check_ttl(wanted.ttl)?;
        *self.runtime() = Some(Handle::current());
        let number = self.claims.fetch_add(1, Ordering::Relaxed);
        let owner: Arc<str> = format!("{}.{number}", self.process).into();
        let begun = Begun { leases: self, wanted, owner: owner.clone(), settled: AtomicBool::new(false) };
        let patience = wanted.ttl.clamp(PATIENCE.0, PATIENCE.1);
        let claim = Claim {
            owner: owner.clone(),
            label: wanted.label.clone(),
            weight: wanted.weight,
            capacity: wanted.capacity,
            ttl: micros_of(wanted.ttl),
            patience: deadline.map_or(0, |_| micros_of(patience)),
            tokens: wanted.tokens,
        };
        let place = deadline.map(|_| self.wakeups.wait_for(&owner));
        let granted = |token, untouched, beginning| {
            begun.nothing_is_left();
            let tokens = token + 1..token + wanted.tokens;
            let held = Held::new(Arc::clone(self), wanted, owner.clone(), tokens, untouched, beginning);
            Ok(Some((held, token)))
        };
        let mut failures = 0;
        loop {
            // Registered before it is asked: what is granted in between is heard of.
            let told = place.as_ref().map(|place| place.told());
            let sent = Instant::now();
            let asking = self.store.transact(&wanted.key, claim.clone());
            let claimed = match deadline {
                None => asking.await,
                // A store that hangs does not make a waiter wait for much longer than it wants to.
                Some(deadline) => {
                    tokio::time::timeout_at(deadline.max(sent + ANSWER), asking).await.unwrap_or_else(|_| {
                        Err(too_late("the store did not answer while the lease was waited for"))
                    })
                }
            };
            let beginning = Beginning::claimed(sent, wanted.ttl, self.clock_error());
            let claimed = claimed.and_then(|reply| match Claimed::decode(&reply)? {
                // Asked for again it is granted for another term.
                Claimed::Granted(_) if !beginning.lasts_for(Duration::ZERO) => {
                    Err(too_late("the store granted the lease so late that it is over"))
                }
                claimed => Ok(claimed),
            });
            // A place that the store knows of: since when, and the greatest token then.
            let mut known = None;
            let pause = match claimed {
                Ok(Claimed::Granted(token)) => return granted(token, claim.untouched(token), beginning),
                Ok(Claimed::Taken { .. }) if deadline.is_none() => {
                    if failures == 0 {
                        begun.nothing_is_left();
                    }
                    return Ok(None);
                }
                Ok(Claimed::Taken { left, last }) => {
                    known = Some(last);
                    self.poll_interval(patience).min(left + Duration::from_millis(fastrand::u64(1..10)))
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
            let until = deadline.map_or(now + pause, |deadline| deadline.min(now + pause));
            match told {
                Some(told) => {
                    let _ = tokio::time::timeout_at(until, told).await;
                }
                None => tokio::time::sleep_until(until).await,
            }
            // What was granted to the place lasts as long as the place, which is known to be there since it was asked
            // for. A message of an earlier time, after which the place was lost, has an earlier token.
            let token = known.and_then(|last| place.as_ref()?.granted_after(last));
            let beginning = Beginning::granted(sent, patience, self.clock_error());
            if let Some(token) = token.filter(|_| beginning.lasts_for(patience / 4)) {
                return granted(token, String::new(), beginning);
            }
            if deadline.is_some_and(|deadline| now >= deadline) {
                return Ok(None);
            }
        }
    }

    fn poll_interval(&self, patience: Duration) -> Duration {
        let interval = if self.wakeups.can_wake() { POLL.0 } else { POLL.1 };
        interval.min(patience / 3).mul_f64(fastrand::f64() + 0.5)
    }

    /// Gives back what this owner holds, and says whether it held something. Those to whom it is granted are told.
    pub(super) async fn release(&self, key: &Key, release: Release) -> Result<Given> {
        let (mut failures, mut lost) = (0, false);
        loop {
            let released = self.store.transact(key, release.clone()).await;
            match released.and_then(|reply| Released::decode(&reply)) {
                Ok(Released { held, granted, told }) => {
                    self.wakeups.tell(&granted, !told).await;
                    return Ok(match held {
                        true => Given::Back,
                        false if lost => Given::Perhaps,
                        false => Given::Nothing,
                    });
                }
                Err(error) if error.retry() == Retry::Never || failures + 1 == ATTEMPTS => return Err(error),
                Err(error) => {
                    failures += 1;
                    lost |= error.retry() == Retry::Ambiguous;
                    tokio::time::sleep(RETRY_DELAY.mul_f64(fastrand::f64() + 0.5)).await;
                }
            }
        }
    }

    /// Gives back in the background. It expires if that fails.
    pub(super) fn abandon(self: &Arc<Self>, key: Key, release: Release) {
        let Some(runtime) = Handle::try_current().ok().or_else(|| self.runtime().clone()) else { return };
        let leases = Arc::clone(self);
        let release = async move {
            if let Err(error) = leases.release(&key, release).await {
                tracing::debug!(%key, %error, "not given back: it will expire");
            }
        };
        self.abandoned.spawn_on(release, &runtime);
    }

    /// Waits until all that was dropped is given back.
    pub(crate) async fn settled(&self) {
        // Closed for good: more can be abandoned all the same, and nobody who waits is kept waiting by it.
        self.abandoned.close();
        self.abandoned.wait().await;
    }

    fn runtime(&self) -> MutexGuard<'_, Option<Handle>> {
        self.runtime.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The time of the store in microseconds, who holds and who waits.
    pub(crate) async fn show(&self, key: &Key) -> Result<(i64, State)> {
        Show::decode(&self.store.transact(key, Show).await?)
    }
}

/// What became of something that was to be given back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Given {
    Back,
    /// It is not there, and a request may have been carried out whose answer was lost.
    Perhaps,
    /// It was lost before.
    Nothing,
}

/// A claim that may have been granted. Dropping it gives back what it may have.
struct Begun<'a> {
    leases: &'a Arc<Leases>,
    wanted: &'a Wanted,
    owner: Arc<str>,
    settled: AtomicBool,
}

impl Begun<'_> {
    fn nothing_is_left(&self) {
        self.settled.store(true, Ordering::Relaxed);
    }
}

impl Drop for Begun<'_> {
    fn drop(&mut self) {
        if !self.settled.load(Ordering::Relaxed) {
            let Wanted { key, capacity, .. } = self.wanted.clone();
            let (owner, key_len) = (self.owner.clone(), key.as_bytes().len());
            let release = Release { owner, capacity, tokens: (0, 0), key_len, untouched: String::new() };
            self.leases.abandon(key, release);
        }
    }
}

/// What was asked for may have been granted.
fn too_late(message: &'static str) -> Error {
    Error::new(ErrorKind::Timeout, message).with_retry(Retry::Ambiguous)
}

/// This long from now, or a year.
pub(crate) fn after(timeout: Duration) -> Instant {
    Instant::now() + timeout.min(LONGEST)
}
