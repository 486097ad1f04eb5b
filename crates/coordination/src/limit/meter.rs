//! What limiters tell the metrics.

use std::sync::{Arc, OnceLock};

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
/// the recorder that is installed at the first decision. Before that there are none: it may be replaced by a meter of
/// another name.
#[derive(Clone)]
pub(super) struct Meter {
    name: Arc<str>,
    form: &'static str,
    series: Arc<OnceLock<Series>>,
}

struct Series {
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
        Self { name: name.into(), form, series: Arc::default() }
    }

    /// The same for another name.
    pub(super) fn named(&self, name: &str) -> Self {
        Self::new(name, self.form)
    }

    /// Counts a decision, and what it says remains of the limit.
    #[inline]
    pub(super) fn count(&self, verdict: Verdict, remaining: Option<u64>) {
        let series = self.series.get_or_init(|| Series::new(&self.name, self.form));
        let counter = match verdict {
            Verdict::Allowed => &series.allowed,
            Verdict::Refused => &series.refused,
            Verdict::FailedOpen => &series.failed_open,
            Verdict::FailedClosed => &series.failed_closed,
            Verdict::ShareAllowed => &series.share_allowed,
            Verdict::ShareRefused => &series.share_refused,
        };
        counter.increment(1);
        if let Some(remaining) = remaining {
            series.remaining.set(remaining as f64);
        }
    }
}

impl Series {
    fn new(name: &str, form: &'static str) -> Self {
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
}

impl std::fmt::Debug for Meter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Meter")
    }
}
