//! Inputs that nobody would write on purpose, or somebody would.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic, missing_docs)]

mod common;

use common::*;
use commonhold_core::{Error, ErrorKind, Key};
use commonhold_window::{
    Aggregates, Format, Input, JobSpec, OnError, Outcome, RunOptions, Summary, Windows, jobs, run,
};
use futures_util::TryStreamExt as _;
use proptest::prelude::*;

async fn run_bytes(spec: &JobSpec, bytes: &[u8], on_error: OnError) -> Result<(Summary, Vec<String>), Error> {
    let store = store();
    let input = Input::reader("in", std::io::Cursor::new(bytes.to_vec()));
    let options = RunOptions { on_error, ..RunOptions::default() };
    let summary = run(&store, &job(), spec, vec![input], options).await?;
    Ok((summary, brief(&store).await))
}

async fn error_of(spec: &JobSpec, bytes: &[u8]) -> String {
    let error = run_bytes(spec, bytes, OnError::Stop).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
    error.message().to_owned()
}

fn json() -> JobSpec {
    JobSpec { format: Format::Jsonl, ..minutes() }
}

#[tokio::test]
async fn what_is_wrong_with_a_csv_file_is_said_with_its_place() {
    let row = |value: &str| format!("at,key,value\n2023-11-16 18:17:01,a,{value}\n").into_bytes();
    let long = "x".repeat(600);
    let cases: Vec<(Vec<u8>, &str)> = vec![
        (b"".to_vec(), "in:1: the file is empty where a CSV header belongs"),
        (b"\n\r\n".to_vec(), "in:3: the file is empty where a CSV header belongs"),
        (b"at,value\n".to_vec(), r#"in:1: there is no column "key"; there are "at", "value""#),
        (
            b"at,key,value,key\n".to_vec(),
            r#"in:1: there are two columns "key"; there are "at", "key", "value", "key""#,
        ),
        (b"at,key,value\n1,2\n".to_vec(), "in:2: the row has 2 fields where the header has 3"),
        (b"at,key,value\n\n\n1,2,3,4\n".to_vec(), "in:4: the row has 4 fields where the header has 3"),
        (row("\"1\n2023-11-16 18:17:02,b,2"), "in:2: a quote is opened in this row and never closed"),
        (row("1\"").strip_suffix(b"\n").unwrap().to_vec(), r#""1\"" is not a number"#),
        (row(""), r#"in:2: column 3 "value": is empty where a number belongs"#),
        (row("abc"), r#"in:2: column 3 "value": "abc" is not a number"#),
        (row("NaN"), r#"in:2: column 3 "value": "NaN" is not a number"#),
        (row("inf"), r#"in:2: column 3 "value": "inf" is not a number"#),
        (row("1e400"), r#"in:2: column 3 "value": "1e400" is a number beyond 1e280"#),
        (row(&format!("1{}", "0".repeat(400))), "is an integer of more than 64 bits"),
        (row("170141183460469231731687303715884105728"), "is an integer of more than 64 bits"),
        (row("\0"), r#"in:2: column 3 "value": "\0" is not a number"#),
        (b"at,key,value\n2023-13-01 00:00:00,a,1\n".to_vec(), "has a month that is not 01 to 12"),
        (b"at,key,value\n1700158623,a,1\n".to_vec(), "say which unit"),
        (b"at,key,value\n2023-11-16 18:17:01,\xff\xfe,1\n".to_vec(), "is not UTF-8"),
        (
            format!("at,key,value\n2023-11-16 18:17:01,{long},1\n").into_bytes(),
            "makes the key longer than 512 bytes",
        ),
        (b"\x1b[31mat,key,value\n".to_vec(), r#"there are "\u{1b}[31mat""#),
    ];
    for (bytes, problem) in cases {
        let message = error_of(&minutes(), &bytes).await;
        assert!(message.contains(problem), "{message}\n{problem}");
        assert!(message.len() < 1000 && !message.contains(char::is_control), "{message}");
    }
}

#[tokio::test]
async fn what_is_wrong_with_a_line_of_json_is_said_with_its_place() {
    let line = |value: &str| format!(r#"{{"at":"2023-11-16T18:17:01Z","key":"a","value":{value}}}"#);
    let cases = [
        ("nonsense".to_owned(), "in:1: \"nonsense\" is not a JSON object"),
        ("[1]".to_owned(), "expected an object"),
        (format!("{}\n\n{}", line("1"), line("null")), r#"in:3: field "value": is null"#),
        (line("{}"), "is an object where a plain value belongs"),
        (line("[1]"), "is a list where a plain value belongs"),
        (line("\"x\""), r#"field "value": "x" is not a number"#),
        (line("1e999"), "is a number beyond 1e280"),
        (line("true"), "is not a number"),
        (line("1").replace("value", "other"), r#"in:1: field "value": is missing"#),
        (line("1,\"value\":2"), "the field \\\"value\\\" is there twice"),
        (format!("{} x", line("1")), "trailing characters"),
        (line("1").replace('}', ""), "EOF while parsing"),
        ("[".repeat(100_000), "is not a JSON object"),
        (line("1").replace("\"a\"", &"[".repeat(100_000)), "is not a JSON object"),
    ];
    for (text, problem) in cases {
        let message = error_of(&json(), text.as_bytes()).await;
        assert!(message.contains(&problem.replace("\\\"", "\"")), "{message}\n{problem}");
        assert!(message.len() < 1000, "{message}");
    }
    error_of(&json(), b"{\"at\":\"2023-11-16T18:17:01Z\",\"key\":\"\xff\",\"value\":1}").await;
}

#[tokio::test]
async fn what_csv_allows_is_read() {
    for text in [
        "at,key,value\n2023-11-16 18:17:01,\"a,\"\"b\"\"\n\",7\n",
        "\u{feff}at,key,value\r\n2023-11-16 18:17:01,\"a,\"\"b\"\"\n\",7",
        "value,unused,key,at\r2 ,,x,x\r7,,\"a,\"\"b\"\"\n\",2023-11-16T18:17:01Z",
        "\n\n\"at\",\"key\",\"value\"\r\n\r\n2023-11-16 18:17:01,\"a,\"\"b\"\"\n\", 7 \r\n\r\n",
    ] {
        let (summary, windows) = run_bytes(&minutes(), text.as_bytes(), OnError::Skip).await.unwrap();
        assert_eq!(windows, ["18:17:00Z a,\"b\"\n 1 7"], "{text:?}");
        assert_eq!(summary.events, 1);
    }
}

#[tokio::test]
async fn what_json_allows_is_read() {
    let text = "\u{feff}{\"x\":{\"at\":[1]},\"value\":18446744073709551615,\"at\":\"2023-11-16T18:17:01Z\",\"key\":\"\\u0061\\n\"}\r\n  \n\
         {\"key\":\"a\\n\",\"value\":\"18446744073709551615\",\"\\u0061t\":\"2023-11-16 18:17:02\"}";
    let (summary, windows) = run_bytes(&json(), text.as_bytes(), OnError::Stop).await.unwrap();
    assert_eq!(windows, ["18:17:00Z a\n 2 36893488147419103230"]);
    assert_eq!(summary.events, 2);
}

#[tokio::test]
async fn a_header_alone_and_an_empty_file_of_json_have_no_events() {
    for (spec, bytes) in [(minutes(), &b"at,key,value"[..]), (json(), b""), (json(), b"\n\n")] {
        let (summary, windows) = run_bytes(&spec, bytes, OnError::Stop).await.unwrap();
        assert_eq!((summary.events, summary.outcome, windows.len()), (0, Outcome::Finished, 0));
    }
}

#[tokio::test]
async fn a_file_without_line_ends_is_an_error_and_not_memory() {
    for spec in [minutes(), json()] {
        let endless = Input::reader("zeros", std::io::repeat(b'x'));
        let error = run(&store(), &job(), &spec, vec![endless], RunOptions::default()).await.unwrap_err();
        assert!(error.message().contains("longer than 1048576 bytes"), "{error}");
    }
    let unclosed = format!("at,key,value\n2023-11-16 18:17:01,\"a,1\n{}", "x,y,z\n".repeat(400_000));
    let message = error_of(&minutes(), unclosed.as_bytes()).await;
    assert!(message.starts_with("in:2: the row is longer") && message.contains("quote"), "{message}");
}

#[tokio::test]
async fn skipped_rows_are_counted_and_the_first_are_told() {
    let mut text = "at,key,value\n".to_owned();
    for n in 0..2_500 {
        text.push_str(if n % 5 == 0 { "2023-11-16 18:17:01,a,1\n" } else { "2023-11-16 18:17:01,a\n" });
    }
    let (summary, windows) = run_bytes(&minutes(), text.as_bytes(), OnError::Skip).await.unwrap();
    assert_eq!((summary.events, summary.skipped), (500, 2_000));
    assert_eq!(summary.skipped_rows.len(), 10);
    assert_eq!(summary.skipped_rows[1].line, 4);
    assert_eq!(windows, ["18:17:00Z a 500 500"]);
}

#[tokio::test]
async fn several_key_fields_are_a_row_of_csv_and_none_an_empty_key() {
    let text = "at,a,b,value\n2023-11-16 18:17:01,\"x,y\",z,1\n2023-11-16 18:17:01,x,\"y,z\",2\n2023-11-16 18:17:01,x,,3\n";
    let mut spec = minutes();
    spec.keys = vec!["a".to_owned(), "b".to_owned()];
    let (_, windows) = run_bytes(&spec, text.as_bytes(), OnError::Stop).await.unwrap();
    assert_eq!(windows, ["18:17:00Z \"x,y\",z 1 1", "18:17:00Z x, 1 3", "18:17:00Z x,\"y,z\" 1 2"]);
    spec.keys.clear();
    let (_, windows) = run_bytes(&spec, text.as_bytes(), OnError::Stop).await.unwrap();
    assert_eq!(windows, ["18:17:00Z  3 6"]);
}

#[tokio::test]
async fn damage_in_the_store_is_an_error_and_not_a_wrong_sum() {
    let text = "at,key,value\n2023-11-16 18:17:01,a,1\n";
    for windows_of in [Windows::tumbling(seconds(60)), Windows::session(seconds(60))] {
        let spec = spec(windows_of.unwrap());
        let store = store();
        run_csv(&store, &spec, text).await.unwrap();
        let keys: Vec<Key> = store.list_keys("window/").unwrap().try_collect().await.unwrap();
        for key in keys {
            let sound = store.get(&key).await.unwrap().unwrap();
            for damaged in
                [vec![], b"\xff".to_vec(), sound[..sound.len() - 1].to_vec(), [&sound[..], b"x"].concat()]
            {
                store.put(&key, damaged).await.unwrap();
                let more = format!("{text}2023-11-16 18:17:02,a,1\n");
                let error = run_csv(&store, &spec, &more).await.unwrap_err();
                assert_eq!(error.kind(), ErrorKind::Corrupt, "{key}: {error}");
            }
            store.put(&key, sound).await.unwrap();
        }
        assert_eq!(run_csv(&store, &spec, text).await.unwrap().outcome, Outcome::AlreadyFinished);
        assert_eq!(jobs(&store).unwrap().try_collect::<Vec<_>>().await.unwrap().len(), 1);
    }
}

#[test]
fn a_directory_and_a_missing_file_are_errors_that_name_them() {
    let directory = tempfile::tempdir().unwrap();
    let error = Input::file(directory.path()).unwrap_err();
    assert!(error.message().contains("is a directory"), "{error}");
    let error = Input::file(directory.path().join("none.csv")).unwrap_err();
    assert!(error.message().contains("none.csv: cannot be opened"), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn no_input_makes_it_panic(
        bytes in proptest::collection::vec(prop_oneof![any::<u8>(), prop::sample::select(&b"\",\r\n{}:1a"[..])], 0..300),
        is_json: bool,
    ) {
        let everything = || vec!["a".to_owned(), "1".to_owned()];
        let mut spec = if is_json { json() } else { minutes() };
        (spec.time, spec.keys) = ("a".to_owned(), everything());
        spec.time_unit = Some(commonhold_window::TimeUnit::S);
        spec.aggregates = Aggregates { sum: vec![], distinct: everything(), quantiles: vec!["1".to_owned()], ..Aggregates::default() };
        let bytes = if is_json { bytes } else { [b"a,1\n", &bytes[..]].concat() };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let _ = runtime.block_on(run_bytes(&spec, &bytes, OnError::Skip));
    }
}
