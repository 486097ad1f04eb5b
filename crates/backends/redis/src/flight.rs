//! Work that is done once for all who want it at the same time.

use std::sync::{Mutex, PoisonError};

use commonhold_core::{Error, ErrorKind, Result, Retry};
use futures_util::{
    FutureExt as _,
    future::{BoxFuture, Shared},
};

pub(crate) type Work<T> = Shared<BoxFuture<'static, Result<T>>>;

/// Lets callers join the work that is in flight instead of beginning it again: one reconnect for all of them.
///
/// Cancellation: the work goes on when those who wait for it are dropped.
pub(crate) struct Flight<T>(Mutex<Option<Work<T>>>);

impl<T> Default for Flight<T> {
    fn default() -> Self {
        Self(Mutex::new(None))
    }
}

impl<T: Clone + Send + Sync + 'static> Flight<T> {
    /// Joins the work that is in flight, or begins it.
    pub(crate) fn join(&self, work: impl Future<Output = Result<T>> + Send + 'static) -> Work<T> {
        let mut flight = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match &*flight {
            Some(shared) if shared.peek().is_none() => shared.clone(),
            _ => {
                let task = tokio::spawn(work);
                let ended = |_| {
                    let message = "the runtime on which the connection was made has ended";
                    Err(Error::new(ErrorKind::Closed, message).with_retry(Retry::Safe))
                };
                flight.insert(task.map(move |done| done.unwrap_or_else(ended)).boxed().shared()).clone()
            }
        }
    }
}
