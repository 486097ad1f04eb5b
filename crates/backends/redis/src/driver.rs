//! The only module that knows the crate `redis`: one connection, requests and replies.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use commonhold_core::{Error, ErrorKind, Result, Retry, url::Endpoint};
use futures_util::FutureExt as _;
use redis::{
    AsyncConnectionConfig, ProtocolVersion, PushInfo, PushKind, RedisConnectionInfo, RedisError,
    aio::MultiplexedConnection,
};
pub(crate) use redis::{Cmd, Pipeline, ServerError, Value};
use secrecy::ExposeSecret as _;
use tokio::{net::TcpStream, task::JoinHandle, time::timeout};
use tokio_rustls::TlsConnector;

use crate::{
    config::Login,
    error::{Access, lost, server_error, timed_out, unexpected, unreachable},
};

/// How many requests wait in a connection before their callers do.
const QUEUE_LEN: usize = 1024;

/// How often who uses a connection checks that its server is still what it was.
const CHECK_INTERVAL_SECS: u64 = 1;

/// What connections are made with.
#[derive(Clone)]
pub(crate) struct Dialer {
    pub(crate) login: Login,
    pub(crate) database: u32,
    pub(crate) tls: Option<(TlsConnector, Option<String>)>,
    pub(crate) connect_timeout: Duration,
    pub(crate) read_timeout: Duration,
    pub(crate) write_timeout: Duration,
    /// Sentinels of some versions know no other.
    pub(crate) resp2: bool,
}

/// A message that the server sends by itself.
#[derive(Debug)]
pub(crate) enum Push {
    Message { channel: Vec<u8>, payload: Vec<u8> },
    PatternMessage { pattern: Vec<u8>, channel: Vec<u8>, payload: Vec<u8> },
    Disconnected,
}

/// Takes what a server sends by itself. It must not block.
pub(crate) type OnPush = Box<dyn Fn(Push) + Send + Sync>;

/// A connection that many requests share. Clones are the same connection; it is closed when the last is dropped.
#[derive(Clone, Debug)]
pub(crate) struct Connection {
    multiplexed: MultiplexedConnection,
    task: Arc<Task>,
    read_timeout: Duration,
    write_timeout: Duration,
}

/// What carries the bytes.
#[derive(Debug)]
struct Task {
    handle: JoinHandle<()>,
    broken: AtomicBool,
    made: Instant,
    /// When the next check of the server is due, in seconds after the connection was made.
    check_due: AtomicU64,
}

impl Drop for Task {
    fn drop(&mut self) {
        self.handle.abort();
    }
}

impl Dialer {
    /// Connects to a server and logs in.
    ///
    /// # Errors
    /// `Unauthorized` if it does not let us in; `Unavailable` or `Timeout`, safe to be repeated, if it cannot be
    /// reached or is not ready.
    pub(crate) async fn dial(&self, server: &Endpoint, on_push: Option<OnPush>) -> Result<Connection> {
        match timeout(self.connect_timeout, self.connect(server, on_push)).await {
            Ok(result) => result,
            Err(_) => {
                let message = format!("no connection to {server} within {:?}", self.connect_timeout);
                Err(Error::new(ErrorKind::Timeout, message).with_retry(Retry::Safe))
            }
        }
    }

    async fn connect(&self, server: &Endpoint, on_push: Option<OnPush>) -> Result<Connection> {
        let tcp = TcpStream::connect((&*server.host, server.port)).await;
        let tcp = tcp.map_err(|error| unreachable(server, &error).with_source(error))?;
        tcp.set_nodelay(true).map_err(|error| unreachable(server, &error))?;
        match &self.tls {
            None => self.log_in(server, tcp, on_push).await,
            Some((connector, name)) => {
                let name = name.as_deref().unwrap_or(&server.host);
                let name = rustls::pki_types::ServerName::try_from(name.to_owned()).map_err(|error| {
                    let message =
                        format!("{name:?} can be no certificate's name: {error}; set tls_server_name");
                    Error::new(ErrorKind::InvalidConfig, message)
                })?;
                let stream = connector.connect(name, tcp).await;
                let stream = stream.map_err(|error| tls_error(server, error))?;
                self.log_in(server, stream, on_push).await
            }
        }
    }

