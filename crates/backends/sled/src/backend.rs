//! The sled backend: the store's operations on the trees.

use std::{fmt, sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use commonhold_core::{
    Answer, Applied, Capabilities, Change, Clock, Condition, Entry, Error, ErrorKind, Health, Hub, Key,
    Maintenance, Message, Prefix, PutOptions, Result, Scan, StateBackend, Stats, SystemClock, Timestamp,
    Transaction, Transition, Write,
    embedded::{
        self, Effect, OptimisticStore, OptimisticTransaction, ReadSet, Record, Rules, WriteSet,
        batch_conflict, transaction_conflict,
    },
};
use futures_util::{StreamExt as _, TryStreamExt as _, stream, stream::BoxStream};

use crate::{
    config::{Durability, SledConfig},
    error::{NAME, text},
    trees::{Changes, Shared, Trees},
};

/// How many keys are cleared or swept in one step.
const CLEAR_PAGE: usize = 1000;

/// A store in a sled database, for one process at a time.
///
/// All work is done on blocking threads.
///
/// # Cancellation
/// A dropped future has read nothing, or its write is carried out in full or not at all.
#[derive(Clone)]
pub struct SledBackend {
    shared: Arc<Shared>,
}

impl SledBackend {
    /// Opens the database, or creates it in a directory that is empty or not there.
    ///
    /// # Errors
    /// Each names the path. `InvalidConfig`: an option is out of range, the path is a file or somebody else's
    /// directory, or the database has no such tree. `Unavailable`: another process has it open. `Unauthorized`:
    /// no permission. `Corrupt`: files are damaged. `Unsupported`: another version or configuration of sled wrote it.
    pub async fn open(config: SledConfig) -> Result<Self> {
        Self::open_with_clock(config, Arc::new(SystemClock)).await
    }

    /// Opens the database with a clock that decides what has expired; tests turn it.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub async fn open_with_clock(config: SledConfig, clock: Arc<dyn Clock>) -> Result<Self> {
        let opened = blocking(move || {
            config.check()?;
            let trees = Trees::open(&config)?;
            Ok(Self { shared: Arc::new(Shared { trees, clock, hub: Hub::default(), config }) })
        });
        opened.await.map_err(|error| error.at(NAME, "open"))
    }

    fn blocking<T: Send + 'static>(
        &self,
        operation: &'static str,
        call: impl FnOnce(&Shared) -> Result<T> + Send + 'static,
    ) -> Answer<'static, T> {
        let shared = Arc::clone(&self.shared);
        Answer::later(async move {
            blocking(move || call(&shared)).await.map_err(|error| error.at(NAME, operation))
        })
    }

    /// Deletes page by page, and adds up how much.
    async fn delete_pages(
        &self,
        operation: &'static str,
        page: impl Fn(&Shared, Option<&Key>) -> Result<Vec<Key>> + Clone + Send + 'static,
        is_cleared: bool,
    ) -> Result<u64> {
        let (mut deleted, mut after) = (0, None::<Key>);
        loop {
            let page = page.clone();
            let step = self.blocking(operation, move |shared| {
                let keys = page(shared, after.as_ref())?;
                let last = keys.last().cloned();
                Ok((shared.delete(keys, is_cleared)?, last))
            });
            let (count, last) = step.await?;
            deleted += count;
            match last {
                Some(last) => after = Some(last),
                None => return Ok(deleted),
            }
        }
    }
}

impl Shared {
    fn now(&self) -> Timestamp {
        self.clock.now()
    }

    fn entry(&self, record: Record) -> Option<Entry> {
        let now = self.now();
        record.is_live(now).then(|| record.into_entry(now))
    }

