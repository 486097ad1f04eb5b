//! Ordered scans over all shards: each hands out its keys in small portions, a heap merges them.

use std::{cmp::Reverse, collections::BinaryHeap, sync::Arc, task::Poll};

use futures_util::{StreamExt as _, stream, stream::BoxStream};

use super::{Inner, SHARDS};
use crate::{
    backend::{Entry, Scan},
    embedded::Record,
    error::Result,
    key::Key,
};

/// How many keys a shard hands out at a time.
const PORTION: usize = 32;

/// After how many entries other tasks get their turn.
const YIELD_AFTER: u64 = 1024;

pub(super) fn stream(store: Arc<Inner>, scan: Scan) -> BoxStream<'static, Result<(Key, Entry)>> {
    if let Err(error) = scan.check() {
        return stream::once(std::future::ready(Err(error.at(super::NAME, "scan")))).boxed();
    }
    let mut merge: Option<Merge> = None;
    let mut handed_out = 0u64;
    stream::poll_fn(move |context| {
        // Nothing here ever waits, so others get their turn, and timeouts theirs, only if it is given to them.
        handed_out += 1;
        if handed_out.is_multiple_of(YIELD_AFTER) {
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        let merge = merge.get_or_insert_with(|| Merge::new(&store, &scan));
        Poll::Ready(merge.next(&store, &scan).map(Ok))
    })
    .boxed()
}

/// The next entries of every shard, the smallest key on top.
struct Merge {
    heap: BinaryHeap<Reverse<(Key, usize)>>,
    /// For each shard the records it handed out, the last one first.
    portions: Vec<Vec<(Key, Record)>>,
}

impl Merge {
    fn new(store: &Inner, scan: &Scan) -> Self {
        let mut merge = Self { heap: BinaryHeap::new(), portions: vec![Vec::new(); SHARDS] };
        for index in 0..SHARDS {
            merge.refill(store, scan, index, scan.after.clone());
        }
        merge
    }

    fn next(&mut self, store: &Inner, scan: &Scan) -> Option<(Key, Entry)> {
        loop {
            let (key, record) = self.pop(store, scan)?;
            if record.expires_at.is_none() {
                // Spares the look at the clock.
                return Some((key, Entry { value: record.value, ttl: None }));
            }
            // It may have expired since its shard handed it out.
            let now = store.clock.now();
            if record.is_live(now) {
                return Some((key, record.into_entry(now)));
            }
        }
    }

    fn pop(&mut self, store: &Inner, scan: &Scan) -> Option<(Key, Record)> {
        let Reverse((_, index)) = self.heap.pop()?;
        let portion = self.portions.get_mut(index)?;
        let (key, record) = portion.pop()?;
        match portion.last() {
            Some((key, _)) => self.heap.push(Reverse((key.clone(), index))),
            None => self.refill(store, scan, index, Some(key.clone())),
        }
        Some((key, record))
    }

    /// Fetches the shard's next live records behind `after`, if there are any.
    fn refill(&mut self, store: &Inner, scan: &Scan, index: usize, mut after: Option<Key>) {
        let now = store.clock.now();
        loop {
            let shard = store.lock_shard(index);
            let keys = shard.keys(&scan.prefix, after.as_ref(), PORTION.min(scan.page));
            let Some(last) = keys.last().cloned() else { return };
            let portion: Vec<_> = keys
                .into_iter()
                .rev()
                .filter_map(|key| {
                    let mut record = shard.get(store.hash(&key), &key)?.clone();
                    if scan.keys_only {
                        record.value.clear();
                    }
                    record.is_live(now).then_some((key, record))
                })
                .collect();
            drop(shard);
            if let Some((key, _)) = portion.last() {
                self.heap.push(Reverse((key.clone(), index)));
                if let Some(slot) = self.portions.get_mut(index) {
                    *slot = portion;
                }
                return;
            }
            after = Some(last);
        }
    }
}
