//! Making a call under a permit.

use std::{
    any::Any,
    panic::{AssertUnwindSafe, resume_unwind},
};

use futures_util::FutureExt as _;

use super::error::BreakerError;

/// How a call ended that was made under a permit.
pub(super) struct Ended<T, E> {
    /// Whether it counts as a failure: a panic does.
    pub(super) failed: bool,
    outcome: Result<Result<T, E>, Box<dyn Any + Send>>,
}

/// Makes the call. Dropped before it ends, it counts neither way.
// A panic goes on after it was counted: nobody sees what it left behind who would not have seen it anyway.
pub(super) async fn make<T, E, F>(
    call: impl FnOnce() -> F,
    is_failure: impl FnOnce(&Result<T, E>) -> bool,
) -> Ended<T, E>
where
    F: Future<Output = Result<T, E>>,
{
    let outcome = AssertUnwindSafe(async { call().await }).catch_unwind().await;
    let failed = match &outcome {
        Ok(result) => is_failure(result),
        Err(_panic) => true,
    };
    Ended { failed, outcome }
}

impl<T, E> Ended<T, E> {
    /// What the call returned, or its panic.
    pub(super) fn go_on(self) -> Result<T, BreakerError<E>> {
        self.outcome.unwrap_or_else(|panic| resume_unwind(panic)).map_err(BreakerError::Inner)
    }
}
