//! Which random operations are tried: few keys and values, so that they meet, and nasty ones.

use std::time::Duration;

use bytes::Bytes;
use commonhold_core::{Action, Condition, ErrorKind, Expiry, Key, Prefix, PutOptions, Scan, Write};
use proptest::{
    collection::vec,
    option,
    prelude::*,
    sample::select,
    strategy::{BoxedStrategy, Union},
};

use super::operations::{Change, End, Operation, Step, Work};
use crate::subject::{Subject, key, prefix};

/// All keys that are ever written.
pub(crate) const KEYS: [&[u8]; 10] =
    [b"a", b"a\0", b"aa", b"ab", b"*", b"a*", b"\0", b"\xff", b"\xff\xff", b":"];

const PREFIXES: [&[u8]; 11] =
    [b"", b"", b"a", b"a\0", b"aa", b"a*", b"*", b"\0", b"\xff", b"\xff\xff", b"none"];

const VALUES: [&[u8]; 4] = [b"", b"0", b"1", b"\0\xff"];

/// Times to live and steps of the clock are multiples of this, so that they meet to the nanosecond.
const TICK: Duration = Duration::from_secs(1);

/// The same where the clock cannot be turned: so long that nothing expires meanwhile.
pub(crate) const LONG: Duration = Duration::from_secs(100_000);

/// Operations that the store offers.
pub(crate) fn operation(subject: &Subject) -> Union<BoxedStrategy<Operation>> {
    let capabilities = subject.backend.capabilities();
    let ttl = capabilities.ttl.then(|| if subject.clock().is_some() { TICK } else { LONG });
    let mut operations = vec![
        (3, keys(&KEYS).prop_map(Operation::Get).boxed()),
        (1, vec(keys(&KEYS), 0..6).prop_map(Operation::GetMany).boxed()),
        (8, writes(ttl, true, true, &KEYS).prop_map(Operation::Write).boxed()),
        (
            2,
            vec(writes(ttl, capabilities.atomic_batch, false, &KEYS), 0..6)
                .prop_map(Operation::Batch)
                .boxed(),
        ),
        (4, (keys(&KEYS), changes(ttl)).prop_map(|(key, change)| Operation::Transact(key, change)).boxed()),
    ];
    if capabilities.scan {
        operations.push((4, scans(capabilities.ordered_scan).prop_map(Operation::Scan).boxed()));
        operations.push((2, prefixes().prop_map(Operation::Count).boxed()));
        operations.push((1, prefixes().prop_map(Operation::Clear).boxed()));
    }
    if capabilities.transactions {
        operations.push((6, transactions(ttl).prop_map(Operation::Transaction).boxed()));
    }
    if let (Some(clock), Some(tick)) = (subject.clock(), ttl) {
        align(clock, capabilities.ttl_resolution);
        operations.push((3, (1..4u32).prop_map(move |ticks| Operation::Advance(tick * ticks)).boxed()));
    }
    Union::new_weighted(operations)
}

/// Sets the clock to a multiple of the resolution, so that no time to live is rounded.
fn align(clock: &commonhold_core::ManualClock, resolution: Duration) {
    use commonhold_core::Clock as _;
    assert_eq!(TICK.as_nanos() % resolution.as_nanos(), 0);
    let resolution = i64::try_from(resolution.as_nanos()).unwrap();
    let beyond = clock.now().as_nanos().rem_euclid(resolution);
    clock.advance(Duration::from_nanos(((resolution - beyond) % resolution).unsigned_abs()));
}

fn keys(of: &'static [&[u8]]) -> impl Strategy<Value = Key> + Clone {
    select(of).prop_map(key)
}

fn prefixes() -> impl Strategy<Value = Prefix> {
    select(&PREFIXES[..]).prop_map(prefix)
}

fn values() -> impl Strategy<Value = Bytes> {
    select(&VALUES[..]).prop_map(Bytes::from_static)
}

fn conditions() -> impl Strategy<Value = Condition> {
    prop_oneof![
        3 => Just(Condition::Always),
        1 => Just(Condition::Absent),
        1 => Just(Condition::Present),
        2 => values().prop_map(Condition::Equals),
    ]
}

/// What a store with this unit of time offers; `zero` is refused.
fn expiries(ttl: Option<Duration>, zero: bool) -> BoxedStrategy<Expiry> {
    let mut expiries = vec![(4, Just(Expiry::Never).boxed()), (4, Just(Expiry::Keep).boxed())];
    if let Some(unit) = ttl {
        expiries.push((8, (1..4u32).prop_map(move |units| Expiry::After(unit * units)).boxed()));
        if zero {
            expiries.push((1, Just(Expiry::After(Duration::ZERO)).boxed()));
        }
    }
    Union::new_weighted(expiries).boxed()
}

fn writes(
    ttl: Option<Duration>,
    conditional: bool,
    zero: bool,
    of: &'static [&[u8]],
) -> impl Strategy<Value = Write> {
    let condition = if conditional { conditions().boxed() } else { Just(Condition::Always).boxed() };
    prop_oneof![
        3 => (keys(of), values(), condition.clone(), expiries(ttl, zero)).prop_map(
            |(key, value, condition, expiry)| {
                Write::Put { key, value, options: PutOptions { condition, expiry } }
            }
        ),
        1 => (keys(of), condition).prop_map(|(key, condition)| Write::Delete { key, condition }),
    ]
}

fn changes(ttl: Option<Duration>) -> impl Strategy<Value = Change> {
    let actions = prop_oneof![
        1 => Just(Action::Nothing),
        2 => Just(Action::Delete),
        2 => expiries(ttl, false).prop_map(Action::Expire),
        3 => (values(), expiries(ttl, true)).prop_map(|(value, expiry)| Action::Put { value, expiry }),
    ];
    prop_oneof![
        4 => actions.prop_map(Change::Do),
        3 => (any::<u8>(), expiries(ttl, true)).prop_map(|(byte, expiry)| Change::Append(byte, expiry)),
        1 => select(vec![ErrorKind::NotInteger, ErrorKind::Conflict]).prop_map(Change::Refuse),
    ]
}

fn scans(ordered: bool) -> impl Strategy<Value = Scan> {
    let after = if ordered { option::of(keys(&KEYS)).boxed() } else { Just(None).boxed() };
    (prefixes(), after, any::<bool>(), select(vec![1, 2, 3, 512]))
        .prop_map(|(prefix, after, keys_only, page)| Scan { prefix, after, keys_only, page })
}

fn transactions(ttl: Option<Duration>) -> impl Strategy<Value = Work> {
    // Few keys, so that reads, writes and interference meet.
    let few = &KEYS[..3];
    let steps = prop_oneof![
        1 => keys(few).prop_map(Step::Get),
        1 => writes(ttl, true, true, few).prop_map(Step::Write),
    ];
    let ends = prop_oneof![4 => Just(End::Commit), 1 => Just(End::Rollback), 1 => Just(End::Drop)];
    let interference = option::of((0..7usize, writes(ttl, false, false, few)));
    (vec(steps, 0..6), ends, interference).prop_map(|(steps, end, interference)| {
        let interference = interference.map(|(at, write)| (at.min(steps.len()), write));
        Work { steps, end, interference }
    })
}
