//! What can be done to a lease.

use std::{
    fmt::{self, Write as _},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use commonhold_core::{Expiry, Result, ScriptCall, Step, Timestamp, Transition};

use super::state::{OF, State, Term, Waiter};
use crate::state::{Fields, corrupt, micros};

/// How long the greatest token is remembered when nobody holds or waits: the next is greater for two reasons then, for
/// as long as the clock does not step back by more than this.
const REMEMBERED: i64 = 24 * 60 * 60 * 1_000_000;

/// Takes a part if there is room for it behind those who stand in line before, or stands in line.
///
/// Who holds already is given the same again: an answer that was lost can be asked for once more.
#[derive(Debug, Clone)]
pub(crate) struct Claim {
    pub(crate) owner: Arc<str>,
    pub(crate) label: Arc<str>,
    /// How much of the capacity.
    pub(crate) weight: i64,
    pub(crate) capacity: i64,
    /// For how long, in microseconds.
    pub(crate) ttl: i64,
    /// How long a place in the line lasts, and what is granted to it, in microseconds; 0 is not to stand in line.
    pub(crate) patience: i64,
    /// How many tokens are given at once, each greater by one than the one before.
    pub(crate) tokens: i64,
}

/// What became of a claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Claimed {
    /// Granted, with this as the first token.
    Granted(i64),
    /// Not granted.
    Taken {
        /// The first of those who hold, or else of those who wait, goes after this time at the latest, unless it is heard
        /// of.
        left: Duration,
        /// The greatest token that was given until now.
        last: i64,
    },
}

/// Holds on for another term.
#[derive(Debug, Clone)]
pub(crate) struct Renew {
    pub(crate) owner: Arc<str>,
    /// For how long from now, in microseconds.
    pub(crate) ttl: i64,
    /// What it says of itself from now on.
    pub(crate) label: Arc<str>,
    /// The least that the greatest token is to be: others may have given greater ones.
    pub(crate) floor: i64,
}

/// Gives back what this owner holds, and its place in the line, and grants what has become free to those who wait.
///
/// One that finds nothing writes all the same: a claim that is still on its way finds another state then than it has read.
#[derive(Debug, Clone)]
pub(crate) struct Release {
    pub(crate) owner: Arc<str>,
    pub(crate) capacity: i64,
    /// The last of the tokens that were granted, and the last that anybody got.
    pub(crate) tokens: (i64, i64),
    /// How many bytes the key has.
    pub(crate) key_len: usize,
    /// Set when it is applied here: those to whom it grants are still to be told then. The script tells them by itself.
    pub(crate) applied: Arc<AtomicBool>,
}

/// Changes nothing; replies the time in microseconds and what is left of the state.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Show;

/// What became of a release.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Released {
    /// Whether something was held.
    pub(crate) held: bool,
    /// Those who waited and hold now, each with its first token.
    pub(crate) granted: Vec<(String, i64)>,
}

impl Transition for Claim {
    fn name(&self) -> &'static str {
        "claim"
    }

    fn apply(&self, state: Option<&[u8]>, now: Timestamp) -> Result<Step> {
        let now = micros(now);
        let mut state = State::read(state, now)?;
        if state.holders.is_empty() {
            state.sweep(now);
        }
        let term = Term { ttl: self.ttl, since: now };
        if let Some(holder) = state.holders.iter_mut().find(|holder| *holder.owner == *self.owner) {
            holder.term = term;
            let reply = granted(holder.token);
            return Ok(put(&state, now, reply));
        }
        let place = state.waiters.iter().position(|waiter| *waiter.owner == *self.owner);
        let ahead = place.unwrap_or(state.waiters.len());
        let waiter = |term| {
            let (owner, label) = (self.owner.to_string(), self.label.to_string());
            Waiter { owner, weight: self.weight, tokens: self.tokens, term, label }
        };
        if state.fits(self.weight, ahead, self.capacity) {
            if let Some(place) = place {
                state.waiters.remove(place);
            }
            let token = state.grant(waiter(term), now);
            return Ok(put(&state, now, granted(token)));
        }
        let first = state.holders.iter().map(|holder| holder.term.expires()).min();
        let first =
            first.or_else(|| state.waiters.first().map(|waiter| waiter.term.expires())).unwrap_or(now);
        let reply = format!("taken {} {}", first - now, state.last_token);
        if self.patience > 0 {
            let waiter = waiter(Term { ttl: self.patience, since: now });
            match place.and_then(|place| state.waiters.get_mut(place)) {
                Some(place) => *place = waiter,
                None => state.waiters.push(waiter),
            }
        } else if !state.clamped {
            return Ok(Step::nothing(reply));
        }
        Ok(put(&state, now, reply))
    }

    fn script(&self) -> Option<ScriptCall> {
        let Self { owner, label, weight, capacity, ttl, patience, tokens } = self;
        let kept = (ttl + REMEMBERED).unsigned_abs().div_ceil(1_000);
        call(&[&"claim", owner, ttl, label, weight, capacity, patience, tokens, &kept])
    }
}

