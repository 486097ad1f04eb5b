//! The two trees of a store: values as plain sled keeps them, and beside them when they expire.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
};

use bytes::Bytes;
use commonhold_core::{
    Clock, Error, ErrorKind, Key, Prefix, Result, Timestamp, embedded::Record, url::did_you_mean,
};
use sled::{IVec, Transactional as _, transaction::TransactionError};
use xxhash_rust::xxh3::xxh3_64;

use crate::{
    config::{Durability, SledConfig},
    error::{contained, sled_error},
};

const EXPIRY_TREE: &str = "commonhold.expiry";

/// A page of a scan ends when its values are this long together.
const MAX_PAGE_BYTES: usize = 4 * 1024 * 1024;

/// What is written together: the new record, or `None` to delete.
pub(crate) type Changes = BTreeMap<Key, Option<Record>>;

pub(crate) struct Trees {
    pub(crate) path: PathBuf,
    pub(crate) db: sled::Db,
    values: sled::Tree,
    expiries: sled::Tree,
    durability: Durability,
    /// A value and its expiry are two reads: no write may come between them.
    lock: RwLock<()>,
}

impl Trees {
    /// Opens the database, or creates it in a directory that is empty or not there. Blocks.
    pub(crate) fn open(config: &SledConfig) -> Result<Self> {
        let path = config.path.clone();
        let is_new = check_directory(config)?;
        let failed = |error| sled_error(&path, error);
        contained(&path, || {
            let db = sled::Config::new()
                .path(&path)
                .cache_capacity(config.cache_bytes)
                .flush_every_ms(Some(500))
                .open()
                .map_err(failed)?;
            let values = match &config.tree {
                None => (*db).clone(),
                Some(name) => {
                    if !is_new && !db.tree_names().iter().any(|other| *other == name.as_bytes()) {
                        return Err(no_tree(config, name, &db));
                    }
                    db.open_tree(name).map_err(failed)?
                }
            };
            let expiries = db.open_tree(expiry_tree(config.tree.as_deref())).map_err(failed)?;
            let durability = config.durability;
            Ok(Self { path: path.clone(), db, values, expiries, durability, lock: RwLock::default() })
        })
    }

    /// The record under a key, live or not. Blocks.
    pub(crate) fn read(&self, key: &Key) -> Result<Option<Record>> {
        let _unchanged = self.reading();
        self.record(key)
    }

    /// The records under these keys at one moment, live or not. Blocks.
    pub(crate) fn read_many(&self, keys: &[Key]) -> Result<Vec<Option<Record>>> {
        let _unchanged = self.reading();
        keys.iter().map(|key| self.record(key)).collect()
    }

    /// Reads and then writes in one atomic step, which nobody sees before it is over. Blocks.
    pub(crate) fn change<T>(
        &self,
        decide: impl FnOnce(&dyn Fn(&Key) -> Result<Option<Record>>) -> Result<(Changes, T)>,
        written: impl FnOnce(&T),
    ) -> Result<T> {
        let done = {
            let _alone = self.writing();
            let (changes, done) = decide(&|key| self.record(key))?;
            if changes.is_empty() {
                return Ok(done);
            }
            self.write(&changes)?;
            written(&done);
            done
        };
        // Behind the lock: who waits for the disk at the same time shares its answer.
        if self.durability == Durability::Sync {
            self.flush().map_err(|error| error.with_retry(commonhold_core::Retry::Ambiguous))?;
        }
        Ok(done)
    }

    /// The next records, live or not; none at the end. Blocks.
    pub(crate) fn page(
        &self,
        prefix: &Prefix,
        after: Option<&Key>,
        max_len: usize,
    ) -> Result<Vec<(Key, Record)>> {
        let _unchanged = self.reading();
        contained(&self.path, || {
            let (mut page, mut bytes) = (Vec::new(), 0);
            for item in self.values.range::<Vec<u8>, _>(prefix.range(after)) {
                let (key, value) = item.map_err(|error| sled_error(&self.path, error))?;
                let key = self.key(&key)?;
                bytes += value.len();
                let record = self.with_expiry(&key, &value)?;
                page.push((key, record));
                if page.len() >= max_len || bytes >= MAX_PAGE_BYTES {
                    break;
                }
            }
            Ok(page)
        })
    }

    /// The next keys with an expiry that has passed. Blocks.
    pub(crate) fn expired(&self, after: Option<&Key>, now: Timestamp, max_len: usize) -> Result<Vec<Key>> {
        contained(&self.path, || {
            let mut keys = Vec::new();
            for item in self.expiries.range::<Vec<u8>, _>(Prefix::ALL.range(after)) {
                let (key, expiry) = item.map_err(|error| sled_error(&self.path, error))?;
                if decode(&expiry).is_none_or(|(at, _)| at <= now) {
                    keys.push(self.key(&key)?);
                }
                if keys.len() >= max_len {
                    break;
                }
            }
            Ok(keys)
        })
    }

    /// Waits until everything that was written is on the disk. Blocks.
    pub(crate) fn flush(&self) -> Result<()> {
        contained(&self.path, || self.db.flush().map(drop).map_err(|error| sled_error(&self.path, error)))
    }

