//! The open database: reads, commits, and room for the next one.

use std::{
    ops::Bound,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicI64, Ordering},
    },
    thread,
    time::Duration,
};

use commonhold_core::{Clock, Error, ErrorKind, Key, Result, embedded::Record};
use fjall::{
    AbstractTree as _, CompressionType, Database, Iter, Keyspace, KeyspaceCreateOptions, OwnedWriteBatch,
    PersistMode, Readable as _, Snapshot, config::CompressionPolicy,
};

use crate::{
    config::{DiskConfig, Durability},
    directory::Directory,
    error::{ambiguous, contained, engine_error},
    group::Changes,
    journal_sync::JournalSync,
    purge::Purge,
    record,
    view::View,
};

/// The version that reads and writes the files.
pub(crate) const VERSION: &str = "fjall 3.1";

/// The name of the one keyspace that holds the entries.
const KEYSPACE: &str = "entries";

/// The engine would give memtables away by itself at this size. It never comes to that: see
/// [`Engine::make_room`].
const ENGINE_MEMTABLE_BYTES: u64 = 1 << 40;

/// Memtables that may wait for being written to disk, and runs of tables that may wait for being compacted,
/// before writers wait. Both are below the limits at which the engine would wait itself: for ever, if its
/// background threads have failed.
const MAX_SEALED_MEMTABLES: usize = 3;
const MAX_L0_RUNS: usize = 20;

/// About what the engine counts for an item of a memtable beyond key and value.
const ITEM_OVERHEAD_BYTES: usize = 96;

/// The open database.
pub(crate) struct Engine {
    // In this order they are dropped: the lock on the directory is released last.
    journal_sync: JournalSync,
    keyspace: Keyspace,
    db: Database,
    view: View,
    /// Bytes that may be written before the engine has to be looked at again.
    room_bytes: AtomicI64,
    is_table_wanted: AtomicBool,
    config: DiskConfig,
    directory: Directory,
}

impl Engine {
    /// Opens the store or creates it. Blocks.
    pub(crate) fn open(config: DiskConfig, clock: Arc<dyn Clock>) -> Result<Self> {
        config.check()?;
        let directory = Directory::acquire(&config.path)?;
        let (db, keyspace) = contained(directory.path(), || open_database(&config, &directory, clock))?;
        if directory.is_new() {
            directory.created()?;
        }
        Ok(Self {
            journal_sync: JournalSync::start(directory.path(), config.durability)?,
            keyspace,
            db,
            view: View::default(),
            room_bytes: AtomicI64::new(0),
            is_table_wanted: AtomicBool::new(false),
            config,
            directory,
        })
    }

    pub(crate) fn config(&self) -> &DiskConfig {
        &self.config
    }

    /// The absolute path of the directory.
    pub(crate) fn path(&self) -> &Path {
        self.directory.path()
    }

    pub(crate) fn db(&self) -> &Database {
        &self.db
    }

    pub(crate) fn keyspace(&self) -> &Keyspace {
        &self.keyspace
    }

    /// The record under a key, live or not. May read from disk.
    pub(crate) fn read(&self, key: &Key) -> Result<Option<Record>> {
        contained(self.path(), || self.view.read(|snapshot| self.fetch(key, snapshot)))
    }

    /// The records under these keys at one moment. May read from disk.
    pub(crate) fn read_many(&self, keys: &[Key]) -> Result<Vec<Option<Record>>> {
        contained(self.path(), || {
            let snapshot = self.snapshot();
            keys.iter().map(|key| self.fetch(key, Some(&snapshot))).collect()
        })
    }

    /// The records in a range of keys at this moment, in their order. May read from disk.
    pub(crate) fn range(&self, range: KeyRange) -> Result<Range> {
        contained(self.path(), || {
            Ok(Range { records: self.snapshot().range(&self.keyspace, range), path: self.path().into() })
        })
    }

    fn fetch(&self, key: &Key, snapshot: Option<&Snapshot>) -> Result<Option<Record>> {
        let bytes = match snapshot {
            Some(snapshot) => snapshot.get(&self.keyspace, key.as_bytes()),
            None => self.keyspace.get(key.as_bytes()),
        };
        let bytes = bytes.map_err(|error| self.failed(error))?;
        bytes.map(|bytes| record::decode(key, bytes.into())).transpose()
    }

    fn snapshot(&self) -> Snapshot {
        self.view.snapshot(|| self.db.snapshot())
    }

