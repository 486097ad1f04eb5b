//! Numbers as they stand in a row: integers exactly, everything else as 64-bit floating point.

use std::{cmp::Ordering, fmt};

use serde::{Deserialize, Serialize, Serializer};

/// A number in a row or a result.
///
/// As input, an integer lies within ±(2^64 - 1) and a decimal within ±1e280, so that no number of events makes
/// a sum overflow.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
pub enum Number {
    /// Text without point and exponent: exact.
    Integer(i128),
    /// Anything else: the nearest 64-bit floating-point number, always finite.
    Decimal(f64),
}

/// Decimals up to this magnitude are taken: 2^63 of them still add up to a finite sum.
const MAX_DECIMAL: f64 = 1e280;

impl Number {
    /// Reads `[+-]digits[.digits][e[+-]digits]`, with blanks around it.
    ///
    /// # Errors
    /// What is wrong with it, to follow the value: "is not a number".
    pub fn parse(text: &[u8]) -> Result<Self, &'static str> {
        let text = text.trim_ascii();
        let (negative, digits) = match text {
            [b'-', rest @ ..] => (true, rest),
            [b'+', rest @ ..] => (false, rest),
            _ => (false, text),
        };
        let mut magnitude = 0u64;
        for &byte in digits {
            let digit = byte.wrapping_sub(b'0');
            if digit > 9 {
                return parse_decimal(text);
            }
            magnitude = match magnitude.checked_mul(10).and_then(|tens| tens.checked_add(u64::from(digit))) {
                Some(magnitude) => magnitude,
                None if digits.iter().all(u8::is_ascii_digit) => {
                    return Err("is an integer of more than 64 bits");
                }
                None => return parse_decimal(text),
            };
        }
        match (digits, negative) {
            ([], _) if text.is_empty() => Err("is empty where a number belongs"),
            ([], _) => Err("is not a number"),
            (_, false) => Ok(Self::Integer(i128::from(magnitude))),
            (_, true) => Ok(Self::Integer(-i128::from(magnitude))),
        }
    }

    /// The nearest 64-bit floating-point number.
    pub fn to_f64(self) -> f64 {
        match self {
            Self::Integer(integer) => integer as f64,
            Self::Decimal(decimal) => decimal,
        }
    }

    /// Compares exactly, not by rounding; an integer comes before the decimal that is equal to it.
    #[must_use]
    pub fn total_cmp(self, other: Self) -> Ordering {
        match (self, other) {
            (Self::Integer(a), Self::Integer(b)) => a.cmp(&b),
            (Self::Decimal(a), Self::Decimal(b)) => a.total_cmp(&b),
            (Self::Integer(a), Self::Decimal(b)) => compare(a, b),
            (Self::Decimal(a), Self::Integer(b)) => compare(b, a).reverse(),
        }
    }
}

fn compare(integer: i128, decimal: f64) -> Ordering {
    // The cast saturates, and truncates towards zero.
    let whole = decimal as i128;
    integer.cmp(&whole).then_with(|| {
        let fraction = decimal - decimal.trunc();
        if fraction < 0.0 { Ordering::Greater } else { Ordering::Less }
    })
}

#[cold]
fn parse_decimal(text: &[u8]) -> Result<Number, &'static str> {
    let plain = text.iter().all(|byte| matches!(byte, b'0'..=b'9' | b'.' | b'e' | b'E' | b'+' | b'-'));
    let number = std::str::from_utf8(text)
        .ok()
        .filter(|_| plain)
        .and_then(|text| text.parse::<f64>().ok())
        .ok_or("is not a number")?;
    if number.abs() <= MAX_DECIMAL { Ok(Number::Decimal(number)) } else { Err("is a number beyond 1e280") }
}

impl fmt::Display for Number {
    /// Integers with all their digits, decimals as short as they can be read back.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Integer(integer) => integer.fmt(f),
            Self::Decimal(decimal) => write!(f, "{decimal:?}"),
        }
    }
}

impl Serialize for Number {
    /// A plain number in formats for people, the variant and its value in binary ones.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        enum Number {
            Integer(i128),
            Decimal(f64),
        }
        match *self {
            Self::Integer(integer) if serializer.is_human_readable() => integer.serialize(serializer),
            Self::Decimal(decimal) if serializer.is_human_readable() => decimal.serialize(serializer),
            Self::Integer(integer) => Number::Integer(integer).serialize(serializer),
            Self::Decimal(decimal) => Number::Decimal(decimal).serialize(serializer),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn integers_are_exact_to_64_bits() {
        for text in ["0", "-0", "+7", " 42 ", "007", "18446744073709551615", "-18446744073709551615"] {
            let expected = text.trim().parse::<i128>().unwrap();
            assert_eq!(Number::parse(text.as_bytes()), Ok(Number::Integer(expected)), "{text}");
        }
        for text in ["18446744073709551616", "170141183460469231731687303715884105728", &"9".repeat(400)] {
            assert_eq!(Number::parse(text.as_bytes()), Err("is an integer of more than 64 bits"));
        }
    }

    #[test]
    fn decimals_are_finite() {
        for (text, expected) in [
            ("1.5", 1.5),
            ("-.5", -0.5),
            ("1e3", 1e3),
            ("5.", 5.0),
            ("1E-400", 0.0),
            ("99999999999999999999.5", 1e20),
        ] {
            assert_eq!(Number::parse(text.as_bytes()), Ok(Number::Decimal(expected)), "{text}");
        }
        for text in ["1e400", "-1e281"] {
            assert_eq!(Number::parse(text.as_bytes()), Err("is a number beyond 1e280"));
        }
    }

    #[test]
    fn what_is_no_number_is_refused() {
        for text in [
            "",
            " ",
            "-",
            "+",
            ".",
            "e5",
            "1e",
            "NaN",
            "inf",
            "-infinity",
            "1,5",
            "1_000",
            "0x10",
            "12a",
            "1 2",
            "--1",
            "+-1",
            "\0",
            "\u{661}",
        ] {
            assert!(Number::parse(text.as_bytes()).is_err(), "{text:?}");
        }
        assert!(Number::parse(b"\xff\xfe").is_err());
    }

    #[test]
    fn integers_and_decimals_compare_without_rounding() {
        let big = (1i128 << 60) + 1;
        let pairs = [
            (Number::Integer(big), Number::Decimal((1u64 << 60) as f64), Ordering::Greater),
            (Number::Integer(1), Number::Decimal(1.0), Ordering::Less),
            (Number::Integer(1), Number::Decimal(1.5), Ordering::Less),
            (Number::Integer(-1), Number::Decimal(-1.5), Ordering::Greater),
            (Number::Integer(0), Number::Decimal(-0.5), Ordering::Greater),
            (Number::Integer(2), Number::Decimal(1.5), Ordering::Greater),
            (Number::Integer(i128::from(u64::MAX)), Number::Decimal(1e280), Ordering::Less),
            (Number::Integer(-5), Number::Decimal(-1e280), Ordering::Greater),
        ];
        for (a, b, expected) in pairs {
            assert_eq!(a.total_cmp(b), expected, "{a} {b}");
            assert_eq!(b.total_cmp(a), expected.reverse(), "{b} {a}");
        }
    }

    proptest! {
        #[test]
        fn every_finite_float_reads_back(number in -1e280f64..1e280) {
            let text = format!("{number:e}");
            prop_assert_eq!(Number::parse(text.as_bytes()), Ok(Number::Decimal(number)));
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..40)) {
            let _ = Number::parse(&bytes);
        }
    }
}
