//! Locks of the server's own, each held by a session for itself.

use std::{sync::Arc, time::Duration};

use commonhold_core::{Error, ErrorKind, Key, Result, Retry};
use sha2::{Digest as _, Sha256};
use tokio::{
    sync::{Semaphore, oneshot, watch},
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;

use crate::{
    NAME,
    config::PostgresConfig,
    connect::{Connector, Use},
    names::Names,
    schema,
    sql::Sql,
};

use self::session::{Asked, Release};

mod session;

/// The longest wait that the server knows: 24 days.
const MAX_WAIT: Duration = Duration::from_millis(i32::MAX.unsigned_abs() as u64);
/// How long to wait before trying again after an error: at first, and at most.
const DELAYS: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));

/// Advisory locks of a PostgreSQL server, by name, with fencing tokens.
///
/// A lock is that of the database, [schema](PostgresConfig::schema), [table](PostgresConfig::table) and name; the
/// table need not be there. To the server it is a number, the first 64 bits of the SHA-256 of schema, table and name with
/// a NUL in between. Two names of the same number exclude each other and are never both held; among a million names that
/// happens with a probability of 1 in 37 million. Whoever may connect to the database can take any of its locks.
///
/// # Against locks in a store
/// `commonhold_coordination::Locks` works over every store and holds a lock for a time to live. Here
/// - **nothing expires**: the server gives a lock to the next one when the holder's session has ended. It notices at once
///   that a process was killed, and after 10 s that a machine or the network is gone. A process that is stopped keeps
///   its locks for as long as it stands still, and gives them up when it goes on.
/// - **each lock and each waiting claim costs a session**, a process of the server, made anew for it: of
///   [`PostgresConfig::pool`] at most, beside those of the store. Vacuum spares what a claim that waits might still see,
///   as with any long statement.
/// - **nothing is polled**: those who wait stand in the server's queue and are served in its order, which is that of
///   their coming.
/// - **no failover is survived**: the next primary knows nothing of the locks of the last one, and may repeat tokens
///   unless replication is synchronous. While two servers both take themselves for the primary, there are two holders.
///
/// An end of the session on the server's side (`pg_terminate_backend`, a crash, a restart) frees the lock the moment before
/// the holder can know. As with every lock, only a [token](AdvisoryGuard::token) that is checked where something is
/// written keeps a former holder from writing.
///
/// Two sessions that hold what the other waits for are no deadlock that the server could see; their timeouts end it.
///
/// Cheap to clone; clones share everything.
///
/// ```no_run
/// use std::time::Duration;
/// use commonhold_core::url::StoreUrl;
/// use commonhold_postgres::{AdvisoryLocks, PostgresConfig};
///
/// # async fn example() -> commonhold_core::Result<()> {
/// let url = StoreUrl::parse("postgres://app:secret@localhost/app")?;
/// let locks = AdvisoryLocks::open(PostgresConfig::from_url(url)?).await?;
/// if let Some(guard) = locks.try_acquire("report").await? {
///     println!("token {}", guard.token());
///     guard.release().await?;
/// }
/// let sum = locks.with_lock("report", Duration::from_secs(10), |_token| async { 1 + 1 }).await?;
/// assert_eq!(sum, 2);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct AdvisoryLocks {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    connector: Connector,
    names: Names,
    sessions: Arc<Semaphore>,
}

impl AdvisoryLocks {
    /// Connects, and makes the sequence `TABLE_lock_tokens`, from which the tokens are, if it is not there.
    ///
    /// # Errors
    /// `Unsupported` behind [pgbouncer](PostgresConfig::pgbouncer) in transaction mode: a lock is that of a session,
    /// and there it would stay with one that others use. `InvalidConfig`: an option is out of range, or the database
    /// does not exist. `Unauthorized`: a wrong password, or no permission. `Unavailable`, `Timeout`: the server is not
    /// there.
    pub async fn open(config: PostgresConfig) -> Result<Self> {
        Self::open_checked(config).await.map_err(|error| error.at(NAME, "open"))
    }

