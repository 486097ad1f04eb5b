//! A single write as a single statement, whatever its condition.

use commonhold_core::{Condition, Key};
use tokio_postgres::types::ToSql;

use crate::sql::Sql;

/// A write of one key: its statement, and what may be a parameter of it.
#[derive(Debug)]
pub(crate) struct Single<'a> {
    pub(crate) sql: Sql,
    key: &'a [u8],
    value: &'a [u8],
    ttl_micros: Option<i64>,
    keep: bool,
    expected: &'a [u8],
}

impl<'a> Single<'a> {
    pub(crate) fn put(
        key: &'a Key,
        value: &'a [u8],
        ttl_micros: Option<i64>,
        keep: bool,
        condition: &'a Condition,
    ) -> Self {
        let (sql, expected) = match condition {
            Condition::Always if ttl_micros.is_none() && !keep => (Sql::PutForever, &[][..]),
            Condition::Always => (Sql::Put, &[][..]),
            Condition::Absent => (Sql::PutAbsent, &[][..]),
            Condition::Present => (Sql::PutPresent, &[][..]),
            Condition::Equals(expected) => (Sql::PutEquals, &expected[..]),
        };
        Self { sql, key: key.as_bytes(), value, ttl_micros, keep, expected }
    }

    /// None where nothing can be deleted.
    pub(crate) fn delete(key: &'a Key, condition: &'a Condition) -> Option<Self> {
        let (sql, expected) = match condition {
            Condition::Absent => return None,
            Condition::Always | Condition::Present => (Sql::Delete, &[][..]),
            Condition::Equals(expected) => (Sql::DeleteEquals, &expected[..]),
        };
        Some(Self { sql, key: key.as_bytes(), value: &[], ttl_micros: None, keep: false, expected })
    }

    /// The parameters of the statement.
    pub(crate) fn params(&self) -> Vec<&(dyn ToSql + Sync)> {
        let mut params: Vec<&(dyn ToSql + Sync)> = vec![&self.key, &self.value, &self.ttl_micros];
        match self.sql {
            Sql::Delete => params.truncate(1),
            Sql::PutForever => params.truncate(2),
            Sql::DeleteEquals => params = vec![&self.key, &self.expected],
            Sql::PutAbsent => {}
            Sql::PutEquals => params.extend([&self.keep as &(dyn ToSql + Sync), &self.expected]),
            _ => params.push(&self.keep),
        }
        params
    }
}
