//! Running a job: events in, windows into the store, each event counted once.

use std::{
    fmt,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use bytes::Bytes;
use commonhold_core::{Condition, Error, ErrorKind, PutOptions, Result, Store, Write};
use tokio::sync::watch;

use crate::{
    fold::{Counts, Folder, MAX_CHUNK_WINDOWS},
    late::LateFile,
    reader::{Batch, Reader},
    record::{Keys, Record, job_key},
    source::{FileSource, Input, RowError, Source},
    spec::{JobName, JobSpec},
};

/// How a job is run. What it does to its events is in its [`JobSpec`].
pub struct RunOptions {
    /// Forget what the job has done and begin anew.
    pub restart: bool,
    /// After how many rows state and position are committed, at least 1; rounded up to whole chunks of at most
    /// 1,000. 10,000 unless changed.
    pub commit_every: usize,
    /// Bytes of memory for windows that are worked on. 8 MiB unless changed. Others are read from the store again.
    pub cache_bytes: usize,
    /// What to do about a row that is no event.
    pub on_error: OnError,
    /// Where rows of late events go. Belongs to the job: it cannot change from run to run.
    pub late_file: Option<PathBuf>,
    /// When this becomes true, the run commits what it has folded and returns.
    pub stop: Option<watch::Receiver<bool>>,
    /// Is told how far the run is, after every chunk of at most 1,000 rows.
    pub progress: Option<Box<dyn FnMut(Progress) + Send>>,
}

impl Default for RunOptions {
    fn default() -> Self {
        Self {
            restart: false,
            commit_every: 10_000,
            cache_bytes: 8 * 1024 * 1024,
            on_error: OnError::Stop,
            late_file: None,
            stop: None,
            progress: None,
        }
    }
}

impl fmt::Debug for RunOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RunOptions")
            .field("restart", &self.restart)
            .field("commit_every", &self.commit_every)
            .field("cache_bytes", &self.cache_bytes)
            .field("on_error", &self.on_error)
            .field("late_file", &self.late_file)
            .finish_non_exhaustive()
    }
}

/// What to do about a row that is no event.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum OnError {
    /// Commit what came before it and fail. The next run begins with that row.
    #[default]
    Stop,
    /// Count it and go on.
    Skip,
}

/// How far a run is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Progress {
    /// Events of the job so far, late ones among them.
    pub events: u64,
    /// Bytes of the input so far.
    pub bytes: u64,
    /// Late events so far.
    pub late: u64,
    /// Skipped rows so far.
    pub skipped: u64,
    /// Windows so far.
    pub windows: u64,
}

/// What a run came to. Counts are those of the job, from its beginning.
#[derive(Debug, Clone, PartialEq)]
pub struct Summary {
    /// Events, late ones among them.
    pub events: u64,
    /// Events that came too late for all of their windows.
    pub late: u64,
    /// Rows that were no events.
    pub skipped: u64,
    /// Windows.
    pub windows: u64,
    /// The first rows that this run skipped, at most ten.
    pub skipped_rows: Vec<RowError>,
    /// Events that this run began with; zero if it began at the beginning.
    pub resumed_from: u64,
    /// How long this run took.
    pub elapsed: Duration,
    /// How it ended.
    pub outcome: Outcome,
}

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// At the end of the input.
    Finished,
    /// At the end of the input, where an earlier run had come to already; nothing was done.
    AlreadyFinished,
    /// Because it was told to; the next run goes on from there.
    Stopped,
}

impl Summary {
    /// Events that this run folded.
    pub fn new_events(&self) -> u64 {
        self.events.saturating_sub(self.resumed_from)
    }

    /// Events that this run folded in a second.
    pub fn events_per_second(&self) -> f64 {
        self.new_events() as f64 / self.elapsed.as_secs_f64().max(1e-9)
    }
}