    async fn open_checked(config: PostgresConfig) -> Result<Self> {
        config.check()?;
        if config.pgbouncer {
            let message = "advisory locks are held by a session, and pgbouncer in transaction mode gives each \
                           transaction another one; name the server itself";
            return Err(Error::new(ErrorKind::Unsupported, message));
        }
        let names = Names::new(&config.schema, &config.table)?;
        let sessions = Arc::new(Semaphore::new(config.pool));
        let connector = Connector::new(config, Sql::texts(&names))?;
        let connection = connector.connect(Use::Holding).await?;
        schema::make_tokens(&connection, connector.config(), &names).await?;
        Ok(Self { shared: Arc::new(Shared { connector, names, sessions }) })
    }

    /// Takes a lock if nobody has it. A name has 1 to 1024 bytes.
    ///
    /// # Errors
    /// `InvalidInput`, `TooLarge` for another name. `Overloaded` if all [sessions](PostgresConfig::pool) were in use for
    /// [`PostgresConfig::pool_timeout`], or the server takes no more. Those of connecting; `Unavailable`, `Timeout`.
    /// Nothing is held then.
    ///
    /// Cancellation: a dropped future leaves no lock behind; its session is ended in the background.
    pub async fn try_acquire(&self, name: impl AsRef<[u8]>) -> Result<Option<AdvisoryGuard>> {
        let claimed = async { self.claim(&Key::new(name)?, None).await };
        claimed.await.map_err(|error| error.at(NAME, "try_acquire"))
    }

    /// Takes a lock, waiting in the server's queue for it up to `timeout`, 24 days at most; `None` if it was not to be
    /// had until then. It is asked for once at least, however long it took to connect.
    ///
    /// # Errors
    /// As [`try_acquire`](Self::try_acquire). Errors that may pass (a server that is away) are waited out; whoever
    /// waited is at the end of the queue then.
    ///
    /// Cancellation: as with [`try_acquire`](Self::try_acquire); the queue is left.
    pub async fn acquire(&self, name: impl AsRef<[u8]>, timeout: Duration) -> Result<Option<AdvisoryGuard>> {
        let claimed =
            async { self.claim_until(&Key::new(name)?, Instant::now() + timeout.min(MAX_WAIT)).await };
        claimed.await.map_err(|error| error.at(NAME, "acquire"))
    }

    /// Does work, given the [token](AdvisoryGuard::token), while holding a lock, and drops the work where it is if the
    /// lock is lost meanwhile.
    ///
    /// # Errors
    /// `Timeout` if the lock was not to be had within `timeout`; `Conflict` if it was lost; those of
    /// [`acquire`](Self::acquire). Not those of the release: the session is ended then.
    ///
    /// Cancellation: drops the work and releases the lock in the background.
    pub async fn with_lock<F, T>(
        &self,
        name: impl AsRef<[u8]>,
        timeout: Duration,
        work: impl FnOnce(u64) -> F,
    ) -> Result<T>
    where
        F: Future<Output = T>,
    {
        let failed = |kind, retry, what: &str| {
            Error::new(kind, what.to_owned()).with_retry(retry).at(NAME, "with_lock")
        };
        let Some(guard) = self.acquire(name, timeout).await? else {
            let what = format!("the lock was not to be had within {timeout:?}");
            return Err(failed(ErrorKind::Timeout, Retry::Safe, &what));
        };
        tokio::select! {
            done = work(guard.token()) => {
                let _ = guard.release().await.inspect_err(|error| tracing::debug!(%error, "the session is ended"));
                Ok(done)
            }
            () = guard.lost.cancelled() => {
                let what = "the lock was lost before the work was done";
                Err(failed(ErrorKind::Conflict, Retry::Never, what).with_key(&guard.name))
            }
        }
    }

