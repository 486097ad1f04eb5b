//! Rows of JSON, one object a line.

use std::{fmt, ops::Range};

use commonhold_core::Result;
use serde::{
    Deserializer as _,
    de::{DeserializeSeed, Error as _, IgnoredAny, MapAccess, Visitor},
};
use serde_json::value::RawValue;

use super::{extract::Row, tape::Tape};

/// The needed fields of the current line.
pub(super) struct JsonRows {
    fields: Vec<String>,
    text: Vec<u8>,
    found: Vec<Found>,
}

#[derive(Clone)]
enum Found {
    Missing,
    Text(Range<usize>),
    Unfit(&'static str),
}

impl JsonRows {
    pub(super) fn new(fields: &[String]) -> Self {
        Self { fields: fields.to_vec(), text: Vec::new(), found: vec![Found::Missing; fields.len()] }
    }

    /// Finds the next line that is not blank, but does not consume it. Returns its length with its end; `None` at
    /// the end of the input.
    pub(super) fn next(&mut self, tape: &mut Tape) -> Result<Option<usize>> {
        let mut searched = 0;
        loop {
            let unsearched = tape.available().get(searched..).unwrap_or_default();
            let length = match unsearched.iter().position(|byte| *byte == b'\n') {
                Some(end) => searched + end + 1,
                None => {
                    searched = tape.available().len();
                    if tape.fill()? {
                        continue;
                    }
                    searched
                }
            };
            if length == 0 {
                return Ok(None);
            }
            let line = tape.available().get(..length).unwrap_or_default();
            if !line.trim_ascii().is_empty() {
                return Ok(Some(length));
            }
            tape.consume(length);
            searched = 0;
        }
    }

    /// Reads the needed fields of a line. Numbers stay the text that they are.
    pub(super) fn parse(&mut self, line: &[u8]) -> Result<(), String> {
        self.text.clear();
        self.found.fill(Found::Missing);
        let mut json = serde_json::Deserializer::from_slice(line);
        json.deserialize_map(&mut *self).and_then(|()| json.end()).map_err(|error| {
            let place = format!(" at line {} column {}", error.line(), error.column());
            let message = error.to_string();
            let message = message.strip_suffix(place.as_str()).unwrap_or(&message);
            format!("is not a JSON object with the fields of an event: {message}, at byte {}", error.column())
        })
    }

    fn take(&mut self, raw: &RawValue) -> Result<Found, serde_json::Error> {
        let json = raw.get();
        let start = self.text.len();
        match json.as_bytes() {
            [b'{', ..] => return Ok(Found::Unfit("is an object where a plain value belongs")),
            [b'[', ..] => return Ok(Found::Unfit("is a list where a plain value belongs")),
            [b'n', ..] => return Ok(Found::Unfit("is null")),
            [b'"', text @ .., b'"'] if !text.contains(&b'\\') => self.text.extend_from_slice(text),
            [b'"', ..] => self.text.extend_from_slice(serde_json::from_str::<String>(json)?.as_bytes()),
            number_or_bool => self.text.extend_from_slice(number_or_bool),
        }
        Ok(Found::Text(start..self.text.len()))
    }
}

impl Row for JsonRows {
    fn field(&self, field: usize) -> Result<&[u8], &'static str> {
        match self.found.get(field) {
            Some(Found::Text(range)) => Ok(self.text.get(range.clone()).unwrap_or_default()),
            Some(Found::Unfit(problem)) => Err(problem),
            Some(Found::Missing) | None => Err("is missing"),
        }
    }
}

impl<'de> Visitor<'de> for &mut JsonRows {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(field) = map.next_key_seed(FieldOf(&self.fields))? {
            let Some(field) = field else {
                map.next_value::<IgnoredAny>()?;
                continue;
            };
            let raw: &RawValue = map.next_value()?;
            let found = self.take(raw).map_err(A::Error::custom)?;
            match self.found.get_mut(field) {
                Some(place @ Found::Missing) => *place = found,
                _ => {
                    let name = self.fields.get(field).map_or("", String::as_str);
                    return Err(A::Error::custom(format!("the field \"{name}\" is there twice")));
                }
            }
        }
        Ok(())
    }
}

/// Which of the needed fields a name in an object stands for.
struct FieldOf<'a>(&'a [String]);

impl<'de> DeserializeSeed<'de> for FieldOf<'_> {
    type Value = Option<usize>;

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for FieldOf<'_> {
    type Value = Option<usize>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a name")
    }

    fn visit_str<E>(self, name: &str) -> Result<Self::Value, E> {
        Ok(self.0.iter().position(|field| field == name))
    }
}
