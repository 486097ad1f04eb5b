//! Rate limiters: in one process, shared by all instances through a store, or leased from it in portions.
//!
//! | form | a decision takes | exact over | when the store is away |
//! |---|---|---|---|
//! | [`LocalLimiter`] | nanoseconds | this process | needs none |
//! | [`DistributedLimiter`] | one round trip; concurrent ones travel together | all instances, in the order of their calls | [`OnUnavailable`] |
//! | [`HybridLimiter`] | nanoseconds, and now and then a round trip | all instances: never more than the limit, at times less | what is leased, then [`OnUnavailable`] |
//!
//! What is limited is a [`TokenBucket`] (a rate with bursts; also [GCRA](TokenBucket::gcra), which is the same) or a
//! [`SlidingWindow`] (so many in any window). Both count in integers and lose no fraction, however often they are
//! asked. A [`ConcurrencyLimiter`] limits the number of calls that are in progress at a time, in the same three forms.
//!
//! ```
//! # tokio::runtime::Runtime::new().unwrap().block_on(async {
//! use commonhold_coordination::limit::{DistributedLimiter, OnUnavailable, Rate, TokenBucket};
//! use commonhold_core::{MemoryBackend, Store};
//!
//! let store = Store::new(MemoryBackend::new());
//! let limit = TokenBucket::new(Rate::per_minute(10)?, 2)?;
//! let limiter = DistributedLimiter::new(store, "mail", limit, OnUnavailable::Refuse)?;
//! assert!(limiter.try_acquire(2).await?.allowed);
//! let decision = limiter.try_acquire(1).await?;
//! assert!(!decision.allowed);
//! println!("come back in {:?}", decision.retry_after);
//! # Ok::<(), commonhold_core::Error>(())
//! # }).unwrap();
//! ```

mod bucket;
mod budget;
pub(crate) mod clock;
mod concurrency;
mod config;
mod distributed;
mod hybrid;
mod lease;
mod leases;
mod local;
mod meter;
#[cfg(test)]
mod model;
mod portion;
mod state;
mod take;
#[cfg(test)]
mod twins;
mod unavailable;
mod wait;
mod window;

use std::time::Duration;

pub use self::{
    concurrency::{ConcurrencyLimiter, Instance, Permit},
    config::{Limit, Rate, SlidingWindow, TokenBucket},
    distributed::DistributedLimiter,
    hybrid::HybridLimiter,
    local::LocalLimiter,
    unavailable::OnUnavailable,
};

/// What a limiter says to a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use = "whoever is refused must not go on"]
pub struct Decision {
    /// The permits were taken. If not, none were.
    pub allowed: bool,
    /// Permits that can be taken now, after this call. A [`HybridLimiter`] says how many its instance has.
    pub remaining: u64,
    /// When to ask again: after this time there are enough, if nobody else takes them. While instances hold some on
    /// lease it is no later than those leases end, for what they do not need comes back. Zero if allowed.
    pub retry_after: Duration,
    /// After this time everything can be taken again, if nobody takes any.
    pub reset_after: Duration,
    /// The store was away, and this is what [`OnUnavailable`] says.
    pub degraded: bool,
}

/// A decision as states and replies have it, in microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Outcome {
    allowed: bool,
    remaining: u64,
    retry_micros: u64,
    reset_micros: u64,
}

impl From<Outcome> for Decision {
    #[inline]
    fn from(outcome: Outcome) -> Self {
        Self {
            allowed: outcome.allowed,
            remaining: outcome.remaining,
            retry_after: Duration::from_micros(outcome.retry_micros),
            reset_after: Duration::from_micros(outcome.reset_micros),
            degraded: false,
        }
    }
}
