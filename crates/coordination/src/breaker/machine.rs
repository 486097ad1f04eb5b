//! The state machine of a circuit breaker: pure, the same in memory and in a store.

use std::{collections::VecDeque, fmt, time::Duration};

use super::settings::Rules;

/// A window has this many tenths, and the one that is filling.
pub(super) const TENTHS: i64 = 10;
pub(super) const MOST_BUCKETS: usize = TENTHS as usize + 1;
/// No count goes beyond this, so that products of counts and rates stay exact in scripts.
pub(super) const MOST: i64 = 1_000_000_000;

/// Whether calls are let through.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum State {
    /// All of them.
    #[default]
    Closed,
    /// None, until the wait is over.
    Open,
    /// A few, to see how they fare.
    HalfOpen,
    /// None, until somebody says otherwise.
    Isolated,
}

impl State {
    /// `closed`, `open`, `half-open` or `isolated`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Open => "open",
            Self::HalfOpen => "half-open",
            Self::Isolated => "isolated",
        }
    }

    pub(super) fn of(name: &str) -> Option<Self> {
        [Self::Closed, Self::Open, Self::HalfOpen, Self::Isolated]
            .into_iter()
            .find(|state| state.name() == name)
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// All that a breaker knows. Times are microseconds.
///
/// No clock is trusted to go forward: a term never lasts longer than its length from now, and a window whose newest
/// tenth lies more than a window ahead is begun anew.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Machine {
    /// Rises with each change of the state; results of calls that began in an earlier one count no more.
    pub(super) generation: i64,
    pub(super) state: State,
    /// While open: until when.
    pub(super) until: i64,
    /// While half-open: how many probes have succeeded.
    pub(super) passed: i64,
    /// How often it opened since it was closed.
    pub(super) trips: i64,
    /// How many calls failed one after the other.
    pub(super) streak: i64,
    /// The probes that are under way.
    pub(super) probes: Vec<Probe>,
    /// The last instances that have seen something bad, the latest last; no more than are needed.
    pub(super) reporters: Vec<Reporter>,
    /// The window, the newest tenth last.
    pub(super) buckets: VecDeque<Bucket>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Probe {
    pub(super) id: i64,
    pub(super) expires: i64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Reporter {
    pub(super) id: i64,
    /// The tenth in which it last saw something bad.
    pub(super) serial: i64,
    /// Whether a failure of its is among those one after the other.
    pub(super) in_streak: bool,
}

/// A tenth of the window.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Bucket {
    pub(super) serial: i64,
    pub(super) counts: Counts,
}

/// Calls and how they ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// All of them.
    pub calls: u64,
    /// Those that failed.
    pub failures: u64,
    /// Those that were slow, whether they failed or not.
    pub slow: u64,
}

impl Counts {
    pub(super) fn add(&mut self, other: Self) {
        let add = |a: &mut u64, b: u64| *a = a.saturating_add(b);
        add(&mut self.calls, other.calls);
        add(&mut self.failures, other.failures);
        add(&mut self.slow, other.slow);
    }

    fn capped(self) -> Self {
        let cap = |n: u64| n.min(MOST as u64);
        Self { calls: cap(self.calls), failures: cap(self.failures), slow: cap(self.slow) }
    }
}

/// What to do with a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    Pass,
    /// It goes through as one of the probes.
    Probe,
    Refuse,
}

/// How calls ended that began in one generation: one call, or those of one instance since its last report.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Report {
    pub(super) generation: i64,
    /// The probe that it was; 0 for none.
    pub(super) probe: i64,
    /// The instance.
    pub(super) reporter: i64,
    pub(super) counts: Counts,
    /// How many of them failed one after the other at the end.
    pub(super) streak: i64,
}

/// What is done by hand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    /// As if it had tripped; isolated, it stays so.
    Open,
    /// Unless it is closed already.
    Close,
    Isolate,
    /// Close and forget.
    Reset,
}

impl Machine {
    /// Decides on a call. A probe gets this id, and the same one if it asks again.
    pub(super) fn acquire(&mut self, rules: &Rules, id: i64, now: i64) -> Verdict {
        self.look(rules, now);
        if self.state == State::Open && self.until <= now {
            self.turn(State::HalfOpen, now);
        }
        match self.state {
            State::Closed => Verdict::Pass,
            State::Open | State::Isolated => Verdict::Refuse,
            State::HalfOpen if self.probes.iter().any(|probe| probe.id == id) => Verdict::Probe,
            State::HalfOpen if self.has_room(rules) => {
                self.probes.push(Probe { id, expires: now + rules.lease });
                Verdict::Probe
            }
            State::HalfOpen => Verdict::Refuse,
        }
    }

