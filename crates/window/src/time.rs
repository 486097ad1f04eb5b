//! Points in time as they stand in a row: RFC 3339, its relatives without a zone, and epoch numbers.

use commonhold_core::Timestamp;
use serde::{Deserialize, Serialize};

/// The unit of times that are numbers, counted from 1970-01-01T00:00:00Z.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TimeUnit {
    /// Seconds.
    S,
    /// Milliseconds.
    Ms,
    /// Microseconds.
    Us,
    /// Nanoseconds.
    Ns,
}

impl TimeUnit {
    /// How many digits after the point make nanoseconds.
    fn decimals(self) -> usize {
        match self {
            Self::S => 9,
            Self::Ms => 6,
            Self::Us => 3,
            Self::Ns => 0,
        }
    }
}

/// Events lie between 1700-01-01 and 2240-01-01, so that the windows around them lie within [`Timestamp`].
const EARLIEST: i64 = -8_520_336_000_000_000_000;
const LATEST: i64 = 8_520_336_000_000_000_000;

const OUT_OF_RANGE: &str = "lies outside of the years 1700 to 2239";
const NO_TIME: &str = "is not a time such as 2023-11-16T18:17:03.97Z or 2023-11-16 18:17:03.97";

/// Reads `2023-11-16T18:17:03.9799600Z`: `T`, `t` or a blank in the middle, a fraction of any length of which
/// nanoseconds are kept and the rest is cut off, and `Z`, `z`, an offset such as `+01:00`, or nothing for UTC.
/// What else [`jiff::Timestamp`] understands is taken too (basic format, leap seconds as the second before).
///
/// ```
/// let time = commonhold_window::parse_time(b"2023-11-16 18:17:03.9799600").unwrap();
/// assert_eq!(time.as_nanos(), 1_700_158_623_979_960_000);
/// ```
///
/// # Errors
/// What is wrong with it, to follow the value: "has no such day".
pub fn parse_time(text: &[u8]) -> Result<Timestamp, &'static str> {
    let text = text.trim_ascii();
    match parse_fixed(text) {
        Some(Ok(nanos)) => in_range(nanos),
        Some(Err(problem)) => Err(problem),
        None => parse_rare(text),
    }
}

/// Reads a number of units since 1970-01-01T00:00:00Z: digits with an optional sign and an optional fraction, of
/// which whole nanoseconds are kept.
///
/// # Errors
/// What is wrong with it, to follow the value: "is not a number of s".
pub fn parse_epoch(text: &[u8], unit: TimeUnit) -> Result<Timestamp, &'static str> {
    let text = text.trim_ascii();
    let (negative, digits) = match text {
        [b'-', rest @ ..] => (true, rest),
        _ => (false, text),
    };
    let (whole, fraction) = match digits.iter().position(|byte| *byte == b'.') {
        Some(point) => (digits.get(..point).unwrap_or_default(), digits.get(point + 1..).unwrap_or_default()),
        None => (digits, &[][..]),
    };
    if whole.is_empty() || !digits.iter().all(|byte| byte.is_ascii_digit() || *byte == b'.') {
        return Err("is not a plain number such as 1700158623.97, as the time unit asks for");
    }
    let fraction = fraction_of(fraction, unit.decimals()).ok_or("has two points")?;
    let whole = integer(whole).ok_or(OUT_OF_RANGE)?;
    let nanos = whole
        .checked_mul(10i64.pow(unit.decimals() as u32))
        .and_then(|nanos| nanos.checked_add(fraction))
        .ok_or(OUT_OF_RANGE)?;
    in_range(if negative { -nanos } else { nanos })
}

fn in_range(nanos: i64) -> Result<Timestamp, &'static str> {
    if (EARLIEST..LATEST).contains(&nanos) { Ok(Timestamp::from_nanos(nanos)) } else { Err(OUT_OF_RANGE) }
}

