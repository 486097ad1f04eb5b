//! A session of the server that asks for one lock, holds it, and ends.

use std::{pin::pin, sync::Arc, time::Duration};

use commonhold_core::{Error, ErrorKind, Key, Result, Retry};
use tokio::{
    select,
    sync::{OwnedSemaphorePermit, mpsc, oneshot, watch},
    task::AbortHandle,
    time::{Instant, sleep, timeout, timeout_at},
};
use tokio_postgres::Notification;
use tokio_util::sync::CancellationToken;

use super::{AdvisoryGuard, Shared};
use crate::{
    connect::{ANSWER_SLACK, SILENCE_S},
    connection::Connection,
    error,
    names::literal,
    values::column,
};

/// How often the server is asked whether the session is there.
const PING: Duration = Duration::from_secs(1);
/// A session that answered what was asked at some time is there for so long from then on: the server does not give it up.
const SURE: Duration = Duration::from_secs(SILENCE_S as u64 / 2);
/// How often the server is asked to give up waiting until it does: a request may come before what it is to cancel.
const CANCEL: Duration = Duration::from_millis(100);
/// How long the server is asked that.
const CANCEL_LIMIT: Duration = Duration::from_secs(10);
/// How long the server has to take note that a session ends.
const FAREWELL: Duration = Duration::from_secs(1);

/// Who asked for a lock; closed when nobody does any more.
pub(super) type Asked = oneshot::Sender<Result<Option<AdvisoryGuard>>>;
/// Who asked for its release.
pub(super) type Release = oneshot::Sender<Result<bool>>;

/// Asks for a lock and, if it is had, holds it until its guard is dropped.
pub(super) async fn serve(shared: Arc<Shared>, name: Key, deadline: Option<Instant>, mut asked: Asked) {
    let opened = select! {
        opened = Session::open(&shared) => opened,
        () = asked.closed() => return,
    };
    let mut session = match opened {
        Ok(session) => session,
        Err(error) => return drop(asked.send(Err(error.with_key(&name)))),
    };
    let number = shared.number(&name);
    match session.lock(&shared, number, deadline, &mut asked).await {
        Ok(Some((token, until))) => {
            let (sure, sure_until) = watch::channel(until);
            let (release, released) = oneshot::channel();
            let lost = CancellationToken::new();
            let keep = Keep { number, sure, lost: lost.clone(), released };
            let guard =
                AdvisoryGuard { name: name.clone(), token, sure: sure_until, lost, release: Some(release) };
            // Nobody there drops the guard, which ends the session.
            drop(asked.send(Ok(Some(guard))));
            session.keep(keep, &name).await;
        }
        Ok(None) => drop(asked.send(Ok(None))),
        Err(error) => drop(asked.send(Err(error.with_key(&name)))),
    }
    session.end().await;
}

struct Session {
    connection: Connection,
    /// Ends with the connection.
    ended: mpsc::UnboundedReceiver<Notification>,
    driver: AbortHandle,
    _permit: OwnedSemaphorePermit,
}

/// What a session that has its lock is told by, and tells, the guard.
struct Keep {
    number: i64,
    sure: watch::Sender<Instant>,
    lost: CancellationToken,
    released: oneshot::Receiver<Release>,
}

impl Session {
    async fn open(shared: &Shared) -> Result<Self> {
        let config = shared.connector.config();
        let permit = timeout(config.pool_timeout, Arc::clone(&shared.sessions).acquire_owned()).await;
        let Ok(Ok(permit)) = permit else {
            let message = format!(
                "all {} sessions for locks were in use for {:?}; pool= gives more",
                config.pool, config.pool_timeout
            );
            return Err(Error::new(ErrorKind::Overloaded, message).with_retry(Retry::Safe));
        };
        let (connection, ended, driver) = shared.connector.hold().await?;
        Ok(Self { connection, ended, driver, _permit: permit })
    }

