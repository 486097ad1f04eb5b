//! Reads rows, decides, and writes, while nobody else can write them: what is atomic over several keys, and transitions
//! that others got in the way of.

use std::collections::BTreeMap;

use commonhold_core::{
    Error, ErrorKind, Key, Result, Retry, Timestamp,
    embedded::{Record, WriteSet},
};

use crate::{
    connection::{Connection, Params},
    gathered::bytes,
    pool::Session,
    shared::{Attempts, Shared},
    sql::Sql,
    values::{self, Time},
};

/// What is there, by key.
pub(crate) type Live = BTreeMap<Key, Record>;

/// The level at which each statement sees what was committed before it: behind the lock, all there is. A process that is
/// stopped while it holds the lock would hold up everybody: the server ends its session after a second.
const BEGIN: &str =
    "BEGIN ISOLATION LEVEL READ COMMITTED; SET LOCAL idle_in_transaction_session_timeout = '1s'";

impl Shared {
    /// Locks keys, given in order and each once, hands what is there to `decide`, carries out the writes, and answers
    /// the reply. Two round trips.
    ///
    /// A key without a row gets one that nobody can see and that is gone before the commit: whoever puts that key
    /// waits for it. All lock in the order of keys, so they do not wait for each other in a circle; where plain SQL
    /// brings that about, it is done again, so `decide` may be called several times.
    ///
    /// # Errors
    /// Those of `decide`; nothing is written then.
    pub(crate) async fn locked<T>(
        &self,
        keys: &[Key],
        mut decide: impl FnMut(&Live, Timestamp) -> Result<(WriteSet, T)>,
    ) -> Result<T> {
        let mut attempts = Attempts::default();
        loop {
            let done = self.locked_once(keys, &mut decide).await;
            if !attempts.again(&done) {
                return done;
            }
        }
    }

    async fn locked_once<T>(
        &self,
        keys: &[Key],
        decide: &mut impl FnMut(&Live, Timestamp) -> Result<(WriteSet, T)>,
    ) -> Result<T> {
        let mut session = self.primary.pool.get().await?;
        let (live, now) = lock(&mut session, keys).await.map_err(nothing_written)?;
        let (writes, reply) = decide(&live, now)?;
        if !writes.is_empty() {
            write(&session, keys, &live, &writes).await?;
            session.ended();
        }
        Ok(reply)
    }
}

/// Begins a transaction, locks, and reads, all in one round trip.
async fn lock(session: &mut Session, keys: &[Key]) -> Result<(Live, Timestamp)> {
    session.prepare(&[Sql::Lock, Sql::ReadLocked, Sql::WriteLocked, Sql::DeleteLocked]).await?;
    session.begun();
    let keys = bytes(keys);
    let params: Params<'_> = &[&keys];
    let (begun, locked, rows) = tokio::join!(
        biased;
        session.run(BEGIN),
        session.execute(Sql::Lock, params),
        session.query(Sql::ReadLocked, params),
    );
    begun?;
    locked?;
    let rows = rows?;
    let now = rows.first().map(|row| values::column::<Time>(row, 3)).transpose()?;
    let now = now.ok_or_else(|| Error::new(ErrorKind::Internal, "no row was locked"))?.into();
    let mut live = Live::new();
    for row in &rows {
        let record = values::record(row, 1)?;
        if record.is_live(now) {
            live.insert(values::key(row, 0)?, record);
        }
    }
    Ok((live, now))
}

/// Writes and commits in one round trip. What is locked and not there is removed.
async fn write(connection: &Connection, keys: &[Key], live: &Live, writes: &WriteSet) -> Result<()> {
    let (mut put, mut values, mut expiries, mut deleted) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for key in keys {
        match writes.get(key) {
            Some(Some(record)) => {
                put.push(key.as_bytes());
                values.push(&record.value[..]);
                expiries.push(record.expires_at.map(Time::from));
            }
            Some(None) => deleted.push(key.as_bytes()),
            None if live.contains_key(key) => {}
            None => deleted.push(key.as_bytes()),
        }
    }
    let write = async {
        match put.is_empty() {
            true => Ok(0),
            false => connection.execute(Sql::WriteLocked, &[&put, &values, &expiries]).await,
        }
    };
    let delete = async {
        match deleted.is_empty() {
            true => Ok(0),
            false => connection.execute(Sql::DeleteLocked, &[&deleted]).await,
        }
    };
    let (written, deleted, committed) = tokio::join!(biased; write, delete, connection.run("COMMIT"));
    written?;
    deleted?;
    committed
}

/// Before the commit is sent nothing is written, whatever is lost.
pub(crate) fn nothing_written(error: Error) -> Error {
    match error.retry() {
        Retry::Ambiguous => error.with_retry(Retry::Safe),
        _ => error,
    }
}
