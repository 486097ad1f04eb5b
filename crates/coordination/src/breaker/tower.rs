//! A breaker around a tower service.

use std::{
    future::Future,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    pin::Pin,
    task::{Context, Poll, ready},
};

use futures_util::{FutureExt as _, future::BoxFuture};
use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

use super::{
    core::Permit, distributed::DistributedBreaker, error::BreakerError, execute, local::LocalBreaker,
};

/// Puts a breaker around tower services: all that are made with it share the breaker.
///
/// ```
/// # tokio::runtime::Runtime::new().unwrap().block_on(async {
/// use commonhold_coordination::breaker::{BreakerError, LocalBreaker, Settings, TowerLayer};
/// use tower::{ServiceBuilder, ServiceExt as _, service_fn};
///
/// let breaker = LocalBreaker::new("api", &Settings::new().failure_threshold(1))?;
/// // Of an HTTP response, the status would tell.
/// let is_failure = |result: &Result<u16, &str>| result.as_ref().map_or(true, |status| *status >= 500);
/// let service = ServiceBuilder::new()
///     .layer(TowerLayer::new(&breaker).failing_if(is_failure))
///     .service(service_fn(|status: u16| async move { Ok::<_, &str>(status) }));
/// assert_eq!(service.clone().oneshot(503).await.ok(), Some(503));
/// assert!(matches!(service.oneshot(200).await, Err(BreakerError::Open { .. })));
/// # Ok::<(), commonhold_core::Error>(())
/// # }).unwrap();
/// ```
#[derive(Debug, Clone)]
pub struct TowerLayer<P = AnyError, B = LocalBreaker> {
    breaker: B,
    is_failure: P,
}

/// A tower service behind a breaker. It is ready when the service is; a call that is not let through fails at once.
#[derive(Debug, Clone)]
pub struct TowerService<S, P = AnyError, B = LocalBreaker> {
    service: S,
    breaker: B,
    is_failure: P,
}

/// Which results are failures. Functions of `&Result<Response, Error>` are such rules.
pub trait FailureRule<T, E> {
    /// Whether this is one.
    fn is_failure(&self, result: &Result<T, E>) -> bool;
}

/// Every error is a failure.
#[derive(Debug, Clone, Copy, Default)]
pub struct AnyError;

impl<T, E> FailureRule<T, E> for AnyError {
    fn is_failure(&self, result: &Result<T, E>) -> bool {
        result.is_err()
    }
}

impl<T, E, F: Fn(&Result<T, E>) -> bool> FailureRule<T, E> for F {
    fn is_failure(&self, result: &Result<T, E>) -> bool {
        self(result)
    }
}

impl<B: Clone> TowerLayer<AnyError, B> {
    /// Asks this breaker: a [`LocalBreaker`], the [part in memory](super::HybridBreaker::local) of a hybrid one, or a
    /// [`DistributedBreaker`], around services that can be cloned. Every error is a failure.
    pub fn new(breaker: &B) -> Self {
        Self { breaker: breaker.clone(), is_failure: AnyError }
    }
}

impl<P, B> TowerLayer<P, B> {
    /// Counts those results as failures for which this is true.
    pub fn failing_if<Q>(self, is_failure: Q) -> TowerLayer<Q, B> {
        TowerLayer { breaker: self.breaker, is_failure }
    }
}

impl<S, P: Clone, B: Clone> Layer<S> for TowerLayer<P, B> {
    type Service = TowerService<S, P, B>;

    fn layer(&self, service: S) -> Self::Service {
        TowerService { service, breaker: self.breaker.clone(), is_failure: self.is_failure.clone() }
    }
}

impl<S, P, R> Service<R> for TowerService<S, P>
where
    S: Service<R>,
    P: FailureRule<S::Response, S::Error> + Clone,
{
    type Response = S::Response;
    type Error = BreakerError<S::Error>;
    type Future = TowerFuture<S::Future, P>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.service.poll_ready(context).map_err(BreakerError::Inner)
    }

    fn call(&mut self, request: R) -> Self::Future {
        let permit = match self.breaker.try_acquire() {
            Ok(permit) => permit,
            Err(refused) => return TowerFuture::Refused { refused: Some(refused) },
        };
        let mut permit = Some(permit);
        let future = counted(&mut permit, || self.service.call(request));
        TowerFuture::Called { future, permit, is_failure: self.is_failure.clone() }
    }
}

impl<S, P, R> Service<R> for TowerService<S, P, DistributedBreaker>
where
    S: Service<R, Response: Send, Error: Send, Future: Send> + Clone + Send + 'static,
    P: FailureRule<S::Response, S::Error> + Clone + Send + 'static,
    R: Send + 'static,
{
    type Response = S::Response;
    type Error = BreakerError<S::Error>;
    type Future = BoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.service.poll_ready(context).map_err(BreakerError::Inner)
    }

    fn call(&mut self, request: R) -> Self::Future {
        // The one that is ready makes the call.
        let next = self.service.clone();
        let mut service = std::mem::replace(&mut self.service, next);
        let (breaker, rule) = (self.breaker.clone(), self.is_failure.clone());
        async move {
            let permit = breaker.try_acquire().await.map_err(BreakerError::widen)?;
            let ended = execute::make(|| service.call(request), move |result| rule.is_failure(result)).await;
            permit.settle(ended.failed).await;
            ended.go_on()
        }
        .boxed()
    }
}

/// Goes on with the call. A panic counts as a failure and goes on too: nobody sees what it left behind who would not have
/// seen it anyway.
fn counted<T>(permit: &mut Option<Permit>, call: impl FnOnce() -> T) -> T {
    catch_unwind(AssertUnwindSafe(call)).unwrap_or_else(|panic| {
        if let Some(permit) = permit.take() {
            permit.failure();
        }
        resume_unwind(panic)
    })
}

pin_project! {
    /// The future of a [`TowerService`]. Dropped before it ends, the call counts neither way; a panic counts as a failure.
    #[project = Projection]
    #[derive(Debug)]
    pub enum TowerFuture<F, P> {
        #[doc(hidden)]
        Called { #[pin] future: F, permit: Option<Permit>, is_failure: P },
        #[doc(hidden)]
        Refused { refused: Option<BreakerError> },
    }
}

impl<F, T, E, P> Future for TowerFuture<F, P>
where
    F: Future<Output = Result<T, E>>,
    P: FailureRule<T, E>,
{
    type Output = Result<T, BreakerError<E>>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project() {
            Projection::Called { future, permit, is_failure } => {
                let result = ready!(counted(permit, || future.poll(context)));
                if let Some(permit) = permit.take() {
                    permit.settle(is_failure.is_failure(&result));
                }
                Poll::Ready(result.map_err(BreakerError::Inner))
            }
            Projection::Refused { refused } => match refused.take() {
                Some(refused) => Poll::Ready(Err(refused.widen())),
                // It has been answered.
                None => Poll::Pending,
            },
        }
    }
}
