//! The state of any limit.

use std::time::Duration;

use commonhold_core::{Expiry, Result, Step};

use super::{
    Outcome,
    bucket::Bucket,
    config::{Limit, SlidingWindow, TokenBucket},
    leases::Leases,
    state::STAYS_MICROS,
    window::Window,
};

/// What there is to take, and what instances hold of it on lease.
#[derive(Debug)]
pub(super) enum Budget {
    Bucket(TokenBucket, Bucket),
    Window(SlidingWindow, Window),
}

impl Budget {
    /// What a state is at this time.
    pub(super) fn read(limit: Limit, state: Option<&[u8]>, now: u64) -> Result<Self> {
        Ok(match limit {
            Limit::Bucket(limit) => Self::Bucket(limit, Bucket::read(limit, state, now)?),
            Limit::Window(limit) => Self::Window(limit, Window::read(limit, state, now)?),
        })
    }

    /// Takes so many permits, or says how long to wait for them.
    pub(super) fn take(&mut self, permits: u64, now: u64) -> Outcome {
        match self {
            Self::Bucket(limit, bucket) => bucket.take(*limit, permits, now),
            Self::Window(limit, window) => window.take(*limit, permits, now),
        }
    }

    pub(super) fn leases(&mut self) -> &mut Leases {
        match self {
            Self::Bucket(_, bucket) => &mut bucket.leases,
            Self::Window(_, window) => &mut window.leases,
        }
    }

    /// The time on the store's clock, which stands still if that has stepped back.
    pub(super) fn at(&self, now: u64) -> u64 {
        match self {
            Self::Bucket(_, bucket) => bucket.at,
            Self::Window(limit, window) => window.at(*limit, now),
        }
    }

    /// Takes in what has become of the permits of a lease that was taken out. Returns how many there are to lend.
    pub(super) fn settle(&mut self, keep: u64, back: u64, spent: u64) -> u64 {
        match self {
            Self::Bucket(limit, bucket) => bucket.give_back(*limit, keep, back),
            Self::Window(limit, window) => {
                window.add(spent);
                window.free(*limit).saturating_sub(keep)
            }
        }
    }

    /// Moves so many permits to a lease.
    pub(super) fn lend(&mut self, permits: u64) {
        match self {
            Self::Bucket(limit, bucket) => bucket.level -= permits * limit.unit(),
            // What is held on lease is not free.
            Self::Window(..) => {}
        }
    }

    /// When to ask again for so many permits.
    pub(super) fn retry(&self, permits: u64, now: u64) -> u64 {
        match self {
            Self::Bucket(limit, bucket) => bucket.retry(*limit, permits * limit.unit(), now),
            Self::Window(limit, window) => window.retry(*limit, permits, now),
        }
    }

    pub(super) fn reset_micros(&self, now: u64) -> u64 {
        match self {
            Self::Bucket(limit, bucket) => bucket.reset_micros(*limit, now),
            Self::Window(limit, window) => window.reset_micros(*limit, now),
        }
    }

    /// Whether it must be written though nothing is taken.
    pub(super) fn moved(&self) -> bool {
        matches!(self, Self::Window(_, window) if window.moved())
    }

    /// Puts it under the key, where it lives until it has nothing to say any more.
    pub(super) fn put(&self, now: u64, reply: String) -> Step {
        let state = match self {
            Self::Bucket(limit, bucket) => bucket.write(*limit),
            Self::Window(limit, window) => window.write(*limit),
        };
        let ttl = Duration::from_micros(self.reset_micros(now) + STAYS_MICROS);
        Step::put(state, Expiry::After(ttl), reply)
    }
}
