//! What the embedded backends share: records with their expiry, how writes act on them, and optimistic
//! transactions.

use std::{collections::BTreeMap, fmt, sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;

use crate::{
    backend::{Applied, Condition, DEFAULT_MAX_VALUE_BYTES, Entry, Expiry, PutOptions, Transaction, Write},
    clock::Timestamp,
    error::{Error, ErrorKind, Result},
    key::Key,
    transition::{Action, Transition},
};

/// A value and the time from which on it is gone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// The bytes that were put.
    pub value: Bytes,
    /// The first moment at which it no longer exists.
    pub expires_at: Option<Timestamp>,
}

impl Record {
    /// Whether it exists at this time.
    pub fn is_live(&self, now: Timestamp) -> bool {
        self.expires_at.is_none_or(|at| now < at)
    }

    /// What a reader sees of it at this time.
    pub fn into_entry(self, now: Timestamp) -> Entry {
        Entry { value: self.value, ttl: self.expires_at.map(|at| at.since(now)) }
    }
}

/// What an embedded store is configured to allow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rules {
    /// The longest value, in bytes.
    pub max_value_bytes: u64,
    /// How long a value lives that is put with [`Expiry::Never`]; `None` is for ever. Taking the time to
    /// live away later ([`Action::Expire`]) is not a put.
    pub default_ttl: Option<Duration>,
}

impl Default for Rules {
    fn default() -> Self {
        Self { max_value_bytes: DEFAULT_MAX_VALUE_BYTES, default_ttl: None }
    }
}

/// What became of a command on one record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// The record stays as it is.
    Nothing,
    /// This record takes its place.
    Put(Record),
    /// It is removed.
    Delete,
}

/// What a write does to the live record under its key; `None` if its condition does not hold.
///
/// # Errors
/// `InvalidInput` for a time to live out of range, `TooLarge` for a value over the limit.
pub fn write(live: Option<&Record>, write: &Write, now: Timestamp, rules: &Rules) -> Result<Option<Effect>> {
    if !write.condition().holds(live.map(|record| &record.value[..])) {
        if let Write::Put { options, .. } = write {
            options.expiry.check()?;
        }
        return Ok(None);
    }
    match write {
        Write::Put { value, options, .. } => {
            put(live, value.clone(), options.expiry, now, rules).map(|new| Some(Effect::Put(new)))
        }
        Write::Delete { .. } => Ok(Some(if live.is_some() { Effect::Delete } else { Effect::Nothing })),
    }
}

/// What a transition does to the live record under its key, and its reply.
///
/// # Errors
/// The transition's own, and those of [`write()`].
pub fn transact(
    live: Option<&Record>,
    transition: &dyn Transition,
    now: Timestamp,
    rules: &Rules,
) -> Result<(Effect, Bytes)> {
    let step = transition.apply(live.map(|record| &record.value[..]), now)?;
    let effect = match (step.action, live) {
        (Action::Put { value, expiry }, _) => Effect::Put(put(live, value, expiry, now, rules)?),
        (Action::Expire(expiry), Some(old)) => {
            Effect::Put(Record { value: old.value.clone(), expires_at: expires_at(live, expiry, now)? })
        }
        (Action::Delete, Some(_)) => Effect::Delete,
        (Action::Nothing, _) | (Action::Expire(_) | Action::Delete, None) => Effect::Nothing,
    };
    Ok((effect, step.reply))
}

/// The record of a value that is put.
///
/// # Errors
/// As those of [`write()`].
pub fn put(
    live: Option<&Record>,
    value: Bytes,
    expiry: Expiry,
    now: Timestamp,
    rules: &Rules,
) -> Result<Record> {
    if value.len() as u64 > rules.max_value_bytes {
        return Err(Error::new(
            ErrorKind::TooLarge,
            format!("a value has at most {} bytes, this one has {}", rules.max_value_bytes, value.len()),
        ));
    }
    let expiry = if expiry == Expiry::Never { rules.default_ttl.into() } else { expiry };
    Ok(Record { value, expires_at: expires_at(live, expiry, now)? })
}

fn expires_at(live: Option<&Record>, expiry: Expiry, now: Timestamp) -> Result<Option<Timestamp>> {
    expiry.check()?;
    Ok(match expiry {
        Expiry::Never => None,
        Expiry::Keep => live.and_then(|record| record.expires_at),
        // Rounded up to the resolution that embedded stores promise.
        Expiry::After(ttl) => {
            let at = now.saturating_add(ttl).as_nanos();
            Some(Timestamp::from_millis(at.saturating_add(999_999).div_euclid(1_000_000)))
        }
    })
}

