//! The token bucket: a level that refills, and the part of it that instances hold on lease.

use commonhold_core::Result;

use super::{
    Outcome,
    config::{MAX, TokenBucket},
    leases::Leases,
    state::{Number, Word},
};
use crate::state::{Fields, corrupt};

/// The state `bucket UNIT LEVEL AT` and then the leases.
///
/// `level` and what is held on lease never exceed the burst together: refill stops there. So whenever the held permits
/// are spent, no time T sees more than `burst + rate * T`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Bucket {
    /// Units there are to take.
    pub(super) level: u64,
    /// The microsecond of the store's clock up to which it is refilled.
    pub(super) at: u64,
    pub(super) leases: Leases,
}

const NAME: &str = "a token bucket";

impl Bucket {
    /// A full one.
    pub(super) fn full(limit: TokenBucket, now: u64) -> Self {
        Self { level: limit.capacity(), at: now, leases: Leases::default() }
    }

    /// What a state is at this time.
    pub(super) fn read(limit: TokenBucket, state: Option<&[u8]>, now: u64) -> Result<Self> {
        let Some(state) = state else { return Ok(Self::full(limit, now)) };
        let mut bucket = Self::parse(limit, state)?;
        bucket.refill(limit, now);
        Ok(bucket)
    }

    fn parse(limit: TokenBucket, state: &[u8]) -> Result<Self> {
        let mut fields = Fields::new(NAME, state)?;
        let Word(kind) = fields.next()?;
        let (Number(unit), Number(level), Number(at)) = (fields.next()?, fields.next()?, fields.next()?);
        if kind != "bucket" || unit == 0 {
            return Err(corrupt(NAME));
        }
        let leases = Leases::read(NAME, fields)?;
        let level = if unit == limit.unit() { level } else { converted(level, unit, limit) };
        Ok(Self { level, at, leases })
    }

    pub(super) fn write(&self, limit: TokenBucket) -> String {
        let mut text = format!("bucket {} {} {}", limit.unit(), self.level, self.at);
        self.leases.write(&mut text);
        text
    }

    /// Lets flow what flowed until now, and ends the leases that have run out. A clock that has stepped back
    /// stands still.
    fn refill(&mut self, limit: TokenBucket, now: u64) {
        let now = now.max(self.at);
        let Leases(leases) = &mut self.leases;
        let ended = leases.iter().map(|lease| lease.expires).filter(|expires| *expires <= now).max();
        if let Some(ended) = ended {
            // Until then there was no room for what they held.
            self.flow(limit, ended.max(self.at));
            self.leases.0.retain(|lease| lease.expires > now);
        }
        self.flow(limit, now);
    }

    fn flow(&mut self, limit: TokenBucket, now: u64) {
        let room = self.room(limit) * limit.unit();
        self.level = refilled(self.level.min(room), room, now - self.at, limit.flow());
        self.at = now;
    }

    /// Permits that are not held on lease.
    pub(super) fn room(&self, limit: TokenBucket) -> u64 {
        limit.burst().saturating_sub(self.leases.held())
    }

    /// Takes back so many permits of an instance that keeps so many. Returns how many there are now.
    pub(super) fn give_back(&mut self, limit: TokenBucket, keep: u64, back: u64) -> u64 {
        let room = self.room(limit).saturating_sub(keep) * limit.unit();
        self.level = (self.level + back.min(limit.burst()) * limit.unit()).min(room);
        self.level / limit.unit()
    }

    /// Takes so many permits, or says how long to wait for them.
    pub(super) fn take(&mut self, limit: TokenBucket, permits: u64, now: u64) -> Outcome {
        let need = permits * limit.unit();
        let allowed = need <= self.level;
        let mut retry_micros = 0;
        if allowed {
            self.level -= need;
        } else {
            retry_micros = self.retry(limit, need, now);
            if permits > self.room(limit) {
                // Before the leases have ended there is no room for so many, unless some are given back.
                retry_micros = retry_micros.max(self.leases.last().saturating_sub(self.at));
            }
        }
        Outcome {
            allowed,
            remaining: self.level / limit.unit(),
            retry_micros,
            reset_micros: self.reset_micros(limit, now),
        }
    }

    /// How long until there are so many units, if nobody takes any.
    pub(super) fn wait(&self, limit: TokenBucket, units: u64, now: u64) -> u64 {
        self.at - now.min(self.at) + units.saturating_sub(self.level).div_ceil(limit.flow())
    }

    /// When to ask again for so many units: when they have flowed, or before that when those who hold some on lease
    /// have given back what they do not need.
    pub(super) fn retry(&self, limit: TokenBucket, units: u64, now: u64) -> u64 {
        let wait = self.wait(limit, units, now);
        match self.leases.last() {
            0 => wait,
            last => wait.min(last.saturating_sub(self.at)),
        }
    }

