//! Which windows an event belongs to: pure arithmetic on nanoseconds.

use std::{fmt, time::Duration};

use commonhold_core::{Error, ErrorKind, Result, Timestamp};
use serde::{Deserialize, Serialize};

/// A stretch of time: `start` belongs to it, `end` does not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Interval {
    /// The first point in time that belongs to it.
    pub start: Timestamp,
    /// The first point in time after it.
    pub end: Timestamp,
}

impl Interval {
    /// Whether a point in time belongs to it.
    pub fn contains(self, time: Timestamp) -> bool {
        self.start <= time && time < self.end
    }

    /// Whether the two have a point in time in common.
    pub fn overlaps(self, other: Self) -> bool {
        self.start < other.end && other.start < self.end
    }

    /// The shortest interval that contains both.
    #[must_use]
    pub fn union(self, other: Self) -> Self {
        Self { start: self.start.min(other.start), end: self.end.max(other.end) }
    }
}

/// A length of time of more than zero and at most [`Span::MAX`]. Its text is `1m30s`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Span(i64);

impl Span {
    /// The longest span: ten years of 365 days.
    pub const MAX: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);

    /// Checks the range.
    ///
    /// # Errors
    /// `InvalidConfig` for zero or more than [`Span::MAX`].
    pub fn new(length: Duration) -> Result<Self> {
        match i64::try_from(length.as_nanos()) {
            Ok(nanos) if nanos > 0 && length <= Self::MAX => Ok(Self(nanos)),
            _ => Err(Error::new(
                ErrorKind::InvalidConfig,
                format!("a length of time is more than zero and at most 3650 days, not {length:?}"),
            )),
        }
    }

    /// The same as a [`Duration`].
    pub fn duration(self) -> Duration {
        Duration::from_nanos(self.0.unsigned_abs())
    }

    pub(crate) fn nanos(self) -> i64 {
        self.0
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#}", jiff::SignedDuration::from_nanos(self.0))
    }
}

impl fmt::Debug for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl From<Span> for String {
    fn from(span: Span) -> Self {
        span.to_string()
    }
}

impl TryFrom<String> for Span {
    type Error = Error;
    fn try_from(text: String) -> Result<Self> {
        let length = text.parse::<jiff::SignedDuration>().ok().and_then(|length| length.try_into().ok());
        Self::new(length.ok_or_else(|| {
            Error::new(ErrorKind::InvalidConfig, format!("\"{text}\" is not a length of time such as 1m30s"))
        })?)
    }
}

/// How time is cut into windows.
///
/// ```
/// use std::time::Duration;
/// use commonhold_core::Timestamp;
/// use commonhold_window::Windows;
///
/// let hopping = Windows::hopping(Duration::from_secs(60), Duration::from_secs(30))?;
/// let starts: Vec<i64> = hopping
///     .assign(Timestamp::from_millis(75_000))
///     .map(|window| window.start.as_millis())
///     .collect();
/// assert_eq!(starts, [30_000, 60_000]);
/// # Ok::<(), commonhold_core::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Shape", into = "Shape")]
pub struct Windows(Shape);

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Shape {
    Tumbling { size: Span },
    Hopping { size: Span, slide: Span },
    Session { gap: Span },
}

impl Windows {
    /// The most windows that one event may belong to.
    pub const MAX_PER_EVENT: usize = 1_000;

    /// Windows of one size, one after the other, aligned to 1970-01-01T00:00:00Z.
    ///
    /// # Errors
    /// `InvalidConfig` for a size of zero or over [`Span::MAX`].
    pub fn tumbling(size: Duration) -> Result<Self> {
        Ok(Self(Shape::Tumbling { size: Span::new(size)? }))
    }

    /// Windows of one size that begin every `slide`, aligned to 1970-01-01T00:00:00Z.
    ///
    /// # Errors
    /// `InvalidConfig` if one is zero or over [`Span::MAX`], if `slide` is longer than `size` (events would fall
    /// between the windows), or if an event would belong to more than [`Windows::MAX_PER_EVENT`].
    pub fn hopping(size: Duration, slide: Duration) -> Result<Self> {
        Shape::Hopping { size: Span::new(size)?, slide: Span::new(slide)? }.try_into()
    }

    /// Windows that last as long as events of a key are less than `gap` apart. A window ends `gap` after its
    /// last event, so an event exactly `gap` after another begins a new one.
    ///
    /// # Errors
    /// `InvalidConfig` for a gap of zero or over [`Span::MAX`].
    pub fn session(gap: Duration) -> Result<Self> {
        Ok(Self(Shape::Session { gap: Span::new(gap)? }))
    }

    /// Whether windows are sessions, which grow and merge.
    pub fn are_sessions(self) -> bool {
        matches!(self.0, Shape::Session { .. })
    }

    /// The windows that an event at this time belongs to, the earliest first: at least one, at most
    /// [`max_per_event`](Self::max_per_event). For sessions the window that the event would have alone.
    ///
    /// Windows that would reach past the ends of [`Timestamp`] are cut there.
    pub fn assign(self, time: Timestamp) -> impl Iterator<Item = Interval> {
        let (size, slide) = self.size_and_slide();
        let time = time.as_nanos();
        let last = if self.are_sessions() { time } else { time.saturating_sub(time.rem_euclid(slide)) };
        // The earliest start lies after `time - size`: the window that begins there has just ended.
        let further = (last - time).saturating_add(size).saturating_sub(1) / slide;
        (0..=further).rev().map(move |back| {
            let start = last.saturating_sub(back.saturating_mul(slide));
            Interval {
                start: Timestamp::from_nanos(start),
                end: Timestamp::from_nanos(start.saturating_add(size)),
            }
        })
    }

