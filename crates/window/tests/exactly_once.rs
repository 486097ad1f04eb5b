//! Kills at every boundary, changed and growing inputs, runs side by side: each event counts once.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic, missing_docs)]

mod common;

use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use common::*;
use commonhold_core::{
    ErrorKind, MemoryBackend, Store,
    layers::{Fault, FaultPlan, Operation},
};
use commonhold_window::{
    Input, JobSpec, OnError, Outcome, RunOptions, Summary, WindowResult, Windows, job_status, run,
};
use proptest::prelude::*;
use tokio::sync::{Notify, watch};

/// A job whose runs can be repeated: files in a directory, and the same options each time.
struct Case {
    directory: tempfile::TempDir,
    inputs: Vec<PathBuf>,
    spec: JobSpec,
}

/// What a job has come to, in full.
#[derive(Debug, PartialEq)]
struct Result {
    windows: Vec<WindowResult>,
    late: String,
    counts: (u64, u64, u64, u64),
}

impl Case {
    /// 240 rows over three files, with late ones, bad ones and a quoted line break among them.
    fn new(windows: Windows) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut inputs = Vec::new();
        for file in 0..3 {
            let mut text = "key,at,value\r\n".to_owned();
            for row in 0..80 {
                let n = file * 80 + row;
                let at = if n % 11 == 5 { n * 7 - 300 } else { n * 7 + n % 3 };
                match n % 29 {
                    3 => text.push_str("a,not a time,1\r\n"),
                    4 => text.push_str("\r\n"),
                    7 => write!(text, "\"line\nbreak, {}\",{at},1.25\n", n % 2).unwrap(),
                    _ => write!(text, "k{},{at},{n}\r\n", n % 4).unwrap(),
                }
            }
            let path = directory.path().join(format!("in{file}.csv"));
            fs::write(&path, text.trim_end()).unwrap();
            inputs.push(path);
        }
        let mut spec = spec(windows).with_lateness(seconds(20)).unwrap();
        spec.time_unit = Some(commonhold_window::TimeUnit::S);
        spec.aggregates.quantiles = vec!["value".to_owned()];
        spec.aggregates.distinct = vec!["key".to_owned()];
        Self { directory, inputs, spec }
    }

    fn all() -> impl Iterator<Item = Self> {
        let windows = [
            Windows::tumbling(seconds(60)),
            Windows::hopping(seconds(60), seconds(25)),
            Windows::session(seconds(30)),
        ];
        windows.into_iter().map(|windows| Self::new(windows.unwrap()))
    }

    fn late_file(&self) -> PathBuf {
        self.directory.path().join("late.csv")
    }

    fn options(&self, commit_every: usize) -> RunOptions {
        RunOptions {
            commit_every,
            cache_bytes: 2_000,
            on_error: OnError::Skip,
            late_file: Some(self.late_file()),
            ..RunOptions::default()
        }
    }

    async fn run(&self, store: &Store, options: RunOptions) -> commonhold_core::Result<Summary> {
        let inputs = self.inputs.iter().map(|path| Input::file(path).unwrap()).collect();
        run(store, &job(), &self.spec, inputs, options).await
    }

    async fn result(&self, store: &Store) -> Result {
        let status = job_status(store, &job()).await.unwrap().unwrap();
        assert!(status.finished);
        Result {
            windows: windows(store).await,
            late: fs::read_to_string(self.late_file()).unwrap(),
            counts: (status.events, status.late, status.skipped, status.windows),
        }
    }

    /// What comes of one run without any trouble.
    async fn undisturbed(&self) -> Result {
        let store = store();
        self.run(&store, self.options(10_000)).await.unwrap();
        let result = self.result(&store).await;
        fs::remove_file(self.late_file()).unwrap();
        result
    }

    /// Runs until `after` chunks are folded, and drops everything at that instant.
    async fn run_and_kill(&self, store: &Store, commit_every: usize, after: usize) {
        let reached = Arc::new(Notify::new());
        let mut options = self.options(commit_every);
        let (folded, told) = (AtomicUsize::new(0), Arc::clone(&reached));
        options.progress = Some(Box::new(move |_| {
            if folded.fetch_add(1, Ordering::Relaxed) + 1 == after {
                told.notify_one();
            }
        }));
        tokio::select! {
            biased;
            () = reached.notified() => {}
            outcome = self.run(store, options) => drop(outcome.unwrap()),
        }
        // A write of late rows that is under way holds the file until it is done.
        if let Ok(late) = fs::File::open(self.late_file()) {
            late.lock().unwrap();
        }
    }
}

