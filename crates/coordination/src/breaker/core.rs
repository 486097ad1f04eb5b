//! A breaker in memory: what local and hybrid ones decide with.

use std::{
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
    time::Duration,
};

use commonhold_core::Result;

use super::{
    error::BreakerError,
    machine::{Counts, Machine, Report, State, Status, Verdict},
    mix::{Mix, Mixing, SharedProbe},
    settings::{Rules, Settings},
    watch::{Event, Outcome, Watch},
};
use crate::limit::clock::Time;

/// About how long a probe takes to come from the store, in microseconds.
const PROBE_COMES: i64 = 1_000;

pub(super) struct Core {
    name: Box<str>,
    pub(super) rules: Rules,
    /// From how many microseconds on a call is slow.
    slow_call: Option<i64>,
    clock: Time,
    /// The generation times two, and one while closed: what most calls look at, without a lock.
    word: AtomicI64,
    inner: Mutex<Inner>,
    cancelled: AtomicU64,
    pub(super) watch: Watch,
    /// Of a hybrid breaker.
    pub(super) mixing: Option<Mixing>,
}

#[derive(Debug, Default)]
pub(super) struct Inner {
    pub(super) machine: Machine,
    pub(super) mix: Mix,
    totals: Totals,
    last_probe: i64,
}

/// What an instance has counted since its breaker was made or reset.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Totals {
    /// Calls that came back.
    pub calls: Counts,
    /// Calls that were not let through.
    pub refused: u64,
    /// Calls that were let through and dropped before they came back.
    pub cancelled: u64,
    /// Calls that came back too late to count: in another generation than they began in.
    pub late: u64,
    /// How often it opened.
    pub openings: u64,
}

/// A call that may be made. [Say](Self::success) how it ended; dropped without that, it counts neither way, and the place
/// of a probe is free again.
#[must_use = "a permit that is dropped counts as a call that was cancelled"]
pub struct Permit {
    core: Arc<Core>,
    generation: i64,
    probe: ProbeOf,
    begun: i64,
    settled: bool,
}

#[derive(Debug, Clone, Copy)]
enum ProbeOf {
    None,
    Local(i64),
    /// Of the shared breaker that a hybrid one follows.
    Shared(SharedProbe),
}

impl Permit {
    /// The call succeeded. If it was slow, that counts too.
    pub fn success(self) {
        self.settle(false);
    }

    /// The call failed.
    pub fn failure(self) {
        self.settle(true);
    }

    pub(super) fn settle(mut self, failed: bool) {
        self.settled = true;
        self.core.settle(&self, failed);
    }

    /// Whether it is one of the few calls that are let through while half-open.
    pub fn is_probe(&self) -> bool {
        !matches!(self.probe, ProbeOf::None)
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if !self.settled {
            self.core.cancel(self.probe);
        }
    }
}

impl fmt::Debug for Permit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Permit")
            .field("breaker", &self.core.name)
            .field("is_probe", &self.is_probe())
            .finish()
    }
}

