//! A counter that counts here at first and in the store soon.

use std::{
    borrow::Borrow as _,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering::SeqCst},
    },
    time::Duration,
};

use commonhold_core::{Condition, Error, ErrorKind, IntoKey, Key, PutOptions, Result, Store, Write};
use tokio::{runtime::Handle, sync::Notify, task::JoinHandle};

use super::{Counter, once, shared::parse};

/// A counter that counts in this process and is flushed to the store in intervals: exact in the end.
///
/// Each flush carries an id, so a flush whose reply is lost counts once. What a crash loses is what was added since the
/// last flush that succeeded: at most what is added in an [interval](HybridCounterBuilder::interval) or up to
/// [`flush_at`](HybridCounterBuilder::flush_at), and more only while the store is away. With a
/// [journal](HybridCounterBuilder::journal) it loses nothing.
///
/// Dropping it flushes in the background, on the runtime on which it was built; [`close`](Self::close) waits for that.
///
/// ```
/// # tokio::runtime::Runtime::new().unwrap().block_on(async {
/// use std::time::Duration;
/// use commonhold_coordination::counter::HybridCounter;
/// use commonhold_core::{MemoryBackend, Store};
///
/// let store = Store::new(MemoryBackend::new());
/// let views = HybridCounter::builder(store.clone(), "views")?.interval(Duration::from_secs(1)).build().await?;
/// for _ in 0..1000 {
///     views.add(1).await?;
/// }
/// views.close().await?;
/// assert_eq!(store.get("views").await?.as_deref(), Some(&b"1000"[..]));
/// # Ok::<(), commonhold_core::Error>(())
/// # }).unwrap();
/// ```
pub struct HybridCounter {
    shared: Arc<Shared>,
    flushing: JoinHandle<()>,
    runtime: Handle,
}

/// Makes a [`HybridCounter`].
#[derive(Debug)]
pub struct HybridCounterBuilder {
    store: Store,
    key: Key,
    interval: Duration,
    flush_at: u64,
    journal: Option<Store>,
}

struct Shared {
    store: Store,
    key: Key,
    pending: Pending,
    flush_at: u64,
    /// One flush at a time.
    flushes: tokio::sync::Mutex<()>,
    /// There is as much as is to be flushed at once.
    full: Notify,
}

/// What is not in the store yet.
enum Pending {
    Memory { sum: AtomicI64, flight: std::sync::Mutex<Option<Flight>> },
    Journal { store: Store, sum: Counter, flight: Key },
}

/// What is on its way to the store, or was when that failed.
#[derive(Debug, Clone)]
struct Flight {
    /// The store counts it once.
    id: String,
    sum: i64,
}

/// How long the store remembers a flush. A journal may be read again so late.
const REMEMBERED: Duration = Duration::from_secs(7 * 24 * 60 * 60);

impl HybridCounter {
    /// A counter under this key of the store, flushed every second unless the builder is told otherwise.
    ///
    /// # Errors
    /// `InvalidInput` or `TooLarge` for such a key; `Unsupported` if the store has no atomic batches.
    pub fn builder(store: Store, key: impl IntoKey) -> Result<HybridCounterBuilder> {
        once::check(&store)?;
        let key = key.into_key()?.borrow().clone();
        let interval = Duration::from_secs(1);
        Ok(HybridCounterBuilder { store, key, interval, flush_at: u64::MAX, journal: None })
    }

    /// Adds this. Without a journal it is there at once and never fails but when the sum that waits leaves the range of
    /// `i64`; with one when the journal has it.
    ///
    /// # Errors
    /// `NotInteger` for such a sum; those of the journal: it is not added then, or perhaps if the error is ambiguous.
    ///
    /// Cancellation: without a journal it is added once polled; with one it is added or not.
    pub async fn add(&self, delta: i64) -> Result<()> {
        let sum = match &self.shared.pending {
            Pending::Memory { sum, .. } => add_here(sum, delta)?,
            Pending::Journal { sum, .. } => sum.increment(delta).await?,
        };
        if sum.unsigned_abs() >= self.shared.flush_at {
            self.shared.full.notify_one();
        }
        Ok(())
    }

