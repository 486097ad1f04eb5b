//! What users hold: a cheap handle with the friendly, typed surface over any backend.

use std::{borrow::Borrow, fmt, future::Future, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::{TryStreamExt as _, stream::BoxStream};
use tokio::sync::Mutex;

use crate::{
    backend::{
        Applied, Capabilities, Change, Condition, Entry, Expiry, Health, Maintenance, Message, PutOptions,
        Scan, StateBackend, Transaction, Write,
    },
    codec::{Decode, Encode},
    error::{Error, ErrorKind, Result},
    key::{Key, Prefix},
    layers::{Layer, Metrics, Namespace},
    stats::Stats,
    transition::{Increment, SetExpiry, Take, Transition},
};

/// A handle to a store. Clones are cheap and share everything.
///
/// Keys are anything that becomes a [`Key`]: `"user:1"`, `b"\x00\x01"`, `String`, `Vec<u8>`, `&Key`. Beyond
/// what each method says, errors are `InvalidInput` or `TooLarge` for such a key, value or time to live, and
/// whatever keeps the store from answering.
///
/// Cancellation: dropping a future of any method leaves the old value or the new one, never a mixture; which
/// of the two is not known.
///
/// ```
/// # tokio::runtime::Runtime::new().unwrap().block_on(async {
/// use std::time::Duration;
/// use commonhold_core::{MemoryBackend, Store};
///
/// let store = Store::new(MemoryBackend::new());
/// store.put_with_ttl("session:1", "alice", Duration::from_secs(1800)).await?;
/// assert_eq!(store.get("session:1").await?.as_deref(), Some(&b"alice"[..]));
/// assert_eq!(store.increment("visits", 1).await?, 1);
/// assert!(!store.set_if_not_exists("session:1", "bob").await?);
/// # Ok::<(), commonhold_core::Error>(())
/// # }).unwrap();
/// ```
#[derive(Debug, Clone)]
pub struct Store {
    backend: Arc<dyn StateBackend>,
}

impl Store {
    /// A handle to this backend, with the [`Metrics`] layer around it.
    pub fn new(backend: impl StateBackend) -> Self {
        let metrics = Metrics::new(backend.name());
        Self { backend: metrics.layer(Arc::new(backend)) }
    }

    /// The same store with a layer around it. The last layer added sees a call first.
    #[must_use]
    pub fn layer(self, layer: impl Layer) -> Self {
        Self { backend: layer.layer(self.backend) }
    }

    /// The part of this store whose keys begin with `NAME:`, which is taken off. See [`Namespace`].
    ///
    /// # Errors
    /// `InvalidInput` unless the name has 1 to 255 bytes without `:`.
    pub fn namespace(&self, name: &str) -> Result<Self> {
        Ok(self.clone().layer(Namespace::new(name)?))
    }

    /// The backend with all its layers.
    pub fn backend(&self) -> &Arc<dyn StateBackend> {
        &self.backend
    }

    /// What the store promises.
    pub fn capabilities(&self) -> Capabilities {
        self.backend.capabilities()
    }

    /// The value under a key.
    pub async fn get(&self, key: impl IntoKey) -> Result<Option<Bytes>> {
        self.backend.value(key.into_key()?.borrow()).await
    }

    /// The value under a key, and how long it has left to live.
    pub async fn get_entry(&self, key: impl IntoKey) -> Result<Option<Entry>> {
        self.backend.get(key.into_key()?.borrow()).await
    }

    /// The value under a key, decoded.
    ///
    /// # Errors
    /// `Corrupt` if the bytes are not what the codec expects.
    pub async fn get_as<T, C: Decode<T>>(&self, key: impl IntoKey, codec: C) -> Result<Option<T>> {
        let key = key.into_key()?;
        let value = self.backend.value(key.borrow()).await?;
        value
            .map(|value| codec.decode(&value))
            .transpose()
            .map_err(|error| error.at(self.backend.name(), "get_as").with_key(key.borrow()))
    }

    /// Whether there is an entry under a key.
    pub async fn contains(&self, key: impl IntoKey) -> Result<bool> {
        Ok(self.get_entry(key).await?.is_some())
    }

    /// Puts a value, for ever: an earlier time to live is removed.
    pub async fn put(&self, key: impl IntoKey, value: impl Into<Bytes>) -> Result<()> {
        let _always = self.put_with(key, value, PutOptions::default()).await?;
        Ok(())
    }

    /// Puts a value that expires this long from now.
    pub async fn put_with_ttl(
        &self,
        key: impl IntoKey,
        value: impl Into<Bytes>,
        ttl: Duration,
    ) -> Result<()> {
        let options = PutOptions::default().expiry(Expiry::After(ttl));
        let _always = self.put_with(key, value, options).await?;
        Ok(())
    }

    /// Puts a value, encoded, for ever.
    ///
    /// # Errors
    /// `Serialization` if the value cannot be encoded.
    pub async fn put_as<T: ?Sized, C: Encode<T>>(
        &self,
        key: impl IntoKey,
        value: &T,
        codec: C,
    ) -> Result<()> {
        let key = key.into_key()?;
        let value = codec
            .encode(value)
            .map_err(|error| error.at(self.backend.name(), "put_as").with_key(key.borrow()))?;
        self.put(key.borrow(), value).await
    }

    /// Puts a value under a condition and with an expiry, and says whether the condition held.
    pub async fn put_with(
        &self,
        key: impl IntoKey,
        value: impl Into<Bytes>,
        options: PutOptions,
    ) -> Result<Applied> {
        self.backend.put(key.into_key()?.borrow(), value.into(), options).await
    }

    /// Puts a value if there is none, and says whether it did.
    pub async fn set_if_not_exists(&self, key: impl IntoKey, value: impl Into<Bytes>) -> Result<bool> {
        let options = PutOptions::default().when(Condition::Absent);
        Ok(self.put_with(key, value, options).await?.is_yes())
    }

    /// Puts `new` if the value is `expected` (`None`: if there is none), and says whether it was. Like a
    /// plain put, it removes an earlier time to live; [`put_with`](Self::put_with) can keep it.
    pub async fn compare_and_swap(
        &self,
        key: impl IntoKey,
        expected: Option<impl Into<Bytes>>,
        new: impl Into<Bytes>,
    ) -> Result<bool> {
        let condition = expected.map_or(Condition::Absent, |expected| Condition::Equals(expected.into()));
        Ok(self.put_with(key, new, PutOptions::default().when(condition)).await?.is_yes())
    }

    /// Deletes a key, and says whether there was something.
    pub async fn delete(&self, key: impl IntoKey) -> Result<bool> {
        Ok(self.backend.delete(key.into_key()?.borrow(), Condition::Always).await?.is_yes())
    }

    /// Deletes a key and returns the value that was there. Of several callers one gets it.
    pub async fn get_and_delete(&self, key: impl IntoKey) -> Result<Option<Bytes>> {
        Ok(Take::decode(self.transact(key, Take).await?))
    }

    /// Adds to a counter, a missing one counting as 0, and returns the sum. Counters are decimal text; the
    /// time to live stays as it is.
    ///
    /// # Errors
    /// `NotInteger` if the value is no integer or the sum leaves the range of `i64`; nothing is changed.
    pub async fn increment(&self, key: impl IntoKey, delta: i64) -> Result<i64> {
        Increment::decode(&self.transact(key, Increment { delta, ttl: None }).await?)
    }

    /// The same; a counter that this creates expires this long from now.
    ///
    /// # Errors
    /// As [`increment`](Self::increment).
    pub async fn increment_with_ttl(&self, key: impl IntoKey, delta: i64, ttl: Duration) -> Result<i64> {
        Expiry::After(ttl).check()?;
        Increment::decode(&self.transact(key, Increment { delta, ttl: Some(ttl) }).await?)
    }

    /// How long an entry has left to live: `None` if there is none, `Some(None)` if it lives for ever.
    pub async fn ttl(&self, key: impl IntoKey) -> Result<Option<Option<Duration>>> {
        Ok(self.get_entry(key).await?.map(|entry| entry.ttl))
    }

    /// Lets an entry expire this long from now, and says whether there is one.
    pub async fn expire(&self, key: impl IntoKey, ttl: Duration) -> Result<bool> {
        let expiry = Expiry::After(ttl);
        expiry.check()?;
        Ok(SetExpiry::decode(&self.transact(key, SetExpiry(expiry)).await?))
    }

    /// Lets an entry live for ever, and says whether there is one.
    pub async fn persist(&self, key: impl IntoKey) -> Result<bool> {
        Ok(SetExpiry::decode(&self.transact(key, SetExpiry(Expiry::Never)).await?))
    }

    /// Applies a transition to a key, atomically, and returns its reply.
    ///
    /// # Errors
    /// The transition's own; nothing is changed then.
    pub async fn transact(&self, key: impl IntoKey, transition: impl Transition) -> Result<Bytes> {
        self.backend.transact(key.into_key()?.borrow(), Arc::new(transition)).await
    }

    /// The values under these keys, in their order.
    pub async fn batch_get(&self, keys: &[Key]) -> Result<Vec<Option<Bytes>>> {
        self.backend.values(keys).await
    }

    /// Puts values, for ever; of a key given twice the later value stays. All or none where
    /// [`Capabilities::atomic_batch`] says so.
    pub async fn batch_put<K: IntoKey, V: Into<Bytes>>(
        &self,
        entries: impl IntoIterator<Item = (K, V)>,
    ) -> Result<()> {
        let put = |(key, value): (K, V)| Ok(Write::put(key.into_key()?.borrow().clone(), value));
        let batch = entries.into_iter().map(put).collect::<Result<Vec<_>>>()?;
        self.write_batch(batch).await.map(drop)
    }

    /// Deletes keys, and says how many there were.
    pub async fn batch_delete<K: IntoKey>(&self, keys: impl IntoIterator<Item = K>) -> Result<u64> {
        let delete = |key: K| Ok(Write::delete(key.into_key()?.borrow().clone()));
        let batch = keys.into_iter().map(delete).collect::<Result<Vec<_>>>()?;
        let applied = self.write_batch(batch).await?;
        Ok(applied.into_iter().filter(|applied| applied.is_yes()).count() as u64)
    }

    /// Carries out writes as if one after the other, and answers in their order. All or none where
    /// [`Capabilities::atomic_batch`] says so.
    ///
    /// # Errors
    /// `Conflict` if a condition does not hold; nothing is written then. `Unsupported` for conditions where
    /// batches are not atomic.
    pub async fn write_batch(&self, batch: Vec<Write>) -> Result<Vec<Applied>> {
        self.backend.write_many(batch).await
    }

    /// The keys with a prefix, page by page; in order where [`Capabilities::ordered_scan`] says so.
    pub fn list_keys(&self, prefix: impl IntoPrefix) -> Result<BoxStream<'static, Result<Key>>> {
        let entries = self.backend.scan(Scan::prefix(prefix.into_prefix()?).keys_only());
        Ok(Box::pin(entries.map_ok(|(key, _)| key)))
    }

    /// Entries, page by page; see [`StateBackend::scan`].
    pub fn scan(&self, scan: Scan) -> BoxStream<'static, Result<(Key, Entry)>> {
        self.backend.scan(scan)
    }

    /// The number of entries with a prefix; of all, with `""`.
    pub async fn count(&self, prefix: impl IntoPrefix) -> Result<u64> {
        self.backend.count(&prefix.into_prefix()?).await
    }

    /// Deletes the entries with a prefix, and says how many; all, with `""`. Not one atomic step.
    pub async fn clear(&self, prefix: impl IntoPrefix) -> Result<u64> {
        self.backend.clear(&prefix.into_prefix()?).await
    }

    /// The changes to keys with a prefix from now on; see [`StateBackend::watch`].
    pub async fn watch(&self, prefix: impl IntoPrefix) -> Result<BoxStream<'static, Result<Change>>> {
        self.backend.watch(&prefix.into_prefix()?).await
    }

    /// Sends a message to whoever is subscribed to the channel now.
    pub async fn publish(&self, channel: impl IntoKey, message: impl Into<Bytes>) -> Result<()> {
        self.backend.publish(channel.into_key()?.borrow(), message.into()).await
    }

    /// The messages on a channel from now on.
    pub async fn subscribe(&self, channel: impl IntoKey) -> Result<BoxStream<'static, Result<Message>>> {
        self.backend.subscribe(channel.into_key()?.borrow()).await
    }

    /// Runs `work` in a transaction and commits it. If it meets a concurrent change it is rolled back and
    /// run again, at most [`TRANSACTION_ATTEMPTS`](Self::TRANSACTION_ATTEMPTS) times, so `work` must do
    /// nothing else that cannot be repeated. If `work` fails, nothing is written.
    ///
    /// ```
    /// # tokio::runtime::Runtime::new().unwrap().block_on(async {
    /// use commonhold_core::{MemoryBackend, Store, Text};
    ///
    /// let store = Store::new(MemoryBackend::new());
    /// store.batch_put([("alice", "10"), ("bob", "0")]).await?;
    /// store.transaction(|tx| async move {
    ///     let alice: i64 = tx.get_as("alice", Text).await?.unwrap_or(0);
    ///     let bob: i64 = tx.get_as("bob", Text).await?.unwrap_or(0);
    ///     tx.put("alice", (alice - 4).to_string()).await?;
    ///     tx.put("bob", (bob + 4).to_string()).await
    /// }).await?;
    /// assert_eq!(store.get("bob").await?.as_deref(), Some(&b"4"[..]));
    /// # Ok::<(), commonhold_core::Error>(())
    /// # }).unwrap();
    /// ```
    ///
    /// # Errors
    /// Those of `work`; `Conflict` if every attempt met a concurrent change.
    pub async fn transaction<T, F, Fut>(&self, mut work: F) -> Result<T>
    where
        F: FnMut(StoreTransaction) -> Fut,
        Fut: Future<Output = Result<T>>,
    {
        let mut attempt = 1;
        loop {
            let transaction = StoreTransaction::new(self.backend.begin().await?);
            let result = match work(transaction.clone()).await {
                Ok(value) => transaction.end(true).await.map(|()| value),
                Err(error) => {
                    let met_conflict = transaction.met_conflict().await;
                    // What kept `work` from its end matters more than what keeps it from being undone, which
                    // happens in any case once it is dropped.
                    let _ = transaction.end(false).await;
                    if !met_conflict {
                        return Err(error);
                    }
                    Err(error)
                }
            };
            match result {
                Err(error) if error.kind() == ErrorKind::Conflict && attempt < Self::TRANSACTION_ATTEMPTS => {
                    // Apart by chance, and further each time, so that the same transactions do not meet again
                    // and again: a hundred of them take their turns even where a commit waits for a disk.
                    let longest = Duration::from_millis(1 << attempt.min(9));
                    tokio::time::sleep(longest.mul_f64(fastrand::f64())).await;
                    attempt += 1;
                }
                result => return result,
            }
        }
    }

    /// How often [`transaction`](Self::transaction) is attempted at most.
    pub const TRANSACTION_ATTEMPTS: u32 = 32;

    /// Figures about the store and its use since it was opened.
    pub async fn stats(&self) -> Result<Stats> {
        self.backend.stats().await
    }

    /// Asks the store whether it is well. An error means that it cannot serve.
    pub async fn health_check(&self) -> Result<Health> {
        self.backend.health().await
    }

    /// Bytes of memory that the store uses, where it knows.
    pub async fn memory_usage(&self) -> Result<Option<u64>> {
        Ok(self.backend.stats().await?.memory_bytes)
    }

    /// Does housekeeping now.
    ///
    /// # Errors
    /// `Unsupported` where the store has no such task.
    pub async fn maintain(&self, task: Maintenance) -> Result<()> {
        self.backend.maintain(task).await
    }
}

