//! What can be done to a breaker in a store.

use std::time::Duration;

use commonhold_core::{Expiry, Result, ScriptCall, Step, Timestamp, Transition};

use super::{
    machine::{Machine, Order, Report, State, Verdict},
    settings::Rules,
    text::OF,
};
use crate::state::{Fields, corrupt, micros};

/// How long a state outlives its last change. It is as if there had never been one then, but for results of calls that
/// began two days ago and more.
const REMEMBERED: i64 = 2 * 24 * 60 * 60 * 1_000_000;

/// Something done to a breaker under these rules.
#[derive(Debug, Clone, Copy)]
pub(super) struct Command {
    pub(super) rules: Rules,
    pub(super) what: What,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum What {
    /// Decides on a call, which has this id should it be a probe.
    Acquire(i64),
    /// Takes results; those of no calls only ask for the state.
    Report(Report),
    /// Gives back the place of a probe.
    Release(i64),
    Order(Order),
    /// Changes nothing; replies the time in microseconds and the state.
    Show,
}

/// What all but `Show` reply: what came of it, and the state after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Reply {
    pub(super) said: Said,
    pub(super) generation: i64,
    pub(super) state: State,
    /// How long until a call may be let through, in microseconds.
    pub(super) left: i64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Said {
    Pass,
    Probe,
    Refuse,
    /// It was done.
    Done,
    /// It came too late to count.
    Late,
}

impl Said {
    const fn word(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Probe => "probe",
            Self::Refuse => "refuse",
            Self::Done => "done",
            Self::Late => "late",
        }
    }
}

impl Transition for Command {
    fn name(&self) -> &'static str {
        "breaker"
    }

    fn apply(&self, state: Option<&[u8]>, now: Timestamp) -> Result<Step> {
        let now = micros(now).max(0);
        let rules = &self.rules;
        let mut machine = Machine::parse(state)?;
        let done = |counts| if counts { Said::Done } else { Said::Late };
        let said = match self.what {
            What::Acquire(id) => match machine.acquire(rules, id, now) {
                Verdict::Pass => Said::Pass,
                Verdict::Probe => Said::Probe,
                Verdict::Refuse => Said::Refuse,
            },
            What::Report(report) => done(machine.report(rules, &report, now)),
            What::Release(probe) => done(machine.release(rules, probe, now)),
            What::Order(order) => {
                machine.order(rules, order, now);
                Said::Done
            }
            What::Show => return Ok(Step::nothing(format!("{now} {}", machine.write()))),
        };
        let (generation, left) = (machine.generation, machine.left(rules, now));
        let reply = format!("{} {generation} {} {left}", said.word(), machine.state);
        let text = machine.write();
        if state.unwrap_or(b"0 closed 0 0 0 0") == text.as_bytes() {
            return Ok(Step::nothing(reply));
        }
        let expiry = match machine.state {
            State::Isolated => Expiry::Never,
            _ => Expiry::After(Duration::from_micros((REMEMBERED + left).unsigned_abs())),
        };
        Ok(Step::put(text, expiry, reply))
    }

    fn script(&self) -> Option<ScriptCall> {
        let (command, args): (_, &[i64]) = match &self.what {
            What::Acquire(id) => ("acquire", &[*id]),
            What::Report(report) => {
                let counts = [report.counts.calls, report.counts.failures, report.counts.slow];
                let [calls, failures, slow] = counts.map(|count| i64::try_from(count).unwrap_or(i64::MAX));
                let args =
                    [report.generation, report.probe, report.reporter, calls, failures, slow, report.streak];
                return Some(self.call("report", &args));
            }
            What::Release(id) => ("release", &[*id]),
            What::Order(Order::Open) => ("open", &[]),
            What::Order(Order::Close) => ("close", &[]),
            What::Order(Order::Isolate) => ("isolate", &[]),
            What::Order(Order::Reset) => ("reset", &[]),
            What::Show => ("show", &[]),
        };
        Some(self.call(command, args))
    }
}

impl Command {
    fn call(&self, command: &'static str, args: &[i64]) -> ScriptCall {
        ScriptCall::new(include_str!("breaker.lua")).arg(command).args(self.rules.args()).args(args)
    }
}

impl Reply {
    pub(super) fn decode(reply: &[u8]) -> Result<Self> {
        const OF: &str = "an answer of a circuit breaker";
        let mut fields = Fields::new(OF, reply)?;
        let word = fields.word()?;
        let all = [Said::Pass, Said::Probe, Said::Refuse, Said::Done, Said::Late];
        let reply = Self {
            said: all.into_iter().find(|said| said.word() == word).ok_or_else(|| corrupt(OF))?,
            generation: fields.integer()?,
            state: State::of(fields.word()?).ok_or_else(|| corrupt(OF))?,
            left: fields.integer()?,
        };
        fields.end()?;
        Ok(reply)
    }
}

/// The time and the state in the reply to `Show`.
pub(super) fn decode_shown(reply: &[u8]) -> Result<(i64, Machine)> {
    let space = reply.iter().position(|&byte| byte == b' ').unwrap_or(reply.len());
    let (now, state) = reply.split_at(space);
    Ok((Fields::new(OF, now)?.integer()?, Machine::parse(state.get(1..))?))
}