/// The error of a batch in which a condition did not hold.
pub fn batch_conflict(key: &Key) -> Error {
    Error::new(ErrorKind::Conflict, "the condition does not hold; nothing of the batch was written")
        .with_key(key)
}

/// What an [`OptimisticTransaction`] needs from its store.
#[async_trait]
pub trait OptimisticStore: fmt::Debug + Send + Sync + 'static {
    /// The store's time.
    fn now(&self) -> Timestamp;

    /// What it is configured to allow.
    fn rules(&self) -> &Rules;

    /// The live record under a key.
    async fn read(&self, key: &Key) -> Result<Option<Record>>;

    /// In one atomic step: if every key still has the live record that was read, apply the changes (`None`
    /// deletes). Otherwise answer [`transaction_conflict`] and write nothing.
    async fn commit(&self, reads: ReadSet, writes: WriteSet) -> Result<()>;
}

/// What a transaction read: the live record or its absence.
pub type ReadSet = BTreeMap<Key, Option<Record>>;

/// What a transaction writes: the new record, or its deletion.
pub type WriteSet = BTreeMap<Key, Option<Record>>;

/// The error of a transaction whose reads no longer hold.
pub fn transaction_conflict(key: &Key) -> Error {
    Error::new(ErrorKind::Conflict, "changed since the transaction read it; nothing was written")
        .with_key(key)
}

/// A transaction that keeps its writes to itself and checks its reads when it commits, after Kung and
/// Robinson, "On Optimistic Methods for Concurrency Control" (1981).
#[derive(Debug)]
pub struct OptimisticTransaction<S> {
    store: Arc<S>,
    reads: ReadSet,
    writes: WriteSet,
}

impl<S: OptimisticStore> OptimisticTransaction<S> {
    /// The most keys that one transaction reads and writes together.
    pub const MAX_KEYS: usize = 100_000;

    /// Begins a transaction.
    pub fn new(store: Arc<S>) -> Self {
        Self { store, reads: BTreeMap::new(), writes: BTreeMap::new() }
    }

    async fn live(&mut self, key: &Key) -> Result<Option<Record>> {
        if let Some(known) = self.writes.get(key).or_else(|| self.reads.get(key)) {
            let now = self.store.now();
            return Ok(known.clone().filter(|record| record.is_live(now)));
        }
        self.check_size()?;
        let record = self.store.read(key).await?;
        self.reads.insert(key.clone(), record.clone());
        Ok(record)
    }

    async fn write(&mut self, write: Write) -> Result<Applied> {
        self.check_size()?;
        let reads = !matches!(
            &write,
            Write::Put {
                options: PutOptions {
                    condition: Condition::Always,
                    expiry: Expiry::Never | Expiry::After(_)
                },
                ..
            }
        );
        let live = if reads { self.live(write.key()).await? } else { None };
        let effect = self::write(live.as_ref(), &write, self.store.now(), self.store.rules())?;
        let change = match effect {
            None | Some(Effect::Nothing) => return Ok(Applied::No),
            Some(Effect::Put(record)) => Some(record),
            Some(Effect::Delete) => None,
        };
        self.writes.insert(write.key().clone(), change);
        Ok(Applied::Yes)
    }

    fn check_size(&self) -> Result<()> {
        if self.reads.len() + self.writes.len() >= Self::MAX_KEYS {
            return Err(Error::new(
                ErrorKind::TooLarge,
                format!("a transaction touches at most {} keys", Self::MAX_KEYS),
            ));
        }
        Ok(())
    }
}

#[async_trait]
impl<S: OptimisticStore> Transaction for OptimisticTransaction<S> {
    async fn get(&mut self, key: &Key) -> Result<Option<Entry>> {
        let record = self.live(key).await?;
        Ok(record.map(|record| record.into_entry(self.store.now())))
    }

    async fn put(&mut self, key: &Key, value: Bytes, options: PutOptions) -> Result<Applied> {
        self.write(Write::Put { key: key.clone(), value, options }).await
    }

    async fn delete(&mut self, key: &Key, condition: Condition) -> Result<Applied> {
        self.write(Write::Delete { key: key.clone(), condition }).await
    }

    async fn commit(self: Box<Self>) -> Result<()> {
        self.store.commit(self.reads, self.writes).await
    }

    async fn rollback(self: Box<Self>) -> Result<()> {
        Ok(())
    }
}
