//! The breaker that decides in memory and shares what it learns.

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use commonhold_core::{Clock, Error, ErrorKind, Result};
use tokio::{runtime::Handle, time::timeout};
use tokio_util::sync::CancellationToken;

use super::{
    core::{Core, Permit, Totals},
    distributed::{DistributedBreaker, Shared},
    error::BreakerError,
    local::LocalBreaker,
    machine::{Counts, Order, Report, State, Status},
    mix::{Mixing, SharedProbe},
    settings::Settings,
    transition::What,
};
use crate::limit::clock::Time;

/// How often states may be mixed.
const INTERVALS: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(60));
/// A store that takes longer to answer is away.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);

/// A breaker that decides in memory, at once, and mixes its state with that of a [`DistributedBreaker`] in the
/// background: no call of the user's waits for the store. Clones are the same breaker.
///
/// - What this instance sees opens it here at once, by its own settings, and is told to the shared breaker in aggregate:
///   each interval, and at once when it opens here.
/// - When the shared breaker opens or is isolated, this one follows at the next interval. While it follows, probes are
///   those that the shared one leases to it, one at a time and only while there are calls to be made: the fleet
///   together makes no more than one instance would.
/// - When the shared breaker closes, one that follows closes too. One that opened by itself goes its own way: it lets
///   its own probes through when its own wait is over.
/// - **When the store is away**, this one goes on alone: an open one waits no longer than the shared one said and its own
///   settings say, and then lets its own probes through; an isolated one stays so. What it counts in that time is not told
///   later. **When the store is back**, it follows the shared state again from the next interval on.
///
/// What an instance has not told yet is lost when it ends; a probe that it has not used goes to another instance when
/// its lease is over.
///
/// ```
/// # tokio::runtime::Runtime::new().unwrap().block_on(async {
/// use std::time::Duration;
/// use commonhold_coordination::breaker::{DistributedBreaker, HybridBreaker, OnUnavailable, Settings};
/// use commonhold_core::{MemoryBackend, Store};
///
/// let store = Store::new(MemoryBackend::new());
/// let fleet = Settings::new().failure_rate(0.5).minimum_calls(100).min_reporters(3);
/// let shared = DistributedBreaker::new(store, "payments", &fleet, OnUnavailable::Allow)?;
/// let own = Settings::new().failure_threshold(5);
/// let breaker = HybridBreaker::new(&own, shared, Duration::from_millis(500))?;
/// assert_eq!(breaker.execute(|| async { Ok::<_, ()>(1) }).await.ok(), Some(1));
/// # Ok::<(), commonhold_core::Error>(())
/// # }).unwrap();
/// ```
#[derive(Debug, Clone)]
pub struct HybridBreaker {
    local: LocalBreaker,
    shared: DistributedBreaker,
}

impl HybridBreaker {
    /// A breaker with these settings of its own over a shared one, with which it mixes its state every `interval`, from
    /// 10 ms to 60 s. It is to be made within a Tokio runtime, in which the background task runs until the last handle
    /// is dropped.
    ///
    /// # Errors
    /// `InvalidConfig` naming the setting or interval that is out of its range, or without a runtime.
    pub fn new(settings: &Settings, shared: DistributedBreaker, interval: Duration) -> Result<Self> {
        Self::on(Time::monotonic(), settings, shared, interval)
    }

    /// The same, where the part in memory runs on a clock of the caller's.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn with_clock(
        settings: &Settings,
        shared: DistributedBreaker,
        interval: Duration,
        clock: Arc<dyn Clock>,
    ) -> Result<Self> {
        Self::on(Time::Given(clock), settings, shared, interval)
    }

    fn on(time: Time, settings: &Settings, shared: DistributedBreaker, interval: Duration) -> Result<Self> {
        let (least, most) = INTERVALS;
        if !(least..=most).contains(&interval) {
            let message = format!("the interval is between {least:?} and {most:?}, not {interval:?}");
            return Err(Error::new(ErrorKind::InvalidConfig, message));
        }
        let runtime = Handle::try_current().map_err(|_| {
            Error::new(ErrorKind::InvalidConfig, "a hybrid breaker is to be made within a Tokio runtime")
        })?;
        let (mixing, ended) = Mixing::new();
        let core = Arc::new(Core::new(shared.name(), settings, time, Some(mixing))?);
        let task =
            Task { core: Arc::downgrade(&core), shared: Arc::clone(&shared.shared), interval, unsure: None };
        runtime.spawn(task.run(ended));
        Ok(Self { local: LocalBreaker { core }, shared })
    }

    /// The part in memory, which decides: for its events and totals, for layers, and to open, close or isolate this
    /// instance alone. It keeps the background task going as this handle does.
    pub fn local(&self) -> &LocalBreaker {
        &self.local
    }

    /// The shared part.
    pub fn shared(&self) -> &DistributedBreaker {
        &self.shared
    }

    /// Its name.
    pub fn name(&self) -> &str {
        self.local.name()
    }

    /// As [`LocalBreaker::execute`].
    ///
    /// # Errors
    /// `Open` or `Isolated` without the call having been made; `Inner` with what the call failed with.
    pub async fn execute<T, E, F>(&self, call: impl FnOnce() -> F) -> Result<T, BreakerError<E>>
    where
        F: Future<Output = Result<T, E>>,
    {
        self.local.execute(call).await
    }

    /// As [`LocalBreaker::execute_counting`].
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
        self.local.execute_counting(is_failure, call).await
    }

    /// Asks whether a call may be made, for one that is made by other means.
    ///
    /// # Errors
    /// `Open` or `Isolated`.
    #[inline]
    pub fn try_acquire(&self) -> Result<Permit, BreakerError> {
        self.local.try_acquire()
    }

    /// Whether this instance lets calls through.
    pub fn state(&self) -> State {
        self.local.state()
    }

    /// What this instance knows.
    pub fn status(&self) -> Status {
        self.local.status()
    }

    /// What this instance has counted.
    pub fn totals(&self) -> Totals {
        self.local.totals()
    }

    /// Opens it for all: here at once, elsewhere at their next interval. One that is isolated stays so.
    ///
    /// # Errors
    /// If the store does not do it; nothing is changed here then. The same for the others below.
    pub async fn open(&self) -> Result<()> {
        self.order(Order::Open).await
    }

    /// Closes it for all.
    pub async fn close(&self) -> Result<()> {
        self.order(Order::Close).await?;
        self.local.close();
        Ok(())
    }

    /// Lets nothing through anywhere until it is closed or reset.
    pub async fn isolate(&self) -> Result<()> {
        self.order(Order::Isolate).await
    }

    /// Closes it for all and forgets what was counted.
    pub async fn reset(&self) -> Result<()> {
        self.order(Order::Reset).await?;
        self.local.reset();
        Ok(())
    }

    async fn order(&self, order: Order) -> Result<()> {
        let now = self.local.core.now();
        let reply = self.shared.shared.order(order).await?;
        self.local.core.mix_in(reply, None, now);
        Ok(())
    }
}

