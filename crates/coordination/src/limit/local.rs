//! The limiter of one process.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use commonhold_core::{Clock, Result};

use super::{
    Decision, Limit, Outcome, SlidingWindow, TokenBucket,
    clock::monotonic,
    meter::{Meter, Verdict},
    state::now_micros,
    wait::until_allowed,
    window::Window,
};

/// Limits what one process does. Share it in an [`Arc`].
///
/// A token bucket is one atomic number: threads do not wait for each other. A sliding window is behind a lock that is
/// held for a few steps.
///
/// ```
/// use commonhold_coordination::limit::{LocalLimiter, Rate, TokenBucket};
///
/// let limiter = LocalLimiter::new(TokenBucket::new(Rate::per_second(100)?, 10)?);
/// assert!(limiter.try_acquire(10)?.allowed);
/// let decision = limiter.try_acquire(5)?;
/// assert!(!decision.allowed);
/// assert!(decision.retry_after <= std::time::Duration::from_millis(50));
/// # Ok::<(), commonhold_core::Error>(())
/// ```
#[derive(Debug)]
pub struct LocalLimiter {
    clock: Arc<dyn Clock>,
    state: State,
    meter: Option<Meter>,
}

#[derive(Debug)]
enum State {
    Bucket(AtomicBucket),
    Window(SlidingWindow, Mutex<Window>),
}

impl LocalLimiter {
    /// A limiter from which nothing was taken yet.
    pub fn new(limit: impl Into<Limit>) -> Self {
        Self::with_clock(limit, monotonic())
    }

    /// The same on a clock of the caller's. If that clock goes back nevertheless, nothing refills until it is
    /// where it was.
    pub fn with_clock(limit: impl Into<Limit>, clock: Arc<dyn Clock>) -> Self {
        let now = now_micros(clock.now());
        let state = match limit.into() {
            Limit::Bucket(limit) => State::Bucket(AtomicBucket::full(limit, now)),
            Limit::Window(limit) => State::Window(limit, Mutex::new(Window::empty(limit, now))),
        };
        Self { clock, state, meter: None }
    }

    /// Counts its decisions in the metrics under this name, in the form `local`. Without it nothing is counted.
    #[must_use]
    pub fn metered_as(mut self, name: &str) -> Self {
        self.meter = Some(Meter::new(name, "local"));
        self
    }

    /// What it holds to.
    #[inline]
    pub fn limit(&self) -> Limit {
        match &self.state {
            State::Bucket(bucket) => Limit::Bucket(bucket.limit),
            State::Window(limit, _) => Limit::Window(*limit),
        }
    }

    /// Takes so many permits if they are there.
    ///
    /// # Errors
    /// `InvalidInput` for 0, or more than the limit ever has at once.
    #[inline]
    pub fn try_acquire(&self, permits: u64) -> Result<Decision> {
        self.limit().check(permits)?;
        let now = now_micros(self.clock.now());
        let decision = Decision::from(match &self.state {
            State::Bucket(bucket) => bucket.take(permits, now),
            State::Window(limit, window) => {
                let mut window = lock(window);
                window.slide(*limit, now);
                window.take(*limit, permits, now)
            }
        });
        if let Some(meter) = &self.meter {
            meter.count(Verdict::of(decision.allowed), Some(decision.remaining));
        }
        Ok(decision)
    }

    /// Waits until so many permits are there and takes them. Callers are not in line: who asks for many may wait
    /// long while others ask for few.
    ///
    /// Cancellation: a future that is dropped has taken nothing.
    ///
    /// # Errors
    /// As [`try_acquire`](Self::try_acquire).
    pub async fn acquire(&self, permits: u64) -> Result<Decision> {
        until_allowed(None, async || Ok((self.try_acquire(permits)?, None))).await
    }

    /// The same, for at most this long.
    ///
    /// # Errors
    /// `Timeout` as soon as it is certain that the time does not suffice; nothing is taken then.
    pub async fn acquire_timeout(&self, permits: u64, timeout: Duration) -> Result<Decision> {
        until_allowed(Some(timeout), async || Ok((self.try_acquire(permits)?, None))).await
    }

    /// What a call for one permit would be told, with what remains before it. Takes nothing.
    pub fn peek(&self) -> Decision {
        let now = now_micros(self.clock.now());
        let outcome = match &self.state {
            State::Bucket(bucket) => bucket.peek(now),
            State::Window(limit, window) => {
                let mut window = lock(window).clone();
                window.slide(*limit, now);
                let reset_micros = window.reset_micros(*limit, now);
                let outcome = window.take(*limit, 1, now);
                let remaining = outcome.remaining + u64::from(outcome.allowed);
                Outcome { remaining, reset_micros, ..outcome }
            }
        };
        outcome.into()
    }