impl From<Arc<dyn StateBackend>> for Store {
    /// A handle to this backend with the layers that it has already, and no others.
    fn from(backend: Arc<dyn StateBackend>) -> Self {
        Self { backend }
    }
}

/// A running transaction, as [`Store::transaction`] hands it out. Clones are the same transaction.
///
/// After the transaction has ended, its methods fail with `Closed`.
#[derive(Clone)]
pub struct StoreTransaction {
    // Tokio's mutex: the operations of one transaction wait for each other across their awaits.
    running: Arc<Mutex<Running>>,
}

struct Running {
    transaction: Option<Box<dyn Transaction>>,
    /// An operation failed with `Conflict`, as on stores that notice before the commit.
    met_conflict: bool,
}

impl Running {
    fn transaction(&mut self) -> Result<&mut dyn Transaction> {
        match &mut self.transaction {
            Some(transaction) => Ok(&mut **transaction),
            None => Err(ended()),
        }
    }

    fn noting_conflicts<T>(&mut self, result: Result<T>) -> Result<T> {
        self.met_conflict |= matches!(&result, Err(error) if error.kind() == ErrorKind::Conflict);
        result
    }
}

impl StoreTransaction {
    fn new(transaction: Box<dyn Transaction>) -> Self {
        Self {
            running: Arc::new(Mutex::new(Running { transaction: Some(transaction), met_conflict: false })),
        }
    }

