//! What a store must be able to do: the trait that every backend and every layer implements.

use std::{fmt, sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::BoxStream;

use crate::{
    answer::Answer,
    clock::Timestamp,
    error::{Error, ErrorKind, Result},
    key::{Key, Prefix},
    stats::Stats,
    transition::Transition,
};

/// A store of bytes under keys.
///
/// This is the trait for implementors; users hold a [`Store`](crate::Store).
/// Its exact meaning is pinned down by the conformance kit in `commonhold-testkit`:
///
/// - Missing, expired and deleted entries read the same. An empty value is a value.
/// - Expiry is judged by the store's clock. An expired entry is never returned, counted, listed or compared.
/// - Every single-key method is atomic and linearizable.
/// - Dropping an answer or a future leaves the old value or the new one, never a mixture.
/// - What [`capabilities`](Self::capabilities) does not promise answers
///   [`Unsupported`](ErrorKind::Unsupported).
#[async_trait]
pub trait StateBackend: fmt::Debug + Send + Sync + 'static {
    /// The backend's short name, as in its URL: `memory`, `disk`.
    fn name(&self) -> &'static str;

    /// What this store promises.
    fn capabilities(&self) -> Capabilities;

    /// The entry under a key.
    fn get<'a>(&'a self, key: &'a Key) -> Answer<'a, Option<Entry>>;

    /// The value under a key: [`get`](Self::get) for those who do not ask how long it has left to live.
    ///
    /// Defined for all; to be overridden where the time left is a second question to the server, as in Redis,
    /// where it takes as long as the first.
    fn value<'a>(&'a self, key: &'a Key) -> Answer<'a, Option<Bytes>> {
        self.get(key).then(|entry| Ok(entry?.map(|entry| entry.value)))
    }

    /// Puts a value if the condition holds, and says whether it did.
    fn put<'a>(&'a self, key: &'a Key, value: Bytes, options: PutOptions) -> Answer<'a, Applied>;

    /// Deletes a key if the condition holds. [`Applied::No`] if it does not or nothing was there.
    fn delete<'a>(&'a self, key: &'a Key, condition: Condition) -> Answer<'a, Applied>;

    /// The entries under these keys, in their order.
    fn get_many<'a>(&'a self, keys: &'a [Key]) -> Answer<'a, Vec<Option<Entry>>>;

    /// The values under these keys, in their order; as [`value`](Self::value) is to [`get`](Self::get).
    fn values<'a>(&'a self, keys: &'a [Key]) -> Answer<'a, Vec<Option<Bytes>>> {
        let value = |entry: Option<Entry>| entry.map(|entry| entry.value);
        self.get_many(keys).then(move |entries| Ok(entries?.into_iter().map(value).collect()))
    }

    /// Carries out writes as if one after the other, and answers in their order.
    ///
    /// With [`Capabilities::atomic_batch`] all of them happen or none. A condition that does not hold then
    /// stops the whole batch with [`Conflict`](ErrorKind::Conflict), naming the key; without that capability
    /// a batch with conditions is `Unsupported`.
    fn write_many(&self, batch: Vec<Write>) -> Answer<'_, Vec<Applied>>;

    /// Applies a transition to one key, atomically and on the store's clock, and returns its reply.
    fn transact<'a>(&'a self, key: &'a Key, transition: Arc<dyn Transition>) -> Answer<'a, Bytes>;

    /// The entries in a range, page by page: memory does not grow with their number.
    ///
    /// Entries that are there all the while come exactly once; what is written meanwhile may be seen or not,
    /// unless [`Capabilities::snapshot_scan`] promises the state of the moment at which the stream is first
    /// polled. In the order of keys where [`Capabilities::ordered_scan`] says so.
    fn scan(&self, scan: Scan) -> BoxStream<'static, Result<(Key, Entry)>>;

    /// The number of entries under a prefix.
    async fn count(&self, prefix: &Prefix) -> Result<u64>;

    /// Deletes the entries under a prefix and says how many. Not one atomic step.
    async fn clear(&self, prefix: &Prefix) -> Result<u64>;

    /// The changes under a prefix from now on: every change that is made after this returns is reported,
    /// in order for each key, or else [`Change::Missed`] is. An expiry is not a change.
    async fn watch(&self, prefix: &Prefix) -> Result<BoxStream<'static, Result<Change>>>;

    /// Sends a message to whoever is subscribed to a channel now. Nothing is stored.
    async fn publish(&self, channel: &Key, message: Bytes) -> Result<()>;

    /// The messages on a channel from now on.
    async fn subscribe(&self, channel: &Key) -> Result<BoxStream<'static, Result<Message>>>;

    /// Begins a transaction.
    async fn begin(&self) -> Result<Box<dyn Transaction>>;

    /// Asks the store whether it is well. An error means that it cannot serve.
    async fn health(&self) -> Result<Health>;

    /// Figures about the store and its use.
    async fn stats(&self) -> Result<Stats>;

    /// Does housekeeping now instead of when the store would get to it.
    async fn maintain(&self, task: Maintenance) -> Result<()>;
}

