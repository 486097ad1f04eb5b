//! The memory backend: a sharded map with expiry, ordered scans and, if asked for, a bound on its size.

mod builder;
mod scan;
mod shard;

use std::{
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use async_trait::async_trait;
use bytes::Bytes;
use foldhash::fast::RandomState;
use futures_util::stream::BoxStream;

pub use self::builder::MemoryBuilder;
use self::{
    builder::Sweeper,
    shard::{Growth, Shard, hash_of},
};
use crate::{
    answer::Answer,
    backend::{
        Applied, Capabilities, Change, Condition, Entry, Expiry, Health, Maintenance, Message, PutOptions,
        Scan, StateBackend, Transaction, Write,
    },
    clock::{Clock, Timestamp},
    embedded::{
        self, Effect, OptimisticStore, OptimisticTransaction, ReadSet, Record, Rules, WriteSet,
        batch_conflict, transaction_conflict,
    },
    error::{Error, ErrorKind, Result, Retry},
    hub::Hub,
    key::{Key, Prefix},
    stats::Stats,
    transition::Transition,
};

/// State in the memory of this process: the fastest store, gone when the process ends.
///
/// State is never evicted. With a [bound on bytes](MemoryBuilder::max_bytes) writes that do not fit are
/// refused. Expired entries are never seen; a background thread and the writes themselves give their
/// memory back. Clones share the same state.
///
/// ```
/// # tokio::runtime::Runtime::new().unwrap().block_on(async {
/// use std::time::Duration;
/// use commonhold_core::{MemoryBackend, Store};
///
/// let store = Store::new(MemoryBackend::builder().default_ttl(Duration::from_secs(3600)).build());
/// store.put("session:1", "alice").await?;
/// assert_eq!(store.get("session:1").await?.as_deref(), Some(&b"alice"[..]));
/// # Ok::<(), commonhold_core::Error>(())
/// # }).unwrap();
/// ```
#[derive(Clone)]
pub struct MemoryBackend(Arc<Inner>);

struct Inner {
    shards: Box<[Mutex<Shard>]>,
    hasher: RandomState,
    clock: Arc<dyn Clock>,
    rules: Rules,
    /// The bound on [`Inner::used`]; `u64::MAX` where there is none.
    max_bytes: u64,
    /// What the entries take, counted only where it is bounded: a counter that every write shares is slow.
    used: AtomicU64,
    hub: Hub,
    sweeper: Sweeper,
}

/// Enough that two tasks seldom meet; few enough that a scan over all of them is cheap.
const SHARDS: usize = 64;

const NAME: &str = "memory";

impl MemoryBackend {
    /// An unbounded store without a default time to live.
    pub fn new() -> Self {
        Self::builder().build()
    }

    /// A store with other settings.
    pub fn builder() -> MemoryBuilder {
        MemoryBuilder::default()
    }
}

impl Default for MemoryBackend {
    fn default() -> Self {
        Self::new()
    }
}

impl Inner {
    /// The shard of a key, locked, and the key's hash within it.
    fn lock(&self, key: &Key) -> (MutexGuard<'_, Shard>, u64) {
        let hash = self.hash(key);
        (self.lock_shard(shard_of(hash)), hash)
    }

    fn hash(&self, key: &Key) -> u64 {
        hash_of(&self.hasher, key)
    }

    #[expect(clippy::indexing_slicing, reason = "every index is below SHARDS, the length of the slice")]
    fn lock_shard(&self, index: usize) -> MutexGuard<'_, Shard> {
        // A shard is changed by steps that cannot panic half-way, so a poisoned one is whole.
        self.shards[index].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs `attempt`, and once more after a sweep if it found the store full of what may have expired.
    fn with_room<T>(&self, attempt: impl Fn() -> Result<T>) -> Result<T> {
        match attempt() {
            Err(error) if error.kind() == ErrorKind::Overloaded && self.sweep() > 0 => attempt(),
            result => result,
        }
    }

    /// Puts the effect of a command in place. The room for it must have been reserved.
    fn apply(&self, shard: &mut Shard, hash: u64, key: &Key, effect: Effect) {
        let change = match effect {
            Effect::Nothing => return,
            Effect::Put(record) => {
                shard.put(hash, key, record);
                Change::Put
            }
            Effect::Delete => {
                shard.remove(hash, key);
                Change::Deleted
            }
        };
        // Under the shard's lock, so that the changes of a key are reported in their order.
        if self.hub.is_watched() {
            self.hub.report(change(key.clone()));
        }
    }

    /// Reserves what the store grows by, or refuses.
    fn reserve(&self, growth: Growth) -> Result<()> {
        if self.max_bytes == u64::MAX {
            return Ok(());
        }
        if growth.added > self.max_bytes {
            return Err(Error::new(
                ErrorKind::TooLarge,
                format!("{} bytes do not fit into a store of {}", growth.added, self.max_bytes),
            ));
        }
        let fits = |used: u64| {
            let after = used.saturating_add(growth.added).saturating_sub(growth.freed);
            (after <= self.max_bytes || growth.added <= growth.freed).then_some(after)
        };
        match self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits) {
            Ok(_) => Ok(()),
            Err(used) => Err(Error::new(
                ErrorKind::Overloaded,
                format!(
                    "the store is full: {used} of {} bytes are used; delete something or raise max_bytes",
                    self.max_bytes
                ),
            )
            .with_retry(Retry::Safe)),
        }
    }

    fn release(&self, freed: u64) {
        if self.max_bytes != u64::MAX {
            self.used.fetch_sub(freed, Ordering::Relaxed);
        }
    }

    fn value(&self, key: &Key) -> Option<Bytes> {
        let (shard, hash) = self.lock(key);
        let record = shard.get(hash, key)?;
        let is_live = record.expires_at.is_none_or(|at| self.clock.now() < at);
        is_live.then(|| record.value.clone())
    }

    fn get(&self, key: &Key) -> Option<Entry> {
        let (shard, hash) = self.lock(key);
        let record = shard.get(hash, key)?;
        match record.expires_at {
            None => Some(Entry { value: record.value.clone(), ttl: None }),
            Some(_) => {
                let now = self.clock.now();
                record.is_live(now).then(|| record.clone().into_entry(now))
            }
        }
    }

    /// One command on one key, under its shard's lock. The clock is read only if the command is `timed` or the
    /// record has an expiry: reading it costs as much as the rest.
    fn command<T>(
        &self,
        key: &Key,
        timed: bool,
        decide: impl Fn(Option<&Record>, Timestamp) -> Result<(Effect, T)>,
    ) -> Result<T> {
        self.with_room(|| {
            let (mut shard, hash) = self.lock(key);
            let old = shard.get(hash, key);
            let timed = timed || old.is_some_and(|record| record.expires_at.is_some());
            let now = if timed { self.clock.now() } else { Timestamp::MIN };
            let (effect, answer) = decide(old.filter(|record| record.is_live(now)), now)?;
            self.reserve(match &effect {
                Effect::Nothing => Growth::default(),
                Effect::Put(new) => Growth::of(key, old, Some(new)),
                Effect::Delete => Growth::of(key, old, None),
            })?;
            self.apply(&mut shard, hash, key, effect);
            if timed {
                self.sweeper.start();
                let (_, freed) = shard.sweep(now, 2);
                self.release(freed);
            }
            Ok(answer)
        })
    }

    fn write(&self, write: &Write) -> Result<Applied> {
        let timed = self.rules.default_ttl.is_some()
            || matches!(write, Write::Put { options, .. } if matches!(options.expiry, Expiry::After(_)));
        self.command(write.key(), timed, |live, now| {
            Ok(match embedded::write(live, write, now, &self.rules)? {
                None | Some(Effect::Nothing) => (Effect::Nothing, Applied::No),
                Some(effect) => (effect, Applied::Yes),
            })
        })
        .map_err(|error| error.with_key(write.key()))
    }

    /// Several keys at once, under the locks of all their shards. `decide` sees and changes a draft of them;
    /// nothing is written if it fails.
    fn batch<'a, T>(
        &self,
        keys: impl Iterator<Item = &'a Key> + Clone,
        decide: impl Fn(&mut Draft<'_>) -> Result<T>,
    ) -> Result<T> {
        self.with_room(|| {
            let mut indices: Vec<usize> = keys.clone().map(|key| shard_of(self.hash(key))).collect();
            // Always in the same order: two batches cannot wait for each other.
            indices.sort_unstable();
            indices.dedup();
            let mut guards: Vec<_> = indices.iter().map(|&index| (index, self.lock_shard(index))).collect();
            let now = self.clock.now();
            let mut draft = Draft { store: self, guards: &guards, now, effects: WriteSet::new() };
            let answer = decide(&mut draft)?;
            let effects = draft.effects;
            let mut growth = Growth::default();
            for (key, new) in &effects {
                let hash = self.hash(key);
                let old = guard(&guards, hash).and_then(|shard| shard.get(hash, key));
                growth.add(Growth::of(key, old, new.as_ref()));
            }
            self.reserve(growth)?;
            self.sweeper.start();
            for (key, new) in effects {
                let hash = self.hash(&key);
                if let Ok(at) = guards.binary_search_by_key(&shard_of(hash), |(index, _)| *index)
                    && let Some((_, shard)) = guards.get_mut(at)
                {
                    self.apply(shard, hash, &key, new.map_or(Effect::Delete, Effect::Put));
                }
            }
            Ok(answer)
        })
    }

    /// Removes what has expired and says how many entries that were.
    fn sweep(&self) -> u64 {
        let now = self.clock.now();
        let mut swept = 0;
        for index in 0..SHARDS {
            // In portions, so that nobody waits long for the shard.
            loop {
                let (count, freed) = self.lock_shard(index).sweep(now, 1024);
                self.release(freed);
                swept += count;
                if count < 1024 {
                    break;
                }
            }
        }
        swept
    }
}

