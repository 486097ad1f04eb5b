//! Scans: page by page from one snapshot, on blocking threads.

use std::ops::Bound;

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
            let now = clock.now();
            let live = page.into_iter().filter(move |(_, record)| record.is_live(now));
            let entries = live.map(move |(key, mut record)| {
                if keys_only {
                    record.value.clear();
                }
                Ok((key, record.into_entry(now)))
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