    /// Carries out what is staged, in one atomic step, and tells those who watch.
    fn apply<T>(&self, stage: impl FnOnce(&mut Staged<'_>) -> Result<T>) -> Result<T> {
        let decide = |read: &dyn Fn(&Key) -> Result<Option<Record>>| {
            let rules = &self.config.rules;
            let mut staged =
                Staged { read, now: self.now(), rules, changes: Changes::new(), log: Vec::new() };
            let reply = stage(&mut staged)?;
            Ok((staged.changes, (reply, staged.log)))
        };
        let done = self.trees.change(decide, |(_, log): &(T, Vec<Change>)| {
            if self.hub.is_watched() {
                log.iter().for_each(|change| self.hub.report(change.clone()));
            }
        });
        Ok(done?.0)
    }

    /// Deletes these keys: the live ones to clear, the expired ones to sweep. Says how many there were.
    fn delete(&self, keys: Vec<Key>, is_cleared: bool) -> Result<u64> {
        if keys.is_empty() {
            return Ok(0);
        }
        self.apply(|staged| {
            let mut count = 0;
            for key in keys {
                let stored = staged.stored(&key)?;
                let is_live = stored.as_ref().is_some_and(|record| record.is_live(staged.now));
                if is_live == is_cleared {
                    count += u64::from(stored.is_some());
                    if is_cleared {
                        staged.log.push(Change::Deleted(key.clone()));
                    }
                    // An expiry that is left over from a value that is gone goes, too.
                    staged.changes.insert(key, None);
                }
            }
            Ok(count)
        })
    }
}

/// Operations one after the other on what is stored, before they are written together.
struct Staged<'a> {
    read: &'a dyn Fn(&Key) -> Result<Option<Record>>,
    now: Timestamp,
    rules: &'a Rules,
    changes: Changes,
    log: Vec<Change>,
}

impl Staged<'_> {
    fn stored(&self, key: &Key) -> Result<Option<Record>> {
        match self.changes.get(key) {
            Some(changed) => Ok(changed.clone()),
            None => (self.read)(key),
        }
    }

    fn live(&self, key: &Key) -> Result<Option<Record>> {
        Ok(self.stored(key)?.filter(|record| record.is_live(self.now)))
    }

    /// `None` if the condition does not hold.
    fn write(&mut self, write: &Write) -> Result<Option<Applied>> {
        let live = self.live(write.key())?;
        let effect = embedded::write(live.as_ref(), write, self.now, self.rules);
        let Some(effect) = effect.map_err(|error| error.with_key(write.key()))? else { return Ok(None) };
        let applied = effect != Effect::Nothing;
        self.stage(write.key(), effect);
        Ok(Some(applied.into()))
    }

    fn stage(&mut self, key: &Key, effect: Effect) {
        let record = match effect {
            Effect::Nothing => return,
            Effect::Put(record) => Some(record),
            Effect::Delete => None,
        };
        self.log.push(match record {
            Some(_) => Change::Put(key.clone()),
            None => Change::Deleted(key.clone()),
        });
        self.changes.insert(key.clone(), record);
    }
}

/// Runs this on a thread that may block, to its end even if nobody waits for it any more.
async fn blocking<T: Send + 'static>(call: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(call).await.unwrap_or_else(|error| {
        Err(match error.try_into_panic() {
            Ok(panic) => Error::new(ErrorKind::Internal, format!("a panic: {}", text(&*panic))),
            Err(_) => Error::new(ErrorKind::Closed, "the async runtime is shutting down"),
        })
    })
}

