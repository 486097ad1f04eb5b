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
};

/// One for gathered reads, one for gathered writes, the rest for all else.
const COUNT: usize = 4;

/// The shared connections. What breaks is made anew when it is asked for.
#[derive(Debug)]
pub(crate) struct Lanes {
    lanes: [Lane; COUNT],
    next: AtomicUsize,
}

impl Lanes {
    pub(crate) fn new(connector: &Arc<Connector>) -> Self {
        Self { lanes: std::array::from_fn(|_| Lane::new(connector)), next: AtomicUsize::new(0) }
    }

    /// The connection of gathered reads.
    pub(crate) async fn reads(&self) -> Result<Arc<Connection>> {
        self.lanes[0].get().await
    }

    /// The connection of gathered writes.
    pub(crate) async fn writes(&self) -> Result<Arc<Connection>> {
        self.lanes[1].get().await
    }

    /// A connection for anything else.
    pub(crate) async fn any(&self) -> Result<Arc<Connection>> {
        let [_, _, lanes @ ..] = &self.lanes;
        let next = self.next.fetch_add(1, Ordering::Relaxed) % lanes.len();
        match lanes.get(next) {
            Some(lane) => lane.get().await,
            None => self.reads().await,
        }
    }
}

#[derive(Debug)]
struct Lane {
    connector: Arc<Connector>,
    // A std mutex: it is held for a clone and never across an await.
    current: StdMutex<Option<Arc<Connection>>>,
    /// When connecting failed last, and why. Locked while somebody tries.
    connecting: Mutex<Option<(Instant, Error)>>,
}

impl Lane {
    fn new(connector: &Arc<Connector>) -> Self {
        Self { connector: Arc::clone(connector), current: StdMutex::default(), connecting: Mutex::default() }
    }

    fn current(&self) -> Option<Arc<Connection>> {
        let current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        current.clone().filter(|connection| connection.is_usable())
    }

    /// The connection, made anew if it broke. Of those who ask meanwhile one tries; the others share its failure.
    async fn get(&self) -> Result<Arc<Connection>> {
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
