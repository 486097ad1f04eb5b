//! Connections of their own for transactions: a bounded number, kept for the next one.

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use commonhold_core::{Error, ErrorKind, Result, Retry};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::{
    driver::{Connection, command},
    error::Access,
    servers::Servers,
};

/// A pool of connections to the server that holds all keys of the store.
pub(crate) struct Pool {
    servers: Servers,
    idle: Mutex<Vec<Connection>>,
    permits: Arc<Semaphore>,
    max: usize,
    patience: Duration,
}

/// A connection that comes back to its pool when it is dropped, with nothing watched.
pub(crate) struct Pooled {
    connection: Connection,
    pool: Arc<Pool>,
    /// Whether keys are watched on it.
    watching: bool,
    permit: Option<OwnedSemaphorePermit>,
}

impl Pool {
    pub(crate) fn new(servers: Servers, max: usize, patience: Duration) -> Arc<Self> {
        let permits = Arc::new(Semaphore::new(max));
        Arc::new(Self { servers, idle: Mutex::default(), permits, max, patience })
    }

    /// A connection, once there is one.
    ///
    /// # Errors
    /// `Overloaded` if none comes free in time; why there is none.
    pub(crate) async fn take(self: &Arc<Self>) -> Result<Pooled> {
        let permit = tokio::time::timeout(self.patience, Arc::clone(&self.permits).acquire_owned()).await;
        let Ok(Ok(permit)) = permit else {
            let message = format!(
                "all {} connections for transactions were in use for {:?}; raise max_connections, or keep \
                 transactions short",
                self.max, self.patience
            );
            return Err(Error::new(ErrorKind::Overloaded, message).with_retry(Retry::Safe));
        };
        let connection = loop {
            let idle = self.idle().pop();
            match idle {
                Some(connection) if connection.is_closed() => {}
                Some(connection) if !self.servers.is_current(&connection).await => {}
                Some(connection) => break connection,
                None => break self.servers.dial_home().await?,
            }
        };
        Ok(Pooled { connection, pool: Arc::clone(self), watching: false, permit: Some(permit) })
    }

    /// Makes connections until so many are idle.
    pub(crate) async fn fill(self: &Arc<Self>, count: usize) -> Result<()> {
        while self.idle().len() < count {
            let connection = self.servers.dial_home().await?;
            self.idle().push(connection);
        }
        Ok(())
    }

    /// How many connections are in use, and how many are idle.
    pub(crate) fn figures(&self) -> (usize, usize) {
        (self.max - self.permits.available_permits(), self.idle().len())
    }

    // A std mutex: it is held for a push or a pop and never across an await.
    fn idle(&self) -> MutexGuard<'_, Vec<Connection>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pooled {
    /// The connection, on which keys will be watched.
    pub(crate) fn watching(&mut self) -> &Connection {
        self.watching = true;
        &self.connection
    }

    pub(crate) fn connection(&self) -> &Connection {
        &self.connection
    }

    /// Says that nothing is watched on the connection any more.
    pub(crate) fn unwatched(&mut self) {
        self.watching = false;
    }
}

impl Drop for Pooled {
    fn drop(&mut self) {
        if self.connection.is_closed() {
            return;
        }
        let (connection, pool, permit) =
            (self.connection.clone(), Arc::clone(&self.pool), self.permit.take());
        if !self.watching {
            pool.idle().push(connection);
            return;
        }
        // Without a runtime the connection ends here, and with it what it watches.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                if connection.command(Access::Read, &command("UNWATCH")).await.is_ok() {
                    pool.idle().push(connection);
                }
                drop(permit);
            });
        }
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").field("max", &self.max).finish_non_exhaustive()
    }
}

impl fmt::Debug for Pooled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pooled").field("watching", &self.watching).finish_non_exhaustive()
    }
}
