//! What can be done to a lease.

use std::{fmt, time::Duration};

use bytes::Bytes;
use commonhold_core::{Expiry, Result, ScriptCall, Step, Timestamp, Transition};

use super::state::{Holder, OF, State, Term, Waiter};
use crate::state::{Fields, corrupt, micros};

/// How long the greatest token is remembered when nobody holds or waits: the next is greater for two reasons then, for
/// as long as the clock does not step back by more than this.
const REMEMBERED: i64 = 24 * 60 * 60 * 1_000_000;

/// Takes a part if there is room and nobody stands in line before, or stands in line.
///
/// Who holds already is given the same again: an answer that was lost can be asked for once more.
#[derive(Debug, Clone)]
pub(crate) struct Claim {
    pub(crate) owner: String,
    pub(crate) label: String,
    /// How much of the capacity.
    pub(crate) weight: i64,
    pub(crate) capacity: i64,
    /// For how long, in microseconds.
    pub(crate) ttl: i64,
    /// How long a place in the line lasts, in microseconds; 0 is not to stand in line.
    pub(crate) patience: i64,
    /// How many tokens are given at once, each greater by one than the one before.
    pub(crate) tokens: i64,
}

/// What became of a claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Claimed {
    /// Granted, with this as the first token.
    Granted(i64),
    /// Not granted; the first of those who hold goes after this time at the latest, unless it renews.
    Taken(Duration),
}

/// Holds on for another term.
#[derive(Debug, Clone)]
pub(crate) struct Renew {
    pub(crate) owner: String,
    /// For how long from now, in microseconds.
    pub(crate) ttl: i64,
    /// What it says of itself from now on.
    pub(crate) label: String,
    /// The least that the greatest token is to be: others may have given greater ones.
    pub(crate) floor: i64,
}

/// Gives back what this owner holds, and its place in the line.
#[derive(Debug, Clone)]
pub(crate) struct Release {
    pub(crate) owner: String,
    pub(crate) capacity: i64,
}

/// Changes nothing; replies the time in microseconds and what is left of the state.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Show;

/// What became of a release.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Released {
    /// Whether something was held.
    pub(crate) held: bool,
    /// Those who wait and would be given what they want now.
    pub(crate) next: Vec<String>,
}

impl Transition for Claim {
    fn name(&self) -> &'static str {
        "claim"
    }

    fn apply(&self, state: Option<&[u8]>, now: Timestamp) -> Result<Step> {
        let now = micros(now);
        let mut state = State::read(state, now)?;
        let term = Term::new(self.ttl, now);
        if let Some(holder) = state.holders.iter_mut().find(|holder| holder.owner == self.owner) {
            holder.term = term;
            let reply = granted(holder.token);
            return Ok(put(&state, now, reply));
        }
        let place = state.waiters.iter().position(|waiter| waiter.owner == self.owner);
        let ahead = place.unwrap_or(state.waiters.len());
        if ahead == 0 && state.fits(self.weight, self.capacity) {
            let token = now.max(state.last_token + 1);
            state.last_token = token + self.tokens - 1;
            if let Some(place) = place {
                state.waiters.remove(place);
            }
            let (owner, label) = (self.owner.clone(), self.label.clone());
            state.holders.push(Holder { owner, weight: self.weight, token, term, label });
            return Ok(put(&state, now, granted(token)));
        }
        let first = state.holders.iter().map(|holder| holder.term.expires).min().unwrap_or(now);
        let reply = format!("taken {}", first - now);
        if self.patience == 0 {
            return Ok(Step::nothing(reply));
        }
        let term = Term::new(self.patience, now);
        match place.and_then(|place| state.waiters.get_mut(place)) {
            Some(waiter) => waiter.term = term,
            None => {
                state.waiters.push(Waiter { owner: self.owner.clone(), weight: self.weight, term });
            }
        }
        Ok(put(&state, now, reply))
    }

    fn script(&self) -> Option<ScriptCall> {
        let Self { owner, label, weight, capacity, ttl, patience, tokens } = self;
        call(&[&"claim", owner, ttl, label, weight, capacity, patience, tokens])
    }
}

