//! Locks, elections, counters, rate limiters and circuit breakers over any [`Store`](commonhold_core::Store).
//!
//! Each is one pure [`Transition`](commonhold_core::Transition): `(state, command, now) -> (state, reply)`, applied
//! atomically and on the store's clock, so that no clock of an instance decides. On Redis it runs as a script, which
//! a property test holds equal to its twin in Rust.

pub mod breaker;
pub mod counter;
mod election;
mod fence;
mod guard;
mod holders;
mod lease;
pub mod limit;
mod lock;
mod newest;
mod redlock;
mod safety;
mod semaphore;
mod state;
mod turn;
#[cfg(test)]
mod twin;

pub use self::{
    election::{Election, Lead, Leader},
    fence::{Fence, Fenced},
    guard::Guard,
    holders::{Holder, Holders, process_name},
    lock::Locks,
    redlock::{Redlock, RedlockGuard},
    safety::Safety,
    semaphore::{RwLock, Semaphore},
};