/// Folds files, standard input or other readers into the windows of a job, going on where the last run of the job
/// came to.
///
/// The position in the input is committed in one atomic batch with the windows that it accounts for. Killed at any
/// instant and run again with the same input, the result is that of one run. Dropping the future is such a kill.
///
/// ```
/// # tokio::runtime::Runtime::new().unwrap().block_on(async {
/// use std::time::Duration;
/// use commonhold_core::{MemoryBackend, Store};
/// use commonhold_window::{Format, Input, JobName, JobSpec, RunOptions, Windows, run};
///
/// let store = Store::new(MemoryBackend::new());
/// let job = JobName::new("requests")?;
/// let mut spec = JobSpec::new(Format::Csv, "at", Windows::tumbling(Duration::from_secs(60))?);
/// spec.aggregates.sum = vec!["tokens".into()];
/// let csv = "at,tokens\n2023-11-16 18:17:03,4808\n2023-11-16 18:17:04,3180\n";
/// let input = Input::reader("requests.csv", csv.as_bytes());
/// let summary = run(&store, &job, &spec, vec![input], RunOptions::default()).await?;
/// assert_eq!((summary.events, summary.windows), (2, 1));
/// # Ok::<(), commonhold_core::Error>(())
/// # }).unwrap();
/// ```
///
/// # Errors
/// - `Unsupported` for a store without atomic batches and scans.
/// - `InvalidConfig` for a spec that makes no sense, or that is not the job's.
/// - `InvalidInput` for a row that is no event (the source is a [`RowError`]), an input that cannot be read, and one
///   that is not what an earlier run has read.
/// - `Conflict` if another run of the job went on with it meanwhile.
/// - `Corrupt` for stored bytes that are damaged.
/// - Whatever keeps the store from answering.
pub async fn run(
    store: &Store,
    job: &JobName,
    spec: &JobSpec,
    inputs: Vec<Input>,
    options: RunOptions,
) -> Result<Summary> {
    if let Some(path) = &options.late_file {
        LateFile::check(path, &inputs)?;
    }
    let source = FileSource::new(spec, inputs, options.late_file.is_some())?;
    run_source(store, job, spec, source, options).await
}

/// The same for any [`Source`].
///
/// # Errors
/// As [`run`].
pub async fn run_source(
    store: &Store,
    job: &JobName,
    spec: &JobSpec,
    source: impl Source,
    options: RunOptions,
) -> Result<Summary> {
    let began = Instant::now();
    spec.check()?;
    let capabilities = store.capabilities();
    if !capabilities.atomic_batch || !capabilities.scan {
        return Err(Error::new(
            ErrorKind::Unsupported,
            format!(
                "windows need a store with atomic batches and scans, which {} is not; disk: is one",
                store.backend().name()
            ),
        ));
    }
    let late_path = options.late_file.clone();
    let (record, stored) = find_or_begin(store, job, spec, options.restart, late_path.as_deref()).await?;
    let mut run = Run::new(store, job, record, stored, options.cache_bytes)?;
    run.clear_former_generations().await?;
    run.late = late_path.map(|path| LateFile::open(&path, run.record.late_file_bytes)).transpose()?;
    let resumed_from = run.record.events;
    let was_finished = run.record.finished;
    let ended = run.fold_all(source, options).await?;
    let Record { events, late, skipped, windows, .. } = run.record;
    let nothing_new = was_finished && !run.has_committed;
    let outcome = match ended {
        Ended::AtEnd if nothing_new => Outcome::AlreadyFinished,
        Ended::AtEnd => Outcome::Finished,
        Ended::Stopped => Outcome::Stopped,
    };
    let skipped_rows = run.skipped_rows;
    let elapsed = began.elapsed();
    Ok(Summary { events, late, skipped, windows, skipped_rows, resumed_from, elapsed, outcome })
}

