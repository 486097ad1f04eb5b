//! Bounds the time that a call may take.

use std::{future::poll_fn, sync::Arc, task::Poll, time::Duration};

use futures_util::{StreamExt as _, stream::BoxStream};

use super::{Call, Operation, Outcome, Uniform};
use crate::{
    answer::Answer,
    error::{Error, ErrorKind, Result},
};

/// Fails calls that take too long with [`Timeout`](ErrorKind::Timeout): safe to repeat for a read, ambiguous
/// for a write, which may have been carried out or may yet be.
///
/// A scan must deliver each next entry within the time. A watch or subscription must begin within it, and
/// may then be silent for as long as it likes.
///
/// Order: inside [`Retry`](super::Retry), to bound each attempt. Needs a Tokio runtime with its timer on.
///
/// Cancellation: the call is dropped when its time is up, as if its caller had dropped it.
#[derive(Debug, Clone, Copy)]
pub struct Timeout {
    limit: Duration,
}

impl Timeout {
    /// Allows each call this long.
    pub fn new(limit: Duration) -> Self {
        Self { limit }
    }

    fn error(&self, operation: Operation, backend: &'static str) -> Error {
        Error::new(ErrorKind::Timeout, format!("no answer within {:?}", self.limit))
            .with_retry(operation.lost())
            .at(backend, operation.name())
    }
}

impl Uniform for Timeout {
    fn once<'a, T: Outcome>(
        &'a self,
        call: Call<'a>,
        attempt: impl FnOnce() -> Answer<'a, T> + Send + 'a,
    ) -> Answer<'a, T> {
        let mut future = match attempt() {
            Answer::Later(future) => future,
            ready => return ready,
        };
        Answer::later(async move {
            // What comes at once needs no timer, and setting one up takes as long as a read from memory.
            if let Poll::Ready(result) = poll_fn(|context| Poll::Ready(future.as_mut().poll(context))).await {
                return result;
            }
            let result = tokio::time::timeout(self.limit, future).await;
            result.unwrap_or_else(|_| {
                let error = self.error(call.operation, call.backend);
                Err(match call.key {
                    Some(key) => error.with_key(key),
                    None => error,
                })
            })
        })
    }

    fn stream<T: Send + 'static>(
        self: Arc<Self>,
        operation: Operation,
        backend: &'static str,
        stream: BoxStream<'static, Result<T>>,
    ) -> BoxStream<'static, Result<T>> {
        futures_util::stream::unfold(Some(stream), move |stream| {
            let this = Arc::clone(&self);
            async move {
                let mut stream = stream?;
                match tokio::time::timeout(this.limit, stream.next()).await {
                    Ok(item) => item.map(|item| (item, Some(stream))),
                    Err(_) => Some((Err(this.error(operation, backend)), None)),
                }
            }
        })
        .boxed()
    }
}