    /// The most windows that an event can belong to.
    pub fn max_per_event(self) -> usize {
        let (size, slide) = self.size_and_slide();
        usize::try_from((size - 1) / slide + 1).unwrap_or(usize::MAX)
    }

    fn size_and_slide(self) -> (i64, i64) {
        match self.0 {
            Shape::Tumbling { size } => (size.nanos(), size.nanos()),
            Shape::Hopping { size, slide } => (size.nanos(), slide.nanos()),
            Shape::Session { gap } => (gap.nanos(), gap.nanos()),
        }
    }
}

impl TryFrom<Shape> for Windows {
    type Error = Error;

    fn try_from(shape: Shape) -> Result<Self> {
        let windows = Self(shape);
        let problem = match shape {
            Shape::Hopping { size, slide } if slide > size => {
                format!("the slide ({slide}) must not be longer than the size ({size})")
            }
            _ if windows.max_per_event() > Self::MAX_PER_EVENT => format!(
                "an event would belong to {} windows, at most {} are allowed: take a longer slide",
                windows.max_per_event(),
                Self::MAX_PER_EVENT
            ),
            _ => return Ok(windows),
        };
        Err(Error::new(ErrorKind::InvalidConfig, problem))
    }
}

impl From<Windows> for Shape {
    fn from(windows: Windows) -> Self {
        windows.0
    }
}

impl fmt::Display for Windows {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Shape::Tumbling { size } => write!(f, "windows of {size}"),
            Shape::Hopping { size, slide } => write!(f, "windows of {size} every {slide}"),
            Shape::Session { gap } => write!(f, "sessions with a gap of {gap}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn nanos(n: i64) -> Duration {
        Duration::from_nanos(n.unsigned_abs())
    }

    proptest! {
        #[test]
        fn a_tumbling_window_holds_the_event_and_is_aligned(time in -1i64 << 60..1 << 60, size in 1i64..1 << 50) {
            let windows: Vec<_> =
                Windows::tumbling(nanos(size)).unwrap().assign(Timestamp::from_nanos(time)).collect();
            prop_assert_eq!(windows.len(), 1);
            prop_assert!(windows[0].contains(Timestamp::from_nanos(time)));
            prop_assert_eq!(windows[0].start.as_nanos().rem_euclid(size), 0);
            prop_assert_eq!(windows[0].end.as_nanos() - windows[0].start.as_nanos(), size);
        }

        #[test]
        fn an_event_is_in_every_aligned_window_that_contains_it_and_no_other(
            time in -100_000i64..100_000, slide in 1i64..500, extra in 0i64..5_000,
        ) {
            let size = slide + extra;
            let hopping = Windows::hopping(nanos(size), nanos(slide));
            prop_assume!(hopping.is_ok());
            let hopping = hopping.unwrap();
            let found: Vec<_> = hopping.assign(Timestamp::from_nanos(time)).collect();
            let first = (time - size).div_euclid(slide) - 2;
            let expected: Vec<_> = (first..first + size / slide + 6)
                .map(|n| Interval {
                    start: Timestamp::from_nanos(n * slide),
                    end: Timestamp::from_nanos(n * slide + size),
                })
                .filter(|window| window.contains(Timestamp::from_nanos(time)))
                .collect();
            prop_assert_eq!(&found, &expected);
            prop_assert!(found.len() <= hopping.max_per_event());
            if size % slide == 0 {
                prop_assert_eq!(found.len() as i64, size / slide);
            }
        }

        #[test]
        fn no_point_in_time_makes_assignment_panic(time in any::<i64>(), size in 1i64..1 << 58) {
            for windows in [Windows::tumbling(nanos(size)), Windows::session(nanos(size))] {
                prop_assert_eq!(windows.unwrap().assign(Timestamp::from_nanos(time)).count(), 1);
            }
        }

        #[test]
        fn a_span_survives_its_text(nanos in 1i64..1 << 58) {
            let span = Span(nanos);
            prop_assert_eq!(Span::try_from(span.to_string()).unwrap(), span);
        }
    }

    #[test]
    fn a_session_of_one_event_begins_with_it_and_lasts_for_the_gap() {
        let windows: Vec<_> =
            Windows::session(nanos(30)).unwrap().assign(Timestamp::from_nanos(-7)).collect();
        let interval = Interval { start: Timestamp::from_nanos(-7), end: Timestamp::from_nanos(23) };
        assert_eq!(windows, [interval]);
    }

    #[test]
    fn sizes_that_make_no_sense_are_refused() {
        let second = Duration::from_secs(1);
        assert!(Windows::tumbling(Duration::ZERO).is_err());
        assert!(Windows::tumbling(Span::MAX + second).is_err());
        assert!(Windows::tumbling(Duration::MAX).is_err());
        assert!(Windows::session(Duration::ZERO).is_err());
        assert!(Windows::hopping(second, Duration::ZERO).is_err());
        assert!(Windows::hopping(second, second * 2).is_err());
        assert!(Windows::hopping(second * 1001, second).is_err());
        assert_eq!(Windows::hopping(second * 1000, second).unwrap().max_per_event(), 1000);
        assert!(serde_json::from_str::<Windows>(r#"{"hopping":{"size":"1s","slide":"2s"}}"#).is_err());
    }
}
