//! What lies under a key on disk: one byte that says whether a time of expiry follows, that time as
//! milliseconds since 1970 in eight big-endian bytes, and the value.

use bytes::{Buf as _, Bytes};
use commonhold_core::{Error, ErrorKind, Key, Result, Timestamp, embedded::Record};

const LIVES_FOR_EVER: u8 = 0;
const EXPIRES: u8 = 1;

/// The bytes to store.
pub(crate) fn encode(record: &Record) -> Vec<u8> {
    // Exactly as much as is needed: the engine then takes it over without another allocation.
    let head = if record.expires_at.is_some() { 9 } else { 1 };
    let mut bytes = Vec::with_capacity(head + record.value.len());
    match record.expires_at {
        None => bytes.push(LIVES_FOR_EVER),
        Some(at) => {
            bytes.push(EXPIRES);
            bytes.extend_from_slice(&at.as_millis().to_be_bytes());
        }
    }
    bytes.extend_from_slice(&record.value);
    bytes
}

/// The record in these bytes; its value shares their memory.
pub(crate) fn decode(key: &Key, mut bytes: Bytes) -> Result<Record> {
    let expires_at = expires_at(&bytes).ok_or_else(|| {
        Error::new(
            ErrorKind::Corrupt,
            "the stored bytes are no record of this version; restore the store or delete the key",
        )
        .with_key(key)
    })?;
    bytes.advance(if expires_at.is_some() { 9 } else { 1 });
    Ok(Record { value: bytes, expires_at })
}

/// The time of expiry in a stored record, without its value; the outer `None` if it is no record.
pub(crate) fn expires_at(bytes: &[u8]) -> Option<Option<Timestamp>> {
    match bytes.split_first()? {
        (&LIVES_FOR_EVER, _) => Some(None),
        (&EXPIRES, rest) => {
            let millis = i64::from_be_bytes(*rest.first_chunk()?);
            Some(Some(Timestamp::from_millis(millis)))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_reads_as_it_was_written() {
        let key = Key::new("k").unwrap();
        for value in ["", "v"] {
            for expires_at in [None, Some(Timestamp::from_millis(-1)), Some(Timestamp::from_millis(1 << 40))]
            {
                let record = Record { value: Bytes::from_static(value.as_bytes()), expires_at };
                assert_eq!(decode(&key, encode(&record).into()).unwrap(), record);
            }
        }
    }

    #[test]
    fn foreign_bytes_are_an_error_that_names_the_key() {
        let key = Key::new("k\n").unwrap();
        for bytes in [&b""[..], b"\x02value", b"\x01short"] {
            let error = decode(&key, Bytes::from_static(bytes)).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Corrupt);
            assert_eq!(error.key(), Some("k\\n"));
        }
    }
}
