//! The disk backend: the store's operations on the engine.

use std::{
    fmt, fs,
    path::Path,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use commonhold_core::{
    Answer, Applied, Capabilities, Change, Clock, Condition, Entry, Error, ErrorKind, Health, Key,
    Maintenance, Message, Prefix, PutOptions, Result, Scan, StateBackend, Stats, SystemClock, Timestamp,
    Transaction, Transition, Write,
    embedded::{OptimisticStore, OptimisticTransaction, ReadSet, Record, Rules, WriteSet},
};
use futures_util::{StreamExt as _, TryStreamExt as _, stream, stream::BoxStream};

use crate::{
    config::{DiskConfig, Durability},
    directory::wait_until_closed,
    engine::{Engine, VERSION},
    group::{Operation, Reply},
    shared::{Handle, blocking},
};

const NAME: &str = "disk";

/// How many keys are cleared or purged in one step.
const CLEAR_PAGE: usize = 1000;

/// How many keys are read at once without going to a blocking thread.
const MAX_INLINE_READS: usize = 64;

/// A store in a directory of this machine, for one process at a time.
///
/// Dropping the last of the backend, its transactions and its scans closes the store: waiting writes are carried
/// out and made durable, in every mode, and the directory is free again. Within an async runtime that happens on a
/// blocking thread; opening the directory again in the same process waits for it.
///
/// # Cancellation
/// A dropped future has read nothing, or its write is carried out in full or not at all.
pub struct DiskBackend {
    handle: Handle,
}

impl DiskBackend {
    /// Opens the store, or creates it in a directory that is empty or not there.
    ///
    /// # Errors
    /// Each names the path. `InvalidConfig`: an option is out of range, or the path is a file or somebody else's
    /// directory. `Unavailable`: another process has it open (the message says which). `Unauthorized`: no permission.
    /// `Corrupt`: files are damaged or missing. `Overloaded`: the disk is full. `Unsupported`: another version
    /// wrote it.
    pub async fn open(config: DiskConfig) -> Result<Self> {
        Self::open_with_clock(config, Arc::new(SystemClock)).await
    }

    /// Opens the store with a clock that decides what has expired; tests turn it.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub async fn open_with_clock(config: DiskConfig, clock: Arc<dyn Clock>) -> Result<Self> {
        let opened = blocking(move || {
            let engine = Engine::open(config, Arc::clone(&clock))?;
            Ok(Self { handle: Handle::new(engine, clock) })
        });
        opened.await.map_err(|error| error.at(NAME, "open"))
    }

    /// Closes the store, if this was the last that held it open, and waits until another process can open it.
    ///
    /// Dropping it closes it as well, but in the background.
    pub async fn close(self) {
        let path = self.handle.engine.path().to_owned();
        drop(self);
        // That cannot fail, unless the runtime is shutting down, and then nobody is left to wait.
        let waited = blocking(move || {
            wait_until_closed(&path);
            Ok(())
        });
        let _ = waited.await;
    }

    /// The record under a key, live or not.
    async fn read(&self, key: &Key) -> Result<Option<Record>> {
        if self.handle.reads.are_fast() {
            return self.handle.read(key);
        }
        let key = key.clone();
        self.handle.blocking(move |shared| shared.read(&key)).await
    }

    /// What a reader sees of a record.
    fn entry(&self, record: Record) -> Option<Entry> {
        if record.expires_at.is_none() {
            // Spares the look at the clock.
            return Some(Entry { value: record.value, ttl: None });
        }
        let now = self.handle.clock.now();
        record.is_live(now).then(|| record.into_entry(now))
    }

    fn write(&self, write: Write) -> Answer<'_, Applied> {
        self.handle.submit(Operation::Write(write)).then(|reply| match reply? {
            Reply::Applied(applied) => Ok(applied),
            other => Err(unexpected(&other)),
        })
    }

    /// Submits the keys under a prefix page by page, and adds up what was done with them.
    async fn for_each_page(
        &self,
        prefix: &Prefix,
        wanted: impl Fn(&Record, Timestamp) -> bool,
        operation: impl Fn(Vec<Key>) -> Operation,
    ) -> Result<u64> {
        let mut done = 0;
        let mut pages = self.handle.pages(prefix, None, CLEAR_PAGE);
        while let Some(page) = pages.try_next().await? {
            let now = self.handle.clock.now();
            let keys: Vec<_> =
                page.into_iter().filter(|(_, record)| wanted(record, now)).map(|(key, _)| key).collect();
            if keys.is_empty() {
                continue;
            }
            match self.handle.submit(operation(keys)).await? {
                Reply::Count(count) => done += count,
                other => return Err(unexpected(&other)),
            }
        }
        Ok(done)
    }

    async fn sweep(&self) -> Result<u64> {
        self.for_each_page(&Prefix::ALL, |record, now| !record.is_live(now), Operation::Purge).await
    }

    async fn compact(&self) -> Result<()> {
        self.handle.engine.want_table();
        self.handle.submit(Operation::Purge(Vec::new())).await?;
        self.handle
            .blocking(|shared| {
                shared.engine.wait_for_tables()?;
                shared.engine.compact()
            })
            .await
    }
}

