//! The connection to one server, over which the requests of all callers travel.
//!
//! What waits is written together, and each reply is handed to the request at the front of those under way, whose
//! token it carries. A connection that ends fails the requests under way and is made anew; what has not been sent
//! by then waits for the next one, unless that cannot be made.

use std::{
    collections::VecDeque,
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::Ordering},
    time::Duration,
};

use bytes::BytesMut;
use commonhold_core::{Error, ErrorKind, Result, Retry};
use secrecy::ExposeSecret as _;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::mpsc,
    time::{Instant, sleep_until, timeout, timeout_at},
};

use crate::{
    error::{lost, nonsense, refusal, silent, unanswered, unreachable},
    keys::WireKey,
    server::{Answer, Request, Shared},
    wire::{Parser, Reply, Set, When},
};

const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// What is written at once, at least, if there is as much.
const WRITE_BYTES: usize = 256 * 1024;
const READ_BYTES: usize = 64 * 1024;
/// The last second that Memcached can tell, in January 2038.
pub(crate) const LAST_SECOND: u64 = i32::MAX as u64;

type Requests = mpsc::UnboundedReceiver<Request>;

/// Keeps a connection to the server until nobody can ask any more.
pub(crate) async fn drive(shared: Arc<Shared>, mut requests: Requests) {
    let mut pause = FIRST_PAUSE;
    while !requests.is_closed() || !requests.is_empty() {
        match connect(&shared).await {
            Ok(stream) => {
                pause = FIRST_PAUSE;
                if serve(&shared, stream, &mut requests).await.is_break() {
                    return;
                }
            }
            Err(error) => {
                tracing::debug!(server = %shared.endpoint, %error, "no connection");
                let until = Instant::now() + pause.mul_f64(0.5 + fastrand::f64() / 2.0);
                pause = (pause * 2).min(LONGEST_PAUSE);
                if refuse_until(until, &error, &mut requests).await.is_break() {
                    return;
                }
            }
        }
    }
}

/// What a server answers that asks for a login.
const UNAUTHENTICATED: &[u8] = b"CLIENT_ERROR unauthenticated";

type Flow = std::ops::ControlFlow<()>;

/// Says why there is no connection to whoever asks meanwhile.
async fn refuse_until(until: Instant, error: &Error, requests: &mut Requests) -> Flow {
    loop {
        tokio::select! {
            () = sleep_until(until) => return Flow::Continue(()),
            request = requests.recv() => match request {
                Some(request) => drop(request.answer.send(Err(error.clone()))),
                None => return Flow::Break(()),
            },
        }
    }
}

async fn connect(shared: &Shared) -> Result<TcpStream> {
    let (endpoint, limit) = (&shared.endpoint, shared.config.connect_timeout);
    let connecting = async {
        let stream = TcpStream::connect((endpoint.host.as_str(), endpoint.port)).await;
        let mut stream = stream.map_err(|error| unreachable(endpoint, &error))?;
        stream.set_nodelay(true).map_err(|error| unreachable(endpoint, &error))?;
        greet(shared, &mut stream).await?;
        Ok(stream)
    };
    timeout(limit, connecting).await.unwrap_or_else(|_| Err(silent(endpoint, limit).with_retry(Retry::Safe)))
}

/// Makes sure that this is a Memcached that speaks the meta protocol, logs in where it asks for that, and learns its
/// time. To a server that does not ask, a login would be a value to put where all can read it.
async fn greet(shared: &Shared, stream: &mut TcpStream) -> Result<()> {
    let failed = |error| unreachable(&shared.endpoint, &error);
    stream.write_all(b"mn\r\n").await.map_err(failed)?;
    let mut line = next_line(stream).await.map_err(failed)?;
    if let Some((user, password)) = &shared.config.login
        && line == UNAUTHENTICATED
    {
        let login = format!("{user} {}", password.expose_secret());
        let greeting = format!("set login 0 0 {}\r\n{login}\r\nmn\r\n", login.len());
        stream.write_all(greeting.as_bytes()).await.map_err(failed)?;
        line = next_line(stream).await.map_err(failed)?;
        if line == b"STORED" {
            line = next_line(stream).await.map_err(failed)?;
        }
    }
    let at = |error: Error| {
        Error::new(error.kind(), format!("{}: {}", shared.endpoint, error.message()))
            .with_retry(error.retry())
    };
    match &line[..] {
        UNAUTHENTICATED if shared.config.login.is_some() => Err(at(Error::new(
            ErrorKind::Unauthorized,
            "the server does not accept the user or the password",
        ))),
        b"MN" => learn_time(shared, stream).await.map_err(at),
        b"ERROR" => Err(at(Error::new(
            ErrorKind::Unsupported,
            "this server does not speak Memcached's meta protocol; Memcached does from 1.6 on",
        ))),
        line => {
            Err(at(refusal(line).filter(|error| error.kind() != ErrorKind::Internal).unwrap_or_else(|| {
                let message = format!("this is no Memcached: it answers {}", crate::error::quote(line));
                Error::new(ErrorKind::InvalidConfig, message)
            })))
        }
    }
}

async fn learn_time(shared: &Shared, stream: &mut TcpStream) -> Result<()> {
    let mut commands = shared.commands();
    let clock = WireKey::clock();
    commands.set(&clock, b"", Set { when: When::Absent, expires: LAST_SECOND, client_flags: 0 });
    commands.get(&clock, "t");
    let failed = |error| unreachable(&shared.endpoint, &error);
    stream.write_all(&commands.bytes).await.map_err(failed)?;
    let (mut parser, mut buffer) = (Parser::new(0), BytesMut::new());
    for _ in 0..commands.count {
        let reply = loop {
            if let Some(reply) = parser.next(&mut buffer)? {
                break reply;
            }
            if stream.read_buf(&mut buffer).await.map_err(failed)? == 0 {
                return Err(failed(io::ErrorKind::UnexpectedEof.into()));
            }
        };
        if let Reply::Done(flags) = reply
            && let Some(left) = flags.seconds_left
        {
            shared.learn_time(LAST_SECOND.saturating_sub(left));
        }
    }
    Ok(())
}

