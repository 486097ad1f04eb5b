//! A breaker around a store.

use std::{future::ready, sync::Arc};

use commonhold_core::{
    Answer, Error, ErrorKind, Result, Retry,
    layers::{Call, Operation, Outcome, Uniform},
};
use futures_util::{
    Stream, StreamExt as _, TryStreamExt as _,
    stream::{self, BoxStream},
};

use super::{
    core::Permit,
    distributed::{DistributedBreaker, DistributedPermit},
    error::BreakerError,
    local::LocalBreaker,
};

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
pub struct BreakerLayer<B = LocalBreaker> {
    breaker: B,
}

impl<B: Clone> BreakerLayer<B> {
    /// Asks this breaker: a [`LocalBreaker`], the [part in memory](super::HybridBreaker::local) of a hybrid one, or a
    /// [`DistributedBreaker`], which takes two more round trips for each call. Not one whose own state lies in this very
    /// store.
    pub fn new(breaker: &B) -> Self {
        Self { breaker: breaker.clone() }
    }
}

impl BreakerLayer {
    fn permit(&self, operation: Operation, backend: &'static str) -> Result<Permit> {
        let refused = |refused| error(self.breaker.name(), refused, operation, backend);
        self.breaker.try_acquire().map_err(refused)
    }
}

impl BreakerLayer<DistributedBreaker> {
    async fn permit(&self, operation: Operation, backend: &'static str) -> Result<DistributedPermit> {
        let refused = |refused| error(self.breaker.name(), refused, operation, backend);
        self.breaker.try_acquire().await.map_err(refused)
    }
}

/// What a call that is not let through fails with.
fn error(breaker: &str, refused: BreakerError, operation: Operation, backend: &'static str) -> Error {
    let message = match &refused {
        BreakerError::Isolated => format!("the circuit breaker \"{breaker}\" is isolated"),
        BreakerError::Unavailable(error) => format!("the circuit breaker \"{breaker}\" is away: {error}"),
        BreakerError::Open { .. } => format!("the circuit breaker \"{breaker}\" is open"),
        BreakerError::Inner(never) => match *never {},
    };
    let error = Error::new(ErrorKind::Unavailable, message).with_retry(Retry::Safe);
    error.with_source(refused).at(backend, operation.name())
}

fn is_failure<T>(result: &Result<T>) -> bool {
    result.as_ref().is_err_and(|error| {
        use ErrorKind::{Internal, Overloaded, Timeout, Unavailable};
        matches!(error.kind(), Unavailable | Timeout | Overloaded | Internal)
    })
}

/// Says of the first item whether it is a failure. A stream without any is none.
fn counting_first<T, F: Future>(
    stream: BoxStream<'static, Result<T>>,
    settle: impl FnOnce(bool) -> F,
) -> impl Stream<Item = Result<T>> {
    stream::unfold((stream, Some(settle)), |(mut stream, mut settle)| async move {
        let item = stream.next().await;
        if let Some(settle) = settle.take() {
            settle(item.as_ref().is_some_and(is_failure)).await;
        }
        item.map(|item| (item, (stream, None)))
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
        match self.permit(operation, backend) {
            Err(refused) => stream::once(ready(Err(refused))).boxed(),
            Ok(permit) => counting_first(stream, async |failed| permit.settle(failed)).boxed(),
        }
    }
}

impl Uniform for BreakerLayer<DistributedBreaker> {
    fn once<'a, T: Outcome>(
        &'a self,
        call: Call<'a>,
        attempt: impl FnOnce() -> Answer<'a, T> + Send + 'a,
    ) -> Answer<'a, T> {
        Answer::later(async move {
            let permit = self.permit(call.operation, call.backend).await?;
            let result = attempt().await;
            permit.settle(is_failure(&result)).await;
            result
        })
    }

    fn stream<T: Send + 'static>(
        self: Arc<Self>,
        operation: Operation,
        backend: &'static str,
        stream: BoxStream<'static, Result<T>>,
    ) -> BoxStream<'static, Result<T>> {
        let begun = async move {
            let permit = self.permit(operation, backend).await;
            permit.map(|permit| counting_first(stream, |failed| permit.settle(failed)))
        };
        stream::once(begun).try_flatten().boxed()
    }
}
