//! The time that local decisions are made by, in microseconds.

use std::sync::Arc;

use commonhold_core::Clock;

use super::state::now_micros;

/// A clock that does not go back.
#[derive(Debug)]
pub(crate) enum Time {
    /// This process's, counted from the making on and read in a few nanoseconds.
    Monotonic { clock: quanta::Clock, origin: u64 },
    /// The caller's.
    Given(Arc<dyn Clock>),
}

impl Time {
    pub(crate) fn monotonic() -> Self {
        let clock = quanta::Clock::new();
        Self::Monotonic { origin: clock.raw(), clock }
    }

    #[inline]
    pub(crate) fn micros(&self) -> u64 {
        match self {
            Self::Monotonic { clock, origin } => clock.delta_as_nanos(*origin, clock.raw()) / 1_000,
            Self::Given(clock) => read(clock),
        }
    }
}

#[inline(never)]
fn read(clock: &Arc<dyn Clock>) -> u64 {
    now_micros(clock.now())
}