/// The job's record and its bytes as they are stored: that of an earlier run, or of a new beginning.
async fn find_or_begin(
    store: &Store,
    job: &JobName,
    spec: &JobSpec,
    restart: bool,
    late_path: Option<&Path>,
) -> Result<(Record, Bytes)> {
    let late_file = late_path.map(|path| path.display().to_string());
    let found = Record::read(store, job).await?;
    // A job that has committed nothing, say for a mistyped field, is not held to what it was to do.
    if let Some((record, stored)) = &found
        && !restart
        && record.position.is_some()
    {
        check_same(job, record, spec, late_file.as_deref())?;
        return Ok((record.clone(), stored.clone()));
    }
    if let Some(path) = late_path
        && found.as_ref().is_none_or(|(old, _)| old.late_file != late_file)
    {
        LateFile::claim(path)?;
    }
    let mut record = Record::new(job, spec, late_file);
    if let Some((old, _)) = &found {
        record.generation = old.generation.saturating_add(1);
        record.oldest_generation = old.oldest_generation;
    }
    let condition = found.map_or(Condition::Absent, |(_, stored)| Condition::Equals(stored));
    let stored = record.encode()?;
    write(store, job, Vec::new(), stored.clone(), condition).await?;
    Ok((record, stored))
}

/// A run of a job: its record as it will be committed next, and what belongs to it.
struct Run<'a> {
    store: &'a Store,
    job: &'a JobName,
    record: Record,
    /// The record as the store has it.
    stored: Bytes,
    folder: Folder,
    late: Option<LateFile>,
    rows_since_commit: usize,
    has_committed: bool,
    skipped_rows: Vec<RowError>,
}

enum Ended {
    AtEnd,
    Stopped,
}

/// How many skipped rows are told in full.
const SKIPPED_ROWS: usize = 10;

impl<'a> Run<'a> {
    fn new(
        store: &'a Store,
        job: &'a JobName,
        record: Record,
        stored: Bytes,
        cache_bytes: usize,
    ) -> Result<Self> {
        let keys = Keys::new(job, record.generation)?;
        let counts = Counts { late: record.late, windows: record.windows };
        let folder = Folder::new(&record.spec, keys, record.latest_event(), counts, cache_bytes);
        Ok(Self {
            store,
            job,
            record,
            stored,
            folder,
            late: None,
            rows_since_commit: 0,
            has_committed: false,
            skipped_rows: Vec::new(),
        })
    }

    /// Clears what new beginnings have left. If this is cut short, the next run does it again: the stored record
    /// says so until the next commit.
    async fn clear_former_generations(&mut self) -> Result<()> {
        while self.record.oldest_generation < self.record.generation {
            self.store.clear(&Keys::generation(self.job, self.record.oldest_generation)?).await?;
            self.record.oldest_generation += 1;
        }
        Ok(())
    }

    async fn fold_all(&mut self, source: impl Source, options: RunOptions) -> Result<Ended> {
        let RunOptions { commit_every, on_error, mut stop, mut progress, .. } = options;
        let keeps_rows = self.late.is_some();
        let position = self.record.position.clone();
        let chunk_rows = chunk_rows(&self.record.spec, commit_every);
        let mut reader = Reader::start(source, position, chunk_rows, keeps_rows, on_error)?;
        loop {
            let batch = tokio::select! {
                biased;
                () = stopped(&mut stop) => None,
                batch = reader.next() => Some(batch?),
            };
            let Some(batch) = batch else {
                self.commit(false).await?;
                return Ok(Ended::Stopped);
            };
            self.fold(&batch).await?;
            let Batch { chunk, end, failed, bytes, .. } = batch;
            reader.give_back(chunk);
            if let Some(error) = failed {
                self.commit(false).await?;
                return Err(error);
            }
            if end {
                self.commit(true).await?;
            } else if self.rows_since_commit >= commit_every.max(1) || self.folder.is_full() {
                self.commit(false).await?;
            }
            if let Some(progress) = &mut progress {
                let Record { events, late, skipped, windows, .. } = self.record;
                progress(Progress { events, bytes, late, skipped, windows });
            }
            if end {
                return Ok(Ended::AtEnd);
            }
        }
    }

