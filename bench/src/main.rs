//! Benchmarks as ratios in one run: `cargo run --release -p commonhold-bench -- memory disk window`.

mod disk;
mod harness;
mod keys;
mod memory;

use clap::{Parser, ValueEnum};

#[derive(Parser)]
struct Arguments {
    /// What to measure; everything unless given.
    #[arg(value_enum)]
    what: Vec<What>,
    /// How many pairs of segments each ratio stands on.
    #[arg(long, default_value_t = 21)]
    pairs: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum What {
    Memory,
    Disk,
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments = Arguments::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let wanted = |what| arguments.what.is_empty() || arguments.what.contains(&what);
    if wanted(What::Memory) {
        memory::run(&runtime, arguments.pairs);
    }
    if wanted(What::Disk) {
        disk::run(&runtime, arguments.pairs)?;
    }
    Ok(())
}
