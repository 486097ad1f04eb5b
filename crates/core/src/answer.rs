//! What the point operations of a backend return: an answer that is there already, or a future.

use std::future::{IntoFuture, Ready};

use futures_util::future::{BoxFuture, Either};

use crate::error::Result;

/// The answer to a call: there already, or to be waited for. `.await` it in either case.
///
/// A store that answers from memory does so without an allocation, and a layer around it without another:
/// that is worth more than half of the time of such a call, which a boxed future would spend. Whether a call
/// is carried out when it is made or when its answer is awaited is up to the backend; an answer that is
/// dropped before it was awaited may have been carried out.
///
/// ```
/// # tokio::runtime::Runtime::new().unwrap().block_on(async {
/// use commonhold_core::Answer;
///
/// let there = Answer::Ready(Ok(1));
/// let to_come = Answer::later(async { Ok(2) });
/// let sum = to_come.then(|two| Ok(two? + 1));
/// assert_eq!((there.await?, sum.await?), (1, 3));
/// # Ok::<(), commonhold_core::Error>(())
/// # }).unwrap();
/// ```
#[must_use = "an answer that is not awaited may never come"]
pub enum Answer<'a, T> {
    /// It is there.
    Ready(Result<T>),
    /// It will come.
    Later(BoxFuture<'a, Result<T>>),
}

impl<'a, T> Answer<'a, T> {
    /// The answer that this future gives.
    pub fn later(future: impl Future<Output = Result<T>> + Send + 'a) -> Self {
        Self::Later(Box::pin(future))
    }

    /// What `f` makes of the answer, once it is there.
    pub fn then<U>(self, f: impl FnOnce(Result<T>) -> Result<U> + Send + 'a) -> Answer<'a, U>
    where
        T: 'a,
    {
        match self {
            Self::Ready(result) => Answer::Ready(f(result)),
            Self::Later(future) => Answer::later(async move { f(future.await) }),
        }
    }
}

impl<'a, T> IntoFuture for Answer<'a, T> {
    type Output = Result<T>;
    type IntoFuture = Either<Ready<Result<T>>, BoxFuture<'a, Result<T>>>;

    fn into_future(self) -> Self::IntoFuture {
        match self {
            Self::Ready(result) => Either::Left(std::future::ready(result)),
            Self::Later(future) => Either::Right(future),
        }
    }
}