    async fn fold(&mut self, batch: &Batch) -> Result<()> {
        self.folder.load(self.store, &batch.chunk).await?;
        match &mut self.late {
            None => self.folder.fold(&batch.chunk, |_| {}),
            Some(late) => {
                self.folder.fold(&batch.chunk, |event| late.push(batch.header.as_deref(), event.row));
                late.write().await?;
            }
        }
        self.rows_since_commit += batch.chunk.len() + batch.skipped;
        let record = &mut self.record;
        record.events = record.events.saturating_add(batch.chunk.len() as u64);
        record.skipped = record.skipped.saturating_add(batch.skipped as u64);
        let Counts { late, windows } = self.folder.counts();
        (record.late, record.windows) = (late, windows);
        record.position = Some(batch.position.clone());
        let room = SKIPPED_ROWS.saturating_sub(self.skipped_rows.len());
        self.skipped_rows.extend(batch.skipped_rows.iter().take(room).cloned());
        Ok(())
    }

    /// Writes windows and position together, if anything has changed.
    async fn commit(&mut self, finished: bool) -> Result<()> {
        if self.rows_since_commit == 0 && finished == self.record.finished {
            return Ok(());
        }
        if let Some(late) = &mut self.late {
            self.record.late_file_bytes = late.sync().await?;
        }
        self.record.finished = finished;
        self.record.latest_event_nanos = self.folder.latest_event().map(|time| time.as_nanos());
        let record = self.record.encode()?;
        let condition = Condition::Equals(std::mem::replace(&mut self.stored, record.clone()));
        write(self.store, self.job, self.folder.writes()?, record, condition).await?;
        self.folder.committed();
        tracing::debug!(job = %self.job, rows = self.rows_since_commit, events = self.record.events, "committed");
        self.rows_since_commit = 0;
        self.has_committed = true;
        Ok(())
    }
}

/// Writes a job's record and what belongs to it, if the record is still what the condition says.
async fn write(
    store: &Store,
    job: &JobName,
    mut writes: Vec<Write>,
    record: Bytes,
    condition: Condition,
) -> Result<()> {
    let options = PutOptions::default().when(condition);
    writes.push(Write::Put { key: job_key(job)?, value: record, options });
    store.write_batch(writes).await.map(drop).map_err(|error| match error.kind() {
        ErrorKind::Conflict => Error::new(
            ErrorKind::Conflict,
            format!(
                "another run of the job \"{job}\" went on with it at the same time; this one has counted nothing \
                 twice and stops. Run it again when the other has ended"
            ),
        )
        .with_source(error),
        _ => error,
    })
}

fn check_same(job: &JobName, record: &Record, spec: &JobSpec, late_file: Option<&str>) -> Result<()> {
    let mut difference = record.spec.difference(spec);
    if difference.is_none() && record.late_file.as_deref() != late_file {
        let name = |file: Option<&str>| file.unwrap_or("nowhere").to_owned();
        difference = Some(format!(
            "late events went to {}, go to {}",
            name(record.late_file.as_deref()),
            name(late_file)
        ));
    }
    match difference {
        None => Ok(()),
        Some(difference) => Err(Error::new(
            ErrorKind::InvalidConfig,
            format!(
                "the job \"{job}\" was begun differently: {difference}. Run it as it was, begin it anew with \
                 --restart, or give this one another name with --job"
            ),
        )),
    }
}

/// How many rows are folded at a time: few enough that what they touch is a small part of memory.
fn chunk_rows(spec: &JobSpec, commit_every: usize) -> usize {
    const MAX_ROWS: usize = 1_000;
    (MAX_CHUNK_WINDOWS / spec.windows.max_per_event().max(1)).min(commit_every).clamp(1, MAX_ROWS)
}

async fn stopped(stop: &mut Option<watch::Receiver<bool>>) {
    if let Some(stop) = stop
        && stop.wait_for(|stop| *stop).await.is_ok()
    {
        return;
    }
    std::future::pending().await
}
