//! The store commands, and what they exit with.

use crate::sandbox::Sandbox;

#[test]
fn what_is_put_can_be_read_listed_counted_and_deleted() {
    let sandbox = Sandbox::new();
    assert_eq!(sandbox.ok(&["put", "user:1", "alice"]), "");
    sandbox.ok(&["put", "user:2", "bob"]);
    sandbox.ok(&["put", "other", "x"]);
    assert_eq!(sandbox.ok(&["get", "user:1"]), "alice");
    assert_eq!(sandbox.ok(&["list", "user:"]), "user:1\nuser:2\n");
    assert_eq!(sandbox.ok(&["list", "--limit", "1"]), "other\n");
    assert_eq!(sandbox.ok(&["count"]), "3\n");
    assert_eq!(sandbox.ok(&["count", "user:"]), "2\n");
    assert_eq!(sandbox.ok(&["delete", "user:1", "user:9"]), "deleted 1 of 2\n");
    assert_eq!(sandbox.ok(&["take", "user:2"]), "bob");
    assert_eq!(sandbox.ok(&["list"]), "other\n");
}

#[test]
fn a_missing_key_is_an_answer_of_its_own() {
    let sandbox = Sandbox::new();
    for args in
        [&["get", "k"][..], &["take", "k"], &["ttl", "k"], &["ttl", "k", "--set", "1h"], &["delete", "k"]]
    {
        let outcome = sandbox.run(args);
        assert_eq!(
            (outcome.code, outcome.stderr.starts_with("error")),
            (Some(1), false),
            "{args:?}: {outcome:?}"
        );
        assert!(!outcome.stderr.is_empty());
    }
    let outcome = sandbox.run(["get", "k", "--output", "json"]);
    assert_eq!((outcome.code, outcome.stdout), (Some(1), b"{\"found\":false,\"key\":\"k\"}\n".to_vec()));
}

#[test]
fn conditions_decide_whether_a_value_is_put() {
    let sandbox = Sandbox::new();
    let code = |args: &[&str]| sandbox.run(args).code;
    assert_eq!(code(&["put", "k", "1", "--if-equals", ""]), Some(1));
    assert_eq!(code(&["put", "k", "1", "--if-absent"]), Some(0));
    assert_eq!(code(&["put", "k", "2", "--if-absent"]), Some(1));
    assert_eq!(code(&["put", "k", "2", "--if-equals", "3"]), Some(1));
    assert_eq!(sandbox.ok(&["get", "k"]), "1");
    assert_eq!(code(&["put", "k", "2", "--if-equals", "1"]), Some(0));
    assert_eq!(sandbox.ok(&["get", "k"]), "2");
    assert_eq!(sandbox.json(&["put", "k", "3"])[0]["applied"], true);
}

#[test]
fn a_time_to_live_is_set_shown_kept_and_removed() {
    let sandbox = Sandbox::new();
    let millis = |key| sandbox.json(&["ttl", key])[0]["ttl_ms"].as_u64();
    sandbox.ok(&["put", "k", "v", "--ttl", "10m"]);
    assert!((500_000..=600_000).contains(&millis("k").unwrap()));
    let shown = sandbox.ok(&["ttl", "k"]);
    assert!(shown.contains('m') && !shown.contains("never"), "{shown}");
    sandbox.ok(&["put", "k", "w", "--keep-ttl"]);
    assert!(millis("k").is_some());
    assert_eq!(sandbox.ok(&["ttl", "k", "--persist"]), "never expires\n");
    sandbox.ok(&["ttl", "k", "--set", "2h"]);
    assert!((7_000_000..=7_200_000).contains(&millis("k").unwrap()));
    sandbox.ok(&["put", "k", "x"]);
    assert_eq!(millis("k"), None);
    assert_eq!(sandbox.run(["put", "k", "v", "--ttl", "0s"]).code, Some(2));
}

