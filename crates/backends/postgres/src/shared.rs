//! What everything that works on the table has: the connections, and how statements are sent over them.

use std::{sync::Arc, time::Instant};

use commonhold_core::{
    Entry, Error, ErrorKind, Expiry, Key, Result, Timestamp, embedded::Record, embedded::Rules,
};

use tokio_postgres::{Row, types::PgLsn};

use crate::{
    clock::ServerClock,
    config::PostgresConfig,
    connect::Connector,
    connection::Params,
    error,
    gathered::{Arrays, PlainPut},
    names::Names,
    replicas::{Replica, Replicas},
    seen::{ReadToken, Seen},
    server::Server,
    sql::Sql,
    values::{self, Time},
};

/// How often a statement that the server undid because of a deadlock is carried out at most.
const ATTEMPTS: usize = 5;
/// A batch with more writes has a connection to itself.
const SHARED_WRITES: usize = 64;

/// The store's inside.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) names: Names,
    pub(crate) primary: Server,
    pub(crate) replicas: Arc<Replicas>,
    pub(crate) seen: Arc<Seen>,
    pub(crate) clock: ServerClock,
    /// The statement that ends a big load.
    pub(crate) load: String,
}

impl Shared {
    pub(crate) fn new(config: PostgresConfig) -> Result<Self> {
        let names = Names::new(&config.schema, &config.table)?;
        let connector = Arc::new(Connector::new(config, Sql::texts(&names))?);
        let config = connector.config();
        let seen = Arc::new(Seen::new(config.read_your_writes && !config.replicas.is_empty()));
        let replicas = Arc::new(Replicas::new(&connector, &seen)?);
        let primary = Server::new(&connector)?;
        let load = Self::load_statement(&names.table);
        Ok(Self { names, primary, replicas, seen, clock: ServerClock::default(), load })
    }

    pub(crate) fn config(&self) -> &PostgresConfig {
        self.primary.connector.config()
    }

    pub(crate) fn rules(&self) -> &Rules {
        &self.config().rules
    }

    /// The number of rows that a single write changes. It shares a connection unless it has to wait for a lock.
    pub(crate) async fn execute(&self, sql: Sql, params: Params<'_>) -> Result<u64> {
        match self.primary.lanes.any().await?.execute(sql, params).await {
            Err(error) if error::is_locked_out(&error) || error::is_deadlock(&error) => {
                Box::pin(self.execute_alone(sql, params)).await
            }
            executed => executed,
        }
    }

    /// The same on a connection of its own.
    pub(crate) async fn execute_alone(&self, sql: Sql, params: Params<'_>) -> Result<u64> {
        let mut attempts = Attempts::default();
        loop {
            let executed = self.primary.pool.get().await?.execute(sql, params).await;
            if !attempts.again(&executed) {
                return executed;
            }
        }
    }

    /// The rows of a write. It shares a connection unless it has to wait for a lock.
    pub(crate) async fn query(&self, sql: Sql, params: Params<'_>) -> Result<Vec<Row>> {
        match self.primary.lanes.any().await?.query(sql, params).await {
            Err(error) if error::is_locked_out(&error) || error::is_deadlock(&error) => {
                Box::pin(self.query_alone(sql, params)).await
            }
            rows => rows,
        }
    }

    /// The rows of a statement on a connection of its own.
    pub(crate) async fn query_alone(&self, sql: Sql, params: Params<'_>) -> Result<Vec<Row>> {
        let mut attempts = Attempts::default();
        loop {
            let rows = self.primary.pool.get().await?.query(sql, params).await;
            if !attempts.again(&rows) {
                return rows;
            }
        }
    }

    /// The entry under a key, from a replica where one may answer.
    pub(crate) async fn get(&self, key: &Key) -> Result<Option<Entry>> {
        if let Some(replica) = self.replicas.for_keys([key])
            && let Some(entry) = replica.answer(replica.server().gathered.get(key)).await
        {
            return Ok(entry);
        }
        self.primary.gathered.get(key).await
    }

