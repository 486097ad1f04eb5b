//! The sliding window: what was taken in each slice of time that a window can touch.

use std::fmt::Write as _;

use commonhold_core::Result;

use super::{
    Outcome,
    config::{MAX, SlidingWindow},
    leases::Leases,
    state::{Number, Word},
};
use crate::state::{Fields, corrupt};

/// A window is so many slices long.
pub(super) const SLICES: usize = 16;

/// It touches one more: the first and the last in part.
const TOUCHED: usize = SLICES + 1;

/// The state `window SLICE NEWEST COUNT*17`: the length of a slice in microseconds, the number of the newest since
/// 1970, and the permits taken in each, the newest first; and then the leases.
///
/// What counts and what is held on lease never exceed the limit together. A permit that was spent under a lease counts
/// from when that is reported, or the lease has ended, which is not before it was spent: so no window sees more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Window {
    newest: u64,
    counts: [u64; TOUCHED],
    pub(super) leases: Leases,
    /// What was read had longer slices, of which the newest has not ended, and counts as taken when it was read. Unless
    /// that is written, whoever reads it next counts it as taken later still, and waits in vain.
    moved: bool,
}

const NAME: &str = "a sliding window";

impl Window {
    /// Nothing was taken yet.
    pub(super) fn empty(limit: SlidingWindow, now: u64) -> Self {
        let newest = now / limit.slice_micros();
        Self { newest, counts: [0; TOUCHED], leases: Leases::default(), moved: false }
    }

    /// What a state is at this time.
    pub(super) fn read(limit: SlidingWindow, state: Option<&[u8]>, now: u64) -> Result<Self> {
        let Some(state) = state else { return Ok(Self::empty(limit, now)) };
        let mut window = Self::parse(limit, state, now)?;
        window.slide(limit, now);
        Ok(window)
    }

    fn parse(limit: SlidingWindow, state: &[u8], now: u64) -> Result<Self> {
        let mut fields = Fields::new(NAME, state)?;
        let Word(kind) = fields.next()?;
        let (Number(slice), Number(newest)) = (fields.next()?, fields.next()?);
        let begun = slice.checked_mul(newest).filter(|begun| *begun < MAX).ok_or_else(|| corrupt(NAME))?;
        if kind != "window" || slice == 0 {
            return Err(corrupt(NAME));
        }
        let mut counts = [0_u64; TOUCHED];
        for count in &mut counts {
            Number(*count) = fields.next()?;
        }
        let leases = Leases::read(NAME, fields)?;
        let mut window = Self { newest, counts, leases, moved: false };
        if window.taken() + window.leases.held() >= MAX {
            return Err(corrupt(NAME));
        }
        if slice != limit.slice_micros() {
            // What was taken in a slice of another length counts as taken as late as it can have been: at its end, or, if
            // that has not come yet, now.
            let last = begun + slice - 1;
            let moved = slice > limit.slice_micros() && now < last;
            let latest = if moved { now.max(begun) } else { last };
            let mut cut = Self { moved, leases: window.leases, ..Self::empty(limit, latest) };
            for (ago, taken) in (0..).zip(window.counts) {
                let Some(number) = newest.checked_sub(ago) else { break };
                let at = if ago == 0 { latest } else { (number + 1) * slice - 1 };
                let index = usize::try_from(cut.newest - at / limit.slice_micros()).unwrap_or(TOUCHED);
                if let Some(count) = cut.counts.get_mut(index) {
                    *count += taken;
                }
            }
            window = cut;
        }
        Ok(window)
    }

    /// Whether it must be written though nothing is taken.
    pub(super) fn moved(&self) -> bool {
        self.moved
    }

    pub(super) fn write(&self, limit: SlidingWindow) -> String {
        let mut text = format!("window {} {}", limit.slice_micros(), self.newest);
        for count in self.counts {
            let _infallible = write!(text, " {count}");
        }
        self.leases.write(&mut text);
        text
    }

    /// Forgets the slices that no window touches any more, and ends the leases that have run out. A clock that has stepped
    /// back stands still.
    pub(super) fn slide(&mut self, limit: SlidingWindow, now: u64) {
        let newest = now / limit.slice_micros();
        let passed = newest.saturating_sub(self.newest);
        let passed = usize::try_from(passed).unwrap_or(TOUCHED).min(TOUCHED);
        self.counts.rotate_right(passed);
        self.counts.iter_mut().take(passed).for_each(|count| *count = 0);
        self.newest = self.newest.max(newest);
        let at = self.at(limit, now);
        for lease in self.leases.0.extract_if(.., |lease| lease.expires <= at) {
            let ago = usize::try_from(self.newest - lease.expires / limit.slice_micros()).unwrap_or(TOUCHED);
            if let Some(count) = self.counts.get_mut(ago) {
                *count += lease.held;
            }
        }
    }

