//! Reads and writes the states of limiters: numbers that are exact in a script, too.

use std::str::FromStr;

use commonhold_core::Timestamp;

use super::config::MAX;
use crate::state::micros;

/// A number in a state: decimal digits, below [`MAX`].
pub(super) struct Number(pub(super) u64);

impl FromStr for Number {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        // More digits could not be told apart by a script.
        let plain = text.len() <= 16 && text.bytes().all(|byte| byte.is_ascii_digit());
        let number = plain.then(|| text.parse().ok()).flatten();
        number.filter(|number| *number < MAX).map(Self).ok_or(())
    }
}

/// The first word of a state.
pub(super) struct Word(pub(super) String);

impl FromStr for Word {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        Ok(Self(text.to_owned()))
    }
}

/// The time that limiters count in: microseconds since 1970, or 0 before.
pub(super) fn now_micros(now: Timestamp) -> u64 {
    u64::try_from(micros(now)).unwrap_or(0)
}

/// States outlive what they remember by this, in microseconds, so that a clock that steps back by less finds them.
pub(super) const STAYS_MICROS: u64 = 60_000_000;
