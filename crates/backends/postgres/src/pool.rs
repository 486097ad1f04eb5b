//! Connections for those who need one for themselves.

use std::{ops::Deref, sync::Arc};

use commonhold_core::{Error, Result};
use deadpool::{
    Runtime,
    managed::{self, Metrics, Object, RecycleError, RecycleResult, Timeouts},
};

use crate::{
    connect::{Connector, Use},
    connection::Connection,
    error,
};

/// Opens a pool's connections and sorts out those that broke.
#[derive(Debug)]
pub(crate) struct Opener(Arc<Connector>);

impl managed::Manager for Opener {
    type Type = Connection;
    type Error = Error;

    async fn create(&self) -> Result<Connection> {
        self.0.connect(Use::Exclusive).await
    }

    async fn recycle(&self, connection: &mut Connection, _: &Metrics) -> RecycleResult<Error> {
        if connection.is_usable() { Ok(()) } else { Err(RecycleError::message("the connection broke")) }
    }
}

/// The connections that are handed out to one caller at a time.
#[derive(Debug)]
pub(crate) struct Pool {
    pool: managed::Pool<Opener>,
    connector: Arc<Connector>,
}

impl Pool {
    pub(crate) fn new(connector: &Arc<Connector>) -> Result<Self> {
        let config = connector.config();
        let built = managed::Pool::builder(Opener(Arc::clone(connector)))
            .max_size(config.pool)
            .timeouts(Timeouts { wait: Some(config.pool_timeout), create: None, recycle: None })
            .runtime(Runtime::Tokio1)
            .build();
        let pool = built.map_err(|error| {
            Error::new(commonhold_core::ErrorKind::Internal, format!("no pool of connections: {error}"))
        })?;
        Ok(Self { pool, connector: Arc::clone(connector) })
    }

    /// A connection to oneself, once there is one.
    ///
    /// # Errors
    /// `Overloaded` if there is none in time; those of connecting.
    pub(crate) async fn get(&self) -> Result<Session> {
        let config = self.connector.config();
        let taken = self.pool.get().await;
        let connection = taken.map_err(|error| error::pool(error, config.pool, config.pool_timeout))?;
        Ok(Session { connection, in_transaction: false })
    }

    /// How many there are, how many of them nobody has, and how many callers wait for one.
    pub(crate) fn status(&self) -> managed::Status {
        self.pool.status()
    }
}

/// A connection that one caller has. Dropped in the middle of a transaction, it is rolled back before the next caller's
/// statements.
#[derive(Debug)]
pub(crate) struct Session {
    connection: Object<Opener>,
    in_transaction: bool,
}

impl Session {
    /// Says that a transaction is begun.
    pub(crate) fn begun(&mut self) {
        self.in_transaction = true;
    }

    /// Says that the server has ended it.
    pub(crate) fn ended(&mut self) {
        self.in_transaction = false;
    }
}

impl Deref for Session {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        &self.connection
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if self.in_transaction {
            self.connection.roll_back_behind();
        }
    }
}
