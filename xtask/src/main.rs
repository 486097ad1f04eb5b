//! `cargo xtask test`: everything that must hold before a change lands, in one command.

mod matrix;
mod servers;

use std::{
    env,
    process::{Command, ExitCode, Stdio},
    time::Instant,
};

const USAGE: &str = "usage: cargo xtask test [FILTER]
       cargo xtask servers COMMAND...
       cargo xtask matrix

Checks formatting and lints, builds, and runs every test and doc test. With FILTER only the tests whose
name contains it.

`servers` runs a command with the servers that the tests share, as in
`cargo xtask servers cargo nextest run -p commonhold-redis --all-features`.

`matrix` writes docs/feature-matrix.md; a test fails when that is out of date.

The tests run against real servers, which are started for them. As root, those that are missing are installed.
COMMONHOLD_TEST_REDIS_URL, _REDIS_SENTINEL_URL, _REDIS_CLUSTER_URL, _POSTGRES_URL and _MEMCACHED_URL name
servers to use instead.";

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let passed = match arguments.as_slice() {
        ["test"] => test(),
        ["test", filter] => servers::install() && run_tests(Some(filter)),
        ["servers", program, arguments @ ..] => {
            let mut command = Command::new(program);
            command.args(arguments);
            servers::install() && servers::share(&mut command) && step("with servers", command)
        }
        ["matrix"] => {
            servers::install() && step("feature matrix", matrix::write(cargo(&["test", "--quiet"])))
        }
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
    servers::install()
        && step("formatting", cargo(&["fmt", "--all", "--check"]))
        && step("lints", {
            let mut lints = workspace(&["clippy", "--all-targets", "--quiet"]);
            lints.args(["--", "-D", "warnings"]);
            lints
        })
        && step("documentation", {
            let mut doc = workspace(&["doc", "--no-deps", "--quiet"]);
            doc.env("RUSTDOCFLAGS", "-D warnings");
            doc
        })
        && step("doc tests", workspace(&["test", "--doc", "--quiet"]))
        && run_tests(None)
}

/// The tests with the servers that they share, by nextest where it is installed.
fn run_tests(filter: Option<&str>) -> bool {
    let nextest = cargo(&["nextest", "--version"]).stdout(Stdio::null()).stderr(Stdio::null()).status();
    let mut tests = match nextest {
        Ok(status) if status.success() => workspace(&["nextest", "run", "--no-fail-fast"]),
        _ => workspace(&["test", "--lib", "--bins", "--tests", "--no-fail-fast"]),
    };
    // The benchmarks are linted, not run.
    tests.args(["--exclude", "commonhold-bench"]).args(filter);
    servers::share(&mut tests) && step("tests", tests)
}

/// A command of cargo for all crates with all features.
fn workspace(arguments: &[&str]) -> Command {
    let mut command = cargo(arguments);
    command.args(["--workspace", "--all-features", "--locked"]);
    command
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
