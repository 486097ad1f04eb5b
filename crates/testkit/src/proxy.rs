//! A TCP proxy on loopback that delays, cuts, swallows and loses what passes through it.

use std::{
    io,
    net::{Ipv4Addr, TcpListener as StdListener},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    runtime::{Builder, Runtime},
    sync::watch,
    task::{JoinHandle, JoinSet},
    time::sleep,
};

use crate::servers::port::Port;

/// What a [`Proxy`] does with connections and with what they carry.
///
/// Requests are what clients send, replies what the server sends. A connection never loses bytes and goes on:
/// one from which something was swallowed is closed when the mode changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Passes everything on.
    Pass,
    /// Passes everything on, each piece after this long at least, in both directions.
    Delay(Duration),
    /// Passes nothing on for now and everything when the mode changes, as a network that heals.
    Hold,
    /// Takes everything and passes nothing on, in both directions.
    BlackHole,
    /// Passes requests on and swallows the replies.
    LoseReplies,
    /// Closes all connections, and new ones once they are accepted.
    Close,
    /// Closes all connections and refuses new ones, as a server that does not run.
    Refuse,
    /// Passes so many further bytes of requests on, then closes the connection; after that, [`Mode::Pass`]. It
    /// hits the first connection on which there are more, and that one only.
    CutRequest(u64),
    /// Passes so many further bytes of replies on, then closes the connection; after that, [`Mode::Pass`]. It
    /// hits the first connection on which there are more, and that one only. `CutReply(0)` loses the reply to a
    /// request that the server has carried out.
    CutReply(u64),
}

/// What went through a [`Proxy`] since it was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Traffic {
    /// Connections that were accepted.
    pub connections: u64,
    /// Bytes of requests that were passed on.
    pub request_bytes: u64,
    /// Bytes of replies that were passed on.
    pub reply_bytes: u64,
    /// Bytes of requests that were taken and not passed on.
    pub lost_request_bytes: u64,
    /// Bytes of replies that were taken and not passed on: the server carried something out.
    pub lost_reply_bytes: u64,
}

/// A proxy on a port of 127.0.0.1 before another port of it. It runs on a thread of its own, so a test may block.
///
/// While the server does not run, connections are accepted and closed.
///
/// ```no_run
/// use commonhold_testkit::{proxy::{Mode, Proxy}, servers::Redis};
///
/// let redis = Redis::start();
/// let proxy = Proxy::before(redis.port());
/// let url = redis.url_at(proxy.port());
/// // .. a client increments through the proxy: the server does it, and the client does not hear of it.
/// proxy.set(Mode::CutReply(0));
/// ```
#[derive(Debug)]
pub struct Proxy {
    port: Port,
    shared: Arc<Shared>,
    /// Accepts connections; none while they are refused.
    acceptor: Mutex<Option<JoinHandle<()>>>,
    runtime: Option<Runtime>,
}

impl Proxy {
    /// A proxy before `server`, a port of 127.0.0.1, that passes everything on.
    ///
    /// # Panics
    /// If there is no free port.
    pub fn before(server: u16) -> Self {
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let shared = Shared {
            server,
            mode: watch::Sender::new(Mode::Pass),
            connections: Mutex::default(),
            accepted: AtomicU64::new(0),
            requests: Counter::default(),
            replies: Counter::default(),
        };
        let runtime = Some(runtime.expect("a runtime can be made"));
        let proxy =
            Self { port: Port::reserve(), shared: Arc::new(shared), acceptor: Mutex::default(), runtime };
        proxy.accept();
        proxy
    }

    /// The port to connect to.
    pub fn port(&self) -> u16 {
        self.port.number()
    }

    /// Changes the mode, for the connections that there are too. What the clients send from now on is treated
    /// by it.
    ///
    /// # Panics
    /// If connections were refused and somebody else has taken the port.
    pub fn set(&self, mode: Mode) {
        self.shared.mode.send_replace(mode);
        match mode {
            Mode::Refuse => self.refuse(),
            _ => self.accept(),
        }
        if matches!(mode, Mode::Close | Mode::Refuse) {
            self.cut();
        }
    }

    /// The mode; one that cuts a single connection has become [`Mode::Pass`] when it is done.
    pub fn mode(&self) -> Mode {
        *self.shared.mode.borrow()
    }

    /// Closes all connections, and returns when they are closed. The mode stays as it is.
    pub fn cut(&self) {
        let mut connections = std::mem::take(&mut *lock(&self.shared.connections));
        self.finish(async move { connections.shutdown().await });
    }

    /// What went through up to now.
    pub fn traffic(&self) -> Traffic {
        let Shared { accepted, requests, replies, .. } = &*self.shared;
        Traffic {
            connections: accepted.load(Ordering::SeqCst),
            request_bytes: requests.passed.load(Ordering::SeqCst),
            reply_bytes: replies.passed.load(Ordering::SeqCst),
            lost_request_bytes: requests.lost.load(Ordering::SeqCst),
            lost_reply_bytes: replies.lost.load(Ordering::SeqCst),
        }
    }

    fn accept(&self) {
        let mut acceptor = lock(&self.acceptor);
        if acceptor.is_some() {
            return;
        }
        let listener = StdListener::bind((Ipv4Addr::LOCALHOST, self.port()));
        let listener = listener.unwrap_or_else(|error| panic!("port {} of a proxy: {error}", self.port()));
        listener.set_nonblocking(true).expect("a listener can be made non-blocking");
        let shared = self.shared.clone();
        *acceptor = Some(self.runtime().spawn(async move {
            let listener = TcpListener::from_std(listener).expect("the runtime takes listeners");
            // An error is that of one connection, which is gone already.
            loop {
                if let Ok((client, _)) = listener.accept().await {
                    shared.begin(client);
                }
            }
        }));
    }

