//! Keys as Memcached takes them: as they are, in base64, or as their digest.

use std::fmt::Write as _;

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use bytes::{BufMut as _, BytesMut};
use commonhold_core::Key;
use sha2::{Digest as _, Sha256};

/// The longest key on the wire, in bytes.
const MAX_WIRE_LEN: usize = 250;

/// What this crate's own keys begin with. A user's key that begins so goes by its digest, so it is none of them.
const OWN: &str = "commonhold:memcached:";

/// The empty entry that never expires, by which the server's time is read.
pub(crate) const CLOCK: &str = "commonhold:memcached:clock";

/// A key on the wire.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct WireKey {
    token: Vec<u8>,
    is_base64: bool,
}

impl WireKey {
    /// The key with a prefix before it. Different ones stay different.
    ///
    /// Up to 250 bytes without blanks and control characters go as they are; others in base64, which the server
    /// decodes, up to 186 bytes; longer ones as their SHA-256.
    pub(crate) fn new(prefix: &[u8], key: &Key) -> Self {
        let bytes = [prefix, key.as_bytes()].concat();
        let is_plain = bytes.iter().all(|byte| *byte > b' ' && *byte != 0x7f);
        let fits = bytes.len() <= if is_plain { MAX_WIRE_LEN } else { MAX_WIRE_LEN / 4 * 3 };
        match (fits && !bytes.starts_with(OWN.as_bytes()), is_plain) {
            (true, true) => Self { token: bytes, is_base64: false },
            (true, false) => Self { token: BASE64.encode(&bytes).into_bytes(), is_base64: true },
            (false, _) => {
                let mut token = format!("{OWN}sha256:");
                for byte in Sha256::digest(&bytes) {
                    let _ = write!(token, "{byte:02x}");
                }
                Self { token: token.into_bytes(), is_base64: false }
            }
        }
    }

    /// The key of the entry by which the server's time is read.
    pub(crate) fn clock() -> Self {
        Self { token: CLOCK.into(), is_base64: false }
    }

    pub(crate) fn token(&self) -> &[u8] {
        &self.token
    }

    /// Writes the flag that tells the server how the key is written.
    pub(crate) fn put_flag(&self, buffer: &mut BytesMut) {
        if self.is_base64 {
            buffer.put_slice(b" b");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn wire(bytes: impl AsRef<[u8]>) -> WireKey {
        WireKey::new(b"", &Key::new(bytes).unwrap())
    }

    #[test]
    fn ordinary_keys_travel_as_they_are() {
        for key in ["user:1001", "*?[]\\%_", "schl\u{fc}ssel", &"k".repeat(250)] {
            assert_eq!(wire(key), WireKey { token: key.into(), is_base64: false });
        }
    }

    #[test]
    fn blanks_and_control_characters_travel_in_base64() {
        for key in ["a b", "a\r\nb", "\0", "\u{7f}"] {
            assert_eq!(wire(key), WireKey { token: BASE64.encode(key).into_bytes(), is_base64: true });
        }
    }

    #[test]
    fn every_key_fits_and_different_keys_stay_different() {
        let mut seen = HashSet::new();
        for fill in [b'k', b' ', 0xff] {
            for len in (1..=1024).filter(|len| *len < 4 || (180..260).contains(len) || *len > 1020) {
                let wire = wire(vec![fill; len]);
                assert!(wire.token.len() <= MAX_WIRE_LEN, "{len}");
                assert!(wire.token.iter().all(|byte| *byte > b' '));
                assert!(seen.insert((wire.token, wire.is_base64)), "{len}");
            }
        }
    }

    #[test]
    fn no_key_of_a_user_is_one_of_ours() {
        let digest = wire("k".repeat(251)).token;
        assert!(digest.starts_with(OWN.as_bytes()));
        assert_ne!(wire(&digest).token, digest);
        assert_ne!(wire(CLOCK).token, CLOCK.as_bytes());
    }

    #[test]
    fn a_prefix_counts_as_part_of_the_key() {
        let key = Key::new("b c").unwrap();
        assert_eq!(WireKey::new(b"a:", &key), wire("a:b c"));
    }
}