    /// How far this store has seen what was written.
    pub(crate) async fn token(&self) -> Result<ReadToken> {
        let observed = self.seen.observed();
        let rows = self.primary.lanes.any().await?.query(Sql::Written, &[]).await?;
        let row = rows.first().ok_or_else(|| Error::new(ErrorKind::Internal, "no row came"))?;
        let position = values::column::<PgLsn>(row, 0)?.into();
        Ok(ReadToken(observed.max(position)))
    }

    /// The rows of a read: from this replica, or on a connection of the primary's own.
    pub(crate) async fn query_from(
        &self,
        replica: Option<&Replica>,
        sql: Sql,
        params: Params<'_>,
    ) -> Result<Vec<Row>> {
        if let Some(replica) = replica {
            let server = replica.server();
            let rows = async { server.pool.get().await?.query(sql, params).await };
            if let Some(rows) = replica.answer(rows).await {
                return Ok(rows);
            }
        }
        self.query_alone(sql, params).await
    }

    /// The live record under a key and the time, which is there in any case.
    pub(crate) async fn read(&self, key: &Key) -> Result<(Option<Record>, Timestamp)> {
        let connection = self.primary.lanes.any().await?;
        connection.prepare(&[Sql::Read]).await?;
        let asked = Instant::now();
        let rows = connection.query(Sql::Read, &[&key.as_bytes()]).await?;
        let row = rows.first().ok_or_else(|| Error::new(ErrorKind::Internal, "no row came"))?;
        let now = Timestamp::from(values::column::<Time>(row, 2)?);
        self.clock.looked(now, asked);
        if values::column::<Option<&[u8]>>(row, 0)?.is_none() {
            return Ok((None, now));
        }
        let record = values::record(row, 0)?;
        Ok((Some(record).filter(|record| record.is_live(now)), now))
    }

    /// Puts a value in any case, together with others that are put at the same time.
    pub(crate) async fn put(&self, put: PlainPut) -> Result<()> {
        if put.value.len() <= PlainPut::MAX_GATHERED_BYTES && self.primary.gathered.put(put.clone()).await? {
            return Ok(());
        }
        let single = put.single();
        // In a box, so that the calls that need none of this stay small.
        Box::pin(self.execute_alone(single.sql, &single.params())).await.map(drop)
    }

    /// Puts values under different keys, given in order, in one step.
    pub(crate) async fn put_many(&self, puts: &[&PlainPut]) -> Result<()> {
        let arrays = Arrays::new(puts);
        let (sql, params) = (arrays.sql(), arrays.params());
        let executed = match puts.len() > SHARED_WRITES {
            true => self.execute_alone(sql, &params).await,
            false => self.execute(sql, &params).await,
        };
        executed.map(drop)
    }

    /// Checks a value and its expiry, as every put does before it goes anywhere.
    pub(crate) fn check(&self, len: usize, expiry: Expiry) -> Result<()> {
        let max = self.rules().max_value_bytes;
        if len as u64 > max {
            let message = format!("a value has at most {max} bytes, this one has {len}");
            return Err(Error::new(ErrorKind::TooLarge, message));
        }
        expiry.check()
    }

    /// The time to live in microseconds, rounded up; the default of the store for [`Expiry::Never`].
    pub(crate) fn ttl_micros(&self, expiry: Expiry) -> Option<i64> {
        let ttl = match expiry {
            Expiry::Never => self.rules().default_ttl,
            Expiry::Keep => None,
            Expiry::After(ttl) => Some(ttl),
        };
        ttl.map(|ttl| i64::try_from(ttl.as_nanos().div_ceil(1000)).unwrap_or(i64::MAX))
    }
}

/// Counts how often something was done that the server may undo, as a whole, because of a deadlock.
#[derive(Debug, Default)]
pub(crate) struct Attempts(usize);

impl Attempts {
    /// Whether it was undone and is worth another try.
    pub(crate) fn again<T>(&mut self, result: &Result<T>) -> bool {
        self.0 += 1;
        self.0 < ATTEMPTS && matches!(result, Err(error) if error::is_deadlock(error))
    }
}
