//! The scripts do what the transitions do, on any state and at any time.

use std::time::Duration;

use commonhold_core::Timestamp;
use proptest::prelude::*;

use super::{Limit, Rate, SlidingWindow, TokenBucket, lease::Renew, take::Take};
use crate::twin::Twin;

pub(super) const START: i64 = 1_700_000_000_000_000;

fn buckets() -> impl Strategy<Value = TokenBucket> {
    let rates = prop_oneof![
        Just(Rate::per_day(1)),
        Just(Rate::per_second(1_000_000)),
        Just(Rate::per_second(1_000_000_000)),
        (1_u64..1_000_000, 1_u64..10_000_000)
            .prop_map(|(permits, micros)| Rate::new(permits, Duration::from_micros(micros))),
    ];
    (rates, 1_u64..1_000).prop_map(|(rate, burst)| TokenBucket::new(rate.unwrap(), burst).unwrap())
}

fn windows() -> impl Strategy<Value = SlidingWindow> {
    let windows = (1_u64..1_000, prop_oneof![1_u64..1_000, 1_u64..10_000_000_000]);
    windows.prop_map(|(permits, micros)| SlidingWindow::new(permits, Duration::from_micros(micros)).unwrap())
}

/// How far the clock goes: on, back, or nowhere, by little and by much.
pub(super) fn steps() -> impl Strategy<Value = i64> {
    prop_oneof![
        Just(0_i64),
        1_i64..100,
        1_i64..1_000_000,
        // As long as a lease.
        Just(1_000_000_i64),
        1_i64..200_000_000_000,
        -1_000_i64..0,
        -10_000_000_000_i64..0
    ]
}

/// Numbers as a state may hold them: small, great, and on the edge of what is exact.
pub(super) fn numbers() -> impl Strategy<Value = String> {
    prop_oneof![
        (0_u64..20).prop_map(|number| number.to_string()),
        (0_u64..2_000_000).prop_map(|number| number.to_string()),
        (-3_i64..3).prop_map(|near| (START + near).to_string()),
        (-3_i64..3).prop_map(|near| ((1_i64 << 52) + near).to_string()),
        any::<u64>().prop_map(|number| number.to_string()),
        prop::sample::select(vec!["", "-1", "+1", "1.5", "1e3", "0x10", "007", "nan", "inf", " ", "\u{661}"])
            .prop_map(str::to_owned),
    ]
}

fn states() -> impl Strategy<Value = Vec<u8>> {
    let words = |kind: &'static str, counts: std::ops::Range<usize>| {
        prop::collection::vec(numbers(), counts)
            .prop_map(move |numbers| format!("{kind} {}", numbers.join(" ")).into_bytes())
    };
    // As a limiter could have written them, but for the numbers.
    let sane = |kind: &'static str, count: std::ops::Range<usize>| {
        let numbers = prop::collection::vec(
            prop_oneof![3 => 1_u64..2_000, 1 => Just(START.cast_unsigned() + 5), 1 => 0..1_u64 << 52],
            count,
        );
        numbers.prop_map(move |numbers| {
            let words: Vec<_> = numbers.iter().map(u64::to_string).collect();
            format!("{kind} {}", words.join(" ")).into_bytes()
        })
    };
    prop_oneof![
        sane("bucket", 3..4),
        sane("bucket", 8..9),
        sane("bucket", 13..14),
        sane("window", 19..20),
        sane("window", 24..25),
        sane("window", 29..30),
        words("bucket", 0..10),
        words("window", 17..26),
        prop::collection::vec(any::<u8>(), 0..40),
    ]
}

#[derive(Debug, Clone)]
enum Command {
    Take(Vec<u64>),
    Renew { id: u64, seq: u64, keep: u64, back: u64, need: u64, want: u64 },
    Put(Vec<u8>),
}

fn commands() -> impl Strategy<Value = Command> {
    let few = || prop_oneof![Just(0_u64), 1_u64..10, 1_u64..1_000];
    prop_oneof![
        5 => prop::collection::vec(1_u64..1_000, 1..5).prop_map(Command::Take),
        5 => (1_u64..5, 1_u64..12, few(), few(), few(), few()).prop_map(|(id, seq, keep, back, need, want)| {
            Command::Renew { id, seq, keep, back, need, want }
        }),
        1 => states().prop_map(Command::Put),
    ]
}

fn run(commands: impl IntoIterator<Item = (Limit, Command, i64)>) {
    let mut twin = Twin::new();
    let mut micros = START;
    for (limit, command, step) in commands {
        micros += step;
        let now = Timestamp::from_nanos(micros * 1_000);
        let _same_for_both = match command {
            Command::Put(state) => {
                twin.put(&state);
                continue;
            }
            Command::Renew { id, seq, keep, back, need, want } => {
                let need = need.min(limit.most());
                twin.apply(&Renew { limit, id, seq, keep, back, need, want, length: 1_000_000 }, now)
            }
            Command::Take(permits) => {
                let permits = permits.into_iter().map(|permits| permits.min(limit.most())).collect();
                twin.apply(&Take { limit, permits }, now)
            }
        };
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn the_scripts_of_the_bucket_do_what_its_transitions_do(
        limit in buckets(),
        commands in prop::collection::vec((commands(), steps()), 1..40),
    ) {
        run(commands.into_iter().map(|(command, step)| (limit.into(), command, step)));
    }

    #[test]
    fn the_scripts_of_the_window_do_what_its_transitions_do(
        limit in windows(),
        commands in prop::collection::vec((commands(), steps()), 1..40),
    ) {
        run(commands.into_iter().map(|(command, step)| (limit.into(), command, step)));
    }

    #[test]
    fn a_bucket_whose_rate_is_changed_all_the_time_stays_the_same_in_both(
        commands in prop::collection::vec((buckets().prop_map(Limit::from), commands(), steps()), 1..20),
    ) {
        run(commands);
    }

    #[test]
    fn a_window_whose_length_is_changed_all_the_time_stays_the_same_in_both(
        commands in prop::collection::vec((windows().prop_map(Limit::from), commands(), steps()), 1..20),
    ) {
        run(commands);
    }
}
