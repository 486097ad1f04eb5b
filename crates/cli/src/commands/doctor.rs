//! `doctor`: is the store well, what can it do, how fast does it answer.

use std::{
    collections::HashSet,
    process,
    time::{Duration, Instant},
};

use clap::builder::styling::Style;
use commonhold::{Capabilities, Expiry, Health, Key, Result as StoreResult, Stats, Store, Timestamp};
use serde_json::{Map, Value, json};

use super::Context;
use crate::{
    failure::Result,
    output::{self, FAINT, GOOD, HEADING, WARNING, thousands},
    table::{self, Align, Columns},
};

/// How often each operation is tried.
const ROUNDS: usize = 20;

/// Clocks that are further apart are warned of.
const CLOCK_TOLERANCE: Duration = Duration::from_secs(1);

/// Check whether the store is well, what it can do, and how fast it answers
///
/// Puts, gets and deletes one key of its own a few times.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  commonhold doctor
  commonhold doctor --store disk:/var/lib/app --output json

Exits with 3 if the store cannot serve.")]
pub(crate) struct Args {}

pub(super) async fn run(context: &mut Context) -> Result<()> {
    let store = context.open().await?;
    // The first call may wait for a connection; what is asked then says nothing of the clock.
    store.health_check().await?;
    let asked = jiff::Timestamp::now();
    let mut health = store.health_check().await?;
    let answered = jiff::Timestamp::now();
    let clock = health.now.map(|now| clock_ahead(now, asked, answered));
    let latencies = latencies(&store).await?;
    let stats = store.stats().await?;
    let unsure = answered.duration_since(asked).unsigned_abs() / 2;
    let tolerance = CLOCK_TOLERANCE + unsure + store.capabilities().ttl_resolution * 2;
    health.warnings.extend(clock.and_then(|ahead| clock_warning(ahead, tolerance)));
    health.warnings.extend(memory_warning(&stats));
    let found = Found { name: store.backend().name(), health, clock, latencies, stats };
    if context.out.is_json() {
        return context.out.json(&found.json(store.capabilities()));
    }
    found.print(context, store.capabilities())
}

fn clock_warning(ahead_ms: i64, tolerance: Duration) -> Option<String> {
    let apart = Duration::from_millis(ahead_ms.unsigned_abs());
    let side = if ahead_ms > 0 { "ahead of" } else { "behind" };
    (apart > tolerance).then(|| {
        format!(
            "the store's clock is {} {side} the one here; entries expire by the store's, so what is timed here does \
             not fit: let NTP set both",
            output::duration(apart)
        )
    })
}

fn memory_warning(stats: &Stats) -> Option<String> {
    let (used, limit) = (stats.memory_bytes?, stats.memory_limit_bytes.filter(|limit| *limit > 0)?);
    (used >= limit - limit / 10).then(|| {
        let (used, limit) = (output::size(used), output::size(limit));
        format!(
            "the memory is nearly full, {used} of {limit}: soon nothing can be put, or entries are dropped"
        )
    })
}

