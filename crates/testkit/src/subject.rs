//! What a case is run against: a backend, its clock, and what must live as long as it does.

use std::{any::Any, fmt, sync::Arc, time::Duration};

use bytes::Bytes;
use commonhold_core::{
    Applied, Condition, Entry, Expiry, Key, ManualClock, Prefix, PutOptions, Result, Scan, StateBackend,
    Step, Timestamp, Transition, Write,
};
use futures_util::TryStreamExt as _;

use crate::eventually::eventually;

/// How long a real clock may take to expire an entry beyond its time to live.
const EXPIRY_SLACK: Duration = Duration::from_secs(20);

/// A backend under test with nothing in it.
pub struct Subject {
    /// The backend.
    pub backend: Arc<dyn StateBackend>,
    clock: Option<Arc<ManualClock>>,
    max_key_len: usize,
    // Dropped after the backend: fields are dropped in the order in which they are declared.
    pub(crate) kept: Option<Box<dyn Any + Send + Sync>>,
}

impl Subject {
    /// An empty backend that tells real time.
    pub fn new(backend: Arc<dyn StateBackend>) -> Self {
        Self { backend, clock: None, max_key_len: Key::MAX_LEN, kept: None }
    }

    /// Says that the backend tells the time of this clock, so that nothing waits for time to pass.
    #[must_use]
    pub fn with_clock(mut self, clock: Arc<ManualClock>) -> Self {
        self.clock = Some(clock);
        self
    }

    /// Says that the layers under test leave this much of [`Key::MAX_LEN`] to their users.
    #[must_use]
    pub fn with_max_key_len(mut self, bytes: usize) -> Self {
        self.max_key_len = bytes;
        self
    }

    /// Keeps something until after the backend is dropped: its directory, its server.
    #[must_use]
    pub fn keeping(mut self, kept: impl Any + Send + Sync) -> Self {
        self.kept = Some(Box::new(kept));
        self
    }

    /// The clock, if a test can turn it.
    pub(crate) fn clock(&self) -> Option<&ManualClock> {
        self.clock.as_deref()
    }

    pub(crate) fn max_key_len(&self) -> usize {
        self.max_key_len
    }

    /// A time to live that a test can see the end of.
    pub(crate) fn short_ttl(&self) -> Duration {
        match self.clock {
            Some(_) => Duration::from_secs(10),
            None => self.backend.capabilities().ttl_resolution.max(Duration::from_millis(50)),
        }
    }

    /// Comes back when an entry that was given this time to live just now is gone: turns the clock, or reads
    /// the key until it is missing.
    pub(crate) async fn until_expired(&self, key: &Key, ttl: Duration) {
        match &self.clock {
            Some(clock) => clock.advance(ttl + self.backend.capabilities().ttl_resolution),
            None => {
                eventually(ttl + EXPIRY_SLACK, "the entry expires", async || self.value(key).await.is_none())
                    .await;
            }
        }
    }

    /// Puts an entry and lets it expire.
    pub(crate) async fn put_expired(&self, key: &Key, value: impl Into<Bytes>) {
        let ttl = self.short_ttl();
        self.put_for(key, value, ttl).await;
        self.until_expired(key, ttl).await;
    }

    pub(crate) async fn get(&self, key: &Key) -> Option<Entry> {
        self.backend.get(key).await.unwrap()
    }

    pub(crate) async fn value(&self, key: &Key) -> Option<Bytes> {
        self.get(key).await.map(|entry| entry.value)
    }

    /// The time to live of an entry that must be there.
    pub(crate) async fn ttl(&self, key: &Key) -> Option<Duration> {
        self.get(key).await.expect("the entry is there").ttl
    }

    /// Puts a value for ever.
    pub(crate) async fn put(&self, key: &Key, value: impl Into<Bytes>) {
        assert_eq!(self.put_with(key, value, PutOptions::default()).await, Applied::Yes);
    }

    /// Puts a value for a time.
    pub(crate) async fn put_for(&self, key: &Key, value: impl Into<Bytes>, ttl: Duration) {
        let options = PutOptions::default().expiry(Expiry::After(ttl));
        assert_eq!(self.put_with(key, value, options).await, Applied::Yes);
    }

    /// Puts a value if the condition holds, for ever.
    pub(crate) async fn put_if(&self, key: &Key, value: impl Into<Bytes>, condition: Condition) -> Applied {
        self.put_with(key, value, PutOptions::default().when(condition)).await
    }

    pub(crate) async fn put_with(&self, key: &Key, value: impl Into<Bytes>, options: PutOptions) -> Applied {
        self.backend.put(key, value.into(), options).await.unwrap()
    }

