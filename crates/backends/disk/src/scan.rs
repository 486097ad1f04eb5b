//! Scans: page by page from one snapshot, on blocking threads.

use std::{ops::Bound, sync::Arc};

use commonhold_core::{Entry, Key, Prefix, Result, Scan};
use futures_util::{StreamExt as _, TryStreamExt as _, stream, stream::BoxStream};

use crate::{
    engine::{KeyRange, Page, Range},
    shared::{Handle, Task, blocking},
};

impl Handle {
    /// Pages of records, live or not, from the moment at which the stream is first polled.
    pub(crate) fn pages(
        &self,
        prefix: &Prefix,
        after: Option<&Key>,
        page_len: usize,
    ) -> BoxStream<'static, Result<Page>> {
        let range = prefix.range(after);
        if is_empty(&range) {
            return stream::empty().boxed();
        }
        let begin = (Position::Before(self.task(), range), self.clone());
        let pages = stream::try_unfold(begin, move |(position, handle)| async move {
            let next = blocking(move || position.next(page_len)).await?;
            Ok(next.map(|(page, position)| (page, (position, handle))))
        });
        pages.boxed()
    }

    pub(crate) fn scan(&self, scan: Scan) -> BoxStream<'static, Result<(Key, Entry)>> {
        let (clock, keys_only) = (self.clock.clone(), scan.keys_only);
        let pages = self.pages(&scan.prefix, scan.after.as_ref(), scan.page);
        let entries = pages.map_ok(move |page| {
            let clock = Arc::clone(&clock);
            let entries = page.into_iter().filter_map(move |(key, mut record)| {
                if keys_only {
                    record.value.clear();
                }
                if record.expires_at.is_none() {
                    // Spares the look at the clock.
                    return Some(Ok((key, Entry { value: record.value, ttl: None })));
                }
                // Not once for the page: who reads it may take its time.
                let now = clock.now();
                record.is_live(now).then(|| Ok((key, record.into_entry(now))))
            });
            stream::iter(entries)
        });
        entries.try_flatten().boxed()
    }
}

/// Where a scan stands.
enum Position {
    Before(Task, KeyRange),
    // The engine's snapshot first: it goes before the task that may close the store.
    Within(Box<Range>, Task),
}

impl Position {
    fn next(self, page_len: usize) -> Result<Option<(Page, Self)>> {
        let (mut range, task) = match self {
            Self::Before(task, range) => (Box::new(task.engine.range(range)?), task),
            Self::Within(range, task) => (range, task),
        };
        let page = range.page(page_len)?;
        Ok((!page.is_empty()).then_some((page, Self::Within(range, task))))
    }
}

/// Whether no key can lie in it, which the engine does not expect to be asked.
fn is_empty(range: &KeyRange) -> bool {
    match range {
        (Bound::Included(from) | Bound::Excluded(from), Bound::Excluded(to)) => from >= to,
        _ => false,
    }
}
