//! When a breaker opens, for how long, and what closes it again.

use std::time::Duration;

use commonhold_core::{Error, ErrorKind, Result};

use super::machine::{MOST, TENTHS};

/// When a breaker opens, for how long, and what closes it again.
///
/// At least one of [`failure_threshold`](Self::failure_threshold), [`failure_rate`](Self::failure_rate) and
/// [`slow_call_rate`](Self::slow_call_rate) must be given: whichever is reached first opens it. All ranges are checked
/// when a breaker is made of it.
///
/// ```
/// use std::time::Duration;
/// use commonhold_coordination::breaker::{LocalBreaker, Settings, Window};
///
/// let settings = Settings::new()
///     .failure_rate(0.5)
///     .minimum_calls(20)
///     .window(Window::Time(Duration::from_secs(10)))
///     .open_for(Duration::from_secs(5))
///     .open_for_at_most(Duration::from_secs(60))
///     .half_open_probes(3);
/// let breaker = LocalBreaker::new("payments", &settings)?;
/// # Ok::<(), commonhold_core::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    failure_threshold: Option<u32>,
    failure_rate: Option<f64>,
    slow_call: Option<(Duration, f64)>,
    minimum_calls: Option<u32>,
    window: Window,
    open_for: Duration,
    open_for_at_most: Option<Duration>,
    half_open_probes: u32,
    probe_lease: Duration,
    min_reporters: u32,
}

/// Over which calls rates are taken. It slides in tenths, each forgotten when those after it hold what is said here: it
/// holds that and less than a tenth (of calls, rounded up) more, in a state of a fixed size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Window {
    /// The last calls, from 1 to 1,000,000. What an instance of a [hybrid](super::HybridBreaker) breaker tells in one
    /// interval is also forgotten at once.
    Calls(u32),
    /// The calls of the last time, from 10 ms to 24 h.
    Time(Duration),
}

impl Default for Settings {
    fn default() -> Self {
        Self::new()
    }
}

impl Settings {
    /// Nothing yet that would open it; otherwise what is said at each setting.
    pub fn new() -> Self {
        Self {
            failure_threshold: None,
            failure_rate: None,
            slow_call: None,
            minimum_calls: None,
            window: Window::Time(Duration::from_secs(10)),
            open_for: Duration::from_secs(30),
            open_for_at_most: None,
            half_open_probes: 1,
            probe_lease: Duration::from_secs(30),
            min_reporters: 1,
        }
    }

    /// Opens after so many failures one after the other, from 1 to 1,000,000.
    #[must_use]
    pub fn failure_threshold(mut self, failures: u32) -> Self {
        self.failure_threshold = Some(failures);
        self
    }

    /// Opens when at least this share of the calls in the [`window`](Self::window) failed, from 0.0001 to 1 and
    /// counted in ten-thousandths.
    #[must_use]
    pub fn failure_rate(mut self, rate: f64) -> Self {
        self.failure_rate = Some(rate);
        self
    }

    /// Opens when at least the share `rate` of the calls in the [`window`](Self::window), counted as
    /// [failures](Self::failure_rate) are, took `slow` (from 1 us to 1 h) or longer, whether they failed or not. While
    /// half-open, a slow probe counts as failed.
    #[must_use]
    pub fn slow_call_rate(mut self, slow: Duration, rate: f64) -> Self {
        self.slow_call = Some((slow, rate));
        self
    }

    /// With fewer calls in the window than this, no rate opens it: from 1 to 1,000,000, and no more than a window of
    /// calls has. 20 by default, or the whole of a smaller window.
    #[must_use]
    pub fn minimum_calls(mut self, calls: u32) -> Self {
        self.minimum_calls = Some(calls);
        self
    }

    /// Over which calls rates are taken. The last 10 s by default.
    #[must_use]
    pub fn window(mut self, window: Window) -> Self {
        self.window = window;
        self
    }

    /// How long it stays open before it lets probes through, from 1 ms to 24 h. 30 s by default.
    #[must_use]
    pub fn open_for(mut self, wait: Duration) -> Self {
        self.open_for = wait;
        self
    }

