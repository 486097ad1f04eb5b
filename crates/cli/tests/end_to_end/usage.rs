//! Help, completions and wrong usage.

use crate::sandbox::Sandbox;

const COMMANDS: &[&str] = &[
    "get",
    "put",
    "delete",
    "list",
    "count",
    "clear",
    "increment",
    "ttl",
    "take",
    "watch",
    "copy",
    "doctor",
    "bench",
    "lock",
    "elect",
    "counter",
    "limit",
    "breaker",
    "window",
    "completions",
];

#[test]
fn every_command_has_help_with_an_example() {
    let sandbox = Sandbox::new();
    let all = sandbox.ok(&["--help"]);
    assert!(all.contains("Examples:") && all.contains("Exit codes:"), "{all}");
    for command in COMMANDS {
        assert!(all.contains(&format!("\n  {command} ")), "{command} is not in the help");
        let help = sandbox.ok(&[command, "--help"]);
        assert!(help.contains("Examples:\n") && help.contains(&format!("  commonhold {command}")), "{help}");
    }
}

#[test]
fn no_command_is_without_a_test_of_its_help() {
    let listed = Sandbox::new().ok(&["--help"]);
    let commands = listed.split("Commands:").nth(1).unwrap().split("\n\n").next().unwrap();
    let commands: Vec<_> =
        commands.lines().filter_map(|line| line.strip_prefix("  ")?.split(' ').next()).collect();
    let commands: Vec<_> = commands.into_iter().filter(|name| !name.is_empty() && *name != "help").collect();
    assert_eq!(commands, COMMANDS);
}

#[test]
fn completions_are_made_for_every_shell() {
    let sandbox = Sandbox::new();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = sandbox.ok(&["completions", shell]);
        assert!(script.contains("increment") && script.contains("namespace"), "{shell}");
    }
}

#[test]
fn wrong_usage_is_an_error_of_its_own() {
    let sandbox = Sandbox::new();
    let wrong: &[&[&str]] = &[
        &[],
        &["gett", "k"],
        &["get"],
        &["put", "k"],
        &["put", "k", "v", "--ttl", "soon"],
        &["put", "k", "v", "--if-absent", "--if-equals", "w"],
        &["list", "--limit", "0"],
        &["increment", "n", "many"],
        &["bench", "--ops", "fly"],
        &["completions", "tcsh"],
        &["lock", "--", "true"],
        &["lock", "name", "--ttl", "0s"],
        &["limit", "take", "name"],
        &["breaker", "open"],
        &["--output", "xml", "list"],
    ];
    for args in wrong {
        let outcome = sandbox.run(*args);
        assert_eq!(outcome.code, Some(2), "{args:?}: {outcome:?}");
    }
}
