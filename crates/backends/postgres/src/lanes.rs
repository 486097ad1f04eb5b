//! A few connections that all share: statements follow each other on them without waiting for answers.

use std::{
    sync::{
        Arc, Mutex as StdMutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Instant,
};

use commonhold_core::{Error, Result};
use tokio::sync::Mutex;

use crate::{
    connect::{Connector, Use},
    connection::Connection,
    ways::{WAYS, pick},
};

/// The shared connections. What breaks is made anew when it is asked for.
#[derive(Debug)]
pub(crate) struct Lanes {
    reads: [Lane; WAYS],
    writes: [Lane; WAYS],
    others: [Lane; WAYS],
    next: AtomicUsize,
}

impl Lanes {
    pub(crate) fn new(connector: &Arc<Connector>) -> Self {
        let lanes = || std::array::from_fn(|_| Lane::new(connector));
        Self { reads: lanes(), writes: lanes(), others: lanes(), next: AtomicUsize::new(0) }
    }

    /// A connection of gathered reads.
    pub(crate) async fn reads(&self, way: usize) -> Result<Arc<Connection>> {
        pick(&self.reads, way).get().await
    }

    /// A connection of gathered writes.
    pub(crate) async fn writes(&self, way: usize) -> Result<Arc<Connection>> {
        pick(&self.writes, way).get().await
    }

    /// A connection for anything else.
    pub(crate) async fn any(&self) -> Result<Arc<Connection>> {
        pick(&self.others, self.next.fetch_add(1, Ordering::Relaxed)).get().await
    }
}

/// One shared connection.
#[derive(Debug)]
pub(crate) struct Lane {
    connector: Arc<Connector>,
    // A std mutex: it is held for a clone and never across an await.
    current: StdMutex<Option<Arc<Connection>>>,
    /// When connecting failed last, and why. Locked while somebody tries.
    connecting: Mutex<Option<(Instant, Error)>>,
}

impl Lane {
    pub(crate) fn new(connector: &Arc<Connector>) -> Self {
        Self { connector: Arc::clone(connector), current: StdMutex::default(), connecting: Mutex::default() }
    }

    fn current(&self) -> Option<Arc<Connection>> {
        let current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        current.clone().filter(|connection| connection.is_usable())
    }

    /// The connection, made anew if it broke. Of those who ask meanwhile one tries; the others share its failure.
    pub(crate) async fn get(&self) -> Result<Arc<Connection>> {
        if let Some(connection) = self.current() {
            return Ok(connection);
        }
        let asked = Instant::now();
        let mut failed = self.connecting.lock().await;
        if let Some(connection) = self.current() {
            return Ok(connection);
        }
        if let Some((at, error)) = &*failed
            && *at >= asked
        {
            return Err(error.clone());
        }
        match self.connector.connect(Use::Shared).await {
            Ok(connection) => {
                let connection = Arc::new(connection);
                *self.current.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&connection));
                *failed = None;
                Ok(connection)
            }
            Err(error) => {
                *failed = Some((Instant::now(), error.clone()));
                Err(error)
            }
        }
    }
}