/// The common layout by hand, twenty times as fast as a general parser; `None` if it is another layout.
fn parse_fixed(text: &[u8]) -> Option<Result<i64, &'static str>> {
    let (clock, rest) = text.split_first_chunk::<19>()?;
    let [
        y1,
        y2,
        y3,
        y4,
        b'-',
        mo1,
        mo2,
        b'-',
        d1,
        d2,
        b'T' | b't' | b' ',
        h1,
        h2,
        b':',
        mi1,
        mi2,
        b':',
        s1,
        s2,
    ] = *clock
    else {
        return None;
    };
    let (year, month, day) = (integer(&[y1, y2, y3, y4])?, integer(&[mo1, mo2])?, integer(&[d1, d2])?);
    let (hour, minute, second) = (integer(&[h1, h2])?, integer(&[mi1, mi2])?, integer(&[s1, s2])?);
    let (fraction, zone) = match rest {
        [b'.', rest @ ..] => {
            let length = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
            if length == 0 {
                return None;
            }
            (fraction_of(rest.get(..length)?, 9)?, rest.get(length..)?)
        }
        _ => (0, rest),
    };
    let offset = match *zone {
        [] | [b'Z' | b'z'] => 0,
        [sign @ (b'+' | b'-'), h1, h2, b':', m1, m2] => {
            let (hours, minutes) = (integer(&[h1, h2])?, integer(&[m1, m2])?);
            if hours > 23 || minutes > 59 {
                return Some(Err("has an offset over 23:59"));
            }
            (hours * 60 + minutes) * if sign == b'-' { -60 } else { 60 }
        }
        _ => return None,
    };
    if !(1..=12).contains(&month) {
        return Some(Err("has a month that is not 01 to 12"));
    }
    if day < 1 || day > days_in(year, month) {
        return Some(Err("has a day that its month does not have"));
    }
    if hour > 23 || minute > 59 || second > 60 {
        return Some(Err("has a time of day past 23:59:59"));
    }
    if second == 60 {
        return None;
    }
    let seconds = days_since_epoch(year, month, day) * 86_400 + hour * 3_600 + minute * 60 + second - offset;
    Some(seconds.checked_mul(1_000_000_000).and_then(|nanos| nanos.checked_add(fraction)).ok_or(OUT_OF_RANGE))
}

#[cold]
fn parse_rare(text: &[u8]) -> Result<Timestamp, &'static str> {
    if text.is_empty() {
        return Err("is empty where a time belongs");
    }
    if text.iter().all(|byte| byte.is_ascii_digit() || matches!(byte, b'.' | b'-')) && text.len() > 7 {
        return Err("looks like a number: say which unit the times are in, s, ms, us or ns");
    }
    let time: jiff::Timestamp =
        std::str::from_utf8(text).ok().and_then(|text| text.parse().ok()).ok_or(NO_TIME)?;
    in_range(i64::try_from(time.as_nanosecond()).map_err(|_| OUT_OF_RANGE)?)
}

/// Up to 19 digits, and nothing else.
fn integer(digits: &[u8]) -> Option<i64> {
    digits.iter().try_fold(0i64, |value, byte| {
        let digit = byte.wrapping_sub(b'0');
        if digit > 9 { None } else { value.checked_mul(10)?.checked_add(i64::from(digit)) }
    })
}

/// The first `places` digits after a point as an integer, with zeros for those that are not there.
fn fraction_of(digits: &[u8], places: usize) -> Option<i64> {
    if !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let kept = digits.get(..places).unwrap_or(digits);
    Some(integer(kept)? * 10i64.pow((places - kept.len()) as u32))
}

fn days_in(year: i64, month: i64) -> i64 {
    match month {
        4 | 6 | 9 | 11 => 30,
        2 if year % 4 == 0 && (year % 100 != 0 || year % 400 == 0) => 29,
        2 => 28,
        _ => 31,
    }
}

