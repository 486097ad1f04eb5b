//! What commands print: lines for people, one JSON object a line for programs, colours only where they show.

use std::{
    env,
    io::{self, BufWriter, IsTerminal as _, Stdout, Write},
    time::Duration,
};

use bytesize::ByteSize;
use clap::{
    ValueEnum,
    builder::styling::{AnsiColor, Style},
};
use serde::Serialize;

use crate::failure::Result;

/// The form of the output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub(crate) enum Format {
    /// Aligned text for people.
    #[default]
    Table,
    /// One JSON object a line.
    Json,
    /// Comma-separated values with a header; windows only.
    Csv,
}

/// When to use colours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub(crate) enum Color {
    /// On a terminal, unless NO_COLOR is set.
    #[default]
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

/// Standard output.
#[derive(Debug)]
pub(crate) struct Output {
    pub(crate) format: Format,
    pub(crate) terminal: bool,
    color: bool,
    stdout: BufWriter<Stdout>,
}

impl Output {
    pub(crate) fn new(format: Format, color: Color) -> Self {
        let stdout = io::stdout();
        let terminal = stdout.is_terminal();
        let plain = || {
            env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())
                || env::var_os("TERM").is_some_and(|term| term == "dumb")
        };
        let color = match color {
            Color::Auto => terminal && !plain(),
            Color::Always => true,
            Color::Never => false,
        };
        Self { format, terminal, color, stdout: BufWriter::with_capacity(64 * 1024, stdout) }
    }

    pub(crate) fn is_json(&self) -> bool {
        self.format == Format::Json
    }

    /// Prints a line.
    pub(crate) fn line(&mut self, line: impl AsRef<str>) -> Result<()> {
        self.raw(line.as_ref().as_bytes())?;
        self.raw(b"\n")
    }

    /// Prints one JSON object on a line.
    pub(crate) fn json(&mut self, object: &impl Serialize) -> Result<()> {
        serde_json::to_writer(&mut self.stdout, object).map_err(io::Error::from)?;
        self.raw(b"\n")
    }

    /// For what writes by itself.
    pub(crate) fn writer(&mut self) -> &mut impl Write {
        &mut self.stdout
    }

    /// Prints bytes as they are.
    pub(crate) fn raw(&mut self, bytes: &[u8]) -> Result<()> {
        Ok(self.stdout.write_all(bytes)?)
    }

    /// Hands everything printed so far to the reader.
    pub(crate) fn flush(&mut self) -> Result<()> {
        Ok(self.stdout.flush()?)
    }

    /// The text in this style, where colours are shown.
    pub(crate) fn paint(&self, style: Style, text: &str) -> String {
        if self.color && !text.is_empty() { format!("{style}{text}{style:#}") } else { text.to_owned() }
    }
}

/// The style of headings.
pub(crate) const HEADING: Style = Style::new().bold();
/// The style of what matters less.
pub(crate) const FAINT: Style = Style::new().dimmed();
/// The style of what is well.
pub(crate) const GOOD: Style = AnsiColor::Green.on_default();
/// The style of what needs attention.
pub(crate) const WARNING: Style = AnsiColor::Yellow.on_default();
/// The style of bars.
pub(crate) const BAR: Style = AnsiColor::Cyan.on_default();

/// Tells people something that is not the output, on standard error.
pub(crate) fn note(text: impl AsRef<str>) {
    // Where nobody listens, the work goes on all the same.
    let _ = writeln!(io::stderr(), "{}", text.as_ref());
}

/// Bytes, as people say it: `512 B`, `1.5 MiB`.
pub(crate) fn size(bytes: u64) -> String {
    ByteSize::b(bytes).display().iec().to_string()
}

/// A duration as people say it, with its two largest units: `850ns`, `1.25ms`, `29m 59s`, `3d 4h`.
pub(crate) fn duration(duration: Duration) -> String {
    let (seconds, nanos) = (duration.as_secs(), duration.as_nanos());
    match seconds {
        0 if nanos < 1_000 => format!("{nanos}ns"),
        0 if nanos < 1_000_000 => three_digits(nanos as f64 / 1e3, "µs"),
        0 => three_digits(nanos as f64 / 1e6, "ms"),
        1..60 => three_digits(duration.as_secs_f64(), "s"),
        60..3_600 => two_units(seconds / 60, "m", seconds % 60, "s"),
        3_600..86_400 => two_units(seconds / 3_600, "h", seconds % 3_600 / 60, "m"),
        _ => two_units(seconds / 86_400, "d", seconds % 86_400 / 3_600, "h"),
    }
}

