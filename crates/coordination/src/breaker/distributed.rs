//! The breaker that all instances share.

use std::{
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicI64, Ordering},
    },
    time::{Duration, Instant},
};

use commonhold_core::{Error, ErrorKind, Key, Result, Retry, Store};
use futures_util::Stream;
use tokio::runtime::Handle;

use super::{
    error::BreakerError,
    execute,
    machine::{Counts, Order, Report, State, Status},
    settings::{Rules, Settings},
    transition::{Command, Reply, Said, What, decode_shown},
    watch::{Event, Outcome, Watch},
};
use crate::state;

/// How often a question is asked again whose answer did not come: the same question brings the same probe.
const ATTEMPTS: u32 = 2;

/// What to do with calls while the store of a [`DistributedBreaker`] is away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnUnavailable {
    /// Let them through. They are counted as `unguarded` in the metrics, and nowhere else.
    Allow,
    /// Refuse them with [`BreakerError::Unavailable`].
    Refuse,
}

/// A breaker whose state lies in a store, under `breaker:NAME`, and is the same for all instances: one round trip decides
/// on a call, and one tells how it ended. [`HybridBreaker`](super::HybridBreaker) takes both off the way of the call.
///
/// Whatever this or any instance sees counts in one window, so that it opens on the aggregate of all;
/// [`min_reporters`](Settings::min_reporters) says how many instances must have seen failures. Probes are leased: in all
/// of the fleet no more are under way than [`half_open_probes`](Settings::half_open_probes), and an instance that dies
/// with one loses it when the lease is over. All instances must have the same settings. Time is that of the store.
///
/// Nothing is held in the store while a call is under way.
///
/// ```
/// # tokio::runtime::Runtime::new().unwrap().block_on(async {
/// use commonhold_coordination::breaker::{DistributedBreaker, OnUnavailable, Settings, State};
/// use commonhold_core::{MemoryBackend, Store};
///
/// let store = Store::new(MemoryBackend::new());
/// let settings = Settings::new().failure_threshold(2).min_reporters(2);
/// let one = DistributedBreaker::new(store.clone(), "payments", &settings, OnUnavailable::Allow)?;
/// let other = DistributedBreaker::new(store, "payments", &settings, OnUnavailable::Allow)?;
/// for _ in 0..3 {
///     let _ = one.execute(|| async { Err::<(), _>("no answer") }).await;
/// }
/// assert_eq!(one.show().await?.state, State::Closed); // the word of one
/// let _ = other.execute(|| async { Err::<(), _>("no answer") }).await;
/// assert_eq!(one.show().await?.state, State::Open);
/// # Ok::<(), commonhold_core::Error>(())
/// # }).unwrap();
/// ```
#[derive(Debug, Clone)]
pub struct DistributedBreaker {
    pub(super) shared: Arc<Shared>,
}

#[derive(Debug)]
pub(super) struct Shared {
    store: Store,
    key: Key,
    name: Box<str>,
    pub(super) rules: Rules,
    slow_call: Option<Duration>,
    on_unavailable: OnUnavailable,
    /// Names this instance.
    pub(super) reporter: i64,
    next_id: AtomicI64,
    /// The generation and the state that were seen last.
    seen: Mutex<(i64, State)>,
    watch: Watch,
}

/// A call that may be made. [Say](Self::success) how it ended; dropped without that, it counts neither way, and the place
/// of a probe is given back in the background.
#[must_use = "a permit that is dropped counts as a call that was cancelled"]
pub struct DistributedPermit {
    shared: Arc<Shared>,
    /// The generation and the id of the probe, or 0; nothing if the store was away.
    began: Option<(i64, i64)>,
    begun: Instant,
    runtime: Handle,
    settled: bool,
}