/// Howard Hinnant's `days_from_civil`: years begin in March, so that the leap day is the last one.
fn days_since_epoch(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    era * 146_097 + day_of_era - 719_468
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn nanos(text: &str) -> Result<i64, &'static str> {
        parse_time(text.as_bytes()).map(Timestamp::as_nanos)
    }

    #[test]
    fn the_layouts_of_one_point_in_time_read_the_same() {
        for text in [
            "2023-11-16 18:17:03.9799600",
            "2023-11-16T18:17:03.97996",
            "2023-11-16T18:17:03.97996Z",
            "2023-11-16t18:17:03.979960000z",
            "2023-11-16T19:47:03.97996+01:30",
            "2023-11-16 10:17:03.97996-08:00",
            "2023-11-16 18:17:03.97996+00",
            "20231116T181703.97996Z",
            " 2023-11-16 18:17:03.979960000999 ",
        ] {
            assert_eq!(nanos(text), Ok(1_700_158_623_979_960_000), "{text}");
        }
    }

    #[test]
    fn dates_and_times_that_do_not_exist_are_refused() {
        for text in [
            "2023-13-01 00:00:00",
            "2023-00-01 00:00:00",
            "2023-02-29 00:00:00",
            "1900-02-29 00:00:00",
            "2023-04-31 00:00:00",
            "2023-01-00 00:00:00",
            "2023-01-01 24:00:00",
            "2023-01-01 00:60:00",
            "2023-01-01 00:00:61",
            "2023-01-01 00:00:00.",
            "2023-01-01 00:00:00+24:00",
            "2023-01-01 00:00:00 Z",
            "2023-01-01",
            "2023-1-1 00:00:00",
            "",
            "1700158623",
            "1650-01-01T00:00:00Z",
            "2240-01-01T00:00:00Z",
            "9999-12-31T23:59:59Z",
            "\0",
            "2023-01-01 00:00:0\u{661}",
        ] {
            assert!(nanos(text).is_err(), "{text}");
        }
        assert!(nanos("2024-02-29 00:00:00").is_ok());
        assert!(nanos("2000-02-29 00:00:00").is_ok());
        assert!(nanos("1700-01-01 00:00:00").is_ok());
        assert!(nanos("2239-12-31 23:59:59.999999999").is_ok());
        assert!(parse_time(b"\xff\xfe").is_err());
    }

    #[test]
    fn a_leap_second_reads_as_the_second_before() {
        assert_eq!(nanos("2016-12-31T23:59:60Z"), nanos("2016-12-31T23:59:59Z"));
    }

    #[test]
    fn epoch_numbers_read_in_their_unit() {
        let read = |text: &str, unit| parse_epoch(text.as_bytes(), unit).map(Timestamp::as_nanos);
        assert_eq!(read("1700158623.97996", TimeUnit::S), Ok(1_700_158_623_979_960_000));
        assert_eq!(read("1700158623979.96", TimeUnit::Ms), Ok(1_700_158_623_979_960_000));
        assert_eq!(read("1700158623979960", TimeUnit::Us), Ok(1_700_158_623_979_960_000));
        assert_eq!(read("1700158623979960000.9", TimeUnit::Ns), Ok(1_700_158_623_979_960_000));
        assert_eq!(read("-1.5", TimeUnit::S), Ok(-1_500_000_000));
        assert_eq!(read("0", TimeUnit::S), Ok(0));
        for text in
            ["", "-", ".", ".5", "1.2.3", "1e9", "NaN", "99999999999999999999", "9000000000000", "+-1"]
        {
            assert!(read(text, TimeUnit::S).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn every_time_that_jiff_writes_reads_back(nanos in EARLIEST..LATEST, hours in -23i8..=23) {
            let time = jiff::Timestamp::from_nanosecond(i128::from(nanos)).unwrap();
            prop_assert_eq!(parse_time(time.to_string().as_bytes()), Ok(Timestamp::from_nanos(nanos)));
            let offset = time.display_with_offset(jiff::tz::offset(hours)).to_string();
            prop_assert_eq!(parse_time(offset.as_bytes()), Ok(Timestamp::from_nanos(nanos)));
            let plain = time.to_string().replace('T', " ").replace('Z', "");
            prop_assert_eq!(parse_time(plain.as_bytes()), Ok(Timestamp::from_nanos(nanos)));
        }

        #[test]
        fn dates_exist_for_us_exactly_if_they_do_for_jiff(
            year in 1701i16..2240, month in 0u8..15, day in 0u8..34, hour in 0u8..26, minute in 0u8..62,
        ) {
            let text = format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:07Z");
            let ours = parse_time(text.as_bytes()).ok().map(|time| i128::from(time.as_nanos()));
            let theirs = text.parse::<jiff::Timestamp>().ok().map(jiff::Timestamp::as_nanosecond);
            prop_assert_eq!(ours, theirs, "{}", text);
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..40)) {
            let _ = parse_time(&bytes);
            let _ = parse_epoch(&bytes, TimeUnit::S);
        }
    }
}
