//! What jobs have come to: their status, and their windows by start and key.

use commonhold_core::{Error, ErrorKind, Key, Result, Scan, Store, Timestamp};
use futures_util::{StreamExt as _, TryStreamExt as _, stream, stream::BoxStream};
use serde::{Serialize, Serializer, ser::SerializeMap};

use crate::{
    aggregate::{Aggregate, Plan},
    number::Number,
    record::{JOBS, Keys, Record, decode_window},
    spec::{JobName, JobSpec},
};

/// A window and what is known about its events.
///
/// As JSON it is `{"job":"..","key":"..","start":"2023-11-16T18:17:00Z","end":"..","count":123,
/// "sum":{"ContextTokens":456}, ..}`, with `min`, `max`, `mean`, `quantiles` (`{"p50":..,"p95":..,"p99":..}` for each
/// field, within 1 %) and `distinct` (exact up to 256, then with a standard error of 1.6 %) where they were asked
/// for. Sums of integers have all their digits.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct WindowResult {
    /// The job.
    pub job: JobName,
    /// The event key: the key field's value; for several fields a row of CSV; empty without key fields.
    pub key: String,
    /// The first point in time that belongs to the window.
    #[serde(serialize_with = "serialize_time")]
    pub start: Timestamp,
    /// The first point in time after it. For a session, the gap after its last event.
    #[serde(serialize_with = "serialize_time")]
    pub end: Timestamp,
    /// How many events there were.
    pub count: u64,
    /// Sums by field.
    #[serde(skip_serializing_if = "Fields::is_empty")]
    pub sum: Fields<Number>,
    /// Least numbers by field.
    #[serde(skip_serializing_if = "Fields::is_empty")]
    pub min: Fields<Number>,
    /// Greatest numbers by field.
    #[serde(skip_serializing_if = "Fields::is_empty")]
    pub max: Fields<Number>,
    /// Means by field.
    #[serde(skip_serializing_if = "Fields::is_empty")]
    pub mean: Fields<f64>,
    /// Quantiles by field.
    #[serde(skip_serializing_if = "Fields::is_empty")]
    pub quantiles: Fields<Percentiles>,
    /// Numbers of different values by field.
    #[serde(skip_serializing_if = "Fields::is_empty")]
    pub distinct: Fields<u64>,
}

/// Values by the name of the field that they are about, in the order in which the job names them.
#[derive(Debug, Clone, PartialEq)]
pub struct Fields<T>(pub Vec<(String, T)>);

impl<T> Fields<T> {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The value for a field.
    pub fn get(&self, field: &str) -> Option<&T> {
        self.0.iter().find(|(name, _)| name == field).map(|(_, value)| value)
    }

    fn of(names: &[String], value: impl Fn(&str) -> Option<T>) -> Self {
        Self(names.iter().filter_map(|name| Some((name.clone(), value(name)?))).collect())
    }
}

impl<T: Serialize> Serialize for Fields<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (name, value) in &self.0 {
            map.serialize_entry(name, value)?;
        }
        map.end()
    }
}

/// The quantiles that results give, each within 1 %.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Percentiles {
    /// The median.
    pub p50: f64,
    /// 95 of 100 values are at most this.
    pub p95: f64,
    /// 99 of 100 values are at most this.
    pub p99: f64,
}

fn serialize_time<S: Serializer>(time: &Timestamp, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&format_time(*time))
}

/// RFC 3339 in UTC, with a fraction of a second only where there is one: `2023-11-16T18:17:00Z`.
pub fn format_time(time: Timestamp) -> String {
    jiff::Timestamp::from_nanosecond(i128::from(time.as_nanos()))
        .map_or_else(|_| String::new(), |time| time.to_string())
}

impl WindowResult {
    fn new(job: &JobName, spec: &JobSpec, plan: &Plan, window: Stored) -> Self {
        let Stored { key, start, end, aggregate } = window;
        let aggregates = &spec.aggregates;
        let percentiles = |field: &str| {
            let sketch = aggregate.quantiles(plan, field)?;
            let quantile = |q| sketch.quantile(q);
            Some(Percentiles { p50: quantile(0.5)?, p95: quantile(0.95)?, p99: quantile(0.99)? })
        };
        Self {
            job: job.clone(),
            key,
            start,
            end,
            count: aggregate.count(),
            sum: Fields::of(&aggregates.sum, |field| aggregate.sum(plan, field)),
            min: Fields::of(&aggregates.min, |field| aggregate.min(plan, field)),
            max: Fields::of(&aggregates.max, |field| aggregate.max(plan, field)),
            mean: Fields::of(&aggregates.mean, |field| aggregate.mean(plan, field)),
            quantiles: Fields::of(&aggregates.quantiles, percentiles),
            distinct: Fields::of(&aggregates.distinct, |field| aggregate.distinct(plan, field)),
        }
    }
}