/// Says so if the disk has less than a twentieth of its space left, or less than 256 MiB.
fn nearly_full(path: &Path) -> Option<String> {
    let disk = rustix::fs::statvfs(path).ok()?;
    let (free, all) = (disk.f_bavail * disk.f_frsize, disk.f_blocks * disk.f_frsize);
    let is_low = free < all / 20 || free < 256 << 20;
    is_low.then(|| {
        let mebibytes = free >> 20;
        format!("the disk has {mebibytes} MiB left: when it is full, no more writes are taken; make room")
    })
}

fn unexpected(reply: &Reply) -> Error {
    Error::new(ErrorKind::Internal, format!("the writer answered {reply:?}"))
}

#[async_trait]
impl StateBackend for DiskBackend {
    fn name(&self) -> &'static str {
        NAME
    }

    fn capabilities(&self) -> Capabilities {
        let config = self.handle.engine.config();
        let mut capabilities = Capabilities::NONE;
        capabilities.ttl = true;
        capabilities.ttl_resolution = Duration::from_millis(1);
        capabilities.scan = true;
        capabilities.ordered_scan = true;
        capabilities.snapshot_scan = true;
        capabilities.atomic_batch = true;
        capabilities.transactions = true;
        capabilities.watch = true;
        capabilities.publish = true;
        capabilities.durable = config.durability == Durability::Sync;
        capabilities.compression = config.compression;
        capabilities.max_value_bytes = config.rules.max_value_bytes;
        capabilities
    }

    fn get<'a>(&'a self, key: &'a Key) -> Answer<'a, Option<Entry>> {
        let answer = if self.handle.reads.are_fast() {
            Answer::Ready(self.handle.read(key))
        } else {
            let key = key.clone();
            Answer::later(self.handle.blocking(move |shared| shared.read(&key)))
        };
        answer.then(move |record| match record {
            Ok(record) => Ok(record.and_then(|record| self.entry(record))),
            Err(error) => Err(error.at(NAME, "get").with_key(key)),
        })
    }

    fn put<'a>(&'a self, key: &'a Key, value: Bytes, options: PutOptions) -> Answer<'a, Applied> {
        let write = match self.handle.put_inline(key, &value, &options) {
            Some(applied) => Answer::Ready(applied),
            None => self.write(Write::Put { key: key.clone(), value, options }),
        };
        write.then(move |applied| applied.map_err(|error| error.at(NAME, "put").with_key(key)))
    }

    fn delete<'a>(&'a self, key: &'a Key, condition: Condition) -> Answer<'a, Applied> {
        let write = self.write(Write::Delete { key: key.clone(), condition });
        write.then(move |applied| applied.map_err(|error| error.at(NAME, "delete").with_key(key)))
    }

    fn get_many<'a>(&'a self, keys: &'a [Key]) -> Answer<'a, Vec<Option<Entry>>> {
        let answer = if keys.len() <= MAX_INLINE_READS && self.handle.reads.are_fast() {
            Answer::Ready(self.handle.read_many(keys))
        } else {
            let keys = keys.to_vec();
            Answer::later(self.handle.blocking(move |shared| shared.read_many(&keys)))
        };
        answer.then(|records| {
            let records = records.map_err(|error| error.at(NAME, "get_many"))?;
            Ok(records.into_iter().map(|record| record.and_then(|record| self.entry(record))).collect())
        })
    }

    fn write_many(&self, batch: Vec<Write>) -> Answer<'_, Vec<Applied>> {
        self.handle.submit(Operation::Batch(batch)).then(|reply| {
            match reply.map_err(|error| error.at(NAME, "write_many"))? {
                Reply::Batch(applied) => Ok(applied),
                other => Err(unexpected(&other)),
            }
        })
    }

    fn transact<'a>(&'a self, key: &'a Key, transition: Arc<dyn Transition>) -> Answer<'a, Bytes> {
        self.handle.submit(Operation::Transact(key.clone(), transition)).then(move |reply| {
            match reply.map_err(|error| error.at(NAME, "transact").with_key(key))? {
                Reply::Bytes(reply) => Ok(reply),
                other => Err(unexpected(&other)),
            }
        })
    }

    fn scan(&self, scan: Scan) -> BoxStream<'static, Result<(Key, Entry)>> {
        if let Err(error) = scan.check() {
            return stream::iter([Err(error.at(NAME, "scan"))]).boxed();
        }
        self.handle.scan(scan).map_err(|error| error.at(NAME, "scan")).boxed()
    }

    async fn count(&self, prefix: &Prefix) -> Result<u64> {
        let scan = Scan { page: Scan::MAX_PAGE, ..Scan::prefix(prefix.clone()).keys_only() };
        let counted = self.handle.scan(scan).try_fold(0, async |count, _| Ok(count + 1));
        counted.await.map_err(|error| error.at(NAME, "count"))
    }

    async fn clear(&self, prefix: &Prefix) -> Result<u64> {
        let cleared = self.for_each_page(prefix, |_, _| true, Operation::Clear);
        cleared.await.map_err(|error| error.at(NAME, "clear"))
    }

    async fn watch(&self, prefix: &Prefix) -> Result<BoxStream<'static, Result<Change>>> {
        Ok(self.handle.hub.watch(prefix))
    }

    async fn publish(&self, channel: &Key, message: Bytes) -> Result<()> {
        self.handle.hub.publish(channel, message);
        Ok(())
    }

    async fn subscribe(&self, channel: &Key) -> Result<BoxStream<'static, Result<Message>>> {
        Ok(self.handle.hub.subscribe(channel))
    }

    async fn begin(&self) -> Result<Box<dyn Transaction>> {
        let store = Self { handle: self.handle.clone() };
        Ok(Box::new(OptimisticTransaction::new(Arc::new(store))))
    }

    async fn health(&self) -> Result<Health> {
        let health = self.handle.blocking(|shared| {
            shared.engine.check()?;
            let config = shared.engine.config();
            let mut warnings = Vec::new();
            if config.durability != Durability::Sync {
                warnings.push(format!(
                    "durability is {}: a crash of the machine takes back the last writes; `sync` does not",
                    config.durability
                ));
            }
            warnings.extend(nearly_full(shared.engine.path()));
            Ok(Health {
                version: VERSION.to_owned(),
                now: Some(shared.clock.now()),
                details: vec![
                    ("path".to_owned(), shared.engine.path().display().to_string()),
                    ("durability".to_owned(), config.durability.to_string()),
                ],
                warnings,
            })
        });
        health.await.map_err(|error| error.at(NAME, "health"))
    }

    async fn stats(&self) -> Result<Stats> {
        let stats = self.handle.blocking(|shared| {
            let (db, keyspace) = (shared.engine.db(), shared.engine.keyspace());
            let mut stats = Stats::default();
            stats.memory_bytes = Some(db.write_buffer_size() + db.cache_size());
            stats.disk_bytes = Some(disk_bytes(shared.engine.path()));
            stats.details = vec![
                ("operations written", shared.writer.operations.load(Ordering::Relaxed)),
                ("commits", shared.writer.commits.load(Ordering::Relaxed)),
                ("journals", db.journal_count() as u64),
                ("tables", keyspace.table_count() as u64),
                ("memtables being written", keyspace.sealed_memtable_count() as u64),
                ("compactions", db.compactions_completed() as u64),
                ("cache bytes", db.cache_size()),
                ("write buffer bytes", db.write_buffer_size()),
            ];
            Ok(stats)
        });
        stats.await.map_err(|error| error.at(NAME, "stats"))
    }

    async fn maintain(&self, task: Maintenance) -> Result<()> {
        let done = match task {
            Maintenance::Sweep => self.sweep().await.map(drop),
            Maintenance::Compact => self.compact().await,
            Maintenance::Flush => self.handle.blocking(|shared| shared.engine.sync()).await,
            _ => Err(Error::new(ErrorKind::Unsupported, format!("{task:?}"))),
        };
        done.map_err(|error| error.at(NAME, "maintain"))
    }
}