impl Claimed {
    pub(crate) fn decode(reply: &[u8]) -> Result<Self> {
        let mut fields = Fields::new("an answer to a claim", reply)?;
        let (outcome, number) = (fields.word()?, fields.integer()?);
        match outcome {
            "granted" => Ok(Self::Granted(number)),
            "taken" => {
                let left = Duration::from_micros(number.unsigned_abs());
                Ok(Self::Taken { left, last: fields.integer()? })
            }
            _ => Err(corrupt("an answer to a claim")),
        }
    }
}

impl Transition for Renew {
    fn name(&self) -> &'static str {
        "renew"
    }

    /// Replies `1` if it holds on, `0` if it was lost. Keeps the line behind one who stays from growing without end.
    fn apply(&self, state: Option<&[u8]>, now: Timestamp) -> Result<Step> {
        let now = micros(now);
        let mut state = State::read(state, now)?;
        state.sweep(now);
        let Some(holder) = state.holders.iter_mut().find(|holder| *holder.owner == *self.owner) else {
            return Ok(Step::nothing("0"));
        };
        holder.term = Term { ttl: self.ttl, since: now };
        holder.label = self.label.to_string();
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

    /// Replies whether something was held, `0` or `1`, and then those who hold now, each with its first token. What is
    /// over is still held as long as nobody has asked for it since.
    fn apply(&self, state: Option<&[u8]>, now: Timestamp) -> Result<Step> {
        let now = micros(now);
        self.applied.store(true, Ordering::Relaxed);
        let mut state = state.map(State::parse).transpose()?.unwrap_or_default();
        let (holders, waiters) = (state.holders.len(), state.waiters.len());
        state.holders.retain(|holder| *holder.owner != *self.owner);
        state.waiters.retain(|waiter| *waiter.owner != *self.owner);
        let held = state.holders.len() < holders;
        let (granted, used) = self.tokens;
        if held && state.last_token == granted {
            state.last_token = used;
        } else if !held && state.waiters.len() == waiters {
            state.last_token = now.max(state.last_token.saturating_add(1));
        }
        state.let_go(now);
        let mut reply = String::from(if held { "1" } else { "0" });
        for (owner, token) in state.grant_next(self.capacity, now) {
            let _ = write!(reply, " {owner} {token}");
        }
        Ok(put(&state, now, reply))
    }

    fn script(&self) -> Option<ScriptCall> {
        let (granted, used) = self.tokens;
        call(&[&"release", &self.owner, &self.capacity, &granted, &used, &self.key_len])
    }
}

impl Released {
    pub(crate) fn decode(reply: &[u8]) -> Result<Self> {
        let mut fields = Fields::new("an answer to a release", reply)?;
        let held = fields.word()? == "1";
        let mut granted = Vec::new();
        while let Some(owner) = fields.optional::<String>()? {
            granted.push((owner, fields.integer()?));
        }
        Ok(Self { held, granted })
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
    Some(ScriptCall::new(include_str!("lease.lua")).args(args))
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
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

    fn release(owner: &str, capacity: i64, tokens: (i64, i64)) -> Release {
        Release { owner: owner.into(), capacity, tokens, key_len: 1, applied: Arc::default() }
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
            let release = release(owner, 1, (0, 0));
            Released::decode(&self.apply(&release, now)).unwrap()
        }
    }

    #[test]
    fn the_same_claim_again_is_given_the_same_token() {
        let mut lock = One::default();
        assert_eq!(lock.claim(&claim("a", SECOND), START), Claimed::Granted(START));
        assert_eq!(lock.claim(&claim("a", SECOND), START + 5), Claimed::Granted(START));
        let left = Duration::from_secs(1);
        assert_eq!(lock.claim(&claim("b", SECOND), START + 5), Claimed::Taken { left, last: START });
    }