struct Found {
    name: &'static str,
    health: Health,
    /// By how many milliseconds the clock of the store is ahead of the one here.
    clock: Option<i64>,
    latencies: [(&'static str, Vec<Duration>); 3],
    stats: Stats,
}

/// The store's clock against the middle of the round trip.
fn clock_ahead(store: Timestamp, asked: jiff::Timestamp, answered: jiff::Timestamp) -> i64 {
    store.as_millis() - (asked.as_millisecond() + answered.as_millisecond()) / 2
}

/// Puts, gets and deletes a key of its own, and times it.
async fn latencies(store: &Store) -> Result<[(&'static str, Vec<Duration>); 3]> {
    let key = Key::new(format!("commonhold/doctor/{}-{:08x}", process::id(), fastrand::u32(..)))?;
    // Should this be killed in between, the key expires by itself where it can.
    let expiry = Expiry::from(store.capabilities().ttl.then_some(Duration::from_secs(60)));
    let options = commonhold::PutOptions::default().expiry(expiry);
    let [mut puts, mut gets, mut deletes] = [const { Vec::new() }; 3];
    for _ in 0..ROUNDS {
        time(&mut puts, store.put_with(&key, "commonhold doctor", options.clone())).await?;
        time(&mut gets, store.get(&key)).await?;
        time(&mut deletes, store.delete(&key)).await?;
    }
    Ok([("put", puts), ("get", gets), ("delete", deletes)])
}

async fn time<T>(times: &mut Vec<Duration>, call: impl Future<Output = StoreResult<T>>) -> StoreResult<()> {
    let began = Instant::now();
    call.await?;
    times.push(began.elapsed());
    Ok(())
}

/// The shortest, the middle and the longest.
fn summary(times: &[Duration]) -> [Duration; 3] {
    let mut times = times.to_vec();
    times.sort_unstable();
    let at = |index: usize| times.get(index).copied().unwrap_or_default();
    [at(0), at(times.len() / 2), at(times.len().saturating_sub(1))]
}

/// Each capability: its name in JSON, what it means, and whether it is there.
fn capabilities(capabilities: Capabilities) -> [(&'static str, String, bool); 13] {
    let step = output::duration(capabilities.ttl_resolution);
    [
        ("ttl", format!("entries expire, in steps of {step}"), capabilities.ttl),
        ("scan", "list, count and clear by prefix".into(), capabilities.scan),
        ("ordered_scan", "lists are in order".into(), capabilities.ordered_scan),
        ("snapshot_scan", "lists show one moment".into(), capabilities.snapshot_scan),
        ("atomic_batch", "batches happen as a whole or not at all".into(), capabilities.atomic_batch),
        ("transactions", "transactions over several keys".into(), capabilities.transactions),
        ("watch", "changes can be watched".into(), capabilities.watch),
        ("publish", "messages between those who use it".into(), capabilities.publish),
        ("durable", "survives a crash of process and machine".into(), capabilities.durable),
        ("shared", "several processes at once".into(), capabilities.shared),
        ("compression", "values are compressed".into(), capabilities.compression),
        ("sql", "entries can be searched in SQL".into(), capabilities.sql),
        ("clustering", "entries can be spread over several servers".into(), capabilities.clustering),
    ]
}

impl Found {
    fn print(&self, context: &mut Context, can: Capabilities) -> Result<()> {
        let out = &mut context.out;
        let well = if self.health.warnings.is_empty() {
            (GOOD, "is well")
        } else {
            (WARNING, "serves, but see below")
        };
        let title = format!("{} {}", self.name, self.health.version);
        out.line(format!("{} {}", out.paint(HEADING, title.trim_end()), out.paint(well.0, well.1)))?;

        out.line("")?;
        for (_, what, can) in capabilities(can) {
            let (style, mark) =
                if can { (Style::new(), out.paint(GOOD, "✓")) } else { (FAINT, out.paint(FAINT, "✗")) };
            out.line(format!("  {mark} {}", out.paint(style, &what)))?;
        }
        out.line(format!("    values up to {}", output::size(can.max_value_bytes)))?;

        out.line("")?;
        let row = |(name, times): &(&str, Vec<Duration>)| {
            let [min, median, max] = summary(times).map(output::duration);
            vec![format!("  {name}"), min, median, max]
        };
        let columns = [
            ("  LATENCY", Align::Left),
            ("FASTEST", Align::Right),
            ("MEDIAN", Align::Right),
            ("SLOWEST", Align::Right),
        ];
        table::print(out, columns, &self.latencies.iter().map(row).collect::<Vec<_>>())?;

        out.line("")?;
        let mut columns = Columns::new([("", Align::Left), ("", Align::Left)]);
        let facts = self.facts();
        facts.iter().for_each(|(name, _)| columns.measure(&[format!("  {name}")]));
        for (name, value) in &facts {
            columns.print(out, &[(format!("  {name}"), FAINT), (value.clone(), Style::new())])?;
        }
        for warning in &self.health.warnings {
            out.line(format!("{} {warning}", out.paint(WARNING, "warning:")))?;
        }
        Ok(())
    }

    fn facts(&self) -> Vec<(String, String)> {
        let size = |name: &str, bytes: Option<u64>| bytes.map(|bytes| (name.to_owned(), output::size(bytes)));
        let limit = self.stats.memory_limit_bytes.filter(|limit| *limit > 0);
        let memory = self.stats.memory_bytes.map(|bytes| {
            let of = limit.map_or_else(String::new, |limit| format!(" of {}", output::size(limit)));
            ("memory".to_owned(), output::size(bytes) + &of)
        });
        let sizes = [memory, size("disk", self.stats.disk_bytes)];
        let clock = self.clock.map(|ahead| {
            let apart = output::duration(Duration::from_millis(ahead.unsigned_abs()));
            let text = match ahead {
                -1..=1 => "as here".to_owned(),
                2.. => format!("{apart} ahead of here"),
                _ => format!("{apart} behind here"),
            };
            ("clock".to_owned(), text)
        });
        let details = self.stats.details.iter().map(|(name, value)| ((*name).to_owned(), thousands(value)));
        let mut facts: Vec<_> = sizes.into_iter().flatten().chain(clock).collect();
        facts.extend(self.health.details.iter().map(|(name, value)| (name.replace('_', " "), value.clone())));
        facts.extend(details);
        // Several speak of the same: the first to say it counts.
        let mut told = HashSet::new();
        facts.retain(|(name, _)| told.insert(name.clone()));
        facts
    }

    fn json(&self, can: Capabilities) -> Value {
        let millis = |duration: Duration| duration.as_secs_f64() * 1e3;
        let latency = |(name, times): &(&'static str, Vec<Duration>)| {
            let [min, median, max] = summary(times).map(millis);
            ((*name).to_owned(), json!({ "min_ms": min, "median_ms": median, "max_ms": max }))
        };
        let can_all: Map<_, _> =
            capabilities(can).into_iter().map(|(name, _, can)| (name.to_owned(), can.into())).collect();
        json!({
            "store": self.name,
            "version": self.health.version,
            "warnings": self.health.warnings,
            "details": self.health.details.iter().cloned().collect::<std::collections::BTreeMap<_, _>>(),
            "clock_ahead_ms": self.clock,
            "capabilities": can_all,
            "ttl_resolution_ms": millis(can.ttl_resolution),
            "max_value_bytes": can.max_value_bytes,
            "latency": self.latencies.iter().map(latency).collect::<Map<_, _>>(),
            "memory_bytes": self.stats.memory_bytes,
            "memory_limit_bytes": self.stats.memory_limit_bytes,
            "disk_bytes": self.stats.disk_bytes,
            "stats": self.stats.details.iter().map(|(name, value)| ((*name).to_owned(), (*value).into())).collect::<Map<_, _>>(),
        })
    }
}
