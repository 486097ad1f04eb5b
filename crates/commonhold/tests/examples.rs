//! The examples do what they say, also as processes of their own.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic, missing_docs)]

use std::{
    env,
    process::{Child, Command, Stdio},
    time::Instant,
};

use commonhold_testkit::servers::{shared::redis_url, unique};

fn start(example: &str, arguments: &[&str]) -> Child {
    // Cargo puts examples beside the directory of tests.
    let tests = env::current_exe().unwrap();
    let path = tests.parent().unwrap().parent().unwrap().join("examples").join(example);
    let directory = env::temp_dir();
    let mut command = Command::new(path);
    command.args(arguments).current_dir(directory).stdout(Stdio::piped());
    command.spawn().expect("examples are built with all tests, or by `cargo build --examples`")
}

fn output(child: Child) -> String {
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// What three instances print that are started at once over one store.
fn of_three(example: &str) -> String {
    let store = format!("{}?prefix={}:", redis_url(), unique("example"));
    let children = [(); 3].map(|()| start(example, &[&store]));
    children.map(output).concat()
}

#[test]
fn a_job_runs_once_across_three_processes_and_in_one() {
    for printed in [of_three("once"), output(start("once", &[]))] {
        assert_eq!(printed.matches("runs the job").count(), 1, "{printed}");
        assert_eq!(printed.matches("finds that it is done").count(), 2, "{printed}");
    }
}

#[test]
fn calls_are_limited_across_three_processes_and_in_one() {
    for play in [|| of_three("limited"), || output(start("limited", &[]))] {
        let begun = Instant::now();
        let printed = play();
        let most = 5.0 + 10.0 * begun.elapsed().as_secs_f64();
        let (at_once, later) = (printed.matches("at once").count(), printed.matches(": now").count());
        assert_eq!(at_once + later, 15, "{printed}");
        assert!(later > 0 && (at_once + later) as f64 <= most, "{most} at most: {printed}");
    }
}

#[test]
fn three_instances_stop_calling_when_two_have_seen_failures() {
    let printed = output(start("breaker", &[]));
    assert!(printed.starts_with("round 1, instance 1: no answer\n"), "{printed}");
    let last = printed.lines().filter(|line| line.starts_with("round 3"));
    assert_eq!(last.filter(|line| line.contains("the circuit breaker is open")).count(), 3, "{printed}");
}

#[test]
fn the_quickstart_comes_to_its_end() {
    assert!(!output(start("quickstart", &[])).is_empty());
}
