//! `cargo xtask test`: everything that must hold before a change lands, in one command.

use std::{
    env,
    process::{Command, ExitCode, Stdio},
    time::Instant,
};

const USAGE: &str = "usage: cargo xtask test [FILTER]

Checks formatting and lints, builds, and runs every test and doc test. With FILTER only the tests whose
name contains it.";

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let passed = match arguments.as_slice() {
        ["test"] => test(),
        ["test", filter] => run_tests(Some(filter)),
        ["help" | "--help" | "-h"] => {
            println!("{USAGE}");
            true
        }
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Each step, cheapest first, until one fails.
fn test() -> bool {
    step("formatting", cargo(&["fmt", "--all", "--check"]))
        && step(
            "lints",
            cargo(&["clippy", "--workspace", "--all-targets", "--locked", "--quiet", "--", "-D", "warnings"]),
        )
        && step("documentation", {
            let mut doc = cargo(&["doc", "--workspace", "--no-deps", "--locked", "--quiet"]);
            doc.env("RUSTDOCFLAGS", "-D warnings");
            doc
        })
        && step("doc tests", cargo(&["test", "--workspace", "--doc", "--locked", "--quiet"]))
        && run_tests(None)
}

/// The tests, by nextest where it is installed.
fn run_tests(filter: Option<&str>) -> bool {
    let nextest = cargo(&["nextest", "--version"]).stdout(Stdio::null()).stderr(Stdio::null()).status();
    let mut tests = match nextest {
        Ok(status) if status.success() => cargo(&["nextest", "run", "--no-fail-fast"]),
        _ => cargo(&["test", "--lib", "--bins", "--tests", "--no-fail-fast"]),
    };
    // The benchmarks are linted, not run.
    tests.args(["--workspace", "--exclude", "commonhold-bench", "--locked"]).args(filter);
    step("tests", tests)
}

fn cargo(arguments: &[&str]) -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(arguments);
    command
}

fn step(name: &str, mut command: Command) -> bool {
    eprintln!("== {name}");
    let begun = Instant::now();
    let passed = match command.status() {
        Ok(status) => status.success(),
        Err(error) => {
            eprintln!("cannot run cargo: {error}");
            false
        }
    };
    eprintln!("== {name}: {} in {:.0?}", if passed { "passed" } else { "FAILED" }, begun.elapsed());
    passed
}
