//! `window`: folds a stream of events into keyed windows that the store keeps.

mod fold;
mod show;

use std::{num::NonZeroUsize, path::PathBuf, time::Duration};

use clap::ValueEnum;
use commonhold::window::{self, JobName};

use super::{Context, parse_duration, parse_duration_or_none};
use crate::failure::Result;

/// Fold a stream of events into keyed windows, each event counted once
///
/// Windows and the position in the input are committed together: stopped or killed at any instant, the same command
/// goes on where it was, and the result is that of one run. Finished input is not counted twice. Events are read
/// from files in the order given, or from standard input (`-`), as CSV with a header or as JSON lines.
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
#[command(after_help = "\
Examples:
  commonhold window trace.csv --time TIMESTAMP --size 1m --sum ContextTokens --sum GeneratedTokens
  commonhold window day1.csv day2.csv --time at --key user --session 30m --job visits
  commonhold window requests.jsonl --time at --time-unit ms --key host --size 1h --slide 10m \\
      --lateness 30s --late late.jsonl --quantiles latency --distinct client --output csv
  zcat trace.csv.gz | commonhold window - --format csv --time TIMESTAMP --size 1m --job trace
  commonhold window list
  commonhold window show trace --output json

A file called like a command is named ./list or ./show. Exits with 2 at a row that is no event,
naming file, line, column and value; what came before it is kept.")]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    fold: Fold,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    List(List),
    Show(Show),
}

/// List the jobs whose windows the store has
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  commonhold window list
  commonhold window list --output json")]
struct List {}

/// Print the windows of a job again
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  commonhold window show trace
  commonhold window show trace --output csv > trace-windows.csv

Exits with 1 if there is no such job.")]
struct Show {
    /// The job's name, as `window list` prints it
    job: String,
}

#[derive(Debug, clap::Args)]
struct Fold {
    /// Files with events, one after the other; `-` is standard input
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// The field that says when an event happened: RFC 3339, `2023-11-16 18:17:03.9799600` (UTC), or a number with
    /// --time-unit
    #[arg(long, value_name = "FIELD", required = true)]
    time: Option<String>,
    /// The unit of times that are numbers since 1970
    #[arg(long, value_name = "UNIT")]
    time_unit: Option<TimeUnit>,
    /// How events are written down; by the extension of the file unless given
    #[arg(long, value_name = "FORMAT")]
    format: Option<Format>,
    /// A field whose values have windows of their own; give it again for further fields
    #[arg(long = "key", value_name = "FIELD")]
    keys: Vec<String>,
    #[command(flatten)]
    windows: Windows,
    /// Begin a window of --size every so often, so that windows overlap
    #[arg(long, value_name = "DURATION", value_parser = parse_duration, requires = "size", conflicts_with = "session")]
    slide: Option<Duration>,
    /// How long to wait for events that are out of order, in time of the events: 0s unless given
    #[arg(long, value_name = "DURATION", value_parser = parse_duration_or_none)]
    lateness: Option<Duration>,
    /// Write events that come later than that to this file
    #[arg(long, value_name = "FILE")]
    late: Option<PathBuf>,
    /// What to do about a row that is no event
    #[arg(long, value_name = "WHAT", default_value = "stop")]
    on_error: OnError,
    /// Forget what the job has done and begin anew
    #[arg(long)]
    restart: bool,
    /// The name of the job; that of the first file unless given
    #[arg(long, value_name = "NAME")]
    job: Option<String>,
    /// After how many events windows and position are committed
    #[arg(long, value_name = "N", default_value = "10000")]
    commit_every: NonZeroUsize,
    #[command(flatten)]
    aggregates: Aggregates,
}

#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
struct Windows {
    /// Windows of this size, one after the other
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    size: Option<Duration>,
    /// Windows that last until there is no event for this long
    #[arg(long, value_name = "GAP", value_parser = parse_duration)]
    session: Option<Duration>,
}

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Aggregates, beside the count of events (each can be given again)")]
struct Aggregates {
    /// The sum of a field; exact for whole numbers
    #[arg(long, value_name = "FIELD")]
    sum: Vec<String>,
    /// The least number in a field
    #[arg(long, value_name = "FIELD")]
    min: Vec<String>,
    /// The greatest number in a field
    #[arg(long, value_name = "FIELD")]
    max: Vec<String>,
    /// The mean of a field
    #[arg(long, value_name = "FIELD")]
    mean: Vec<String>,
    /// The median, p95 and p99 of a field, each within 1 %
    #[arg(long, value_name = "FIELD")]
    quantiles: Vec<String>,
    /// The number of different values of a field: exact up to 256, beyond with a standard error of 1.6 %
    #[arg(long, value_name = "FIELD")]
    distinct: Vec<String>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Format {
    /// Comma-separated values with a header
    Csv,
    /// One JSON object a line
    Jsonl,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum TimeUnit {
    /// Seconds
    S,
    /// Milliseconds
    Ms,
    /// Microseconds
    Us,
    /// Nanoseconds
    Ns,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum OnError {
    /// Stop there
    Stop,
    /// Count it, report it and go on
    Skip,
}

pub(super) async fn run(context: &mut Context, args: Args) -> Result<()> {
    match args.command {
        None => fold::run(context, args.fold).await,
        Some(Command::List(_)) => show::list(context).await,
        Some(Command::Show(Show { job })) => show::show(context, &JobName::new(job)?).await,
    }
}

impl From<Format> for window::Format {
    fn from(format: Format) -> Self {
        match format {
            Format::Csv => Self::Csv,
            Format::Jsonl => Self::Jsonl,
        }
    }
}

impl From<TimeUnit> for window::TimeUnit {
    fn from(unit: TimeUnit) -> Self {
        match unit {
            TimeUnit::S => Self::S,
            TimeUnit::Ms => Self::Ms,
            TimeUnit::Us => Self::Us,
            TimeUnit::Ns => Self::Ns,
        }
    }
}

impl From<OnError> for window::OnError {
    fn from(what: OnError) -> Self {
        match what {
            OnError::Stop => Self::Stop,
            OnError::Skip => Self::Skip,
        }
    }
}
