//! Counts calls and measures how long they take.

use std::{
    cell::Cell,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use futures_util::{StreamExt as _, future::BoxFuture, stream::BoxStream};
use histogram::{AtomicHistogram, Histogram};
use quanta::Clock;

use super::{Call, Operation, Outcome, Uniform};
use crate::{
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
/// Threads count in separate places, so that they do not slow each other down.
pub struct Metrics {
    stripes: Box<[Stripe]>,
    clock: Clock,
    /// Nothing where no recorder was installed, so that nothing is paid for.
    recorder: Option<Recorder>,
}

/// What one thread, or a few, have counted. Aligned so that no two stripes share a cache line.
#[repr(align(128))]
struct Stripe {
    calls: [AtomicU64; OPERATIONS],
    errors: AtomicU64,
    keys_put: AtomicU64,
    keys_deleted: AtomicU64,
    hits: AtomicU64,
    misses: AtomicU64,
    bytes_read: AtomicU64,
    bytes_written: AtomicU64,
    nanos: AtomicU64,
    latencies: AtomicHistogram,
}

const OPERATIONS: usize = Operation::ALL.len();

/// Buckets as wide as 1/32 of their value, up to 2^40 ns, about 18 minutes.
const HISTOGRAM: (u8, u8) = (5, 40);

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
        let threads = std::thread::available_parallelism().map_or(4, usize::from);
        let stripes = (2 * threads).next_power_of_two().min(64);
        Self {
            stripes: (0..stripes).filter_map(|_| Stripe::new()).collect(),
            clock: Clock::new(),
            recorder: Recorder::installed(backend),
        }
    }

    fn stripe(&self) -> Option<&Stripe> {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        thread_local!(static STRIPE: Cell<usize> = Cell::new(NEXT.fetch_add(1, Relaxed)));
        // Their number is a power of two.
        self.stripes.get(STRIPE.get() & self.stripes.len().wrapping_sub(1))
    }

    fn record<T: Outcome>(&self, call: &Call<'_>, begun: u64, result: &Result<T>) {
        let nanos = self.clock.delta_as_nanos(begun, self.clock.raw());
        let Some(stripe) = self.stripe() else { return };
        if let Some(calls) = stripe.calls.get(call.operation as usize) {
            calls.fetch_add(1, Relaxed);
        }
        stripe.nanos.fetch_add(nanos, Relaxed);
        let _ = stripe.latencies.increment(nanos.min((1 << HISTOGRAM.1) - 1));
        match result {
            Ok(outcome) => {
                let read = outcome.read();
                stripe.count(call, read);
                if let Some(recorder) = &self.recorder {
                    recorder.count(call, read);
                }
            }
            Err(_) => add(&stripe.errors, 1),
        }
        if let Some(recorder) = &self.recorder {
            recorder.called(call.operation, nanos, result.is_err());
        }
    }
}

impl Stripe {
    fn new() -> Option<Self> {
        Some(Self {
            calls: [const { AtomicU64::new(0) }; OPERATIONS],
            errors: AtomicU64::new(0),
            keys_put: AtomicU64::new(0),
            keys_deleted: AtomicU64::new(0),
            hits: AtomicU64::new(0),
            misses: AtomicU64::new(0),
            bytes_read: AtomicU64::new(0),
            bytes_written: AtomicU64::new(0),
            nanos: AtomicU64::new(0),
            latencies: AtomicHistogram::new(HISTOGRAM.0, HISTOGRAM.1).ok()?,
        })
    }

    fn count(&self, call: &Call<'_>, (hits, misses, bytes): (u64, u64, u64)) {
        add(&self.hits, hits);
        add(&self.misses, misses);
        add(&self.bytes_read, bytes);
        add(&self.keys_put, call.puts);
        add(&self.keys_deleted, call.deletes);
        add(&self.bytes_written, call.bytes);
    }
}

/// Most of what is counted is zero most of the time, and a test is cheaper than an atomic addition.
fn add(counter: &AtomicU64, n: u64) {
    if n > 0 {
        counter.fetch_add(n, Relaxed);
    }
}

