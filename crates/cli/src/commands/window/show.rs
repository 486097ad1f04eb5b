//! Prints jobs and their windows.

use clap::builder::styling::Style;
use commonhold::{
    Store, Timestamp,
    window::{
        CsvSink, JobName, JobSpec, JsonSink, WindowResult, format_time, job_status, jobs, results,
        write_results,
    },
};
use futures_util::TryStreamExt as _;

use crate::{
    bytes,
    commands::Context,
    failure::{Failure, Result},
    output::{self, BAR, FAINT, Format, GOOD, Output, WARNING, approximate, note, thousands},
    table::{Align, Columns},
};

const BAR_WIDTH: usize = 20;

/// `window list`
pub(super) async fn list(context: &mut Context) -> Result<()> {
    let store = context.open().await?;
    let jobs: Vec<_> = jobs(&store)?.try_collect().await?;
    let out = &mut context.out;
    match out.format {
        Format::Json => return jobs.iter().try_for_each(|job| out.json(job)),
        Format::Csv => return Err(Failure::usage("jobs are listed as table or json")),
        Format::Table => {}
    }
    if jobs.is_empty() {
        note("there are no jobs");
        return Ok(());
    }
    let numbers = ["EVENTS", "LATE", "SKIPPED", "WINDOWS"].map(|name| (name, Align::Right));
    let last = [("LATEST EVENT (UTC)", Align::Left)];
    let mut columns =
        Columns::new([("JOB", Align::Left), ("STATE", Align::Left)].into_iter().chain(numbers).chain(last));
    let row = |job: &commonhold::window::JobStatus| {
        let state = if job.finished { ("finished", GOOD) } else { ("unfinished", WARNING) };
        let [events, late, skipped, windows] =
            [job.events, job.late, job.skipped, job.windows].map(|number| (thousands(number), Style::new()));
        let latest = job.latest_event.map(shown_time).unwrap_or_default();
        let name = bytes::escape(job.job.as_str().as_bytes()).into_owned();
        [(name, Style::new()), (state.0.to_owned(), state.1), events, late, skipped, windows, (latest, FAINT)]
    };
    let rows: Vec<_> = jobs.iter().map(row).collect();
    rows.iter().for_each(|row| columns.measure(&row.each_ref().map(|(cell, _)| cell)));
    columns.print_headings(out)?;
    rows.iter().try_for_each(|row| columns.print(out, row))
}

/// `window show JOB`
pub(super) async fn show(context: &mut Context, job: &JobName) -> Result<()> {
    let store = context.open().await?;
    let Some(status) = job_status(&store, job).await? else {
        return Err(
            Failure::no(format!("no job: {job}")).help("`commonhold window list` shows those there are")
        );
    };
    windows(context, &store, job).await?;
    if !status.finished {
        context.out.flush()?;
        note("the job has not come to the end of its input; run it again to go on");
    }
    Ok(())
}

/// Prints the windows of a job.
pub(super) async fn windows(context: &mut Context, store: &Store, job: &JobName) -> Result<()> {
    let Some(JobSpecAndResults { spec, results }) = read(store, job).await? else { return Ok(()) };
    let out = &mut context.out;
    match out.format {
        Format::Json => write_results(results, &mut JsonSink::new(out.writer())).await?,
        Format::Csv => write_results(results, &mut CsvSink::new(out.writer(), &spec)?).await?,
        Format::Table => {
            let table = Table::measured(out, &spec, results).await?;
            // Read once more instead of held in memory.
            let Some(JobSpecAndResults { mut results, .. }) = read(store, job).await? else { return Ok(()) };
            table.columns.print_headings(out)?;
            while let Some(window) = results.try_next().await? {
                table.print(out, &window)?;
            }
            return Ok(());
        }
    };
    Ok(())
}

struct JobSpecAndResults {
    spec: JobSpec,
    results: futures_util::stream::BoxStream<'static, commonhold::Result<WindowResult>>,
}