    /// Writes changes in one atomic step, as durably as the store is configured: in `sync`, nobody sees them
    /// before they are on the disk, and this blocks for that long. To be called by the one writer.
    ///
    /// After an error the changes may be in the journal or not, and no further ones are taken.
    pub(crate) fn commit(&self, changes: &Changes) -> Result<()> {
        let bytes = changes.iter().map(|(key, record)| item_bytes(key, record)).sum();
        self.committed(bytes, || match (self.persist_mode(), changes.len(), changes.iter().next()) {
            (PersistMode::Buffer, 1, Some((key, record))) => self.write_single(key, record),
            (mode, ..) => self.write_batch(changes, mode),
        })
    }

    /// Writes one record without waiting for the disk; otherwise as [`commit`](Self::commit). Not for `sync`.
    pub(crate) fn commit_single(&self, key: &Key, record: &Record) -> Result<()> {
        self.committed(item_bytes(key, Some(record)), || self.write_single(key, Some(record)))
    }

    fn committed(&self, bytes: usize, write: impl FnOnce() -> fjall::Result<()>) -> Result<()> {
        self.journal_sync.check()?;
        self.room_bytes.fetch_sub(i64::try_from(bytes).unwrap_or(i64::MAX), Ordering::Relaxed);
        let written = contained(self.path(), || Ok(write()));
        let error = match written {
            Ok(Ok(())) => {
                self.journal_sync.written();
                return Ok(());
            }
            // It failed before and has not begun to write.
            Ok(Err(error @ fjall::Error::Poisoned)) => self.failed(error),
            Ok(Err(error)) => ambiguous(self.failed(error)),
            Err(panic) => ambiguous(panic),
        };
        self.journal_sync.fail(&error);
        Err(error)
    }

    fn persist_mode(&self) -> PersistMode {
        match self.config.durability {
            Durability::Sync => PersistMode::SyncAll,
            Durability::Buffered | Durability::Interval(_) => PersistMode::Buffer,
        }
    }

    /// Spares what a batch and a snapshot cost.
    fn write_single(&self, key: &Key, record: Option<&Record>) -> fjall::Result<()> {
        let _single = self.view.single();
        match record {
            Some(record) => self.keyspace.insert(key.as_bytes(), record::encode(record)),
            None => self.keyspace.remove(key.as_bytes()),
        }
    }

    fn write_batch(&self, changes: &Changes, mode: PersistMode) -> fjall::Result<()> {
        let _hidden = self.view.hide(self.db.snapshot());
        let mut batch = OwnedWriteBatch::with_capacity(self.db.clone(), changes.len()).durability(Some(mode));
        for (key, record) in changes.iter() {
            match record {
                Some(record) => batch.insert(&self.keyspace, key.as_bytes(), record::encode(record)),
                None => batch.remove(&self.keyspace, key.as_bytes()),
            }
        }
        batch.commit()
    }

    /// Whether this many bytes can be written without the engine making the writer wait.
    pub(crate) fn has_room(&self, bytes: usize) -> bool {
        i64::try_from(bytes).is_ok_and(|bytes| bytes < self.room_bytes.load(Ordering::Relaxed))
    }

    /// Gives a full memtable away to be written to disk, and waits if too much is waiting for that already.
    /// To be called by the one writer. Blocks.
    pub(crate) fn make_room(&self) -> Result<()> {
        let made = contained(self.path(), || {
            let is_wanted = self.is_table_wanted.swap(false, Ordering::Relaxed);
            let full = if is_wanted { 1 } else { self.config.memtable_bytes };
            if self.memtable_bytes() >= full {
                // The engine does this again, but locks every writer out meanwhile: leave it little to do.
                self.journal_sync.sync()?;
                self.keyspace.rotate_memtable().map_err(|error| self.failed(error))?;
            }
            self.wait_while(|| {
                self.keyspace.sealed_memtable_count() >= MAX_SEALED_MEMTABLES
                    || self.keyspace.tree.l0_run_count() >= MAX_L0_RUNS
            })?;
            let mut patience = 10;
            while self.db.outstanding_flushes() > 0 && patience > 0 {
                patience -= 1;
                thread::sleep(Duration::from_micros(100));
            }
            // A table that is yet to be begun will begin by locking writers out for a sync of the journal. So
            // there is room only behind that; until then, writes stay on blocking threads.
            let begun = self.db.outstanding_flushes() == 0;
            self.check_background_threads()?;
            let room = self.config.memtable_bytes.saturating_sub(self.memtable_bytes());
            let room = if begun { i64::try_from(room).unwrap_or(i64::MAX) } else { 0 };
            self.room_bytes.store(room, Ordering::Relaxed);
            Ok(())
        });
        made.inspect_err(|error| self.journal_sync.fail(error))
    }

