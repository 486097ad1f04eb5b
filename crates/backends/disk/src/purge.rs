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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use commonhold_core::{ManualClock, embedded::Record};
    use lsm_tree::{AbstractTree, SeqNo, SequenceNumberCounter, compaction::PullDown};

    use super::*;

    #[test]
    fn what_is_purged_in_an_upper_level_does_not_bring_the_version_below_it_back() {
        let directory = tempfile::tempdir().unwrap();
        let clock = Arc::new(ManualClock::new(Timestamp::from_millis(1_000)));
        let purge = Arc::new(Purge::new(clock.clone()));
        let (seqno, visible) = (SequenceNumberCounter::default(), SequenceNumberCounter::default());
        let config = lsm_tree::Config::new(directory.path(), seqno.clone(), visible);
        let tree = config.with_compaction_filter_factory(Some(purge)).open().unwrap();
        let put = |value: &'static str, expires_at| {
            let record = Record { value: value.into(), expires_at };
            tree.insert("k", record::encode(&record), seqno.next());
            tree.flush_active_memtable(0).unwrap();
        };
        put("old", None);
        tree.major_compact(u64::MAX, 0).unwrap();
        put("new", Some(Timestamp::from_millis(2_000)));
        let new = tree.get("k", SeqNo::MAX).unwrap().unwrap();
        clock.advance(Duration::from_secs(1));
        tree.compact(Arc::new(PullDown(0, 2)), 0).unwrap();
        assert!(new.ends_with(b"new"));
        assert_eq!(tree.get("k", SeqNo::MAX).unwrap(), None);
        tree.major_compact(u64::MAX, SeqNo::MAX).unwrap();
        assert_eq!(tree.get("k", SeqNo::MAX).unwrap(), None);
        assert_eq!(tree.table_count(), 0, "nothing of it is left");
    }
}
