//! The script does what the transition does, on any state and at any time.

use commonhold_core::Timestamp;
use proptest::prelude::*;

use super::hold::Hold;
use crate::{
    limit::twins::{START, numbers, steps},
    twin::Twin,
};

fn states() -> impl Strategy<Value = Vec<u8>> {
    let sane =
        prop_oneof![3 => 1_u64..2_000, 2 => Just(START.cast_unsigned() + 500_000), 1 => 0..1_u64 << 52];
    let count = prop_oneof![Just(1_usize), Just(9), Just(17), Just(25)];
    let label = prop_oneof![9 => Just("=a%20b"), 1 => Just(""), 1 => Just("\u{e4}"), 1 => Just("\t")];
    let sane = (count, label)
        .prop_flat_map(move |(count, label)| (prop::collection::vec(sane.clone(), count), Just(label)))
        .prop_map(|(numbers, label)| {
            let text = |numbers: &[u64]| numbers.iter().map(u64::to_string).collect::<Vec<_>>().join(" ");
            let leases: String =
                numbers[1..].chunks(8).map(|lease| format!(" {} {label}", text(lease))).collect();
            format!("concurrency {}{leases}", numbers[0]).into_bytes()
        });
    let words = prop::collection::vec(numbers(), 0..18);
    prop_oneof![
        3 => sane,
        1 => words.prop_map(|words| format!("concurrency {}", words.join(" ")).into_bytes()),
        1 => prop::collection::vec(any::<u8>(), 0..40),
    ]
}

#[derive(Debug, Clone)]
enum Command {
    Hold(Hold),
    Put(Vec<u8>),
}

fn commands() -> impl Strategy<Value = Command> {
    let few = || prop_oneof![2 => Just(0_u64), 3 => 1_u64..5, 2 => 1_u64..20, 1 => 1_u64..1 << 32];
    let limit = prop_oneof![4 => Just(10_u64), 2 => 1_u64..20, 1 => 1_u64..=1 << 32];
    let length = prop_oneof![3 => Just(1_000_000_u64), 1 => Just(30_000_000)];
    prop_oneof![
        8 => (limit, 1_u64..6, 1_u64..20, [few(), few(), few(), few()], length).prop_map(
            |(limit, id, seq, [keep, need, want, waits], length)| {
                let label = format!("={id}").into();
                Command::Hold(Hold { limit, id, seq, keep, need, want, waits, length, label })
            }
        ),
        1 => states().prop_map(Command::Put),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn the_script_of_a_concurrency_limit_does_what_its_transition_does(
        commands in prop::collection::vec((commands(), steps()), 1..40),
    ) {
        let mut twin = Twin::new();
        let mut micros = START;
        for (command, step) in commands {
            micros += step;
            match command {
                Command::Put(state) => twin.put(&state),
                Command::Hold(hold) => {
                    let _same_for_both = twin.apply(&hold, Timestamp::from_nanos(micros * 1_000));
                }
            }
        }
    }
}
