//! Where results go: a trait, and the two forms that programs read.

use std::io::{self, Write};

use commonhold_core::{Error, ErrorKind, Result};
use futures_util::{Stream, StreamExt as _, pin_mut};

use crate::{
    results::{WindowResult, format_time},
    spec::JobSpec,
};

/// Takes windows, one after the other.
pub trait Sink {
    /// Takes a window.
    ///
    /// # Errors
    /// Whatever keeps it from taking it.
    fn window(&mut self, window: &WindowResult) -> io::Result<()>;

    /// Takes note that there are no more.
    ///
    /// # Errors
    /// Whatever keeps it from completing what it has taken.
    fn finish(&mut self) -> io::Result<()>;
}

/// Gives windows to a sink and says how many there were.
///
/// # Errors
/// Those of the stream; `Unavailable` if the sink fails, with its error as source.
pub async fn write_results(
    results: impl Stream<Item = Result<WindowResult>>,
    sink: &mut impl Sink,
) -> Result<u64> {
    let failed = |error: io::Error| {
        Error::new(ErrorKind::Unavailable, format!("results cannot be written: {error}")).with_source(error)
    };
    pin_mut!(results);
    let mut windows = 0;
    while let Some(window) = results.next().await {
        sink.window(&window?).map_err(failed)?;
        windows += 1;
    }
    sink.finish().map_err(failed)?;
    Ok(windows)
}

/// One JSON object a line, as [`WindowResult`] says.
#[derive(Debug)]
pub struct JsonSink<W>(W);

impl<W: Write> JsonSink<W> {
    /// Writes to `out`, which should be buffered.
    pub fn new(out: W) -> Self {
        Self(out)
    }
}

impl<W: Write> Sink for JsonSink<W> {
    fn window(&mut self, window: &WindowResult) -> io::Result<()> {
        serde_json::to_writer(&mut self.0, window)?;
        self.0.write_all(b"\n")
    }

    fn finish(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// Comma-separated values with a header: `job,key,start,end,count,sum_F,..,min_F,..,max_F,..,mean_F,..,p50_F,p95_F,
/// p99_F,..,distinct_F,..` for the fields `F` of the job.
#[derive(Debug)]
pub struct CsvSink<W: Write>(csv::Writer<W>);

impl<W: Write> CsvSink<W> {
    /// Writes the header to `out`.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn new(out: W, spec: &JobSpec) -> io::Result<Self> {
        let mut csv = csv::Writer::from_writer(out);
        csv.write_record(csv_header(spec))?;
        Ok(Self(csv))
    }
}

impl<W: Write> Sink for CsvSink<W> {
    fn window(&mut self, window: &WindowResult) -> io::Result<()> {
        let WindowResult { job, key, start, end, count, sum, min, max, mean, quantiles, distinct } = window;
        let mut row =
            vec![job.to_string(), key.clone(), format_time(*start), format_time(*end), count.to_string()];
        for numbers in [sum, min, max] {
            row.extend(numbers.0.iter().map(|(_, number)| number.to_string()));
        }
        row.extend(mean.0.iter().map(|(_, mean)| mean.to_string()));
        for (_, of) in &quantiles.0 {
            row.extend([of.p50, of.p95, of.p99].map(|quantile| quantile.to_string()));
        }
        row.extend(distinct.0.iter().map(|(_, count)| count.to_string()));
        Ok(self.0.write_record(row)?)
    }

    fn finish(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

fn csv_header(spec: &JobSpec) -> Vec<String> {
    let aggregates = &spec.aggregates;
    let mut header: Vec<String> = ["job", "key", "start", "end", "count"].map(str::to_owned).into();
    for (kind, fields) in [
        ("sum", &aggregates.sum),
        ("min", &aggregates.min),
        ("max", &aggregates.max),
        ("mean", &aggregates.mean),
    ] {
        header.extend(fields.iter().map(|field| format!("{kind}_{field}")));
    }
    for field in &aggregates.quantiles {
        header.extend(["p50", "p95", "p99"].map(|quantile| format!("{quantile}_{field}")));
    }
    header.extend(aggregates.distinct.iter().map(|field| format!("distinct_{field}")));
    header
}