#[cfg(test)]
mod tests {
    use commonhold_core::ErrorKind;
    use proptest::prelude::*;

    use super::{
        super::{
            machine::Counts,
            properties,
            settings::{Settings, Window},
        },
        *,
    };
    use crate::twin::Twin;

    /// The twin lives in Redis, whose key must not expire for real.
    const START: i64 = 1_800_000_000 * 1_000_000;

    fn at(micros: i64) -> Timestamp {
        Timestamp::from_nanos(micros * 1_000)
    }

    fn what() -> impl Strategy<Value = What> {
        let order = prop::sample::select(vec![Order::Open, Order::Close, Order::Isolate, Order::Reset]);
        prop_oneof![
            6 => (1..5_i64).prop_map(What::Acquire),
            12 => properties::reports().prop_map(What::Report),
            1 => (1..5_i64).prop_map(What::Release),
            1 => order.prop_map(What::Order),
            1 => Just(What::Show),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(96))]

        #[test]
        fn the_script_does_what_the_transitions_do(
            rules in properties::rules(),
            commands in prop::collection::vec((properties::steps(), what()), 1..60),
        ) {
            let (mut twin, mut now, mut generation) = (Twin::new(), START, 0);
            for (step, mut what) in commands {
                now += step;
                // Mostly results that are not late.
                if let What::Report(report) = &mut what {
                    report.generation += generation;
                }
                let reply = twin.apply(&Command { rules, what }, at(now)).unwrap();
                if let Ok(reply) = Reply::decode(&reply) {
                    generation = reply.generation;
                }
            }
        }

        #[test]
        fn on_any_state_the_script_does_what_the_transitions_do(
            rules in properties::rules(),
            machine in properties::machines(START),
            commands in prop::collection::vec((properties::steps(), what()), 1..4),
        ) {
            let (mut twin, mut now) = (Twin::new(), START);
            twin.put(machine.write().as_bytes());
            for (step, mut what) in commands {
                now += step;
                if let What::Report(report) = &mut what {
                    report.generation += machine.generation;
                }
                let _ = twin.apply(&Command { rules, what }, at(now));
            }
        }

        #[test]
        fn what_is_written_is_read(machine in properties::machines(START)) {
            prop_assert_eq!(Machine::parse(Some(machine.write().as_bytes())).unwrap(), machine);
        }
    }

    #[test]
    fn what_is_no_state_is_corrupt() {
        let rules = Settings::new().failure_threshold(5).rules().unwrap();
        let command = Command { rules, what: What::Acquire(1) };
        let many = |of: &str, number| format!("0 closed 0 0 0 0{}", of.repeat(number));
        let garbage = [
            "",
            "x",
            " ",
            "-1 closed 0 0 0 0",
            "0 closed 0 0 0",
            "0 closed 0 0 0 0 ",
            "0 shut 0 0 0 0",
            "0 closed 0 0 0 0 P",
            "0 closed 0 0 0 0 P 1",
            "0 closed 0 0 0 0 R 1 1 2",
            "0 closed 0 0 0 0 R 1 1 00",
            "0 closed 0 0 0 0 R 1 1 1 P 1 1",
            "0 closed 0 0 0 0 B 1 1 1 1 R 1 1 1",
            "0 closed 0 0 0 0 B 1 1 1",
            "0 closed 0 0 0 0 B 1 1 1 1000000001",
            "0 closed 0 1000000001 0 0",
            "9007199254740992 closed 0 0 0 0",
            "0 closed 00000000000000000 0 0 0",
            "0 cl\u{f6}sed 0 0 0 0",
            "0  closed 0 0 0 0",
            "0 half-open 0 0 0 0\n",
        ]
        .map(String::from);
        let lists = [many(" P 1 1", 65), many(" R 1 1 1", 17), many(" B 1 1 1 1", 12)];
        for garbage in garbage.into_iter().chain(lists) {
            let mut twin = Twin::new();
            twin.put(garbage.as_bytes());
            assert_eq!(twin.apply(&command, at(START)), Err(ErrorKind::Corrupt), "{garbage:?}");
        }
    }

    #[test]
    fn both_open_at_the_rate_itself() {
        let settings = Settings::new().minimum_calls(4).window(Window::Calls(10));
        let slow = settings.clone().slow_call_rate(Duration::from_secs(1), 0.5);
        let half = Counts { calls: 4, failures: 2, slow: 2 };
        for (settings, counts) in
            [(settings.failure_rate(0.5), Counts { slow: 0, ..half }), (slow, Counts { failures: 0, ..half })]
        {
            let report = What::Report(Report { counts, ..Report::default() });
            let reply =
                Twin::new().apply(&Command { rules: settings.rules().unwrap(), what: report }, at(START));
            assert_eq!(Reply::decode(&reply.unwrap()).unwrap().state, State::Open);
        }
    }

    #[test]
    fn a_call_to_a_closed_breaker_writes_nothing() {
        let rules = Settings::new().failure_threshold(5).rules().unwrap();
        let step = Command { rules, what: What::Acquire(1) }.apply(None, at(START)).unwrap();
        assert_eq!(step, Step::nothing("pass 0 closed 0"));
    }
}