    /// Takes results, and says whether they count.
    pub(super) fn report(&mut self, rules: &Rules, report: &Report, now: i64) -> bool {
        self.look(rules, now);
        if report.generation != self.generation || report.counts.calls == 0 {
            return false;
        }
        match self.state {
            State::Closed => {
                self.count(rules, report, now);
                if self.is_bad(rules) {
                    self.open(rules, now);
                }
                true
            }
            State::HalfOpen => {
                if !self.remove_probe(report.probe) {
                    return false;
                }
                if report.counts.failures > 0 || (rules.slow_rate > 0 && report.counts.slow > 0) {
                    self.open(rules, now);
                } else {
                    self.passed += 1;
                    if self.passed >= rules.probes {
                        self.turn(State::Closed, now);
                    }
                }
                true
            }
            State::Open | State::Isolated => false,
        }
    }

    /// Gives back the place of a probe that was not made.
    pub(super) fn release(&mut self, rules: &Rules, probe: i64, now: i64) -> bool {
        self.look(rules, now);
        self.remove_probe(probe)
    }

    pub(super) fn order(&mut self, rules: &Rules, order: Order, now: i64) {
        self.look(rules, now);
        match order {
            Order::Open | Order::Isolate if self.state == State::Isolated => {}
            Order::Open => self.open(rules, now),
            Order::Close if self.state == State::Closed => {}
            Order::Close | Order::Reset => self.turn(State::Closed, now),
            Order::Isolate => self.turn(State::Isolated, now),
        }
    }

    /// How long until a call may be let through; nothing while isolated.
    pub(super) fn left(&self, rules: &Rules, now: i64) -> i64 {
        match self.state {
            State::Closed | State::Isolated => 0,
            State::Open => (self.until - now).max(0),
            State::HalfOpen if self.has_room(rules) => 0,
            State::HalfOpen => {
                let first = self.probes.iter().map(|probe| probe.expires).min();
                first.map_or(0, |first| (first - now).max(0))
            }
        }
    }

    /// What is in the window.
    pub(super) fn counts(&self) -> Counts {
        let mut sum = Counts::default();
        self.buckets.iter().for_each(|bucket| sum.add(bucket.counts));
        sum
    }

    /// Goes into another state: what was known of the one before is forgotten.
    pub(super) fn turn(&mut self, state: State, now: i64) {
        self.generation = now.max(self.generation + 1);
        self.state = state;
        self.until = 0;
        self.passed = 0;
        self.streak = 0;
        self.probes.clear();
        self.reporters.clear();
        self.buckets.clear();
        if state == State::Closed {
            self.trips = 0;
        }
    }

    fn open(&mut self, rules: &Rules, now: i64) {
        self.trips = (self.trips + 1).min(MOST);
        self.turn(State::Open, now);
        self.until = now + rules.wait_after(self.trips);
    }

    /// Sees that time has passed, or stepped back.
    pub(super) fn look(&mut self, rules: &Rules, now: i64) {
        match self.state {
            State::Open => self.until = self.until.min(now + rules.wait_after(self.trips)),
            State::HalfOpen => {
                // It may have been written under other rules.
                self.passed = self.passed.min(rules.probes - 1);
                for probe in &mut self.probes {
                    probe.expires = probe.expires.min(now + rules.lease);
                }
                self.probes.retain(|probe| probe.expires > now);
            }
            State::Closed | State::Isolated => {}
        }
    }

    /// No more probes than are needed.
    fn has_room(&self, rules: &Rules) -> bool {
        self.probes.len() as i64 + self.passed < rules.probes
    }

    fn remove_probe(&mut self, id: i64) -> bool {
        let place = self.probes.iter().position(|probe| probe.id == id);
        place.map(|place| self.probes.remove(place)).is_some()
    }

    /// Says which tenth it is.
    fn slide(&mut self, rules: &Rules, now: i64) -> i64 {
        let newest = self.buckets.back().copied().unwrap_or_default();
        if rules.calls > 0 {
            let tenth = (rules.calls + TENTHS - 1) / TENTHS;
            newest.serial + i64::from(newest.counts.calls as i64 >= tenth)
        } else if rules.width > 0 {
            let serial = now / rules.width;
            if newest.serial - serial > TENTHS {
                self.buckets.clear();
                self.reporters.clear();
                serial
            } else {
                serial.max(newest.serial)
            }
        } else {
            0
        }
    }

