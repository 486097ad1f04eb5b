//! A counter in this process.

use std::sync::{
    Arc,
    atomic::{AtomicI64, Ordering::Relaxed},
};

use commonhold_core::{Clock, SystemClock, Timestamp};

/// A counter in this process, and when it was last changed.
///
/// Sums outside of `i64` wrap around.
///
/// ```
/// use commonhold_coordination::counter::LocalCounter;
///
/// let requests = LocalCounter::new();
/// assert_eq!(requests.increment(1), 1);
/// assert_eq!(requests.decrement(3), -2);
/// assert_eq!(requests.reset(), -2);
/// assert_eq!(requests.get(), 0);
/// ```
#[derive(Debug)]
pub struct LocalCounter {
    value: AtomicI64,
    last_activity: AtomicI64,
    clock: Arc<dyn Clock>,
}

impl Default for LocalCounter {
    fn default() -> Self {
        Self::with_clock(Arc::new(SystemClock))
    }
}

impl LocalCounter {
    /// A counter at 0.
    pub fn new() -> Self {
        Self::default()
    }

    /// A counter at 0 that tells the time of this clock.
    pub fn with_clock(clock: Arc<dyn Clock>) -> Self {
        let last_activity = AtomicI64::new(clock.now().as_nanos());
        Self { value: AtomicI64::new(0), last_activity, clock }
    }

    /// Adds this, and returns the value after it.
    pub fn increment(&self, delta: i64) -> i64 {
        self.touch();
        self.value.fetch_add(delta, Relaxed).wrapping_add(delta)
    }

    /// Takes this away, and returns the value after it.
    pub fn decrement(&self, delta: i64) -> i64 {
        self.touch();
        self.value.fetch_sub(delta, Relaxed).wrapping_sub(delta)
    }

    /// The value.
    pub fn get(&self) -> i64 {
        self.value.load(Relaxed)
    }

    /// Sets it to 0, and returns what it was.
    pub fn reset(&self) -> i64 {
        self.touch();
        self.value.swap(0, Relaxed)
    }

    /// When it was last changed, or made.
    pub fn last_activity(&self) -> Timestamp {
        Timestamp::from_nanos(self.last_activity.load(Relaxed))
    }

    fn touch(&self) {
        self.last_activity.fetch_max(self.clock.now().as_nanos(), Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use commonhold_core::ManualClock;

    use super::*;

    #[test]
    fn increments_of_many_threads_are_all_counted() {
        let counter = LocalCounter::new();
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| (0..1_000).for_each(|_| assert!(counter.increment(2) > 0)));
            }
        });
        assert_eq!(counter.get(), 16_000);
    }

    #[test]
    fn the_last_activity_is_that_of_the_last_change() {
        let clock = Arc::new(ManualClock::new(Timestamp::from_millis(1)));
        let counter = LocalCounter::with_clock(clock.clone());
        clock.advance(Duration::from_millis(1));
        counter.increment(1);
        clock.advance(Duration::from_millis(1));
        assert_eq!(counter.get(), 1);
        assert_eq!(counter.last_activity(), Timestamp::from_millis(2));
    }
}
