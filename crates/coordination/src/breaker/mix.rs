//! How the state of a breaker in memory and the shared state come together.

use std::sync::Arc;

use tokio::sync::Notify;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{
    core::Core,
    machine::{Counts, Machine, Report, State},
    transition::{Reply, Said},
};

/// The way from a breaker in memory to the task that asks the store. The task ends when it is dropped.
#[derive(Debug)]
pub(super) struct Mixing {
    pub(super) wake: Arc<Notify>,
    _ends: DropGuard,
}

impl Mixing {
    /// And what tells that it was dropped.
    pub(super) fn new() -> (Self, CancellationToken) {
        let ended = CancellationToken::new();
        (Self { wake: Arc::default(), _ends: ended.clone().drop_guard() }, ended)
    }

    pub(super) fn wake(&self) {
        self.wake.notify_one();
    }
}

/// What a hybrid breaker knows of the shared one.
#[derive(Debug, Default)]
pub(super) struct Mix {
    /// The generation of the shared state, once it was seen.
    generation: Option<i64>,
    /// When that was asked for.
    asked: i64,
    /// What was counted since it was last told.
    pending: Counts,
    /// How many of those failed one after the other at the end.
    streak: u64,
    led: Option<Led>,
    /// Probes for the shared one that have ended, not told yet.
    ended: Vec<(SharedProbe, Option<Counts>)>,
    is_probe_wanted: bool,
}

/// The breaker in memory does as the shared one says.
#[derive(Debug)]
struct Led {
    /// The generation in memory that this began.
    generation: i64,
    /// Until when there is no call to be made.
    until: i64,
    /// The store does not answer: memory decides alone.
    is_alone: bool,
    /// Those that are leased and not used yet.
    probes: Vec<SharedProbe>,
}

/// A probe that the shared breaker has leased to this instance.
#[derive(Debug, Clone, Copy)]
pub(super) struct SharedProbe {
    pub(super) generation: i64,
    pub(super) id: i64,
    /// On the clock of this instance.
    pub(super) expires: i64,
}

impl Mix {
    /// Whether the shared state decides.
    pub(super) fn leads(&self, machine: &Machine) -> bool {
        self.led.as_ref().is_some_and(|led| !led.is_alone && led.generation == machine.generation)
    }

    pub(super) fn left(&self, now: i64) -> i64 {
        self.led.as_ref().map_or(0, |led| (led.until - now).max(0))
    }

    pub(super) fn take_probe(&mut self, now: i64) -> Option<SharedProbe> {
        let led = self.led.as_mut()?;
        led.probes.retain(|probe| probe.expires > now);
        led.probes.pop()
    }

    /// Says whether the store is to be asked for a probe now.
    pub(super) fn want_probe(&mut self, now: i64) -> bool {
        let is_time = self.led.as_ref().is_some_and(|led| led.until <= now);
        let is_new = is_time && !self.is_probe_wanted;
        self.is_probe_wanted |= is_time;
        is_new
    }

    pub(super) fn is_probe_wanted(&mut self) -> bool {
        std::mem::take(&mut self.is_probe_wanted)
    }

    pub(super) fn probe_ended(&mut self, probe: SharedProbe, counts: Option<Counts>) {
        self.ended.push((probe, counts));
    }

    /// The first that is to be told, until [it was](Self::told): told again, it does not count again.
    pub(super) fn first_ended(&mut self, now: i64) -> Option<(SharedProbe, Option<Counts>)> {
        self.ended.retain(|(probe, _)| probe.expires > now);
        self.ended.first().copied()
    }

    pub(super) fn told(&mut self, told: SharedProbe) {
        self.ended.retain(|(probe, _)| probe.id != told.id);
    }

    pub(super) fn count(&mut self, counts: Counts) {
        self.pending.add(counts);
        self.streak = if counts.failures > 0 { self.streak.saturating_add(1) } else { 0 };
    }

    /// What is to be told, which is told once: what the store does not take is old when it is back.
    pub(super) fn take_report(&mut self, reporter: i64) -> Report {
        let (counts, streak) = (std::mem::take(&mut self.pending), std::mem::take(&mut self.streak));
        let streak = i64::try_from(streak).unwrap_or(i64::MAX).min(super::machine::MOST);
        match self.generation {
            Some(generation) => Report { generation, probe: 0, reporter, counts, streak },
            None => Report::default(),
        }
    }
}

impl Core {
    /// Takes over what the store said, asked at this time in memory; if it leased a probe, it has this id and lasts until
    /// then.
    pub(super) fn mix_in(&self, reply: Reply, probe: Option<(i64, i64)>, now: i64) {
        let mut guard = self.lock();
        let inner = &mut *guard;
        if now < inner.mix.asked {
            return;
        }
        inner.mix.asked = now;
        let known = inner.mix.generation.replace(reply.generation);
        let is_new = known.is_some_and(|known| known != reply.generation);
        if is_new {
            inner.mix.pending = Counts::default();
            inner.mix.streak = 0;
        }
        let led = inner.mix.led.take();
        let follows = led.as_ref().is_some_and(|led| led.generation == inner.machine.generation);
        if inner.machine.state == State::Isolated && !follows {
            // By hand, here.
            return;
        }
        if reply.state == State::Closed {
            let was_led = follows || (led.is_some() && inner.machine.state == State::HalfOpen);
            if was_led || (is_new && inner.machine.state == State::Closed) {
                self.change(inner, |machine| machine.turn(State::Closed, now));
            }
            return;
        }
        let state = if reply.state == State::Isolated { State::Isolated } else { State::Open };
        let mut probes = led.map_or_else(Vec::new, |led| led.probes);
        if !follows || inner.machine.state != state {
            self.change(inner, |machine| machine.turn(state, now));
        }
        let until = now + reply.left;
        // Alone, it goes by this.
        inner.machine.until = until;
        probes.retain(|probe| probe.generation == reply.generation);
        if let (Said::Probe, Some((id, expires))) = (reply.said, probe) {
            probes.push(SharedProbe { generation: reply.generation, id, expires });
        }
        let generation = inner.machine.generation;
        inner.mix.led = Some(Led { generation, until, is_alone: false, probes });
    }

    /// The store did not answer.
    pub(super) fn go_on_alone(&self) {
        if let Some(led) = &mut self.lock().mix.led {
            led.is_alone = true;
        }
    }
}