#[async_trait]
impl StateBackend for SledBackend {
    fn name(&self) -> &'static str {
        NAME
    }

    fn capabilities(&self) -> Capabilities {
        let mut capabilities = Capabilities::NONE;
        capabilities.ttl = true;
        capabilities.ttl_resolution = Duration::from_millis(1);
        capabilities.scan = true;
        capabilities.ordered_scan = true;
        capabilities.atomic_batch = true;
        capabilities.transactions = true;
        capabilities.watch = true;
        capabilities.publish = true;
        capabilities.durable = self.shared.config.durability == Durability::Sync;
        capabilities.max_value_bytes = self.shared.config.rules.max_value_bytes;
        capabilities
    }

    fn get<'a>(&'a self, key: &'a Key) -> Answer<'a, Option<Entry>> {
        let at = key.clone();
        let read = self.blocking("get", move |shared| {
            Ok(shared.trees.read(&at)?.and_then(|record| shared.entry(record)))
        });
        read.then(move |entry| entry.map_err(|error| error.with_key(key)))
    }

    fn put<'a>(&'a self, key: &'a Key, value: Bytes, options: PutOptions) -> Answer<'a, Applied> {
        let write = Write::Put { key: key.clone(), value, options };
        self.blocking("put", move |shared| {
            Ok(shared.apply(|staged| staged.write(&write))?.unwrap_or(Applied::No))
        })
    }

    fn delete<'a>(&'a self, key: &'a Key, condition: Condition) -> Answer<'a, Applied> {
        let write = Write::Delete { key: key.clone(), condition };
        self.blocking("delete", move |shared| {
            Ok(shared.apply(|staged| staged.write(&write))?.unwrap_or(Applied::No))
        })
    }

    fn get_many<'a>(&'a self, keys: &'a [Key]) -> Answer<'a, Vec<Option<Entry>>> {
        let keys = keys.to_vec();
        self.blocking("get_many", move |shared| {
            let records = shared.trees.read_many(&keys)?;
            Ok(records.into_iter().map(|record| shared.entry(record?)).collect())
        })
    }

    fn write_many(&self, batch: Vec<Write>) -> Answer<'_, Vec<Applied>> {
        self.blocking("write_many", move |shared| {
            shared.apply(|staged| {
                let write = |write: &Write| staged.write(write)?.ok_or_else(|| batch_conflict(write.key()));
                batch.iter().map(write).collect()
            })
        })
    }

    fn transact<'a>(&'a self, key: &'a Key, transition: Arc<dyn Transition>) -> Answer<'a, Bytes> {
        let at = key.clone();
        let transacted = self.blocking("transact", move |shared| {
            shared.apply(|staged| {
                let live = staged.live(&at)?;
                let (effect, reply) =
                    embedded::transact(live.as_ref(), &*transition, staged.now, staged.rules)?;
                staged.stage(&at, effect);
                Ok(reply)
            })
        });
        transacted.then(move |reply| reply.map_err(|error| error.with_key(key)))
    }

    fn scan(&self, scan: Scan) -> BoxStream<'static, Result<(Key, Entry)>> {
        if let Err(error) = scan.check() {
            return stream::iter([Err(error.at(NAME, "scan"))]).boxed();
        }
        let (this, begin) = (self.clone(), Some(scan));
        let pages = stream::try_unfold((this, begin), |(this, position)| async move {
            let Some(mut scan) = position else { return Ok::<_, Error>(None) };
            let step = this.blocking("scan", move |shared| {
                let page = shared.trees.page(&scan.prefix, scan.after.as_ref(), scan.page)?;
                scan.after = page.last().map(|(key, _)| key.clone());
                let next = scan.after.is_some().then_some(scan.clone());
                Ok((page, scan.keys_only, next))
            });
            let (page, keys_only, next) = step.await?;
            let clock = Arc::clone(&this.shared);
            let entries = page.into_iter().filter_map(move |(key, mut record)| {
                if keys_only {
                    record.value.clear();
                }
                clock.entry(record).map(|entry| Ok((key, entry)))
            });
            Ok(Some((stream::iter(entries), (this, next))))
        });
        pages.try_flatten().boxed()
    }

    async fn count(&self, prefix: &Prefix) -> Result<u64> {
        let scan = Scan { page: Scan::MAX_PAGE, ..Scan::prefix(prefix.clone()).keys_only() };
        let counted = self.scan(scan).try_fold(0, async |count, _| Ok(count + 1));
        counted.await.map_err(|error| error.at(NAME, "count"))
    }

    async fn clear(&self, prefix: &Prefix) -> Result<u64> {
        let prefix = prefix.clone();
        let page = move |shared: &Shared, after: Option<&Key>| {
            let page = shared.trees.page(&prefix, after, CLEAR_PAGE)?;
            Ok(page.into_iter().map(|(key, _)| key).collect())
        };
        self.delete_pages("clear", page, true).await
    }

    async fn watch(&self, prefix: &Prefix) -> Result<BoxStream<'static, Result<Change>>> {
        Ok(self.shared.hub.watch(prefix))
    }

    async fn publish(&self, channel: &Key, message: Bytes) -> Result<()> {
        self.shared.hub.publish(channel, message);
        Ok(())
    }

    async fn subscribe(&self, channel: &Key) -> Result<BoxStream<'static, Result<Message>>> {
        Ok(self.shared.hub.subscribe(channel))
    }

    async fn begin(&self) -> Result<Box<dyn Transaction>> {
        Ok(Box::new(OptimisticTransaction::new(Arc::new(self.clone()))))
    }

    async fn health(&self) -> Result<Health> {
        let health = self.blocking("health", |shared| {
            let mut health =
                Health { version: "0.34".to_owned(), now: Some(shared.now()), ..Health::default() };
            health.details.push(("path".to_owned(), shared.trees.path.display().to_string()));
            let tree = shared.config.tree.clone().unwrap_or_else(|| "(default)".to_owned());
            health.details.push(("tree".to_owned(), tree));
            let others = shared.trees.other_trees();
            if !others.is_empty() {
                health.details.push(("other trees".to_owned(), others.join(", ")));
            }
            if shared.config.durability != Durability::Sync {
                let warning =
                    "durability is buffered: a crash takes back the last half second; `sync` does not";
                health.warnings.push(warning.to_owned());
            }
            let warning =
                "sled is no longer maintained; `commonhold copy` moves its entries to a disk: store";
            health.warnings.push(warning.to_owned());
            Ok(health)
        });
        health.await
    }

    async fn stats(&self) -> Result<Stats> {
        let stats = self.blocking("stats", |shared| {
            let mut stats = Stats::default();
            stats.disk_bytes = shared.trees.db.size_on_disk().ok();
            Ok(stats)
        });
        stats.await
    }

    async fn maintain(&self, task: Maintenance) -> Result<()> {
        match task {
            Maintenance::Sweep => {
                let now = self.shared.now();
                let page =
                    move |shared: &Shared, after: Option<&Key>| shared.trees.expired(after, now, CLEAR_PAGE);
                self.delete_pages("maintain", page, false).await.map(drop)
            }
            Maintenance::Flush => self.blocking("maintain", |shared| shared.trees.flush()).await,
            _ => Err(Error::new(ErrorKind::Unsupported, format!("{task:?}")).at(NAME, "maintain")),
        }
    }
}

#[async_trait]
impl OptimisticStore for SledBackend {
    fn now(&self) -> Timestamp {
        self.shared.now()
    }

    fn rules(&self) -> &Rules {
        &self.shared.config.rules
    }

    async fn read(&self, key: &Key) -> Result<Option<Record>> {
        let key = key.clone();
        let read = self.blocking("get", move |shared| {
            Ok(shared.trees.read(&key)?.filter(|record| record.is_live(shared.now())))
        });
        read.await
    }

    async fn commit(&self, reads: ReadSet, writes: WriteSet) -> Result<()> {
        let commit = self.blocking("commit", move |shared| {
            shared.apply(|staged| {
                for (key, read) in &reads {
                    if staged.live(key)? != *read {
                        return Err(transaction_conflict(key));
                    }
                }
                for (key, record) in writes {
                    staged.stage(&key, record.map_or(Effect::Delete, Effect::Put));
                }
                Ok(())
            })
        });
        commit.await
    }
}

impl fmt::Debug for SledBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SledBackend").field("config", &self.shared.config).finish_non_exhaustive()
    }
}