    /// Lets the writer give its memtable away before it next writes, full or not.
    pub(crate) fn want_table(&self) {
        self.is_table_wanted.store(true, Ordering::Relaxed);
        self.room_bytes.store(0, Ordering::Relaxed);
    }

    fn memtable_bytes(&self) -> u64 {
        self.keyspace.tree.active_memtable().size()
    }

    /// Waits until every memtable that was given away is in a table. Blocks.
    pub(crate) fn wait_for_tables(&self) -> Result<()> {
        self.wait_while(|| self.keyspace.sealed_memtable_count() > 0)
    }

    fn wait_while(&self, busy: impl Fn() -> bool) -> Result<()> {
        while busy() {
            self.check_background_threads()?;
            thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// Waits for whoever has the journal locked. An error if the engine has failed in the background.
    fn check_background_threads(&self) -> Result<()> {
        self.db.persist(PersistMode::Buffer).map_err(|error| self.failed(error))
    }

    /// Merges all tables into new ones, without what has expired. Blocks.
    pub(crate) fn compact(&self) -> Result<()> {
        contained(self.path(), || self.keyspace.major_compact().map_err(|error| self.failed(error)))
    }

    /// Makes everything durable that was written so far. Blocks.
    pub(crate) fn sync(&self) -> Result<()> {
        self.journal_sync.sync()
    }

    /// An error if a write has failed.
    pub(crate) fn check(&self) -> Result<()> {
        self.journal_sync.check()?;
        contained(self.path(), || self.check_background_threads())
    }

    fn failed(&self, error: fjall::Error) -> Error {
        engine_error(self.path(), error)
    }
}

/// About what the engine counts for an item in its memtable.
fn item_bytes(key: &Key, record: Option<&Record>) -> usize {
    let value_len = record.map_or(0, |record| record.value.len());
    key.as_bytes().len() + value_len + ITEM_OVERHEAD_BYTES
}

fn open_database(
    config: &DiskConfig,
    directory: &Directory,
    clock: Arc<dyn Clock>,
) -> Result<(Database, Keyspace)> {
    let failed = |error| engine_error(directory.path(), error);
    let purge = Arc::new(Purge::new(clock));
    let lz4 = if config.compression { CompressionType::Lz4 } else { CompressionType::None };
    let db = Database::builder(directory.path())
        .cache_size(config.cache_bytes)
        .max_journaling_size(config.journal_bytes)
        .journal_compression(lz4)
        .with_compaction_filter_factories(Arc::new(move |_| Some(Arc::clone(&purge) as _)))
        // With two, one writes memtables to disk while the other compacts.
        .worker_threads(2)
        .open()
        .map_err(failed)?;
    if !directory.is_new() && !db.keyspace_exists(KEYSPACE) {
        let path = directory.path().display();
        let message = format!("{path}: the entries are missing; restore the store from a copy");
        return Err(Error::new(ErrorKind::Corrupt, message));
    }
    let options = || {
        // The first two levels are small and often rewritten.
        let compression = CompressionPolicy::new([CompressionType::None, CompressionType::None, lz4]);
        KeyspaceCreateOptions::default()
            .max_memtable_size(ENGINE_MEMTABLE_BYTES)
            .data_block_compression_policy(compression)
    };
    let keyspace = db.keyspace(KEYSPACE, options).map_err(failed)?;
    Ok((db, keyspace))
}

/// The bounds of a range of keys.
pub(crate) type KeyRange = (Bound<Vec<u8>>, Bound<Vec<u8>>);

/// Some records, in the order of their keys.
pub(crate) type Page = Vec<(Key, Record)>;

/// The records in a range of keys, at the moment at which it was made.
pub(crate) struct Range {
    records: Iter,
    path: Box<Path>,
}

impl Range {
    /// The next records, live or not; none at the end. Reads from disk.
    pub(crate) fn page(&mut self, max_len: usize) -> Result<Page> {
        /// So that a page of large values stays small.
        const MAX_BYTES: usize = 4 * 1024 * 1024;
        contained(&self.path, || {
            let (mut page, mut bytes) = (Vec::new(), 0);
            while page.len() < max_len && bytes < MAX_BYTES {
                let Some(item) = self.records.next() else { break };
                let (key, value) = item.into_inner().map_err(|error| engine_error(&self.path, error))?;
                let key = Key::from_bytes(key.into())?;
                bytes += value.len();
                let record = record::decode(&key, value.into())?;
                page.push((key, record));
            }
            Ok(page)
        })
    }
}
