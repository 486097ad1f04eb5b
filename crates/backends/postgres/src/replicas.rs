//! Reads from replicas: from those alone that are known to be no further behind than is allowed.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use commonhold_core::{Error, ErrorKind, Key, Result, Timestamp, url::Endpoint};
use tokio::{sync::watch, time::sleep};
use tokio_postgres::types::PgLsn;

use crate::{
    clock::ServerClock,
    connect::Connector,
    lanes::Lane,
    log::{Log, Look},
    seen::Seen,
    server::Server,
    sql::Sql,
    values::{Time, column},
};

/// How long an answer to a look may take; half a second is added to it, as to every statement's time.
const LOOK_TIMEOUT: Duration = Duration::from_millis(500);
/// How long to wait between two looks: an eighth of the lag that is allowed, within these.
const PAUSES: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(1));

/// The replicas and what is known of them and of their primary.
#[derive(Debug)]
pub(crate) struct Replicas {
    replicas: Vec<Replica>,
    primary: Lane,
    log: Mutex<Log>,
    clock: ServerClock,
    seen: Arc<Seen>,
    max_lag: Duration,
    next: AtomicUsize,
}

/// A replica and the ways to it.
#[derive(Debug)]
pub(crate) struct Replica {
    host: Endpoint,
    connector: Arc<Connector>,
    /// Made anew when nothing is known of the replica any more: its connections may lead nowhere.
    server: Mutex<Arc<Server>>,
    looks: Lane,
    shows: watch::Sender<Shows>,
    /// How far it has come, whatever it shows.
    reached: AtomicU64,
}

/// The last look at the primary whose log is all there, or why the replica is not to be read from.
type Shows = Result<Look, String>;

impl Replicas {
    pub(crate) fn new(primary: &Connector, seen: &Arc<Seen>) -> Result<Self> {
        let config = primary.config();
        Ok(Self {
            replicas: config
                .replicas
                .iter()
                .map(|host| Replica::new(primary, host))
                .collect::<Result<_>>()?,
            primary: Lane::new(&Arc::new(primary.within(LOOK_TIMEOUT))),
            log: Mutex::default(),
            clock: ServerClock::default(),
            seen: Arc::clone(seen),
            max_lag: config.max_lag,
            next: AtomicUsize::new(0),
        })
    }

    /// The replica for the next read of these keys; none if it is the primary's.
    pub(crate) fn for_keys<'a>(&self, keys: impl IntoIterator<Item = &'a Key>) -> Option<&Replica> {
        if self.replicas.is_empty() { None } else { self.next(self.seen.of(keys)) }
    }

    /// The replica for the next read of who knows which keys; none if it is the primary's.
    pub(crate) fn for_any_keys(&self) -> Option<&Replica> {
        if self.replicas.is_empty() { None } else { self.next(self.seen.writes()) }
    }

    /// The next one that shows this store's writes up to a number, and what was observed.
    fn next(&self, writes: u64) -> Option<&Replica> {
        let (first, observed) = (self.next.fetch_add(1, Ordering::Relaxed), self.seen.observed());
        let shows = |replica: &&Replica| match &*replica.shows.borrow() {
            Ok(look) => {
                look.asked.elapsed() <= self.max_lag && look.writes >= writes && look.position >= observed
            }
            Err(_) => false,
        };
        let (before, from) = self.replicas.split_at(first % self.replicas.len());
        from.iter().chain(before).find(shows)
    }

    /// Looks at the primary and at each replica until the store is closed.
    pub(crate) fn watch_over(self: &Arc<Self>) {
        if !self.replicas.is_empty() {
            tokio::spawn(look_at_the_primary(Arc::downgrade(self)));
        }
        for number in 0..self.replicas.len() {
            tokio::spawn(look_at_a_replica(Arc::downgrade(self), number));
        }
    }

    fn pause(&self) -> Duration {
        (self.max_lag / 8).clamp(PAUSES.0, PAUSES.1)
    }

    async fn look_at_the_primary(&self) -> Result<()> {
        // All of these before the question: the answer covers what they say, and perhaps more.
        let (asked, writes, observed) = (Instant::now(), self.seen.writes(), self.seen.observed());
        let rows = self.primary.get().await?.query(Sql::Written, &[]).await?;
        let row = rows.first().ok_or_else(no_row)?;
        let (position, timeline): (PgLsn, &str) = (column(row, 0)?, column(row, 1)?);
        let position = u64::from(position);
        self.clock.looked(Timestamp::from(column::<Time>(row, 2)?), asked);
        self.seen.forget_beyond(position, observed);
        let reached = self.replicas.iter().map(|replica| replica.reached.load(Ordering::SeqCst)).max();
        let look = Look { asked, writes, position };
        lock(&self.log).looked(timeline, look, reached.unwrap_or(0), self.max_lag);
        Ok(())
    }

    /// What a replica that answers shows, or why it is not to be read from.
    async fn look_at(&self, replica: &Replica) -> Result<Shows> {
        let asked = Instant::now();
        let rows = replica.looks.get().await?.query(Sql::Replayed, &[]).await?;
        let row = rows.first().ok_or_else(no_row)?;
        let Some(replayed) = column::<Option<PgLsn>>(row, 0)?.map(u64::from) else {
            return Ok(Err("it is no replica, or no more".to_owned()));
        };
        replica.reached.store(replayed, Ordering::SeqCst);
        let Some(look) = lock(&self.log).shown_at(replayed) else {
            return Ok(Err(format!("it is more than {:?} behind the primary", self.max_lag)));
        };
        // Its clock judges expiry.
        let (there, here) = (Timestamp::from(column::<Time>(row, 1)?), self.clock.now());
        let off = Duration::from_nanos(there.as_nanos().abs_diff(here.as_nanos()));
        match off > self.max_lag + asked.elapsed() {
            true => Ok(Err(format!("its clock is {off:?} off the primary's"))),
            false => Ok(Ok(look)),
        }
    }

    /// Each replica and how it is.
    pub(crate) fn details(&self) -> impl Iterator<Item = (String, String)> {
        self.replicas.iter().map(|replica| {
            let state = match &*replica.shows.borrow() {
                Ok(look) => format!("read from, {:.3} s behind at most", look.asked.elapsed().as_secs_f64()),
                Err(why) => format!("not read from: {why}"),
            };
            (format!("replica {}", replica.host), state)
        })
    }

    /// The replicas that are not read from, and why.
    pub(crate) fn warnings(&self) -> impl Iterator<Item = String> {
        self.replicas.iter().filter_map(|replica| {
            let why = replica.shows.borrow().as_ref().err()?.clone();
            Some(format!("the replica {} is not read from: {why}", replica.host))
        })
    }
}

