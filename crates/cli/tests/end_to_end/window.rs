//! `window`, on a real trace and on small inputs, with kills.

use std::{fs, thread, time::Duration};

use crate::sandbox::{Outcome, Sandbox};

const TRACE: &str =
    concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/llm-trace/AzureLLMInferenceTrace_code.csv");
const JOB: &str = "AzureLLMInferenceTrace_code";

fn fold(more: &[&'static str]) -> Vec<&'static str> {
    let job = [
        "window",
        TRACE,
        "--time",
        "TIMESTAMP",
        "--size",
        "1m",
        "--sum",
        "ContextTokens",
        "--sum",
        "GeneratedTokens",
    ];
    [&job[..], more].concat()
}

fn text(outcome: &Outcome) -> String {
    String::from_utf8(outcome.stdout.clone()).unwrap()
}

#[test]
fn the_real_trace_is_folded_to_the_last_token() {
    let sandbox = Sandbox::new();
    let windows = sandbox.json(&fold(&[]));
    let total =
        |field: &str| windows.iter().map(|window| window["sum"][field].as_u64().unwrap()).sum::<u64>();
    assert_eq!(windows.iter().map(|window| window["count"].as_u64().unwrap()).sum::<u64>(), 8_819);
    assert_eq!((total("ContextTokens"), total("GeneratedTokens")), (18_059_974, 245_896));
    let first = &windows[0];
    assert_eq!((first["job"].as_str(), first["start"].as_str()), (Some(JOB), Some("2023-11-16T18:17:00Z")));

    let table = sandbox.run(["window", "show", JOB]);
    assert_eq!(text(&table).lines().count(), windows.len() + 1);
    let csv = text(&sandbox.run(["window", "show", JOB, "--output", "csv"]));
    for (line, window) in csv.lines().skip(1).zip(&windows) {
        let columns: Vec<_> = line.split(',').collect();
        assert_eq!(columns[4], window["count"].to_string());
        assert_eq!(columns[5], window["sum"]["ContextTokens"].to_string());
    }
    assert_eq!(sandbox.json(&["window", "show", JOB]), windows);
}

#[test]
fn finished_input_says_so_and_is_not_counted_twice() {
    let sandbox = Sandbox::new();
    let first = sandbox.run(fold(&[]));
    assert!(first.stderr.contains("8,819 events, 0 late, 0 skipped, 45 windows"), "{first:?}");
    assert!(first.stderr.contains(&format!("commonhold --store disk:./commonhold-data window show {JOB}")));
    let second = sandbox.run(fold(&[]));
    assert!(second.stderr.contains("nothing new"), "{second:?}");
    assert_eq!((second.code, text(&second)), (Some(0), text(&first)));
    let third = sandbox.run(fold(&["--restart"]));
    assert!(!third.stderr.contains("earlier run"), "{third:?}");
    assert_eq!(text(&third), text(&first));
    let listed = sandbox.json(&["window", "list"]);
    assert_eq!(
        (listed.len(), listed[0]["events"].as_u64(), listed[0]["finished"].as_bool()),
        (1, Some(8_819), Some(true))
    );
    assert!(sandbox.ok(&["window", "list"]).contains("finished"));
}

#[test]
fn killed_at_random_instants_the_result_is_that_of_one_run() {
    let sandbox = Sandbox::new();
    let more = [
        "--quantiles",
        "ContextTokens",
        "--distinct",
        "GeneratedTokens",
        "--output",
        "json",
        "--commit-every",
        "50",
    ];
    let whole = sandbox.run([&["--store", "disk:whole"], &fold(&more)[..]].concat());
    let (mut resumed, mut attempt) = (0, 0);
    loop {
        let run = sandbox.start(fold(&more));
        thread::sleep(Duration::from_millis(fastrand::u64(0..50) + 10 * attempt));
        attempt += 1;
        if run.kill().code == Some(0) {
            break;
        }
        let listed = sandbox.run(["window", "list", "--output", "json"]);
        resumed += u32::from(text(&listed).contains("\"finished\":false"));
    }
    assert!(resumed > 0, "no run was killed in the middle");
    let last = sandbox.run(fold(&more));
    assert_eq!(last.code, Some(0), "{last:?}");
    assert_eq!(text(&last), text(&whole));
    assert_eq!(text(&sandbox.run(["window", "show", JOB, "--output", "json"])), text(&whole));
}

#[test]
fn ctrl_c_keeps_what_was_folded_and_says_how_to_go_on() {
    let sandbox = Sandbox::new();
    let args = ["window", "-", "--format", "jsonl", "--time", "at", "--time-unit", "s", "--size", "1m"];
    let mut fold = sandbox.start(args);
    let id = fold.child().id().to_string();
    // Once it has the store open it listens for Ctrl-C.
    let owner = sandbox.path("commonhold-data/owner");
    while !fs::read_to_string(&owner).is_ok_and(|owner| owner.contains(&id)) {
        assert_eq!(fold.child().try_wait().unwrap(), None);
    }
    fold.interrupt();
    let stdin = fold.child().stdin.take();
    let outcome = fold.end();
    drop(stdin);
    assert_eq!(outcome.code, Some(130));
    assert!(outcome.stderr.contains("the same command goes on"), "{outcome:?}");
}

#[test]
fn json_lines_come_from_standard_input_with_keys_sessions_and_late_events() {
    let sandbox = Sandbox::new();
    let events = b"{\"at\":0,\"user\":\"a\",\"n\":1}\n{\"at\":5,\"user\":\"b\",\"n\":2}\n{\"at\":8,\"user\":\"a\",\"n\":3.5}\n{\"at\":100,\"user\":\"b\",\"n\":4}\n{\"at\":1,\"user\":\"a\",\"n\":9}";
    let args = [
        "--output",
        "json",
        "window",
        "-",
        "--format",
        "jsonl",
        "--time",
        "at",
        "--time-unit",
        "s",
        "--key",
        "user",
        "--session",
        "10s",
        "--sum",
        "n",
        "--lateness",
        "0s",
        "--late",
        "late.jsonl",
        "--job",
        "visits",
    ];
    let outcome = sandbox.run_with(args, &[], events);
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
    assert!(outcome.stderr.contains("5 events, 1 late"), "{outcome:?}");
    let windows: Vec<serde_json::Value> =
        text(&outcome).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let seen: Vec<_> = windows
        .iter()
        .map(|window| {
            (
                window["key"].as_str().unwrap(),
                window["count"].as_u64().unwrap(),
                window["sum"]["n"].as_f64().unwrap(),
            )
        })
        .collect();
    assert_eq!(seen, [("a", 2, 4.5), ("b", 1, 2.0), ("b", 1, 4.0)]);
    assert_eq!(fs::read(sandbox.path("late.jsonl")).unwrap(), b"{\"at\":1,\"user\":\"a\",\"n\":9}\n");
}

#[test]
fn a_row_that_is_no_event_is_named_with_its_place() {
    let sandbox = Sandbox::new();
    sandbox.write("bad.csv", "at,n\r\n2020-01-01T00:00:00Z,1\r\nyesterday,2\r\n2020-01-01T00:00:01Z,\"x\ny\"\r\n2020-01-01T00:00:02Z,5");
    let args = ["window", "bad.csv", "--time", "at", "--size", "1m", "--sum", "n"];
    let outcome = sandbox.run(args);
    assert_eq!(outcome.code, Some(2), "{outcome:?}");
    for part in ["error: ", "bad.csv:3", "column 1 \"at\"", "yesterday", "help: ", "--on-error skip"] {
        assert!(outcome.stderr.contains(part), "{outcome:?} lacks {part}");
    }
    let outcome = sandbox.run(args.iter().chain(&["--on-error", "skip", "--output", "json"]));
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
    assert!(
        outcome.stderr.contains("skipped: bad.csv:4") && outcome.stderr.contains("2 skipped"),
        "{outcome:?}"
    );
    assert!(text(&outcome).contains("\"count\":2,\"sum\":{\"n\":6}"), "{outcome:?}");
}

#[test]
fn an_input_that_changed_behind_the_position_is_an_error() {
    let sandbox = Sandbox::new();
    sandbox.write("in.csv", "at\n2020-01-01T00:00:00Z\n");
    let args = ["window", "in.csv", "--time", "at", "--size", "1m"];
    sandbox.ok(&args);
    sandbox.write("in.csv", "at\n2021-01-01T00:00:00Z\n2021-01-01T00:00:01Z\n");
    let outcome = sandbox.run(args);
    assert!(outcome.code == Some(2) && outcome.stderr.contains("in.csv"), "{outcome:?}");
    let outcome = sandbox.run(args.iter().map(|arg| if *arg == "1m" { "2m" } else { arg }));
    assert!(outcome.code == Some(2) && outcome.stderr.contains("--restart"), "{outcome:?}");
    assert!(!outcome.stderr.contains("how stores are named"), "{outcome:?}");
    sandbox.ok(&[&args[..], &["--restart"]].concat());
}

#[test]
fn wrong_usage_of_windows_is_refused() {
    let sandbox = Sandbox::new();
    sandbox.write("in.csv", "at\n2020-01-01T00:00:00Z\n");
    sandbox.write("in.txt", "at\n2020-01-01T00:00:00Z\n");
    let wrong: &[&[&str]] = &[
        &["in.csv", "--size", "1m"],
        &["in.csv", "--time", "at"],
        &["in.csv", "--time", "at", "--size", "1m", "--session", "1m"],
        &["in.csv", "--time", "at", "--slide", "1m"],
        &["in.csv", "--time", "at", "--session", "1m", "--slide", "1m"],
        &["in.csv", "--time", "at", "--size", "1m", "--slide", "2m"],
        &["in.csv", "--time", "nowhere", "--size", "1m"],
        &["in.csv", "--time", "at", "--size", "1m", "--sum", "nothing"],
        &["in.txt", "--time", "at", "--size", "1m"],
        &["missing.csv", "--time", "at", "--size", "1m"],
        &[".", "--time", "at", "--size", "1m", "--format", "csv"],
        &["in.csv", "--time", "at", "--size", "1m", "--commit-every", "0"],
        &["in.csv", "--time", "at", "--size", "1m", "--job", ""],
        &["list", "--output", "csv"],
        &["show"],
    ];
    for args in wrong {
        let outcome = sandbox.run([&["window"], *args].concat());
        assert_eq!(outcome.code, Some(2), "{args:?}: {outcome:?}");
    }
    assert_eq!(sandbox.run(["window", "show", "nothing"]).code, Some(1));
    assert_eq!(sandbox.run(["list", "--output", "csv"]).code, Some(2));
}
