//! Circuit breakers: in one process, shared by all instances through a store, or both.
//!
//! | form | a decision takes | what it sees | when the store is away |
//! |---|---|---|---|
//! | [`LocalBreaker`] | nanoseconds | the calls of this process | needs none |
//! | [`DistributedBreaker`] | one round trip, and one to tell how the call ended | the calls of all instances | [`OnUnavailable`] |
//! | [`HybridBreaker`] | nanoseconds | its own calls at once, those of all at each interval | goes on alone |
//!
//! A breaker is *closed* and lets calls through until too many fail or are slow, as [`Settings`] say. Then it is *open*
//! and refuses them for a while; after that *half-open*: a few calls are let through as probes, each with a lease. If they
//! succeed, it closes; if one fails, it opens again. By hand it can be *isolated*. Each change begins a new generation, and
//! a call counts only in the generation in which it began.
//!
//! ```
//! # tokio::runtime::Runtime::new().unwrap().block_on(async {
//! use commonhold_coordination::breaker::{BreakerError, LocalBreaker, Settings};
//!
//! let breaker = LocalBreaker::new("payments", &Settings::new().failure_rate(0.5))?;
//! match breaker.execute(|| async { "5".parse::<i32>() }).await {
//!     Ok(five) => assert_eq!(five, 5),
//!     Err(BreakerError::Open { retry_after }) => println!("come back in {retry_after:?}"),
//!     Err(error) => println!("{error}"),
//! }
//! # Ok::<(), commonhold_core::Error>(())
//! # }).unwrap();
//! ```

mod core;
mod distributed;
mod error;
mod execute;
mod hybrid;
mod layer;
mod local;
mod machine;
mod mix;
#[cfg(test)]
mod properties;
mod settings;
mod text;
#[cfg(feature = "tower")]
mod tower;
mod transition;
mod watch;

#[cfg(feature = "tower")]
pub use self::tower::{AnyError, FailureRule, TowerFuture, TowerLayer, TowerService};
pub use self::{
    core::{Permit, Totals},
    distributed::{DistributedBreaker, DistributedPermit, OnUnavailable},
    error::BreakerError,
    hybrid::HybridBreaker,
    layer::BreakerLayer,
    local::LocalBreaker,
    machine::{Counts, State, Status},
    settings::{Settings, Window},
    watch::Event,
};