impl Core {
    /// # Errors
    /// `InvalidConfig` naming the setting that is out of its range.
    pub(super) fn new(name: &str, settings: &Settings, clock: Time, mixing: Option<Mixing>) -> Result<Self> {
        let form = if mixing.is_some() { "hybrid" } else { "local" };
        let slow_call = settings.slow_call();
        let core = Self {
            name: name.into(),
            rules: Rules { reporters: 1, ..settings.rules()? },
            slow_call: slow_call.map(|slow| i64::try_from(slow.as_micros()).unwrap_or(i64::MAX)),
            clock,
            word: AtomicI64::new(0),
            inner: Mutex::default(),
            cancelled: AtomicU64::new(0),
            watch: Watch::new(name, form),
            mixing,
        };
        core.publish(&core.lock().machine);
        Ok(core)
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    #[inline]
    pub(super) fn acquire(self: &Arc<Self>) -> Result<Permit, BreakerError> {
        let word = self.word.load(Ordering::Acquire);
        if word & 1 == 0 {
            return self.acquire_unless_closed();
        }
        Ok(self.permit(word >> 1, ProbeOf::None))
    }

    #[inline]
    fn permit(self: &Arc<Self>, generation: i64, probe: ProbeOf) -> Permit {
        let begun = if self.slow_call.is_some() { self.now() } else { 0 };
        Permit { core: Arc::clone(self), generation, probe, begun, settled: false }
    }

    #[cold]
    fn acquire_unless_closed(self: &Arc<Self>) -> Result<Permit, BreakerError> {
        let now = self.now();
        let mut inner = self.lock();
        if inner.mix.leads(&inner.machine) {
            if let Some(probe) = inner.mix.take_probe(now) {
                let generation = inner.machine.generation;
                drop(inner);
                return Ok(self.permit(generation, ProbeOf::Shared(probe)));
            }
            let is_isolated = inner.machine.state == State::Isolated;
            if !is_isolated && inner.mix.want_probe(now) {
                self.wake();
            }
            let left = inner.mix.left(now).max(PROBE_COMES);
            let refused = BreakerError::refused(inner.machine.state, left);
            return Err(self.refuse(&mut inner, refused));
        }
        inner.last_probe += 1;
        let id = inner.last_probe;
        match self.change(&mut inner, |machine| machine.acquire(&self.rules, id, now)) {
            Verdict::Refuse => {
                let left = inner.machine.left(&self.rules, now);
                let refused = BreakerError::refused(inner.machine.state, left);
                Err(self.refuse(&mut inner, refused))
            }
            verdict => {
                let generation = inner.machine.generation;
                drop(inner);
                let probe = if verdict == Verdict::Probe { ProbeOf::Local(id) } else { ProbeOf::None };
                Ok(self.permit(generation, probe))
            }
        }
    }

    fn refuse(&self, inner: &mut Inner, refused: BreakerError) -> BreakerError {
        inner.totals.refused += 1;
        self.watch.count(Outcome::Refused);
        refused
    }

    fn settle(&self, permit: &Permit, failed: bool) {
        let now = self.now();
        let is_slow = self.slow_call.is_some_and(|slow| now - permit.begun >= slow);
        let counts = Counts { calls: 1, failures: failed.into(), slow: is_slow.into() };
        let streak = i64::from(failed);
        let mut inner = self.lock();
        inner.totals.calls.add(counts);
        let counted = match permit.probe {
            ProbeOf::Shared(probe) => {
                inner.mix.probe_ended(probe, Some(counts));
                self.wake();
                true
            }
            ProbeOf::None | ProbeOf::Local(_) => {
                let probe = if let ProbeOf::Local(id) = permit.probe { id } else { 0 };
                let report = Report { generation: permit.generation, probe, reporter: 0, counts, streak };
                let counted = self.change(&mut inner, |machine| machine.report(&self.rules, &report, now));
                if counted && self.mixing.is_some() {
                    inner.mix.count(counts);
                }
                counted
            }
        };
        inner.totals.late += u64::from(!counted);
        drop(inner);
        self.watch.count(if counted { Outcome::of(failed) } else { Outcome::Late });
        self.watch.count_slow(counts);
    }

    fn cancel(&self, probe: ProbeOf) {
        self.cancelled.fetch_add(1, Ordering::Relaxed);
        self.watch.count(Outcome::Cancelled);
        match probe {
            ProbeOf::None => {}
            ProbeOf::Local(id) => {
                let now = self.now();
                self.lock().machine.release(&self.rules, id, now);
            }
            ProbeOf::Shared(probe) => {
                self.lock().mix.probe_ended(probe, None);
                self.wake();
            }
        }
    }

    /// Does something to the machine, and tells of it if the state changed.
    pub(super) fn change<T>(&self, inner: &mut Inner, change: impl FnOnce(&mut Machine) -> T) -> T {
        let (generation, from) = (inner.machine.generation, inner.machine.state);
        let changed = change(&mut inner.machine);
        let machine = &inner.machine;
        if machine.generation != generation {
            self.publish(machine);
            self.watch.turned(Event { from, to: machine.state });
            if machine.state == State::Open {
                inner.totals.openings += 1;
                self.wake();
            }
        }
        changed
    }

    fn publish(&self, machine: &Machine) {
        let is_closed = i64::from(machine.state == State::Closed);
        self.word.store(machine.generation * 2 + is_closed, Ordering::Release);
    }

    /// Lets the shared state be mixed in at once.
    fn wake(&self) {
        if let Some(mixing) = &self.mixing {
            mixing.wake();
        }
    }

    pub(super) fn status(&self) -> Status {
        let now = self.now();
        let inner = self.lock();
        let mut status = inner.machine.status(&self.rules, now);
        if inner.mix.leads(&inner.machine) {
            status.retry_after = Duration::from_micros(inner.mix.left(now).unsigned_abs());
        }
        status
    }

    pub(super) fn totals(&self) -> Totals {
        Totals { cancelled: self.cancelled.load(Ordering::Relaxed), ..self.lock().totals }
    }

    pub(super) fn forget_totals(&self) {
        self.lock().totals = Totals::default();
        self.cancelled.store(0, Ordering::Relaxed);
    }

    #[inline]
    pub(super) fn now(&self) -> i64 {
        i64::try_from(self.clock.micros()).unwrap_or(i64::MAX)
    }

    // A std mutex: it is held for a few steps and never across an await.
    pub(super) fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Core {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.status().state;
        f.debug_struct("Core").field("name", &self.name).field("state", &state).finish_non_exhaustive()
    }
}
