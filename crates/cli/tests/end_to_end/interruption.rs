//! Ctrl-C, readers that go away, and stores that are in use, damaged or foreign.

use std::{
    fs,
    io::{BufRead as _, BufReader},
};

use crate::sandbox::Sandbox;

#[tokio::test]
async fn a_reader_that_goes_away_ends_a_command_quietly() {
    let sandbox = Sandbox::new();
    let keys = (0..20_000).map(|i| (format!("{i:0100}"), ""));
    sandbox.with_store("data", async |store| store.batch_put(keys).await.unwrap()).await;
    let mut list = sandbox.start(["--store", "disk:data", "list"]);
    let mut line = String::new();
    BufReader::new(list.child().stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line.len(), 101);
    let outcome = list.end();
    assert_eq!((outcome.code, outcome.stderr.as_str()), (Some(0), ""));
}

#[test]
fn a_second_process_is_told_who_has_the_store_open() {
    let sandbox = Sandbox::new();
    let mut holder = sandbox.start(["watch"]);
    holder.wait_for_note("note:");
    // The note comes once the store is open.
    let outcome = sandbox.run(["get", "k"]);
    assert_eq!(outcome.code, Some(3), "{outcome:?}");
    assert!(outcome.stderr.contains(&holder.child().id().to_string()), "{outcome:?}");
    holder.kill();
    assert_eq!(sandbox.run(["get", "k"]).code, Some(1));
}

#[test]
fn a_value_may_be_piped_from_the_store_it_goes_to() {
    let sandbox = Sandbox::new();
    let mut put = sandbox.start(["put", "k", "-"]);
    sandbox.ok(&["put", "other", "v"]);
    drop(put.child().stdin.take());
    assert_eq!(put.end().code, Some(0));
    assert_eq!(sandbox.ok(&["list"]), "k\nother\n");
}

#[test]
fn ctrl_c_ends_a_watch_and_a_bench_which_cleans_up() {
    let sandbox = Sandbox::new();
    let mut watch = sandbox.start(["watch"]);
    watch.wait_for_note("note:");
    watch.interrupt();
    assert_eq!(watch.end().code, Some(130));

    let mut bench = sandbox.start(["bench", "--store", "disk:bench", "--ops", "put", "--duration", "1h"]);
    bench.wait_for_growth(&sandbox.path("bench"), 1024 * 1024);
    bench.interrupt();
    let outcome = bench.end();
    assert_eq!(outcome.code, Some(130), "{outcome:?}");
    assert!(outcome.stderr.contains("deleted"), "{outcome:?}");
    assert_eq!(sandbox.ok(&["--store", "disk:bench", "count"]), "0\n");
}

#[test]
fn damaged_foreign_and_forbidden_directories_have_their_exit_codes() {
    let sandbox = Sandbox::new();
    fs::create_dir(sandbox.path("foreign")).unwrap();
    sandbox.write("foreign/letter.txt", "Dear Ada");
    assert_eq!(sandbox.run(["--store", "disk:foreign", "list"]).code, Some(2));
    assert_eq!(fs::read_dir(sandbox.path("foreign")).unwrap().count(), 1);

    sandbox.ok(&["put", "k", "v"]);
    sandbox.write("commonhold-data/version", "nonsense");
    let outcome = sandbox.run(["get", "k"]);
    assert_eq!(outcome.code, Some(4), "{outcome:?}");
    assert!(outcome.stderr.contains("commonhold-data"), "{outcome:?}");

    sandbox.write("file", "");
    assert_eq!(sandbox.run(["--store", "disk:file", "get", "k"]).code, Some(2));
    assert_eq!(sandbox.run(["--store", "disk:file/below", "get", "k"]).code, Some(2));
}
