//! Locks over several independent stores, of which a majority must agree.

use std::{sync::Arc, time::Duration};

use commonhold_core::{Error, ErrorKind, Result, Store};
use futures_util::{StreamExt as _, future::join_all, stream::FuturesUnordered};
use tokio::{task::JoinHandle, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::{
    fence::Fence,
    lease::{Held, Leases, after},
    lock::Locks,
    state,
};

/// Locks that a majority of independent stores must grant: they survive the loss of the others, data and all.
///
/// For Redis servers that do not replicate each other, three or five. One Redis with a replica loses a lock when the
/// primary fails before the replica heard of it; here this takes a majority that forgets within the time to live.
/// The algorithm is [Redlock](https://redis.io/docs/latest/develop/clients/patterns/distributed-locks/), with what it
/// lacks: a fencing token. After a majority granted the lock, a majority is told the greatest of their tokens before the
/// lock is given to the caller; so whoever has it next meets one that knows, and gets a greater one.
///
/// # Limits
/// - The stores must not lose what they acknowledged when they restart, or stay away for the time to live: Redis with
///   `appendfsync always`, or a delayed restart. Two holders at once are possible otherwise.
/// - The clocks of stores and processes must not differ in speed by more than 1 %, and those of the stores not be set
///   forward.
/// - As with every lease a holder that is paused learns of its loss too late. Use the [fence](RedlockGuard::fence).
/// - No line is kept: those who wait try again after a short while, in no order.
///
/// For all of this, one PostgreSQL is the simpler choice where it is at hand.
#[derive(Debug, Clone)]
pub struct Redlock {
    stores: Vec<Arc<Leases>>,
}

/// A lock that a majority granted. Dropping it releases it in the background.
#[derive(Debug)]
#[must_use = "the lock is released when the guard is dropped"]
pub struct RedlockGuard {
    name: String,
    token: i64,
    held: Vec<Held>,
    majority: usize,
    lost: CancellationToken,
    watch: JoinHandle<()>,
}

/// How long those wait at most who did not get it, before they try again.
const RETRY_DELAY: Duration = Duration::from_millis(100);

impl Redlock {
    /// Locks over these stores, at least three.
    ///
    /// # Errors
    /// `InvalidConfig` for fewer; `Unsupported` if entries of a store have no time to live.
    pub fn new(stores: impl IntoIterator<Item = Store>) -> Result<Self> {
        let stores: Vec<_> =
            stores.into_iter().map(|store| Leases::new(store).map(Arc::new)).collect::<Result<_>>()?;
        if stores.len() < 3 {
            let message = format!("a majority needs at least three independent stores, not {}", stores.len());
            return Err(Error::new(ErrorKind::InvalidConfig, message));
        }
        Ok(Self { stores })
    }

    /// Waits until whatever was dropped is released, where that is possible. To be called before the runtime ends.
    pub async fn settled(&self) {
        join_all(self.stores.iter().map(|leases| leases.settled())).await;
    }

    fn majority(&self) -> usize {
        self.stores.len() / 2 + 1
    }

    /// Takes a lock if a majority grants it, for 20 ms to 365 days unless it is renewed.
    ///
    /// # Errors
    /// `InvalidInput` for another time to live or an empty name; `TooLarge` for a name that makes no key; if no majority
    /// answers, the error of one that did not.
    ///
    /// Cancellation: a dropped future leaves no lock behind; what it may have taken is released in the background.
    pub async fn try_acquire(&self, name: impl AsRef<str>, ttl: Duration) -> Result<Option<RedlockGuard>> {
        let name = name.as_ref();
        let key = state::key(Locks::KEY_PREFIX, name)?;
        // A store that is away must not use up the time of the others.
        let patience = (ttl / 10).max(Duration::from_millis(10));
        let claim = |leases: &Arc<Leases>| {
            let (leases, wanted) = (Arc::clone(leases), leases.one(key.clone(), ttl));
            async move { in_time(patience, leases.claim(&wanted, None)).await }
        };
        let answers = join_all(self.stores.iter().map(claim)).await;
        let failed = answers.iter().filter(|answer| answer.is_err()).count();
        let mut failure = None;
        let mut granted = Vec::new();
        for answer in answers {
            match answer {
                Ok(answer) => granted.extend(answer),
                Err(error) if error.kind() == ErrorKind::InvalidInput => return Err(error),
                Err(error) => failure = Some(error),
            }
        }
        if granted.len() < self.majority() {
            give_back(granted.into_iter().map(|(held, _)| held)).await;
            return match failure {
                Some(error) if self.stores.len() - failed < self.majority() => Err(error),
                _ => Ok(None),
            };
        }
        let token = granted.iter().map(|&(_, token)| token).max().unwrap_or_default();
        let raise = |(held, _): (Held, i64)| async move {
            let raised = in_time(patience, held.raise(token)).await;
            matches!(raised, Ok(true)).then_some(held)
        };
        let held: Vec<Held> = join_all(granted.into_iter().map(raise)).await.into_iter().flatten().collect();
        if held.len() < self.majority() || deadline(&held, self.majority()) <= Instant::now() {
            give_back(held).await;
            return Ok(None);
        }
        Ok(Some(RedlockGuard::new(name.to_owned(), token, held, self.majority())))
    }

    /// Takes a lock, waiting for it up to `timeout`; `None` if it was not to be had until then.
    ///
    /// # Errors
    /// As [`try_acquire`](Self::try_acquire); while no majority answers, it is tried again until `timeout` is over.
    ///
    /// Cancellation: as with [`try_acquire`](Self::try_acquire).
    pub async fn acquire(
        &self,
        name: impl AsRef<str>,
        ttl: Duration,
        timeout: Duration,
    ) -> Result<Option<RedlockGuard>> {
        let deadline = after(timeout);
        loop {
            let outcome = self.try_acquire(name.as_ref(), ttl).await;
            let again = Instant::now() + RETRY_DELAY.mul_f64(fastrand::f64());
            match outcome {
                Ok(None) if again < deadline => {}
                Err(error) if again < deadline && error.retry() != commonhold_core::Retry::Never => {}
                outcome => return outcome,
            }
            tokio::time::sleep_until(again).await;
        }
    }
}

impl RedlockGuard {
    fn new(name: String, token: i64, held: Vec<Held>, majority: usize) -> Self {
        let lost = CancellationToken::new();
        let (told, ends) = (lost.clone(), held.iter().map(|held| held.lost().clone()).collect::<Vec<_>>());
        let spare = held.len() - majority;
        let watch = tokio::spawn(async move {
            let mut ends: FuturesUnordered<_> = ends.iter().map(CancellationToken::cancelled).collect();
            for _ in 0..=spare {
                ends.next().await;
            }
            told.cancel();
        });
        Self { name, token, held, majority, lost, watch }
    }

    /// The name of the lock.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The fencing token: greater than that of every earlier holder. As with [`Guard::token`](crate::Guard::token), unless
    /// clocks stepped back by more than a day.
    pub fn token(&self) -> u64 {
        self.token.unsigned_abs()
    }

    /// The token as what [fenced writes](crate::Fenced) take.
    pub fn fence(&self) -> Fence {
        Fence::new(self.token())
    }

    /// Whether a majority still holds it for sure.
    pub fn is_held(&self) -> bool {
        !self.lost.is_cancelled() && self.held.iter().filter(|held| held.is_held()).count() >= self.majority
    }

    /// Until when a majority holds it for sure if it is not renewed again. See [`Guard::deadline`](crate::Guard::deadline).
    pub fn deadline(&self) -> std::time::Instant {
        deadline(&self.held, self.majority).into_std()
    }

    /// Cancelled the moment at which it is no longer sure that a majority holds it, and when it is released.
    pub fn lost(&self) -> CancellationToken {
        self.lost.clone()
    }

    /// Holds it for this long from now, and for as long from each renewal on. Says whether a majority still held it.
    ///
    /// # Errors
    /// `InvalidInput` for a time to live that is not from 20 ms to 365 days.
    pub async fn extend(&self, ttl: Duration) -> Result<bool> {
        let extended = join_all(self.held.iter().map(|held| held.extend(ttl))).await;
        let mut held = 0;
        for outcome in extended {
            match outcome {
                Ok(still) => held += usize::from(still),
                Err(error) if error.kind() == ErrorKind::InvalidInput => return Err(error),
                Err(error) => tracing::debug!(%error, "not extended on one store"),
            }
        }
        Ok(held >= self.majority)
    }

    /// Releases it, and says whether a majority held it until now.
    ///
    /// Cancellation: a dropped future releases it in the background.
    pub async fn release(mut self) -> bool {
        let was_held = self.is_held();
        self.watch.abort();
        self.lost.cancel();
        give_back(std::mem::take(&mut self.held)).await;
        was_held
    }
}

impl Drop for RedlockGuard {
    fn drop(&mut self) {
        self.watch.abort();
        self.lost.cancel();
    }
}

/// Until when this many hold for sure.
fn deadline(held: &[Held], majority: usize) -> Instant {
    let mut deadlines: Vec<Instant> = held.iter().map(Held::deadline).collect();
    deadlines.sort();
    let first_that_counts = deadlines.len().checked_sub(majority);
    first_that_counts.and_then(|index| deadlines.get(index).copied()).unwrap_or_else(Instant::now)
}

async fn give_back(held: impl IntoIterator<Item = Held>) {
    for outcome in join_all(held.into_iter().map(Held::release)).await {
        let _ = outcome
            .inspect_err(|error| tracing::debug!(%error, "not given back to one store: it will expire"));
    }
}

async fn in_time<T>(patience: Duration, work: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::time::timeout(patience, work).await.unwrap_or_else(|_| {
        let message = format!("no answer within {patience:?}");
        Err(Error::new(ErrorKind::Timeout, message).with_retry(commonhold_core::Retry::Safe))
    })
}