    async fn met_conflict(&self) -> bool {
        self.running.lock().await.met_conflict
    }

    /// The value under a key, with this transaction's own writes.
    pub async fn get(&self, key: impl IntoKey) -> Result<Option<Bytes>> {
        let key = key.into_key()?;
        let mut running = self.running.lock().await;
        let result = running.transaction()?.get(key.borrow()).await;
        Ok(running.noting_conflicts(result)?.map(|entry| entry.value))
    }

    /// The same, decoded.
    ///
    /// # Errors
    /// `Corrupt` if the bytes are not what the codec expects.
    pub async fn get_as<T, C: Decode<T>>(&self, key: impl IntoKey, codec: C) -> Result<Option<T>> {
        self.get(key).await?.map(|value| codec.decode(&value)).transpose()
    }

    /// Puts a value, for ever.
    pub async fn put(&self, key: impl IntoKey, value: impl Into<Bytes>) -> Result<()> {
        let _always = self.put_with(key, value, PutOptions::default()).await?;
        Ok(())
    }

    /// Puts a value, encoded, for ever.
    ///
    /// # Errors
    /// `Serialization` if the value cannot be encoded.
    pub async fn put_as<T: ?Sized, C: Encode<T>>(
        &self,
        key: impl IntoKey,
        value: &T,
        codec: C,
    ) -> Result<()> {
        self.put(key, codec.encode(value)?).await
    }