fn shard_of(hash: u64) -> usize {
    // The table inside a shard uses the lowest and the highest bits.
    (hash >> 40) as usize % SHARDS
}

type Guards<'a> = [(usize, MutexGuard<'a, Shard>)];

fn guard<'a>(guards: &'a Guards<'_>, hash: u64) -> Option<&'a Shard> {
    let at = guards.binary_search_by_key(&shard_of(hash), |(index, _)| *index).ok()?;
    guards.get(at).map(|(_, shard)| &**shard)
}

/// What a batch has read and would write, while the shards are locked.
struct Draft<'a> {
    store: &'a Inner,
    guards: &'a Guards<'a>,
    now: Timestamp,
    effects: WriteSet,
}

impl Draft<'_> {
    fn live(&self, key: &Key) -> Option<&Record> {
        let record = match self.effects.get(key) {
            Some(written) => written.as_ref(),
            None => {
                let hash = self.store.hash(key);
                guard(self.guards, hash)?.get(hash, key)
            }
        };
        record.filter(|record| record.is_live(self.now))
    }

    fn write(&mut self, write: &Write) -> Result<Applied> {
        let effect = embedded::write(self.live(write.key()), write, self.now, &self.store.rules)
            .map_err(|error| error.with_key(write.key()))?;
        let change = match effect {
            None if *write.condition() == Condition::Always => return Ok(Applied::No),
            None => return Err(batch_conflict(write.key())),
            Some(Effect::Nothing) => return Ok(Applied::No),
            Some(Effect::Put(record)) => Some(record),
            Some(Effect::Delete) => None,
        };
        self.effects.insert(write.key().clone(), change);
        Ok(Applied::Yes)
    }
}

