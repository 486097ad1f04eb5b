//! The real trace, folded as the README does it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic, missing_docs)]

mod common;

use common::*;
use commonhold_window::*;

const TRACE: &str =
    concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/llm-trace/AzureLLMInferenceTrace_code.csv");

fn trace_spec() -> JobSpec {
    let mut spec = JobSpec::new(Format::Csv, "TIMESTAMP", Windows::tumbling(seconds(60)).unwrap());
    spec.aggregates.sum = vec!["ContextTokens".to_owned(), "GeneratedTokens".to_owned()];
    spec
}

fn total(windows: &[WindowResult], field: &str) -> i128 {
    windows
        .iter()
        .map(|window| match window.sum.get(field) {
            Some(Number::Integer(sum)) => *sum,
            other => panic!("{other:?}"),
        })
        .sum()
}

#[tokio::test]
async fn the_trace_adds_up_to_the_last_token() {
    let store = store();
    let run_once = || async {
        run(&store, &job(), &trace_spec(), vec![Input::file(TRACE).unwrap()], RunOptions::default())
            .await
            .unwrap()
    };
    let summary = run_once().await;
    assert_eq!((summary.events, summary.late, summary.skipped), (8_819, 0, 0));
    assert_eq!(summary.outcome, Outcome::Finished);
    let windows = windows(&store).await;
    assert_eq!(windows.len() as u64, summary.windows);
    assert_eq!(windows.iter().map(|window| window.count).sum::<u64>(), 8_819);
    assert_eq!(total(&windows, "ContextTokens"), 18_059_974);
    assert_eq!(total(&windows, "GeneratedTokens"), 245_896);

    let again = run_once().await;
    assert_eq!(again.outcome, Outcome::AlreadyFinished);
    assert_eq!((again.events, again.new_events(), again.resumed_from), (8_819, 0, 8_819));
    assert_eq!(common::windows(&store).await, windows);
}

#[tokio::test]
async fn results_are_json_as_programs_expect_it_and_csv_with_a_header() {
    let store = store();
    let mut spec = trace_spec();
    let tokens = || vec!["ContextTokens".to_owned()];
    spec.aggregates.min = tokens();
    spec.aggregates.max = tokens();
    spec.aggregates.mean = tokens();
    spec.aggregates.quantiles = tokens();
    spec.aggregates.distinct = tokens();
    run(&store, &job(), &spec, vec![Input::file(TRACE).unwrap()], RunOptions::default()).await.unwrap();

    let mut json = Vec::new();
    let results_of = || async { results(&store, &job()).await.unwrap().unwrap() };
    let written = write_results(results_of().await, &mut JsonSink::new(&mut json)).await.unwrap();
    let json = String::from_utf8(json).unwrap();
    assert_eq!(json.lines().count() as u64, written);
    let first = json.lines().next().unwrap();
    let begins =
        r#"{"job":"test","key":"","start":"2023-11-16T18:17:00Z","end":"2023-11-16T18:18:00Z","count":"#;
    assert!(first.starts_with(begins), "{first}");
    let object: serde_json::Value = serde_json::from_str(first).unwrap();
    let (min, mean) = (&object["min"]["ContextTokens"], &object["mean"]["ContextTokens"]);
    assert!(min.as_f64().unwrap() <= mean.as_f64().unwrap(), "{first}");
    assert!(
        object["quantiles"]["ContextTokens"]["p50"].as_f64()
            <= object["quantiles"]["ContextTokens"]["p99"].as_f64()
    );
    assert!(object["distinct"]["ContextTokens"].is_u64());

    let mut csv = Vec::new();
    let mut sink = CsvSink::new(&mut csv, &spec).unwrap();
    write_results(results_of().await, &mut sink).await.unwrap();
    drop(sink);
    let csv = String::from_utf8(csv).unwrap();
    assert_eq!(
        csv.lines().next().unwrap(),
        "job,key,start,end,count,sum_ContextTokens,sum_GeneratedTokens,min_ContextTokens,max_ContextTokens,\
         mean_ContextTokens,p50_ContextTokens,p95_ContextTokens,p99_ContextTokens,distinct_ContextTokens"
    );
    assert_eq!(csv.lines().count() as u64, written + 1);
}

#[tokio::test]
async fn quantiles_and_distinct_values_of_the_trace_are_within_their_error() {
    let store = store();
    let mut spec = JobSpec::new(Format::Csv, "TIMESTAMP", Windows::tumbling(seconds(86_400)).unwrap());
    spec.aggregates.quantiles = vec!["ContextTokens".to_owned()];
    spec.aggregates.distinct = vec!["ContextTokens".to_owned()];
    run(&store, &job(), &spec, vec![Input::file(TRACE).unwrap()], RunOptions::default()).await.unwrap();

    let text = std::fs::read_to_string(TRACE).unwrap();
    let mut tokens: Vec<u64> =
        text.lines().skip(1).map(|line| line.split(',').nth(1).unwrap().parse().unwrap()).collect();
    tokens.sort_unstable();
    let window = &windows(&store).await[0];
    let found = window.quantiles.get("ContextTokens").unwrap();
    for (q, found) in [(0.5, found.p50), (0.95, found.p95), (0.99, found.p99)] {
        let exact = tokens[(q * (tokens.len() - 1) as f64) as usize] as f64;
        assert!((found / exact - 1.0).abs() <= 0.01, "{q}: {found} for {exact}");
    }
    tokens.dedup();
    let error = *window.distinct.get("ContextTokens").unwrap() as f64 / tokens.len() as f64 - 1.0;
    assert!(error.abs() < 0.05, "{error}");
}
