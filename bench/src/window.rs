//! Events per second that a window job folds from a CSV file into the disk store, and the memory it takes.
//!
//! Each run is a process of its own, bound to one core, so that neither the other core nor earlier benchmarks
//! flatter it.

use std::{
    env, fs,
    io::{BufWriter, Write as _},
    path::Path,
    process::Command,
    time::Duration,
};

use commonhold::{
    Result,
    window::{Format, Input, JobName, JobSpec, RunOptions, Windows, run as run_job},
};
use tokio::runtime::Runtime;

use crate::{copy::resident, harness::rate};

/// How a child process is told to be one: with the file and the number of keys, 0 for none.
pub(crate) const CHILD: &str = "window-child";

pub(crate) fn run(events: u64) -> std::io::Result<()> {
    println!(
        "\n### Windows: {} events from a CSV file, commits every 10,000, disk store, one core\n",
        rate(events as f64)
    );
    println!("| job | events /s | peak memory | file |\n|---|---:|---:|---:|");
    let directory = tempfile::tempdir()?;
    let csv = directory.path().join("events.csv");
    write_events(&csv, events)?;
    for (name, keys) in [("1-minute windows, two sums", "0"), ("the same, by key (10,000 keys)", "1")] {
        let store = directory.path().join(format!("store-{keys}"));
        let program = env::current_exe()?;
        let mut child = Command::new("taskset");
        child.args(["-c", "0"]).arg(program).arg(CHILD).arg(&csv).arg(&store).arg(keys);
        let output = child.output()?;
        let text = String::from_utf8_lossy(&output.stdout);
        let mut words = text.split_whitespace().map(|word| word.parse::<f64>().unwrap_or(f64::NAN));
        let (rate_found, memory) = (words.next().unwrap_or(f64::NAN), words.next().unwrap_or(f64::NAN));
        if !output.status.success() {
            eprintln!("{}", String::from_utf8_lossy(&output.stderr));
        }
        let megabytes = fs::metadata(&csv)?.len() as f64 / 1e6;
        println!("| {name} | {} | {memory:.0} MiB | {megabytes:.0} MB |", rate(rate_found));
    }
    Ok(())
}

/// Events of one busy day, about 45 bytes each.
fn write_events(path: &Path, events: u64) -> std::io::Result<()> {
    let mut file = BufWriter::new(fs::File::create(path)?);
    writeln!(file, "at,key,context,generated")?;
    let mut random = fastrand::Rng::with_seed(7);
    let nanos_each = 86_400_000_000_000 / events.max(1);
    for event in 0..events {
        let nanos = event * nanos_each;
        let (seconds, fraction) = (nanos / 1_000_000_000, nanos % 1_000_000_000 / 100);
        writeln!(
            file,
            "2023-11-16 {:02}:{:02}:{:02}.{fraction:07},k{:04},{},{}",
            seconds / 3600,
            seconds / 60 % 60,
            seconds % 60,
            random.u32(..10_000),
            random.u32(..8_000),
            random.u32(..300),
        )?;
    }
    file.flush()
}

/// Folds the file and prints events per second and the peak of its memory in MiB.
pub(crate) fn child(runtime: &Runtime, csv: &str, store: &str, keys: &str) -> Result<()> {
    let summary = runtime.block_on(async {
        let store = commonhold::open(&format!("disk:{store}")).await?;
        let mut spec = JobSpec::new(Format::Csv, "at", Windows::tumbling(Duration::from_secs(60))?);
        spec.aggregates.sum = vec!["context".into(), "generated".into()];
        if keys != "0" {
            spec.keys = vec!["key".into()];
        }
        let inputs = vec![Input::file(csv)?];
        run_job(&store, &JobName::new("bench")?, &spec, inputs, RunOptions::default()).await
    })?;
    println!("{} {}", summary.events_per_second(), resident("VmHWM:"));
    Ok(())
}