/// Several reads and writes that happen together or not at all.
///
/// The transaction is serializable: it commits only if no other writer changed what it read in between.
/// Until then its reads may be of different moments and not fit together. It sees its own writes. Dropping it rolls it back.
#[async_trait]
pub trait Transaction: fmt::Debug + Send {
    /// The entry under a key, with this transaction's own writes.
    async fn get(&mut self, key: &Key) -> Result<Option<Entry>>;

    /// Puts a value if the condition holds, and says whether it did.
    async fn put(&mut self, key: &Key, value: Bytes, options: PutOptions) -> Result<Applied>;

    /// Deletes a key if the condition holds. [`Applied::No`] if it does not or nothing was there.
    async fn delete(&mut self, key: &Key, condition: Condition) -> Result<Applied>;

    /// Makes the writes visible, all at once.
    ///
    /// # Errors
    /// `Conflict` if something that was read has changed since; nothing is written then.
    async fn commit(self: Box<Self>) -> Result<()>;

    /// Forgets the writes.
    async fn rollback(self: Box<Self>) -> Result<()>;
}

/// A value as it was read, and how long it had left to live.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The bytes that were put.
    pub value: Bytes,
    /// The time left until it expires, by the store's clock when it was read; `None` if it does not expire.
    pub ttl: Option<Duration>,
}

/// When to write, and for how long.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PutOptions {
    /// What must hold for the value to be written.
    pub condition: Condition,
    /// How long the value lives.
    pub expiry: Expiry,
}

impl PutOptions {
    /// Write only if this holds.
    #[must_use]
    pub fn when(mut self, condition: Condition) -> Self {
        self.condition = condition;
        self
    }

    /// Let the value live for this long.
    #[must_use]
    pub fn expiry(mut self, expiry: Expiry) -> Self {
        self.expiry = expiry;
        self
    }
}

/// What must hold for a write to be carried out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Condition {
    /// Nothing: write in any case.
    #[default]
    Always,
    /// There is no entry under the key.
    Absent,
    /// There is an entry under the key.
    Present,
    /// There is an entry under the key and its value is this one.
    Equals(Bytes),
}

impl Condition {
    /// Whether it holds for this value.
    pub fn holds(&self, value: Option<&[u8]>) -> bool {
        match self {
            Self::Always => true,
            Self::Absent => value.is_none(),
            Self::Present => value.is_some(),
            Self::Equals(expected) => value == Some(expected),
        }
    }
}

/// How long an entry lives.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Expiry {
    /// For ever; an earlier time to live is removed.
    #[default]
    Never,
    /// As long as it would have; for ever if there was no entry.
    Keep,
    /// For this long from now: more than zero, at most [`Expiry::MAX`]; rounded up to the store's
    /// [resolution](Capabilities::ttl_resolution).
    After(Duration),
}

impl Expiry {
    /// The longest time to live: 100 years of 365 days.
    pub const MAX: Duration = Duration::from_secs(100 * 365 * 24 * 60 * 60);

    /// Checks the range.
    ///
    /// # Errors
    /// `InvalidInput` for a time to live of zero or over [`Expiry::MAX`].
    pub fn check(self) -> Result<()> {
        match self {
            Self::After(Duration::ZERO) => {
                Err(Error::new(ErrorKind::InvalidInput, "a time to live must be more than zero"))
            }
            Self::After(ttl) if ttl > Self::MAX => {
                Err(Error::new(ErrorKind::InvalidInput, "a time to live is at most 100 years"))
            }
            _ => Ok(()),
        }
    }
}

impl From<Option<Duration>> for Expiry {
    /// `After` the duration, or `Never` without one.
    fn from(ttl: Option<Duration>) -> Self {
        ttl.map_or(Self::Never, Self::After)
    }
}

/// Whether a write was carried out.
#[must_use]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Applied {
    /// It was.
    Yes,
    /// The condition did not hold, or there was nothing to delete.
    No,
}

impl Applied {
    /// Whether it was carried out.
    pub fn is_yes(self) -> bool {
        self == Self::Yes
    }
}

impl From<bool> for Applied {
    fn from(applied: bool) -> Self {
        if applied { Self::Yes } else { Self::No }
    }
}

/// One write of a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Write {
    /// Put a value under a key.
    Put {
        /// Where.
        key: Key,
        /// What.
        value: Bytes,
        /// When, and for how long.
        options: PutOptions,
    },
    /// Delete a key.
    Delete {
        /// Which.
        key: Key,
        /// When.
        condition: Condition,
    },
}

impl Write {
    /// Puts a value in any case, for ever.
    pub fn put(key: Key, value: impl Into<Bytes>) -> Self {
        Self::Put { key, value: value.into(), options: PutOptions::default() }
    }

    /// Deletes a key in any case.
    pub fn delete(key: Key) -> Self {
        Self::Delete { key, condition: Condition::Always }
    }

    /// The key that is written.
    pub fn key(&self) -> &Key {
        match self {
            Self::Put { key, .. } | Self::Delete { key, .. } => key,
        }
    }