#[tokio::test]
async fn a_commit_that_fails_or_whose_reply_is_lost_counts_nothing_twice_or_never() {
    for case in Case::all() {
        let expected = case.undisturbed().await;
        assert!(expected.counts.1 > 5 && expected.counts.2 > 5, "{:?}", expected.counts);
        assert_eq!(expected.late.lines().next(), Some("key,at,value"));
        for lost in [false, true] {
            for commit in 1..=240 / 37 + 1 {
                let plan = FaultPlan::new();
                let store = Store::new(MemoryBackend::new()).layer(Fault::new(&plan));
                let mut options = case.options(37);
                let (mut committed, faults) = (0, plan.clone());
                options.progress = Some(Box::new(move |_| {
                    committed += 1;
                    if committed == commit {
                        if lost {
                            faults.lose_reply(Operation::WriteMany);
                        } else {
                            faults.refuse(Operation::WriteMany);
                        }
                    }
                }));
                let failed = case.run(&store, options).await;
                assert_eq!(failed.is_err(), plan.pending() == 0 && commit < 240 / 37 + 1);
                case.run(&store, case.options(37)).await.unwrap();
                assert_eq!(case.result(&store).await, expected, "commit {commit}, lost: {lost}");
                fs::remove_file(case.late_file()).unwrap();
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    #[test]
    fn killed_again_and_again_the_result_is_that_of_one_run(
        which in 0usize..3, kills in proptest::collection::vec((1usize..60, 1usize..8), 1..6),
    ) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        runtime.block_on(async {
            let case = Case::all().nth(which).unwrap();
            let expected = case.undisturbed().await;
            let store = store();
            for (commit_every, after) in kills {
                case.run_and_kill(&store, commit_every, after).await;
            }
            case.run(&store, case.options(50)).await.unwrap();
            assert_eq!(case.result(&store).await, expected);
        });
    }
}

#[tokio::test]
async fn a_run_that_is_stopped_commits_and_goes_on_later() {
    for case in Case::all() {
        let expected = case.undisturbed().await;
        let store = store();
        let (stop, stopped) = watch::channel(false);
        let mut options = case.options(10);
        options.stop = Some(stopped);
        let mut chunks = 0;
        options.progress = Some(Box::new(move |_| {
            chunks += 1;
            if chunks == 4 {
                stop.send_replace(true);
            }
        }));
        let summary = case.run(&store, options).await.unwrap();
        assert_eq!(summary.outcome, Outcome::Stopped);
        assert_eq!(summary.events + summary.skipped, 40);
        let summary = case.run(&store, case.options(10)).await.unwrap();
        assert_eq!(summary.outcome, Outcome::Finished);
        assert_eq!(summary.resumed_from + summary.new_events(), expected.counts.0);
        assert_eq!(case.result(&store).await, expected);
    }
}

#[tokio::test]
async fn of_two_runs_at_once_one_gets_an_error_and_nothing_counts_twice() {
    const HEADER: &str = "at,key,value\n";
    /// Gives the header and one row, and the rest when the sender is dropped: until then the run that reads it
    /// can commit once and no more.
    struct Paced(std::io::Cursor<Vec<u8>>, std::sync::mpsc::Receiver<()>);
    impl std::io::Read for Paced {
        fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
            let first = HEADER.len() + "2023-11-16 18:17:10Z,a,1\n".len();
            let left = first.saturating_sub(self.0.position() as usize);
            if left == 0 {
                let _ = self.1.recv();
                return self.0.read(buffer);
            }
            let length = buffer.len().min(left);
            self.0.read(&mut buffer[..length])
        }
    }
    let (rest, paced) = std::sync::mpsc::channel::<()>();
    let mut text = HEADER.to_owned();
    (10..40).for_each(|n| writeln!(text, "2023-11-16 18:17:{n}Z,a,1").unwrap());
    let store = store();
    let options = || RunOptions { commit_every: 1, ..RunOptions::default() };
    let input =
        vec![Input::reader("slow.csv", Paced(std::io::Cursor::new(text.clone().into_bytes()), paced))];
    let (first, second) = (store.clone(), store.clone());
    let began = Arc::new(Notify::new());
    let told = Arc::clone(&began);
    let mut first_options = options();
    first_options.progress = Some(Box::new(move |_| told.notify_one()));
    let first = tokio::spawn(async move { run(&first, &job(), &minutes(), input, first_options).await });
    began.notified().await;
    run(&second, &job(), &minutes(), csv(&text), options()).await.unwrap();
    drop(rest);
    let error = first.await.unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict);
    assert!(error.message().contains("another run of the job \"test\""), "{error}");
    assert_eq!(brief(&store).await, ["18:17:00Z a 30 30"]);
}