    /// Takes the lock, waiting until the deadline if there is one. Its token, and until when it is held for sure.
    async fn lock(
        &self,
        shared: &Shared,
        number: i64,
        deadline: Option<Instant>,
        asked: &mut Asked,
    ) -> Result<Option<(u64, Instant)>> {
        let had = match deadline {
            Some(deadline) => self.wait(shared, number, deadline, asked).await?,
            None => self.ask(&format!("SELECT pg_try_advisory_lock('{number}')")).await?,
        };
        if !had {
            return Ok(None);
        }
        // That the lock is had may have been said long ago. This is asked now.
        let sent = Instant::now();
        let token: i64 = self.ask(&format!("SELECT nextval({})", literal(&shared.names.tokens))).await?;
        Ok(Some((token.unsigned_abs(), sent + SURE)))
    }

    /// Waits in the server's queue, and leaves it when nobody asks for the lock any more.
    async fn wait(&self, shared: &Shared, number: i64, deadline: Instant, asked: &mut Asked) -> Result<bool> {
        let millis = deadline.saturating_duration_since(Instant::now()).as_millis().max(1);
        let sql = format!("SET lock_timeout = {millis}; SELECT pg_advisory_lock('{number}')");
        let mut waiting = pin!(self.connection.run(&sql));
        let begun = Instant::now();
        let limit = deadline.max(begun) + ANSWER_SLACK;
        select! {
            waited = timeout_at(limit, &mut waiting) => match waited {
                Ok(Ok(())) => return Ok(true),
                Ok(Err(error)) if error::is_locked_out(&error) => return Ok(false),
                Ok(Err(error)) => return Err(error),
                Err(_) => return Err(unanswered(limit - begun)),
            },
            () = asked.closed() => {}
        }
        let given_up = timeout(CANCEL_LIMIT, async {
            while timeout(CANCEL, &mut waiting).await.is_err() {
                shared.connector.cancel(&self.connection).await;
            }
        });
        given_up.await.map_err(|_| unanswered(CANCEL_LIMIT)).map(|()| false)
    }

    /// Asks every second whether the session is there, until it is not or its lock is released.
    async fn keep(&mut self, mut keep: Keep, name: &Key) {
        loop {
            let until = *keep.sure.borrow();
            let ping = async {
                sleep(PING).await;
                let sent = Instant::now();
                self.connection.run("SELECT 1").await.map(|()| sent)
            };
            select! {
                released = &mut keep.released => {
                    keep.lost.cancel();
                    // A guard that was dropped asks for no answer.
                    if let Ok(answer) = released {
                        drop(answer.send(self.unlock(keep.number).await));
                    }
                    return;
                }
                _ = self.ended.recv() => break,
                sent = timeout_at(until, ping) => match sent {
                    Ok(Ok(sent)) => drop(keep.sure.send_replace(sent + SURE)),
                    // The session is there, or the end of it is seen above.
                    Ok(Err(error)) => tracing::debug!(%error, "the session of a lock could not answer"),
                    Err(_) => break,
                },
            }
        }
        keep.lost.cancel();
        tracing::warn!(%name, "an advisory lock was lost");
    }

    async fn unlock(&self, number: i64) -> Result<bool> {
        self.ask(&format!("SELECT pg_advisory_unlock('{number}')")).await
    }

    /// What a statement that waits for nobody answers.
    async fn ask<T: for<'a> tokio_postgres::types::FromSql<'a>>(&self, sql: &str) -> Result<T> {
        let rows = timeout(SURE, self.connection.query_once(sql, &[])).await;
        let rows = rows.map_err(|_| unanswered(SURE))??;
        let row = rows.first().ok_or_else(|| Error::new(ErrorKind::Internal, "no row came"))?;
        column(row, 0)
    }

    /// Says goodbye to the server, which frees what it held, or hangs up if the server does not answer.
    async fn end(self) {
        let Self { connection, mut ended, driver, _permit } = self;
        drop(connection);
        let _ = timeout(FAREWELL, ended.recv()).await;
        driver.abort();
    }
}

fn unanswered(limit: Duration) -> Error {
    error::timeout("the server did not answer", limit, Retry::Safe)
}
