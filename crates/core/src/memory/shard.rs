//! One shard of the map: a hash table for points, an ordered set for ranges, another for expiries.

use std::{collections::BTreeSet, hash::BuildHasher as _, ops::Bound};

use foldhash::fast::RandomState;
use hashbrown::{HashTable, hash_table::Entry as Slot};

use crate::{
    clock::Timestamp,
    embedded::Record,
    key::{Key, Prefix},
};

pub(super) struct Shard {
    hasher: RandomState,
    table: HashTable<(Key, Record)>,
    order: BTreeSet<Key>,
    expiries: BTreeSet<(Timestamp, Key)>,
    bytes: u64,
}

/// What an entry takes, in bytes: its key and value, and about what the table, the ordered set and the
/// allocator add.
pub(super) fn cost(key: &Key, record: &Record) -> u64 {
    const OVERHEAD: usize = 192;
    (key.as_bytes().len() + record.value.len() + OVERHEAD) as u64
}

pub(super) fn hash_of(hasher: &RandomState, key: &Key) -> u64 {
    hasher.hash_one(key.as_bytes())
}

/// How the size of a store changes.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Growth {
    /// What new records take.
    pub(super) added: u64,
    /// What the records took whose place they take.
    pub(super) freed: u64,
}

impl Growth {
    pub(super) fn of(key: &Key, old: Option<&Record>, new: Option<&Record>) -> Self {
        let cost = |record: Option<&Record>| record.map_or(0, |record| cost(key, record));
        Self { added: cost(new), freed: cost(old) }
    }

    pub(super) fn add(&mut self, other: Self) {
        self.added += other.added;
        self.freed += other.freed;
    }
}

impl Shard {
    /// An empty shard for keys that are hashed by `hasher`.
    pub(super) fn new(hasher: RandomState, capacity: usize) -> Self {
        let mut table = HashTable::new();
        // What there is no memory for is not set aside; the store is full when it is.
        let _ = table.try_reserve(capacity, |_| 0);
        Self { hasher, table, order: BTreeSet::new(), expiries: BTreeSet::new(), bytes: 0 }
    }

    pub(super) fn len(&self) -> usize {
        self.table.len()
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The record under a key, live or not.
    pub(super) fn get(&self, hash: u64, key: &Key) -> Option<&Record> {
        self.table.find(hash, |(other, _)| other == key).map(|(_, record)| record)
    }

    pub(super) fn put(&mut self, hash: u64, key: &Key, record: Record) {
        self.bytes += cost(key, &record);
        let expires_at = record.expires_at;
        let before =
            match self.table.entry(hash, |(other, _)| other == key, |(key, _)| hash_of(&self.hasher, key)) {
                Slot::Occupied(mut slot) => {
                    let old = std::mem::replace(&mut slot.get_mut().1, record);
                    self.bytes -= cost(key, &old);
                    old.expires_at
                }
                Slot::Vacant(slot) => {
                    slot.insert((key.clone(), record));
                    self.order.insert(key.clone());
                    None
                }
            };
        if before != expires_at {
            if let Some(at) = before {
                self.expiries.remove(&(at, key.clone()));
            }
            if let Some(at) = expires_at {
                self.expiries.insert((at, key.clone()));
            }
        }
    }

    /// Removes the record under a key and says what it took.
    pub(super) fn remove(&mut self, hash: u64, key: &Key) -> u64 {
        let Ok(slot) = self.table.find_entry(hash, |(other, _)| other == key) else { return 0 };
        let ((key, record), _) = slot.remove();
        let freed = cost(&key, &record);
        self.bytes -= freed;
        self.order.remove(&key);
        if let Some(at) = record.expires_at {
            self.expiries.remove(&(at, key));
        }
        freed
    }

    /// Removes up to `limit` records that have expired, the earliest first. Says how many that were and what
    /// they took.
    pub(super) fn sweep(&mut self, now: Timestamp, limit: usize) -> (u64, u64) {
        let (mut swept, mut freed) = (0, 0);
        while let Some((at, key)) = self.expiries.first()
            && *at <= now
            && swept < limit as u64
        {
            let key = key.clone();
            freed += self.remove(hash_of(&self.hasher, &key), &key);
            swept += 1;
        }
        (swept, freed)
    }

    /// How many live records have this prefix.
    pub(super) fn count(&self, prefix: &Prefix, now: Timestamp) -> u64 {
        let keys = self
            .order
            .range::<[u8], _>((Bound::Included(prefix.as_bytes()), Bound::Unbounded))
            .take_while(|key| key.starts_with(prefix));
        if self.expiries.is_empty() {
            return keys.count() as u64;
        }
        keys.filter(|key| self.get(hash_of(&self.hasher, key), key).is_some_and(|record| record.is_live(now)))
            .count() as u64
    }

    /// Up to `limit` keys with this prefix, in order, behind `after`, live or not.
    pub(super) fn keys(&self, prefix: &Prefix, after: Option<&Key>, limit: usize) -> Vec<Key> {
        let start = match after {
            Some(after) if after.as_bytes() >= prefix.as_bytes() => Bound::Excluded(after.as_bytes()),
            _ => Bound::Included(prefix.as_bytes()),
        };
        self.order
            .range::<[u8], _>((start, Bound::Unbounded))
            .take_while(|key| key.starts_with(prefix))
            .take(limit)
            .cloned()
            .collect()
    }

    pub(super) fn shrink(&mut self) {
        self.table.shrink_to_fit(|(key, _)| hash_of(&self.hasher, key));
    }
}
