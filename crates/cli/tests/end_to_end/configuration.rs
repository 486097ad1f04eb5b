//! Flags, environment and file, on the real binary.

use crate::sandbox::Sandbox;

#[test]
fn flags_win_over_the_environment_over_the_file_over_the_default() {
    let sandbox = Sandbox::new();
    for store in ["./commonhold-data", "file", "env", "flag", "elsewhere"] {
        sandbox.ok(&["--store", &format!("disk:{store}"), "put", "which", store]);
    }
    let which = |args: &[&str], environment: &[(&str, &str)]| {
        let outcome = sandbox.run_with(args.iter().chain(&["get", "which"]), environment, b"");
        assert_eq!(outcome.code, Some(0), "{outcome:?}");
        String::from_utf8(outcome.stdout).unwrap()
    };
    assert_eq!(which(&[], &[]), "./commonhold-data");
    sandbox.write("other.toml", "[store]\nurl = \"disk:elsewhere\"\n");
    assert_eq!(which(&["--config", "other.toml"], &[]), "elsewhere");
    sandbox.write("commonhold.toml", "[store.disk]\npath = \"file\"\ndurability = \"buffered\"\n");
    assert_eq!(which(&[], &[]), "file");
    assert_eq!(which(&["--config", "other.toml"], &[]), "elsewhere");
    assert_eq!(which(&[], &[("COMMONHOLD_CONFIG", "other.toml")]), "elsewhere");
    assert_eq!(which(&[], &[("COMMONHOLD_STORE__DISK__PATH", "env")]), "env");
    assert_eq!(which(&[], &[("COMMONHOLD_STORE", "disk:env")]), "env");
    assert_eq!(which(&["--store", "disk:flag"], &[("COMMONHOLD_STORE", "disk:env")]), "flag");
}

#[test]
fn an_unknown_key_or_option_is_refused_with_a_suggestion() {
    let sandbox = Sandbox::new();
    sandbox.write("commonhold.toml", "[store.disk]\n# a comment\ndurabilty = \"sync\"\n");
    let outcome = sandbox.run(["list"]);
    assert_eq!(outcome.code, Some(2));
    assert!(
        outcome.stderr.contains("commonhold.toml:3") && outcome.stderr.contains("\"durability\""),
        "{outcome:?}"
    );
    sandbox.write("commonhold.toml", "");
    for args in [
        ["--store", "disk:x?durabilty=sync"],
        ["--store", "dsk:x"],
        ["--store", "memory:x"],
        ["--config", "missing.toml"],
    ] {
        let outcome = sandbox.run(args.iter().chain(&["list"]));
        assert_eq!(outcome.code, Some(2), "{args:?} {outcome:?}");
        assert_eq!(outcome.stderr.lines().count(), 2, "{outcome:?}");
        assert!(outcome.stderr.starts_with("error: ") && outcome.stderr.contains("\nhelp: "), "{outcome:?}");
    }
}

#[test]
fn the_output_form_can_be_configured() {
    let sandbox = Sandbox::new();
    sandbox.write("commonhold.toml", "output = \"json\"\nnamespace = \"n\"\n");
    sandbox.ok(&["put", "k", "v"]);
    assert_eq!(sandbox.ok(&["list"]), "{\"key\":\"k\"}\n");
    assert_eq!(sandbox.ok(&["list", "--output", "table"]), "k\n");
    let outcome =
        sandbox.run_with(["list"], &[("COMMONHOLD_OUTPUT", "table"), ("COMMONHOLD_NAMESPACE", "m")], b"");
    assert_eq!((outcome.code, outcome.stdout), (Some(0), vec![]));
}
