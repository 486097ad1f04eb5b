//! Keyed windows over a stream of events, with state and position committed together.
//!
//! A [job](run) reads events from a [source](Source) (CSV, JSON lines, or your own), folds them into
//! [windows](Windows) for each key, and keeps the windows in a [`Store`](commonhold_core::Store). The position in the
//! input is written in the same atomic batch as the windows that it accounts for: killed at any instant and run again
//! with the same input, each event counts once.
//!
//! # What it promises
//!
//! - **Exactly once**, for what lies in the store and in the file of late events. The position comes with a hash of
//!   everything before it; input that is not what it was is an error, input that has grown is gone on with.
//! - **Results are a function of the input**: of its events and their order, and of nothing else. Not of the clock,
//!   of where commits or kills fell, or of how much memory there was.
//! - **Memory is bounded** whatever the input: some megabytes for reading, [`RunOptions::cache_bytes`] for windows.
//! - **Integers are exact**, in sums too. Decimals are 64-bit floating point, added with compensation.
//! - **Hostile input is an error** that says where: a row, a file without line ends, damage in the store.
//!
//! # What it is not
//!
//! - It is no stream processor: one job runs in one place, on one core. Two runs of a job at once do no harm, but one
//!   of them fails.
//! - Results can be read at any time, but a window is only complete when the [`Watermark`] has passed its end.
//! - A store without [atomic batches](commonhold_core::Capabilities::atomic_batch) is refused.
//!
//! # Limits
//!
//! | what | limit |
//! |---|---|
//! | row | 1 MiB ([`MAX_ROW_BYTES`]) |
//! | event key | 512 bytes ([`MAX_KEY_BYTES`]), UTF-8 |
//! | job name | 64 bytes ([`JobName::MAX_LEN`]) |
//! | windows of one event | 1,000 ([`Windows::MAX_PER_EVENT`]) |
//! | size, slide, gap, lateness | ten years ([`Span::MAX`]) |
//! | time of an event | years 1700 to 2239 |
//! | integers | 64 bits and a sign; sums 128 bits |
//! | decimals | ±1e280 |
//! | quantiles | within 1 % ([`Quantiles`]) |
//! | distinct values | exact to 256, then a standard error of 1.6 % ([`Distinct`]) |
//!
//! # Example
//!
//! ```
//! # tokio::runtime::Runtime::new().unwrap().block_on(async {
//! use std::time::Duration;
//! use commonhold_core::{MemoryBackend, Store};
//! use commonhold_window::{Format, Input, JobName, JobSpec, JsonSink, RunOptions, Windows, results, run, write_results};
//!
//! let store = Store::new(MemoryBackend::new());
//! let job = JobName::new("requests")?;
//! let mut spec = JobSpec::new(Format::Csv, "at", Windows::tumbling(Duration::from_secs(60))?);
//! spec.aggregates.sum = vec!["tokens".into()];
//! let csv = "at,tokens\n2023-11-16 18:17:03,4808\n2023-11-16 18:17:04,3180\n";
//! run(&store, &job, &spec, vec![Input::reader("requests.csv", csv.as_bytes())], RunOptions::default()).await?;
//!
//! let mut json = Vec::new();
//! let windows = results(&store, &job).await?.expect("the job was just run");
//! write_results(windows, &mut JsonSink::new(&mut json)).await?;
//! assert_eq!(
//!     String::from_utf8_lossy(&json).trim_end(),
//!     r#"{"job":"requests","key":"","start":"2023-11-16T18:17:00Z","end":"2023-11-16T18:18:00Z","count":2,"sum":{"tokens":7988}}"#,
//! );
//! # Ok::<(), commonhold_core::Error>(())
//! # }).unwrap();
//! ```

mod aggregate;
mod assign;
mod fold;
mod late;
mod number;
mod reader;
mod record;
mod results;
mod run;
mod sink;
mod source;
mod spec;
mod time;
mod watermark;

pub use self::{
    aggregate::{Aggregate, Aggregates, Distinct, Plan, Quantiles, Sum, Values},
    assign::{Interval, Span, Windows},
    number::Number,
    results::{Fields, JobStatus, Percentiles, WindowResult, format_time, job_status, jobs, results},
    run::{OnError, Outcome, Progress, RunOptions, Summary, run, run_source},
    sink::{CsvSink, JsonSink, Sink, write_results},
    source::{Chunk, Column, Event, FileSource, Input, MAX_KEY_BYTES, MAX_ROW_BYTES, Next, RowError, Source},
    spec::{Format, JobName, JobSpec},
    time::{TimeUnit, parse_epoch, parse_time},
    watermark::Watermark,
};
