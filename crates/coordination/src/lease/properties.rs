//! What always holds of leases, and their script held equal to them.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use commonhold_core::{Timestamp, Transition};
use proptest::prelude::*;

use super::{
    state::{Holder, State},
    transition::{Claim, Claimed, Release, Released, Renew, Show},
};
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
    Release { owner: owner.into(), capacity, tokens, key_len: 1, untouched: String::new() }
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
    assert_eq!(lock.release("a", START + 3), Released { held: true, granted, told: false });
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
    let of_three = |owner, weight| Claim { weight, capacity: 3, patience: SECOND, ..claim(owner, SECOND) };
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
    assert!(matches!(lock.claim(&of_three("d", 1), later), Claimed::Taken { .. }), "a place is kept for a");
}

#[test]
fn what_a_claim_leaves_behind_is_what_its_release_says_it_left() {
    let mut lock = One::default();
    let claim = Claim { tokens: 256, patience: SECOND, ..claim("a", 7 * SECOND) };
    let Claimed::Granted(token) = lock.claim(&claim, START) else { panic!() };
    assert_eq!(lock.0.as_deref(), Some(claim.untouched(token).as_bytes()));
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
    assert_eq!(lock.0.as_deref().and_then(|state| State::parse(state).ok()).unwrap().last_token, first + 4);
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
    let of_three = |owner, weight, patience| Claim { weight, capacity: 3, patience, ..claim(owner, SECOND) };
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
                let granted = holder.as_ref().map_or(0, |holder| holder.token + TOKENS - 1);
                let mut release = release(&owner, 3, (granted, granted - i64::from(unused)));
                if let Some(Holder { weight, token, term, label, .. }) = holder {
                    let label = label.into();
                    let claimed = Claim { label, weight, tokens: TOKENS, ..claim(&owner, term.ttl) };
                    release.untouched = claimed.untouched(token);
                }
                Box::new(release)
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
    prop::collection::vec((times, prop_oneof![3 => claims, 1 => renewals, 2 => releases, 1 => shows]), 1..40)
}

/// What is left after a release, or a state with one holder and at most two who wait, with numbers at the ends of what
/// they may be.
fn one_holder() -> impl Strategy<Value = String> {
    let ends = [0, 1, START - 1, START, START + 1, START + SECOND, (1 << 52) - 1, 1 << 52, 1 << 53, 1 << 60];
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
