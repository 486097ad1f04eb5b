//! What is limited: rates, token buckets and sliding windows, checked so that all arithmetic stays exact.

use std::{fmt, time::Duration};

use commonhold_core::{Error, ErrorKind, Result};

use super::window::SLICES;

/// Every number in a state stays below this, so that sums of two are exact in the doubles of a script. As
/// microseconds since 1970 it is the year 2112.
pub(super) const MAX: u64 = 1 << 52;

/// So many permits in such a time, without rounding: a thousand a second, one a day, 501 in 2.5 s.
///
/// ```
/// use std::time::Duration;
/// use commonhold_coordination::limit::Rate;
///
/// assert_eq!(Rate::per_second(100)?, Rate::new(6_000, Duration::from_secs(60))?);
/// # Ok::<(), commonhold_core::Error>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// One permit is this many units.
    unit: u64,
    /// This many units flow in each microsecond.
    flow: u64,
}

impl Rate {
    /// `permits` in each `per`, which counts whole microseconds.
    ///
    /// # Errors
    /// `InvalidInput` for none at all, more than 2^52, no time, or a time with a fraction of a microsecond.
    pub fn new(permits: u64, per: Duration) -> Result<Self> {
        let micros = whole_micros("the time of a rate", per)?;
        if permits == 0 || permits >= MAX {
            return invalid(format!("a rate has between 1 and {} permits, not {permits}", MAX - 1));
        }
        let divisor = gcd(permits, micros);
        Ok(Self { unit: micros / divisor, flow: permits / divisor })
    }

    /// `permits` in each second.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn per_second(permits: u64) -> Result<Self> {
        Self::new(permits, Duration::from_secs(1))
    }

    /// `permits` in each minute.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn per_minute(permits: u64) -> Result<Self> {
        Self::new(permits, Duration::from_secs(60))
    }

    /// `permits` in each hour.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn per_hour(permits: u64) -> Result<Self> {
        Self::new(permits, Duration::from_secs(3_600))
    }

    /// `permits` in each day.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn per_day(permits: u64) -> Result<Self> {
        Self::new(permits, Duration::from_secs(86_400))
    }
}

impl fmt::Debug for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{:?}", self.flow, Duration::from_micros(self.unit))
    }
}

/// A rate, and how much may come at once: over any time T, at most `burst + rate * T`.
///
/// The bucket is full at first and refills exactly, in units of which one permit has as many as the rate has
/// microseconds, reduced: no fraction is ever lost, however often it is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TokenBucket {
    rate: Rate,
    burst: u64,
}

impl TokenBucket {
    /// A bucket of `burst` permits that refills at `rate`.
    ///
    /// # Errors
    /// `InvalidInput` for a burst of 0, or one too great to count exactly: times the microseconds of the rate (1
    /// for a million a second, 1,000,000 for one a second, 86,400,000,000 for one a day) it must stay below
    /// 2^52, so 52,000 for one a day.
    pub fn new(rate: Rate, burst: u64) -> Result<Self> {
        let most = (MAX - 1) / rate.unit;
        if burst == 0 || burst > most {
            return invalid(format!("at the rate {rate:?} a burst is between 1 and {most}, not {burst}"));
        }
        Ok(Self { rate, burst })
    }

    /// The generic cell rate algorithm: calls are spaced by `interval`, and up to `burst` of them may come
    /// early.
    ///
    /// It is the same as a bucket of `burst` permits at the rate of one in each `interval` (ITU-T I.371 gives
    /// both forms and says so), and carried out as one.
    ///
    /// # Errors
    /// As [`Rate::new`] and [`new`](Self::new).
    pub fn gcra(interval: Duration, burst: u64) -> Result<Self> {
        Self::new(Rate::new(1, interval)?, burst)
    }

    /// An equal share of this for each of so many.
    pub(super) fn share(self, of: u64) -> Result<Self> {
        let divisor = gcd(self.rate.flow, of);
        let unit = self.rate.unit.saturating_mul(of / divisor);
        let rate = Rate { unit, flow: self.rate.flow / divisor };
        Self::new(rate, self.burst / of)
    }

    /// One permit is this many units.
    pub(super) const fn unit(self) -> u64 {
        self.rate.unit
    }

    /// This many units flow in each microsecond.
    pub(super) const fn flow(self) -> u64 {
        self.rate.flow
    }

    pub(super) const fn burst(self) -> u64 {
        self.burst
    }

    /// The units in a full bucket.
    pub(super) const fn capacity(self) -> u64 {
        self.burst * self.rate.unit
    }
}

/// At most so many permits in any window of such a length, wherever it begins.
///
/// Time is cut into slices of a sixteenth of the window, and what was taken is counted by slice. All 17 slices that
/// a window can touch count whole, so that no window ever sees more; the price is that a permit comes back up to
/// one slice late: a steady stream gets 1/17 (6 %) less than the limit at worst. The state has a fixed size,
/// whatever the limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SlidingWindow {
    permits: u64,
    slice_micros: u64,
}

impl SlidingWindow {
    /// At most `permits` in any `window`.
    ///
    /// # Errors
    /// `InvalidInput` for no permits or more than 2^52, or a window that is empty, has a fraction of a microsecond
    /// or lasts more than 8 years.
    pub fn new(permits: u64, window: Duration) -> Result<Self> {
        let micros = whole_micros("a window", window)?;
        if micros > MAX >> 4 {
            return invalid(format!("a window lasts at most 8 years, not {window:?}"));
        }
        if permits == 0 || permits >= MAX {
            return invalid(format!("a window has between 1 and {} permits, not {permits}", MAX - 1));
        }
        Ok(Self { permits, slice_micros: micros.div_ceil(SLICES as u64) })
    }