#[async_trait]
impl OptimisticStore for DiskBackend {
    fn now(&self) -> Timestamp {
        self.handle.clock.now()
    }

    fn rules(&self) -> &Rules {
        &self.handle.engine.config().rules
    }

    async fn read(&self, key: &Key) -> Result<Option<Record>> {
        let record = Self::read(self, key).await?;
        Ok(record.filter(|record| record.is_live(self.handle.clock.now())))
    }

    async fn commit(&self, reads: ReadSet, writes: WriteSet) -> Result<()> {
        self.handle
            .submit(Operation::Commit(reads, writes))
            .await
            .map(drop)
            .map_err(|error| error.at(NAME, "commit"))
    }
}

impl fmt::Debug for DiskBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DiskBackend").field("config", self.handle.engine.config()).finish_non_exhaustive()
    }
}

/// What the files in a directory and below occupy: journals have space reserved that they do not use.
fn disk_bytes(path: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(path) else { return 0 };
    let sizes = entries.flatten().map(|entry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => disk_bytes(&entry.path()),
        Ok(metadata) => allocated_bytes(&metadata),
        Err(_) => 0,
    });
    sizes.sum()
}

#[cfg(unix)]
fn allocated_bytes(metadata: &fs::Metadata) -> u64 {
    std::os::unix::fs::MetadataExt::blocks(metadata) * 512
}

#[cfg(not(unix))]
fn allocated_bytes(metadata: &fs::Metadata) -> u64 {
    metadata.len()
}
