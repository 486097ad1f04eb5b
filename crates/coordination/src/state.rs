//! States as text: fields separated by spaces, so that people and scripts can read them where they lie.

use std::str::FromStr;

use commonhold_core::{Error, ErrorKind, Key, Result, Timestamp};

/// The key of what has this name.
///
/// # Errors
/// `InvalidInput` for an empty name: all whose name was forgotten would be one. `TooLarge` for one that makes no key.
pub(crate) fn key(prefix: &str, name: &str) -> Result<Key> {
    if name.is_empty() {
        return Err(Error::new(ErrorKind::InvalidInput, "a name must not be empty"));
    }
    Key::new([prefix, name].concat())
}

/// Microseconds since 1970: the step of Redis's clock, and exact in the numbers of its scripts until the year 2255.
pub(crate) fn micros(now: Timestamp) -> i64 {
    now.as_nanos().div_euclid(1_000)
}

/// Reads the fields of a state one after the other.
pub(crate) struct Fields<'a> {
    of: &'static str,
    rest: std::str::Split<'a, char>,
    limit: i64,
}

impl<'a> Fields<'a> {
    /// The fields of the state of such a thing.
    ///
    /// # Errors
    /// `Corrupt` if it is no text.
    pub(crate) fn new(of: &'static str, state: &'a [u8]) -> Result<Self> {
        let text = std::str::from_utf8(state).map_err(|_| corrupt(of))?;
        Ok(Self { of, rest: text.split(' '), limit: 1 << 53 })
    }

    /// Takes only integers that are less than this.
    pub(crate) fn below(self, limit: i64) -> Self {
        Self { limit, ..self }
    }

    /// The next field.
    ///
    /// # Errors
    /// `Corrupt` if there is none or it is none of these.
    pub(crate) fn next<T: FromStr>(&mut self) -> Result<T> {
        self.optional()?.ok_or_else(|| corrupt(self.of))
    }

    /// The next field, if there is one.
    ///
    /// # Errors
    /// `Corrupt` if it is none of these.
    pub(crate) fn optional<T: FromStr>(&mut self) -> Result<Option<T>> {
        self.rest.next().map(|field| field.parse().map_err(|_| corrupt(self.of))).transpose()
    }

    /// The next field, which is an integer without a sign, from 0 to 2^53 - 1, exact in scripts too, or below the limit.
    ///
    /// # Errors
    /// `Corrupt` if there is none or it is something else.
    pub(crate) fn integer(&mut self) -> Result<i64> {
        let digits = self.word()?;
        let value = digits.parse().ok().filter(|value| (0..self.limit).contains(value));
        value
            .filter(|_| digits.len() <= 16 && digits.bytes().all(|byte| byte.is_ascii_digit()))
            .ok_or_else(|| corrupt(self.of))
    }

    /// The next field, which is of visible ASCII characters.
    ///
    /// # Errors
    /// `Corrupt` if there is none or it is something else.
    pub(crate) fn word(&mut self) -> Result<&'a str> {
        let word = self
            .rest
            .next()
            .filter(|word| !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_graphic()));
        word.ok_or_else(|| corrupt(self.of))
    }

    /// # Errors
    /// `Corrupt` if there are more fields.
    pub(crate) fn end(mut self) -> Result<()> {
        self.rest.next().map_or(Ok(()), |_| Err(corrupt(self.of)))
    }
}

/// The error for a state that is not what was put there.
pub(crate) fn corrupt(of: &'static str) -> Error {
    Error::new(ErrorKind::Corrupt, format!("what lies under the key is not the state of {of}"))
}
