//! A tracing span around every call.

use tracing::Instrument as _;

use super::{Call, Outcome, Uniform};
use crate::answer::Answer;

/// Puts each call into a span `commonhold`, at level `DEBUG`, with the fields `backend`, `operation` and
/// `key`; a call that fails is recorded in it as `error`, with its kind. Values are not.
///
/// Costs a few nanoseconds where nobody listens. Order: wherever the span shall begin; outermost shows one
/// span for all attempts, inside [`Retry`](super::Retry) one for each.
#[derive(Debug, Clone, Copy, Default)]
pub struct Trace;

impl Uniform for Trace {
    fn once<'a, T: Outcome>(
        &'a self,
        call: Call<'a>,
        attempt: impl FnOnce() -> Answer<'a, T> + Send + 'a,
    ) -> Answer<'a, T> {
        let span = tracing::debug_span!(
            "commonhold",
            backend = call.backend,
            operation = call.operation.name(),
            key = call.key.map(tracing::field::display),
            error = tracing::field::Empty,
        );
        if span.is_disabled() {
            return attempt();
        }
        let answer = match span.in_scope(attempt) {
            Answer::Later(future) => Answer::later(future.instrument(span.clone())),
            ready => ready,
        };
        answer.then(move |result| {
            result.inspect_err(|error| {
                span.record("error", tracing::field::display(error.kind()));
            })
        })
    }
}
