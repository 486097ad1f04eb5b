//! Keys and prefixes: plain bytes, compared byte for byte.

use std::{borrow::Borrow, fmt, fmt::Write as _, ops::Bound};

use bytes::Bytes;

use crate::error::{Error, ErrorKind, Result};

/// The name under which a backend keeps one value: 1 to [`Key::MAX_LEN`] bytes of any kind.
///
/// Cloning is cheap; the bytes are shared.
///
/// ```
/// use commonhold_core::Key;
///
/// let key = Key::new("user:1001")?;
/// assert_eq!(key.as_bytes(), b"user:1001");
/// assert!(Key::new("").is_err());
/// # Ok::<(), commonhold_core::Error>(())
/// ```
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(Bytes);

impl Key {
    /// The longest key, in bytes.
    pub const MAX_LEN: usize = 1024;

    /// Checks the length and takes the bytes.
    ///
    /// # Errors
    /// `InvalidInput` for an empty key, `TooLarge` for one over [`Key::MAX_LEN`].
    pub fn new(bytes: impl AsRef<[u8]>) -> Result<Self> {
        let bytes = bytes.as_ref();
        check_len(bytes.len())?;
        Ok(Self(Bytes::copy_from_slice(bytes)))
    }

    /// The same for bytes that are already shared: nothing is copied.
    ///
    /// # Errors
    /// As [`Key::new`].
    pub fn from_bytes(bytes: Bytes) -> Result<Self> {
        check_len(bytes.len())?;
        Ok(Self(bytes))
    }

    /// The key's bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The key's bytes, shared.
    pub fn into_bytes(self) -> Bytes {
        self.0
    }

    /// Whether the key begins with these bytes.
    pub fn starts_with(&self, prefix: &Prefix) -> bool {
        self.0.starts_with(prefix.as_bytes())
    }
}

fn check_len(len: usize) -> Result<()> {
    match len {
        0 => Err(Error::new(ErrorKind::InvalidInput, "a key must not be empty")),
        len if len > Key::MAX_LEN => Err(Error::new(
            ErrorKind::TooLarge,
            format!("a key has at most {} bytes, this one has {len}", Key::MAX_LEN),
        )),
        _ => Ok(()),
    }
}

/// The first bytes of a set of keys: 0 to [`Key::MAX_LEN`] bytes; the empty prefix matches every key.
///
/// Matching is byte for byte: `*`, `?`, `[`, `\`, `%`, `_` and every byte from 0x00 to 0xff mean themselves.
#[derive(Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Prefix(Bytes);

impl Prefix {
    /// The prefix of every key.
    pub const ALL: Self = Self(Bytes::new());

    /// Checks the length and takes the bytes.
    ///
    /// # Errors
    /// `TooLarge` over [`Key::MAX_LEN`] bytes.
    pub fn new(bytes: impl AsRef<[u8]>) -> Result<Self> {
        let bytes = bytes.as_ref();
        if bytes.len() > Key::MAX_LEN {
            return check_len(bytes.len()).map(|()| Self::ALL);
        }
        Ok(Self(Bytes::copy_from_slice(bytes)))
    }

    /// The prefix's bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The smallest byte string that is greater than every string with this prefix, if there is one:
    /// there is none for the empty prefix and for `0xff 0xff ..`.
    ///
    /// ```
    /// use commonhold_core::Prefix;
    ///
    /// assert_eq!(Prefix::new("a\u{7f}")?.upper_bound().as_deref(), Some(&b"a\x80"[..]));
    /// assert_eq!(Prefix::new([b'a', 0xff])?.upper_bound().as_deref(), Some(&b"b"[..]));
    /// assert_eq!(Prefix::new([0xff])?.upper_bound(), None);
    /// # Ok::<(), commonhold_core::Error>(())
    /// ```
    pub fn upper_bound(&self) -> Option<Vec<u8>> {
        let mut bound = self.0.to_vec();
        while let Some(last) = bound.pop() {
            if let Some(next) = last.checked_add(1) {
                bound.push(next);
                return Some(bound);
            }
        }
        None
    }

    /// The range of keys that begin with this prefix and, if `after` is given, come after it.
    pub fn range(&self, after: Option<&Key>) -> (Bound<Vec<u8>>, Bound<Vec<u8>>) {
        let start = match after {
            Some(after) if after.as_bytes() >= self.as_bytes() => Bound::Excluded(after.as_bytes().to_vec()),
            _ => Bound::Included(self.0.to_vec()),
        };
        (start, self.upper_bound().map_or(Bound::Unbounded, Bound::Excluded))
    }

