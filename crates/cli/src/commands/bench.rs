//! `bench`: how fast the store is from here.

use std::{
    num::{NonZeroU32, NonZeroU64, NonZeroUsize},
    process,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicI64, Ordering},
    },
    time::{Duration, Instant},
};

use clap::ValueEnum;
use commonhold::{Key, Prefix, Store};
use hdrhistogram::Histogram;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;
use tokio::task::{JoinSet, consume_budget};

use super::{Context, interrupted, parse_duration};
use crate::{
    failure::{Exit, Failure, Result},
    output::{self, BAR, FAINT, HEADING, Output, thousands},
    table::{self, Align},
};

/// Under which the keys lie that are put here.
const PREFIX: &str = "commonhold/bench/";
/// How many entries are put or deleted in one batch before and after.
const BATCH: u32 = 1_000;
const PERCENTILES: [f64; 4] = [50.0, 90.0, 99.0, 99.9];

/// Measure throughput and latency of the store from here
///
/// Works on keys of its own under commonhold/bench/ and deletes them at the end, also after Ctrl-C. Killed
/// otherwise, it leaves them: `commonhold clear commonhold/bench/`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  commonhold bench
  commonhold bench --ops get,put --tasks 64 --duration 10s
  commonhold bench --store memory: --ops increment --requests 1000000 --output json")]
pub(crate) struct Args {
    /// What to measure, one after the other
    #[arg(long, value_enum, value_delimiter = ',', default_value = "put,get,mixed,increment")]
    ops: Vec<Op>,
    /// How many tasks call the store at the same time
    #[arg(long, value_name = "N", default_value = "16")]
    tasks: NonZeroUsize,
    /// Among how many keys the calls are spread
    #[arg(long, value_name = "N", default_value = "10000")]
    keys: NonZeroU32,
    /// The size of the values in bytes
    #[arg(long, value_name = "BYTES", default_value = "100")]
    value_size: usize,
    /// How long each is measured
    #[arg(long, default_value = "3s", value_parser = parse_duration)]
    duration: Duration,
    /// How many calls are measured, instead of for how long
    #[arg(long, value_name = "N", conflicts_with = "duration")]
    requests: Option<NonZeroU64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Op {
    /// Put a value under a random key
    Put,
    /// Get the value under a random key
    Get,
    /// Nine gets to one put
    Mixed,
    /// Add one to a random counter
    Increment,
}

pub(super) async fn run(context: &mut Context, args: Args) -> Result<()> {
    let store = context.open().await?;
    let bench = Arc::new(Bench::new(&store, &args)?);
    let measured = bench.all(&args).await;
    let cleaned = bench.clean_up().await;
    let (measured, stopped) = measured?;
    cleaned?;
    if context.out.is_json() {
        measured.iter().try_for_each(|measured| context.out.json(&measured.json(&args)))?;
    } else if !measured.is_empty() {
        print(&mut context.out, &measured)?;
    }
    context.out.flush()?;
    if stopped {
        return Err(Failure::new(Exit::Interrupted, "stopped; the keys of the measurement are deleted"));
    }
    Ok(())
}

/// What all tasks share.
#[derive(Debug)]
struct Bench {
    store: Store,
    prefix: Prefix,
    keys: Vec<Key>,
    counters: Vec<Key>,
    value: bytes::Bytes,
    stop: AtomicBool,
}

struct Measured {
    op: Op,
    latency: Histogram<u64>,
    elapsed: Duration,
}

impl Bench {
    fn new(store: &Store, args: &Args) -> Result<Self> {
        let prefix = Prefix::new(format!("{PREFIX}{}-{:08x}/", process::id(), fastrand::u32(..)))?;
        let keys = |kind| {
            (0..args.keys.get()).map(|i| prefix.join(format!("{kind}{i:08}"))).collect::<Result<_, _>>()
        };
        let limit = store.capabilities().max_value_bytes;
        if args.value_size as u64 > limit {
            return Err(Failure::usage(format!("--value-size: this store takes values up to {limit} bytes")));
        }
        let value = std::iter::repeat_with(|| fastrand::u8(..)).take(args.value_size).collect();
        let (keys, counters) = (keys("key")?, keys("counter")?);
        Ok(Self { store: store.clone(), prefix, keys, counters, value, stop: AtomicBool::new(false) })
    }