    /// Puts a value under a condition and with an expiry, and says whether the condition held.
    pub async fn put_with(
        &self,
        key: impl IntoKey,
        value: impl Into<Bytes>,
        options: PutOptions,
    ) -> Result<Applied> {
        let (key, value) = (key.into_key()?, value.into());
        let mut running = self.running.lock().await;
        let result = running.transaction()?.put(key.borrow(), value, options).await;
        running.noting_conflicts(result)
    }

    /// Deletes a key, and says whether there was something.
    pub async fn delete(&self, key: impl IntoKey) -> Result<bool> {
        let key = key.into_key()?;
        let mut running = self.running.lock().await;
        let result = running.transaction()?.delete(key.borrow(), Condition::Always).await;
        Ok(running.noting_conflicts(result)?.is_yes())
    }

    async fn end(&self, commit: bool) -> Result<()> {
        let transaction = self.running.lock().await.transaction.take().ok_or_else(ended)?;
        if commit { transaction.commit().await } else { transaction.rollback().await }
    }
}

fn ended() -> Error {
    Error::new(
        ErrorKind::Closed,
        "the transaction has ended; use it only inside of the closure that received it",
    )
}

impl fmt::Debug for StoreTransaction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoreTransaction").finish_non_exhaustive()
    }
}

/// What can be used as a key: see [`Store`].
pub trait IntoKey: Send {
    /// The key, or the reference to one that was given: a key that is there already is not copied.
    type Key: Borrow<Key> + Send;