impl Replica {
    fn new(primary: &Connector, host: &Endpoint) -> Result<Self> {
        let connector = primary.to(host);
        let looks = Lane::new(&Arc::new(connector.within(LOOK_TIMEOUT)));
        let connector = Arc::new(connector);
        Ok(Self {
            host: host.clone(),
            server: Mutex::new(Arc::new(Server::new(&connector)?)),
            connector,
            looks,
            shows: watch::Sender::new(Err("it has not been looked at yet".to_owned())),
            reached: AtomicU64::new(0),
        })
    }

    /// The connections for a read.
    pub(crate) fn server(&self) -> Arc<Server> {
        Arc::clone(&lock(&self.server))
    }

    /// The answer to a read; none, at once, if it fails or the replica is found to be out of order meanwhile. Then it
    /// is left out until it answers a look.
    pub(crate) async fn answer<T>(&self, read: impl Future<Output = Result<T>>) -> Option<T> {
        let mut shows = self.shows.subscribe();
        tokio::select! {
            biased;
            answer = read => match answer {
                Ok(answer) => return Some(answer),
                Err(error) => self.leave_out(&error),
            },
            _ = shows.wait_for(Result::is_err) => {}
        }
        None
    }

    fn leave_out(&self, error: &Error) {
        let was_read_from = self.shows.send_replace(Err(format!("it fails: {}", error.message()))).is_ok();
        if was_read_from {
            tracing::debug!(replica = %self.host, %error, "a replica fails");
            // Without a runtime there is no pool, and nobody to read.
            if let Ok(server) = Server::new(&self.connector) {
                *lock(&self.server) = Arc::new(server);
            }
        }
    }
}

async fn look_at_the_primary(replicas: Weak<Replicas>) {
    while let Some(replicas) = replicas.upgrade() {
        if let Err(error) = replicas.look_at_the_primary().await {
            tracing::debug!(%error, "it cannot be told how far behind replicas are");
        }
        let pause = replicas.pause();
        drop(replicas);
        sleep(pause).await;
    }
}

async fn look_at_a_replica(replicas: Weak<Replicas>, number: usize) {
    while let Some(replicas) = replicas.upgrade() {
        let Some(replica) = replicas.replicas.get(number) else { return };
        let pause = match replicas.look_at(replica).await {
            Ok(shows) => {
                let _before = replica.shows.send_replace(shows);
                replicas.pause()
            }
            Err(error) => {
                replica.leave_out(&error);
                PAUSES.1
            }
        };
        drop(replicas);
        sleep(pause).await;
    }
}

fn no_row() -> Error {
    Error::new(ErrorKind::Internal, "no row came")
}

// A std mutex: it is held for a few steps and never across an await.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