    /// Forgets what was taken.
    pub fn reset(&self) {
        let now = now_micros(self.clock.now());
        match &self.state {
            State::Bucket(bucket) => bucket.put(now, bucket.limit.capacity()),
            State::Window(limit, window) => *lock(window) = Window::empty(*limit, now),
        }
    }

    /// Takes whatever is there.
    pub(super) fn drain(&self) {
        let now = now_micros(self.clock.now());
        match &self.state {
            State::Bucket(bucket) => bucket.put(now, 0),
            State::Window(limit, window) => {
                let mut window = lock(window);
                window.slide(*limit, now);
                window.drain(*limit);
            }
        }
    }
}

// A window is changed by steps that cannot panic half-way, so a poisoned one is whole.
fn lock(window: &Mutex<Window>) -> MutexGuard<'_, Window> {
    window.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A token bucket in one number, as in GCRA: the moment at which it was last empty if it has refilled since, counted
/// in units. The level is what has flowed since that moment, at most the capacity.
///
/// The count of units wraps around after 2^64 of them: 213 days at 999,983 a second, more than 500,000 years at a
/// million. Moments less than half of that apart can be told apart, so a bucket that was idle for longer is filled
/// anew; [`seen`](Self::seen) tells.
#[derive(Debug)]
struct AtomicBucket {
    limit: TokenBucket,
    empty: AtomicU64,
    /// The microsecond of a call not long ago.
    seen: AtomicU64,
}

impl AtomicBucket {
    fn full(limit: TokenBucket, now: u64) -> Self {
        let empty = count(limit, now).wrapping_sub(limit.capacity());
        Self { limit, empty: AtomicU64::new(empty), seen: AtomicU64::new(now) }
    }

    #[inline]
    fn take(&self, permits: u64, now: u64) -> Outcome {
        let need = permits * self.limit.unit();
        let mut empty = self.empty.load(Ordering::Acquire);
        loop {
            let level = self.level(empty, now);
            if level < need {
                return self.outcome(false, level, need);
            }
            let taken = count(self.limit, now).wrapping_sub(level - need);
            match self.empty.compare_exchange_weak(empty, taken, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return self.outcome(true, level - need, 0),
                Err(current) => empty = current,
            }
        }
    }

    fn peek(&self, now: u64) -> Outcome {
        let level = self.level(self.empty.load(Ordering::Acquire), now);
        self.outcome(level >= self.limit.unit(), level, self.limit.unit())
    }

    #[inline]
    fn level(&self, empty: u64, now: u64) -> u64 {
        let idle = now.saturating_sub(self.seen.load(Ordering::Relaxed));
        if idle > self.epoch() {
            return self.awake(now, idle);
        }
        let flowed = count(self.limit, now).wrapping_sub(empty);
        // A clock that another thread has read later, or that went back.
        if flowed > u64::MAX / 2 { 0 } else { flowed.min(self.limit.capacity()) }
    }

    /// Between an epoch and two of idleness moments can still be told apart, and the next call is far away.
    #[inline]
    fn epoch(&self) -> u64 {
        (u64::MAX >> 4) / self.limit.flow()
    }

    /// After a long time. Whoever comes second meets either the new `empty`, and by its release the new `seen`, or the
    /// old `empty`, whose exchange fails; in between it may be refused.
    #[cold]
    fn awake(&self, now: u64, idle: u64) -> u64 {
        self.seen.store(now, Ordering::Relaxed);
        if idle > 4 * self.epoch() || self.limit.capacity() < u64::MAX >> 4 {
            return self.limit.capacity();
        }
        0
    }

    #[inline]
    fn outcome(&self, allowed: bool, level: u64, need: u64) -> Outcome {
        let flow = self.limit.flow();
        Outcome {
            allowed,
            remaining: level / self.limit.unit(),
            retry_micros: need.saturating_sub(level).div_ceil(flow),
            reset_micros: (self.limit.capacity() - level).div_ceil(flow),
        }
    }

    fn put(&self, now: u64, level: u64) {
        self.seen.store(now, Ordering::Relaxed);
        self.empty.store(count(self.limit, now).wrapping_sub(level), Ordering::Release);
    }
}

/// The units that have flowed until then, which wrap around.
#[inline]
fn count(limit: TokenBucket, now: u64) -> u64 {
    now.wrapping_mul(limit.flow())
}