/// A window as the store has it.
struct Stored {
    key: String,
    start: Timestamp,
    end: Timestamp,
    aggregate: Aggregate,
}

/// What a job does and how far it is.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct JobStatus {
    /// Its name.
    pub job: JobName,
    /// What it does.
    pub spec: JobSpec,
    /// Events so far, late ones among them.
    pub events: u64,
    /// Late events so far.
    pub late: u64,
    /// Skipped rows so far.
    pub skipped: u64,
    /// Windows so far.
    pub windows: u64,
    /// The time of the latest event.
    #[serde(serialize_with = "serialize_latest")]
    pub latest_event: Option<Timestamp>,
    /// Whether it has come to the end of its input.
    pub finished: bool,
}

fn serialize_latest<S: Serializer>(time: &Option<Timestamp>, serializer: S) -> Result<S::Ok, S::Error> {
    time.map(format_time).serialize(serializer)
}

impl JobStatus {
    fn new(record: Record) -> Result<Self> {
        let latest_event = record.latest_event();
        let Record { job, spec, events, late, skipped, windows, finished, .. } = record;
        let job =
            JobName::new(job).map_err(|error| Error::new(ErrorKind::Corrupt, error.message().to_owned()))?;
        Ok(Self { job, spec, events, late, skipped, windows, latest_event, finished })
    }
}

/// All jobs in a store; by name where the store scans in order.
pub fn jobs(store: &Store) -> Result<BoxStream<'static, Result<JobStatus>>> {
    let records = store.scan(Scan::prefix(JOBS.try_into()?));
    let status = |(key, entry): (Key, commonhold_core::Entry)| {
        Record::decode(&entry.value).and_then(JobStatus::new).map_err(|error| error.with_key(&key))
    };
    Ok(records.map(move |record| record.and_then(status)).boxed())
}

/// One job; `None` if there is none of this name.
pub async fn job_status(store: &Store, job: &JobName) -> Result<Option<JobStatus>> {
    Record::read(store, job).await?.map(|(record, _)| JobStatus::new(record)).transpose()
}

/// The most windows that are sorted in memory, for stores that do not scan in order.
const MAX_SORTED: usize = 1_000_000;

/// The windows of a job, by start and then key. `None` if there is no such job.
///
/// They come page by page, so memory does not grow with their number, if the store
/// [scans in order](commonhold_core::Capabilities::ordered_scan); otherwise up to a million are sorted in memory.
///
/// # Errors
/// `TooLarge` for more than a million windows in a store that does not scan in order. In the stream: `Corrupt` for
/// damaged bytes, and whatever keeps the store from answering.
pub async fn results(
    store: &Store,
    job: &JobName,
) -> Result<Option<BoxStream<'static, Result<WindowResult>>>> {
    let Some((Record { spec, generation, .. }, _)) = Record::read(store, job).await? else { return Ok(None) };
    let keys = Keys::new(job, generation)?;
    let mut entries = store.scan(Scan::prefix(keys.windows().clone()));
    if !store.capabilities().ordered_scan {
        let mut all: Vec<_> = entries.take(MAX_SORTED + 1).try_collect().await?;
        if all.len() > MAX_SORTED {
            return Err(Error::new(
                ErrorKind::TooLarge,
                format!(
                    "{} does not scan in order, and the job has over {MAX_SORTED} windows",
                    store.backend().name()
                ),
            ));
        }
        all.sort_by(|(a, _), (b, _)| a.cmp(b));
        entries = stream::iter(all.into_iter().map(Ok)).boxed();
    }
    let (job, plan) = (job.clone(), spec.plan());
    let result = move |entry: Result<(Key, commonhold_core::Entry)>| {
        let (stored_key, entry) = entry?;
        let (start, key) = keys.parse_window(&stored_key)?;
        let (end, aggregate) = decode_window(&entry.value, &plan, &stored_key)?;
        Ok(WindowResult::new(&job, &spec, &plan, Stored { key, start, end, aggregate }))
    };
    Ok(Some(entries.map(result).boxed()))
}