    /// Flushes what was added here so far.
    ///
    /// # Errors
    /// Those of the store. What was added stays here then, and is flushed later.
    ///
    /// Cancellation: it is flushed, or stays here.
    pub async fn flush(&self) -> Result<()> {
        self.shared.flush().await
    }

    /// The value with everything that was added here before: flushes, and asks the store.
    ///
    /// # Errors
    /// As [`flush`](Self::flush); `NotInteger` if something else lies there.
    pub async fn get(&self) -> Result<i64> {
        self.shared.flush().await?;
        parse(self.shared.store.get(&self.shared.key).await?.as_deref(), &self.shared.key)
    }

    /// Flushes, and ends.
    ///
    /// # Errors
    /// As [`flush`](Self::flush). Without a journal what was not flushed is tried once more in the background, and lost if that fails.
    pub async fn close(self) -> Result<()> {
        self.shared.flush().await
    }
}

impl Drop for HybridCounter {
    fn drop(&mut self) {
        self.flushing.abort();
        let shared = Arc::clone(&self.shared);
        self.runtime.spawn(async move {
            let flushed = shared.flush().await;
            let _ = flushed.inspect_err(|error| tracing::warn!(%error, "a counter was not flushed"));
        });
    }
}

impl HybridCounterBuilder {
    /// How often it is flushed: every second unless this says otherwise; at least 1 ms.
    #[must_use]
    pub fn interval(mut self, interval: Duration) -> Self {
        self.interval = interval.max(Duration::from_millis(1));
        self
    }

    /// Flushes at once when this much waits, whatever the interval: the bound on what a crash can lose.
    #[must_use]
    pub fn flush_at(mut self, sum: u64) -> Self {
        self.flush_at = sum.max(1);
        self
    }

    /// Keeps what is not flushed in this store too, a `disk:` store say, so that a crash loses nothing: what it finds
    /// there for this counter is flushed at first. One process at a time may use it, and within a week.
    #[must_use]
    pub fn journal(mut self, journal: Store) -> Self {
        self.journal = Some(journal);
        self
    }

    /// The counter, which flushes in a task of its own from now on.
    ///
    /// # Errors
    /// `Unsupported` if the journal has no atomic batches; `TooLarge` for a key that is too long to be kept there.
    pub async fn build(self) -> Result<HybridCounter> {
        let pending = match self.journal {
            None => Pending::Memory { sum: AtomicI64::new(0), flight: std::sync::Mutex::default() },
            Some(store) => {
                once::check(&store)?;
                let named = |what: &[u8]| Key::new([what, self.key.as_bytes()].concat());
                let (sum, flight) = (named(b"pending:")?, named(b"flight:")?);
                Pending::Journal { sum: Counter::new(store.clone(), sum)?, flight, store }
            }
        };
        let Self { store, key, flush_at, interval, .. } = self;
        let shared = Shared {
            store,
            key,
            pending,
            flush_at,
            flushes: tokio::sync::Mutex::default(),
            full: Notify::new(),
        };
        let shared = Arc::new(shared);
        let flushing = tokio::spawn(flush_in_intervals(Arc::clone(&shared), interval));
        Ok(HybridCounter { shared, flushing, runtime: Handle::current() })
    }
}

async fn flush_in_intervals(shared: Arc<Shared>, interval: Duration) {
    loop {
        if let Err(error) = shared.flush().await {
            tracing::debug!(%error, key = %shared.key, "a counter was not flushed");
        }
        // At most once in a millisecond, however much is added.
        tokio::time::sleep(Duration::from_millis(1)).await;
        let _ = tokio::time::timeout(interval, shared.full.notified()).await;
    }
}

