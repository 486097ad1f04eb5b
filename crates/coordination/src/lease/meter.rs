//! What is counted of leases.

use commonhold_core::{Key, Result};
use metrics::{Gauge, counter, gauge, histogram};
use tokio::time::Instant;

/// What a lease is for: the text before the colon in its key.
fn kind(key: &Key) -> &'static str {
    let known = ["lock", "semaphore", "rwlock", "election"];
    let is =
        |kind: &&str| key.as_bytes().strip_prefix(kind.as_bytes()).is_some_and(|rest| rest.starts_with(b":"));
    known.into_iter().find(is).unwrap_or("other")
}

/// Counts how a claim ended that was made at this time.
pub(crate) fn claimed<T>(key: &Key, asked: Instant, claimed: &Result<Option<T>>) {
    let outcome = match claimed {
        Ok(Some(_)) => "acquired",
        Ok(None) => "not_had",
        Err(_) => "failed",
    };
    let kind = kind(key);
    counter!("commonhold_lease_claims_total", "kind" => kind, "outcome" => outcome).increment(1);
    histogram!("commonhold_lease_wait_seconds", "kind" => kind).record(asked.elapsed().as_secs_f64());
}

/// Counts a lease that was lost.
pub(super) fn lost(key: &Key) {
    counter!("commonhold_leases_lost_total", "kind" => kind(key)).increment(1);
}

/// A lease counts as held until this is dropped.
pub(super) struct Counted(Gauge);

impl Counted {
    pub(super) fn new(key: &Key) -> Self {
        let held = gauge!("commonhold_leases_held", "kind" => kind(key));
        held.increment(1);
        Self(held)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.decrement(1);
    }
}
