//! Two sides in short interleaved segments, and the ratio pair by pair.
//!
//! Small machines change their speed every few seconds. Segments that follow each other closely meet the same
//! speed, so the ratio of a pair holds where the figures of either side do not.

use std::{
    fmt,
    future::Future,
    time::{Duration, Instant},
};

use tokio::runtime::Runtime;

/// How a benchmark is run.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Plan {
    /// How many pairs of segments.
    pub(crate) pairs: usize,
    /// How many operations a segment does, over all its tasks.
    pub(crate) operations: u64,
    /// How many tasks share them.
    pub(crate) tasks: u64,
}

/// Operations per second of both sides, pair by pair.
#[derive(Debug)]
pub(crate) struct Comparison {
    name: String,
    ours: Vec<f64>,
    theirs: Vec<f64>,
}

/// Runs `ours` and `theirs` in turn, each beginning every other pair, after one pair to warm up.
pub(crate) fn compare(
    name: impl Into<String>,
    pairs: usize,
    mut ours: impl FnMut() -> f64,
    mut theirs: impl FnMut() -> f64,
) -> Comparison {
    let mut comparison = Comparison { name: name.into(), ours: Vec::new(), theirs: Vec::new() };
    for pair in 0..=pairs {
        let (our, their) = if pair % 2 == 0 {
            let our = ours();
            (our, theirs())
        } else {
            let their = theirs();
            (ours(), their)
        };
        if pair > 0 {
            comparison.ours.push(our);
            comparison.theirs.push(their);
        }
    }
    comparison
}

/// Runs one segment: spawns the tasks that `work` makes of a task's number and its share of the operations,
/// and waits for them. Returns operations per second.
pub(crate) fn segment<Fut>(runtime: &Runtime, plan: Plan, work: impl Fn(u64, u64) -> Fut) -> f64
where
    Fut: Future<Output = ()> + Send + 'static,
{
    let share = plan.operations / plan.tasks;
    let begun = Instant::now();
    runtime.block_on(async {
        let tasks: Vec<_> = (0..plan.tasks).map(|task| tokio::spawn(work(task, share))).collect();
        for task in tasks {
            if let Err(error) = task.await {
                eprintln!("a task failed: {error}");
            }
        }
    });
    per_second(share * plan.tasks, begun.elapsed())
}

/// Lets other tasks run now and then, as an application's own work between calls would.
pub(crate) async fn breathe(call: u64) {
    if call % 64 == 63 {
        tokio::task::yield_now().await;
    }
}

/// Operations per second.
pub(crate) fn per_second(operations: u64, elapsed: Duration) -> f64 {
    operations as f64 / elapsed.as_secs_f64()
}

impl Comparison {
    /// The heading of the table whose rows are comparisons.
    pub(crate) const HEADING: &str = "| what | ours /s | theirs /s | ratio: median (10th to 90th percentile) | pairs |\n|---|---:|---:|---:|---:|";

    /// The ratio of ours to theirs in the middle pair.
    pub(crate) fn ratio(&self) -> f64 {
        quantile(self.ratios(), 0.5)
    }

    /// How much longer ours takes for one operation, in nanoseconds, in the middle pair.
    pub(crate) fn extra_nanos(&self) -> f64 {
        let extra = self.ours.iter().zip(&self.theirs).map(|(ours, theirs)| 1e9 / ours - 1e9 / theirs);
        quantile(extra.collect(), 0.5)
    }

    fn ratios(&self) -> Vec<f64> {
        self.ours.iter().zip(&self.theirs).map(|(ours, theirs)| ours / theirs).collect()
    }
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ratios = self.ratios();
        write!(
            f,
            "| {} | {} | {} | **{:.2}** ({:.2} to {:.2}) | {} |",
            self.name,
            rate(quantile(self.ours.clone(), 0.5)),
            rate(quantile(self.theirs.clone(), 0.5)),
            self.ratio(),
            quantile(ratios.clone(), 0.1),
            quantile(ratios.clone(), 0.9),
            ratios.len(),
        )
    }
}

/// `1 task`, `64 tasks`.
pub(crate) fn tasks(tasks: u64) -> String {
    format!("{tasks} task{}", if tasks == 1 { "" } else { "s" })
}

/// A rate with three digits that count.
pub(crate) fn rate(rate: f64) -> String {
    match rate {
        rate if rate >= 1e6 => format!("{:.2}M", rate / 1e6),
        rate if rate >= 1e4 => format!("{:.0}k", rate / 1e3),
        rate => format!("{rate:.0}"),
    }
}

fn quantile(mut values: Vec<f64>, quantile: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    let index = (values.len().saturating_sub(1) as f64 * quantile).round() as usize;
    values.get(index).copied().unwrap_or(f64::NAN)
}
