//! Keyed windows over a stream of events, with state and position committed together.

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
