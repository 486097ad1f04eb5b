//! One connection, on which statements are prepared once and every answer is waited for a bounded time.

use std::{
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use commonhold_core::{Error, ErrorKind, Result, Retry};
use futures_util::FutureExt as _;
use tokio::sync::OnceCell;
use tokio_postgres::{
    Client, Row, Statement,
    error::SqlState,
    types::{ToSql, Type},
};

use crate::{
    error,
    sql::{Sql, Text},
};

/// The parameters of a statement.
pub(crate) type Params<'a> = &'a [&'a (dyn ToSql + Sync)];

/// A connection. Statements that are begun while others are under way follow them at once.
#[derive(Debug)]
pub(crate) struct Connection {
    client: Client,
    texts: Arc<[Text]>,
    prepared: Option<Vec<OnceCell<Statement>>>,
    limit: Option<Duration>,
    /// An answer did not come in time, and whatever is asked next would wait behind it, or the server takes no writes.
    stuck: AtomicBool,
}

impl Connection {
    /// `prepares`: whether statements are prepared, which takes a session of the server. `limit`: how long an answer
    /// is waited for.
    pub(crate) fn new(client: Client, texts: Arc<[Text]>, prepares: bool, limit: Option<Duration>) -> Self {
        let prepared = prepares.then(|| (0..Sql::COUNT).map(|_| OnceCell::new()).collect());
        Self { client, texts, prepared, limit, stuck: AtomicBool::new(false) }
    }

    /// Whether it can be used further.
    pub(crate) fn is_usable(&self) -> bool {
        !self.client.is_closed() && !self.stuck.load(Ordering::Relaxed)
    }

    /// The rows that a statement returns.
    pub(crate) async fn query(&self, sql: Sql, params: Params<'_>) -> Result<Vec<Row>> {
        let text = self.text(sql)?;
        match self.statement(sql, text).await? {
            Some(statement) => self.within(text.writes, self.client.query(statement, params)).await,
            None => self.within(text.writes, self.client.query_typed(&text.sql, &typed(text, params))).await,
        }
    }

    /// The number of rows that a statement changes.
    pub(crate) async fn execute(&self, sql: Sql, params: Params<'_>) -> Result<u64> {
        let text = self.text(sql)?;
        match self.statement(sql, text).await? {
            Some(statement) => self.within(text.writes, self.client.execute(statement, params)).await,
            None => {
                self.within(text.writes, self.client.execute_typed(&text.sql, &typed(text, params))).await
            }
        }
    }

    /// Prepares statements that are to follow each other at once.
    pub(crate) async fn prepare(&self, statements: &[Sql]) -> Result<()> {
        for &sql in statements {
            self.statement(sql, self.text(sql)?).await?;
        }
        Ok(())
    }

    /// Carries out plain SQL, which may change something.
    pub(crate) async fn run(&self, sql: &str) -> Result<()> {
        self.within(true, self.client.batch_execute(sql)).await
    }

    /// The rows of plain SQL that is used once.
    pub(crate) async fn query_once(
        &self,
        sql: &str,
        params: &[(&(dyn ToSql + Sync), Type)],
    ) -> Result<Vec<Row>> {
        self.within(true, self.client.query_typed(sql, params)).await
    }

    /// Has the server forget a transaction, without waiting for it: what is asked next comes after.
    pub(crate) fn roll_back_behind(&self) {
        let _sent = self.client.batch_execute("ROLLBACK").now_or_never();
    }

    /// The driver's own connection, for what goes beyond statements.
    pub(crate) fn client(&self) -> &Client {
        &self.client
    }

    /// Waits for an answer of the driver as long as for any other.
    pub(crate) async fn within<T>(
        &self,
        writes: bool,
        answer: impl Future<Output = Result<T, tokio_postgres::Error>>,
    ) -> Result<T> {
        let answered = match self.limit {
            None => Ok(answer.await),
            Some(limit) => tokio::time::timeout(limit, answer).await.map_err(|_| limit),
        };
        let error = match answered {
            Ok(Ok(answer)) => return Ok(answer),
            Ok(Err(error)) => error::statement(&error, writes),
            Err(limit) => {
                let lost = if writes { Retry::Ambiguous } else { Retry::Safe };
                error::timeout("the server did not answer", limit, lost)
            }
        };
        // One that takes no writes any more is no use either: the primary is looked for again.
        if error::code(&error).is_none() && error.kind() == ErrorKind::Timeout
            || error::code(&error) == Some(&SqlState::READ_ONLY_SQL_TRANSACTION)
        {
            self.stuck.store(true, Ordering::Relaxed);
        }
        Err(error)
    }

    fn text(&self, sql: Sql) -> Result<&Text> {
        self.texts.get(sql as usize).ok_or_else(|| Error::new(ErrorKind::Internal, "a statement has no text"))
    }

    /// The prepared statement, if there are any here. Until it is, nothing is carried out.
    async fn statement(&self, sql: Sql, text: &Text) -> Result<Option<&Statement>> {
        let Some(cell) = self.prepared.as_ref().and_then(|prepared| prepared.get(sql as usize)) else {
            return Ok(None);
        };
        if let Some(statement) = cell.get() {
            return Ok(Some(statement));
        }
        // In a box, so that the calls that find it prepared stay small.
        let prepare = || Box::pin(self.within(false, self.client.prepare_typed(&text.sql, &text.types)));
        cell.get_or_try_init(prepare).await.map(Some)
    }
}

fn typed<'a>(text: &Text, params: Params<'a>) -> Vec<(&'a (dyn ToSql + Sync), Type)> {
    params.iter().copied().zip(text.types.iter().cloned()).collect()
}