    /// Doubles [`open_for`](Self::open_for) each time a probe fails, up to this: from `open_for` to 24 h. Without it the
    /// wait stays the same.
    #[must_use]
    pub fn open_for_at_most(mut self, wait: Duration) -> Self {
        self.open_for_at_most = Some(wait);
        self
    }

    /// How many calls are let through while half-open, from 1 to 64: that many must succeed to close it, and the first
    /// that fails opens it again. 1 by default.
    #[must_use]
    pub fn half_open_probes(mut self, probes: u32) -> Self {
        self.half_open_probes = probes;
        self
    }

    /// How long a probe may take, from 10 ms to 1 h: one that has not come back by then loses its place to another, and
    /// its result counts no more. Longer than any call takes. 30 s by default.
    #[must_use]
    pub fn probe_lease(mut self, lease: Duration) -> Self {
        self.probe_lease = lease;
        self
    }

    /// A shared breaker opens only if so many instances have seen failures (or slow calls) of their own, from 1 to 16:
    /// one whose own network is broken then opens it for nobody else. 1 by default; a local breaker has but one.
    #[must_use]
    pub fn min_reporters(mut self, instances: u32) -> Self {
        self.min_reporters = instances;
        self
    }

    /// From when on a call is slow.
    pub(super) fn slow_call(&self) -> Option<Duration> {
        self.slow_call.map(|(slow, _)| slow)
    }

    /// # Errors
    /// `InvalidConfig` naming the setting that is out of its range.
    pub(super) fn rules(&self) -> Result<Rules> {
        if self.failure_threshold.is_none() && self.failure_rate.is_none() && self.slow_call.is_none() {
            return invalid(
                "nothing would open the breaker: give failure_threshold, failure_rate or slow_call_rate"
                    .into(),
            );
        }
        if let Some(slow) = self.slow_call() {
            time("slow_call_rate", slow, Duration::from_micros(1), HOUR)?;
        }
        let has_rate = self.failure_rate.is_some() || self.slow_call.is_some();
        let (width, calls) = match self.window {
            _ if !has_rate => (0, 0),
            Window::Time(window) => (time("window", window, Duration::from_millis(10), DAY)? / TENTHS, 0),
            Window::Calls(calls) => (0, number("window", calls, 1_000_000)?.into()),
        };
        let most_calls = match self.window {
            Window::Calls(calls) => calls.min(1_000_000),
            Window::Time(_) => 1_000_000,
        };
        let minimum = self.minimum_calls.unwrap_or(20.min(most_calls));
        let wait = time("open_for", self.open_for, Duration::from_millis(1), DAY)?;
        let longest = match self.open_for_at_most {
            Some(longest) => time("open_for_at_most", longest, self.open_for, DAY)?,
            None => wait,
        };
        Ok(Rules {
            threshold: self
                .failure_threshold
                .map_or(Ok(0), |n| number("failure_threshold", n, 1_000_000))?
                .into(),
            failure_rate: self.failure_rate.map_or(Ok(0), |share| rate("failure_rate", share))?,
            slow_rate: self.slow_call.map_or(Ok(0), |(_, share)| rate("slow_call_rate", share))?,
            minimum: number("minimum_calls", minimum, most_calls)?.into(),
            width,
            calls,
            wait,
            longest,
            probes: number("half_open_probes", self.half_open_probes, 64)?.into(),
            lease: time("probe_lease", self.probe_lease, Duration::from_millis(10), HOUR)?,
            reporters: number("min_reporters", self.min_reporters, 16)?.into(),
        })
    }
}

const HOUR: Duration = Duration::from_secs(60 * 60);
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// The settings as the state machine and its script count: in microseconds, calls and ten-thousandths, 0 for what is not
/// asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Rules {
    pub(super) threshold: i64,
    pub(super) failure_rate: i64,
    pub(super) slow_rate: i64,
    pub(super) minimum: i64,
    /// The tenth of a window of time.
    pub(super) width: i64,
    /// All of a window of calls.
    pub(super) calls: i64,
    pub(super) wait: i64,
    pub(super) longest: i64,
    pub(super) probes: i64,
    pub(super) lease: i64,
    pub(super) reporters: i64,
}