    /// The time, no earlier than the newest slice.
    pub(super) fn at(&self, limit: SlidingWindow, now: u64) -> u64 {
        now.max(self.newest * limit.slice_micros())
    }

    /// Takes so many permits, or says how long to wait for them.
    pub(super) fn take(&mut self, limit: SlidingWindow, permits: u64, now: u64) -> Outcome {
        let free = self.free(limit);
        let allowed = permits <= free;
        if allowed {
            self.add(permits);
        }
        Outcome {
            allowed,
            remaining: if allowed { free - permits } else { free },
            retry_micros: if allowed { 0 } else { self.retry(limit, permits, now) },
            reset_micros: self.reset_micros(limit, now),
        }
    }

    /// Permits that can be taken.
    pub(super) fn free(&self, limit: SlidingWindow) -> u64 {
        limit.permits().saturating_sub(self.taken() + self.leases.held())
    }

    /// Counts what is left as taken.
    pub(super) fn drain(&mut self, limit: SlidingWindow) {
        self.add(self.free(limit));
    }

    /// How long until it is certainly empty, if nobody takes any.
    pub(super) fn reset_micros(&self, limit: SlidingWindow, now: u64) -> u64 {
        let counts = self.counts.iter().position(|count| *count > 0);
        let counts = counts.map_or(0, |newest| self.leaves(limit, newest, now));
        match self.leases.last() {
            0 => counts,
            // As late as what is held can count.
            last => {
                let ends = (last / limit.slice_micros() + TOUCHED as u64) * limit.slice_micros();
                counts.max(ends.saturating_sub(now))
            }
        }
    }

    /// When to ask again for so many permits: when so many of those that count do no longer, or before that when those
    /// who hold some on lease have given back what they do not need.
    pub(super) fn retry(&self, limit: SlidingWindow, permits: u64, now: u64) -> u64 {
        let excess = (self.taken() + self.leases.held() + permits).saturating_sub(limit.permits());
        let leased = self.leases.last().saturating_sub(self.at(limit, now));
        let mut freed = 0;
        for (index, count) in self.counts.iter().enumerate().rev() {
            freed += count;
            if freed >= excess {
                let wait = self.leaves(limit, index, now);
                return if leased > 0 { wait.min(leased) } else { wait };
            }
        }
        leased
    }

    /// How long until a slice is forgotten.
    fn leaves(&self, limit: SlidingWindow, index: usize, now: u64) -> u64 {
        ((self.newest + (TOUCHED - index) as u64) * limit.slice_micros()).saturating_sub(now)
    }

    pub(super) fn add(&mut self, permits: u64) {
        let [newest, ..] = &mut self.counts;
        *newest += permits;
    }

