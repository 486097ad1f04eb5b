//! Benchmarks as ratios in one run: `cargo run --release -p commonhold-bench -- memory disk`.

mod breaker;
mod coordination;
mod copy;
mod disk;
mod faults;
mod harness;
mod keys;
mod limit;
mod memory;
mod postgres;
mod redis;
mod window;

use clap::{Parser, ValueEnum};

/// As the command line has it; it serves both sides of every ratio.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

#[derive(Parser)]
struct Arguments {
    /// What to measure; everything unless given.
    #[arg(value_enum)]
    what: Vec<What>,
    /// How many pairs of segments each ratio stands on.
    #[arg(long, default_value_t = 21)]
    pairs: usize,
    /// How many events a window job folds.
    #[arg(long, default_value_t = 10_000_000)]
    events: u64,
    /// How many entries are copied and scanned.
    #[arg(long, default_value_t = 1_000_000)]
    entries: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum What {
    Breaker,
    Coordination,
    Copy,
    Memory,
    Disk,
    Faults,
    Limit,
    Postgres,
    Redis,
    Window,
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    // As many threads as there are cores that may be used.
    let runtime = tokio::runtime::Runtime::new()?;
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    if let [window::CHILD, csv, store, keys] = words.as_slice() {
        return Ok(window::child(&runtime, csv, store, keys)?);
    }
    if let [copy::CHILD, from, to, entries] = words.as_slice() {
        return Ok(copy::child(&runtime, from, to, entries)?);
    }
    let arguments = Arguments::parse();
    let wanted = |what| arguments.what.is_empty() || arguments.what.contains(&what);
    if wanted(What::Memory) {
        memory::run(&runtime, arguments.pairs);
    }
    if wanted(What::Disk) {
        disk::run(&runtime, arguments.pairs)?;
    }
    if wanted(What::Postgres) {
        postgres::run(&runtime, arguments.pairs)?;
    }
    if wanted(What::Redis) {
        redis::run(&runtime, arguments.pairs)?;
    }
    if wanted(What::Limit) {
        limit::run(&runtime, arguments.pairs)?;
    }
    if wanted(What::Coordination) {
        coordination::run(&runtime, arguments.pairs)?;
    }
    if wanted(What::Breaker) {
        breaker::run(arguments.pairs)?;
    }
    if wanted(What::Faults) {
        faults::run(&runtime)?;
    }
    if wanted(What::Copy) {
        copy::run(arguments.entries)?;
    }
    if wanted(What::Window) {
        window::run(arguments.events)?;
    }
    Ok(())
}
