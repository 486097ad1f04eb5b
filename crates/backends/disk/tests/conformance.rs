//! The disk backend passes the conformance kit, however durable it is.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic, missing_docs)]

use std::{sync::Arc, time::Duration};

use commonhold_core::{ManualClock, Timestamp};
use commonhold_disk::{DiskBackend, DiskConfig, Durability};
use commonhold_testkit::{MAX_VALUE_BYTES, Subject, conformance};

/// All there are: the disk backend promises everything that the kit asks for.
const CASES: usize = 154;

async fn disk(durability: Durability) -> Subject {
    let directory = tempfile::tempdir().unwrap();
    let clock = Arc::new(ManualClock::new(Timestamp::from_millis(1_700_000_000_000)));
    let config = DiskConfig::new(directory.path()).durability(durability).max_value_bytes(MAX_VALUE_BYTES);
    let backend = DiskBackend::open_with_clock(config, clock.clone()).await.unwrap();
    Subject::new(Arc::new(backend)).with_clock(clock).keeping(directory)
}

conformance!(sync, CASES, || disk(Durability::Sync));
conformance!(interval, CASES, || disk(Durability::Interval(Duration::from_millis(1))));
conformance!(buffered, CASES, || disk(Durability::Buffered));