    #[test]
    fn who_stands_in_line_is_granted_what_is_released_before_who_comes_later() {
        let mut lock = One::default();
        let waiting = |owner| Claim { patience: SECOND, ..claim(owner, SECOND) };
        lock.claim(&claim("a", SECOND), START);
        lock.claim(&waiting("b"), START + 1);
        lock.claim(&waiting("c"), START + 2);
        let granted = vec![("b".into(), START + 3)];
        assert_eq!(lock.release("a", START + 3), Released { held: true, granted });
        assert!(matches!(lock.claim(&claim("d", SECOND), START + 4), Claimed::Taken { .. }));
        assert!(matches!(lock.claim(&waiting("c"), START + 4), Claimed::Taken { .. }));
        assert_eq!(lock.claim(&waiting("b"), START + 4), Claimed::Granted(START + 3));
        assert_eq!(lock.release("b", START + 5).granted, [("c".into(), START + 5)]);
        // What was granted to one who is not heard of any more lasts as long as its place would have.
        assert!(matches!(lock.claim(&claim("d", SECOND), START + SECOND + 3), Claimed::Taken { .. }));
        assert!(matches!(lock.claim(&claim("d", SECOND), START + SECOND + 4), Claimed::Granted(_)));
    }

    #[test]
    fn who_comes_for_what_there_is_room_for_behind_all_in_line_need_not_wait_for_them() {
        let mut lock = One::default();
        let of_three =
            |owner, weight| Claim { weight, capacity: 3, patience: SECOND, ..claim(owner, SECOND) };
        lock.claim(&of_three("gone", 3), START);
        lock.claim(&of_three("a", 1), START + 1);
        let later = START + SECOND;
        let left = Duration::from_micros(1);
        // Nobody holds; who is first in the line may be dead, and is passed over then.
        assert_eq!(lock.claim(&of_three("b", 3), later), Claimed::Taken { left, last: START });
        assert!(matches!(lock.claim(&of_three("c", 1), later), Claimed::Taken { .. }));
        assert!(matches!(lock.claim(&of_three("a", 1), later), Claimed::Granted(_)));
        let mut lock = One::default();
        lock.claim(&of_three("gone", 3), START);
        lock.claim(&of_three("a", 1), START + 1);
        assert!(matches!(lock.claim(&of_three("c", 2), later), Claimed::Granted(_)));
        assert!(
            matches!(lock.claim(&of_three("d", 1), later), Claimed::Taken { .. }),
            "a place is kept for a"
        );
    }

    #[test]
    fn tokens_that_nobody_got_are_given_again() {
        let mut lock = One::default();
        let Claimed::Granted(first) = lock.claim(&Claim { tokens: 256, ..claim("a", SECOND) }, START) else {
            panic!()
        };
        lock.apply(&release("a", 1, (first + 255, first + 2)), START + 1);
        assert_eq!(lock.claim(&claim("b", SECOND), START + 1), Claimed::Granted(first + 3));
        // Of one who holds nothing any more nothing is known.
        lock.apply(&release("a", 1, (first + 3, first)), START + 1);
        assert_eq!(
            lock.0.as_deref().and_then(|state| State::parse(state).ok()).unwrap().last_token,
            first + 4
        );
    }

    #[test]
    fn a_release_that_finds_nothing_changes_what_a_late_claim_has_read() {
        let mut lock = One::default();
        lock.release("a", START);
        let before = lock.0.clone().unwrap();
        lock.release("a", START);
        assert_ne!(lock.0.unwrap(), before);
    }

    #[test]
    fn who_does_not_wait_gets_past_the_dead_after_the_clock_stepped_back() {
        let mut lock = One::default();
        lock.claim(&claim("dead", SECOND), START);
        let back = START - 3_600 * SECOND;
        assert!(matches!(lock.claim(&claim("b", SECOND), back), Claimed::Taken { .. }));
        assert!(matches!(lock.claim(&claim("b", SECOND), back + SECOND), Claimed::Granted(_)));
    }