impl Recorder {
    fn installed(backend: &'static str) -> Option<Self> {
        // A probe tells whether a recorder is there: without one, handles lead nowhere.
        let installed = metrics::with_recorder(|recorder| {
            let key = metrics::Key::from_static_name("commonhold_calls_total");
            let metadata = metrics::Metadata::new(module_path!(), metrics::Level::INFO, Some(module_path!()));
            let handle = recorder.register_counter(&key, &metadata);
            format!("{handle:?}") != format!("{:?}", metrics::Counter::noop())
        });
        installed.then(|| {
            let each = |make: fn(&'static str, &'static str) -> _| {
                Operation::ALL.iter().map(|operation| make(backend, operation.name())).collect()
            };
            Self {
                calls: each(|backend, operation| {
                    metrics::counter!("commonhold_calls_total", "backend" => backend, "operation" => operation)
                }),
                errors: each(|backend, operation| {
                    metrics::counter!("commonhold_errors_total", "backend" => backend, "operation" => operation)
                }),
                seconds: Operation::ALL
                    .iter()
                    .map(|operation| {
                        metrics::histogram!("commonhold_call_seconds", "backend" => backend, "operation" => operation.name())
                    })
                    .collect(),
                hits: metrics::counter!("commonhold_hits_total", "backend" => backend),
                misses: metrics::counter!("commonhold_misses_total", "backend" => backend),
                bytes_read: metrics::counter!("commonhold_read_bytes_total", "backend" => backend),
                bytes_written: metrics::counter!("commonhold_written_bytes_total", "backend" => backend),
            }
        })
    }

    fn called(&self, operation: Operation, nanos: u64, failed: bool) {
        let number = operation as usize;
        if let Some(calls) = self.calls.get(number) {
            calls.increment(1);
        }
        if let (true, Some(errors)) = (failed, self.errors.get(number)) {
            errors.increment(1);
        }
        if let Some(seconds) = self.seconds.get(number) {
            seconds.record(nanos as f64 / 1e9);
        }
    }

    fn count(&self, call: &Call<'_>, (hits, misses, bytes): (u64, u64, u64)) {
        self.hits.increment(hits);
        self.misses.increment(misses);
        self.bytes_read.increment(bytes);
        self.bytes_written.increment(call.bytes);
    }
}

impl Uniform for Metrics {
    async fn once<'a, T: Outcome>(&'a self, call: Call<'a>, attempt: BoxFuture<'a, Result<T>>) -> Result<T> {
        let begun = self.clock.raw();
        let result = attempt.await;
        self.record(&call, begun, &result);
        result
    }

    /// A scan counts when it begins; what it reads counts as bytes.
    fn stream<T: Send + 'static>(
        self: Arc<Self>,
        operation: Operation,
        backend: &'static str,
        stream: BoxStream<'static, Result<T>>,
    ) -> BoxStream<'static, Result<T>> {
        let call = Call { operation, backend, key: None, puts: 0, deletes: 0, bytes: 0 };
        let mut first = Some(self.clock.raw());
        stream
            .inspect(move |item| {
                let result = item.as_ref().map(|_| ()).map_err(|error| crate::Error::new(error.kind(), ""));
                if let Some(begun) = first.take() {
                    self.record(&call, begun, &result);
                } else if result.is_err()
                    && let Some(stripe) = self.stripe()
                {
                    add(&stripe.errors, 1);
                }
            })
            .boxed()
    }

    fn add_stats(&self, stats: &mut Stats) {
        let sum = |counter: fn(&Stripe) -> &AtomicU64| -> u64 {
            self.stripes.iter().map(|stripe| counter(stripe).load(Relaxed)).sum()
        };
        let calls = |operation: Operation| -> u64 {
            let of = |stripe: &Stripe| Some(stripe.calls.get(operation as usize)?.load(Relaxed));
            self.stripes.iter().filter_map(of).sum()
        };
        let all: u64 = Operation::ALL.into_iter().map(calls).sum();
        stats.hits += sum(|stripe| &stripe.hits);
        stats.misses += sum(|stripe| &stripe.misses);
        stats.gets = stats.hits + stats.misses;
        stats.puts += sum(|stripe| &stripe.keys_put);
        stats.deletes += sum(|stripe| &stripe.keys_deleted);
        stats.transitions += calls(Operation::Transact);
        stats.scans += calls(Operation::Scan) + calls(Operation::Count) + calls(Operation::Clear);
        stats.errors += sum(|stripe| &stripe.errors);
        stats.bytes_read += sum(|stripe| &stripe.bytes_read);
        stats.bytes_written += sum(|stripe| &stripe.bytes_written);
        stats.calls += all;
        stats.latency = self.latency(sum(|stripe| &stripe.nanos));
    }
}

impl Metrics {
    fn latency(&self, nanos: u64) -> Latency {
        let Ok(mut all) = Histogram::new(HISTOGRAM.0, HISTOGRAM.1) else { return Latency::default() };
        for stripe in &self.stripes {
            if let Ok(sum) = all.checked_add(&stripe.latencies.load()) {
                all = sum;
            }
        }
        let count: u64 = all.iter().map(|bucket| bucket.count()).sum();
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
            mean: Duration::from_nanos(nanos / count),
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