async fn read(store: &Store, job: &JobName) -> Result<Option<JobSpecAndResults>> {
    let Some(status) = job_status(store, job).await? else { return Ok(None) };
    Ok(results(store, job).await?.map(|results| JobSpecAndResults { spec: status.spec, results }))
}

/// Windows as rows.
struct Table {
    columns: Columns,
    has_keys: bool,
    has_bar: bool,
    most: u64,
}

impl Table {
    async fn measured(
        out: &Output,
        spec: &JobSpec,
        mut results: futures_util::stream::BoxStream<'static, commonhold::Result<WindowResult>>,
    ) -> Result<Self> {
        let (has_keys, has_bar) = (!spec.keys.is_empty(), out.terminal);
        let mut headings = vec![("START (UTC)".to_owned(), Align::Left), ("END".to_owned(), Align::Left)];
        if has_keys {
            headings.push((spec.keys.join(","), Align::Left));
        }
        headings.push(("COUNT".to_owned(), Align::Right));
        if has_bar {
            headings.push((String::new(), Align::Left));
        }
        let aggregates = &spec.aggregates;
        for (kind, fields) in [
            ("SUM", &aggregates.sum),
            ("MIN", &aggregates.min),
            ("MAX", &aggregates.max),
            ("MEAN", &aggregates.mean),
        ] {
            headings.extend(fields.iter().map(|field| (format!("{kind} {field}"), Align::Right)));
        }
        for field in &aggregates.quantiles {
            headings
                .extend(["P50", "P95", "P99"].map(|quantile| (format!("{quantile} {field}"), Align::Right)));
        }
        headings.extend(aggregates.distinct.iter().map(|field| (format!("DISTINCT {field}"), Align::Right)));
        let mut table = Self { columns: Columns::new(headings), has_keys, has_bar, most: 0 };
        while let Some(window) = results.try_next().await? {
            table.most = table.most.max(window.count);
            let cells = table.cells(&window);
            table.columns.measure(&cells.iter().map(|(cell, _)| cell).collect::<Vec<_>>());
        }
        Ok(table)
    }

    fn print(&self, out: &mut Output, window: &WindowResult) -> Result<()> {
        let mut cells = self.cells(window);
        if self.has_bar {
            let bar = output::bar(window.count as f64, self.most as f64, BAR_WIDTH);
            if let Some(cell) = cells.iter_mut().find(|(_, style)| *style == BAR) {
                cell.0 = bar;
            }
        }
        self.columns.print(out, &cells)
    }

    /// The bar is as wide as it can become.
    fn cells(&self, window: &WindowResult) -> Vec<(String, Style)> {
        let plain = Style::new();
        let mut cells = vec![(shown_time(window.start), plain), (shown_time(window.end), FAINT)];
        if self.has_keys {
            cells.push((bytes::escape(window.key.as_bytes()).into_owned(), plain));
        }
        cells.push((thousands(window.count), plain));
        if self.has_bar {
            cells.push((" ".repeat(BAR_WIDTH), BAR));
        }
        for numbers in [&window.sum, &window.min, &window.max] {
            cells.extend(numbers.0.iter().map(|(_, number)| (thousands(number), plain)));
        }
        cells.extend(window.mean.0.iter().map(|(_, mean)| (decimal(*mean), plain)));
        for (_, of) in &window.quantiles.0 {
            cells.extend([of.p50, of.p95, of.p99].map(|quantile| (approximate(quantile), plain)));
        }
        cells.extend(window.distinct.0.iter().map(|(_, count)| (thousands(count), plain)));
        cells
    }
}

/// To two digits behind the point, which is as much as people compare.
fn decimal(number: f64) -> String {
    thousands(format!("{number:.2}"))
}

/// RFC 3339 without the letters.
fn shown_time(time: Timestamp) -> String {
    format_time(time).replace('T', " ").trim_end_matches('Z').to_owned()
}
