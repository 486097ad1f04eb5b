//! Times as PostgreSQL sends them, and rows as records.

use std::error::Error as StdError;

use bytes::{BufMut as _, Bytes, BytesMut};
use commonhold_core::{Entry, Error, ErrorKind, Key, Result, Timestamp, embedded::Record};
use tokio_postgres::{
    Row,
    types::{FromSql, IsNull, ToSql, Type, to_sql_checked},
};

/// A `timestamptz`: microseconds since the year 2000. The two ends stand for infinity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Time(i64);

/// From 1970 to 2000.
const EPOCH_MICROS: i64 = 946_684_800_000_000;

impl From<Time> for Timestamp {
    fn from(time: Time) -> Self {
        Self::from_nanos(time.0.saturating_add(EPOCH_MICROS).saturating_mul(1000))
    }
}

impl From<Timestamp> for Time {
    /// The last moment that a [`Timestamp`] can say stands for infinity: it came from there.
    fn from(at: Timestamp) -> Self {
        match at {
            Timestamp::MAX => Self(i64::MAX),
            Timestamp::MIN => Self(i64::MIN),
            at => Self(at.as_nanos().div_euclid(1000) - EPOCH_MICROS),
        }
    }
}

impl<'a> FromSql<'a> for Time {
    fn from_sql(_: &Type, raw: &'a [u8]) -> Result<Self, Box<dyn StdError + Sync + Send>> {
        Ok(Self(i64::from_be_bytes(raw.try_into()?)))
    }

    fn accepts(ty: &Type) -> bool {
        *ty == Type::TIMESTAMPTZ
    }
}

impl ToSql for Time {
    fn to_sql(&self, _: &Type, out: &mut BytesMut) -> Result<IsNull, Box<dyn StdError + Sync + Send>> {
        out.put_i64(self.0);
        Ok(IsNull::No)
    }

    fn accepts(ty: &Type) -> bool {
        *ty == Type::TIMESTAMPTZ
    }

    to_sql_checked!();
}

/// A column of a row.
///
/// # Errors
/// `Corrupt` if it is of another type: somebody has changed the table.
pub(crate) fn column<'a, T: FromSql<'a>>(row: &'a Row, index: usize) -> Result<T> {
    row.try_get(index).map_err(|_| {
        Error::new(ErrorKind::Corrupt, "a column is not of the expected type; was the table changed?")
    })
}

/// A key in a row.
pub(crate) fn key(row: &Row, index: usize) -> Result<Key> {
    Key::new(column::<&[u8]>(row, index)?)
        .map_err(|_| Error::new(ErrorKind::Corrupt, "the table has a key that is empty or too long"))
}

/// The record in the columns `value` and `expires_at` from this index on.
pub(crate) fn record(row: &Row, index: usize) -> Result<Record> {
    Ok(Record {
        value: Bytes::copy_from_slice(column(row, index)?),
        expires_at: column::<Option<Time>>(row, index + 1)?.map(Timestamp::from),
    })
}

/// The entry in the columns `value`, `expires_at` and `clock_timestamp()` from this index on, if it is there at that
/// time.
pub(crate) fn entry(row: &Row, index: usize) -> Result<Option<Entry>> {
    let now = column::<Time>(row, index + 2)?.into();
    Ok(Some(record(row, index)?).filter(|record| record.is_live(now)).map(|record| record.into_entry(now)))
}

/// The entry without its value in the columns `expires_at` and `clock_timestamp()` from this index on.
pub(crate) fn bare_entry(row: &Row, index: usize) -> Result<Option<Entry>> {
    let expires_at = column::<Option<Time>>(row, index)?.map(Timestamp::from);
    let now = column::<Time>(row, index + 1)?.into();
    let record = Record { value: Bytes::new(), expires_at };
    Ok(Some(record).filter(|record| record.is_live(now)).map(|record| record.into_entry(now)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_keep_their_microseconds_and_infinity() {
        for micros in [0, 1, -1, 946_684_800_000_000, i64::MAX, i64::MIN] {
            assert_eq!(Time::from(Timestamp::from(Time(micros))), Time(micros));
        }
        assert_eq!(Timestamp::from(Time(0)), Timestamp::from_millis(946_684_800_000));
    }
}