#[test]
fn a_counter_counts_and_text_is_not_counted() {
    let sandbox = Sandbox::new();
    assert_eq!(sandbox.ok(&["increment", "n"]), "1\n");
    assert_eq!(sandbox.ok(&["increment", "n", "41"]), "42\n");
    assert_eq!(sandbox.ok(&["increment", "n", "-50"]), "-8\n");
    assert_eq!(sandbox.ok(&["get", "n"]), "-8");
    sandbox.ok(&["increment", "m", "--ttl", "1h"]);
    assert!(sandbox.json(&["ttl", "m"])[0]["ttl_ms"].is_u64());
    sandbox.ok(&["put", "t", "text"]);
    assert_eq!(sandbox.run(["increment", "t"]).code, Some(2));
    assert_eq!(sandbox.run(["increment", "n", "9223372036854775807"]).code, Some(0));
    assert_eq!(sandbox.run(["increment", "n", "9"]).code, Some(2));
}

#[test]
fn clear_deletes_only_when_told_to() {
    let sandbox = Sandbox::new();
    for key in ["a1", "a2", "b"] {
        sandbox.ok(&["put", key, ""]);
    }
    let outcome = sandbox.run(["clear", "a"]);
    assert_eq!(outcome.code, Some(2));
    assert!(outcome.stderr.contains("2 entries") && outcome.stderr.contains("--yes"), "{outcome:?}");
    assert_eq!(sandbox.ok(&["count"]), "3\n");
    assert_eq!(sandbox.ok(&["clear", "a", "--yes"]), "deleted 2\n");
    assert_eq!(sandbox.ok(&["list"]), "b\n");
}

#[test]
fn a_namespace_is_apart_from_the_rest() {
    let sandbox = Sandbox::new();
    sandbox.ok(&["--namespace", "a", "put", "k", "1"]);
    sandbox.ok(&["put", "k", "2", "--namespace", "a:b"]);
    assert_eq!(sandbox.ok(&["list"]), "a:b:k\na:k\n");
    assert_eq!(sandbox.ok(&["--namespace", "a", "list"]), "b:k\nk\n");
    assert_eq!(sandbox.ok(&["--namespace", "a:b", "get", "k"]), "2");
    assert_eq!(sandbox.run(["--namespace", "a::b", "list"]).code, Some(2));
}

#[test]
fn doctor_says_what_the_store_can_do_and_leaves_nothing_behind() {
    let sandbox = Sandbox::new();
    let shown = sandbox.ok(&["doctor"]);
    for part in ["disk", "✓", "✗ several processes", "LATENCY", "put"] {
        assert!(shown.contains(part), "{shown} lacks {part}");
    }
    // The machine's disk may be nearly full.
    assert!(shown.contains("is well") || shown.contains("warning: "), "{shown}");
    let found = &sandbox.json(&["doctor"])[0];
    assert_eq!(found["capabilities"]["durable"], true);
    assert_eq!(found["capabilities"]["shared"], false);
    assert!(found["latency"]["put"]["median_ms"].as_f64().unwrap() > 0.0);
    assert_eq!(sandbox.json(&["doctor", "--store", "memory:"])[0]["capabilities"]["durable"], false);
    assert_eq!(sandbox.ok(&["count"]), "0\n");
}

#[test]
fn bench_measures_what_it_is_told_and_leaves_nothing_behind() {
    let sandbox = Sandbox::new();
    sandbox.ok(&["put", "mine", "1"]);
    let args = ["bench", "--ops", "put,get,increment", "--requests", "500", "--keys", "50", "--tasks", "4"];
    let measured = sandbox.json(&args);
    let calls: Vec<_> =
        measured.iter().map(|line| (line["op"].as_str().unwrap(), line["calls"].as_u64().unwrap())).collect();
    assert_eq!(calls, [("put", 500), ("get", 500), ("increment", 500)]);
    assert!(measured.iter().all(|line| line["p50_us"].as_f64() <= line["max_us"].as_f64()));
    let shown = sandbox.ok(&args);
    assert!(shown.contains("CALLS/S") && shown.contains('█'), "{shown}");
    assert_eq!(sandbox.ok(&["list"]), "mine\n");
}
