//! A lock, a part of a semaphore or a lead that is held.

use std::{fmt, time::Duration};

use commonhold_core::{Key, Result};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::{fence::Fence, lease::Held, turn::Turn};

/// How long the holders of one process hand a lock to each other before others may have it.
const STREAK: Duration = Duration::from_millis(5);

/// A lease, and since when this process has it.
#[derive(Debug)]
pub(crate) struct Lease {
    pub(crate) held: Held,
    since: Instant,
}

/// A lock, a part of a semaphore, or a lead that is held. It is renewed in the background until it is released.
///
/// Dropping it releases it in the background; [`release`](Self::release) waits until that is done.
#[must_use = "it is released when the guard is dropped"]
pub struct Guard {
    key: Key,
    token: i64,
    /// Taken when it is released.
    lease: Option<Lease>,
    turn: Option<Turn<Lease>>,
    /// The lease's while it is held, and of this guard alone: the next one may hold the same lease.
    lost: CancellationToken,
}

impl Lease {
    pub(crate) fn new(held: Held) -> Self {
        Self { held, since: Instant::now() }
    }

    /// A token for the next one, if the lease lasts this long or can be made to.
    pub(crate) async fn hand_on(&mut self, ttl: Duration) -> Result<Option<i64>> {
        let lasts = self.held.deadline() > Instant::now() + ttl / 2 && self.held.ttl() == ttl;
        if !lasts && !self.held.extend(ttl).await? {
            return Ok(None);
        }
        if !self.held.is_held() {
            return Ok(None);
        }
        Ok(self.held.next_token())
    }

    fn may_be_handed_on(&self) -> bool {
        self.held.is_held() && self.since.elapsed() < STREAK && self.held.has_tokens()
    }
}

impl Guard {
    pub(crate) fn new(key: Key, token: i64, lease: Lease, turn: Option<Turn<Lease>>) -> Self {
        let lost = lease.held.lost().child_token();
        Self { key, token, lease: Some(lease), turn, lost }
    }

    /// The name of what is held.
    pub fn name(&self) -> &str {
        let key = std::str::from_utf8(self.key.as_bytes()).unwrap_or_default();
        key.split_once(':').map_or(key, |(_, name)| name)
    }

    pub(crate) fn held(&self) -> Option<&Held> {
        self.lease.as_ref().map(|lease| &lease.held)
    }

    /// The fencing token: greater than that of whoever got hold of it earlier, whatever happened to it or to
    /// the store in between, as long as the store's clock did not step back by more than a day while its data was lost or
    /// nobody used it.
    pub fn token(&self) -> u64 {
        self.token.unsigned_abs()
    }

    /// The token as what [fenced writes](crate::Fenced) take.
    pub fn fence(&self) -> Fence {
        Fence::new(self.token())
    }

    /// Whether it is still held for sure. It may be lost the moment after: only a [fence](Self::fence) keeps
    /// what is written later from doing harm.
    pub fn is_held(&self) -> bool {
        self.lease.as_ref().is_some_and(|lease| lease.held.is_held())
    }

    /// Until when it is held for sure if it is not renewed again, on the monotonic clock of this machine. That
    /// clock stands still while the machine is suspended.
    ///
    /// Earlier than the store's own end by the time that the request took, and by 1 % of the time to live and 2 ms, by
    /// which the clocks may differ in speed.
    pub fn deadline(&self) -> std::time::Instant {
        self.lease.as_ref().map_or_else(Instant::now, |lease| lease.held.deadline()).into_std()
    }

    /// Cancelled the moment at which it is no longer sure to be held, and when it is released. That, and the renewal, are
    /// the work of the runtime on which it was claimed: once that has ended, only [`is_held`](Self::is_held) and
    /// [`deadline`](Self::deadline) tell.
    pub fn lost(&self) -> CancellationToken {
        self.lost.clone()
    }

    /// Holds it for this long from now, and for as long from each renewal on. Says whether it was still held.
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

    /// Releases it, and says whether it was held until now: within its time, or past that while nobody else claimed it.
    ///
    /// # Errors
    /// Those of the store: it is tried again in the background then, and expires at the latest with its time to live.
    ///
    /// Cancellation: a dropped future releases it in the background.
    pub async fn release(mut self) -> Result<bool> {
        match self.hand_on() {
            // The turn ends afterwards: the next one finds it free.
            Some((lease, _turn)) => lease.held.release().await,
            None => Ok(true),
        }
    }

    /// Leaves it to the next task of this process, or returns what is to be released.
    fn hand_on(&mut self) -> Option<(Lease, Option<Turn<Lease>>)> {
        let lease = self.lease.take()?;
        self.lost.cancel();
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
        let Self { key, token, .. } = self;
        f.debug_struct("Guard")
            .field("key", key)
            .field("token", token)
            .field("held", &self.is_held())
            .finish()
    }
}
