//! A breaker around a store.

use std::sync::Arc;

use commonhold_core::{
    Answer, Error, ErrorKind, Result, Retry,
    layers::{Call, Operation, Outcome, Uniform},
};
use futures_util::{
    StreamExt as _,
    stream::{self, BoxStream},
};

use super::{core::Permit, error::BreakerError, local::LocalBreaker};

/// Keeps calls from a store that does not answer: they fail at once with [`Unavailable`](ErrorKind::Unavailable), safe to
/// repeat, while the breaker is open.
///
/// Failures are errors that say something of the store ([`Unavailable`](ErrorKind::Unavailable),
/// [`Timeout`](ErrorKind::Timeout), [`Overloaded`](ErrorKind::Overloaded), [`Internal`](ErrorKind::Internal)); others say
/// something of the call. A scan counts by its first entry, a watch or subscription by its beginning.
///
/// Order: outside [`Timeout`](commonhold_core::layers::Timeout), so that it sees what takes too long; inside
/// [`Retry`](commonhold_core::layers::Retry) to count each attempt, outside to count each call.
///
/// Cancellation: a call that is dropped counts neither way.
///
/// ```
/// use std::time::Duration;
/// use commonhold_coordination::breaker::{BreakerLayer, LocalBreaker, Settings};
/// use commonhold_core::{MemoryBackend, Store, layers::{Retry, Timeout}};
///
/// let breaker = LocalBreaker::new("sessions", &Settings::new().failure_threshold(5))?;
/// let store = Store::new(MemoryBackend::new())
///     .layer(Timeout::new(Duration::from_secs(3)))
///     .layer(BreakerLayer::new(&breaker))
///     .layer(Retry::default());
/// # Ok::<(), commonhold_core::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct BreakerLayer {
    breaker: LocalBreaker,
}

impl BreakerLayer {
    /// Asks this breaker, or the [part in memory](super::HybridBreaker::local) of a hybrid one. Not of one whose own
    /// state lies in this very store.
    pub fn new(breaker: &LocalBreaker) -> Self {
        Self { breaker: breaker.clone() }
    }

    fn permit(&self, operation: Operation, backend: &'static str) -> Result<Permit> {
        self.breaker.try_acquire().map_err(|refused| {
            let message = match &refused {
                BreakerError::Isolated => {
                    format!("the circuit breaker \"{}\" is isolated", self.breaker.name())
                }
                _ => format!("the circuit breaker \"{}\" is open", self.breaker.name()),
            };
            Error::new(ErrorKind::Unavailable, message)
                .with_retry(Retry::Safe)
                .with_source(refused)
                .at(backend, operation.name())
        })
    }
}

fn is_failure<T>(result: &Result<T>) -> bool {
    result.as_ref().is_err_and(|error| {
        use ErrorKind::{Internal, Overloaded, Timeout, Unavailable};
        matches!(error.kind(), Unavailable | Timeout | Overloaded | Internal)
    })
}

impl Uniform for BreakerLayer {
    fn once<'a, T: Outcome>(
        &'a self,
        call: Call<'a>,
        attempt: impl FnOnce() -> Answer<'a, T> + Send + 'a,
    ) -> Answer<'a, T> {
        match self.permit(call.operation, call.backend) {
            Err(refused) => Answer::Ready(Err(refused)),
            Ok(permit) => attempt().then(move |result| {
                permit.settle(is_failure(&result));
                result
            }),
        }
    }

    fn stream<T: Send + 'static>(
        self: Arc<Self>,
        operation: Operation,
        backend: &'static str,
        stream: BoxStream<'static, Result<T>>,
    ) -> BoxStream<'static, Result<T>> {
        let permit = match self.permit(operation, backend) {
            Err(refused) => return stream::once(std::future::ready(Err(refused))).boxed(),
            Ok(permit) => permit,
        };
        stream::unfold((stream, Some(permit)), |(mut stream, mut permit)| async move {
            let item = stream.next().await;
            if let Some(permit) = permit.take() {
                permit.settle(item.as_ref().is_some_and(is_failure));
            }
            item.map(|item| (item, (stream, None)))
        })
        .boxed()
    }
}
