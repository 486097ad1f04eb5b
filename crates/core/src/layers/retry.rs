//! Tries again what failed in passing, and never what may have been carried out.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use tokio::time::Instant;

use super::{Call, Outcome, Uniform};
use crate::{answer::Answer, error::Result, stats::Stats};

/// Repeats failed calls with exponential backoff and full jitter.
///
/// Repeated is only what had no effect: errors that are [`Retry::Safe`](crate::Retry::Safe). An ambiguous
/// write is never repeated, a plain put neither: between the attempts somebody else may have written, and the
/// repetition would undo it. Operations inside a transaction are not repeated (repeat the transaction), nor
/// are scans.
///
/// Defaults: 3 attempts, delays of up to 100 ms, then up to 200 ms, never over 5 s, 30 s in all.
///
/// Order: outside [`Timeout`](super::Timeout), which bounds each attempt, and outside
/// [`ConcurrencyLimit`](super::ConcurrencyLimit), so that a waiting call holds no place.
///
/// Cancellation: dropping a call while it waits repeats nothing.
///
/// The jitter is "full jitter" of Brooker, "Exponential Backoff And Jitter" (AWS Architecture Blog, 2015).
#[derive(Debug)]
pub struct Retry {
    attempts: u32,
    base: Duration,
    max: Duration,
    deadline: Duration,
    retries: AtomicU64,
}

impl Default for Retry {
    fn default() -> Self {
        Self {
            attempts: 3,
            base: Duration::from_millis(100),
            max: Duration::from_secs(5),
            deadline: Duration::from_secs(30),
            retries: AtomicU64::new(0),
        }
    }
}

impl Retry {
    /// How often a call is made at most, the first time included. At least 1.
    #[must_use]
    pub fn attempts(mut self, attempts: u32) -> Self {
        self.attempts = attempts.max(1);
        self
    }

    /// The longest delay before the first repetition (it doubles each time), and the longest delay of all.
    /// The delay is drawn evenly between zero and that.
    #[must_use]
    pub fn delays(mut self, base: Duration, max: Duration) -> Self {
        (self.base, self.max) = (base, max);
        self
    }

    /// After this long no further attempt is begun.
    #[must_use]
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// How long to wait before the repetition with this number, counted from 1.
    fn delay(&self, repetition: u32) -> Duration {
        let doubled = self.base.saturating_mul(1u32.checked_shl(repetition - 1).unwrap_or(u32::MAX));
        doubled.min(self.max).mul_f64(fastrand::f64())
    }

    async fn repeat_from<'a, T: Outcome>(
        &self,
        first: Answer<'a, T>,
        call: Call<'a>,
        attempt: impl Fn() -> Answer<'a, T>,
    ) -> Result<T> {
        let begun = Instant::now();
        let mut result = first.await;
        for repetition in 1..self.attempts {
            let error = match result {
                Err(error) if error.retry() == crate::Retry::Safe => error,
                result => return result,
            };
            let delay = self.delay(repetition);
            if begun.elapsed() + delay >= self.deadline {
                return Err(error);
            }
            tracing::debug!(operation = %call.operation, repetition, ?delay, %error, "trying again");
            self.retries.fetch_add(1, Ordering::Relaxed);
            let labels = [("backend", call.backend), ("operation", call.operation.name())];
            metrics::counter!("commonhold_retries_total", &labels).increment(1);
            tokio::time::sleep(delay).await;
            result = attempt().await;
        }
        result
    }
}

fn may_be_repeated<T>(result: &Result<T>) -> bool {
    matches!(result, Err(error) if error.retry() == crate::Retry::Safe)
}

impl Uniform for Retry {
    fn once<'a, T: Outcome>(
        &'a self,
        _call: Call<'a>,
        attempt: impl FnOnce() -> Answer<'a, T> + Send + 'a,
    ) -> Answer<'a, T> {
        attempt()
    }

    fn repeat<'a, T: Outcome>(
        &'a self,
        call: Call<'a>,
        attempt: impl Fn() -> Answer<'a, T> + Send + Sync + 'a,
    ) -> Answer<'a, T> {
        match attempt() {
            Answer::Ready(result) if !may_be_repeated(&result) => Answer::Ready(result),
            first => Answer::later(self.repeat_from(first, call, attempt)),
        }
    }

    fn add_stats(&self, stats: &mut Stats) {
        stats.retries += self.retries.load(Ordering::Relaxed);
    }
}