    /// This prefix with `key` behind it.
    ///
    /// # Errors
    /// `TooLarge` if the two together are over [`Key::MAX_LEN`] bytes.
    pub fn join(&self, key: impl AsRef<[u8]>) -> Result<Key> {
        let key = key.as_ref();
        let len = self.0.len() + key.len();
        check_len(len)?;
        let mut joined = Vec::with_capacity(len);
        joined.extend_from_slice(&self.0);
        joined.extend_from_slice(key);
        Ok(Key(joined.into()))
    }
}

/// The bytes as text on one line: printable ASCII as it is, the rest as `\n`, `\\`, `\"` or `\xff`, cut to
/// at most `max_chars` characters and `..`.
pub(crate) fn escape(bytes: &[u8], max_chars: usize) -> String {
    let mut text = String::with_capacity(bytes.len().min(max_chars));
    for &byte in bytes {
        if text.len() >= max_chars {
            text.push_str("..");
            break;
        }
        match byte {
            b'\n' => text.push_str("\\n"),
            b'\r' => text.push_str("\\r"),
            b'\t' => text.push_str("\\t"),
            b'"' | b'\\' => {
                text.push('\\');
                text.push(char::from(byte));
            }
            0x20..=0x7e => text.push(char::from(byte)),
            _ => {
                let _ = write!(text, "\\x{byte:02x}");
            }
        }
    }
    text
}

impl Borrow<[u8]> for Key {
    fn borrow(&self) -> &[u8] {
        &self.0
    }
}

impl TryFrom<Bytes> for Key {
    type Error = Error;
    fn try_from(bytes: Bytes) -> Result<Self> {
        Self::from_bytes(bytes)
    }
}

macro_rules! byte_string {
    ($($name:ident),*) => {$(
        impl fmt::Display for $name {
            /// Escaped, in full: printable ASCII as it is, the rest as `\n`, `\\`, `\"` or `\xff`.
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&escape(&self.0, usize::MAX))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "\"{self}\"")
            }
        }

        impl AsRef<[u8]> for $name {
            fn as_ref(&self) -> &[u8] {
                &self.0
            }
        }

        impl From<&$name> for $name {
            fn from(this: &$name) -> Self {
                this.clone()
            }
        }

        impl TryFrom<&str> for $name {
            type Error = Error;
            fn try_from(text: &str) -> Result<Self> {
                Self::new(text)
            }
        }

        impl TryFrom<String> for $name {
            type Error = Error;
            fn try_from(text: String) -> Result<Self> {
                Self::new(text)
            }
        }

        impl TryFrom<&String> for $name {
            type Error = Error;
            fn try_from(text: &String) -> Result<Self> {
                Self::new(text)
            }
        }

        impl TryFrom<&[u8]> for $name {
            type Error = Error;
            fn try_from(bytes: &[u8]) -> Result<Self> {
                Self::new(bytes)
            }
        }

        impl<const N: usize> TryFrom<&[u8; N]> for $name {
            type Error = Error;
            fn try_from(bytes: &[u8; N]) -> Result<Self> {
                Self::new(bytes)
            }
        }

        impl TryFrom<Vec<u8>> for $name {
            type Error = Error;
            fn try_from(bytes: Vec<u8>) -> Result<Self> {
                Self::new(bytes)
            }
        }
    )*};
}
byte_string!(Key, Prefix);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_has_one_to_1024_bytes() {
        assert_eq!(Key::new("").unwrap_err().kind(), ErrorKind::InvalidInput);
        assert!(Key::new([0u8]).is_ok());
        assert!(Key::new([b'x'; 1024]).is_ok());
        assert_eq!(Key::new([b'x'; 1025]).unwrap_err().kind(), ErrorKind::TooLarge);
        assert_eq!(Prefix::new([b'x'; 1025]).unwrap_err().kind(), ErrorKind::TooLarge);
        assert!(Prefix::new("").is_ok());
    }

    #[test]
    fn display_escapes_what_a_terminal_would_obey() {
        assert_eq!(Key::new(b"a\n\x1b[0m\"\\\xff").unwrap().to_string(), "a\\n\\x1b[0m\\\"\\\\\\xff");
        assert_eq!(escape(&[b'a'; 100], 5), "aaaaa..");
    }

    #[test]
    fn the_range_of_a_prefix_starts_after_a_key_only_if_that_key_lies_in_it() {
        let prefix = Prefix::new("b").unwrap();
        let before = Key::new("a").unwrap();
        let inside = Key::new("b1").unwrap();
        assert_eq!(prefix.range(Some(&before)).0, Bound::Included(b"b".to_vec()));
        assert_eq!(prefix.range(Some(&inside)).0, Bound::Excluded(b"b1".to_vec()));
        assert_eq!(Prefix::ALL.range(None), (Bound::Included(vec![]), Bound::Unbounded));
    }
}
