//! The `commonhold` command line.

mod args;
mod bytes;
mod commands;
mod config;
mod failure;
mod output;
mod table;

use std::{process::ExitCode, time::Duration};

use clap::Parser as _;

use crate::failure::{Exit, Failure};

#[cfg(feature = "jemalloc")]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    let cli = args::Cli::parse();
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => {
            return Failure::new(Exit::Unavailable, format!("cannot start threads: {error}")).report();
        }
    };
    let result = runtime.block_on(commands::run(cli));
    // A thread that still waits for standard input must not keep the process from ending.
    runtime.shutdown_timeout(Duration::from_secs(2));
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}
