//! Transactions: reads under WATCH on a connection of their own, writes in one MULTI and EXEC.

use std::{fmt, sync::Arc};

use async_trait::async_trait;
use commonhold_core::{
    Clock as _, Error, ErrorKind, Expiry, Key, Result, Retry, SystemClock, Timestamp,
    embedded::{OptimisticStore, OptimisticTransaction, ReadSet, Record, Rules, WriteSet},
};
use tokio::sync::Mutex;

use crate::{
    driver::{Cmd, Pipeline, bytes, integer},
    error::{Access, unexpected},
    keyspace::Keyspace,
    node::atomically,
    pool::{Pool, Pooled},
    reads::ttl_of,
    servers::Servers,
    writes::{set, unlink},
};

/// What one transaction reads from and commits to.
///
/// Times are of this process's monotonic clock here: only differences of it are used, so that the server's clock
/// may show what it will.
pub(crate) struct Session {
    servers: Servers,
    keyspace: Keyspace,
    rules: Rules,
    pool: Arc<Pool>,
    /// Taken at the first read. Tokio's mutex: held while a key is read.
    connection: Mutex<Option<Pooled>>,
}

impl Session {
    pub(crate) fn begin(
        servers: Servers,
        keyspace: Keyspace,
        rules: Rules,
        pool: Arc<Pool>,
    ) -> OptimisticTransaction<Self> {
        let connection = Mutex::default();
        OptimisticTransaction::new(Arc::new(Self { servers, keyspace, rules, pool, connection }))
    }

    /// The command that brings a key to what the transaction made of it.
    fn command(&self, key: &Key, old: Option<&Record>, new: Option<&Record>) -> Cmd {
        let full = self.keyspace.full(key);
        let Some(new) = new else { return unlink(&full) };
        let expiry = match new.expires_at {
            None => Expiry::Never,
            // As it was: it is not rounded then, nor made longer by the time that the transaction takes.
            at if old.is_some_and(|old| old.expires_at == at) => Expiry::Keep,
            Some(at) => match at.since(self.now()) {
                left if left.is_zero() => return unlink(&full),
                left => Expiry::After(left),
            },
        };
        set(&full, &new.value, &commonhold_core::Condition::Always, expiry)
    }
}

#[async_trait]
impl OptimisticStore for Session {
    fn now(&self) -> Timestamp {
        SystemClock.now()
    }

    fn rules(&self) -> &Rules {
        &self.rules
    }

    async fn read(&self, key: &Key) -> Result<Option<Record>> {
        let mut connection = self.connection.lock().await;
        let pooled = match &mut *connection {
            Some(pooled) => pooled,
            none => none.insert(self.pool.take().await?),
        };
        let full = self.keyspace.full(key);
        let mut read = Pipeline::with_capacity(3);
        // What changes between these is noticed by EXEC.
        for name in ["WATCH", "GET", "PTTL"] {
            read.cmd(name).arg(&full[..]);
        }
        let replies = pooled.watching().pipeline(Access::Read, &read).await;
        let now = self.now();
        let mut replies = self.servers.noting(replies)?.into_iter();
        let mut next = || replies.next().ok_or_else(unexpected);
        self.servers.noting(bytes(next()?))?;
        let (value, left) = (bytes(next()?)?, integer(next()?)?);
        Ok(value
            .filter(|_| left != -2)
            .map(|value| Record { value, expires_at: (left >= 0).then(|| now.saturating_add(ttl_of(left))) }))
    }

    async fn commit(&self, reads: ReadSet, writes: WriteSet) -> Result<()> {
        let commands = writes.iter().map(|(key, new)| {
            let old = reads.get(key).and_then(Option::as_ref);
            self.command(key, old, new.as_ref())
        });
        let commands: Vec<Cmd> = commands.collect();
        let committed = match self.connection.lock().await.take() {
            None if commands.is_empty() => Ok(()),
            None => self.servers.send_atomically(&commands).await.map(drop),
            Some(pooled) if pooled.connection().is_closed() => Err(Error::new(
                ErrorKind::Unavailable,
                "the connection was lost before the commit; nothing was written",
            )
            .with_retry(Retry::Safe)),
            Some(mut pooled) => {
                let done = self.servers.noting(atomically(pooled.connection(), &commands).await)?;
                pooled.unwatched();
                done.map(drop).ok_or_else(conflict)
            }
        };
        committed.map_err(|error| error.at(crate::backend::NAME, "commit"))
    }
}

fn conflict() -> Error {
    Error::new(ErrorKind::Conflict, "what the transaction read has changed since; nothing was written")
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session").field("rules", &self.rules).finish_non_exhaustive()
    }
}
