//! Drops expired records while the engine compacts its tables.

use std::{panic::AssertUnwindSafe, sync::Arc};

use commonhold_core::{Clock, Timestamp};
use fjall::compaction::filter::{
    CompactionFilter, CompactionFilterResult, Context, Factory, ItemAccessor, Verdict,
};

use crate::record;

/// Makes a filter for each compaction, on the store's clock.
pub(crate) struct Purge(AssertUnwindSafe<Arc<dyn Clock>>);

impl Purge {
    pub(crate) fn new(clock: Arc<dyn Clock>) -> Self {
        Self(AssertUnwindSafe(clock))
    }
}

impl Factory for Purge {
    fn name(&self) -> &'static str {
        "purge"
    }

    fn make_filter(&self, _: &Context) -> Box<dyn CompactionFilter> {
        Box::new(Expired { now: self.0.now() })
    }
}

struct Expired {
    now: Timestamp,
}

impl CompactionFilter for Expired {
    fn filter_item(&mut self, item: ItemAccessor<'_>, _: &Context) -> CompactionFilterResult {
        let expires_at = record::expires_at(&item.value()?).flatten();
        let expired = expires_at.is_some_and(|at| at <= self.now);
        // `Remove` leaves a tombstone; `Destroy` would let an older version below come back.
        Ok(if expired { Verdict::Remove } else { Verdict::Keep })
    }
}
