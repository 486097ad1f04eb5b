//! The server's own transactions, at the isolation level that was asked for.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use commonhold_core::{
    Applied, Condition, Entry, Error, ErrorKind, Expiry, Key, PutOptions, Result, Retry, Transaction,
};

use crate::{
    NAME, config::Isolation, error, locked::nothing_written, pool::Session, shared::Shared, sql::Sql, values,
    write::Single,
};

/// A transaction of the server. Dropped, it is rolled back.
#[derive(Debug)]
pub(crate) struct Isolated {
    session: Session,
    shared: Arc<Shared>,
    /// The server has given it up after an error.
    failed: bool,
}

impl Isolated {
    pub(crate) async fn begin(shared: Arc<Shared>, isolation: Isolation) -> Result<Self> {
        let mut session = shared.primary.pool.get().await?;
        session.begun();
        session.run(&format!("BEGIN ISOLATION LEVEL {}", isolation.sql())).await.map_err(nothing_written)?;
        Ok(Self { session, shared, failed: false })
    }

    /// What a statement answered. Nothing is written before the commit; after an error nothing ever is.
    fn took<T>(&mut self, answer: Result<T>, operation: &'static str, key: &Key) -> Result<T> {
        answer.map_err(|error| {
            self.failed |= error::code(&error).is_some() || !self.session.is_usable();
            nothing_written(error).at(NAME, operation).with_key(key)
        })
    }

    async fn write(&self, single: Option<Single<'_>>) -> Result<Applied> {
        let Some(single) = single else { return Ok(Applied::No) };
        Ok((self.session.execute(single.sql, &single.params()).await? > 0).into())
    }
}

#[async_trait]
impl Transaction for Isolated {
    async fn get(&mut self, key: &Key) -> Result<Option<Entry>> {
        let rows = self.session.query(Sql::Get, &[&key.as_bytes()]).await;
        let rows = self.took(rows, "get", key)?;
        rows.first().map_or(Ok(None), |row| values::entry(row, 0))
    }

    async fn put(&mut self, key: &Key, value: Bytes, options: PutOptions) -> Result<Applied> {
        let checked = self.shared.check(value.len(), options.expiry);
        checked.map_err(|error| error.at(NAME, "put").with_key(key))?;
        let ttl = self.shared.ttl_micros(options.expiry);
        let keep = options.expiry == Expiry::Keep;
        let written = self.write(Some(Single::put(key, &value, ttl, keep, &options.condition))).await;
        self.took(written, "put", key)
    }

    async fn delete(&mut self, key: &Key, condition: Condition) -> Result<Applied> {
        let written = self.write(Single::delete(key, &condition)).await;
        self.took(written, "delete", key)
    }

    async fn commit(mut self: Box<Self>) -> Result<()> {
        if self.failed {
            let message = "the server gave the transaction up after an error; nothing was written";
            return Err(Error::new(ErrorKind::Conflict, message).with_retry(Retry::Safe).at(NAME, "commit"));
        }
        let committed = self.session.run("COMMIT").await;
        self.session.ended();
        self.shared.seen.wrote_anything();
        committed.map_err(|error| error.at(NAME, "commit"))
    }

    async fn rollback(mut self: Box<Self>) -> Result<()> {
        let rolled_back = self.session.run("ROLLBACK").await;
        self.session.ended();
        rolled_back.map_err(|error| nothing_written(error).at(NAME, "rollback"))
    }
}
