//! Increments that count once, however often they are made.

use std::time::Duration;

use bytes::Bytes;
use commonhold_core::{Condition, Error, ErrorKind, Expiry, Key, PutOptions, Result, Retry, Store, Write};
use tokio::time::Instant;

use super::shared::parse;
use crate::newest::newest;

/// How long an id is remembered.
pub(super) const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// How long errors are waited out that may pass.
const PATIENCE: Duration = Duration::from_secs(10);

/// Where it is remembered that this id was counted. The length tells where the one ends and the other begins.
pub(super) fn key(counter: &Key, id: &[u8]) -> Result<Key> {
    let length = counter.as_bytes().len().to_string();
    Key::new([b"once:", length.as_bytes(), b":", counter.as_bytes(), b":", id].concat())
}

/// Adds to a counter unless `seen` is there, and leaves the sum there: both in one atomic batch, on the condition that
/// neither is there otherwise. One that arrives late finds that they are.
pub(super) async fn increment(
    store: &Store,
    counter: &Key,
    seen: Key,
    delta: i64,
    ttl: Option<Duration>,
    remembered: Duration,
) -> Result<i64> {
    check(store)?;
    let keys = [seen, counter.clone()];
    let deadline = Instant::now() + PATIENCE;
    loop {
        let error = match attempt(store, &keys, delta, ttl, remembered).await {
            Err(error) if error.kind() == ErrorKind::Conflict || error.retry() != Retry::Never => error,
            outcome => return outcome,
        };
        let pause = match error.kind() {
            ErrorKind::Conflict => Duration::from_micros(fastrand::u64(0..500)),
            _ => Duration::from_millis(fastrand::u64(10..100)),
        };
        if Instant::now() + pause >= deadline {
            return Err(error);
        }
        tokio::time::sleep(pause).await;
    }
}

async fn attempt(
    store: &Store,
    keys: &[Key; 2],
    delta: i64,
    ttl: Option<Duration>,
    remembered: Duration,
) -> Result<i64> {
    let [seen, counter] = keys;
    let mut found = newest(store, keys).await?.into_iter();
    if let Some(sum) = found.next().flatten() {
        return parse(Some(&sum), seen);
    }
    let old = found.next().flatten();
    let sum = parse(old.as_deref(), counter)?.checked_add(delta).ok_or_else(|| {
        let message = "the sum leaves the range of a signed 64-bit integer";
        Error::new(ErrorKind::NotInteger, message).with_key(counter)
    })?;
    let put = |key: &Key, condition, expiry| Write::Put {
        key: key.clone(),
        value: Bytes::from(sum.to_string()),
        options: PutOptions::default().when(condition).expiry(expiry),
    };
    let expiry = if old.is_some() { Expiry::Keep } else { ttl.into() };
    let batch = vec![
        put(seen, Condition::Absent, Expiry::After(remembered)),
        put(counter, old.map_or(Condition::Absent, Condition::Equals), expiry),
    ];
    store.write_batch(batch).await?;
    Ok(sum)
}

/// # Errors
/// `Unsupported` if the store cannot count once.
pub(super) fn check(store: &Store) -> Result<()> {
    if store.capabilities().atomic_batch && store.capabilities().ttl {
        return Ok(());
    }
    let message = "increments that count once need a store with atomic batches and times to live";
    Err(Error::new(ErrorKind::Unsupported, message).at(store.backend().name(), "increment_once"))
}
