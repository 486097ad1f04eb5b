//! Coordination over real stores.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic, missing_docs)]

mod breakers;
mod common;
mod concurrency;
mod counters;
mod elections;
mod fences;
mod hybrid_breakers;
mod limit;
mod locks;
mod names;
mod processes;
mod redlocks;
mod semaphores;
mod spawned;
mod wakeups;