impl DistributedBreaker {
    /// The breaker of this name, which is closed if there is none yet.
    ///
    /// # Errors
    /// `InvalidConfig` naming the setting that is out of its range; `TooLarge` or `InvalidInput` for a name that makes
    /// no key; `Unsupported` if entries of the store have no time to live.
    pub fn new(store: Store, name: &str, settings: &Settings, on_unavailable: OnUnavailable) -> Result<Self> {
        if !store.capabilities().ttl {
            let message = "circuit breakers need a store whose entries can expire";
            return Err(Error::new(ErrorKind::Unsupported, message).at(store.backend().name(), "breaker"));
        }
        let shared = Shared {
            key: state::key("breaker:", name)?,
            name: name.into(),
            rules: settings.rules()?,
            slow_call: settings.slow_call(),
            on_unavailable,
            reporter: random(),
            next_id: AtomicI64::new(random()),
            seen: Mutex::default(),
            watch: Watch::new(name, "distributed"),
            store,
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.shared.name
    }

    /// Makes a call if the breaker lets it through. Every error counts as a failure.
    ///
    /// A panic counts as a failure and goes on. Dropped before it ends, the call is cancelled and counts neither way;
    /// the place of a probe is given back in the background. Once the call has ended, its result is told even if this is
    /// dropped. A result that does not reach the store is counted in the metrics of this instance alone.
    ///
    /// # Errors
    /// `Open`, `Isolated` or `Unavailable` without the call having been made; `Inner` with what the call failed with.
    pub async fn execute<T, E, F>(&self, call: impl FnOnce() -> F) -> Result<T, BreakerError<E>>
    where
        F: Future<Output = Result<T, E>>,
    {
        self.execute_counting(|_| true, call).await
    }

    /// The same, where only the errors for which `is_failure` is true count as failures.
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
        let permit = self.try_acquire().await.map_err(BreakerError::widen)?;
        let ended = execute::make(call, |result| result.as_ref().is_err_and(is_failure)).await;
        permit.settle(ended.failed).await;
        ended.go_on()
    }

    /// Asks whether a call may be made. Dropping the future leaves no probe behind.
    ///
    /// # Errors
    /// `Open`, `Isolated`; `Unavailable` if the store is away and that is what [`OnUnavailable`] says, or if what lies
    /// under the key is not the state of a breaker.
    pub async fn try_acquire(&self) -> Result<DistributedPermit, BreakerError> {
        let shared = &self.shared;
        let id = shared.new_id();
        // Gives back what may have been granted if this is dropped.
        let mut permit = DistributedPermit {
            shared: Arc::clone(shared),
            began: Some((0, id)),
            begun: Instant::now(),
            runtime: Handle::current(),
            settled: false,
        };
        let reply = shared.acquire(id).await;
        permit.begun = Instant::now();
        match reply {
            Ok(Reply { said: Said::Refuse, state, left, .. }) => {
                permit.settled = true;
                shared.watch.count(Outcome::Refused);
                Err(BreakerError::refused(state, left))
            }
            Ok(reply) => {
                permit.began = Some((reply.generation, if reply.said == Said::Probe { id } else { 0 }));
                Ok(permit)
            }
            Err(error) if error.retry() != Retry::Never && shared.on_unavailable == OnUnavailable::Allow => {
                tracing::debug!(breaker = &*shared.name, %error, "let through without the store");
                permit.began = None;
                Ok(permit)
            }
            Err(error) => {
                permit.settled = true;
                shared.watch.count(Outcome::Refused);
                Err(BreakerError::Unavailable(error))
            }
        }
    }

    /// What the store knows.
    pub async fn show(&self) -> Result<Status> {
        let Shared { store, key, rules, .. } = &*self.shared;
        let reply = store.transact(key, Command { rules: *rules, what: What::Show }).await?;
        let (now, machine) = decode_shown(&reply)?;
        Ok(machine.status(rules, now))
    }

    /// The changes of its state from now on, as this instance comes to see them. One who falls behind by more than 64
    /// misses the oldest.
    pub fn events(&self) -> impl Stream<Item = Event> + Send + Unpin + 'static {
        self.shared.watch.events()
    }

    /// Opens it for all, as if it had tripped. One that is isolated stays so.
    pub async fn open(&self) -> Result<()> {
        self.shared.order(Order::Open).await.map(drop)
    }

    /// Closes it for all, whatever it was; a closed one keeps what it has counted.
    pub async fn close(&self) -> Result<()> {
        self.shared.order(Order::Close).await.map(drop)
    }

    /// Lets nothing through anywhere until it is [closed](Self::close) or [reset](Self::reset).
    pub async fn isolate(&self) -> Result<()> {
        self.shared.order(Order::Isolate).await.map(drop)
    }

    /// Closes it for all and forgets all that was counted. Results of calls under way count no more.
    pub async fn reset(&self) -> Result<()> {
        self.shared.order(Order::Reset).await.map(drop)
    }
}