    /// The key.
    ///
    /// # Errors
    /// `InvalidInput` for no bytes, `TooLarge` for more than [`Key::MAX_LEN`].
    fn into_key(self) -> Result<Self::Key>;
}

impl<'a> IntoKey for &'a Key {
    type Key = &'a Key;

    fn into_key(self) -> Result<&'a Key> {
        Ok(self)
    }
}

impl IntoKey for Key {
    type Key = Key;

    fn into_key(self) -> Result<Key> {
        Ok(self)
    }
}

macro_rules! into_key {
    ($($type:ty),*) => {$(
        impl IntoKey for $type {
            type Key = Key;

            fn into_key(self) -> Result<Key> {
                self.try_into()
            }
        }
    )*};
}
into_key!(&str, String, &String, &[u8], Vec<u8>, Bytes);

impl<const N: usize> IntoKey for &[u8; N] {
    type Key = Key;

    fn into_key(self) -> Result<Key> {
        Key::new(self)
    }
}

/// What can be used as a prefix: the same types as for keys; `""` is the prefix of every key.
pub trait IntoPrefix {
    /// The prefix.
    ///
    /// # Errors
    /// `TooLarge` for more than [`Key::MAX_LEN`] bytes.
    fn into_prefix(self) -> Result<Prefix>;
}

impl<P: TryInto<Prefix, Error: Into<Error>>> IntoPrefix for P {
    fn into_prefix(self) -> Result<Prefix> {
        self.try_into().map_err(Into::into)
    }
}
