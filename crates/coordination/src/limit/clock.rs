//! The monotonic clock of this process, read in a few nanoseconds.

use std::sync::Arc;

use commonhold_core::{Clock, Timestamp};

/// Counts from its making on: only differences of its times mean something.
#[derive(Debug)]
struct Monotonic {
    clock: quanta::Clock,
    origin: u64,
}

impl Clock for Monotonic {
    fn now(&self) -> Timestamp {
        let nanos = self.clock.delta_as_nanos(self.origin, self.clock.raw());
        Timestamp::from_nanos(i64::try_from(nanos).unwrap_or(i64::MAX))
    }
}

pub(super) fn monotonic() -> Arc<dyn Clock> {
    let clock = quanta::Clock::new();
    Arc::new(Monotonic { origin: clock.raw(), clock })
}