impl Rules {
    /// As the script takes them.
    pub(super) fn args(&self) -> [i64; 11] {
        let Self { threshold, failure_rate, slow_rate, minimum, width, calls, wait, longest, .. } = *self;
        let Self { probes, lease, reporters, .. } = *self;
        [threshold, failure_rate, slow_rate, minimum, width, calls, wait, longest, probes, lease, reporters]
    }

    /// How long it stays open after this many openings one after the other.
    pub(super) fn wait_after(&self, trips: i64) -> i64 {
        let mut wait = self.wait;
        for _ in 1..trips {
            if wait >= self.longest {
                break;
            }
            wait *= 2;
        }
        wait.min(self.longest)
    }
}

fn number(setting: &str, value: u32, most: u32) -> Result<u32> {
    debug_assert!(i64::from(most) <= MOST, "a state can hold it");
    if (1..=most).contains(&value) {
        return Ok(value);
    }
    invalid(format!("{setting} is between 1 and {most}, not {value}"))
}

fn rate(setting: &str, share: f64) -> Result<i64> {
    if (0.0001..=1.0).contains(&share) {
        return Ok((share * 10_000.0).round() as i64);
    }
    invalid(format!("{setting} is a share between 0.0001 and 1, not {share}"))
}

fn time(setting: &str, value: Duration, least: Duration, most: Duration) -> Result<i64> {
    if (least..=most).contains(&value) {
        return Ok(i64::try_from(value.as_micros()).unwrap_or(i64::MAX));
    }
    invalid(format!("{setting} is between {least:?} and {most:?}, not {value:?}"))
}

fn invalid<T>(message: String) -> Result<T> {
    Err(Error::new(ErrorKind::InvalidConfig, message))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_out_of_range_is_refused_by_its_name() {
        let settings = || Settings::new().failure_threshold(5);
        assert!(settings().rules().is_ok());
        for (wrong, name) in [
            (Settings::new(), "failure_threshold"),
            (settings().failure_threshold(0), "failure_threshold"),
            (settings().failure_rate(0.0), "failure_rate"),
            (settings().failure_rate(f64::NAN), "failure_rate"),
            (settings().failure_rate(1.1), "failure_rate"),
            (settings().slow_call_rate(Duration::ZERO, 0.5), "slow_call_rate"),
            (settings().slow_call_rate(Duration::from_secs(1), 2.0), "slow_call_rate"),
            (settings().minimum_calls(0), "minimum_calls"),
            (settings().failure_rate(0.5).window(Window::Calls(10)).minimum_calls(11), "minimum_calls"),
            (settings().failure_rate(0.5).window(Window::Calls(0)), "window"),
            (settings().failure_rate(0.5).window(Window::Time(Duration::MAX)), "window"),
            (settings().open_for(Duration::ZERO), "open_for"),
            (settings().open_for_at_most(Duration::from_secs(1)), "open_for_at_most"),
            (settings().half_open_probes(65), "half_open_probes"),
            (settings().probe_lease(Duration::ZERO), "probe_lease"),
            (settings().min_reporters(17), "min_reporters"),
        ] {
            let error = wrong.rules().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidConfig);
            assert!(error.message().contains(name), "{error} names {name}");
        }
    }

    #[test]
    fn a_small_window_of_calls_needs_no_more_than_it_has() {
        let rules = Settings::new().failure_rate(0.5).window(Window::Calls(5)).rules().unwrap();
        assert_eq!((rules.minimum, rules.calls), (5, 5));
    }

    #[test]
    fn the_wait_doubles_up_to_the_longest() {
        let settings = Settings::new().failure_threshold(1).open_for(Duration::from_micros(1_000));
        let rules = settings.clone().open_for_at_most(Duration::from_micros(3_000)).rules().unwrap();
        assert_eq!(
            [0, 1, 2, 3, i64::MAX].map(|trips| rules.wait_after(trips)),
            [1_000, 1_000, 2_000, 3_000, 3_000]
        );
        let fixed = settings.rules().unwrap();
        assert_eq!(fixed.wait_after(1_000_000_000), 1_000);
    }
}