impl Claimed {
    pub(crate) fn decode(reply: &[u8]) -> Result<Self> {
        let mut fields = Fields::new("an answer to a claim", reply)?;
        let (outcome, number) = (fields.word()?, fields.integer()?);
        match outcome {
            "granted" => Ok(Self::Granted(number)),
            "taken" => Ok(Self::Taken(Duration::from_micros(number.unsigned_abs()))),
            _ => Err(corrupt("an answer to a claim")),
        }
    }
}

impl Transition for Renew {
    fn name(&self) -> &'static str {
        "renew"
    }

    /// Replies `1` if it holds on, `0` if it was lost.
    fn apply(&self, state: Option<&[u8]>, now: Timestamp) -> Result<Step> {
        let now = micros(now);
        let mut state = State::read(state, now)?;
        let Some(holder) = state.holders.iter_mut().find(|holder| holder.owner == self.owner) else {
            return Ok(Step::nothing("0"));
        };
        holder.term = Term::new(self.ttl, now);
        holder.label.clone_from(&self.label);
        state.last_token = state.last_token.max(self.floor);
        Ok(put(&state, now, "1".into()))
    }

    fn script(&self) -> Option<ScriptCall> {
        let Self { owner, ttl, label, floor } = self;
        call(&[&"renew", owner, ttl, label, floor])
    }
}

impl Renew {
    pub(crate) fn decode(reply: &[u8]) -> bool {
        reply == b"1"
    }
}

impl Transition for Release {
    fn name(&self) -> &'static str {
        "release"
    }

    /// Replies whether something was held, `0` or `1`, and who would be given what it wants now.
    fn apply(&self, state: Option<&[u8]>, now: Timestamp) -> Result<Step> {
        let now = micros(now);
        let mut state = State::read(state, now)?;
        let (holders, waiters) = (state.holders.len(), state.waiters.len());
        state.holders.retain(|holder| holder.owner != self.owner);
        state.waiters.retain(|waiter| waiter.owner != self.owner);
        let held = state.holders.len() < holders;
        let mut reply = String::from(if held { "1" } else { "0" });
        for owner in state.next(self.capacity) {
            reply.extend([" ", owner]);
        }
        if !held && state.waiters.len() == waiters {
            return Ok(Step::nothing(reply));
        }
        Ok(put(&state, now, reply))
    }

    fn script(&self) -> Option<ScriptCall> {
        call(&[&"release", &self.owner, &self.capacity])
    }
}

impl Released {
    pub(crate) fn decode(reply: &[u8]) -> Self {
        let reply = String::from_utf8_lossy(reply);
        let mut words = reply.split(' ');
        Self { held: words.next() == Some("1"), next: words.map(str::to_owned).collect() }
    }
}

impl Transition for Show {
    fn name(&self) -> &'static str {
        "show"
    }

    fn apply(&self, state: Option<&[u8]>, now: Timestamp) -> Result<Step> {
        let now = micros(now);
        Ok(Step::nothing(format!("{now} {}", State::read(state, now)?.write())))
    }

    fn script(&self) -> Option<ScriptCall> {
        call(&[&"show", &"-"])
    }
}

impl Show {
    /// The time, and the state.
    pub(crate) fn decode(reply: &[u8]) -> Result<(i64, State)> {
        let space = reply.iter().position(|&byte| byte == b' ').unwrap_or(reply.len());
        let (now, state) = reply.split_at(space);
        let now = Fields::new(OF, now)?.integer()?;
        Ok((now, State::parse(state.get(1..).unwrap_or_default())?))
    }
}

/// Whole microseconds.
pub(crate) fn micros_of(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}

fn granted(token: i64) -> String {
    format!("granted {token}")
}

fn put(state: &State, now: i64, reply: String) -> Step {
    let kept = state.expires().map_or(0, |expires| expires - now) + REMEMBERED;
    Step::put(state.write(), Expiry::After(Duration::from_micros(kept.unsigned_abs())), reply)
}

