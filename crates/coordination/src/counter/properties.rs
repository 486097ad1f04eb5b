//! What is true of increments in a store.

use std::time::Duration;

use commonhold_core::{Increment, Timestamp};
use proptest::prelude::*;

use crate::twin::Twin;

/// Also numbers at the ends of their range, and what is none or not written as such.
fn values() -> impl Strategy<Value = String> {
    let ends =
        prop::sample::select(vec![i64::MIN, i64::MIN + 1, -1, 0, 1, (1 << 53) + 1, i64::MAX - 1, i64::MAX]);
    prop_oneof![
        4 => ends.prop_map(|number| number.to_string()),
        2 => "[-+ ]?0?[0-9]{1,3}",
        1 => "(-|[0-9]{18,20}|[0-9]\\.[0-9]|[a-z\n\u{e4}]{0,2})",
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn the_script_adds_as_the_transition_does(
        value in prop::option::of(values()),
        deltas in prop::collection::vec(
            (prop::sample::select(vec![i64::MIN, -7, -1, 0, 1, 7, i64::MAX]), 1_000..100_000_u64),
            1..5,
        ),
    ) {
        let mut twin = Twin::new();
        if let Some(value) = value {
            twin.put(value.as_bytes());
        }
        for (delta, micros) in deltas {
            let ttl = Some(Duration::from_secs(60) + Duration::from_micros(micros));
            let _ = twin.apply(&Increment { delta, ttl }, Timestamp::from_millis(1_763_000_000_000));
        }
    }
}
