//! What the tests of jobs share.

#![allow(dead_code)]

use std::time::Duration;

use commonhold_core::{Error, MemoryBackend, Store};
use commonhold_window::{
    Format, Input, JobName, JobSpec, RunOptions, Summary, WindowResult, Windows, format_time, results, run,
};
use futures_util::TryStreamExt as _;

pub(crate) fn store() -> Store {
    Store::new(MemoryBackend::new())
}

pub(crate) fn job() -> JobName {
    JobName::new("test").unwrap()
}

pub(crate) fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// Windows of a minute over `at,key,value`, with the sum of `value`.
pub(crate) fn spec(windows: Windows) -> JobSpec {
    let mut spec = JobSpec::new(Format::Csv, "at", windows);
    spec.keys = vec!["key".to_owned()];
    spec.aggregates.sum = vec!["value".to_owned()];
    spec
}

pub(crate) fn minutes() -> JobSpec {
    spec(Windows::tumbling(seconds(60)).unwrap())
}

pub(crate) fn csv(text: &str) -> Vec<Input> {
    vec![Input::reader("in.csv", std::io::Cursor::new(text.to_owned().into_bytes()))]
}

pub(crate) async fn run_csv(store: &Store, spec: &JobSpec, text: &str) -> Result<Summary, Error> {
    run(store, &job(), spec, csv(text), RunOptions::default()).await
}

pub(crate) async fn windows(store: &Store) -> Vec<WindowResult> {
    results(store, &job()).await.unwrap().unwrap().try_collect().await.unwrap()
}

/// `start key count sum` of each window, the start without its date.
pub(crate) async fn brief(store: &Store) -> Vec<String> {
    let brief = |window: &WindowResult| {
        let start = format_time(window.start);
        let sum = window.sum.0.first().map_or(String::new(), |(_, sum)| sum.to_string());
        format!("{} {} {} {sum}", start.split('T').nth(1).unwrap(), window.key, window.count)
    };
    windows(store).await.iter().map(brief).collect()
}