    /// How long until it is certainly full, if nobody takes any.
    pub(super) fn reset_micros(&self, limit: TokenBucket, now: u64) -> u64 {
        let leased = self.leases.last().saturating_sub(now.max(self.at));
        (leased + self.wait(limit, limit.capacity(), now)).min(MAX)
    }
}

/// A level of units of another size. Whole permits survive a change of the rate, and of a part of one as much as doubles
/// are certain of: those of a script are the same. Were it lost, instances of two rates that ask often would get nothing.
fn converted(level: u64, of: u64, limit: TokenBucket) -> u64 {
    let (whole, part) = (level / of, level % of);
    if whole >= limit.burst() {
        return limit.capacity();
    }
    let part = (part as f64 / of as f64 * limit.unit() as f64).floor() as u64;
    whole * limit.unit() + part.saturating_sub(1)
}

/// A level after so many microseconds.
fn refilled(level: u64, capacity: u64, elapsed: u64, flow: u64) -> u64 {
    if elapsed >= (capacity - level).div_ceil(flow) { capacity } else { level + elapsed * flow }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::{super::leases::Lease, *};
    use crate::limit::Rate;

    proptest! {
        #[test]
        fn whoever_takes_all_that_is_there_gets_the_burst_and_the_rate_and_not_a_fraction_less(
            permits in prop_oneof![Just(1_u64), Just(501), Just(999_983), 1_u64..1_000_000],
            per in prop_oneof![Just(1_000_000_u64), Just(86_400_000_000), 1_000_000_u64..100_000_000_000],
            burst in 2_u64..50,
            steps in prop::collection::vec(prop_oneof![Just(0_u64), 1_u64..1_000, any::<u64>()], 1..300),
        ) {
            let limit = TokenBucket::new(Rate::new(permits, Duration::from_micros(per)).unwrap(), burst).unwrap();
            let start = 1_700_000_000_000_000;
            let mut now = start;
            let mut bucket = Bucket::full(limit, now);
            let mut taken = burst;
            prop_assert!(bucket.take(limit, burst, now).allowed);
            // Nothing runs over in this time, as there is less than one permit left each time.
            let longest = (limit.capacity() - limit.unit()) / limit.flow();
            for step in steps {
                now += step % (longest + 1);
                bucket = Bucket::read(limit, Some(bucket.write(limit).as_bytes()), now).unwrap();
                let all = bucket.level / limit.unit();
                prop_assert!(bucket.take(limit, all, now).allowed);
                taken += all;
            }
            let flowed = u128::from(now - start) * u128::from(permits) / u128::from(per);
            prop_assert_eq!(u128::from(taken), u128::from(burst) + flowed);
        }

        #[test]
        fn waiting_as_long_as_it_says_is_enough_and_a_microsecond_less_is_not(
            permits in 1_u64..1_000_000,
            burst in 1_u64..1_000,
            first in 1_u64..1_000,
            then in 1_u64..1_000,
        ) {
            let limit = TokenBucket::new(Rate::per_second(permits).unwrap(), burst).unwrap();
            let (first, then) = (first.min(burst), then.min(burst));
            let now = 1_000_000;
            let mut bucket = Bucket::full(limit, now);
            prop_assert!(bucket.take(limit, first, now).allowed);
            let outcome = bucket.clone().take(limit, then, now);
            prop_assert_eq!(outcome.allowed, outcome.retry_micros == 0);
            let at = |micros| Bucket::read(limit, Some(bucket.write(limit).as_bytes()), now + micros).unwrap();
            prop_assert!(at(outcome.retry_micros).take(limit, then, now + outcome.retry_micros).allowed);
            if let Some(early) = outcome.retry_micros.checked_sub(1) {
                prop_assert!(!at(early).take(limit, then, now + early).allowed);
            }
            let full = bucket.reset_micros(limit, now);
            prop_assert_eq!(at(full).level, limit.capacity());
            prop_assert!(full == 0 || at(full - 1).level < limit.capacity());
        }
    }

    proptest! {
        #[test]
        fn no_time_sees_more_than_the_burst_and_the_rate_through_steps_back_and_forth(
            permits in 1_u64..3_000_000,
            burst in 1_u64..40,
            steps in prop::collection::vec((-500_i64..1_500, 1_u64..40), 1..200),
        ) {
            let limit = TokenBucket::new(Rate::per_second(permits).unwrap(), burst).unwrap();
            let mut now = 1_000_000_u64;
            let mut state: Option<Vec<u8>> = None;
            let mut latest = 0;
            let mut grants: Vec<(u64, u64)> = Vec::new();
            for (step, asked) in steps {
                now = now.saturating_add_signed(step);
                let mut bucket = Bucket::read(limit, state.as_deref(), now).unwrap();
                if bucket.take(limit, asked.min(burst), now).allowed {
                    state = Some(bucket.write(limit).into_bytes());
                    latest = latest.max(now);
                    grants.push((latest, asked.min(burst)));
                }
            }
            for (index, (begun, _)) in grants.iter().enumerate() {
                let mut seen = 0;
                for (at, asked) in grants.iter().skip(index) {
                    seen += asked;
                    let flowed = (at - begun) * limit.flow();
                    prop_assert!(seen * limit.unit() <= limit.capacity() + flowed, "{} from {} to {}", seen, begun, at);
                }
            }
        }
    }

    proptest! {
        #[test]
        fn buckets_of_several_limits_together_let_through_no_more_than_the_greatest_burst_and_rate(
            limits in prop::collection::vec((1_u64..3_000_000, 1_u64..40), 2..4),
            steps in prop::collection::vec((0_usize..4, 0_u64..1_500, 1_u64..40), 1..200),
        ) {
            let most = limits.iter().map(|(_, burst)| *burst).max().unwrap();
            let fastest = Rate::per_second(limits.iter().map(|(rate, _)| *rate).max().unwrap()).unwrap();
            let greatest = TokenBucket::new(fastest, most).unwrap();
            let mut now = 1_000_000_u64;
            let mut state: Option<String> = None;
            let mut grants: Vec<(u64, u64)> = Vec::new();
            for (which, step, asked) in steps {
                now += step;
                let (rate, burst) = limits[which % limits.len()];
                let limit = TokenBucket::new(Rate::per_second(rate).unwrap(), burst).unwrap();
                let mut bucket = Bucket::read(limit, state.as_deref().map(str::as_bytes), now).unwrap();
                if bucket.take(limit, asked.min(burst), now).allowed {
                    state = Some(bucket.write(limit));
                    grants.push((now, asked.min(burst)));
                }
                let mut seen = 0;
                for (begun, asked) in grants.iter().rev() {
                    seen += asked;
                    let flowed = (now - begun) * greatest.flow();
                    prop_assert!(seen * greatest.unit() <= greatest.capacity() + flowed, "{} since {}", seen, begun);
                }
            }
        }
    }

    #[test]
    fn while_others_hold_permits_it_is_said_to_ask_again_when_their_leases_end() {
        let limit = TokenBucket::new(Rate::per_day(1).unwrap(), 10).unwrap();
        let lease = |held, expires| Lease { id: expires, seq: 1, held, want: 1, expires };
        let retry = |leases: &[Lease], permits, now| {
            let mut bucket = Bucket { level: 0, at: 1_000, leases: Leases(leases.to_vec()) };
            bucket.take(limit, permits, now).retry_micros
        };
        let day = 86_400_000_000;
        assert_eq!(retry(&[], 1, 1_000), day);
        assert_eq!(retry(&[lease(0, 1_700)], 1, 1_000), day, "nothing can come back from there");
        assert_eq!(retry(&[lease(0, 1_700), lease(4, 1_500), lease(1, 1_400)], 1, 1_000), 500);
        assert_eq!(retry(&[lease(4, 1_500)], 1, 400), 500, "though the clock has stepped back");
        // There is no room for so many, however fast they flow.
        let limit = TokenBucket::new(Rate::per_second(1_000_000).unwrap(), 10).unwrap();
        let mut bucket = Bucket { level: 0, at: 1_000, leases: Leases(vec![lease(4, 1_500)]) };
        assert_eq!(bucket.take(limit, 6, 1_000).retry_micros, 6);
        assert_eq!(bucket.take(limit, 7, 1_000).retry_micros, 500);
    }

    #[test]
    fn whole_permits_survive_a_change_of_the_limit() {
        let slow = TokenBucket::new(Rate::per_second(10).unwrap(), 8).unwrap();
        let fast = TokenBucket::new(Rate::per_second(1_000).unwrap(), 5).unwrap();
        let mut bucket = Bucket::full(slow, 7);
        bucket.take(slow, 5, 7);
        let read =
            |limit, state: &Bucket, of| Bucket::read(limit, Some(state.write(of).as_bytes()), 7).unwrap();
        assert_eq!(read(fast, &bucket, slow).level, 3 * fast.unit());
        assert_eq!(read(fast, &Bucket::full(slow, 7), slow).level, 5 * fast.unit());
    }

    #[test]
    fn what_is_no_bucket_is_corrupt() {
        let limit = TokenBucket::new(Rate::per_second(10).unwrap(), 8).unwrap();
        for state in [
            "",
            "bucket",
            "bucket 1 2",
            "bucket 0 2 3",
            "bucket 1 2 3 ",
            "bucket 1 2 3 4",
            "bucket 1 -2 3",
            "bucket 1 +2 3",
            "window 1 2 3",
            "bucket 1 2 4503599627370496",
            "bucket 1 2 00000000000000003",
            "bucket 1  2 3",
            "bucket 1 2 3 4 5 6 7",
        ] {
            let error = Bucket::read(limit, Some(state.as_bytes()), 0).unwrap_err();
            assert_eq!(error.kind(), commonhold_core::ErrorKind::Corrupt, "{state:?}");
        }
    }
}