    /// Measures one operation after the other, and says whether Ctrl-C ended it.
    async fn all(self: &Arc<Self>, args: &Args) -> Result<(Vec<Measured>, bool)> {
        let bar = bar(args);
        let work = async {
            let mut measured = Vec::new();
            bar.set_message("filling");
            self.fill().await?;
            for &op in &args.ops {
                if self.stop.load(Ordering::Relaxed) {
                    break;
                }
                bar.set_message(op.name());
                measured.push(self.measure(op, args).await?);
                bar.inc(1);
            }
            Ok(measured)
        };
        tokio::pin!(work);
        let result = tokio::select! {
            biased;
            () = interrupted() => {
                // The tasks see it before their next call, so that nothing is put after the keys are deleted.
                self.stop.store(true, Ordering::Relaxed);
                work.as_mut().await.map(|measured| (measured, true))
            }
            result = &mut work => result.map(|measured| (measured, false)),
        };
        bar.finish_and_clear();
        result
    }

    /// So that every get finds something.
    async fn fill(&self) -> Result<()> {
        for keys in self.keys.chunks(BATCH as usize) {
            if self.stop.load(Ordering::Relaxed) {
                break;
            }
            self.store.batch_put(keys.iter().map(|key| (key, self.value.clone()))).await?;
        }
        Ok(())
    }

    async fn clean_up(&self) -> Result<()> {
        if self.store.capabilities().scan {
            self.store.clear(&self.prefix).await?;
            return Ok(());
        }
        for keys in self.keys.chunks(BATCH as usize).chain(self.counters.chunks(BATCH as usize)) {
            self.store.batch_delete(keys).await?;
        }
        Ok(())
    }

    async fn measure(self: &Arc<Self>, op: Op, args: &Args) -> Result<Measured> {
        let began = Instant::now();
        let until = if args.requests.is_some() { None } else { began.checked_add(args.duration) };
        let requests =
            args.requests.map_or(i64::MAX, |requests| i64::try_from(requests.get()).unwrap_or(i64::MAX));
        let left = Arc::new(AtomicI64::new(requests));
        let mut tasks = JoinSet::new();
        for _ in 0..args.tasks.get() {
            tasks.spawn(Arc::clone(self).one_task(op, until, Arc::clone(&left)));
        }
        let mut latency = histogram()?;
        while let Some(task) = tasks.join_next().await {
            let task = task.map_err(|error| Failure::new(Exit::Unavailable, error.to_string()))?;
            latency.add(task?).map_err(|error| Failure::new(Exit::Unavailable, error.to_string()))?;
        }
        Ok(Measured { op, latency, elapsed: began.elapsed() })
    }

    async fn one_task(
        self: Arc<Self>,
        op: Op,
        until: Option<Instant>,
        left: Arc<AtomicI64>,
    ) -> Result<Histogram<u64>> {
        let mut latency = histogram()?;
        let mut began = Instant::now();
        while until.is_none_or(|until| began < until)
            && left.fetch_sub(1, Ordering::Relaxed) > 0
            && !self.stop.load(Ordering::Relaxed)
        {
            self.call(op).await?;
            let ended = Instant::now();
            latency.saturating_record(u64::try_from((ended - began).as_nanos()).unwrap_or(u64::MAX));
            // A store in memory never waits: without this the tasks would run one after the other.
            consume_budget().await;
            began = Instant::now();
        }
        Ok(latency)
    }

