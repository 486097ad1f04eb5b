//! Clients that do random things at once, and write down what they did and what came of it.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use commonhold_core::{Error, ErrorKind, Retry, Store};
use fastrand::Rng;
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{sleep, timeout},
};

use super::{Event, History, Operation, Outcome};
use crate::servers::unique;

/// How much is done while a history is recorded.
#[derive(Debug, Clone)]
pub struct Load {
    /// Clients that work at once, each with one operation at a time.
    pub tasks: usize,
    /// Operations of all of them together, at most.
    pub operations: usize,
    /// Keys among which they choose.
    pub keys: usize,
    /// The mean pause of a client between two operations, so that the operations span the faults.
    pub pause: Duration,
    /// What the clients do follows from it, though not when.
    pub seed: u64,
}

impl Default for Load {
    /// Eight clients on four keys with pauses of 2 ms, 20,000 operations at most, and a random seed.
    fn default() -> Self {
        Self {
            tasks: 8,
            operations: 20_000,
            keys: 4,
            pause: Duration::from_millis(2),
            seed: fastrand::u64(..),
        }
    }
}

/// An operation that takes longer than this is given up, its outcome unknown.
const PATIENCE: Duration = Duration::from_secs(30);

/// How long the store has after the faults to answer again.
const RECOVERY: Duration = Duration::from_secs(60);

/// How far the clients have come, for a script of faults.
#[derive(Debug, Clone)]
pub struct Progress(watch::Receiver<usize>);

impl Progress {
    /// The operations that have succeeded up to now.
    pub fn succeeded(&self) -> usize {
        *self.0.borrow()
    }

    /// Waits until so many operations have succeeded, or the clients have made all they were to make.
    ///
    /// Cancellation: safe, nothing is kept.
    pub async fn reaches(&self, count: usize) {
        // An error means that the clients have ended.
        let _ = self.0.clone().wait_for(|succeeded| *succeeded >= count).await;
    }

    /// Waits until so many further operations have succeeded, as after a fault.
    ///
    /// Cancellation: safe, nothing is kept.
    pub async fn gains(&self, count: usize) {
        self.reaches(self.succeeded() + count).await;
    }
}

/// Lets clients loose on fresh keys while `faults` runs, and returns what they did, with a last read of each key.
/// The clients share the stores: the first one uses the first store, and so on.
///
/// They stop when `faults` returns, or when they have made all their operations. The runtime must have several
/// threads if `faults` blocks.
///
/// # Panics
/// If the store cannot be read a minute after the faults, or answers what cannot be (that a counter is none).
pub async fn record(stores: &[Store], load: &Load, faults: impl AsyncFnOnce(Progress)) -> History {
    assert!(!stores.is_empty() && load.keys > 0, "a history needs a store and a key");
    let name = unique("history");
    let keys: Arc<[String]> = (0..load.keys).map(|key| format!("{name}:{key}")).collect();
    let (succeeded, progress) = watch::channel(0);
    let log = Arc::new(Log::new());
    let mut clients = JoinSet::new();
    for (task, store) in (0..load.tasks).zip(stores.iter().cycle()) {
        let operations = load.operations / load.tasks + usize::from(task < load.operations % load.tasks);
        let client = Client {
            store: store.clone(),
            keys: keys.clone(),
            log: log.clone(),
            succeeded: succeeded.clone(),
            random: Rng::with_seed(load.seed.wrapping_add(task as u64)),
            seen: vec![None; load.keys],
            // Far enough apart that increments do not make one value another.
            fresh: (task as i64 + 1) << 40,
        };
        clients.spawn(client.work(operations, load.pause));
    }
    // Only the clients have it now: whoever waits for their progress learns that they have ended.
    drop(succeeded);
    faults(Progress(progress)).await;
    log.stop.store(true, Ordering::SeqCst);
    while let Some(client) = clients.join_next().await {
        client.unwrap_or_else(|error| panic!("COMMONHOLD_SEED={}: {error}", load.seed));
    }
    for (key, store) in (0..load.keys).zip(stores.iter().cycle()) {
        last_read(store, &keys, key, &log).await;
    }
    Arc::into_inner(log).expect("the clients have ended").into_history()
}

/// Reads a key until that succeeds.
async fn last_read(store: &Store, keys: &[String], key: usize, log: &Log) {
    let deadline = Instant::now() + RECOVERY;
    while log.carry_out(store, keys, key, Operation::Get).await.is_none() {
        assert!(Instant::now() < deadline, "the store does not work again: {:?}", log.last_error());
        sleep(Duration::from_millis(10)).await;
    }
}

