//! Keyed windows over a stream of events, with state and position committed together.

mod aggregate;
mod assign;
mod number;
mod source;
mod spec;
mod time;
mod watermark;

pub use self::{
    aggregate::{Aggregate, Aggregates, Distinct, Plan, Quantiles, Sum, Values},
    assign::{Interval, Span, Windows},
    number::Number,
    source::{Chunk, Column, Event, FileSource, Input, MAX_KEY_BYTES, MAX_ROW_BYTES, Next, RowError, Source},
    spec::{Format, JobName, JobSpec},
    time::{TimeUnit, parse_epoch, parse_time},
    watermark::Watermark,
};
