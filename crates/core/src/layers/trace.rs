//! A tracing span around every call.

use futures_util::future::BoxFuture;
use tracing::Instrument as _;

use super::{Call, Outcome, Uniform};
use crate::error::Result;

/// Puts each call into a span `commonhold`, at level `DEBUG`, with the fields `backend`, `operation` and
/// `key`; a call that fails is recorded in it as `error`, with its kind. Values are not.
///
/// Costs a few nanoseconds where nobody listens. Order: wherever the span shall begin; outermost shows one
/// span for all attempts, inside [`Retry`](super::Retry) one for each.
#[derive(Debug, Clone, Copy, Default)]
pub struct Trace;

impl Uniform for Trace {
    async fn once<'a, T: Outcome>(&'a self, call: Call<'a>, attempt: BoxFuture<'a, Result<T>>) -> Result<T> {
        let span = tracing::debug_span!(
            "commonhold",
            backend = call.backend,
            operation = call.operation.name(),
            key = call.key.map(tracing::field::display),
            error = tracing::field::Empty,
        );
        if span.is_disabled() {
            return attempt.await;
        }
        let result = attempt.instrument(span.clone()).await;
        if let Err(error) = &result {
            span.record("error", tracing::field::display(error.kind()));
        }
        result
    }
}