const ROWS: &str = "at,key,value\n2023-11-16 18:17:01,a,1\n2023-11-16 18:17:02,b,2\n";

#[tokio::test]
async fn input_that_grows_is_gone_on_with() {
    let store = store();
    run_csv(&store, &minutes(), ROWS).await.unwrap();
    let grown = format!("{ROWS}2023-11-16 18:17:03,a,3\n2023-11-16 18:18:03,a,4");
    let summary = run_csv(&store, &minutes(), &grown).await.unwrap();
    assert_eq!((summary.resumed_from, summary.events, summary.outcome), (2, 4, Outcome::Finished));
    assert_eq!(brief(&store).await, ["18:17:00Z a 2 4", "18:17:00Z b 1 2", "18:18:00Z a 1 4"]);

    // The last row had no line's end: a new line may follow, but not the rest of that row.
    let error = run_csv(&store, &minutes(), &format!("{grown}2\n")).await.unwrap_err();
    assert!(error.message().contains("grown within line 5"), "{error}");
    let summary = run_csv(&store, &minutes(), &format!("{grown}\n2023-11-16 18:18:04,a,5\n")).await.unwrap();
    assert_eq!((summary.resumed_from, summary.events), (4, 5));
}

#[tokio::test]
async fn a_line_end_that_arrives_later_is_nothing_new() {
    let store = store();
    run_csv(&store, &minutes(), ROWS.trim_end()).await.unwrap();
    let summary = run_csv(&store, &minutes(), ROWS).await.unwrap();
    assert_eq!((summary.events, summary.outcome), (2, Outcome::AlreadyFinished));
}

#[tokio::test]
async fn input_that_changed_behind_the_position_is_an_error_that_says_where() {
    let store = store();
    run_csv(&store, &minutes(), ROWS).await.unwrap();
    let before = brief(&store).await;
    for (text, problem) in [
        (ROWS.replace("a,1", "a,7"), "in.csv has changed within its first 61 bytes"),
        (ROWS[..ROWS.len() - 5].to_owned(), "in.csv has become shorter: an earlier run read 61 bytes"),
        (ROWS.replace("at,key", "key,at"), "in.csv has changed within its first"),
    ] {
        let error = run_csv(&store, &minutes(), &text).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        assert!(error.message().starts_with(problem) && error.message().contains("--restart"), "{error}");
        assert_eq!(brief(&store).await, before);
    }
}

#[tokio::test]
async fn files_are_found_again_one_by_one() {
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = directory.path().join(name);
        fs::write(&path, text).unwrap();
        path
    };
    let (one, two) = (file("one.csv", ROWS), file("two.csv", &ROWS.replace("18:17", "18:18")));
    let store = store();
    let run_files = |files: Vec<PathBuf>| {
        let store = store.clone();
        async move {
            let inputs = files.iter().map(|path| Input::file(path).unwrap()).collect();
            run(&store, &job(), &minutes(), inputs, RunOptions::default()).await
        }
    };
    run_files(vec![one.clone(), two.clone()]).await.unwrap();

    let error = run_files(vec![one.clone()]).await.unwrap_err();
    assert!(error.message().contains("two.csv was read by an earlier run"), "{error}");
    let error = run_files(vec![two.clone(), one.clone()]).await.unwrap_err();
    assert!(error.message().contains("two.csv has changed"), "{error}");

    let three = file("three.csv", &ROWS.replace("18:17", "18:19"));
    let summary = run_files(vec![one.clone(), two.clone(), three.clone()]).await.unwrap();
    assert_eq!((summary.resumed_from, summary.events, summary.windows), (4, 6, 6));

    file("one.csv", &format!("{ROWS}2023-11-16 18:17:03,a,3\n"));
    let error = run_files(vec![one, two, three]).await.unwrap_err();
    assert!(error.message().contains("one.csv has grown since"), "{error}");
}

#[tokio::test]
async fn a_job_is_run_as_it_was_begun_or_begun_anew() {
    let store = store();
    run_csv(&store, &minutes(), ROWS).await.unwrap();
    let hours = spec(Windows::tumbling(seconds(3600)).unwrap());
    let error = run_csv(&store, &hours, ROWS).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidConfig);
    for part in [r#"{"size":"1m"}"#, r#"{"size":"1h"}"#, "--restart", "--job"] {
        assert!(error.message().contains(part), "{error}");
    }
    let restart = || RunOptions { restart: true, ..RunOptions::default() };
    let summary = run(&store, &job(), &hours, csv(ROWS), restart()).await.unwrap();
    assert_eq!((summary.events, summary.resumed_from, summary.windows), (2, 0, 2));
    assert_eq!(brief(&store).await, ["18:00:00Z a 1 1", "18:00:00Z b 1 2"]);
    assert_eq!(store.count("window/data/").await.unwrap(), 2);
}

