//! Counts calls and measures how long they take.

use std::{
    fmt,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use futures_util::{StreamExt as _, stream::BoxStream};
use histogram::{AtomicHistogram, Histogram};
use quanta::Clock;

use super::{Call, Operation, Outcome, Uniform};
use crate::{
    answer::Answer,
    error::Result,
    stats::{Latency, Stats},
};

/// Counts calls, hits, misses, bytes and errors, and measures latencies.
///
/// [`Store::stats`](crate::Store::stats) sums them up; every [`Store`](crate::Store) has this layer right
/// around its backend. The same figures go to the recorder of the `metrics` facade that is installed when
/// the layer is made: `commonhold_calls_total`, `commonhold_errors_total` (labels `backend`, `operation`),
/// `commonhold_hits_total`, `commonhold_misses_total`, `commonhold_read_bytes_total`,
/// `commonhold_written_bytes_total` (label `backend`) and the histogram `commonhold_call_seconds` (labels
/// `backend`, `operation`).
///
/// Counts are exact. Latencies are of every call that has to wait, and of a sample of those that are answered
/// at once. Threads count in separate places, so that they do not slow each other down.
pub struct Metrics {
    stripes: Box<[OnceLock<Option<Box<Stripe>>>]>,
    clock: Clock,
    recorder: Recorder,
}

/// What one thread has counted, or, in the last stripe, all threads beyond. Aligned so that no two stripes
/// share a cache line.
#[repr(align(128))]
struct Stripe {
    is_shared: bool,
    calls: AtomicU64,
    transitions: AtomicU64,
    scans: AtomicU64,
    errors: AtomicU64,
    keys_put: AtomicU64,
    keys_deleted: AtomicU64,
    hits: AtomicU64,
    misses: AtomicU64,
    bytes_read: AtomicU64,
    bytes_written: AtomicU64,
    latencies: AtomicHistogram,
}

/// Of the calls that are answered at once, this many are always timed by each thread, and then one in so many:
/// taking the time twice takes as long as reading from memory. Whoever has to wait is always timed.
const ALWAYS_TIMED: u64 = 64;
const SAMPLE: u64 = 16;

/// The first threads of a process each count in a stripe of their own, all others in the last one.
const STRIPES: usize = 64;

/// Buckets as wide as 1/32 of their value, up to 2^40 ns, about 18 minutes.
const HISTOGRAM: (u8, u8) = (5, 40);

/// Handles into the recorder that was installed; they lead nowhere if none was.
struct Recorder {
    calls: Vec<metrics::Counter>,
    errors: Vec<metrics::Counter>,
    seconds: Vec<metrics::Histogram>,
    hits: metrics::Counter,
    misses: metrics::Counter,
    bytes_read: metrics::Counter,
    bytes_written: metrics::Counter,
}

impl Metrics {
    /// Counters at zero for the backend with this name.
    pub fn new(backend: &'static str) -> Self {
        Self {
            stripes: (0..STRIPES).map(|_| OnceLock::new()).collect(),
            clock: Clock::new(),
            recorder: Recorder::installed(backend),
        }
    }

    fn stripe(&self) -> Option<&Stripe> {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        thread_local!(static THREAD: usize = NEXT.fetch_add(1, Relaxed));
        let stripe = THREAD.with(|thread| *thread).min(STRIPES - 1);
        self.stripes.get(stripe)?.get_or_init(|| Stripe::new(stripe == STRIPES - 1).map(Box::new)).as_deref()
    }

    fn stripes(&self) -> impl Iterator<Item = &Stripe> {
        self.stripes.iter().filter_map(|stripe| stripe.get()?.as_deref())
    }

    /// Counts a call that begins, and says for how many calls its time is to stand: 0 if it need not be taken.
    fn begin(&self) -> u64 {
        let Some(stripe) = self.stripe() else { return 0 };
        let number = stripe.calls.load(Relaxed);
        stripe.add(&stripe.calls, 1);
        if number < ALWAYS_TIMED {
            return 1;
        }
        // Multiples of the golden ratio are spread evenly over any regular pattern of calls (Knuth, The Art of
        // Computer Programming, 6.4).
        if number.wrapping_mul(0x9e37_79b9_7f4a_7c15) < u64::MAX / SAMPLE { SAMPLE } else { 0 }
    }

    /// Counts what a call brought.
    fn count<T: Outcome>(&self, call: &Call<'_>, result: &Result<T>) {
        let Some(stripe) = self.stripe() else { return };
        match call.operation {
            Operation::Transact => stripe.add(&stripe.transitions, 1),
            Operation::Scan | Operation::Count | Operation::Clear => stripe.add(&stripe.scans, 1),
            _ => {}
        }
        match result {
            Ok(outcome) => {
                let read = outcome.read();
                stripe.count(call, read);
                self.recorder.count(call, read);
            }
            Err(_) => self.failed(call.operation),
        }
        self.recorder.called(call.operation);
    }

    fn failed(&self, operation: Operation) {
        if let Some(stripe) = self.stripe() {
            stripe.add(&stripe.errors, 1);
        }
        self.recorder.failed(operation);
    }

    /// Takes the time of a call that is to stand for so many.
    fn time(&self, operation: Operation, begun: u64, weight: u64) {
        let nanos = self.clock.delta_as_nanos(begun, self.clock.raw());
        if let Some(stripe) = self.stripe() {
            let _ = stripe.latencies.add(nanos.min((1 << HISTOGRAM.1) - 1), weight);
        }
        self.recorder.timed(operation, nanos, weight);
    }
}

impl Stripe {
    fn new(is_shared: bool) -> Option<Self> {
        Some(Self {
            is_shared,
            calls: AtomicU64::new(0),
            transitions: AtomicU64::new(0),
            scans: AtomicU64::new(0),
            errors: AtomicU64::new(0),
            keys_put: AtomicU64::new(0),
            keys_deleted: AtomicU64::new(0),
            hits: AtomicU64::new(0),
            misses: AtomicU64::new(0),
            bytes_read: AtomicU64::new(0),
            bytes_written: AtomicU64::new(0),
            latencies: AtomicHistogram::new(HISTOGRAM.0, HISTOGRAM.1).ok()?,
        })
    }

    /// Adds to one of its counters. Where no other thread does, without the cost of an atomic addition.
    fn add(&self, counter: &AtomicU64, n: u64) {
        if n == 0 {
            return;
        }
        if self.is_shared {
            counter.fetch_add(n, Relaxed);
        } else {
            counter.store(counter.load(Relaxed).wrapping_add(n), Relaxed);
        }
    }

    fn count(&self, call: &Call<'_>, (hits, misses, bytes): (u64, u64, u64)) {
        self.add(&self.hits, hits);
        self.add(&self.misses, misses);
        self.add(&self.bytes_read, bytes);
        self.add(&self.keys_put, call.puts);
        self.add(&self.keys_deleted, call.deletes);
        self.add(&self.bytes_written, call.bytes);
    }
}

impl Recorder {
    fn installed(backend: &'static str) -> Self {
        let counters = |name: &'static str| {
            let counter = |operation: &Operation| metrics::counter!(name, "backend" => backend, "operation" => operation.name());
            Operation::ALL.iter().map(counter).collect()
        };
        let seconds = |operation: &Operation| {
            let labels = [("backend", backend), ("operation", operation.name())];
            metrics::histogram!("commonhold_call_seconds", &labels)
        };
        Self {
            calls: counters("commonhold_calls_total"),
            errors: counters("commonhold_errors_total"),
            seconds: Operation::ALL.iter().map(seconds).collect(),
            hits: metrics::counter!("commonhold_hits_total", "backend" => backend),
            misses: metrics::counter!("commonhold_misses_total", "backend" => backend),
            bytes_read: metrics::counter!("commonhold_read_bytes_total", "backend" => backend),
            bytes_written: metrics::counter!("commonhold_written_bytes_total", "backend" => backend),
        }
    }

    fn called(&self, operation: Operation) {
        if let Some(calls) = self.calls.get(operation as usize) {
            calls.increment(1);
        }
    }

    fn failed(&self, operation: Operation) {
        if let Some(errors) = self.errors.get(operation as usize) {
            errors.increment(1);
        }
    }

    fn timed(&self, operation: Operation, nanos: u64, weight: u64) {
        if let Some(seconds) = self.seconds.get(operation as usize) {
            seconds.record_many(nanos as f64 / 1e9, weight as usize);
        }
    }

    fn count(&self, call: &Call<'_>, (hits, misses, bytes): (u64, u64, u64)) {
        // Most of what is counted is zero most of the time.
        for (counter, n) in [
            (&self.hits, hits),
            (&self.misses, misses),
            (&self.bytes_read, bytes),
            (&self.bytes_written, call.bytes),
        ] {
            if n > 0 {
                counter.increment(n);
            }
        }
    }
}