impl Shared {
    async fn flush(&self) -> Result<()> {
        let count = |outcome| {
            metrics::counter!("commonhold_counter_flushes_total", "outcome" => outcome).increment(1)
        };
        self.flush_and(|| count("flushed")).await.inspect_err(|_| count("failed"))
    }

    async fn flush_and(&self, arrived: impl Fn()) -> Result<()> {
        let _one = self.flushes.lock().await;
        // What failed before, and what was added since.
        for _ in 0..2 {
            let Some(flight) = self.pending.depart(&self.key).await? else { return Ok(()) };
            let seen = once::key(&self.key, flight.id.as_bytes())?;
            once::increment(&self.store, &self.key, seen, flight.sum, None, REMEMBERED).await?;
            self.pending.arrived(&flight).await?;
            arrived();
        }
        Ok(())
    }
}

impl Pending {
    /// What is to be flushed: what did not arrive before, or else what was added since.
    async fn depart(&self, key: &Key) -> Result<Option<Flight>> {
        match self {
            Self::Memory { sum, flight } => {
                let mut flight = flight.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                if flight.is_none() {
                    let sum = sum.swap(0, SeqCst);
                    *flight = (sum != 0).then(|| Flight::new(sum));
                }
                Ok(flight.clone())
            }
            Self::Journal { store, sum, flight } => loop {
                let found = store.batch_get(&[flight.clone(), sum.key().clone()]).await?;
                let [on_its_way, waiting] = &found[..] else { return Ok(None) };
                if let Some(flight) = on_its_way {
                    return Flight::parse(flight, key).map(Some);
                }
                let Some(waiting) = waiting else { return Ok(None) };
                let departing = Flight::new(parse(Some(waiting), sum.key())?);
                let batch = vec![
                    Write::Put {
                        key: flight.clone(),
                        value: departing.to_string().into(),
                        options: PutOptions::default().when(Condition::Absent),
                    },
                    Write::Delete { key: sum.key().clone(), condition: Condition::Equals(waiting.clone()) },
                ];
                match store.write_batch(batch).await {
                    Ok(_) => return Ok(Some(departing)),
                    // More was added meanwhile.
                    Err(error) if error.kind() == ErrorKind::Conflict => {}
                    Err(error) => return Err(error),
                }
            },
        }
    }

    /// What departed is in the store.
    async fn arrived(&self, arrived: &Flight) -> Result<()> {
        match self {
            Self::Memory { flight, .. } => {
                *flight.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = None;
                Ok(())
            }
            // Not the next one, should this be carried out late.
            Self::Journal { store, flight, .. } => {
                let condition = Condition::Equals(arrived.to_string().into());
                store.backend().delete(flight, condition).await.map(drop)
            }
        }
    }
}

impl Flight {
    fn new(sum: i64) -> Self {
        Self { id: format!("{:016x}{:016x}", fastrand::u64(..), fastrand::u64(..)), sum }
    }

    fn parse(flight: &[u8], key: &Key) -> Result<Self> {
        let parsed = std::str::from_utf8(flight).ok().and_then(|flight| flight.split_once(' '));
        let parsed = parsed.and_then(|(id, sum)| Some(Self { id: id.to_owned(), sum: sum.parse().ok()? }));
        parsed.ok_or_else(|| Error::new(ErrorKind::Corrupt, "the journal is damaged").with_key(key))
    }
}

impl fmt::Display for Flight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.id, self.sum)
    }
}

fn add_here(sum: &AtomicI64, delta: i64) -> Result<i64> {
    let added = sum.fetch_update(SeqCst, SeqCst, |sum| sum.checked_add(delta));
    let before = added
        .map_err(|_| Error::new(ErrorKind::NotInteger, "what waits to be flushed leaves the range of i64"))?;
    Ok(before.wrapping_add(delta))
}

impl fmt::Debug for HybridCounter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HybridCounter").field("key", &self.shared.key).finish_non_exhaustive()
    }
}
