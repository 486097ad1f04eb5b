//! The search for an order of the operations on one key that explains their outcomes.

use std::collections::HashSet;

use super::{Event, Operation, Outcome, Violation};

/// More than this many positions are a history too dense to check; they take about a gigabyte.
const MAX_POSITIONS: usize = 2_000_000;

pub(super) fn check(key: usize, mut events: Vec<Event>) -> Result<(), Violation> {
    events.sort_by_key(|event| event.begun);
    let (unknown, known) = events.into_iter().partition(|event| event.outcome == Outcome::Unknown);
    let search = Search {
        known,
        unknown: unknown.into_iter().filter(|event| event.operation != Operation::Get).collect(),
    };
    search.run().map_err(|best| Violation {
        key,
        explained: (best.placed(), search.known.len()),
        value: best.value,
        stuck: search.next_known(&best).map(|(_, event)| *event).collect(),
    })
}

/// The operations on a key, each list by beginning.
struct Search {
    known: Vec<Event>,
    unknown: Vec<Event>,
}

/// How far an attempt has come: which operations have taken effect, and what they left.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Position {
    /// All known operations before this one are placed, and this one is not.
    low: usize,
    /// The known operations behind `low` that are placed, ascending.
    ahead: Vec<usize>,
    /// The unknown operations that have taken effect, ascending.
    effective: Vec<usize>,
    /// Whether the last one that took effect was an unknown one.
    after_unknown: bool,
    value: Option<i64>,
}

impl Search {
    /// Goes depth first, and nowhere twice. The error is the position that got furthest.
    fn run(&self) -> Result<(), Position> {
        let begin =
            Position { low: 0, ahead: Vec::new(), effective: Vec::new(), after_unknown: false, value: None };
        let mut best = begin.clone();
        let mut seen = HashSet::from([begin.clone()]);
        let mut open = vec![begin];
        while let Some(position) = open.pop() {
            if position.low == self.known.len() {
                return Ok(());
            }
            if position.placed() > best.placed() {
                best = position.clone();
            }
            for next in self.after(&position) {
                if seen.insert(next.clone()) {
                    open.push(next);
                }
            }
            assert!(
                seen.len() < MAX_POSITIONS,
                "too many concurrent or unknown operations on one key to check"
            );
        }
        Err(best)
    }

    /// The positions one operation further.
    fn after(&self, position: &Position) -> Vec<Position> {
        let mut next = Vec::new();
        // An unknown operation that changes nothing is left out, and so is the later of two that are alike.
        let end = self.earliest_end(position);
        let waiting =
            self.unknown.iter().enumerate().filter(|(index, _)| !position.effective.contains(index));
        let waiting: Vec<(usize, &Event)> = waiting.take_while(|(_, event)| event.begun < end).collect();
        for (place, &(index, event)) in waiting.iter().enumerate() {
            let alike = waiting[..place].iter().any(|(_, earlier)| earlier.operation == event.operation);
            let (value, _) = apply(event.operation, position.value);
            if !alike && value != position.value && position.may_be_followed_by(event.operation) {
                next.push(position.with_unknown(index, value));
            }
        }
        for (index, event) in self.next_known(position) {
            let (value, outcome) = apply(event.operation, position.value);
            if outcome != event.outcome {
                continue;
            }
            if changes_nothing(event) {
                // There is no better moment for it.
                return vec![position.with_known(index, value)];
            }
            if position.may_be_followed_by(event.operation) {
                next.push(position.with_known(index, value));
            }
        }
        next
    }

    /// The known operations that are not placed and that began before each other such ended.
    fn next_known(&self, position: &Position) -> impl Iterator<Item = (usize, &Event)> {
        let end = self.earliest_end(position);
        self.not_placed(position).take_while(move |(_, event)| event.begun < end)
    }

    /// When the first of the known operations that are not placed ended.
    fn earliest_end(&self, position: &Position) -> u64 {
        let mut end = u64::MAX;
        for (_, event) in self.not_placed(position) {
            if event.begun > end {
                break;
            }
            end = end.min(event.ended);
        }
        end
    }

    fn not_placed(&self, position: &Position) -> impl Iterator<Item = (usize, &Event)> {
        let known = self.known.iter().enumerate().skip(position.low);
        known.filter(|(index, _)| position.ahead.binary_search(index).is_err())
    }
}

impl Position {
    /// How many known operations are placed.
    fn placed(&self) -> usize {
        self.low + self.ahead.len()
    }

    /// An unknown operation that is overwritten unseen could as well not have happened.
    fn may_be_followed_by(&self, operation: Operation) -> bool {
        !(self.after_unknown && matches!(operation, Operation::Put(_)))
    }

    fn with_unknown(&self, index: usize, value: Option<i64>) -> Self {
        let mut next = Self { after_unknown: true, value, ..self.clone() };
        insert(&mut next.effective, index);
        next
    }

    fn with_known(&self, index: usize, value: Option<i64>) -> Self {
        let mut next = Self { after_unknown: false, value, ..self.clone() };
        insert(&mut next.ahead, index);
        while next.ahead.first() == Some(&next.low) {
            next.ahead.remove(0);
            next.low += 1;
        }
        next
    }
}

fn insert(ascending: &mut Vec<usize>, index: usize) {
    let place = ascending.partition_point(|&other| other < index);
    ascending.insert(place, index);
}

/// What an operation makes of a value, and how it answers.
fn apply(operation: Operation, value: Option<i64>) -> (Option<i64>, Outcome) {
    match operation {
        Operation::Get => (value, Outcome::Read(value)),
        Operation::Put(new) => (Some(new), Outcome::Done),
        Operation::Delete => (None, Outcome::Was(value.is_some())),
        Operation::CompareAndSwap { expected, new } if value == expected => (Some(new), Outcome::Was(true)),
        Operation::CompareAndSwap { .. } => (value, Outcome::Was(false)),
        Operation::Increment(delta) => {
            let sum = value.unwrap_or(0) + delta;
            (Some(sum), Outcome::Sum(sum))
        }
    }
}

/// Whether an operation with this outcome leaves every value as it is.
fn changes_nothing(event: &Event) -> bool {
    matches!(event.outcome, Outcome::Read(_) | Outcome::Was(false))
}
