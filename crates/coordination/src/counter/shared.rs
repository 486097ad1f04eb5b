//! A counter in a store.

use std::{borrow::Borrow as _, fmt, sync::Arc, time::Duration};

use commonhold_core::{Error, ErrorKind, Expiry, IntoKey, Key, Result, Store};

use super::{combine::Combine, once};

/// A counter in a store: decimal text under its key, as [`Store::increment`] has it.
///
/// Increments that are made at the same time are added up and travel together; each is answered with its exact value, as
/// if they had been made one after the other. One that finds nothing in flight is made at once.
///
/// Cheap to clone; clones share what is in flight. Metrics: `commonhold_counter_increments_total`, and
/// `commonhold_counter_requests_total` that they took.
///
/// ```
/// # tokio::runtime::Runtime::new().unwrap().block_on(async {
/// use commonhold_coordination::counter::Counter;
/// use commonhold_core::{MemoryBackend, Store};
///
/// let visits = Counter::new(Store::new(MemoryBackend::new()), "visits")?;
/// assert_eq!(visits.increment(1).await?, 1);
/// assert_eq!(visits.decrement(3).await?, -2);
/// // Made again after a lost reply it counts once.
/// assert_eq!(visits.increment_once("order 4711", 5).await?, 3);
/// assert_eq!(visits.increment_once("order 4711", 5).await?, 3);
/// assert_eq!(visits.get().await?, 3);
/// visits.reset().await?;
/// assert_eq!(visits.get().await?, 0);
/// # Ok::<(), commonhold_core::Error>(())
/// # }).unwrap();
/// ```
#[derive(Clone)]
pub struct Counter {
    store: Store,
    key: Key,
    ttl: Option<Duration>,
    /// What is added and what is taken away travel apart: if a sum of numbers of one sign is in range, so is each value
    /// on the way to it.
    up: Arc<Combine>,
    down: Arc<Combine>,
}

impl Counter {
    /// The counter under this key.
    ///
    /// # Errors
    /// `InvalidInput` or `TooLarge` for such a key.
    pub fn new(store: Store, key: impl IntoKey) -> Result<Self> {
        let key = key.into_key()?.borrow().clone();
        Ok(Self::with(store, key, None))
    }

    /// Lets the counter expire this long after the increment that created it: it counts from 0 then.
    ///
    /// # Errors
    /// `InvalidInput` for a time to live of zero or over 100 years; `Unsupported` if entries of the store have none.
    pub fn ttl(self, ttl: Duration) -> Result<Self> {
        Expiry::After(ttl).check()?;
        if !self.store.capabilities().ttl {
            let message = "entries of this store have no time to live";
            return Err(
                Error::new(ErrorKind::Unsupported, message).at(self.store.backend().name(), "counter")
            );
        }
        Ok(Self::with(self.store, self.key, Some(ttl)))
    }

    fn with(store: Store, key: Key, ttl: Option<Duration>) -> Self {
        let combine = || {
            let (store, key) = (store.clone(), key.clone());
            Combine::new(move |sum| {
                let (store, key) = (store.clone(), key.clone());
                Box::pin(async move { add(&store, &key, sum, ttl).await })
            })
        };
        let (up, down) = (combine(), combine());
        Self { store, key, ttl, up, down }
    }

    pub(super) fn key(&self) -> &Key {
        &self.key
    }

    /// Adds this, and returns the value after it.
    ///
    /// # Errors
    /// `NotInteger` if something else lies there, or the sum leaves the range of `i64`: nothing is added then. Those of the
    /// store; with [`Retry::Ambiguous`](commonhold_core::Retry::Ambiguous) it may have been added
    /// ([`increment_once`](Self::increment_once) can be repeated).
    ///
    /// Cancellation: if the future is dropped, it is added or not.
    pub async fn increment(&self, delta: i64) -> Result<i64> {
        let combine = if delta < 0 { &self.down } else { &self.up };
        if let Some(added) = combine.add(delta).await {
            let all_refused = matches!(&added.result, Err(error) if error.kind() == ErrorKind::NotInteger);
            if !all_refused || added.alone {
                return added.result;
            }
        }
        // Together they leave the range; each for itself may not.
        add(&self.store, &self.key, delta, self.ttl).await
    }

    /// Takes this away, and returns the value after it.
    ///
    /// # Errors
    /// As [`increment`](Self::increment).
    ///
    /// Cancellation: as with [`increment`](Self::increment).
    pub async fn decrement(&self, delta: i64) -> Result<i64> {
        let delta = delta.checked_neg().ok_or_else(|| {
            Error::new(ErrorKind::NotInteger, "the amount to take away is out of range").with_key(&self.key)
        })?;
        self.increment(delta).await
    }

    /// Adds this, once for all calls with this `id`, and returns the value after it was added. The id is remembered for a
    /// day under `once:LENGTH:KEY:ID`, with the length of KEY; it may be repeated for as long.
    ///
    /// An error that may pass is waited out for up to 10 s, also if a reply was lost.
    ///
    /// # Errors
    /// `Unsupported` if the store has no atomic batches; as [`increment`](Self::increment).
    ///
    /// Cancellation: if the future is dropped, it is added or not. It can be called again.
    pub async fn increment_once(&self, id: impl AsRef<[u8]>, delta: i64) -> Result<i64> {
        let seen = once::key(&self.key, id.as_ref())?;
        once::increment(&self.store, &self.key, seen, delta, self.ttl, once::DAY).await
    }

    /// The value; 0 if there is none.
    ///
    /// # Errors
    /// `NotInteger` if something else lies there; those of the store.
    pub async fn get(&self) -> Result<i64> {
        parse(self.store.get(&self.key).await?.as_deref(), &self.key)
    }

    /// Begins from 0 again. Ids that were seen stay seen.
    ///
    /// # Errors
    /// `NotInteger` if something else lies there, which stays; those of the store.
    pub async fn reset(&self) -> Result<()> {
        self.get().await?;
        self.store.delete(&self.key).await.map(drop)
    }

    /// Lets the counter expire this long from now. Says whether there was one.
    ///
    /// # Errors
    /// `InvalidInput` for a time to live of zero or over 100 years; those of the store.
    pub async fn expire(&self, ttl: Duration) -> Result<bool> {
        self.store.expire(&self.key, ttl).await
    }
}

async fn add(store: &Store, key: &Key, delta: i64, ttl: Option<Duration>) -> Result<i64> {
    match ttl {
        Some(ttl) => store.increment_with_ttl(key, delta, ttl).await,
        None => store.increment(key, delta).await,
    }
}

/// The integer under a key; 0 for none.
pub(super) fn parse(value: Option<&[u8]>, key: &Key) -> Result<i64> {
    let Some(value) = value else { return Ok(0) };
    let parsed = std::str::from_utf8(value).ok().and_then(|text| text.parse().ok());
    // As increments take it: without a plus, or zeros in front.
    let parsed = parsed.filter(|number: &i64| number.to_string().as_bytes() == value);
    parsed.ok_or_else(|| Error::new(ErrorKind::NotInteger, "the value is not a 64-bit integer").with_key(key))
}

impl fmt::Debug for Counter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Counter").field("key", &self.key).field("ttl", &self.ttl).finish_non_exhaustive()
    }
}
