//! Entries per second of a copy and of a scan, and how much more memory they take than the process had before.
//!
//! Each job is a process of its own, so that the memory of one is not that of another.

use std::{env, fs, process::Command, time::Instant};

use commonhold::{Key, Prefix, Result, Scan, Store, Write, copy::Copy};
use commonhold_testkit::servers::{
    shared::{self, postgres_url, redis_url},
    unique,
};
use futures_util::TryStreamExt as _;
use tokio::runtime::Runtime;

use crate::{
    harness::{per_second, rate},
    keys::value,
};

/// How a child process is told to be one: with the source and the target, `-` for a scan, and the number of entries.
pub(crate) const CHILD: &str = "copy-child";

pub(crate) fn run(entries: u64) -> std::io::Result<()> {
    println!("\n### Copies and scans of {} entries of 100 bytes\n", rate(entries as f64));
    println!("| what | entries /s | entries compared /s | memory on top |\n|---|---:|---:|---:|");
    let directory = tempfile::tempdir()?;
    let redis = with(redis_url(), &format!("prefix={}", unique("bench:")));
    let postgres = with(postgres_url(), &format!("table={}", unique("bench")));
    let disk = format!("disk:{}?durability=buffered", directory.path().join("copy").display());
    for (name, from, to) in [
        ("copy, memory to Redis", "memory:", redis.as_str()),
        ("copy, memory to PostgreSQL", "memory:", postgres.as_str()),
        ("copy, Redis to disk", redis.as_str(), disk.as_str()),
        ("scan, Redis", redis.as_str(), "-"),
        ("scan, PostgreSQL", postgres.as_str(), "-"),
        ("scan, disk", disk.as_str(), "-"),
    ] {
        let mut child = Command::new(env::current_exe()?);
        child.args([CHILD, from, to, &entries.to_string()]);
        child.env(shared::REDIS, redis_url()).env(shared::POSTGRES, postgres_url());
        let output = child.output()?;
        if !output.status.success() {
            eprintln!("{}", String::from_utf8_lossy(&output.stderr));
        }
        println!("| {name} | {} |", String::from_utf8_lossy(&output.stdout).trim());
    }
    Ok(())
}

fn with(url: &str, option: &str) -> String {
    format!("{url}{}{option}", if url.contains('?') { '&' } else { '?' })
}

/// Copies or scans, and prints its cells of the table.
pub(crate) fn child(runtime: &Runtime, from: &str, to: &str, entries: &str) -> Result<()> {
    let entries: u64 = entries.parse().unwrap_or_default();
    runtime.block_on(async {
        let source = commonhold::open(from).await?;
        if from == "memory:" {
            fill(&source, entries).await?;
        }
        let before = resident("VmRSS:");
        // The peak from here on.
        let _ = fs::write("/proc/self/clear_refs", "5");
        let begun = Instant::now();
        let (rates, found) = if to == "-" {
            let mut scan = source.scan(Scan::prefix(Prefix::ALL));
            let mut found = 0;
            while scan.try_next().await?.is_some() {
                found += 1;
            }
            (format!("{} | ", rate(per_second(found, begun.elapsed()))), found)
        } else {
            let target = commonhold::open(to).await?;
            let copy = Copy::new(&source, &target, Prefix::ALL, from)?;
            let copied = copy.run(copy.progress().await?, |_| ()).await?;
            let copied = per_second(copied.entries, begun.elapsed());
            let begun = Instant::now();
            let compared = copy.compare(|_| ()).await?;
            copy.forget().await?;
            (
                format!("{} | {}", rate(copied), rate(per_second(compared.same, begun.elapsed()))),
                compared.same,
            )
        };
        if found != entries {
            eprintln!("{found} entries are there instead of {entries}");
            std::process::exit(1);
        }
        println!("{rates} | {:.0} MiB", resident("VmHWM:") - before);
        Ok(())
    })
}

async fn fill(store: &Store, entries: u64) -> Result<()> {
    for first in (0..entries).step_by(10_000) {
        let numbers = first..entries.min(first + 10_000);
        let keys = numbers.filter_map(|number| Key::new(format!("bench:{number:09}")).ok());
        store.write_batch(keys.map(|key| Write::put(key, value())).collect()).await?;
    }
    Ok(())
}

/// A size of this process in MiB.
pub(crate) fn resident(name: &str) -> f64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    let kibibytes =
        line.and_then(|line| line.split_whitespace().next()).and_then(|word| word.parse::<f64>().ok());
    kibibytes.map_or(f64::NAN, |kibibytes| kibibytes / 1024.0)
}