fn three_digits(number: f64, unit: &str) -> String {
    let decimals = match number {
        ..9.995 => 2,
        9.995..99.95 => 1,
        _ => 0,
    };
    let text = format!("{number:.decimals$}");
    let text = if decimals > 0 { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
    format!("{text}{unit}")
}

fn two_units(first: u64, first_unit: &str, second: u64, second_unit: &str) -> String {
    match second {
        0 => format!("{first}{first_unit}"),
        _ => format!("{first}{first_unit} {second}{second_unit}"),
    }
}

/// A whole number with separators between thousands; anything else as it is: `1,234,567`, `-12.5`.
pub(crate) fn thousands(number: impl ToString) -> String {
    let text = number.to_string();
    let (sign, digits) = text.split_at(usize::from(text.starts_with('-')));
    let (whole, fraction) =
        digits.split_at(digits.find(|char: char| !char.is_ascii_digit()).unwrap_or(digits.len()));
    if whole.len() < 4 {
        return text;
    }
    let mut grouped = String::from(sign);
    for (index, digit) in whole.chars().enumerate() {
        if index > 0 && (whole.len() - index).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped + fraction
}

/// How many there are of something: `1 event`, `1,234 events`.
pub(crate) fn counted(number: u64, what: &str) -> String {
    format!("{} {what}{}", thousands(number), if number == 1 { "" } else { "s" })
}

/// How many entries.
pub(crate) fn entries(number: u64) -> String {
    if number == 1 { "1 entry".to_owned() } else { format!("{} entries", thousands(number)) }
}

/// A number that is known to about one part in a hundred, to three digits: `0.123`, `13.1`, `1,250`.
pub(crate) fn approximate(number: f64) -> String {
    let decimals = match number.abs() {
        ..0.9995 => 3,
        ..9.995 => 2,
        ..99.95 => 1,
        _ => 0,
    };
    thousands(format!("{number:.decimals$}"))
}

/// A bar of at most `width` characters for the share `part / whole`; never empty for a part above zero.
pub(crate) fn bar(part: f64, whole: f64, width: usize) -> String {
    const EIGHTHS: [&str; 8] = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"];
    if part <= 0.0 || whole <= 0.0 {
        return String::new();
    }
    let eighths = ((part / whole).min(1.0) * (width * 8) as f64).round().max(1.0) as usize;
    "█".repeat(eighths / 8) + EIGHTHS.get(eighths % 8).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_as_people_say_them() {
        let cases = [
            (Duration::ZERO, "0ns"),
            (Duration::from_nanos(850), "850ns"),
            (Duration::from_nanos(12_340), "12.3µs"),
            (Duration::from_micros(1_250), "1.25ms"),
            (Duration::from_millis(999), "999ms"),
            (Duration::from_secs(1), "1s"),
            (Duration::from_millis(59_999), "60s"),
            (Duration::from_secs(1_799), "29m 59s"),
            (Duration::from_secs(3_600), "1h"),
            (Duration::from_secs(3 * 86_400 + 4 * 3_600 + 59), "3d 4h"),
        ];
        for (input, expected) in cases {
            assert_eq!(duration(input), expected);
        }
    }

    #[test]
    fn thousands_are_separated_in_whole_numbers_only() {
        for (number, expected) in [
            ("0", "0"),
            ("999", "999"),
            ("1000", "1,000"),
            ("-1234567", "-1,234,567"),
            ("1234.5678", "1,234.5678"),
            ("NaN", "NaN"),
        ] {
            assert_eq!(thousands(number), expected);
        }
    }

    #[test]
    fn what_is_known_approximately_has_three_digits() {
        for (number, expected) in
            [(0.12345, "0.123"), (1.5, "1.50"), (13.07, "13.1"), (-252.18, "-252"), (12_500.4, "12,500")]
        {
            assert_eq!(approximate(number), expected);
        }
    }

    #[test]
    fn a_bar_is_as_long_as_its_share_and_seen_if_it_is_above_zero() {
        assert_eq!(bar(1.0, 1.0, 4), "████");
        assert_eq!(bar(0.5, 1.0, 4), "██");
        assert_eq!(bar(0.0001, 1.0, 4), "▏");
        assert_eq!(bar(0.0, 1.0, 4), "");
        assert_eq!(bar(1.0, 0.0, 4), "");
    }
}