/// A short line, without its end.
async fn next_line(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut line = Vec::new();
    while line.len() < 200 {
        match stream.read_u8().await? {
            b'\n' => break,
            byte => line.push(byte),
        }
    }
    if line.ends_with(b"\r") {
        line.pop();
    }
    Ok(line)
}

/// What was written, or is being written, and not yet answered in full.
struct UnderWay {
    request: Request,
    replies: Vec<Reply>,
    since: Instant,
}

/// The requests under way, in the order in which they were written.
#[derive(Default)]
struct Sent(Mutex<VecDeque<UnderWay>>);

impl Sent {
    // A std mutex: it is held for a few steps and never across an await.
    fn lock(&self) -> MutexGuard<'_, VecDeque<UnderWay>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn oldest(&self) -> Option<Instant> {
        self.lock().front().map(|under_way| under_way.since)
    }

    /// Hands a reply to the request that waits for it.
    fn deliver(&self, reply: Reply, connection: u64) -> Result<()> {
        let mut sent = self.lock();
        let Some(front) = sent.front_mut() else {
            return Err(nonsense("to nothing", format!("{reply:?}").as_bytes()));
        };
        let commands = &front.request.commands;
        let expected = commands.first.wrapping_add(front.replies.len() as u64);
        if let Some(opaque) = reply.opaque()
            && opaque != expected
        {
            let reply = format!("{reply:?}");
            return Err(nonsense("with the token of another request", reply.as_bytes()));
        }
        front.replies.push(reply);
        if front.replies.len() as u64 == commands.count
            && let Some(UnderWay { request, replies, .. }) = sent.pop_front()
        {
            drop(sent);
            drop(request.room);
            let _gave_up = request.answer.send(Ok(Some(Answer { replies, connection })));
        }
        Ok(())
    }
}

/// Uses the connection until it ends, or until nobody can ask any more.
async fn serve(shared: &Shared, stream: TcpStream, requests: &mut Requests) -> Flow {
    let connection = shared.connections.fetch_add(1, Ordering::Relaxed) + 1;
    let sent = Sent::default();
    let (mut read, mut write) = stream.into_split();
    let error = tokio::select! {
        error = read_replies(shared, &mut read, &sent, connection) => Some(error),
        error = write_requests(&mut write, &sent, requests, connection) => {
            error.map(|error| lost(&shared.endpoint, &error))
        }
    };
    let Some(error) = error else { return Flow::Break(()) };
    tracing::debug!(server = %shared.endpoint, %error, "the connection has ended");
    for UnderWay { request, .. } in sent.lock().drain(..) {
        let _gave_up = request.answer.send(Err(unanswered(&error, request.commands.writes)));
    }
    Flow::Continue(())
}

/// Writes what is asked. Returns when that fails, or with nothing when nobody can ask any more.
async fn write_requests(
    write: &mut OwnedWriteHalf,
    sent: &Sent,
    requests: &mut Requests,
    connection: u64,
) -> Option<io::Error> {
    let mut buffer = BytesMut::with_capacity(READ_BYTES);
    loop {
        let mut next = Some(requests.recv().await?);
        while let Some(mut request) = next {
            if request.only_on.is_some_and(|only| only != connection) {
                let _gave_up = request.answer.send(Ok(None));
            } else if !request.answer.is_closed() {
                let bytes = std::mem::take(&mut request.commands.bytes);
                if buffer.is_empty() {
                    buffer = bytes
                } else {
                    buffer.extend_from_slice(&bytes)
                }
                sent.lock().push_back(UnderWay { request, replies: Vec::new(), since: Instant::now() });
            }
            next = if buffer.len() < WRITE_BYTES { requests.try_recv().ok() } else { None };
        }
        if let Err(error) = write.write_all(&buffer).await {
            return Some(error);
        }
        buffer.clear();
    }
}

/// Reads replies and hands them out. Returns why it could not go on.
async fn read_replies(shared: &Shared, read: &mut OwnedReadHalf, sent: &Sent, connection: u64) -> Error {
    let limit = shared.config.response_timeout;
    let (mut parser, mut buffer) = (Parser::new(shared.config.max_value_bytes), BytesMut::new());
    let mut last = Instant::now();
    loop {
        loop {
            let delivered = match parser.next(&mut buffer) {
                Ok(None) => break,
                Ok(Some(reply)) => sent.deliver(reply, connection),
                Err(error) => Err(error),
            };
            if let Err(error) = delivered {
                return Error::new(error.kind(), format!("{}: {}", shared.endpoint, error.message()));
            }
        }
        if buffer.capacity() - buffer.len() < READ_BYTES / 4 {
            buffer.reserve(READ_BYTES);
        }
        let deadline = |sent: &Sent| sent.oldest().map(|oldest| oldest.max(last) + limit);
        let until = deadline(sent).unwrap_or_else(|| Instant::now() + limit);
        match timeout_at(until, read.read_buf(&mut buffer)).await {
            Ok(Ok(0)) => return lost(&shared.endpoint, &io::ErrorKind::UnexpectedEof.into()),
            Ok(Ok(_)) => last = Instant::now(),
            Ok(Err(error)) => return lost(&shared.endpoint, &error),
            Err(_) if deadline(sent).is_some_and(|deadline| deadline <= Instant::now()) => {
                return silent(&shared.endpoint, limit);
            }
            // It was idle.
            Err(_) => {}
        }
    }
}