#[tokio::test]
async fn a_restart_that_is_cut_short_leaves_nothing_of_the_old_windows() {
    let plan = FaultPlan::new();
    let store = Store::new(MemoryBackend::new()).layer(Fault::new(&plan));
    run_csv(&store, &minutes(), ROWS).await.unwrap();
    plan.refuse(Operation::Clear);
    let restart = RunOptions { restart: true, ..RunOptions::default() };
    run(&store, &job(), &minutes(), csv(ROWS), restart).await.unwrap_err();
    assert_eq!(store.count("window/data/").await.unwrap(), 2);
    assert!(windows(&store).await.is_empty());
    run_csv(&store, &minutes(), ROWS).await.unwrap();
    assert_eq!(brief(&store).await, ["18:17:00Z a 1 1", "18:17:00Z b 1 2"]);
    assert_eq!(store.count("window/data/").await.unwrap(), 2);
}

#[tokio::test]
async fn a_job_that_failed_before_it_counted_anything_can_be_put_right() {
    let store = store();
    let mut wrong = minutes();
    wrong.time = "when".to_owned();
    run_csv(&store, &wrong, ROWS).await.unwrap_err();
    assert_eq!(run_csv(&store, &minutes(), ROWS).await.unwrap().events, 2);
}

#[tokio::test]
async fn a_bad_row_stops_the_run_and_is_read_again_when_it_is_put_right() {
    let store = store();
    let error = run_csv(&store, &minutes(), &format!("{ROWS}2023-11-16 18:17:03,a,x\n")).await.unwrap_err();
    assert_eq!(error.message(), r#"in.csv:4: column 3 "value": "x" is not a number"#);
    let right = format!("{ROWS}2023-11-16 18:17:03,a,3\n");
    let summary = run_csv(&store, &minutes(), &right).await.unwrap();
    assert_eq!((summary.resumed_from, summary.events), (2, 3));
    assert_eq!(brief(&store).await, ["18:17:00Z a 2 4", "18:17:00Z b 1 2"]);
}

fn late_options(path: &Path) -> RunOptions {
    RunOptions { late_file: Some(path.to_owned()), ..RunOptions::default() }
}

#[tokio::test]
async fn late_rows_are_written_as_they_stood_once_and_never_over_something_else() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("late.csv");
    let text =
        "at,key,value\r\n2023-11-16 18:17:01,a,1\r\n2023-11-16 18:19:00,a,2\r\n2023-11-16 18:17:02,\"a\",3";
    let store = store();
    fs::write(&path, "precious").unwrap();
    let error = run(&store, &job(), &minutes(), csv(text), late_options(&path)).await.unwrap_err();
    assert!(error.message().contains("is there already"), "{error}");
    assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
    fs::remove_file(&path).unwrap();

    let summary = run(&store, &job(), &minutes(), csv(text), late_options(&path)).await.unwrap();
    assert_eq!((summary.events, summary.late), (3, 1));
    assert_eq!(fs::read_to_string(&path).unwrap(), "at,key,value\n2023-11-16 18:17:02,\"a\",3\n");

    let error = run_csv(&store, &minutes(), text).await.unwrap_err();
    assert!(error.message().contains("late events went to"), "{error}");
    fs::write(&path, "at").unwrap();
    let error = run(&store, &job(), &minutes(), csv(text), late_options(&path)).await.unwrap_err();
    assert!(error.message().contains("has become shorter"), "{error}");
    let restart = RunOptions { restart: true, ..late_options(&path) };
    run(&store, &job(), &minutes(), csv(text), restart).await.unwrap();
    assert_eq!(fs::read_to_string(&path).unwrap().lines().count(), 2);
}

#[tokio::test]
async fn an_input_is_never_the_late_file() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("in.csv");
    fs::write(&path, ROWS).unwrap();
    let inputs = vec![Input::file(&path).unwrap()];
    let other_name = directory.path().join(".").join("in.csv");
    let error = run(&store(), &job(), &minutes(), inputs, late_options(&other_name)).await.unwrap_err();
    assert!(error.message().contains("is one of the inputs"), "{error}");
    assert_eq!(fs::read_to_string(&path).unwrap(), ROWS);
}

#[tokio::test]
async fn two_runs_never_write_one_late_file() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("late.csv");
    let held = fs::File::create(&path).unwrap();
    held.lock().unwrap();
    let error = run(&store(), &job(), &minutes(), csv(ROWS), late_options(&path)).await.unwrap_err();
    assert!(error.message().contains("is being written by another run"), "{error}");
}