impl Uniform for Metrics {
    fn once<'a, T: Outcome>(
        &'a self,
        call: Call<'a>,
        attempt: impl FnOnce() -> Answer<'a, T> + Send + 'a,
    ) -> Answer<'a, T> {
        let weight = self.begin();
        let begun = (weight > 0).then(|| self.clock.raw());
        match attempt() {
            Answer::Ready(result) => {
                self.count(&call, &result);
                if let Some(begun) = begun {
                    self.time(call.operation, begun, weight);
                }
                Answer::Ready(result)
            }
            Answer::Later(future) => {
                let begun = begun.unwrap_or_else(|| self.clock.raw());
                Answer::later(async move {
                    let result = future.await;
                    self.count(&call, &result);
                    self.time(call.operation, begun, 1);
                    result
                })
            }
        }
    }

    /// A scan counts when it begins, and takes as long as its first entry.
    fn stream<T: Send + 'static>(
        self: Arc<Self>,
        operation: Operation,
        backend: &'static str,
        stream: BoxStream<'static, Result<T>>,
    ) -> BoxStream<'static, Result<T>> {
        let call = Call { operation, backend, key: None, puts: 0, deletes: 0, bytes: 0 };
        self.begin();
        self.count(&call, &Ok(()));
        let mut first = Some(self.clock.raw());
        stream
            .inspect(move |item| {
                if let Some(begun) = first.take() {
                    self.time(operation, begun, 1);
                }
                if item.is_err() {
                    self.failed(operation);
                }
            })
            .boxed()
    }

    fn add_stats(&self, stats: &mut Stats) {
        let sum = |counter: fn(&Stripe) -> &AtomicU64| -> u64 {
            self.stripes().map(|stripe| counter(stripe).load(Relaxed)).sum()
        };
        stats.hits += sum(|stripe| &stripe.hits);
        stats.misses += sum(|stripe| &stripe.misses);
        stats.gets = stats.hits + stats.misses;
        stats.puts += sum(|stripe| &stripe.keys_put);
        stats.deletes += sum(|stripe| &stripe.keys_deleted);
        stats.transitions += sum(|stripe| &stripe.transitions);
        stats.scans += sum(|stripe| &stripe.scans);
        stats.errors += sum(|stripe| &stripe.errors);
        stats.bytes_read += sum(|stripe| &stripe.bytes_read);
        stats.bytes_written += sum(|stripe| &stripe.bytes_written);
        stats.latency = self.latency();
        stats.calls += sum(|stripe| &stripe.calls);
    }
}

impl Metrics {
    fn latency(&self) -> Latency {
        let Ok(mut all) = Histogram::new(HISTOGRAM.0, HISTOGRAM.1) else { return Latency::default() };
        for stripe in self.stripes() {
            if let Ok(sum) = all.checked_add(&stripe.latencies.load()) {
                all = sum;
            }
        }
        let count: u64 = all.iter().map(|bucket| bucket.count()).sum();
        let middle = |start: u64, end: u64| u128::from(start / 2 + end / 2);
        let sum: u128 =
            all.iter().map(|bucket| u128::from(bucket.count()) * middle(bucket.start(), bucket.end())).sum();
        let at = |quantile: f64| {
            let rank = ((count as f64 * quantile).ceil() as u64).max(1);
            let mut seen = 0;
            let bucket = all.iter().find(|bucket| {
                seen += bucket.count();
                seen >= rank
            });
            bucket.map_or(Duration::ZERO, |bucket| Duration::from_nanos(bucket.end()))
        };
        if count == 0 {
            return Latency::default();
        }
        Latency {
            count,
            mean: Duration::from_nanos((sum / u128::from(count)) as u64),
            p50: at(0.50),
            p99: at(0.99),
            max: at(1.0),
        }
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}