fn call(args: &[&dyn fmt::Display]) -> Option<ScriptCall> {
    let args = args.iter().map(|arg| Bytes::from(arg.to_string())).collect();
    Some(ScriptCall { source: include_str!("lease.lua"), args })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::twin::Twin;

    const SECOND: i64 = 1_000_000;
    /// The twin lives in Redis, whose key must not expire for real.
    const START: i64 = 1_800_000_000 * SECOND;

    fn at(micros: i64) -> Timestamp {
        Timestamp::from_nanos(micros * 1_000)
    }

    fn claim(owner: &str, ttl: i64) -> Claim {
        Claim { owner: owner.into(), label: "=".into(), weight: 1, capacity: 1, ttl, patience: 0, tokens: 1 }
    }

    /// A store of one key.
    #[derive(Default)]
    struct One(Option<Bytes>);

    impl One {
        fn apply(&mut self, transition: &dyn Transition, now: i64) -> Bytes {
            let step = transition.apply(self.0.as_deref(), at(now)).unwrap();
            if let commonhold_core::Action::Put { value, .. } = step.action {
                self.0 = Some(value);
            }
            step.reply
        }

        fn claim(&mut self, claim: &Claim, now: i64) -> Claimed {
            Claimed::decode(&self.apply(claim, now)).unwrap()
        }

        fn release(&mut self, owner: &str, now: i64) -> Released {
            Released::decode(&self.apply(&Release { owner: owner.into(), capacity: 1 }, now))
        }
    }

    #[test]
    fn the_same_claim_again_is_given_the_same_token() {
        let mut lock = One::default();
        assert_eq!(lock.claim(&claim("a", SECOND), START), Claimed::Granted(START));
        assert_eq!(lock.claim(&claim("a", SECOND), START + 5), Claimed::Granted(START));
        assert_eq!(lock.claim(&claim("b", SECOND), START + 5), Claimed::Taken(Duration::from_secs(1)));
    }

    #[test]
    fn who_stands_in_line_goes_before_who_comes_later() {
        let mut lock = One::default();
        let waiting = |owner| Claim { patience: SECOND, ..claim(owner, SECOND) };
        lock.claim(&claim("a", SECOND), 0);
        lock.claim(&waiting("b"), 1);
        lock.claim(&waiting("c"), 2);
        assert_eq!(lock.release("a", 3), Released { held: true, next: vec!["b".into()] });
        assert!(matches!(lock.claim(&claim("d", SECOND), 4), Claimed::Taken(_)));
        assert!(matches!(lock.claim(&waiting("c"), 4), Claimed::Taken(_)));
        assert!(matches!(lock.claim(&waiting("b"), 4), Claimed::Granted(_)));
        lock.release("b", 5);
        // Who waits and is not heard of any more is passed over.
        assert!(matches!(lock.claim(&claim("d", SECOND), SECOND + 4), Claimed::Granted(_)));
    }

    #[test]
    fn after_the_clock_stepped_back_a_lease_lasts_no_longer_than_its_term_from_now() {
        let mut lock = One::default();
        let hour = 3_600 * SECOND;
        let Claimed::Granted(first) = lock.claim(&claim("dead", SECOND), START) else { panic!() };
        let back = START - hour;
        assert_eq!(lock.claim(&claim("b", SECOND), back), Claimed::Taken(Duration::from_secs(1)));
        // Somebody must write for the step to be seen.
        lock.claim(&Claim { patience: 10 * SECOND, ..claim("b", SECOND) }, back);
        let Claimed::Granted(second) = lock.claim(&claim("b", SECOND), back + SECOND) else { panic!() };
        assert_eq!(second, first + 1, "tokens rise though the clock does not");
    }

    #[test]
    fn a_renewal_raises_the_tokens_to_come() {
        let mut lock = One::default();
        lock.claim(&claim("a", SECOND), 0);
        let renew = Renew { owner: "a".into(), ttl: SECOND, label: "=".into(), floor: 1_000 };
        assert!(Renew::decode(&lock.apply(&renew, 1)));
        lock.release("a", 2);
        assert_eq!(lock.claim(&claim("b", SECOND), 3), Claimed::Granted(1_001));
        assert!(!Renew::decode(&lock.apply(&renew, 4)), "who holds nothing cannot renew");
    }

    #[test]
    fn what_is_no_state_is_corrupt() {
        for garbage in [
            "",
            "x",
            "-1",
            "1 ",
            " 1",
            "1 H",
            "1 H a 1 1 1 1",
            "1 H a 1 1 1 1 = ",
            "1 H  1 1 1 1 =",
            "1 W a 1 1 1 H a 1 1 1 1 =",
            "9007199254740992",
            "1 H a 1 1 1 99999999999999999 =",
            "1 H \u{e4} 1 1 1 1 =",
        ] {
            let error = claim("a", 1).apply(Some(garbage.as_bytes()), at(0)).unwrap_err();
            assert_eq!(error.kind(), commonhold_core::ErrorKind::Corrupt, "{garbage:?}");
            let mut twin = Twin::new();
            twin.put(garbage.as_bytes());
            assert_eq!(
                twin.apply(&claim("a", 1), at(0)),
                Err(commonhold_core::ErrorKind::Corrupt),
                "{garbage:?}"
            );
        }
    }

    fn commands() -> impl Strategy<Value = Vec<(i64, Box<dyn Transition>)>> {
        let owner = || prop::sample::select(vec!["a", "b", "c", "d"]).prop_map(String::from);
        let ttl = || prop::sample::select(vec![SECOND, 10 * SECOND, 60 * SECOND]);
        let claims = (owner(), ttl(), 1..4_i64, prop::sample::select(vec![0, 5 * SECOND]), 1..3_i64)
            .prop_map(|(owner, ttl, weight, patience, tokens)| {
                let claim = Claim { owner, label: "=l".into(), weight, capacity: 3, ttl, patience, tokens };
                Box::new(claim) as Box<dyn Transition>
            });
        let renewals = (owner(), ttl(), 0..2_i64).prop_map(|(owner, ttl, floor)| {
            let renew = Renew { owner, ttl, label: "=m".into(), floor: floor * START * 2 };
            Box::new(renew) as Box<dyn Transition>
        });
        let shows = Just(()).prop_map(|()| Box::new(Show) as Box<dyn Transition>);
        let releases =
            owner().prop_map(|owner| Box::new(Release { owner, capacity: 3 }) as Box<dyn Transition>);
        let times = prop_oneof![4 => 0..2 * SECOND, 1 => 0..100 * SECOND, 1 => -20 * SECOND..0];
        prop::collection::vec(
            (times, prop_oneof![3 => claims, 1 => renewals, 1 => releases, 1 => shows]),
            1..40,
        )
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn the_script_does_what_the_transitions_do(commands in commands()) {
            let mut twin = Twin::new();
            let mut now = START;
            for (step, transition) in commands {
                now += step;
                let _ = twin.apply(&*transition, at(now));
            }
        }

        #[test]
        fn never_is_more_held_than_there_is_and_tokens_rise(commands in commands()) {
            let (mut one, mut now, mut last) = (One::default(), START, 0);
            for (step, transition) in commands {
                now += step;
                let before = State::read(one.0.as_deref(), now).unwrap();
                let reply = one.apply(&*transition, now);
                let state = State::read(one.0.as_deref(), now).unwrap();
                prop_assert!(state.holders.iter().map(|holder| holder.weight).sum::<i64>() <= 3);
                if let (true, Ok(Claimed::Granted(token))) = (transition.name() == "claim", Claimed::decode(&reply)) {
                    let again = before.holders.iter().any(|holder| holder.token == token);
                    prop_assert!(again || token > last, "{token} after {last}");
                    last = last.max(token);
                }
            }
        }
    }
}