    async fn claim_until(&self, name: &Key, deadline: Instant) -> Result<Option<AdvisoryGuard>> {
        let mut pause = DELAYS.0;
        loop {
            match self.claim(name, Some(deadline)).await {
                Err(error) if error.retry() != Retry::Never && Instant::now() + pause < deadline => {
                    tracing::debug!(%error, "a lock is asked for again");
                    sleep(pause).await;
                    pause = (pause * 2).min(DELAYS.1);
                }
                claimed => return claimed,
            }
        }
    }

    /// The session has a task of its own, which sees it through to its end, whatever becomes of this future.
    async fn claim(&self, name: &Key, deadline: Option<Instant>) -> Result<Option<AdvisoryGuard>> {
        let (asked, answer): (Asked, _) = oneshot::channel();
        tokio::spawn(session::serve(Arc::clone(&self.shared), name.clone(), deadline, asked));
        let claimed = answer.await.map_err(|_| Error::new(ErrorKind::Closed, "the runtime has ended"))?;
        // Whatever the server did is undone with the session.
        claimed.map_err(|error| match error.retry() {
            Retry::Ambiguous => error.with_retry(Retry::Safe),
            _ => error,
        })
    }
}

impl Shared {
    /// What the server calls the lock of this name.
    fn number(&self, name: &Key) -> i64 {
        let PostgresConfig { schema, table, .. } = self.connector.config();
        let hash = Sha256::new().chain_update(schema).chain_update([0]).chain_update(table).chain_update([0]);
        let digest = hash.chain_update(name.as_bytes()).finalize();
        digest.first_chunk().map_or(0, |bytes| i64::from_be_bytes(*bytes))
    }
}

/// An advisory lock that is held, until it is released or its session ends.
///
/// Dropping it releases it in the background; [`release`](Self::release) waits until that is done.
#[derive(Debug)]
#[must_use = "it is released when the guard is dropped"]
pub struct AdvisoryGuard {
    name: Key,
    token: u64,
    /// Until when the session is alive for sure, unless it is heard from again.
    sure: watch::Receiver<Instant>,
    lost: CancellationToken,
    /// Dropped, it ends the session.
    release: Option<oneshot::Sender<Release>>,
}

impl AdvisoryGuard {
    /// The name of the lock.
    pub fn name(&self) -> &[u8] {
        self.name.as_bytes()
    }

    /// The fencing token: greater than that of whoever had the lock earlier, after a crash of the server too, provided
    /// that its disk keeps what it says it keeps (`fsync`) and that nobody drops the sequence. Tokens are not
    /// consecutive. `commonhold_coordination::Fence::new` makes it what fenced writes take.
    pub fn token(&self) -> u64 {
        self.token
    }

    /// Whether it is still held, as far as can be known here. It may be lost the moment after: only a
    /// [token](Self::token) keeps what is written later from doing harm.
    pub fn is_held(&self) -> bool {
        !self.lost.is_cancelled() && Instant::now() < *self.sure.borrow()
    }

    /// Cancelled when the lock is released, when its session ends, and when the server has not answered for 5 s: the
    /// session is asked every second whether it is there, and the server keeps one that it does not hear of for 10 s.
    pub fn lost(&self) -> CancellationToken {
        self.lost.clone()
    }

    /// Releases it, and says whether it was held until now.
    ///
    /// # Errors
    /// `Unavailable`, `Timeout`: the server's answer did not come. The session is ended then, and the lock is free when
    /// the server has noticed.
    ///
    /// Cancellation: a dropped future releases it in the background.
    pub async fn release(mut self) -> Result<bool> {
        let (answer, released) = oneshot::channel();
        let Some(release) = self.release.take() else { return Ok(false) };
        self.lost.cancel();
        if release.send(answer).is_err() {
            return Ok(false);
        }
        released.await.unwrap_or(Ok(false)).map_err(|error| error.at(NAME, "release").with_key(&self.name))
    }
}

impl Drop for AdvisoryGuard {
    fn drop(&mut self) {
        self.lost.cancel();
    }
}