    /// Forgets what is over, if this is the newest tenth.
    fn forget(&mut self, rules: &Rules, serial: i64) {
        if rules.calls > 0 {
            let mut held = self.counts().calls as i64;
            while let Some(oldest) = self.buckets.front() {
                held -= oldest.counts.calls as i64;
                if held < rules.calls {
                    break;
                }
                self.buckets.pop_front();
            }
        } else {
            self.buckets.retain(|bucket| (serial - TENTHS..=serial).contains(&bucket.serial));
        }
        // It may have been written under other rules.
        let surplus = self.buckets.len().saturating_sub(MOST_BUCKETS);
        self.buckets.drain(..surplus);
        // Each may have filled a tenth of calls.
        let kept = TENTHS.max(rules.reporters);
        self.reporters.retain(|reporter| reporter.serial >= serial - kept);
    }

    fn count(&mut self, rules: &Rules, report: &Report, now: i64) {
        let serial = self.slide(rules, now);
        let Counts { calls, failures, slow } = report.counts;
        if rules.width > 0 || rules.calls > 0 {
            match self.buckets.back_mut() {
                Some(newest) if newest.serial == serial => {
                    newest.counts.add(report.counts);
                    newest.counts = newest.counts.capped();
                }
                _ => self.buckets.push_back(Bucket { serial, counts: report.counts.capped() }),
            }
        }
        if calls > failures {
            self.streak = 0;
            self.reporters.iter_mut().for_each(|reporter| reporter.in_streak = false);
        }
        self.streak = (self.streak + report.streak).min(MOST);
        if rules.reporters > 1 && (failures > 0 || slow > 0) {
            self.reporters.retain(|reporter| reporter.id != report.reporter);
            self.reporters.push(Reporter { id: report.reporter, serial, in_streak: report.streak > 0 });
            // The latest are enough: all in the streak come after all others.
            let surplus = self.reporters.len().saturating_sub(rules.reporters as usize);
            self.reporters.drain(..surplus);
        }
        self.forget(rules, serial);
    }

    /// Whether there is reason to open.
    fn is_bad(&self, rules: &Rules) -> bool {
        let enough = |reporters: usize| rules.reporters <= 1 || reporters as i64 >= rules.reporters;
        if rules.threshold > 0
            && self.streak >= rules.threshold
            && enough(self.reporters.iter().filter(|reporter| reporter.in_streak).count())
        {
            return true;
        }
        if (rules.width == 0 && rules.calls == 0) || !enough(self.reporters.len()) {
            return false;
        }
        let Counts { calls, failures, slow } = self.counts();
        let reached = |count: u64, rate: i64| rate > 0 && count as i64 * 10_000 >= rate * calls as i64;
        calls as i64 >= rules.minimum
            && (reached(failures, rules.failure_rate) || reached(slow, rules.slow_rate))
    }
}

/// What a breaker knows, as people want it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Status {
    /// Whether calls are let through.
    pub state: State,
    /// How long until a call may be let through: zero if it may be, and while isolated, which has no end.
    pub retry_after: Duration,
    /// How often it opened since it was last closed.
    pub trips: u64,
    /// How many calls failed one after the other, while closed.
    pub consecutive_failures: u64,
    /// What is in the window, while closed; nothing where no rate is asked for.
    pub window: Counts,
    /// Probes that are under way.
    pub probes: usize,
    /// How many instances have seen failures or slow calls lately, up to
    /// [`min_reporters`](super::Settings::min_reporters) and if that is not 1.
    pub reporters: usize,
}

impl Machine {
    pub(super) fn status(&self, rules: &Rules, now: i64) -> Status {
        let mut machine = self.clone();
        machine.look(rules, now);
        let serial = machine.slide(rules, now);
        machine.forget(rules, serial);
        Status {
            state: machine.state,
            retry_after: Duration::from_micros(machine.left(rules, now).unsigned_abs()),
            trips: machine.trips.unsigned_abs(),
            consecutive_failures: machine.streak.unsigned_abs(),
            window: machine.counts(),
            probes: machine.probes.len(),
            reporters: machine.reporters.len(),
        }
    }
}
