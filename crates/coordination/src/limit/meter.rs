//! What limiters tell the metrics.

use metrics::{Counter, Gauge, counter, gauge};

/// How a call ended.
#[derive(Debug, Clone, Copy)]
pub(super) enum Verdict {
    Allowed,
    Refused,
    /// Let through without the store.
    FailedOpen,
    /// Refused without the store.
    FailedClosed,
    /// From the local share, without the store.
    ShareAllowed,
    ShareRefused,
}

impl Verdict {
    #[inline]
    pub(super) fn of(allowed: bool) -> Self {
        if allowed { Self::Allowed } else { Self::Refused }
    }
}

/// `commonhold_limit_decisions_total` by `outcome` and `commonhold_limit_remaining`, both by `name` and `form`, in
/// the recorder that is installed when it is made.
#[derive(Clone)]
pub(super) struct Meter {
    allowed: Counter,
    refused: Counter,
    failed_open: Counter,
    failed_closed: Counter,
    share_allowed: Counter,
    share_refused: Counter,
    remaining: Gauge,
}

impl Meter {
    pub(super) fn new(name: &str, form: &'static str) -> Self {
        let decisions = |outcome: &'static str| {
            let name = name.to_owned();
            counter!("commonhold_limit_decisions_total", "name" => name, "form" => form, "outcome" => outcome)
        };
        Self {
            allowed: decisions("allowed"),
            refused: decisions("refused"),
            failed_open: decisions("failed_open"),
            failed_closed: decisions("failed_closed"),
            share_allowed: decisions("share_allowed"),
            share_refused: decisions("share_refused"),
            remaining: gauge!("commonhold_limit_remaining", "name" => name.to_owned(), "form" => form),
        }
    }

    /// Counts a decision, and what it says remains of the limit.
    #[inline]
    pub(super) fn count(&self, verdict: Verdict, remaining: Option<u64>) {
        let counter = match verdict {
            Verdict::Allowed => &self.allowed,
            Verdict::Refused => &self.refused,
            Verdict::FailedOpen => &self.failed_open,
            Verdict::FailedClosed => &self.failed_closed,
            Verdict::ShareAllowed => &self.share_allowed,
            Verdict::ShareRefused => &self.share_refused,
        };
        counter.increment(1);
        if let Some(remaining) = remaining {
            self.remaining.set(remaining as f64);
        }
    }
}

impl std::fmt::Debug for Meter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Meter")
    }
}
