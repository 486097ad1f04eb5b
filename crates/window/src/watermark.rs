//! When a window is complete: the watermark follows the latest event at a distance.

use commonhold_core::Timestamp;

use crate::assign::Interval;

/// The point in time up to which all events are taken to have arrived: the time of the latest event so far,
/// less the lateness that is allowed.
///
/// As in Flink: a window is closed when its end is not after the watermark, and an event is late when every
/// window that it would belong to is closed. An event that still has open windows counts in those alone.
/// The watermark moves with every event, so the outcome depends on the order of the events and on nothing else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Watermark {
    latest: Option<Timestamp>,
    lateness: i64,
}

impl Watermark {
    /// A watermark that follows at this distance in nanoseconds; `latest` is the latest event so far.
    pub(crate) fn new(lateness: i64, latest: Option<Timestamp>) -> Self {
        Self { latest, lateness }
    }

    /// Takes note of an event.
    pub fn observe(&mut self, time: Timestamp) {
        self.latest = self.latest.max(Some(time));
    }

    /// The time of the latest event so far.
    pub fn latest(&self) -> Option<Timestamp> {
        self.latest
    }

    /// Where the watermark stands; `None` before the first event.
    pub fn time(&self) -> Option<Timestamp> {
        self.latest.map(|latest| Timestamp::from_nanos(latest.as_nanos().saturating_sub(self.lateness)))
    }

    /// Whether a window is closed.
    pub fn has_closed(&self, window: Interval) -> bool {
        self.time().is_some_and(|time| window.end <= time)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn interval(start: i64, end: i64) -> Interval {
        Interval { start: Timestamp::from_nanos(start), end: Timestamp::from_nanos(end) }
    }

    #[test]
    fn a_window_closes_when_the_watermark_reaches_its_end() {
        let mut watermark = Watermark::new(10, None);
        assert!(!watermark.has_closed(interval(-20, -10)));
        watermark.observe(Timestamp::from_nanos(69));
        assert!(!watermark.has_closed(interval(0, 60)));
        watermark.observe(Timestamp::from_nanos(70));
        assert!(watermark.has_closed(interval(0, 60)));
    }

    #[test]
    fn the_watermark_never_goes_back() {
        let mut watermark = Watermark::new(0, None);
        watermark.observe(Timestamp::from_nanos(70));
        watermark.observe(Timestamp::from_nanos(5));
        assert_eq!(watermark.time(), Some(Timestamp::from_nanos(70)));
        assert_eq!(Watermark::new(1, Some(Timestamp::MIN)).time(), Some(Timestamp::MIN));
    }
}
