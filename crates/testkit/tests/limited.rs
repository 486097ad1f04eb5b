//! The kit asks for no more than a store promises, and sees to it that a store offers no more.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic, missing_docs)]

#[path = "limited/backend.rs"]
mod backend;

use std::{panic, sync::Arc};

use commonhold_core::{Capabilities, ManualClock, MemoryBackend, Timestamp};
use commonhold_testkit::{Capability, MAX_VALUE_BYTES, Outcome, Subject, conformance, run};

use self::backend::Limited;

/// A store that promises nothing of this, and does not offer it if it is honest.
fn without(limit: fn(&mut Capabilities), honest: bool) -> Subject {
    let clock = Arc::new(ManualClock::new(Timestamp::from_millis(1_700_000_000_000)));
    let memory = MemoryBackend::builder().max_value_bytes(MAX_VALUE_BYTES).clock(clock.clone()).build();
    Subject::new(Arc::new(Limited::new(memory, limit, honest))).with_clock(clock)
}

fn nothing(capabilities: &mut Capabilities) {
    *capabilities = Capabilities::NONE;
    capabilities.max_value_bytes = MAX_VALUE_BYTES;
}

macro_rules! without {
    ($($name:ident: $($capability:ident)+, $expected:expr;)*) => {$(
        conformance!($name, $expected, || async {
            without(|capabilities| { $(capabilities.$capability = false;)+ }, true)
        });
    )*};
}

conformance!(without_anything, 57, || async { without(nothing, true) });

without! {
    without_ttl: ttl, 119;
    without_scan: scan ordered_scan, 129;
    without_order: ordered_scan, 150;
    without_atomic_batch: atomic_batch, 143;
    without_transactions: transactions, 127;
    without_watch: watch, 140;
    without_publish: publish, 146;
}

#[test]
fn a_store_that_does_more_than_it_promises_is_noticed() {
    for (case, missing) in [
        ("put_without_a_ttl_removes_an_earlier_one", Capability::Ttl),
        ("a_scan_returns_values", Capability::Scan),
        ("an_unmet_condition_stops_the_whole_batch", Capability::AtomicBatch),
        ("write_skew_is_prevented", Capability::Transactions),
        ("a_watch_reports_transitions", Capability::Watch),
        ("publishing_stores_nothing", Capability::Publish),
    ] {
        let honest = run(case, async || without(nothing, true));
        assert_eq!(honest, Outcome::AssertedUnsupported(missing));
        let dishonest = panic::catch_unwind(|| run(case, async || without(nothing, false)));
        assert!(
            dishonest.is_err(),
            "{case}: {missing:?} is not promised, but offered, and that is not noticed"
        );
    }
    let unordered = |capabilities: &mut Capabilities| capabilities.ordered_scan = false;
    let case = "an_ordered_scan_begins_after_a_key";
    let dishonest = panic::catch_unwind(|| run(case, async move || without(unordered, false)));
    assert!(dishonest.is_err());
}
