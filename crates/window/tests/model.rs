//! Jobs against a model that keeps every event and computes everything anew.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic, missing_docs)]

mod common;

use std::{collections::BTreeMap, fmt::Write as _};

use common::*;
use commonhold_core::{Store, Timestamp};
use commonhold_window::*;
use proptest::prelude::*;

#[derive(Debug, Clone)]
struct Row {
    at: i64,
    key: String,
    value: i64,
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    Aligned { size: i64, slide: i64 },
    Session { gap: i64 },
}

/// Start and key to end and values.
type Windowed = BTreeMap<(i64, String), (i64, Vec<i64>)>;

/// The windows of these events and how many are late, by the definitions and without any cleverness.
fn model(rows: &[Row], kind: Kind, lateness: i64) -> (Windowed, u64) {
    let mut windows = Windowed::new();
    let mut open: Vec<(String, i64, i64, Vec<i64>)> = Vec::new();
    let (mut late, mut watermark) = (0, i64::MIN);
    for row in rows {
        match kind {
            Kind::Aligned { size, slide } => {
                let containing = (row.at - size - slide..=row.at).filter(|start| {
                    start.rem_euclid(slide) == 0 && *start <= row.at && row.at < start + size
                });
                let live: Vec<i64> = containing.filter(|start| start + size > watermark).collect();
                late += u64::from(live.is_empty());
                for start in live {
                    windows
                        .entry((start, row.key.clone()))
                        .or_insert((start + size, vec![]))
                        .1
                        .push(row.value);
                }
            }
            Kind::Session { gap } => {
                let (closed, live): (Vec<_>, Vec<_>) =
                    open.into_iter().partition(|(_, _, end, _)| *end <= watermark);
                for (key, start, end, values) in closed {
                    assert!(
                        windows.insert((start, key), (end, values)).is_none(),
                        "a closed session came back"
                    );
                }
                open = live;
                let of_key = |session: &&(String, i64, i64, Vec<i64>)| session.0 == row.key;
                let inside =
                    open.iter().filter(of_key).any(|(_, start, end, _)| *start <= row.at && row.at < *end);
                if row.at + gap <= watermark && !inside {
                    late += 1;
                } else {
                    let (joined, others): (Vec<_>, Vec<_>) =
                        open.into_iter().partition(|(key, start, end, _)| {
                            *key == row.key && row.at < *end && *start < row.at + gap
                        });
                    open = others;
                    let start = joined.iter().map(|session| session.1).min().unwrap_or(row.at).min(row.at);
                    let end =
                        joined.iter().map(|session| session.2).max().unwrap_or(row.at).max(row.at + gap);
                    let mut values: Vec<i64> = joined.into_iter().flat_map(|session| session.3).collect();
                    values.push(row.value);
                    open.push((row.key.clone(), start, end, values));
                }
            }
        }
        watermark = watermark.max(row.at - lateness);
    }
    for (key, start, end, values) in open {
        assert!(windows.insert((start, key), (end, values)).is_none(), "two sessions begin at once");
    }
    (windows, late)
}

fn spec_of(kind: Kind, lateness: i64) -> JobSpec {
    let seconds = |n: i64| seconds(n.unsigned_abs());
    let windows = match kind {
        Kind::Aligned { size, slide } if size == slide => Windows::tumbling(seconds(size)),
        Kind::Aligned { size, slide } => Windows::hopping(seconds(size), seconds(slide)),
        Kind::Session { gap } => Windows::session(seconds(gap)),
    };
    let mut spec = spec(windows.unwrap()).with_lateness(seconds(lateness)).unwrap();
    let value = || vec!["value".to_owned()];
    spec.aggregates.min = value();
    spec.aggregates.max = value();
    spec.aggregates.mean = value();
    spec.aggregates.distinct = value();
    spec.time_unit = Some(TimeUnit::S);
    spec
}

fn csv_of(rows: &[Row]) -> String {
    let mut text = "key,value,at\n".to_owned();
    for Row { at, key, value } in rows {
        writeln!(text, "{key},{value},{at}").unwrap();
    }
    text
}