    async fn log_in<S>(&self, server: &Endpoint, stream: S, on_push: Option<OnPush>) -> Result<Connection>
    where
        S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
    {
        let protocol = if self.resp2 { ProtocolVersion::RESP2 } else { ProtocolVersion::RESP3 };
        let mut info = RedisConnectionInfo::default()
            .set_db(self.database.into())
            .set_protocol(protocol)
            .set_lib_name("commonhold", env!("CARGO_PKG_VERSION"));
        if let Some(user) = &self.login.user {
            // One without a password logs in with any.
            info = info.set_username(user).set_password("");
        }
        if let Some(password) = &self.login.password {
            info = info.set_password(password.expose_secret());
        }
        let mut config =
            AsyncConnectionConfig::new().set_response_timeout(None).set_pipeline_buffer_size(QUEUE_LEN);
        if let Some(on_push) = on_push {
            config = config.set_push_sender(move |info: PushInfo| {
                if let Some(push) = push(info) {
                    on_push(push);
                }
                Ok::<(), std::convert::Infallible>(())
            });
        }
        let (multiplexed, driver) = MultiplexedConnection::new_with_config(&info, stream, config)
            .await
            .map_err(|error| refused(server, error))?;
        let task = Arc::new(Task {
            handle: tokio::spawn(driver),
            broken: AtomicBool::new(false),
            made: Instant::now(),
            check_due: AtomicU64::new(CHECK_INTERVAL_SECS),
        });
        let (read_timeout, write_timeout) = (self.read_timeout, self.write_timeout);
        Ok(Connection { multiplexed, task, read_timeout, write_timeout })
    }
}

/// Why the server did not take us.
fn refused(server: &Endpoint, error: RedisError) -> Error {
    if let Ok(error) = ServerError::try_from(error.clone()) {
        return server_error(&error);
    }
    let text = error.to_string();
    if error.kind() == redis::ErrorKind::AuthenticationFailed {
        let message = format!("{server} does not let us in; give the right user and password");
        return Error::new(ErrorKind::Unauthorized, message).with_source(error);
    }
    if text.contains("refused to switch database") {
        let message = format!("{server} has no database of this number; choose another one");
        return Error::new(ErrorKind::InvalidConfig, message).with_source(error);
    }
    unreachable(server, &text).with_source(error)
}

fn tls_error(server: &Endpoint, error: std::io::Error) -> Error {
    let certificate = matches!(
        error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()),
        Some(rustls::Error::InvalidCertificate(_))
    );
    if certificate {
        let message = format!(
            "{server} shows a certificate that is not trusted: {error}; set tls_ca and tls_server_name as they are"
        );
        return Error::new(ErrorKind::Unauthorized, message).with_source(error);
    }
    unreachable(server, &error).with_source(error)
}

impl Connection {
    /// Whether it cannot be used any more.
    pub(crate) fn is_closed(&self) -> bool {
        self.task.broken.load(Ordering::Relaxed) || self.task.handle.is_finished()
    }

    /// Says that it is not to be used any more; who waits for a reply goes on waiting.
    pub(crate) fn give_up(&self) {
        self.task.broken.store(true, Ordering::Relaxed);
    }

    /// Whether it is time to check again what the server is. Says so once each time, to one of those who ask.
    pub(crate) fn is_check_due(&self) -> bool {
        let (now, check_due) = (self.task.made.elapsed().as_secs(), &self.task.check_due);
        let due = check_due.load(Ordering::Relaxed);
        let next = now + CHECK_INTERVAL_SECS;
        now >= due && check_due.compare_exchange(due, next, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }

    /// Whether these are the same connection.
    pub(crate) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.task, &other.task)
    }

    /// Sends one command. An error of the server is a [`Value::ServerError`].
    ///
    /// # Errors
    /// If the reply does not come.
    pub(crate) async fn command(&self, access: Access, command: &Cmd) -> Result<Value> {
        let mut connection = self.multiplexed.clone();
        self.reply(access, connection.send_packed_command(command)).await
    }

    /// Sends several commands in one piece and returns their replies in order. Errors of the server are among them.
    ///
    /// # Errors
    /// If the replies do not come.
    pub(crate) async fn pipeline(&self, access: Access, commands: &Pipeline) -> Result<Vec<Value>> {
        if commands.is_empty() {
            return Ok(Vec::new());
        }
        let mut connection = self.multiplexed.clone();
        self.reply(access, connection.send_packed_commands(commands, 0, commands.len())).await
    }

    // Not an async fn: that would have room for the reply's future twice.
    fn reply<T>(
        &self,
        access: Access,
        reply: impl Future<Output = redis::RedisResult<T>>,
    ) -> impl Future<Output = Result<T>> {
        let limit = match access {
            Access::Read => self.read_timeout,
            Access::Write => self.write_timeout,
        };
        timeout(limit, reply).map(move |replied| match replied {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(error)) => {
                self.give_up();
                Err(lost(access, error))
            }
            Err(_) => {
                // Whether it is slow or dead cannot be told from here: the next request takes another.
                self.give_up();
                Err(timed_out(access, limit))
            }
        })
    }

    /// Subscribes to a channel or a pattern and waits until that is in force.
    pub(crate) async fn subscribe(&self, topic: &[u8], pattern: bool) -> Result<()> {
        let mut connection = self.multiplexed.clone();
        let subscribed = async {
            if pattern { connection.psubscribe(topic).await } else { connection.subscribe(topic).await }
        };
        self.subscription(subscribed).await
    }

    pub(crate) async fn unsubscribe(&self, topic: &[u8], pattern: bool) -> Result<()> {
        let mut connection = self.multiplexed.clone();
        let unsubscribed = async {
            if pattern { connection.punsubscribe(topic).await } else { connection.unsubscribe(topic).await }
        };
        self.subscription(unsubscribed).await
    }

    async fn subscription(&self, reply: impl Future<Output = redis::RedisResult<()>>) -> Result<()> {
        let reply = async {
            match reply.await {
                Err(error) => match ServerError::try_from(error) {
                    Ok(error) => Ok(Err(server_error(&error))),
                    Err(error) => Err(error),
                },
                Ok(()) => Ok(Ok(())),
            }
        };
        self.reply(Access::Read, reply).await?
    }
}

