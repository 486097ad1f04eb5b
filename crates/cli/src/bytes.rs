//! Keys and values on a terminal: bytes as text on one line that can be typed back, and as JSON.

use std::{borrow::Cow, ffi::OsStr, fmt::Write as _};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use serde_json::{Map, Value};

use crate::failure::{Failure, Result};

/// The bytes as text on one line: what can be printed as it is, the rest as `\n`, `\r`, `\t`, `\\` or `\xff`.
///
/// [`unescape`] takes it back to the same bytes.
pub(crate) fn escape(bytes: &[u8]) -> Cow<'_, str> {
    match std::str::from_utf8(bytes) {
        Ok(text) if text.chars().all(is_plain) => Cow::Borrowed(text),
        _ => Cow::Owned(escaped(bytes)),
    }
}

fn escaped(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len() + 8);
    let hex = |text: &mut String, bytes: &[u8]| {
        for byte in bytes {
            let _infallible = write!(text, "\\x{byte:02x}");
        }
    };
    for chunk in bytes.utf8_chunks() {
        for char in chunk.valid().chars() {
            match char {
                '\n' => text.push_str("\\n"),
                '\r' => text.push_str("\\r"),
                '\t' => text.push_str("\\t"),
                '\\' => text.push_str("\\\\"),
                char if is_plain(char) => text.push(char),
                char => hex(&mut text, char.encode_utf8(&mut [0; 4]).as_bytes()),
            }
        }
        hex(&mut text, chunk.invalid());
    }
    text
}

/// Whether a terminal shows this character and does nothing else with it. Beyond ASCII the standard library
/// knows which characters are invisible, steer the direction of text or change the character before them.
fn is_plain(char: char) -> bool {
    match char {
        '\\' => false,
        ' '..='~' => true,
        char => !char.is_ascii() && char.escape_debug().len() == 1,
    }
}

/// Whether a terminal shows these bytes as they are meant, over several lines.
pub(crate) fn is_text(bytes: &[u8]) -> bool {
    let shown = |char: char| matches!(char, '\n' | '\t' | '\\') || is_plain(char);
    std::str::from_utf8(bytes).is_ok_and(|text| text.replace("\r\n", "\n").chars().all(shown))
}

/// The bytes that [`escape`] printed, or a person wrote: `\n`, `\r`, `\t`, `\0`, `\\`, `\"` or `\xff`.
pub(crate) fn unescape(text: &[u8]) -> Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&byte, tail)) = rest.split_first() {
        rest = tail;
        if byte != b'\\' {
            bytes.push(byte);
            continue;
        }
        let (byte, tail) = unescape_one(tail).ok_or_else(|| {
            let at = text.len() - tail.len();
            Failure::usage(format!(
                "the backslash at byte {at} of \"{}\" begins no escape",
                String::from_utf8_lossy(text)
            ))
            .help("escapes are \\n \\r \\t \\0 \\\\ \\\" and \\xNN; a backslash itself is \\\\")
        })?;
        bytes.push(byte);
        rest = tail;
    }
    Ok(bytes)
}

fn unescape_one(rest: &[u8]) -> Option<(u8, &[u8])> {
    let (&escape, rest) = rest.split_first()?;
    Some(match escape {
        b'n' => (b'\n', rest),
        b'r' => (b'\r', rest),
        b't' => (b'\t', rest),
        b'0' => (0, rest),
        b'\\' | b'"' => (escape, rest),
        b'x' => {
            let (digits, rest) = rest.split_at_checked(2)?;
            let digit = |digit: &u8| char::from(*digit).to_digit(16);
            let [high, low] = digits else { return None };
            (u8::try_from(digit(high)? * 16 + digit(low)?).ok()?, rest)
        }
        _ => return None,
    })
}

/// The bytes of an argument: as they are, or with escapes where `--escaped` says so.
pub(crate) fn argument(argument: &OsStr, escaped: bool) -> Result<Vec<u8>> {
    let bytes = argument.as_encoded_bytes();
    if escaped { unescape(bytes) } else { Ok(bytes.to_vec()) }
}

/// Adds bytes to a JSON object without loss: as `NAME` if they are UTF-8, else as `NAME_base64`.
pub(crate) fn insert(object: &mut Map<String, Value>, name: &str, bytes: &[u8]) {
    match std::str::from_utf8(bytes) {
        Ok(text) => object.insert(name.to_owned(), text.into()),
        Err(_) => object.insert(format!("{name}_base64"), BASE64_STANDARD.encode(bytes).into()),
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_printed_can_be_typed_back_whatever_the_bytes() {
        let all: Vec<u8> = (0..=255).collect();
        let cases =
            [&all[..], b"", b"plain key", "caf\u{e9} \u{202e}\u{200b}\u{301}\u{85}".as_bytes(), b"\\x00\\"];
        for bytes in cases {
            let text = escape(bytes);
            assert!(text.chars().all(|char| !char.is_control()), "{text}");
            assert_eq!(unescape(text.as_bytes()).unwrap(), bytes, "{text}");
        }
        let display = commonhold::Key::new(&all).unwrap().to_string();
        assert_eq!(unescape(display.as_bytes()).unwrap(), all);
    }

    #[test]
    fn ordinary_text_is_printed_as_it_is() {
        for text in ["user:1", "caf\u{e9}", "say \"hi\" *", "\u{65e5}\u{672c}"] {
            assert_eq!(escape(text.as_bytes()), text);
        }
        assert_eq!(escape(b"a\nb\\\xff\x1b"), "a\\nb\\\\\\xff\\x1b");
        assert_eq!(escape("\u{202e}".as_bytes()), "\\xe2\\x80\\xae");
    }

    #[test]
    fn an_escape_that_does_not_exist_is_refused_with_its_place() {
        for (text, at) in [("a\\q", "2"), ("\\", "1"), ("ab\\x1", "3"), ("\\xg0", "1")] {
            let failure = unescape(text.as_bytes()).unwrap_err().to_string();
            assert!(failure.contains(&format!("byte {at} ")), "{failure}");
        }
    }

    #[test]
    fn json_names_say_whether_the_bytes_are_text() {
        let mut object = Map::new();
        insert(&mut object, "key", b"a");
        insert(&mut object, "value", b"\xff\x00");
        assert_eq!(Value::Object(object).to_string(), r#"{"key":"a","value_base64":"/wA="}"#);
    }
}
