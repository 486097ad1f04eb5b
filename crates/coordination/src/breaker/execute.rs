//! Making a call under a permit.

use std::{
    any::Any,
    panic::{AssertUnwindSafe, resume_unwind},
};

use futures_util::FutureExt as _;

use super::{core::Permit, distributed::DistributedPermit, error::BreakerError};

/// Makes the call. A panic counts as a failure and goes on; dropped before it ends, the call counts neither way.
pub(super) async fn local<T, E, F>(
    permit: Permit,
    is_failure: impl FnOnce(&E) -> bool,
    call: impl FnOnce() -> F,
) -> Result<T, BreakerError<E>>
where
    F: Future<Output = Result<T, E>>,
{
    let ended = catch(call).await;
    permit.settle(failed(&ended, is_failure));
    ended.unwrap_or_else(|panic| resume_unwind(panic)).map_err(BreakerError::Inner)
}

/// The same, and returns when the store knows.
pub(super) async fn distributed<T, E, F>(
    permit: DistributedPermit,
    is_failure: impl FnOnce(&E) -> bool,
    call: impl FnOnce() -> F,
) -> Result<T, BreakerError<E>>
where
    F: Future<Output = Result<T, E>>,
{
    let ended = catch(call).await;
    permit.settle(failed(&ended, is_failure)).await;
    ended.unwrap_or_else(|panic| resume_unwind(panic)).map_err(BreakerError::Inner)
}

type Ended<T, E> = Result<Result<T, E>, Box<dyn Any + Send>>;

// A panic goes on after it was counted: nobody sees what it left behind who would not have seen it anyway.
async fn catch<T, E, F: Future<Output = Result<T, E>>>(call: impl FnOnce() -> F) -> Ended<T, E> {
    AssertUnwindSafe(async { call().await }).catch_unwind().await
}

fn failed<T, E>(ended: &Ended<T, E>, is_failure: impl FnOnce(&E) -> bool) -> bool {
    match ended {
        Ok(Ok(_)) => false,
        Ok(Err(error)) => is_failure(error),
        Err(_panic) => true,
    }
}
