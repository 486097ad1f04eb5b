//! The conformance kit that every backend and every layer of Commonhold passes.
//!
//! A backend invokes [`conformance!`] once, in an integration test, and gets every case as a named `#[test]`:
//!
//! ```ignore
//! use commonhold_testkit::{Subject, conformance};
//!
//! // `mod memory` with a test for each case; 120 of them must be checked in full.
//! conformance!(memory, 120, || async {
//!     let clock = Arc::new(ManualClock::default());
//!     let backend = MemoryBackend::builder().clock(clock.clone()).max_value_bytes(1 << 20).build();
//!     Subject::new(Arc::new(backend)).with_clock(clock)
//! });
//! ```
//!
//! Each case runs against a [`Subject`] of its own, on a runtime with two threads, and fails by its name when it
//! takes longer than a minute. A case that needs a capability which the backend does not promise checks
//! instead that the backend answers `Unsupported`. How many cases are checked in full is part of the
//! invocation, so that a capability that is lost by mistake, or a case that is new, does not go unnoticed.
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
mod model;
mod subject;

pub use self::{
    conformance::{Capability, Outcome, assert_complete, run},
    eventually::eventually,
    subject::Subject,
};

/// The largest limit on values that a fixture may configure: 1 MiB. The kit writes values of that length.
pub const MAX_VALUE_BYTES: u64 = 1 << 20;
