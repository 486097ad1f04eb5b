//! How typed values become bytes and come back.

use std::{fmt::Display, str::FromStr};

use bytes::Bytes;
use serde::{Serialize, de::DeserializeOwned};

use crate::error::{Error, ErrorKind, Result};

/// Turns values of a type into bytes.
pub trait Encode<T: ?Sized> {
    /// The value as bytes.
    ///
    /// # Errors
    /// `Serialization` if the value cannot be written in this form.
    fn encode(&self, value: &T) -> Result<Bytes>;
}

/// Turns bytes back into values of a type.
///
/// ```
/// # tokio::runtime::Runtime::new().unwrap().block_on(async {
/// use commonhold_core::{Json, MemoryBackend, Store, Text};
///
/// let store = Store::new(MemoryBackend::new());
/// store.put_as("tags", &vec!["a", "b"], Json).await?;
/// let tags: Option<Vec<String>> = store.get_as("tags", Json).await?;
/// assert_eq!(tags.unwrap(), ["a", "b"]);
///
/// store.increment("hits", 41).await?;
/// assert_eq!(store.get_as::<i64, _>("hits", Text).await?, Some(41));
/// # Ok::<(), commonhold_core::Error>(())
/// # }).unwrap();
/// ```
pub trait Decode<T> {
    /// The value that these bytes stand for.
    ///
    /// # Errors
    /// `Corrupt` if they stand for none.
    fn decode(&self, bytes: &[u8]) -> Result<T>;
}

/// JSON text. Numbers that JSON does not have (NaN, infinities) become `null`, as `serde_json` does it.
#[derive(Debug, Clone, Copy, Default)]
pub struct Json;

/// MessagePack, with the names of fields, so that other languages can read it.
#[derive(Debug, Clone, Copy, Default)]
pub struct MessagePack;

/// Postcard: compact, for Rust on both sides and types that do not change.
#[derive(Debug, Clone, Copy, Default)]
pub struct Postcard;

/// Bytes as they are.
#[derive(Debug, Clone, Copy, Default)]
pub struct Raw;

/// Text as the type itself prints and parses it: strings, numbers, addresses.
#[derive(Debug, Clone, Copy, Default)]
pub struct Text;

impl<T: Serialize + ?Sized> Encode<T> for Json {
    fn encode(&self, value: &T) -> Result<Bytes> {
        serde_json::to_vec(value).map(Bytes::from).map_err(|error| encoding("JSON", error))
    }
}

impl<T: DeserializeOwned> Decode<T> for Json {
    fn decode(&self, bytes: &[u8]) -> Result<T> {
        serde_json::from_slice(bytes).map_err(|error| decoding("JSON", error))
    }
}

impl<T: Serialize + ?Sized> Encode<T> for MessagePack {
    fn encode(&self, value: &T) -> Result<Bytes> {
        rmp_serde::to_vec_named(value).map(Bytes::from).map_err(|error| encoding("MessagePack", error))
    }
}

impl<T: DeserializeOwned> Decode<T> for MessagePack {
    fn decode(&self, bytes: &[u8]) -> Result<T> {
        let mut rest = bytes;
        let value = rmp_serde::from_read(&mut rest).map_err(|error| decoding("MessagePack", error))?;
        nothing_left("MessagePack", rest).map(|()| value)
    }
}

impl<T: Serialize + ?Sized> Encode<T> for Postcard {
    fn encode(&self, value: &T) -> Result<Bytes> {
        postcard::to_stdvec(value).map(Bytes::from).map_err(|error| encoding("postcard", error))
    }
}

impl<T: DeserializeOwned> Decode<T> for Postcard {
    fn decode(&self, bytes: &[u8]) -> Result<T> {
        let (value, rest) = postcard::take_from_bytes(bytes).map_err(|error| decoding("postcard", error))?;
        nothing_left("postcard", rest).map(|()| value)
    }
}

impl<T: AsRef<[u8]> + ?Sized> Encode<T> for Raw {
    fn encode(&self, value: &T) -> Result<Bytes> {
        Ok(Bytes::copy_from_slice(value.as_ref()))
    }
}

impl<T: From<Vec<u8>>> Decode<T> for Raw {
    fn decode(&self, bytes: &[u8]) -> Result<T> {
        Ok(T::from(bytes.to_vec()))
    }
}

impl<T: Display + ?Sized> Encode<T> for Text {
    fn encode(&self, value: &T) -> Result<Bytes> {
        Ok(value.to_string().into())
    }
}

impl<T: FromStr> Decode<T> for Text {
    fn decode(&self, bytes: &[u8]) -> Result<T> {
        let text = std::str::from_utf8(bytes).map_err(|error| decoding("UTF-8", error))?;
        text.parse().map_err(|_| Error::new(ErrorKind::Corrupt, "the text does not parse"))
    }
}

// The errors' own texts may quote the value, which does not belong into errors: only their kind and place are
// said, and they are not kept as sources.

fn encoding(form: &str, _error: impl Display) -> Error {
    Error::new(ErrorKind::Serialization, format!("the value cannot be written as {form}"))
}

fn decoding(form: &str, _error: impl Display) -> Error {
    Error::new(ErrorKind::Corrupt, format!("the value is not the expected type in {form}"))
}

fn nothing_left(form: &str, rest: &[u8]) -> Result<()> {
    if rest.is_empty() {
        return Ok(());
    }
    Err(Error::new(ErrorKind::Corrupt, format!("{} bytes are left behind the value in {form}", rest.len())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round_trip<C: Encode<Vec<(u64, String)>> + Decode<Vec<(u64, String)>>>(codec: C) {
        let value = vec![(u64::MAX, "a".to_owned()), (1 << 53 | 1, String::new())];
        let bytes = codec.encode(&value).unwrap();
        assert_eq!(codec.decode(&bytes).unwrap(), value);
        for cut in 0..bytes.len() {
            assert_eq!(codec.decode(&bytes[..cut]).unwrap_err().kind(), ErrorKind::Corrupt, "cut at {cut}");
        }
        let longer = [&bytes[..], b"\x01"].concat();
        assert_eq!(codec.decode(&longer).unwrap_err().kind(), ErrorKind::Corrupt);
    }

    #[test]
    fn every_codec_gives_back_what_it_was_given_and_refuses_cut_and_trailing_bytes() {
        round_trip(Json);
        round_trip(MessagePack);
        round_trip(Postcard);
    }

    #[test]
    fn raw_and_text_are_what_they_say() {
        assert_eq!(Raw.encode(&[0u8, 255]).unwrap(), &b"\x00\xff"[..]);
        assert_eq!(Decode::<Bytes>::decode(&Raw, b"\x00").unwrap(), &b"\x00"[..]);
        assert_eq!(Text.encode(&-7i64).unwrap(), "-7");
        assert_eq!(Decode::<i64>::decode(&Text, b"-7").unwrap(), -7);
        assert_eq!(Decode::<i64>::decode(&Text, b"seven").unwrap_err().kind(), ErrorKind::Corrupt);
        assert_eq!(Decode::<String>::decode(&Text, b"\xff").unwrap_err().kind(), ErrorKind::Corrupt);
    }

    #[test]
    fn errors_do_not_quote_the_value() {
        let error = Decode::<u64>::decode(&Json, b"\"hunter2\"").unwrap_err();
        assert!(!format!("{error:?}").contains("hunter2"), "{error:?}");
    }
}
