//! The limiter of one process.

use std::{
    future::ready,
    num::NonZeroU64,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use commonhold_core::{Clock, Result};

use super::{
    Decision, Limit, Outcome, SlidingWindow, TokenBucket,
    clock::Time,
    meter::{Meter, Verdict},
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
    time: Time,
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
        Self::on(limit.into(), Time::monotonic())
    }

    /// The same on a clock of the caller's. If that clock goes back nevertheless, nothing refills until it is
    /// where it was.
    pub fn with_clock(limit: impl Into<Limit>, clock: Arc<dyn Clock>) -> Self {
        Self::on(limit.into(), Time::Given(clock))
    }

    fn on(limit: Limit, time: Time) -> Self {
        let now = time.micros();
        let state = match limit {
            Limit::Bucket(limit) => State::Bucket(AtomicBucket::full(limit, now)),
            Limit::Window(limit) => State::Window(limit, Mutex::new(Window::empty(limit, now))),
        };
        Self { time, state, meter: None }
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
        // Each way ends by itself: what the caller does not look at is not computed then.
        match (&self.state, &self.meter) {
            (State::Bucket(bucket), None) => Ok(bucket.take(permits, self.time.micros()).into()),
            _ => Ok(self.take_counted(permits).into()),
        }
    }

    #[inline(never)]
    fn take_counted(&self, permits: u64) -> Outcome {
        let now = self.time.micros();
        let outcome = match &self.state {
            State::Bucket(bucket) => bucket.take(permits, now),
            State::Window(limit, window) => {
                let mut window = lock(window);
                window.slide(*limit, now);
                window.take(*limit, permits, now)
            }
        };
        if let Some(meter) = &self.meter {
            meter.count(Verdict::of(outcome.allowed), Some(outcome.remaining));
        }
        outcome
    }

    /// Waits until so many permits are there and takes them. Callers are not in line: who asks for many may wait
    /// long while others ask for few.
    ///
    /// Cancellation: a future that is dropped has taken nothing.
    ///
    /// # Errors
    /// As [`try_acquire`](Self::try_acquire).
    pub async fn acquire(&self, permits: u64) -> Result<Decision> {
        until_allowed(None, || ready(self.try_acquire(permits).map(|decision| (decision, None)))).await
    }

    /// The same, for at most this long.
    ///
    /// Refused as soon as it is certain that the time does not suffice; nothing is taken then.
    ///
    /// # Errors
    /// As [`acquire`](Self::acquire).
    pub async fn acquire_timeout(&self, permits: u64, timeout: Duration) -> Result<Decision> {
        until_allowed(Some(timeout), || ready(self.try_acquire(permits).map(|decision| (decision, None))))
            .await
    }

    /// What a call for one permit would be told, with what remains before it. Takes nothing.
    pub fn peek(&self) -> Decision {
        let now = self.time.micros();
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
        let now = self.time.micros();
        match &self.state {
            State::Bucket(bucket) => bucket.put(now, bucket.limit.capacity()),
            State::Window(limit, window) => *lock(window) = Window::empty(*limit, now),
        }
    }

    /// Takes whatever is there.
    pub(super) fn drain(&self) {
        let now = self.time.micros();
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
/// million. Moments less than half of that apart can be told apart, and a bucket that was idle for longer is full:
/// `seen` tells which it is.
#[derive(Debug)]
struct AtomicBucket {
    limit: TokenBucket,
    empty: AtomicU64,
    /// The microsecond of a call: of the last one, or of one at most an epoch before.
    seen: AtomicU64,
    capacity: u64,
    /// Microseconds in which a sixteenth of the count goes by, which is more than any bucket holds.
    epoch: u64,
}

impl AtomicBucket {
    fn full(limit: TokenBucket, now: u64) -> Self {
        let empty = AtomicU64::new(count(limit, now).wrapping_sub(limit.capacity()));
        let epoch = (u64::MAX >> 4) / limit.flow();
        Self { limit, empty, seen: AtomicU64::new(now), capacity: limit.capacity(), epoch }
    }

    #[inline]
    fn take(&self, permits: u64, now: u64) -> Outcome {
        let need = permits * self.limit.unit();
        let mut empty = self.empty.load(Ordering::Acquire);
        loop {
            let (level, stale) = self.level(empty, now);
            if level < need {
                return self.outcome(false, level, need);
            }
            // Before the exchange: who sees the new `empty` sees this, too. Who sees only this takes the bucket for
            // less full than it is, and either gives up or makes the exchange below fail.
            if stale {
                self.seen.store(now, Ordering::Relaxed);
            }
            let taken = count(self.limit, now).wrapping_sub(level - need);
            match self.empty.compare_exchange_weak(empty, taken, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return self.outcome(true, level - need, need),
                Err(current) => empty = current,
            }
        }
    }

    fn peek(&self, now: u64) -> Outcome {
        let (level, _) = self.level(self.empty.load(Ordering::Acquire), now);
        self.outcome(level >= self.limit.unit(), level, self.limit.unit())
    }

    /// The units in it, and whether `seen` is from an earlier epoch.
    #[inline]
    fn level(&self, empty: u64, now: u64) -> (u64, bool) {
        let flowed = count(self.limit, now).wrapping_sub(empty);
        let idle = now.saturating_sub(self.seen.load(Ordering::Relaxed));
        if idle > self.epoch {
            return (self.level_after(idle, flowed), true);
        }
        (self.within(flowed), false)
    }

    #[cold]
    fn level_after(&self, idle: u64, flowed: u64) -> u64 {
        if idle / 2 > self.epoch { self.capacity } else { self.within(flowed) }
    }

    #[inline]
    fn within(&self, flowed: u64) -> u64 {
        // Less than none: by a clock that another thread has read later, or that went back.
        if flowed.cast_signed() < 0 { 0 } else { flowed.min(self.capacity) }
    }

    // Divisors that are known not to be zero: then whatever the caller does not look at is not computed at all.
    #[inline]
    fn outcome(&self, allowed: bool, level: u64, need: u64) -> Outcome {
        let divisor = |number| NonZeroU64::new(number).unwrap_or(NonZeroU64::MIN);
        let (unit, flow) = (divisor(self.limit.unit()), divisor(self.limit.flow()));
        let micros = |units: u64| units / flow + u64::from(units % flow > 0);
        Outcome {
            allowed,
            remaining: level / unit,
            retry_micros: if allowed { 0 } else { micros(need.saturating_sub(level)) },
            reset_micros: micros(self.capacity.saturating_sub(level)),
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

#[cfg(test)]
mod tests {
    use commonhold_core::{Action, ErrorKind, ManualClock, Timestamp, Transition as _};
    use proptest::prelude::*;

    use super::*;
    use crate::limit::{
        Rate,
        take::{Take, decode},
    };

    /// The same limiter as a transition on a store's state.
    struct Stored(Limit, Option<Vec<u8>>);

    impl Stored {
        fn take(&mut self, permits: u64, now: Timestamp) -> Decision {
            let take = Take { limit: self.0, permits: vec![permits] };
            let step = take.apply(self.1.as_deref(), now).unwrap();
            if let Action::Put { value, .. } = step.action {
                self.1 = Some(value.to_vec());
            }
            decode(&step.reply, 1).unwrap()[0].into()
        }
    }

    fn any_limit() -> impl Strategy<Value = Limit> {
        let per = prop_oneof![Just(1_000_000_u64), Just(86_400_000_000), 1_u64..100_000_000];
        let permits = prop_oneof![Just(999_983_u64), 1_u64..1_000, 1_u64..1_000_000_000];
        (permits, per, 1_u64..1_000, any::<bool>()).prop_map(|(permits, per, burst, window)| {
            let per = Duration::from_micros(per);
            if window {
                SlidingWindow::new(burst, per).unwrap().into()
            } else {
                TokenBucket::new(Rate::new(permits, per).unwrap(), burst).unwrap().into()
            }
        })
    }

    proptest! {
        #[test]
        fn it_decides_as_the_transition_does_after_any_idleness(
            limit in any_limit(),
            calls in prop::collection::vec((1_u64..1_000, prop_oneof![Just(0), 1_u64..10_000, 1_u64..1 << 40, 1_u64..1 << 47]), 1..100),
        ) {
            let clock = Arc::new(ManualClock::default());
            let local = LocalLimiter::with_clock(limit, clock.clone());
            let mut stored = Stored(limit, None);
            for (permits, idle) in calls {
                clock.advance(Duration::from_micros(idle));
                let permits = permits.min(limit.most());
                prop_assert_eq!(local.try_acquire(permits).unwrap(), stored.take(permits, clock.now()));
                let peeked = local.peek();
                let mut copy = Stored(limit, stored.1.clone());
                prop_assert_eq!(peeked.allowed, copy.take(1, clock.now()).allowed);
            }
        }
    }

    #[test]
    fn threads_together_get_exactly_what_there_is() {
        for limit in [
            Limit::from(TokenBucket::new(Rate::per_second(999_983).unwrap(), 10_000).unwrap()),
            SlidingWindow::new(10_000, Duration::from_secs(3_600)).unwrap().into(),
        ] {
            let limiter = LocalLimiter::with_clock(limit, Arc::new(ManualClock::default()));
            let count = || (0..10_000).filter(|_| limiter.try_acquire(1).unwrap().allowed).count();
            let taken: usize = std::thread::scope(|scope| {
                let threads: Vec<_> = (0..4).map(|_| scope.spawn(count)).collect();
                threads.into_iter().map(|thread| thread.join().unwrap()).sum()
            });
            assert_eq!(taken, 10_000);
        }
    }

    #[test]
    fn a_clock_that_goes_back_brings_nothing() {
        let limit = TokenBucket::new(Rate::per_second(10).unwrap(), 5).unwrap();
        let bucket = AtomicBucket::full(limit, 1_000_000);
        assert!(bucket.take(5, 1_000_000).allowed);
        assert!(!bucket.take(1, 500_000).allowed);
        assert!(!bucket.take(1, 1_000_000).allowed);
        assert!(bucket.take(1, 1_100_000).allowed);
    }

    #[test]
    fn more_than_there_can_be_is_refused_at_once_and_reset_gives_everything_back() {
        for limit in [
            Limit::from(TokenBucket::new(Rate::per_day(1).unwrap(), 5).unwrap()),
            SlidingWindow::new(5, Duration::from_secs(3_600)).unwrap().into(),
        ] {
            let limiter = LocalLimiter::new(limit);
            assert_eq!(limiter.try_acquire(6).unwrap_err().kind(), ErrorKind::InvalidInput);
            assert_eq!(limiter.try_acquire(0).unwrap_err().kind(), ErrorKind::InvalidInput);
            assert_eq!(limiter.try_acquire(5).unwrap().remaining, 0);
            assert!(!limiter.peek().allowed);
            limiter.reset();
            assert_eq!(limiter.peek().remaining, 5);
            limiter.drain();
            assert!(!limiter.try_acquire(1).unwrap().allowed);
        }
    }

    /// The time that tokio's tests turn.
    #[derive(Debug)]
    struct TokioClock(tokio::time::Instant);

    impl Clock for TokioClock {
        fn now(&self) -> Timestamp {
            Timestamp::default().saturating_add(self.0.elapsed())
        }
    }

    #[tokio::test(start_paused = true)]
    async fn waiting_takes_as_long_as_it_must_and_gives_up_at_once_where_time_does_not_suffice() {
        let clock = Arc::new(TokioClock(tokio::time::Instant::now()));
        let limit = TokenBucket::new(Rate::per_second(10).unwrap(), 5).unwrap();
        let limiter = LocalLimiter::with_clock(limit, clock.clone());
        assert!(limiter.acquire(5).await.unwrap().allowed);
        assert!(!limiter.acquire_timeout(2, Duration::from_millis(199)).await.unwrap().allowed);
        assert_eq!(clock.0.elapsed(), Duration::ZERO);
        assert!(limiter.acquire_timeout(2, Duration::from_millis(201)).await.unwrap().allowed);
        assert_eq!(clock.0.elapsed().as_millis(), 200);
        drop(futures_util::FutureExt::now_or_never(limiter.acquire(5)));
        assert_eq!(limiter.peek().remaining, 0);
        assert!(limiter.acquire(5).await.unwrap().allowed);
        assert_eq!(clock.0.elapsed().as_millis(), 700);
        assert_eq!(limiter.acquire(6).await.unwrap_err().kind(), ErrorKind::InvalidInput);
    }
}