    fn share(self, of: u64) -> Result<Self> {
        if self.permits < of {
            return invalid(format!("{} permits are too few to share among {of}", self.permits));
        }
        Ok(Self { permits: self.permits / of, ..self })
    }

    pub(super) const fn permits(self) -> u64 {
        self.permits
    }

    pub(super) const fn slice_micros(self) -> u64 {
        self.slice_micros
    }
}

/// What a limiter holds to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    /// A rate with bursts.
    Bucket(TokenBucket),
    /// A number in any window.
    Window(SlidingWindow),
}

impl Limit {
    /// The most that can be asked for at once.
    #[inline]
    pub const fn most(self) -> u64 {
        match self {
            Self::Bucket(bucket) => bucket.burst,
            Self::Window(window) => window.permits,
        }
    }

    /// How long after its last use it is as if it had never been used.
    pub(super) fn memory(self) -> Duration {
        Duration::from_micros(self.memory_micros())
    }

    pub(super) fn memory_micros(self) -> u64 {
        match self {
            Self::Bucket(bucket) => bucket.capacity().div_ceil(bucket.flow()),
            Self::Window(window) => window.slice_micros.saturating_mul(SLICES as u64 + 1),
        }
    }

    /// What scripts know it by.
    pub(super) fn numbers(self) -> Vec<u64> {
        match self {
            Self::Bucket(bucket) => vec![bucket.unit(), bucket.flow(), bucket.burst()],
            Self::Window(window) => vec![window.slice_micros(), window.permits()],
        }
    }

    /// An equal share of this for each of so many.
    pub(super) fn share(self, of: u64) -> Result<Self> {
        if of == 0 {
            return invalid("a local share is one of at least 1 instance".into());
        }
        Ok(match self {
            Self::Bucket(bucket) => bucket.share(of)?.into(),
            Self::Window(window) => window.share(of)?.into(),
        })
    }

    /// # Errors
    /// `InvalidInput` for so many permits in one call.
    #[inline]
    pub(super) fn check(self, permits: u64) -> Result<()> {
        if permits == 0 || permits > self.most() { Err(self.impossible(permits)) } else { Ok(()) }
    }

    #[cold]
    fn impossible(self, permits: u64) -> Error {
        let message =
            format!("a call takes between 1 and {} permits of this limit, not {permits}", self.most());
        Error::new(ErrorKind::InvalidInput, message)
    }
}

impl From<TokenBucket> for Limit {
    fn from(bucket: TokenBucket) -> Self {
        Self::Bucket(bucket)
    }
}

impl From<SlidingWindow> for Limit {
    fn from(window: SlidingWindow) -> Self {
        Self::Window(window)
    }
}

fn whole_micros(what: &str, duration: Duration) -> Result<u64> {
    let micros = duration.as_micros();
    match u64::try_from(micros) {
        Ok(micros @ 1..MAX) if duration.subsec_nanos().is_multiple_of(1_000) => Ok(micros),
        _ => invalid(format!("{what} is whole microseconds, from 1 us to 142 years, not {duration:?}")),
    }
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

fn invalid<T>(message: String) -> Result<T> {
    Err(Error::new(ErrorKind::InvalidInput, message))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_from_one_a_day_to_a_billion_a_second_are_taken_as_they_are() {
        for (rate, unit, flow) in [
            (Rate::per_day(1), 86_400_000_000, 1),
            (Rate::per_hour(7), 3_600_000_000, 7),
            (Rate::per_second(501), 1_000_000, 501),
            (Rate::per_second(999_983), 1_000_000, 999_983),
            (Rate::per_second(1_000_000), 1, 1),
            (Rate::per_second(1_000_000_000), 1, 1_000),
            (Rate::new(1, Duration::from_micros(2_500_001)), 2_500_001, 1),
        ] {
            assert_eq!(rate.unwrap(), Rate { unit, flow });
        }
    }

    #[test]
    fn what_cannot_be_counted_exactly_is_refused_and_says_what_can() {
        let kind = |result: Result<()>| result.unwrap_err().kind();
        let bucket = |rate: Rate, burst| TokenBucket::new(rate, burst).map(drop);
        let day = Rate::per_day(1).unwrap();
        assert!(bucket(day, 52_000).is_ok());
        let error = bucket(day, 53_000).unwrap_err();
        assert!(error.to_string().contains("between 1 and 52"), "{error}");
        assert_eq!(kind(bucket(day, 0)), ErrorKind::InvalidInput);
        for (permits, per) in [
            (0, Duration::from_secs(1)),
            (1, Duration::ZERO),
            (1, Duration::from_nanos(1_500)),
            (1, Duration::MAX),
        ] {
            assert_eq!(kind(Rate::new(permits, per).map(drop)), ErrorKind::InvalidInput);
            assert_eq!(kind(SlidingWindow::new(permits, per).map(drop)), ErrorKind::InvalidInput);
        }
    }

    #[test]
    fn shares_add_up_to_no_more_than_the_whole() {
        let whole = TokenBucket::new(Rate::per_second(501).unwrap(), 10).unwrap();
        let share = whole.share(3).unwrap();
        assert_eq!((share.rate, share.burst), (Rate { unit: 1_000_000, flow: 167 }, 3));
        assert!(whole.share(11).is_err());
        assert!(Limit::from(whole).share(0).is_err());
        assert!(SlidingWindow::new(2, Duration::from_secs(1)).unwrap().share(3).is_err());
    }
}