    /// The other trees of the database that hold anything.
    pub(crate) fn other_trees(&self) -> Vec<String> {
        let names = self.db.tree_names().into_iter().filter(|name| {
            *name != self.values.name()
                && !name.starts_with(EXPIRY_TREE.as_bytes())
                && self.db.open_tree(name).is_ok_and(|tree| !tree.is_empty())
        });
        names.map(|name| name.escape_ascii().to_string()).collect()
    }

    fn record(&self, key: &Key) -> Result<Option<Record>> {
        contained(&self.path, || {
            let value = self.values.get(key.as_bytes()).map_err(|error| sled_error(&self.path, error))?;
            value.map(|value| self.with_expiry(key, &value)).transpose()
        })
    }

    fn with_expiry(&self, key: &Key, value: &IVec) -> Result<Record> {
        let expiry = self.expiries.get(key.as_bytes()).map_err(|error| sled_error(&self.path, error))?;
        let expires_at = expiry.and_then(|expiry| decode(&expiry)).and_then(|(at, digest)| {
            // Where plain sled has written since, that value has no expiry.
            (digest == xxh3_64(value)).then_some(at)
        });
        Ok(Record { value: Bytes::copy_from_slice(value), expires_at })
    }

    fn write(&self, changes: &Changes) -> Result<()> {
        let write = || {
            (&self.values, &self.expiries).transaction(|(values, expiries)| {
                for (key, record) in changes {
                    let key = key.as_bytes();
                    match record {
                        Some(record) => drop(values.insert(key, &record.value[..])?),
                        None => drop(values.remove(key)?),
                    }
                    match record.as_ref().and_then(encode) {
                        Some(expiry) => drop(expiries.insert(key, &expiry[..])?),
                        None => drop(expiries.remove(key)?),
                    }
                }
                Ok(())
            })
        };
        contained(&self.path, || {
            write().map_err(|error: TransactionError<()>| match error {
                TransactionError::Storage(error) => {
                    sled_error(&self.path, error).with_retry(commonhold_core::Retry::Ambiguous)
                }
                TransactionError::Abort(()) => {
                    Error::new(ErrorKind::Internal, "sled gave the transaction up")
                }
            })
        })
    }

    fn key(&self, bytes: &[u8]) -> Result<Key> {
        Key::new(bytes).map_err(|error| {
            let message = format!(
                "{}: the tree has a key that cannot be taken over: {}",
                self.path.display(),
                error.message()
            );
            Error::new(error.kind(), message)
        })
    }

    fn reading(&self) -> RwLockReadGuard<'_, ()> {
        self.lock.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn writing(&self) -> RwLockWriteGuard<'_, ()> {
        self.lock.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether the database is new. An error if the directory is somebody else's.
fn check_directory(config: &SledConfig) -> Result<bool> {
    let path = &config.path;
    let at = path.display();
    let invalid = |message| Err(Error::new(ErrorKind::InvalidConfig, message));
    if !path.exists() {
        return Ok(true);
    }
    if !path.is_dir() {
        return invalid(format!("{at}: is a file; a sled database is a directory"));
    }
    let mut files = std::fs::read_dir(path).map_err(|error| sled_error(path, sled::Error::Io(error)))?;
    if files.next().is_none() {
        return Ok(true);
    }
    if path.join("conf").is_file() && path.join("db").is_file() {
        return Ok(false);
    }
    invalid(format!("{at}: is not empty and no sled database; choose another directory"))
}

fn no_tree(config: &SledConfig, name: &str, db: &sled::Db) -> Error {
    let names: Vec<_> = db.tree_names().iter().map(|name| name.escape_ascii().to_string()).collect();
    let names: Vec<_> =
        names.iter().map(String::as_str).filter(|name| !name.starts_with(EXPIRY_TREE)).collect();
    let message = format!("{}: has no tree {name:?}; {}", config.path.display(), did_you_mean(name, &names));
    Error::new(ErrorKind::InvalidConfig, message)
}

fn expiry_tree(tree: Option<&str>) -> String {
    tree.map_or_else(|| EXPIRY_TREE.to_owned(), |tree| format!("{EXPIRY_TREE}.{tree}"))
}

/// The time in milliseconds since 1970, and a digest of the value that it belongs to.
fn encode(record: &Record) -> Option<[u8; 16]> {
    let (mut bytes, at) = ([0; 16], record.expires_at?);
    let (time, digest) = bytes.split_at_mut(8);
    time.copy_from_slice(&at.as_millis().to_be_bytes());
    digest.copy_from_slice(&xxh3_64(&record.value).to_be_bytes());
    Some(bytes)
}

fn decode(expiry: &[u8]) -> Option<(Timestamp, u64)> {
    let (time, digest) = expiry.split_first_chunk()?;
    let digest = digest.try_into().ok()?;
    Some((Timestamp::from_millis(i64::from_be_bytes(*time)), u64::from_be_bytes(digest)))
}

/// What everybody who works on the store shares.
pub(crate) struct Shared {
    pub(crate) trees: Trees,
    pub(crate) clock: std::sync::Arc<dyn Clock>,
    pub(crate) hub: commonhold_core::Hub,
    pub(crate) config: SledConfig,
}
