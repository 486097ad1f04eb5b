//! The breaker of one process.

use std::sync::Arc;

use commonhold_core::{Clock, Result};
use futures_util::Stream;

use super::{
    core::{Core, Permit, Totals},
    error::BreakerError,
    execute,
    machine::{Order, State, Status},
    settings::Settings,
    watch::Event,
};
use crate::limit::clock::Time;

/// A breaker of this process: it decides from memory, in nanoseconds. Clones are the same breaker.
///
/// The handle of a [`HybridBreaker`](super::HybridBreaker) is one too, whose state is mixed with the shared one.
///
/// ```
/// # tokio::runtime::Runtime::new().unwrap().block_on(async {
/// use std::time::Duration;
/// use commonhold_coordination::breaker::{BreakerError, LocalBreaker, Settings, State};
///
/// let settings = Settings::new().failure_threshold(2).open_for(Duration::from_secs(30));
/// let breaker = LocalBreaker::new("payments", &settings)?;
/// for _ in 0..2 {
///     let result = breaker.execute(|| async { Err::<(), _>("no answer") }).await;
///     assert!(matches!(result, Err(BreakerError::Inner("no answer"))));
/// }
/// match breaker.execute(|| async { Ok::<_, &str>("not called") }).await {
///     Err(BreakerError::Open { retry_after }) => assert!(retry_after <= Duration::from_secs(30)),
///     other => panic!("{other:?}"),
/// }
/// breaker.close();
/// assert_eq!(breaker.execute(|| async { Ok::<_, &str>("called") }).await.ok(), Some("called"));
/// # Ok::<(), commonhold_core::Error>(())
/// # }).unwrap();
/// ```
#[derive(Debug, Clone)]
pub struct LocalBreaker {
    pub(super) core: Arc<Core>,
}

impl LocalBreaker {
    /// A closed breaker. The name is for metrics and people.
    ///
    /// # Errors
    /// `InvalidConfig` naming the setting that is out of its range.
    pub fn new(name: &str, settings: &Settings) -> Result<Self> {
        Self::on(Time::monotonic(), name, settings)
    }

    /// The same on a clock of the caller's.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn with_clock(name: &str, settings: &Settings, clock: Arc<dyn Clock>) -> Result<Self> {
        Self::on(Time::Given(clock), name, settings)
    }

    fn on(time: Time, name: &str, settings: &Settings) -> Result<Self> {
        Ok(Self { core: Arc::new(Core::new(name, settings, time, None)?) })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        self.core.name()
    }

    /// Makes a call if the breaker lets it through. Every error counts as a failure.
    ///
    /// A panic counts as a failure and goes on. Dropped before it ends, the call is cancelled and counts neither way;
    /// the place of a probe is free again. Nothing is locked while the call is under way.
    ///
    /// # Errors
    /// `Open` or `Isolated` without the call having been made; `Inner` with what the call failed with.
    pub async fn execute<T, E, F>(&self, call: impl FnOnce() -> F) -> Result<T, BreakerError<E>>
    where
        F: Future<Output = Result<T, E>>,
    {
        self.execute_counting(|_| true, call).await
    }

    /// The same, where only the errors for which `is_failure` is true count as failures: one that the caller has made
    /// says nothing of the one who is called.
    ///
    /// # Errors
    /// As [`execute`](Self::execute).
    pub async fn execute_counting<T, E, F>(
        &self,
        is_failure: impl FnOnce(&E) -> bool,
        call: impl FnOnce() -> F,
    ) -> Result<T, BreakerError<E>>
    where
        F: Future<Output = Result<T, E>>,
    {
        let permit = self.try_acquire().map_err(BreakerError::widen)?;
        let ended = execute::make(call, |result| result.as_ref().is_err_and(is_failure)).await;
        permit.settle(ended.failed);
        ended.go_on()
    }

    /// Asks whether a call may be made, for one that is made by other means.
    ///
    /// # Errors
    /// `Open` or `Isolated`.
    #[inline]
    pub fn try_acquire(&self) -> Result<Permit, BreakerError> {
        self.core.acquire()
    }

    /// Whether calls are let through. An open breaker whose wait is over becomes half-open with the next call.
    pub fn state(&self) -> State {
        self.core.lock().machine.state
    }

    /// What it knows.
    pub fn status(&self) -> Status {
        self.core.status()
    }

    /// What it has counted since it was made or reset.
    pub fn totals(&self) -> Totals {
        self.core.totals()
    }

    /// The changes of its state from now on. One who falls behind by more than 64 misses the oldest.
    pub fn events(&self) -> impl Stream<Item = Event> + Send + Unpin + 'static {
        self.core.watch.events()
    }

    /// Opens it, as if it had tripped. One that is isolated stays so.
    pub fn open(&self) {
        self.order(Order::Open);
    }

    /// Closes it, whatever it was; a closed one keeps what it has counted.
    pub fn close(&self) {
        self.order(Order::Close);
    }

    /// Lets nothing through until it is [closed](Self::close) or [reset](Self::reset).
    pub fn isolate(&self) {
        self.order(Order::Isolate);
    }

    /// Closes it and forgets all that was counted. Results of calls under way count no more.
    pub fn reset(&self) {
        self.order(Order::Reset);
        self.core.forget_totals();
    }

    fn order(&self, order: Order) {
        let now = self.core.now();
        let mut inner = self.core.lock();
        self.core.change(&mut inner, |machine| machine.order(&self.core.rules, order, now));
    }
}
