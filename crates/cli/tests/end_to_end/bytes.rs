//! Keys and values of any bytes, through the command line and back.

use std::{
    ffi::{OsStr, OsString},
    os::unix::ffi::{OsStrExt as _, OsStringExt as _},
};

use crate::sandbox::Sandbox;

fn all_bytes() -> Vec<u8> {
    (0..=255).collect()
}

fn escaped(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("\\x{byte:02x}")).collect()
}

#[test]
fn every_byte_survives_in_keys_and_values() {
    let sandbox = Sandbox::new();
    let value = [&all_bytes()[..], b"\n\n\0"].concat();
    // An argument cannot hold NUL, a key with escapes can.
    let raw = OsString::from_vec((1..=255).collect());
    let args = |command: &str| [OsString::from(command), raw.clone()];
    let put = sandbox.run_with(args("put").into_iter().chain(["-".into()]), &[], &value);
    assert_eq!(put.code, Some(0), "{put:?}");
    assert_eq!(sandbox.run(args("get")).stdout, value);

    let key = escaped(&all_bytes());
    let put = sandbox.run_with(["--escaped", "put", &key, "-"], &[], &value);
    assert_eq!(put.code, Some(0), "{put:?}");
    assert_eq!(sandbox.run(["get", "--escaped", &key]).stdout.last(), Some(&b'\n'));

    // What list prints can be given back.
    let listed = sandbox.ok(&["list"]);
    let keys: Vec<_> = listed.lines().collect();
    assert_eq!(keys.len(), 2);
    for key in keys {
        assert_eq!(sandbox.ok(&["--escaped", "delete", key]), "deleted 1 of 1\n");
    }
}

#[test]
fn json_holds_every_byte_too() {
    let sandbox = Sandbox::new();
    sandbox.ok(&["--escaped", "put", "k\\x00\\xff", "v\\x00\\xfe"]);
    sandbox.ok(&["put", "caf\u{e9} \"\n", "\u{65e5}\u{672c}"]);
    let listed = sandbox.json(&["list", "--long"]);
    assert_eq!(listed[0]["key"], "caf\u{e9} \"\n");
    assert_eq!(listed[1]["key_base64"], "awD/");
    assert_eq!(listed[1]["size"], 3);
    let entry = &sandbox.json(&["--escaped", "get", "k\\x00\\xff"])[0];
    assert_eq!((entry["key_base64"].as_str(), entry["value_base64"].as_str()), (Some("awD/"), Some("dgD+")));
}

#[test]
fn a_value_comes_from_an_argument_a_file_or_standard_input_byte_for_byte() {
    let sandbox = Sandbox::new();
    for value in [&b""[..], b"no newline", b"a newline\n", b"-5", b"\xff\xfe", b"two\nlines\r\n"] {
        sandbox.write("value", value);
        assert_eq!(sandbox.run(["put", "k", "--file", "value"]).code, Some(0));
        assert_eq!(sandbox.run(["get", "k"]).stdout, value);
        assert_eq!(sandbox.run_with(["put", "k", "-"], &[], value).code, Some(0));
        assert_eq!(sandbox.run(["get", "k"]).stdout, value);
        let outcome = sandbox.run([OsStr::new("put"), OsStr::new("k"), OsStr::from_bytes(value)]);
        assert_eq!(outcome.code, Some(0), "{outcome:?}");
        assert_eq!(sandbox.run(["get", "k"]).stdout, value);
    }
    let outcome = sandbox.run(["put", "k", "--file", "missing"]);
    assert!(outcome.code == Some(2) && outcome.stderr.contains("missing"), "{outcome:?}");
}

#[test]
fn keys_are_listed_one_a_line_whatever_is_in_them() {
    let sandbox = Sandbox::new();
    sandbox.ok(&["put", "a\nb", "1"]);
    sandbox.ok(&["put", "c\\d", "2"]);
    sandbox.ok(&["put", "\u{1b}[31m", "3"]);
    assert_eq!(sandbox.ok(&["list"]), "\\x1b[31m\na\\nb\nc\\\\d\n");
    assert_eq!(sandbox.ok(&["list", "a\n"]), "a\\nb\n");
    assert_eq!(sandbox.ok(&["--escaped", "list", "a\\n"]), "a\\nb\n");
    assert_eq!(sandbox.ok(&["--escaped", "get", "c\\\\d"]), "2\n");
}

#[test]
fn keys_out_of_range_and_wrong_escapes_are_refused() {
    let sandbox = Sandbox::new();
    for args in [
        &["get", ""][..],
        &["get", &"k".repeat(1025)],
        &["--escaped", "get", "a\\q"],
        &["--escaped", "get", "\\x0"],
    ] {
        let outcome = sandbox.run(args);
        assert_eq!(outcome.code, Some(2), "{args:?}: {outcome:?}");
        assert!(outcome.stderr.starts_with("error: "), "{outcome:?}");
    }
    let outcome = sandbox.run(["--store", "disk:s?max_value=4B", "put", "k", "12345"]);
    assert_eq!(outcome.code, Some(2), "{outcome:?}");
}
