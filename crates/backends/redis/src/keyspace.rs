//! The part of a server's keys that belongs to this store: those that begin with its prefix.

use bytes::{BufMut as _, Bytes, BytesMut};
use commonhold_core::{Key, Prefix};

/// Puts the store's prefix before keys and takes it off again.
#[derive(Debug, Clone)]
pub(crate) struct Keyspace {
    prefix: Bytes,
}

impl Keyspace {
    pub(crate) fn new(prefix: String) -> Self {
        Self { prefix: prefix.into() }
    }

    /// The key as the server has it.
    pub(crate) fn full(&self, key: &Key) -> Bytes {
        if self.prefix.is_empty() {
            return key.clone().into_bytes();
        }
        let mut full = BytesMut::with_capacity(self.prefix.len() + key.as_bytes().len());
        full.put_slice(&self.prefix);
        full.put_slice(key.as_bytes());
        full.freeze()
    }

    /// The key as users have it; none for one that is not of this store or longer than keys of stores are.
    pub(crate) fn own(&self, full: Bytes) -> Option<Key> {
        full.starts_with(&self.prefix).then(|| Key::from_bytes(full.slice(self.prefix.len()..)))?.ok()
    }

    /// A pattern that matches the keys with this prefix and no others.
    pub(crate) fn pattern(&self, prefix: &Prefix) -> Vec<u8> {
        let mut pattern = Vec::with_capacity(self.prefix.len() + prefix.as_bytes().len() + 1);
        escape(&self.prefix, &mut pattern);
        escape(prefix.as_bytes(), &mut pattern);
        pattern.push(b'*');
        pattern
    }
}

/// Writes bytes as a glob pattern that matches just them.
fn escape(bytes: &[u8], pattern: &mut Vec<u8>) {
    for &byte in bytes {
        if matches!(byte, b'*' | b'?' | b'[' | b']' | b'\\' | b'^' | b'-') {
            pattern.push(b'\\');
        }
        pattern.push(byte);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_prefix_is_put_before_a_key_once_and_taken_off_once() {
        let keyspace = Keyspace::new("app:".to_owned());
        let key = Key::new("app:x").unwrap();
        let full = keyspace.full(&key);
        assert_eq!(full, "app:app:x");
        assert_eq!(keyspace.own(full).unwrap(), key);
        assert_eq!(keyspace.own("other:x".into()), None);
        assert_eq!(keyspace.own("app:".into()), None, "the prefix alone is no key");
        assert_eq!(keyspace.own(vec![b'x'; 2000].into()), None);
    }

    #[test]
    fn glob_characters_in_a_pattern_are_escaped() {
        let keyspace = Keyspace::new("a*".to_owned());
        assert_eq!(keyspace.pattern(&Prefix::new("[b]?\\").unwrap()), b"a\\*\\[b\\]\\?\\\\*");
    }
}