    fn refuse(&self) {
        let Some(acceptor) = lock(&self.acceptor).take() else { return };
        acceptor.abort();
        self.finish(async move {
            let _ = acceptor.await;
        });
    }

    /// Waits for a future that is short, on the proxy's thread: this one may be a runtime's, which may not.
    fn finish(&self, future: impl Future<Output = ()> + Send + 'static) {
        let (done, is_done) = mpsc::channel();
        self.runtime().spawn(async move {
            future.await;
            let _ = done.send(());
        });
        is_done.recv().expect("the proxy's runtime runs until the proxy is dropped");
    }

    fn runtime(&self) -> &Runtime {
        self.runtime.as_ref().expect("the runtime is there until the proxy is dropped")
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // Waiting for it is forbidden on a thread of another runtime.
            runtime.shutdown_background();
        }
    }
}

#[derive(Debug)]
struct Shared {
    server: u16,
    mode: watch::Sender<Mode>,
    connections: Mutex<JoinSet<()>>,
    accepted: AtomicU64,
    requests: Counter,
    replies: Counter,
}

#[derive(Debug, Default)]
struct Counter {
    passed: AtomicU64,
    lost: AtomicU64,
}

impl Shared {
    fn begin(self: &Arc<Self>, client: TcpStream) {
        self.accepted.fetch_add(1, Ordering::SeqCst);
        let mut connections = lock(&self.connections);
        while connections.try_join_next().is_some() {}
        // Looked at under the lock: either this sees the new mode, or the change closes this connection.
        if *self.mode.borrow() != Mode::Close {
            let shared = self.clone();
            connections.spawn(async move {
                // The end of one direction, or an error, is that of the connection.
                let _ = shared.carry(client).await;
            });
        }
    }

    async fn carry(&self, client: TcpStream) -> io::Result<()> {
        let server = TcpStream::connect((Ipv4Addr::LOCALHOST, self.server)).await?;
        client.set_nodelay(true)?;
        server.set_nodelay(true)?;
        let (from_client, to_client) = client.into_split();
        let (from_server, to_server) = server.into_split();
        tokio::select! {
            end = self.pump(Direction::Request, from_client, to_server) => end,
            end = self.pump(Direction::Reply, from_server, to_client) => end,
        }
    }

    /// Passes bytes on as the mode says, until it says to close the connection or the sender does.
    async fn pump(
        &self,
        direction: Direction,
        mut from: OwnedReadHalf,
        mut to: OwnedWriteHalf,
    ) -> io::Result<()> {
        let counter = match direction {
            Direction::Request => &self.requests,
            Direction::Reply => &self.replies,
        };
        let mut modes = self.mode.subscribe();
        let (mut passed_in_mode, mut lost) = (0, 0);
        let mut buffer = vec![0; 64 << 10];
        loop {
            let count = tokio::select! {
                count = from.read(&mut buffer) => count?,
                _ = modes.changed() => {
                    passed_in_mode = 0;
                    if lost > 0 { return Ok(()) }
                    continue;
                }
            };
            if count == 0 {
                return Ok(());
            }
            if *modes.borrow() == Mode::Hold {
                let _ = modes.wait_for(|mode| *mode != Mode::Hold).await;
                passed_in_mode = 0;
            }
            if modes.has_changed().unwrap_or(false) {
                passed_in_mode = 0;
                if lost > 0 {
                    return Ok(());
                }
            }
            let mode = *modes.borrow_and_update();
            let passed = match direction.fate(mode, passed_in_mode, count) {
                Fate::Pass => count,
                Fate::Lose => 0,
                Fate::Cut(passed) if self.hit(mode) => passed,
                Fate::Cut(_) => count,
            };
            if let Mode::Delay(delay) = mode {
                sleep(delay).await;
            }
            to.write_all(&buffer[..passed]).await?;
            counter.passed.fetch_add(passed as u64, Ordering::SeqCst);
            counter.lost.fetch_add((count - passed) as u64, Ordering::SeqCst);
            passed_in_mode += passed as u64;
            lost += count - passed;
            if passed < count && matches!(mode, Mode::CutRequest(_) | Mode::CutReply(_)) {
                return Ok(());
            }
        }
    }

    /// Ends a mode that is for one connection; false if another connection did.
    fn hit(&self, mode: Mode) -> bool {
        self.mode.send_if_modified(|current| {
            let mine = *current == mode;
            if mine {
                *current = Mode::Pass;
            }
            mine
        })
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Direction {
    Request,
    Reply,
}

/// What becomes of a piece.
enum Fate {
    Pass,
    Lose,
    /// Its connection ends behind this many bytes of it.
    Cut(usize),
}

impl Direction {
    fn fate(self, mode: Mode, passed_in_mode: u64, count: usize) -> Fate {
        match (mode, self) {
            (Mode::BlackHole, _) | (Mode::LoseReplies, Self::Reply) => Fate::Lose,
            (Mode::CutRequest(limit), Self::Request) | (Mode::CutReply(limit), Self::Reply) => {
                let rest = usize::try_from(limit.saturating_sub(passed_in_mode)).unwrap_or(usize::MAX);
                if count > rest { Fate::Cut(rest) } else { Fate::Pass }
            }
            _ => Fate::Pass,
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
