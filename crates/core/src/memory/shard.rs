//! One shard of the map: a hash table for points, an ordered set for ranges, another for expiries.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Bound,
};

use hashbrown::{HashTable, hash_table::Entry as Slot};

use crate::{
    clock::Timestamp,
    embedded::Record,
    key::{Key, Prefix},
};

#[derive(Default)]
pub(super) struct Shard {
    table: HashTable<(u64, Key, Record)>,
    order: BTreeSet<Key>,
    /// With the hash of the key, which finds it in the table.
    expiries: BTreeMap<(Timestamp, Key), u64>,
    bytes: u64,
}

/// What an entry takes, in bytes: its key and value, and about what the table, the ordered set and the
/// allocator add.
pub(super) fn cost(key: &Key, record: &Record) -> u64 {
    const OVERHEAD: usize = 192;
    (key.as_bytes().len() + record.value.len() + OVERHEAD) as u64
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
    pub(super) fn with_capacity(entries: usize) -> Self {
        Self { table: HashTable::with_capacity(entries), ..Self::default() }
    }

    pub(super) fn len(&self) -> usize {
        self.table.len()
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The record under a key, live or not.
    pub(super) fn get(&self, hash: u64, key: &Key) -> Option<&Record> {
        self.table.find(hash, |(_, other, _)| other == key).map(|(_, _, record)| record)
    }

    pub(super) fn put(&mut self, hash: u64, key: &Key, record: Record) {
        self.bytes += cost(key, &record);
        let expires_at = record.expires_at;
        let before = match self.table.entry(hash, |(_, other, _)| other == key, |(hash, _, _)| *hash) {
            Slot::Occupied(mut slot) => {
                let old = std::mem::replace(&mut slot.get_mut().2, record);
                self.bytes -= cost(key, &old);
                old.expires_at
            }
            Slot::Vacant(slot) => {
                slot.insert((hash, key.clone(), record));
                self.order.insert(key.clone());
                None
            }
        };
        if before != expires_at {
            if let Some(at) = before {
                self.expiries.remove(&(at, key.clone()));
            }
            if let Some(at) = expires_at {
                self.expiries.insert((at, key.clone()), hash);
            }
        }
    }

    /// Removes the record under a key and says what it took.
    pub(super) fn remove(&mut self, hash: u64, key: &Key) -> u64 {
        let Ok(slot) = self.table.find_entry(hash, |(_, other, _)| other == key) else { return 0 };
        let ((_, key, record), _) = slot.remove();
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
        while let Some(((at, key), &hash)) = self.expiries.first_key_value()
            && *at <= now
            && swept < limit as u64
        {
            let key = key.clone();
            freed += self.remove(hash, &key);
            swept += 1;
        }
        (swept, freed)
    }

    /// How many live records have this prefix.
    pub(super) fn count(&self, hash: impl Fn(&Key) -> u64, prefix: &Prefix, now: Timestamp) -> u64 {
        let keys = self
            .order
            .range::<[u8], _>((Bound::Included(prefix.as_bytes()), Bound::Unbounded))
            .take_while(|key| key.starts_with(prefix));
        if self.expiries.is_empty() {
            return keys.count() as u64;
        }
        keys.filter(|key| self.get(hash(key), key).is_some_and(|record| record.is_live(now))).count() as u64
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
        self.table.shrink_to_fit(|(hash, _, _)| *hash);
    }
}
