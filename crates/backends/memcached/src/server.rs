//! One server: the queue before its connection, and what is known of it.

use std::sync::{
    Arc,
    atomic::{AtomicI64, AtomicU64, AtomicUsize, Ordering},
};

use commonhold_core::{Clock, Error, ErrorKind, Result, Retry, SystemClock, Timestamp, url::Endpoint};
use tokio::sync::{mpsc, oneshot};

use crate::{
    config::MemcachedConfig,
    connection::drive,
    wire::{Commands, Reply},
};

/// How much may wait for one server, in bytes.
const MAX_WAITING_BYTES: usize = 128 * 1024 * 1024;

/// Further apart than this are two clocks only if one is wrong: Memcached tells whole seconds, counted from the one
/// in which it was started and up to two late.
pub(crate) const CLOCK_TOLERANCE_MS: i64 = 3_000;

/// What callers hold of a server.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) shared: Arc<Shared>,
    requests: mpsc::UnboundedSender<Request>,
}

/// What callers and the connection share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) endpoint: Endpoint,
    pub(crate) config: Arc<MemcachedConfig>,
    waiting_commands: AtomicUsize,
    waiting_bytes: AtomicUsize,
    pub(crate) connections: AtomicU64,
    next_request: AtomicU64,
    /// By how much the clock of the server is ahead, where that is no matter of rounding.
    ahead_ms: AtomicI64,
    last_now: AtomicI64,
}

/// Commands on their way, and who waits for the replies.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) commands: Commands,
    /// Send them over this connection or not at all.
    pub(crate) only_on: Option<u64>,
    pub(crate) answer: oneshot::Sender<Result<Option<Answer>>>,
    pub(crate) room: Room,
}

/// The replies, in the order of the commands.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) replies: Vec<Reply>,
    /// The connection over which they came.
    pub(crate) connection: u64,
}

impl Server {
    /// Connects to a server in the background, for as long as this exists.
    pub(crate) fn new(endpoint: Endpoint, config: Arc<MemcachedConfig>) -> Self {
        let shared = Arc::new(Shared {
            endpoint,
            config,
            waiting_commands: AtomicUsize::new(0),
            waiting_bytes: AtomicUsize::new(0),
            connections: AtomicU64::new(0),
            next_request: AtomicU64::new(0),
            ahead_ms: AtomicI64::new(0),
            last_now: AtomicI64::new(i64::MIN),
        });
        let (requests, received) = mpsc::unbounded_channel();
        tokio::spawn(drive(Arc::clone(&shared), received));
        Self { shared, requests }
    }

    /// An empty request.
    pub(crate) fn commands(&self) -> Commands {
        self.shared.commands()
    }

    /// Sends commands and waits for their replies.
    pub(crate) async fn ask(&self, commands: Commands) -> Result<Answer> {
        self.submit(commands, None).await?.ok_or_else(|| self.error(ErrorKind::Internal, "no answer"))
    }

    /// Sends commands over the connection with this number. `None`, and nothing was sent, if that has ended:
    /// the number of an entry means nothing to a server that was started anew.
    pub(crate) async fn ask_on(&self, connection: u64, commands: Commands) -> Result<Option<Answer>> {
        self.submit(commands, Some(connection)).await
    }

    async fn submit(&self, commands: Commands, only_on: Option<u64>) -> Result<Option<Answer>> {
        let (answer, answered) = oneshot::channel();
        let writes = commands.writes;
        let room = self.shared.room(&commands)?;
        let closed = || self.error(ErrorKind::Closed, "the runtime on which the store was opened has ended");
        self.requests.send(Request { commands, only_on, answer, room }).map_err(|_| closed())?;
        answered.await.unwrap_or_else(|_| {
            Err(closed().with_retry(if writes { Retry::Ambiguous } else { Retry::Never }))
        })
    }

    /// The time by this server's clock.
    ///
    /// Its own are whole seconds; so it is that of this machine, corrected where the two are far apart.
    pub(crate) fn now(&self) -> Timestamp {
        let ahead = self.shared.ahead_ms.load(Ordering::Relaxed).saturating_mul(1_000_000);
        let now = SystemClock.now().as_nanos().saturating_add(ahead);
        // Another correction must not turn it back.
        Timestamp::from_nanos(self.shared.last_now.fetch_max(now, Ordering::Relaxed).max(now))
    }

    fn error(&self, kind: ErrorKind, what: &str) -> Error {
        Error::new(kind, format!("{}: {what}", self.shared.endpoint))
    }
}

impl Shared {
    pub(crate) fn commands(&self) -> Commands {
        Commands::new(self.next_request.fetch_add(1, Ordering::Relaxed))
    }

    /// Learns the server's time, in seconds since 1970.
    pub(crate) fn learn_time(&self, seconds: u64) {
        let server = i64::try_from(seconds).unwrap_or(i64::MAX).saturating_mul(1000);
        let ahead = server.saturating_sub(SystemClock.now().as_millis());
        let ahead = if ahead.abs() <= CLOCK_TOLERANCE_MS { 0 } else { ahead };
        self.ahead_ms.store(ahead, Ordering::Relaxed);
    }

    /// A place in the queue.
    pub(crate) fn room(self: &Arc<Self>, commands: &Commands) -> Result<Room> {
        let room = Room {
            shared: Arc::clone(self),
            commands: usize::try_from(commands.count).unwrap_or(usize::MAX),
            bytes: commands.bytes.len(),
        };
        let waiting = self.waiting_commands.fetch_add(room.commands, Ordering::Relaxed);
        let bytes = self.waiting_bytes.fetch_add(room.bytes, Ordering::Relaxed);
        // One request alone always has room.
        if waiting > 0
            && (waiting + room.commands > self.config.queue || bytes + room.bytes > MAX_WAITING_BYTES)
        {
            let message =
                format!("{}: {waiting} commands are waiting already; ask for less at once", self.endpoint);
            return Err(Error::new(ErrorKind::Overloaded, message).with_retry(Retry::Safe));
        }
        Ok(room)
    }

    pub(crate) fn waiting(&self) -> usize {
        self.waiting_commands.load(Ordering::Relaxed)
    }
}

/// A place in the queue, until the replies are there.
#[derive(Debug)]
pub(crate) struct Room {
    shared: Arc<Shared>,
    commands: usize,
    bytes: usize,
}

impl Drop for Room {
    fn drop(&mut self) {
        self.shared.waiting_commands.fetch_sub(self.commands, Ordering::Relaxed);
        self.shared.waiting_bytes.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}