    /// What must hold for it.
    pub fn condition(&self) -> &Condition {
        match self {
            Self::Put { options, .. } => &options.condition,
            Self::Delete { condition, .. } => condition,
        }
    }
}

/// Which entries a scan returns, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scan {
    /// Keys that begin with this.
    pub prefix: Prefix,
    /// Only keys after this one; for stores with [`Capabilities::ordered_scan`].
    pub after: Option<Key>,
    /// Leave the values out: [`Entry::value`] is empty. Cheaper where only keys are wanted.
    pub keys_only: bool,
    /// How many entries are fetched at a time, 1 to [`Scan::MAX_PAGE`].
    pub page: usize,
}

impl Scan {
    /// The largest page.
    pub const MAX_PAGE: usize = 10_000;

    /// All entries under a prefix, 512 at a time.
    pub fn prefix(prefix: Prefix) -> Self {
        Self { prefix, after: None, keys_only: false, page: 512 }
    }

    /// Checks the range of [`Scan::page`].
    ///
    /// # Errors
    /// `InvalidInput` if it is not 1 to [`Scan::MAX_PAGE`].
    pub fn check(&self) -> Result<()> {
        if (1..=Self::MAX_PAGE).contains(&self.page) {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::InvalidInput,
            format!("a page has 1 to {} entries, not {}", Self::MAX_PAGE, self.page),
        ))
    }

    /// Leaves the values out.
    #[must_use]
    pub fn keys_only(mut self) -> Self {
        self.keys_only = true;
        self
    }

    /// Begins behind this key.
    #[must_use]
    pub fn after(mut self, key: Key) -> Self {
        self.after = Some(key);
        self
    }
}

/// A change that [`StateBackend::watch`] reports. The value is not part of it: read it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// A value was put, or its time to live was changed.
    Put(Key),
    /// The entry was deleted.
    Deleted(Key),
    /// Changes may have been missed (the watcher was too slow, or the connection was away): whoever relies on
    /// having seen them all must read anew.
    Missed,
}

/// What a subscriber receives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// A message, as it was published.
    Payload(Bytes),
    /// Messages may have been missed: the subscriber was too slow, or the connection was away.
    Missed,
}

/// What a store promises. A `true` is atomic and tested; everything else answers `Unsupported`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Capabilities {
    /// Entries may have a time to live.
    pub ttl: bool,
    /// The step to which a time to live is rounded up.
    pub ttl_resolution: Duration,
    /// The longest time to live.
    pub max_ttl: Duration,
    /// Keys can be listed, counted and cleared by prefix.
    pub scan: bool,
    /// A scan returns keys in bytewise order and can begin [after](Scan::after) a key.
    pub ordered_scan: bool,
    /// A scan sees the state of one moment, whatever is written meanwhile.
    pub snapshot_scan: bool,
    /// A batch of writes happens as a whole or not at all, and may have conditions.
    pub atomic_batch: bool,
    /// Transactions over several keys.
    pub transactions: bool,
    /// Changes can be watched.
    pub watch: bool,
    /// Messages can be published and subscribed to.
    pub publish: bool,
    /// What was acknowledged survives a crash of the process and of the machine.
    pub durable: bool,
    /// Several processes can use the store at once.
    pub shared: bool,
    /// By how much the time that transitions are given, and what expires by it, may differ between two processes that use
    /// the store at once: zero where its server tells the time.
    pub clock_error: Duration,
    /// Values are compressed where they lie.
    pub compression: bool,
    /// Its entries can be read and searched in plain SQL.
    pub sql: bool,
    /// Its entries can be spread over several servers.
    pub clustering: bool,
    /// The longest value, in bytes.
    pub max_value_bytes: u64,
}

impl Capabilities {
    /// Promises nothing but single-key operations without a time to live; implementors switch on the rest.
    pub const NONE: Self = Self {
        ttl: false,
        ttl_resolution: Duration::from_millis(1),
        max_ttl: Expiry::MAX,
        scan: false,
        ordered_scan: false,
        snapshot_scan: false,
        atomic_batch: false,
        transactions: false,
        watch: false,
        publish: false,
        durable: false,
        shared: false,
        clock_error: Duration::ZERO,
        compression: false,
        sql: false,
        clustering: false,
        max_value_bytes: DEFAULT_MAX_VALUE_BYTES,
    };
}

/// The longest value that backends take unless they are configured otherwise: 64 MiB.
pub const DEFAULT_MAX_VALUE_BYTES: u64 = 64 * 1024 * 1024;

/// How a store is.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Health {
    /// The version of the server or engine.
    pub version: String,
    /// Its time, where it has a clock of its own.
    pub now: Option<Timestamp>,
    /// What else it says of itself, for people: name and value.
    pub details: Vec<(String, String)>,
    /// What will hurt sooner or later, each with what to do about it.
    pub warnings: Vec<String>,
}

/// Housekeeping that can be asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Maintenance {
    /// Remove expired entries.
    Sweep,
    /// Give space that is no longer needed back to the operating system.
    Compact,
    /// Make everything durable that was written so far.
    Flush,
    /// Bring the statistics up to date by which the store plans its queries.
    Analyze,
}
