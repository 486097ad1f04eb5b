//! Counters: in this process, in a store, and both.
//!
//! | | where it counts | an increment costs | a crash loses |
//! |---|---|---|---|
//! | [`LocalCounter`] | in this process | nanoseconds | everything |
//! | [`Counter`] | in the store | a way to the store, shared with all that are made meanwhile | nothing |
//! | [`HybridCounter`] | here at first, in the store soon | nanoseconds | what was added since the last flush; nothing with a journal |
//!
//! In a store a counter is decimal text under the key that it was given, as the store's own increment takes it.

mod combine;
mod hybrid;
mod local;
mod once;
#[cfg(test)]
mod properties;
mod shared;

pub use self::{
    hybrid::{HybridCounter, HybridCounterBuilder},
    local::LocalCounter,
    shared::Counter,
};