impl Shared {
    pub(super) fn new_id(&self) -> i64 {
        (self.next_id.fetch_add(1, Ordering::Relaxed) & ((1 << 52) - 1)).max(1)
    }

    /// Asks for a call, which has this id should it be a probe.
    pub(super) async fn acquire(&self, id: i64) -> Result<Reply> {
        let mut attempt = 1;
        loop {
            match self.ask(What::Acquire(id)).await {
                Err(error) if error.retry() == Retry::Ambiguous && attempt < ATTEMPTS => attempt += 1,
                answer => return answer,
            }
        }
    }

    pub(super) async fn order(&self, order: Order) -> Result<Reply> {
        self.ask(What::Order(order)).await
    }

    pub(super) async fn ask(&self, what: What) -> Result<Reply> {
        let known = self.seen().0;
        let reply = self.store.transact(&self.key, Command { rules: self.rules, what }).await?;
        let reply = Reply::decode(&reply)?;
        let mut seen = self.seen();
        // Answers may overtake each other. An earlier generation to a question that was asked after this one was seen is
        // that of a store that has lost it.
        if reply.generation > seen.0 || (reply.generation < seen.0 && known == seen.0) {
            let from = std::mem::replace(&mut *seen, (reply.generation, reply.state)).1;
            self.watch.turned(Event { from, to: reply.state });
        }
        Ok(reply)
    }

    fn seen(&self) -> MutexGuard<'_, (i64, State)> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl DistributedPermit {
    /// The call succeeded. If it was slow, that counts too. Returns when the store knows; dropped, it is told all the
    /// same.
    pub async fn success(self) {
        self.settle(false).await;
    }

    /// The call failed. As with [`success`](Self::success).
    pub async fn failure(self) {
        self.settle(true).await;
    }

    /// Whether it is one of the few calls that are let through while half-open.
    pub fn is_probe(&self) -> bool {
        self.began.is_some_and(|(_, probe)| probe != 0)
    }

    pub(super) async fn settle(mut self, failed: bool) {
        self.settled = true;
        let Some((generation, probe)) = self.began else {
            self.shared.watch.count(Outcome::Unguarded);
            return;
        };
        let is_slow = self.shared.slow_call.is_some_and(|slow| self.begun.elapsed() >= slow);
        let counts = Counts { calls: 1, failures: failed.into(), slow: is_slow.into() };
        let reporter = self.shared.reporter;
        let report = Report { generation, probe, reporter, counts, streak: failed.into() };
        let shared = Arc::clone(&self.shared);
        let told = self.runtime.spawn(async move {
            let outcome = match shared.ask(What::Report(report)).await {
                Ok(Reply { said: Said::Late, .. }) => Outcome::Late,
                Ok(_) => Outcome::of(failed),
                Err(error) => {
                    tracing::debug!(breaker = &*shared.name, %error, "the store does not know how a call ended");
                    Outcome::Unguarded
                }
            };
            shared.watch.count(outcome);
            shared.watch.count_slow(counts);
        });
        // It fails only if the runtime ends.
        let _ = told.await;
    }
}

impl Drop for DistributedPermit {
    fn drop(&mut self) {
        if self.settled {
            return;
        }
        self.shared.watch.count(Outcome::Cancelled);
        let Some((_, probe @ 1..)) = self.began else { return };
        let shared = Arc::clone(&self.shared);
        self.runtime.spawn(async move {
            if let Err(error) = shared.ask(What::Release(probe)).await {
                tracing::debug!(breaker = &*shared.name, %error, "a probe is not given back: it will expire");
            }
        });
    }
}

impl fmt::Debug for DistributedPermit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DistributedPermit")
            .field("breaker", &self.shared.name)
            .field("is_probe", &self.is_probe())
            .finish()
    }
}

/// A number that nobody else has, and that scripts can count with.
fn random() -> i64 {
    fastrand::i64(1..1 << 52)
}
