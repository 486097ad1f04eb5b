//! The sled backend passes the conformance kit.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic, missing_docs)]

use std::sync::Arc;

use commonhold_core::{ManualClock, Timestamp};
use commonhold_sled::{Durability, SledBackend, SledConfig};
use commonhold_testkit::{MAX_VALUE_BYTES, Subject, conformance};

/// All but the two of snapshot scans, which sled does not have.
const CASES: usize = 152;

async fn sled(durability: Durability, tree: Option<&str>) -> Subject {
    let directory = tempfile::tempdir().unwrap();
    let clock = Arc::new(ManualClock::new(Timestamp::from_millis(1_700_000_000_000)));
    let config = SledConfig::new(directory.path()).durability(durability).max_value_bytes(MAX_VALUE_BYTES);
    let config = tree.into_iter().fold(config, SledConfig::tree);
    let backend = SledBackend::open_with_clock(config, clock.clone()).await.unwrap();
    Subject::new(Arc::new(backend)).with_clock(clock).keeping(directory)
}

conformance!(sync, CASES, || sled(Durability::Sync, None));
conformance!(buffered, CASES, || sled(Durability::Buffered, Some("sessions")));