fn push(info: PushInfo) -> Option<Push> {
    let mut data = info.data.into_iter().map(|value| match value {
        Value::BulkString(bytes) => bytes,
        Value::SimpleString(text) => text.into_bytes(),
        _ => Vec::new(),
    });
    match info.kind {
        PushKind::Message => Some(Push::Message { channel: data.next()?, payload: data.next()? }),
        PushKind::PMessage => {
            Some(Push::PatternMessage { pattern: data.next()?, channel: data.next()?, payload: data.next()? })
        }
        PushKind::Disconnection => Some(Push::Disconnected),
        _ => None,
    }
}

/// The digest under which a server knows a script.
pub(crate) fn digest(script: &str) -> String {
    redis::Script::new(script).get_hash().to_owned()
}

/// The command of this name.
pub(crate) fn command(name: &str) -> Cmd {
    redis::cmd(name)
}

/// The command of this name, with room for so many arguments of so many bytes together.
pub(crate) fn command_of(name: &str, arguments: usize, bytes: usize) -> Cmd {
    let mut command = Cmd::with_capacity(arguments, bytes);
    command.arg(name);
    command
}

/// The reply, or the error that it is.
pub(crate) fn checked(reply: Value) -> Result<Value> {
    match reply {
        Value::ServerError(error) => Err(server_error(&error)),
        reply => Ok(reply),
    }
}

/// The bytes of a reply, none for nil.
pub(crate) fn bytes(reply: Value) -> Result<Option<Bytes>> {
    match checked(reply)? {
        Value::Nil => Ok(None),
        Value::BulkString(bytes) => Ok(Some(bytes.into())),
        Value::SimpleString(text) => Ok(Some(text.into_bytes().into())),
        Value::Okay => Ok(Some(Bytes::from_static(b"OK"))),
        Value::Int(number) => Ok(Some(number.to_string().into())),
        _ => Err(unexpected()),
    }
}

pub(crate) fn integer(reply: Value) -> Result<i64> {
    match checked(reply)? {
        Value::Int(number) => Ok(number),
        Value::BulkString(bytes) => {
            std::str::from_utf8(&bytes).ok().and_then(|text| text.parse().ok()).ok_or_else(unexpected)
        }
        _ => Err(unexpected()),
    }
}

pub(crate) fn array(reply: Value) -> Result<Vec<Value>> {
    match checked(reply)? {
        Value::Array(values) | Value::Set(values) => Ok(values),
        _ => Err(unexpected()),
    }
}

/// The text of a reply, as that of INFO.
pub(crate) fn text(reply: Value) -> Result<String> {
    match checked(reply)? {
        Value::VerbatimString { text, .. } => Ok(text),
        reply => {
            let bytes = bytes(reply)?.unwrap_or_default();
            Ok(String::from_utf8_lossy(&bytes).into_owned())
        }
    }
}

#[cfg(test)]
pub(crate) fn error_reply(text: &str) -> ServerError {
    match redis::parse_redis_value(format!("-{text}\r\n").as_bytes()) {
        Ok(Value::ServerError(error)) => error,
        other => panic!("{other:?}"),
    }
}