    /// Permits that count.
    pub(super) fn taken(&self) -> u64 {
        self.counts.iter().sum()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use bytes::Bytes;
    use commonhold_core::{Action, Timestamp, Transition as _};
    use proptest::prelude::*;

    use super::{
        super::take::{Take, decode},
        *,
    };

    /// An entry, and what was let through: when, and how much.
    struct World {
        state: Option<Bytes>,
        now: u64,
        grants: Vec<(u64, u64)>,
    }

    impl World {
        fn take(&mut self, limit: SlidingWindow, permits: u64) -> Outcome {
            let now = Timestamp::from_nanos(i64::try_from(self.now * 1_000).unwrap());
            let take = Take { limit: limit.into(), permits: vec![permits] };
            let step = take.apply(self.state.as_deref(), now).unwrap();
            if let Action::Put { value, .. } = step.action {
                self.state = Some(value);
            }
            let outcome = decode(&step.reply, 1).unwrap()[0];
            if outcome.allowed {
                self.grants.push((self.now, permits));
            }
            outcome
        }

        fn seen_within(&self, micros: u64) -> u64 {
            let within = self.grants.iter().filter(|(at, _)| at + micros > self.now);
            within.map(|(_, permits)| permits).sum()
        }
    }

    proptest! {
        #[test]
        fn no_window_sees_more_than_the_limit_through_steps_back_and_forth_and_it_always_refills(
            permits in 1_u64..40,
            micros in 1_u64..5_000,
            steps in prop::collection::vec((-500_i64..1_500, 1_u64..40), 1..300),
        ) {
            let limit = SlidingWindow::new(permits, Duration::from_micros(micros)).unwrap();
            let mut now = 1_000_000_u64;
            // The time by the calls that count, for a clock that goes back does not undo them.
            let mut latest = 0;
            let mut state = None;
            let mut grants: Vec<(u64, u64)> = Vec::new();
            for (step, asked) in steps {
                now = now.saturating_add_signed(step);
                let asked = asked.min(permits);
                let mut window = Window::read(limit, state.as_deref(), now).unwrap();
                let outcome = window.take(limit, asked, now);
                if outcome.allowed {
                    latest = latest.max(now);
                    grants.push((latest, asked));
                    state = Some(window.write(limit).into_bytes());
                } else {
                    let later = now + outcome.retry_micros;
                    let mut window = Window::read(limit, state.as_deref(), later).unwrap();
                    prop_assert!(window.take(limit, asked, later).allowed, "not after {} us", outcome.retry_micros);
                }
            }
            for (index, (begun, _)) in grants.iter().enumerate() {
                let within = grants.iter().skip(index).take_while(|(at, _)| *at < begun + micros);
                let seen: u64 = within.map(|(_, asked)| asked).sum();
                prop_assert!(seen <= permits, "{} in the window from {}", seen, begun);
            }
        }
    }

    #[test]
    fn a_greedy_stream_gets_at_least_sixteen_seventeenths_of_the_limit() {
        let limit = SlidingWindow::new(100, Duration::from_secs(16)).unwrap();
        let mut window = Window::empty(limit, 0);
        let mut taken = 0;
        for millis in 0..1_700_000_u64 {
            window.slide(limit, millis * 1_000);
            taken += u64::from(window.take(limit, 1, millis * 1_000).allowed);
        }
        assert_eq!(taken, 1_700 * 100 / 17);
    }

    proptest! {
        #[test]
        fn a_window_that_is_made_shorter_holds_at_once_and_opens_when_it_says(
            permits in 1_u64..40,
            micros in 1_u64..5_000,
            longer in 2_u64..2_000,
            before in prop::collection::vec((0_u64..5_000, 1_u64..40), 1..20),
            pause in 0_u64..20_000,
            after in prop::collection::vec((0_u64..1_500, 1_u64..40), 1..100),
        ) {
            let long = SlidingWindow::new(40, Duration::from_micros(micros * longer)).unwrap();
            let short = SlidingWindow::new(permits, Duration::from_micros(micros)).unwrap();
            let mut world = World { state: None, now: 1_700_000_000_000_000, grants: Vec::new() };
            for (step, asked) in before {
                world.now += step;
                world.take(long, asked);
            }
            world.now += pause;
            for (step, asked) in after {
                world.now += step;
                let asked = asked.min(permits);
                let outcome = world.take(short, asked);
                if !outcome.allowed {
                    let retry = outcome.retry_micros;
                    prop_assert!(retry <= TOUCHED as u64 * short.slice_micros(), "shut for {} us", retry);
                    world.now += retry;
                    prop_assert!(world.take(short, asked).allowed, "not after {} us", retry);
                }
                let seen = world.seen_within(micros);
                prop_assert!(seen <= permits, "{} in a window", seen);
            }
        }
    }

    proptest! {
        #[test]
        fn windows_of_several_limits_together_let_through_no_more_than_the_most_in_the_shortest(
            limits in prop::collection::vec((1_u64..40, 1_u64..20_000), 2..4),
            steps in prop::collection::vec((0_usize..4, 0_u64..3_000, 1_u64..40), 1..300),
        ) {
            let most = limits.iter().map(|(permits, _)| *permits).max().unwrap();
            let shortest = limits.iter().map(|(_, micros)| *micros).min().unwrap();
            let mut world = World { state: None, now: 1_700_000_000_000_000, grants: Vec::new() };
            for (which, step, asked) in steps {
                let (permits, micros) = limits[which % limits.len()];
                let limit = SlidingWindow::new(permits, Duration::from_micros(micros)).unwrap();
                world.now += step;
                world.take(limit, asked.min(permits));
                prop_assert!(world.seen_within(shortest) <= most, "{:?}", world.grants);
            }
        }
    }

    #[test]
    fn what_was_taken_under_a_shorter_length_counts_under_a_longer_one() {
        let short = SlidingWindow::new(10, Duration::from_secs(1)).unwrap();
        let long = SlidingWindow::new(10, Duration::from_secs(60)).unwrap();
        let mut window = Window::empty(short, 5_000_000);
        assert!(window.take(short, 7, 5_000_000).allowed);
        let mut window = Window::read(long, Some(window.write(short).as_bytes()), 5_100_000).unwrap();
        assert!(!window.take(long, 4, 5_100_000).allowed);
        assert!(window.take(long, 3, 5_100_000).allowed);
    }

    #[test]
    fn what_is_no_window_is_corrupt() {
        let limit = SlidingWindow::new(10, Duration::from_secs(1)).unwrap();
        let counts = " 0".repeat(TOUCHED);
        for state in [
            "window".into(),
            format!("window 0 1{counts}"),
            format!("window 1 1{counts} 0"),
            format!("window 67108864 67108864{counts}"),
            format!("window 4503599627370495 4503599627370495{counts}"),
            format!("bucket 1 1{counts}"),
        ] {
            let error = Window::read(limit, Some(state.as_bytes()), 0).unwrap_err();
            assert_eq!(error.kind(), commonhold_core::ErrorKind::Corrupt, "{state:?}");
        }
    }
}