async fn assert_same(store: &Store, expected: &Windowed) {
    let found = windows(store).await;
    let order: Vec<_> =
        found.iter().map(|window| (window.start.as_nanos() / 1_000_000_000, window.key.clone())).collect();
    assert_eq!(order, expected.keys().cloned().collect::<Vec<_>>());
    for (window, (end, values)) in found.iter().zip(expected.values()) {
        assert_eq!(window.end, Timestamp::from_millis(end * 1_000));
        assert_eq!(window.count, values.len() as u64);
        let integer = |n: i64| Number::Integer(n.into());
        assert_eq!(window.sum.get("value"), Some(&integer(values.iter().sum())));
        assert_eq!(window.min.get("value"), values.iter().min().map(|n| integer(*n)).as_ref());
        assert_eq!(window.max.get("value"), values.iter().max().map(|n| integer(*n)).as_ref());
        let mean = values.iter().sum::<i64>() as f64 / values.len() as f64;
        assert_eq!(window.mean.get("value"), Some(&mean));
        let mut distinct = values.clone();
        distinct.sort_unstable();
        distinct.dedup();
        assert_eq!(window.distinct.get("value"), Some(&(distinct.len() as u64)));
    }
}

fn kinds() -> impl Strategy<Value = Kind> {
    prop_oneof![
        (1i64..40).prop_map(|size| Kind::Aligned { size, slide: size }),
        (1i64..40, 1i64..10).prop_map(|(size, slide)| Kind::Aligned { size: size.max(slide), slide }),
        (1i64..30).prop_map(|gap| Kind::Session { gap }),
    ]
}

/// Time goes on, more or less, from before the epoch.
fn rows() -> impl Strategy<Value = Vec<Row>> {
    let step = (-15i64..20, "[abc]", -1_000i64..1_000);
    proptest::collection::vec(step, 1..120).prop_map(|steps| {
        let mut now = -200;
        let mut row = |(step, key, value)| {
            now += step;
            Row { at: now, key, value }
        };
        steps.into_iter().map(&mut row).collect()
    })
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn windows_are_those_of_the_model(
        rows in rows(), kind in kinds(), lateness in 0i64..40, commit_every in 1usize..50, small: bool,
    ) {
        let (expected, late) = model(&rows, kind, lateness);
        block_on(async {
            let store = store();
            let cache_bytes = if small { 1 } else { 1 << 20 };
            let options = RunOptions { commit_every, cache_bytes, ..RunOptions::default() };
            let summary = run(&store, &job(), &spec_of(kind, lateness), csv(&csv_of(&rows)), options).await.unwrap();
            assert_eq!(summary.late, late);
            assert_eq!(summary.windows, expected.len() as u64);
            assert_eq!(summary.events, rows.len() as u64);
            assert_same(&store, &expected).await;
        });
    }

    #[test]
    fn sessions_do_not_depend_on_the_order_of_events_that_are_in_time(
        rows in rows(), gap in 1i64..30, by in proptest::collection::vec(0i64..50, 120),
    ) {
        // Delays of less than the lateness keep every event at or after the watermark.
        let lateness = 50;
        let mut sorted = rows;
        sorted.sort_by_key(|row| row.at);
        let mut delayed: Vec<(i64, Row)> = sorted.iter().zip(by).map(|(row, by)| (row.at + by, row.clone())).collect();
        delayed.sort_by_key(|(arrival, _)| *arrival);
        let delayed: Vec<Row> = delayed.into_iter().map(|(_, row)| row).collect();
        let (expected, _) = model(&sorted, Kind::Session { gap }, lateness);
        block_on(async {
            let store = store();
            let spec = spec_of(Kind::Session { gap }, lateness);
            let options = RunOptions { commit_every: 7, ..RunOptions::default() };
            let summary = run(&store, &job(), &spec, csv(&csv_of(&delayed)), options).await.unwrap();
            assert_eq!(summary.late, 0);
            assert_same(&store, &expected).await;
        });
    }
}