    async fn call(&self, op: Op) -> Result<()> {
        let index = fastrand::usize(..self.keys.len());
        let (Some(key), Some(counter)) = (self.keys.get(index), self.counters.get(index)) else {
            return Ok(());
        };
        match op {
            Op::Mixed if fastrand::u8(..10) > 0 => drop(self.store.get(key).await?),
            Op::Put | Op::Mixed => self.store.put(key, self.value.clone()).await?,
            Op::Get => drop(self.store.get(key).await?),
            Op::Increment => drop(self.store.increment(counter, 1).await?),
        }
        Ok(())
    }
}

fn histogram() -> Result<Histogram<u64>> {
    // Nanoseconds up to a minute, to three digits.
    Histogram::new_with_max(60_000_000_000, 3)
        .map_err(|error| Failure::new(Exit::Unavailable, error.to_string()))
}

fn bar(args: &Args) -> ProgressBar {
    let style = ProgressStyle::with_template("{spinner} measuring {msg} ({pos} of {len} done, {elapsed})");
    let bar = ProgressBar::new(args.ops.len() as u64);
    if let Ok(style) = style {
        bar.set_style(style);
    }
    bar.enable_steady_tick(Duration::from_millis(100));
    bar
}

impl Op {
    fn name(self) -> &'static str {
        match self {
            Self::Put => "put",
            Self::Get => "get",
            Self::Mixed => "mixed",
            Self::Increment => "increment",
        }
    }
}

impl Measured {
    fn per_second(&self) -> f64 {
        self.latency.len() as f64 / self.elapsed.as_secs_f64()
    }

    fn json(&self, args: &Args) -> serde_json::Value {
        let micros = |percentile| self.latency.value_at_percentile(percentile) as f64 / 1e3;
        json!({
            "op": self.op.name(),
            "tasks": args.tasks,
            "keys": args.keys,
            "value_bytes": args.value_size,
            "calls": self.latency.len(),
            "seconds": self.elapsed.as_secs_f64(),
            "per_second": self.per_second(),
            "mean_us": self.latency.mean() / 1e3,
            "p50_us": micros(50.0),
            "p90_us": micros(90.0),
            "p99_us": micros(99.0),
            "p999_us": micros(99.9),
            "max_us": self.latency.max() as f64 / 1e3,
        })
    }
}

fn print(out: &mut Output, measured: &[Measured]) -> Result<()> {
    let nanos = |nanos: u64| output::duration(Duration::from_nanos(nanos));
    let row = |measured: &Measured| {
        let latency = &measured.latency;
        let mut row = vec![
            measured.op.name().to_owned(),
            thousands(latency.len()),
            thousands(measured.per_second().round()),
            nanos(latency.mean() as u64),
        ];
        row.extend(PERCENTILES.map(|percentile| nanos(latency.value_at_percentile(percentile))));
        row.push(nanos(latency.max()));
        row
    };
    let numbers = ["CALLS", "CALLS/S", "MEAN", "P50", "P90", "P99", "P99.9", "MAX"];
    let columns = [("OP", Align::Left)].into_iter().chain(numbers.map(|name| (name, Align::Right)));
    table::print(out, columns, &measured.iter().map(row).collect::<Vec<_>>())?;
    measured.iter().try_for_each(|measured| print_histogram(out, measured))
}

/// How many calls took how long, in steps of 1, 2 and 5.
fn print_histogram(out: &mut Output, measured: &Measured) -> Result<()> {
    let latency = &measured.latency;
    let mut buckets = Vec::new();
    let mut from = 0;
    for to in (0..11).flat_map(|power| [1, 2, 5].map(|step| step * 10_u64.pow(power))) {
        if to > latency.min() && from <= latency.max() {
            buckets.push((to, latency.count_between(from, to - 1)));
        }
        from = to;
    }
    let most = buckets.iter().map(|(_, count)| *count).max().unwrap_or_default();
    out.line("")?;
    out.line(out.paint(HEADING, measured.op.name()))?;
    for (to, count) in buckets {
        let bar = out.paint(BAR, &output::bar(count as f64, most as f64, 40));
        let to = format!("{:>9}", format!("< {}", output::duration(Duration::from_nanos(to))));
        out.line(format!("{}  {bar} {}", out.paint(FAINT, &to), thousands(count)))?;
    }
    Ok(())
}