    #[test]
    fn after_the_clock_stepped_back_a_lease_lasts_no_longer_than_its_term_from_now() {
        let mut lock = One::default();
        let hour = 3_600 * SECOND;
        let Claimed::Granted(first) = lock.claim(&claim("dead", SECOND), START) else { panic!() };
        let back = START - hour;
        let left = Duration::from_secs(1);
        assert_eq!(lock.claim(&claim("b", SECOND), back), Claimed::Taken { left, last: START });
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
    fn places_of_the_dead_do_not_gather_behind_a_holder_who_stays() {
        let mut lock = One::default();
        let waiting = |owner: &str| Claim { patience: SECOND, ..claim(owner, SECOND) };
        lock.claim(&claim("holder", SECOND), START);
        let mut longest = 0;
        for step in 0..1_000 {
            let now = START + step * SECOND / 4;
            let renew = Renew { owner: "holder".into(), ttl: SECOND, label: "=".into(), floor: 0 };
            assert!(Renew::decode(&lock.apply(&renew, now)));
            lock.claim(&waiting("first"), now);
            lock.claim(&waiting(&format!("dead{step}")), now);
            longest = longest.max(State::parse(&lock.0.clone().unwrap()).unwrap().waiters.len());
        }
        assert_eq!(longest, 5, "the first, and those who died within a second");
    }

    #[test]
    fn many_dead_in_line_hold_it_up_no_longer_than_one_after_the_clock_stepped_back() {
        let mut lock = One::default();
        let waiting = |owner: &str| Claim { patience: SECOND, ..claim(owner, SECOND) };
        for owner in ["dead", "dead too", "dead as well", "b"] {
            lock.claim(&waiting(&owner.replace(' ', "-")), START);
        }
        let back = START - 3_600 * SECOND;
        assert!(matches!(lock.claim(&waiting("b"), back), Claimed::Taken { .. }));
        assert!(matches!(lock.claim(&waiting("b"), back + SECOND), Claimed::Taken { .. }));
        assert!(matches!(lock.claim(&waiting("b"), back + 2 * SECOND), Claimed::Granted(_)));
    }

    #[test]
    fn a_dead_one_in_line_takes_no_room_from_others_when_nobody_holds() {
        let mut lock = One::default();
        let of_three =
            |owner, weight, patience| Claim { weight, capacity: 3, patience, ..claim(owner, SECOND) };
        lock.claim(&of_three("gone", 3, 0), START);
        lock.claim(&of_three("a", 1, 2 * SECOND), START);
        lock.claim(&of_three("dead", 2, SECOND), START);
        assert!(matches!(lock.claim(&of_three("c", 2, 0), START + SECOND), Claimed::Granted(_)));
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
            "1 W a 1 1 1",
            "1 W a 1 1 1 1 = H a 1 1 1 1 =",
            "4503599627370496",
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

    #[derive(Debug)]
    enum Command {
        Other(Box<dyn Transition>),
        /// With or without a token that nobody got.
        Release(Arc<str>, bool),
    }

    impl Command {
        fn on(self, state: Option<&[u8]>) -> Box<dyn Transition> {
            match self {
                Self::Other(transition) => transition,
                Self::Release(owner, unused) => {
                    let state = state.map(|state| State::parse(state).unwrap()).unwrap_or_default();
                    let holder = state.holders.into_iter().find(|holder| *holder.owner == *owner);
                    let granted = holder.map_or(0, |holder| holder.token + TOKENS - 1);
                    Box::new(release(&owner, 3, (granted, granted - i64::from(unused))))
                }
            }
        }
    }

    /// How many each claim brings.
    const TOKENS: i64 = 3;

    fn commands() -> impl Strategy<Value = Vec<(i64, Command)>> {
        let owner = || prop::sample::select(vec!["a", "b", "c", "d"]).prop_map(Arc::<str>::from);
        let ttl = || prop::sample::select(vec![SECOND, 10 * SECOND, 60 * SECOND]);
        let claims = (owner(), ttl(), 1..4_i64, prop::sample::select(vec![0, 5 * SECOND])).prop_map(
            |(owner, ttl, weight, patience)| {
                let label = "=l".into();
                let claim = Claim { owner, label, weight, capacity: 3, ttl, patience, tokens: TOKENS };
                Command::Other(Box::new(claim))
            },
        );
        let renewals = (owner(), ttl(), 0..2_i64).prop_map(|(owner, ttl, floor)| {
            let renew = Renew { owner, ttl, label: "=m".into(), floor: floor * START * 2 };
            Command::Other(Box::new(renew))
        });
        let shows = Just(()).prop_map(|()| Command::Other(Box::new(Show)));
        let releases = (owner(), any::<bool>()).prop_map(|(owner, unused)| Command::Release(owner, unused));
        let times = prop_oneof![4 => 0..2 * SECOND, 1 => 0..100 * SECOND, 1 => -20 * SECOND..0];
        prop::collection::vec(
            (times, prop_oneof![3 => claims, 1 => renewals, 2 => releases, 1 => shows]),
            1..40,
        )
    }

    /// What is left after a release, or a state with one holder and at most two who wait, with numbers at the ends of what
    /// they may be.
    fn one_holder() -> impl Strategy<Value = String> {
        let ends =
            [0, 1, START - 1, START, START + 1, START + SECOND, (1 << 52) - 1, 1 << 52, 1 << 53, 1 << 60];
        let number = move || {
            (prop::sample::select(ends.to_vec()), prop::bool::weighted(0.1))
                .prop_map(|(number, zero)| format!("{}{number}", if zero { "0" } else { "" }))
        };
        let now = move || prop_oneof![4 => Just((START - 1).to_string()), 1 => number()];
        let long = move || prop_oneof![4 => Just(SECOND.to_string()), 1 => number()];
        let small = || prop_oneof![4 => Just("1".to_owned()), 1 => number()];
        let party = move |owners: &'static [&'static str]| {
            (prop::sample::select(owners), small(), small(), long(), now()).prop_map(
                |(owner, weight, tokens, ttl, since)| format!("{owner} {weight} {tokens} {ttl} {since} ="),
            )
        };
        let behind = prop::option::of(Just(format!(" W c 1 1 {SECOND} {} =", START - 1)));
        let line = prop::option::of((party(&["a", "b"]), behind));
        (now(), prop::option::weighted(0.8, (party(&["a", "b"]), line))).prop_map(|(last, holder)| {
            let Some((holder, line)) = holder else { return last };
            let line = line.map(|(first, behind)| format!(" W {first}{}", behind.unwrap_or_default()));
            format!("{last} H {holder}{}", line.unwrap_or_default())
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]

        #[test]
        fn the_script_does_what_the_transitions_do(commands in commands()) {
            let mut twin = Twin::new();
            let mut now = START;
            for (step, command) in commands {
                now += step;
                let transition = command.on(twin.state());
                let _ = twin.apply(&*transition, at(now));
            }
        }

        #[test]
        fn the_script_reads_one_holder_as_the_transitions_do(
            state in one_holder(),
            owner in prop::sample::select(vec!["a", "b", "c", "d"]),
            patience in prop::option::of(0..2_i64),
            tokens in 1..3_i64,
            capacity in 1..3_i64,
        ) {
            let mut twin = Twin::new();
            twin.put(state.as_bytes());
            let release = release(owner, capacity, (START - 1, START - 2));
            let claims = patience.map(|patience| {
                Claim { tokens, capacity, patience: patience * SECOND, ..claim(owner, SECOND) }
            });
            let transition: &dyn Transition = match &claims {
                Some(claim) => claim,
                None => &release,
            };
            let _ = twin.apply(transition, at(START));
        }

        #[test]
        fn never_is_more_held_than_there_is_and_tokens_rise(commands in commands()) {
            let (mut one, mut now, mut last) = (One::default(), START, 0);
            for (step, command) in commands {
                now += step;
                let before = State::read(one.0.as_deref(), now).unwrap();
                let transition = command.on(one.0.as_deref());
                let reply = one.apply(&*transition, now);
                let state = State::read(one.0.as_deref(), now).unwrap();
                prop_assert!(state.holders.iter().map(|holder| holder.weight).sum::<i64>() <= 3);
                let granted = match transition.name() {
                    "claim" => match Claimed::decode(&reply).unwrap() {
                        Claimed::Granted(token) => vec![token],
                        Claimed::Taken { .. } => vec![],
                    },
                    "release" => {
                        Released::decode(&reply).unwrap().granted.into_iter().map(|(_, token)| token).collect()
                    }
                    _ => vec![],
                };
                for token in granted {
                    let again = before.holders.iter().any(|holder| holder.token == token);
                    prop_assert!(again || token > last, "{token} after {last}");
                    last = last.max(token);
                }
            }
        }
    }
}
