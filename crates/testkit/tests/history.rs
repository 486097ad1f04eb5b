//! Histories that one copy of the data could have answered are accepted, all others are not.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    missing_docs,
    reason = "test code"
)]

#[path = "flaws/broken.rs"]
#[allow(dead_code, reason = "shared with the tests of the kit")]
mod broken;
#[path = "flaws/flaw.rs"]
#[allow(dead_code, reason = "shared with the tests of the kit")]
mod flaw;
#[path = "flaws/transaction.rs"]
#[allow(dead_code, reason = "shared with the tests of the kit")]
mod transaction;

use std::{sync::Arc, time::Duration};

use commonhold_core::{
    ErrorKind, MemoryBackend, Store,
    layers::{self, Fault, FaultPlan},
};
use commonhold_testkit::history::{
    Event, History, Load,
    Operation::{self, CompareAndSwap, Delete, Get, Increment, Put},
    Outcome::{self, Done, Read, Sum, Unknown, Was},
    record,
};

use self::{broken::Broken, flaw::Flaw};

/// Events on one key: what, answer, beginning, end.
fn history(events: &[(Operation, Outcome, u64, u64)]) -> History {
    let event = |&(operation, outcome, begun, ended)| Event { key: 0, operation, outcome, begun, ended };
    History { events: events.iter().map(event).collect(), ..History::default() }
}

fn accepts(events: &[(Operation, Outcome, u64, u64)]) {
    history(events).check().unwrap();
}

fn rejects(events: &[(Operation, Outcome, u64, u64)]) {
    let violation = history(events).check().unwrap_err();
    assert!(violation.to_string().contains("no order"), "{violation}");
}

const SWAP: Operation = CompareAndSwap { expected: Some(1), new: 2 };

#[test]
fn one_operation_after_the_other_is_accepted() {
    accepts(&[
        (Get, Read(None), 0, 1),
        (Put(1), Done, 2, 3),
        (SWAP, Was(true), 4, 5),
        (SWAP, Was(false), 6, 7),
        (Increment(5), Sum(7), 8, 9),
        (Delete, Was(true), 10, 11),
        (Delete, Was(false), 12, 13),
        (Increment(5), Sum(5), 14, 15),
        (Get, Read(Some(5)), 16, 17),
    ]);
}

#[test]
fn concurrent_operations_may_take_effect_in_either_order() {
    accepts(&[(Put(1), Done, 0, 9), (Put(2), Done, 1, 8), (Get, Read(Some(1)), 10, 11)]);
    accepts(&[(Put(1), Done, 0, 9), (Put(2), Done, 1, 8), (Get, Read(Some(2)), 10, 11)]);
    accepts(&[(Put(1), Done, 0, 9), (Get, Read(None), 1, 2), (Get, Read(Some(1)), 3, 4)]);
}

#[test]
fn a_read_that_goes_back_is_rejected() {
    rejects(&[(Put(1), Done, 0, 9), (Get, Read(Some(1)), 1, 2), (Get, Read(None), 3, 4)]);
}

#[test]
fn a_stale_read_is_rejected() {
    rejects(&[(Put(1), Done, 0, 1), (Put(2), Done, 2, 3), (Get, Read(Some(1)), 4, 5)]);
}

#[test]
fn a_lost_update_is_rejected() {
    rejects(&[(Increment(1), Sum(1), 0, 2), (Increment(1), Sum(1), 1, 3)]);
    rejects(&[(Put(1), Done, 0, 1), (Get, Read(None), 2, 3)]);
}

#[test]
fn a_compare_and_swap_that_lies_is_rejected() {
    let other = CompareAndSwap { expected: Some(1), new: 3 };
    rejects(&[(Put(1), Done, 0, 1), (SWAP, Was(true), 2, 5), (other, Was(true), 3, 4)]);
    rejects(&[(Put(1), Done, 0, 1), (SWAP, Was(false), 2, 3), (Get, Read(Some(2)), 4, 5)]);
}

#[test]
fn an_increment_that_is_applied_twice_is_rejected() {
    rejects(&[(Increment(1), Sum(1), 0, 1), (Get, Read(Some(2)), 2, 3)]);
    rejects(&[(Increment(1), Unknown, 0, 1), (Get, Read(Some(2)), 2, 3)]);
}

#[test]
fn an_unknown_operation_may_happen_never_at_once_or_much_later() {
    accepts(&[(Put(1), Unknown, 0, 1), (Get, Read(None), 2, 3)]);
    accepts(&[(Put(1), Unknown, 0, 1), (Get, Read(Some(1)), 2, 3)]);
    accepts(&[
        (Put(1), Unknown, 0, 1),
        (Put(2), Done, 2, 3),
        (Get, Read(Some(2)), 4, 5),
        (Get, Read(Some(1)), 6, 7),
    ]);
}

#[test]
fn an_unknown_operation_happens_once_and_not_before_it_began() {
    rejects(&[
        (Put(1), Unknown, 0, 1),
        (Get, Read(Some(1)), 2, 3),
        (Put(2), Done, 4, 5),
        (Get, Read(Some(1)), 6, 7),
    ]);
    rejects(&[(Get, Read(Some(1)), 0, 1), (Put(1), Unknown, 2, 3)]);
}

#[test]
fn unknown_operations_build_on_each_other() {
    accepts(&[
        (Put(10), Unknown, 0, 1),
        (Increment(1), Unknown, 2, 3),
        (Increment(1), Unknown, 4, 5),
        (Get, Read(Some(12)), 6, 7),
    ]);
    accepts(&[(Put(1), Unknown, 0, 1), (SWAP, Unknown, 2, 3), (Get, Read(Some(2)), 4, 5)]);
}

