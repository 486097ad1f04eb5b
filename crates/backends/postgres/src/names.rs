//! The names of the table and of what belongs to it, checked and quoted.

use commonhold_core::{Error, ErrorKind, Result};

/// The longest name that PostgreSQL keeps; it cuts longer ones without a word.
const MAX_LEN: usize = 63;

/// Names that are ready to stand in SQL.
#[derive(Debug, Clone)]
pub(crate) struct Names {
    /// The schema, quoted.
    pub(crate) schema: String,
    /// The table, quoted and with its schema.
    pub(crate) table: String,
    /// The view for people, quoted and with its schema.
    pub(crate) view: String,
    /// The sequence of the locks' fencing tokens, quoted and with its schema.
    pub(crate) tokens: String,
    /// The table's own name, as it was given.
    pub(crate) bare_table: String,
}

impl Names {
    /// # Errors
    /// `InvalidConfig` unless both have 1 to 63 bytes without NUL.
    pub(crate) fn new(schema: &str, table: &str) -> Result<Self> {
        check("schema", schema)?;
        check("table", table)?;
        let schema = quoted(schema);
        Ok(Self {
            table: format!("{schema}.{}", quoted(table)),
            view: format!("{schema}.{}", quoted(&with_suffix(table, "_readable"))),
            tokens: format!("{schema}.{}", quoted(&with_suffix(table, "_lock_tokens"))),
            schema,
            bare_table: table.to_owned(),
        })
    }
}

fn check(what: &str, name: &str) -> Result<()> {
    if (1..=MAX_LEN).contains(&name.len()) && !name.contains('\0') {
        return Ok(());
    }
    let message = format!("the name of the {what} has 1 to {MAX_LEN} bytes without NUL, not {}", name.len());
    Err(Error::new(ErrorKind::InvalidConfig, message))
}

/// The name between double quotes, those inside doubled: any name is just a name then.
pub(crate) fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// The text as a literal, whatever `standard_conforming_strings` is.
pub(crate) fn literal(text: &str) -> String {
    format!("E'{}'", text.replace('\\', "\\\\").replace('\'', "''"))
}

/// The name with a suffix; a long one is cut and told apart from others by its hash.
fn with_suffix(name: &str, suffix: &str) -> String {
    if name.len() + suffix.len() <= MAX_LEN {
        return format!("{name}{suffix}");
    }
    let end = name.floor_char_boundary(MAX_LEN - suffix.len() - 9);
    format!("{}_{:08x}{suffix}", name.get(..end).unwrap_or_default(), fnv1a(name.as_bytes()))
}

/// The hash of Fowler, Noll and Vo, the same in every build.
fn fnv1a(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0x811c_9dc5, |hash, &byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_names_are_just_names() {
        let names = Names::new("a\"; DROP SCHEMA public; --", "x'\\\"y").unwrap();
        assert_eq!(names.table, r#""a""; DROP SCHEMA public; --"."x'\""y""#);
        assert_eq!(literal("x'\\"), "E'x''\\\\'");
    }

    #[test]
    fn names_out_of_range_are_refused() {
        for name in ["", "a\0b", &"x".repeat(64)] {
            assert_eq!(Names::new("public", name).unwrap_err().kind(), ErrorKind::InvalidConfig);
            assert_eq!(Names::new(name, "t").unwrap_err().kind(), ErrorKind::InvalidConfig);
        }
    }

    #[test]
    fn views_of_long_tables_have_names_that_fit_and_differ() {
        let [one, other] =
            ["a", "b"].map(|end| with_suffix(&format!("{}{end}", "\u{e9}".repeat(31)), "_readable"));
        assert!(one != other && one.len() <= MAX_LEN && one.ends_with("_readable"), "{one} {other}");
    }
}