    pub(crate) async fn delete(&self, key: &Key) -> Applied {
        self.delete_if(key, Condition::Always).await
    }

    pub(crate) async fn delete_if(&self, key: &Key, condition: Condition) -> Applied {
        self.backend.delete(key, condition).await.unwrap()
    }

    pub(crate) async fn write_many(&self, batch: Vec<Write>) -> Vec<Applied> {
        self.backend.write_many(batch).await.unwrap()
    }

    pub(crate) async fn values(&self, keys: &[Key]) -> Vec<Option<Bytes>> {
        let entries = self.backend.get_many(keys).await.unwrap();
        entries.into_iter().map(|entry| entry.map(|entry| entry.value)).collect()
    }

    pub(crate) async fn transact(
        &self,
        key: &Key,
        apply: impl Fn(Option<&[u8]>, Timestamp) -> Result<Step> + Send + Sync + 'static,
    ) -> Result<Bytes> {
        self.backend.transact(key, transition(apply)).await
    }

    /// What a scan returns, in the order in which it comes.
    pub(crate) async fn scan(&self, scan: Scan) -> Vec<(Key, Entry)> {
        self.backend.scan(scan).try_collect().await.unwrap()
    }

    /// The keys under a prefix, sorted; a key that came twice is there twice.
    pub(crate) async fn keys(&self, prefix: &Prefix) -> Vec<Key> {
        let mut keys: Vec<Key> =
            self.scan(Scan::prefix(prefix.clone())).await.into_iter().map(|(key, _)| key).collect();
        keys.sort();
        keys
    }

    pub(crate) async fn count(&self, prefix: &Prefix) -> u64 {
        self.backend.count(prefix).await.unwrap()
    }

    /// Fails unless the time left of an entry is this, as far as the clock and the resolution allow to say.
    pub(crate) async fn assert_ttl(&self, key: &Key, expected: Duration) {
        let ttl = self.ttl(key).await.expect("the entry has a time to live");
        self.assert_ttl_is(ttl, expected);
    }

    pub(crate) fn assert_ttl_is(&self, ttl: Duration, expected: Duration) {
        let longest = expected + self.backend.capabilities().ttl_resolution;
        assert!(ttl <= longest, "a time to live of {ttl:?}, expected {expected:?}");
        let shortest = if self.clock.is_some() { expected } else { expected.saturating_sub(EXPIRY_SLACK) };
        assert!(ttl >= shortest, "a time to live of {ttl:?}, expected {expected:?}");
    }
}

impl fmt::Debug for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subject").field("backend", &self.backend).field("clock", &self.clock).finish()
    }
}

/// A key of these bytes.
pub(crate) fn key(bytes: impl AsRef<[u8]>) -> Key {
    Key::new(bytes).unwrap()
}

/// A prefix of these bytes.
pub(crate) fn prefix(bytes: impl AsRef<[u8]>) -> Prefix {
    Prefix::new(bytes).unwrap()
}

/// The condition that the value is this one.
pub(crate) fn equals(value: impl Into<Bytes>) -> Condition {
    Condition::Equals(value.into())
}

/// Put options that let the value live for this long.
pub(crate) fn for_(ttl: Duration) -> PutOptions {
    PutOptions::default().expiry(Expiry::After(ttl))
}

/// A transition made of a function.
pub(crate) fn transition(
    apply: impl Fn(Option<&[u8]>, Timestamp) -> Result<Step> + Send + Sync + 'static,
) -> Arc<dyn Transition> {
    Arc::new(Function(apply))
}

struct Function<F>(F);

impl<F> fmt::Debug for Function<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Function")
    }
}

impl<F> Transition for Function<F>
where
    F: Fn(Option<&[u8]>, Timestamp) -> Result<Step> + Send + Sync + 'static,
{
    fn name(&self) -> &'static str {
        "conformance"
    }

    fn apply(&self, state: Option<&[u8]>, now: Timestamp) -> Result<Step> {
        (self.0)(state, now)
    }
}

/// The transition that adds one to a counter of decimal text and replies the new value.
pub(crate) fn add_one() -> Arc<dyn Transition> {
    transition(|state, _| {
        let next = (number(state) + 1).to_string();
        Ok(Step::put(next.clone(), Expiry::Keep, next))
    })
}

/// The number that a counter of decimal text shows; 0 for none.
pub(crate) fn number(text: Option<&[u8]>) -> i64 {
    text.map_or(0, |text| std::str::from_utf8(text).unwrap().parse().unwrap())
}