#[test]
fn each_key_is_checked_and_the_wrong_one_is_named() {
    let event = |key, outcome, begun| Event { key, operation: Get, outcome, begun, ended: begun + 1 };
    let events = vec![event(0, Read(None), 0), event(1, Read(Some(3)), 2), event(2, Read(None), 4)];
    let violation = History { events, ..History::default() }.check().unwrap_err();
    assert_eq!((violation.key, violation.explained, violation.stuck.len()), (1, (0, 1), 1));
}

/// Every choice of unknown operations in every order, one by one.
fn explained_by_trying_all(events: &[Event], value: Option<i64>) -> bool {
    if events.iter().all(|event| event.outcome == Unknown) {
        return true;
    }
    let known = events.iter().filter(|event| event.outcome != Unknown);
    let end = known.map(|event| event.ended).min().unwrap();
    (0..events.len()).filter(|&index| events[index].begun < end).any(|index| {
        let mut rest = events.to_vec();
        let event = rest.remove(index);
        let (next, outcome) = answer(event.operation, value);
        (event.outcome == Unknown || event.outcome == outcome) && explained_by_trying_all(&rest, next)
    })
}

fn answer(operation: Operation, value: Option<i64>) -> (Option<i64>, Outcome) {
    match operation {
        Get => (value, Read(value)),
        Put(new) => (Some(new), Done),
        Delete => (None, Was(value.is_some())),
        CompareAndSwap { expected, new } => {
            let holds = value == expected;
            (if holds { Some(new) } else { value }, Was(holds))
        }
        Increment(delta) => {
            let sum = value.unwrap_or(0) + delta;
            (Some(sum), Sum(sum))
        }
    }
}

/// Few values, so that right and wrong histories are equally likely to come out.
fn random_event(random: &mut fastrand::Rng) -> Event {
    let value = |random: &mut fastrand::Rng| random.i64(0..3);
    let maybe = |random: &mut fastrand::Rng| random.bool().then(|| random.i64(0..3));
    let (operation, outcome) = match random.u8(..5) {
        0 => (Get, Read(maybe(random))),
        1 => (Put(value(random)), Done),
        2 => (Delete, Was(random.bool())),
        3 => (CompareAndSwap { expected: maybe(random), new: value(random) }, Was(random.bool())),
        _ => (Increment(1), Sum(random.i64(1..4))),
    };
    let outcome = if random.u8(..4) == 0 { Unknown } else { outcome };
    let begun = random.u64(..16);
    // Beginnings and ends are all different, as the clock of a history gives them.
    let (begun, length) = (begun * 16 + random.u64(..8), random.u64(1..8));
    Event { key: 0, operation, outcome, begun: begun * 2, ended: (begun + length * 8) * 2 + 1 }
}

#[test]
fn the_search_says_what_trying_everything_says() {
    let seed =
        std::env::var("COMMONHOLD_SEED").ok().map_or_else(|| fastrand::u64(..), |seed| seed.parse().unwrap());
    let mut random = fastrand::Rng::with_seed(seed);
    let (mut accepted, mut rejected) = (0, 0);
    for _ in 0..20_000 {
        let events: Vec<Event> = (0..random.usize(1..7)).map(|_| random_event(&mut random)).collect();
        let history = History { events, ..History::default() };
        let expected = explained_by_trying_all(&history.events, None);
        assert_eq!(history.check().is_ok(), expected, "COMMONHOLD_SEED={seed}\n{:?}", history.events);
        if expected { accepted += 1 } else { rejected += 1 }
    }
    assert!(accepted > 1_000 && rejected > 1_000, "{accepted} accepted, {rejected} rejected");
}

fn load(operations: usize) -> Load {
    Load { operations, pause: Duration::from_micros(100), ..Load::default() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_memory_does_is_linearizable() {
    let store = Store::new(MemoryBackend::new());
    let history =
        record(&[store.clone(), store], &load(4_000), async |progress| progress.reaches(4_000).await).await;
    history.assert_linearizable();
    // And the last read of each of the four keys.
    assert_eq!((history.events.len(), history.unknown(), history.errors.len()), (4_004, 0, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lost_replies_and_refused_calls_are_no_violation() {
    let plan = FaultPlan::new();
    let store = Store::new(MemoryBackend::new()).layer(Fault::new(&plan));
    let history = record(&[store], &load(8_000), async |progress| {
        for _ in 0..20 {
            progress.gains(50).await;
            plan.lose_reply(layers::Operation::Put);
            plan.lose_reply(layers::Operation::Transact);
            plan.lose_reply(layers::Operation::Delete);
            plan.refuse(layers::Operation::Put);
        }
        progress.gains(500).await;
    })
    .await;
    history.assert_linearizable();
    assert!(history.unknown() > 20, "{} unknown", history.unknown());
    assert!(history.errors.len() > history.unknown());
    assert_eq!(history.error_kinds().first().unwrap().0, ErrorKind::Unavailable);
}

/// That is up to chance, so it has a few attempts.
async fn finds(flaw: Flaw) {
    for _ in 0..20 {
        let store = Store::new(Broken::new(Arc::new(MemoryBackend::new()), flaw));
        let load = Load { keys: 1, pause: Duration::ZERO, ..load(1_000) };
        let history = record(&[store], &load, async |progress| progress.reaches(1_000).await).await;
        if history.check().is_err() {
            return;
        }
    }
    panic!("{flaw:?} is not found");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_reads_the_past_is_found() {
    finds(Flaw::StaleReads).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_checks_first_and_writes_then_is_found() {
    finds(Flaw::ConditionThenWrite).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_loses_increments_is_found() {
    finds(Flaw::TransitionReadsThenWrites).await;
}
