//! The conformance kit that every backend and every layer of Commonhold passes, and what tests of backends need
//! besides: [real servers](servers), a [proxy] that does to connections what networks do, and
//! [histories](history) of concurrent clients that are checked for linearizability.
//!
//! A backend invokes [`conformance!`] once, in an integration test, and gets every case as a named `#[test]`:
//!
//! ```
//! use std::sync::Arc;
//!
//! use commonhold_core::{ManualClock, MemoryBackend};
//! use commonhold_testkit::{MAX_VALUE_BYTES, Subject, conformance};
//!
//! // `mod memory` with a test for each case; 152 of them must be checked in full.
//! conformance!(memory, 152, || async {
//!     let clock = Arc::new(ManualClock::default());
//!     let memory = MemoryBackend::builder().clock(clock.clone()).max_value_bytes(MAX_VALUE_BYTES).build();
//!     Subject::new(Arc::new(memory)).with_clock(clock)
//! });
//! # fn main() {}
//! ```
//!
//! Each case runs against a [`Subject`] of its own, on a runtime with two threads, and fails by its name when it
//! takes longer than a minute. A case that needs a capability which the backend does not promise checks
//! instead that the backend answers `Unsupported`. How many cases are checked in full is part of the
//! invocation, so that a capability that is lost by mistake, or a case that is new, does not go unnoticed.
//!
//! One case compares random operations with a model. Its seed is another one each time; when it fails it says
//! which it was, and `COMMONHOLD_SEED` in the environment repeats it.
//!
//! What a fixture must give: an empty store, and a limit on values of at most [`MAX_VALUE_BYTES`].

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "the kit is test code: it fails by panicking"
)]

mod cases;
mod conformance;
mod eventually;
pub mod history;
mod model;
pub mod proxy;
pub mod servers;
mod subject;

pub use self::{
    conformance::{Capability, Outcome, assert_complete, run},
    eventually::eventually,
    subject::Subject,
};

/// The largest limit on values that a fixture may configure: 1 MiB. The kit writes values of that length.
pub const MAX_VALUE_BYTES: u64 = 1 << 20;