/// Mixes the states.
struct Task {
    core: Weak<Core>,
    shared: Arc<Shared>,
    interval: Duration,
    /// The probe that was asked for and may have been leased: its id, and until when at the least.
    unsure: Option<(i64, i64)>,
}

impl Task {
    async fn run(mut self, ended: CancellationToken) {
        let Some(wake) = self.core.upgrade().and_then(|core| Some(Arc::clone(&core.mixing.as_ref()?.wake)))
        else {
            return;
        };
        let mut is_away = false;
        while let Some(mixed) = ended.run_until_cancelled(self.mix()).await {
            match (&mixed, is_away) {
                (Err(error), false) => {
                    tracing::warn!(breaker = self.name(), %error, "the store of the breaker is away: it goes on alone");
                }
                (Ok(()), true) => tracing::info!(breaker = self.name(), "the store of the breaker is back"),
                _ => {}
            }
            is_away = mixed.is_err();
            if let (true, Some(core)) = (is_away, self.core.upgrade()) {
                core.go_on_alone();
            }
            // Not all instances at once.
            let pause = tokio::time::sleep(self.interval.mul_f64(0.75 + fastrand::f64() / 2.0));
            tokio::select! {
                () = pause => {}
                // A store that is away is not asked more often because calls fail.
                () = wake.notified(), if !is_away => {}
                () = ended.cancelled() => {}
            }
        }
    }

    /// Tells what has happened here and takes over what has happened elsewhere. The breaker may be dropped while the
    /// store is asked.
    async fn mix(&mut self) -> Result<()> {
        let Some(core) = self.core.upgrade() else { return Ok(()) };
        let (report, wants_probe) = {
            let mix = &mut core.lock().mix;
            (mix.take_report(self.shared.reporter), mix.is_probe_wanted())
        };
        drop(core);
        while let Some((probe, counts)) = self.first_ended() {
            let what = match counts {
                None => What::Release(probe.id),
                Some(counts) => {
                    let (generation, reporter) = (probe.generation, self.shared.reporter);
                    let streak = i64::from(counts.failures > 0);
                    What::Report(Report { generation, probe: probe.id, reporter, counts, streak })
                }
            };
            self.ask(what, None).await?;
            if let Some(core) = self.core.upgrade() {
                core.lock().mix.told(probe);
            }
        }
        self.ask(What::Report(report), None).await?;
        let Some(now) = self.core.upgrade().map(|core| core.now()) else { return Ok(()) };
        self.unsure = self.unsure.filter(|&(_, expires)| expires > now);
        if wants_probe && self.unsure.is_none() {
            self.unsure = Some((self.shared.new_id(), now + self.shared.rules.lease));
        }
        if let Some((id, _)) = self.unsure {
            self.ask(What::Acquire(id), self.unsure).await?;
            self.unsure = None;
        }
        Ok(())
    }

    fn first_ended(&self) -> Option<(SharedProbe, Option<Counts>)> {
        let core = self.core.upgrade()?;
        let now = core.now();
        core.lock().mix.first_ended(now)
    }

    async fn ask(&self, what: What, probe: Option<(i64, i64)>) -> Result<()> {
        let Some(asked) = self.core.upgrade().map(|core| core.now()) else { return Ok(()) };
        let within = ANSWER_WITHIN.max(self.interval);
        let reply = timeout(within, self.shared.ask(what)).await.unwrap_or_else(|_| {
            Err(Error::new(ErrorKind::Timeout, format!("the store did not answer within {within:?}")))
        })?;
        if let Some(core) = self.core.upgrade() {
            core.mix_in(reply, probe, asked);
        }
        Ok(())
    }

    fn name(&self) -> String {
        self.core.upgrade().map(|core| core.name().to_owned()).unwrap_or_default()
    }
}