struct Client {
    store: Store,
    keys: Arc<[String]>,
    log: Arc<Log>,
    succeeded: watch::Sender<usize>,
    random: Rng,
    /// What this client last knew of each key, so that its compare-and-swaps have a chance.
    seen: Vec<Option<i64>>,
    /// A value that nobody has put.
    fresh: i64,
}

impl Client {
    async fn work(mut self, operations: usize, pause: Duration) {
        for _ in 0..operations {
            if self.log.stop.load(Ordering::SeqCst) {
                return;
            }
            let key = self.random.usize(..self.keys.len());
            let operation = self.choose(key);
            let outcome = self.log.carry_out(&self.store, &self.keys, key, operation).await;
            if let Some(outcome) = outcome {
                self.succeeded.send_modify(|succeeded| *succeeded += 1);
                self.learn(key, operation, outcome);
            }
            sleep(pause.mul_f64(2.0 * self.random.f64())).await;
        }
    }

    fn choose(&mut self, key: usize) -> Operation {
        self.fresh += 1 << 20;
        match self.random.u8(..100) {
            0..35 => Operation::Get,
            35..50 => Operation::Put(self.fresh),
            50..55 => Operation::Delete,
            55..75 => Operation::CompareAndSwap { expected: self.seen[key], new: self.fresh },
            _ => Operation::Increment(1),
        }
    }

    fn learn(&mut self, key: usize, operation: Operation, outcome: Outcome) {
        self.seen[key] = match (operation, outcome) {
            (_, Outcome::Read(value)) => value,
            (_, Outcome::Sum(sum)) => Some(sum),
            (Operation::Put(new), _) | (Operation::CompareAndSwap { new, .. }, Outcome::Was(true)) => {
                Some(new)
            }
            (Operation::Delete, _) => None,
            _ => return,
        };
    }
}

/// What the clients write down.
struct Log {
    clock: AtomicU64,
    stop: AtomicBool,
    written: Mutex<Written>,
}

struct Written {
    history: History,
    last_success: Instant,
}

impl Log {
    fn new() -> Self {
        let written = Written { history: History::default(), last_success: Instant::now() };
        Self { clock: AtomicU64::new(0), stop: AtomicBool::new(false), written: Mutex::new(written) }
    }

    /// Does something to a key and writes it down. `None` if it failed.
    async fn carry_out(
        &self,
        store: &Store,
        keys: &[String],
        key: usize,
        operation: Operation,
    ) -> Option<Outcome> {
        let begun = self.clock.fetch_add(1, Ordering::SeqCst);
        let result = timeout(PATIENCE, call(store, &keys[key], operation)).await;
        let ended = self.clock.fetch_add(1, Ordering::SeqCst);
        let result = result.unwrap_or_else(|_| {
            let error = Error::new(ErrorKind::Timeout, format!("no answer within {PATIENCE:?}"));
            Err(error.with_retry(Retry::Ambiguous))
        });
        let event = |outcome| Event { key, operation, outcome, begun, ended };
        let mut written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        let Written { history, last_success } = &mut *written;
        match result {
            Ok(outcome) => {
                history.events.push(event(outcome));
                history.longest_outage = history.longest_outage.max(last_success.elapsed());
                *last_success = Instant::now();
                Some(outcome)
            }
            Err(error) => {
                assert!(error.kind() != ErrorKind::NotInteger, "the values are integers, yet {error}");
                if error.retry() == Retry::Ambiguous {
                    history.events.push(event(Outcome::Unknown));
                }
                history.errors.push(error);
                None
            }
        }
    }

    fn last_error(&self) -> Option<Error> {
        self.written.lock().unwrap_or_else(PoisonError::into_inner).history.errors.last().cloned()
    }

    fn into_history(self) -> History {
        self.written.into_inner().unwrap_or_else(PoisonError::into_inner).history
    }
}

async fn call(store: &Store, key: &str, operation: Operation) -> Result<Outcome, Error> {
    Ok(match operation {
        Operation::Get => Outcome::Read(store.get(key).await?.map(|value| integer(&value))),
        Operation::Put(value) => {
            store.put(key, value.to_string()).await?;
            Outcome::Done
        }
        Operation::Delete => Outcome::Was(store.delete(key).await?),
        Operation::CompareAndSwap { expected, new } => {
            let expected = expected.map(|value| value.to_string());
            Outcome::Was(store.compare_and_swap(key, expected, new.to_string()).await?)
        }
        Operation::Increment(delta) => Outcome::Sum(store.increment(key, delta).await?),
    })
}

/// # Panics
/// If the value is none that a client puts.
fn integer(value: &[u8]) -> i64 {
    let text = str::from_utf8(value).ok().and_then(|text| text.parse().ok());
    text.unwrap_or_else(|| panic!("nobody has put {:?}", String::from_utf8_lossy(value)))
}