#[async_trait]
impl StateBackend for MemoryBackend {
    fn name(&self) -> &'static str {
        NAME
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            ttl: true,
            scan: true,
            ordered_scan: true,
            atomic_batch: true,
            transactions: true,
            watch: true,
            publish: true,
            max_value_bytes: self.0.rules.max_value_bytes,
            ..Capabilities::NONE
        }
    }

    fn get<'a>(&'a self, key: &'a Key) -> Answer<'a, Option<Entry>> {
        Answer::Ready(Ok(self.0.get(key)))
    }

    fn value<'a>(&'a self, key: &'a Key) -> Answer<'a, Option<Bytes>> {
        Answer::Ready(Ok(self.0.value(key)))
    }

    fn put<'a>(&'a self, key: &'a Key, value: Bytes, options: PutOptions) -> Answer<'a, Applied> {
        let write = Write::Put { key: key.clone(), value, options };
        Answer::Ready(self.0.write(&write).map_err(|error| error.at(NAME, "put")))
    }

    fn delete<'a>(&'a self, key: &'a Key, condition: Condition) -> Answer<'a, Applied> {
        let write = Write::Delete { key: key.clone(), condition };
        Answer::Ready(self.0.write(&write).map_err(|error| error.at(NAME, "delete")))
    }

    fn get_many<'a>(&'a self, keys: &'a [Key]) -> Answer<'a, Vec<Option<Entry>>> {
        Answer::Ready(Ok(keys.iter().map(|key| self.0.get(key)).collect()))
    }

    fn write_many(&self, batch: Vec<Write>) -> Answer<'_, Vec<Applied>> {
        let applied = self.0.batch(batch.iter().map(Write::key), |draft| {
            batch.iter().map(|write| draft.write(write)).collect()
        });
        Answer::Ready(applied.map_err(|error| error.at(NAME, "write_many")))
    }

    fn transact<'a>(&'a self, key: &'a Key, transition: Arc<dyn Transition>) -> Answer<'a, Bytes> {
        let reply =
            self.0.command(key, true, |live, now| embedded::transact(live, &*transition, now, &self.0.rules));
        Answer::Ready(reply.map_err(|error| error.with_key(key).at(NAME, transition.name())))
    }

    fn scan(&self, scan: Scan) -> BoxStream<'static, Result<(Key, Entry)>> {
        scan::stream(Arc::clone(&self.0), scan)
    }

    async fn count(&self, prefix: &Prefix) -> Result<u64> {
        let now = self.0.clock.now();
        let mut count = 0;
        for index in 0..SHARDS {
            count += self.0.lock_shard(index).count(prefix, now);
            tokio::task::yield_now().await;
        }
        Ok(count)
    }

    async fn clear(&self, prefix: &Prefix) -> Result<u64> {
        let now = self.0.clock.now();
        let mut cleared = 0;
        for index in 0..SHARDS {
            loop {
                let keys = {
                    let mut shard = self.0.lock_shard(index);
                    let keys = shard.keys(prefix, None, 1024);
                    for key in &keys {
                        let hash = self.0.hash(key);
                        if shard.get(hash, key).is_some_and(|record| record.is_live(now)) {
                            cleared += 1;
                            self.0.reserve(Growth::of(key, shard.get(hash, key), None))?;
                            self.0.apply(&mut shard, hash, key, Effect::Delete);
                        } else {
                            self.0.release(shard.remove(hash, key));
                        }
                    }
                    keys.len()
                };
                tokio::task::yield_now().await;
                if keys < 1024 {
                    break;
                }
            }
        }
        Ok(cleared)
    }

    async fn watch(&self, prefix: &Prefix) -> Result<BoxStream<'static, Result<Change>>> {
        Ok(self.0.hub.watch(prefix))
    }

    async fn publish(&self, channel: &Key, message: Bytes) -> Result<()> {
        self.0.hub.publish(channel, message);
        Ok(())
    }

    async fn subscribe(&self, channel: &Key) -> Result<BoxStream<'static, Result<Message>>> {
        Ok(self.0.hub.subscribe(channel))
    }

    async fn begin(&self) -> Result<Box<dyn Transaction>> {
        Ok(Box::new(OptimisticTransaction::new(Arc::clone(&self.0))))
    }

    async fn health(&self) -> Result<Health> {
        let mut health = Health {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            now: Some(self.0.clock.now()),
            warnings: vec!["state is lost when this process ends; use disk:PATH to keep it".to_owned()],
            ..Health::default()
        };
        if self.0.max_bytes != u64::MAX {
            health.details.push(("max_bytes".to_owned(), self.0.max_bytes.to_string()));
        }
        Ok(health)
    }

    async fn stats(&self) -> Result<Stats> {
        let (mut entries, mut bytes) = (0, 0);
        for index in 0..SHARDS {
            let shard = self.0.lock_shard(index);
            entries += shard.len() as u64;
            bytes += shard.bytes();
        }
        let memory_limit_bytes = (self.0.max_bytes < u64::MAX).then_some(self.0.max_bytes);
        let details = vec![("entries", entries)];
        Ok(Stats { memory_bytes: Some(bytes), memory_limit_bytes, details, ..Stats::default() })
    }

    async fn maintain(&self, task: Maintenance) -> Result<()> {
        match task {
            Maintenance::Sweep => {
                self.0.sweep();
            }
            Maintenance::Compact => {
                self.0.sweep();
                (0..SHARDS).for_each(|index| self.0.lock_shard(index).shrink());
            }
            Maintenance::Flush => {}
            Maintenance::Analyze => {
                return Err(
                    Error::new(ErrorKind::Unsupported, "memory plans no queries").at(NAME, "maintain")
                );
            }
        }
        Ok(())
    }
}

#[async_trait]
impl OptimisticStore for Inner {
    fn now(&self) -> Timestamp {
        self.clock.now()
    }

    fn rules(&self) -> &Rules {
        &self.rules
    }

    async fn read(&self, key: &Key) -> Result<Option<Record>> {
        let (shard, hash) = self.lock(key);
        let now = self.clock.now();
        Ok(shard.get(hash, key).filter(|record| record.is_live(now)).cloned())
    }

    async fn commit(&self, reads: ReadSet, writes: WriteSet) -> Result<()> {
        self.batch(reads.keys().chain(writes.keys()), |draft| {
            if let Some((key, _)) = reads.iter().find(|(key, read)| draft.live(key) != read.as_ref()) {
                return Err(transaction_conflict(key));
            }
            draft.effects = writes.clone();
            Ok(())
        })
        .map_err(|error| error.at(NAME, "commit"))
    }
}

impl fmt::Debug for MemoryBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryBackend").field("rules", &self.rules).finish_non_exhaustive()
    }
}
