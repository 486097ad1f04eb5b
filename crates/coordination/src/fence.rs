//! Writes that are refused when a later holder has written.

use std::{
    borrow::Borrow as _,
    collections::HashSet,
    fmt,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use commonhold_core::{
    Applied, Condition, Error, ErrorKind, Expiry, IntoKey, Key, PutOptions, Result, Retry, Store, Write,
};

use crate::newest::newest;

/// A fencing token, as [`Guard::fence`](crate::Guard::fence) gives it: greater than that of every earlier holder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fence(u64);

impl Fence {
    /// The fence with this token.
    pub const fn new(token: u64) -> Self {
        Self(token)
    }

    /// The token.
    pub const fn token(self) -> u64 {
        self.0
    }
}

impl fmt::Display for Fence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Writes to a store under a [`Fence`]: the store refuses each, atomically, once it has seen a newer fence for that key.
///
/// A holder that was paused (by the scheduler, a debugger, a virtual machine that moved) can wake up after its lock went
/// to somebody else, and knows nothing of it. Only the store that it writes to can keep it from writing then. The newest
/// fence of each key lies under `fence:KEY` beside it, in decimal, for ever: a fence that is forgotten protects nothing
/// (keep other values out of there).
/// A write is one atomic batch: of the value, on the condition that the fence is still what it was.
///
/// Writes without a fence are not kept from anything: whoever writes such a key must do it in this way.
///
/// ```
/// # tokio::runtime::Runtime::new().unwrap().block_on(async {
/// use std::time::Duration;
/// use commonhold_coordination::{Fenced, Locks};
/// use commonhold_core::{ErrorKind, MemoryBackend, Store};
///
/// let store = Store::new(MemoryBackend::new());
/// let locks = Locks::new(store.clone())?;
/// let first = locks.try_acquire("job", Duration::from_secs(30)).await?.expect("free");
/// let late = Fenced::new(store.clone(), first.fence())?;
/// first.release().await?;
///
/// let second = locks.try_acquire("job", Duration::from_secs(30)).await?.expect("free again");
/// Fenced::new(store.clone(), second.fence())?.put("result", "new").await?;
/// assert_eq!(late.put("result", "old").await.unwrap_err().kind(), ErrorKind::Fenced);
/// # Ok::<(), commonhold_core::Error>(())
/// # }).unwrap();
/// ```
#[derive(Debug)]
pub struct Fenced {
    store: Store,
    fence: Fence,
    /// Keys for which the store has seen this fence. Asking for the others costs one more way.
    seen: Mutex<HashSet<Key>>,
}

/// How many keys are remembered at most.
const MAX_SEEN: usize = 4096;
/// How often a write is tried that meets others.
const ATTEMPTS: usize = 100;

impl Fenced {
    /// Writes under this fence.
    ///
    /// # Errors
    /// `Unsupported` if the store has no atomic batches (Memcached; a Redis Cluster whose keys do not lie together: give
    /// it a prefix with a hash tag, as in `?prefix={app}:`).
    pub fn new(store: Store, fence: Fence) -> Result<Self> {
        if !store.capabilities().atomic_batch {
            let message = "fenced writes need a store with atomic batches";
            return Err(Error::new(ErrorKind::Unsupported, message).at(store.backend().name(), "fence"));
        }
        Ok(Self { store, fence, seen: Mutex::default() })
    }

    /// The fence.
    pub fn fence(&self) -> Fence {
        self.fence
    }

    /// The value under a key, which no older fence can change from now on. Who reads to write what follows from it must
    /// read in this way: a holder that was late could write in between otherwise.
    ///
    /// # Errors
    /// As [`put`](Self::put).
    pub async fn get(&self, key: impl IntoKey) -> Result<Option<Bytes>> {
        let key = owned(key)?;
        let fence = fence_key(&key)?;
        if !self.seen().contains(&fence) {
            self.write(&[fence], Vec::new()).await?;
        }
        Ok(newest(&self.store, &[key]).await?.into_iter().next().flatten())
    }

    /// Puts a value.
    ///
    /// # Errors
    /// `Fenced` if the store has seen a newer fence for this key; `InvalidInput` for a key that begins with `fence:`; those
    /// of the store. As with all writes here.
    ///
    /// Cancellation: all of it is written or nothing. As with all writes here.
    pub async fn put(&self, key: impl IntoKey, value: impl Into<Bytes>) -> Result<()> {
        let key = owned(key)?;
        self.write_batch(vec![Write::put(key, value)]).await.map(drop)
    }

    /// Puts a value that expires after this long.
    ///
    /// # Errors
    /// As [`put`](Self::put); `InvalidInput` for a time to live of zero or over 100 years.
    pub async fn put_with_ttl(
        &self,
        key: impl IntoKey,
        value: impl Into<Bytes>,
        ttl: Duration,
    ) -> Result<()> {
        let options = PutOptions::default().expiry(Expiry::After(ttl));
        let write = Write::Put { key: owned(key)?, value: value.into(), options };
        self.write_batch(vec![write]).await.map(drop)
    }

    /// Deletes a key, and says whether it was there.
    ///
    /// # Errors
    /// As [`put`](Self::put).
    pub async fn delete(&self, key: impl IntoKey) -> Result<bool> {
        let key = owned(key)?;
        let applied = self.write_batch(vec![Write::delete(key)]).await?;
        Ok(applied.first().is_some_and(|applied| applied.is_yes()))
    }

    /// Puts a value if the present one is as expected (`None`: if there is none), and says whether it was.
    ///
    /// # Errors
    /// As [`put`](Self::put).
    pub async fn compare_and_swap(
        &self,
        key: impl IntoKey,
        expected: Option<impl Into<Bytes>>,
        new: impl Into<Bytes>,
    ) -> Result<bool> {
        let key = owned(key)?;
        let condition = expected.map_or(Condition::Absent, |expected| Condition::Equals(expected.into()));
        let options = PutOptions::default().when(condition.clone());
        let write = Write::Put { key: key.clone(), value: new.into(), options };
        match self.write_batch(vec![write]).await {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == ErrorKind::Conflict && error.retry() == Retry::Never => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Carries out writes all together or not at all, and answers in their order.
    ///
    /// # Errors
    /// As [`put`](Self::put); `Conflict` if a condition did not hold.
    pub async fn write_batch(&self, batch: Vec<Write>) -> Result<Vec<Applied>> {
        let mut keys = Vec::with_capacity(batch.len());
        for write in &batch {
            keys.push(fence_key(write.key())?);
        }
        keys.sort();
        keys.dedup();
        self.write(&keys, batch).await
    }

    /// Has the store see the fence for these keys, and carries out the writes.
    async fn write(&self, keys: &[Key], batch: Vec<Write>) -> Result<Vec<Applied>> {
        for _ in 0..ATTEMPTS {
            let found = self.newest(keys).await?;
            let check = |(key, found): (&Key, &Option<Bytes>)| {
                let condition = found.clone().map_or(Condition::Absent, Condition::Equals);
                let value = self.fence.to_string().into();
                Write::Put { key: key.clone(), value, options: PutOptions::default().when(condition) }
            };
            let writes = keys.iter().zip(&found).map(check).chain(batch.iter().cloned()).collect();
            match self.store.write_batch(writes).await {
                Ok(applied) => {
                    self.remember(keys);
                    return Ok(applied.into_iter().skip(keys.len()).collect());
                }
                // Another fence came in between, or else a condition of the batch itself does not hold.
                Err(error) if error.kind() == ErrorKind::Conflict => {
                    self.forget();
                    if self.newest(keys).await? == found && error.retry() == Retry::Never {
                        return Err(error);
                    }
                }
                Err(error) => return Err(error),
            }
        }
        let message = "holders of older fences kept writing the same keys meanwhile";
        Err(Error::new(ErrorKind::Conflict, message).with_retry(Retry::Safe))
    }

    /// The newest fences that the store has seen, in the order of these keys.
    async fn newest(&self, keys: &[Key]) -> Result<Vec<Option<Bytes>>> {
        let own = Bytes::from(self.fence.to_string());
        if keys.iter().all(|key| self.seen().contains(key)) {
            return Ok(vec![Some(own); keys.len()]);
        }
        let found = newest(&self.store, keys).await?;
        for (key, found) in keys.iter().zip(&found) {
            let Some(found) = found else { continue };
            let token: Option<u64> = std::str::from_utf8(found).ok().and_then(|token| token.parse().ok());
            let message = match token {
                None => return Err(Error::new(ErrorKind::Corrupt, "the fence is no integer").with_key(key)),
                Some(token) if token <= self.fence.0 => continue,
                Some(token) => {
                    format!("the holder of fence {token} has written; this is fence {}", self.fence)
                }
            };
            return Err(Error::new(ErrorKind::Fenced, message).with_key(key));
        }
        Ok(found)
    }

    fn remember(&self, keys: &[Key]) {
        let mut seen = self.seen();
        if seen.len() + keys.len() > MAX_SEEN {
            seen.clear();
        }
        seen.extend(keys.iter().take(MAX_SEEN).cloned());
    }

    fn forget(&self) {
        self.seen().clear();
    }

    fn seen(&self) -> MutexGuard<'_, HashSet<Key>> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn owned(key: impl IntoKey) -> Result<Key> {
    Ok(key.into_key()?.borrow().clone())
}

const FENCE: &[u8] = b"fence:";

fn fence_key(key: &Key) -> Result<Key> {
    if key.as_bytes().starts_with(FENCE) {
        let message = "keys that begin with `fence:` are for fences";
        return Err(Error::new(ErrorKind::InvalidInput, message).with_key(key));
    }
    Key::new([FENCE, key.as_bytes()].concat())
}
