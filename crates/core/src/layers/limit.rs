//! Bounds how many calls are under way at once.

use tokio::sync::Semaphore;

use super::{Call, Outcome, Uniform};
use crate::{
    answer::Answer,
    error::{Error, ErrorKind, Retry},
};

/// Lets at most so many calls at once through to the backend; the others wait, the first to come first.
///
/// With a [bound on those that wait](Self::max_waiting) further calls fail at once with
/// [`Overloaded`](ErrorKind::Overloaded), which is safe to repeat. Scans need no place; watches
/// and subscriptions hold none once they have begun.
///
/// Order: inside [`Retry`](super::Retry), so that a call that waits to be repeated holds no place; outside
/// [`Timeout`](super::Timeout), unless waiting shall count as time.
///
/// Cancellation: dropping a waiting call gives up its place in the line.
#[derive(Debug)]
pub struct ConcurrencyLimit {
    places: Semaphore,
    line: Semaphore,
}

impl ConcurrencyLimit {
    /// Lets this many calls through at once, at least 1.
    pub fn new(limit: usize) -> Self {
        Self {
            places: Semaphore::new(limit.clamp(1, Semaphore::MAX_PERMITS)),
            line: Semaphore::new(Semaphore::MAX_PERMITS),
        }
    }

    /// Lets this many more wait.
    #[must_use]
    pub fn max_waiting(mut self, waiting: usize) -> Self {
        self.line = Semaphore::new(waiting.min(Semaphore::MAX_PERMITS));
        self
    }
}

impl Uniform for ConcurrencyLimit {
    fn once<'a, T: Outcome>(
        &'a self,
        call: Call<'a>,
        attempt: impl FnOnce() -> Answer<'a, T> + Send + 'a,
    ) -> Answer<'a, T> {
        if let Ok(place) = self.places.try_acquire() {
            return match attempt() {
                Answer::Later(future) => Answer::later(async move {
                    let _place = place;
                    future.await
                }),
                ready => ready,
            };
        }
        let full = move || {
            Error::new(ErrorKind::Overloaded, "too many calls are waiting; try again later")
                .with_retry(Retry::Safe)
                .at(call.backend, call.operation.name())
        };
        let Ok(waiting) = self.line.try_acquire() else { return Answer::Ready(Err(full())) };
        Answer::later(async move {
            let _place = self.places.acquire().await.map_err(|_| full())?;
            drop(waiting);
            attempt().await
        })
    }
}
