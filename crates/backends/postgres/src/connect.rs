//! Connects to the server that takes writes.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use commonhold_core::{Error, ErrorKind, Result, Retry, url::Endpoint};
use futures_util::future::poll_fn;
use secrecy::ExposeSecret as _;
use tokio::{sync::mpsc, task::AbortHandle, time::timeout};
use tokio_postgres::{AsyncMessage, Client, Config, Notification, config::TargetSessionAttrs};

use crate::{
    config::PostgresConfig,
    connection::Connection,
    error,
    sql::Text,
    tls::{self, MakeTls},
};

/// Longer than a statement may take on the server, so that its own word on that comes first.
pub(crate) const ANSWER_SLACK: Duration = Duration::from_millis(500);
/// What shares a connection with others waits this long for a lock; then it goes where it holds up nobody.
const LOCK_TIMEOUT_MS: u64 = 20;
const KEEPALIVE: Duration = Duration::from_secs(30);
/// How long server and client hear nothing of each other, at least, before they give up a session that holds a lock,
/// in seconds: half of it before the first probe, then one a second.
pub(crate) const SILENCE_S: u32 = 10;

/// Whether statements of several callers follow each other on a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Use {
    /// They do: none may wait for a lock.
    Shared,
    /// One caller has it for itself.
    Exclusive,
    /// For housekeeping that may take as long as it takes.
    Patient,
    /// The session holds a lock: statements wait as long as they say, and either side soon notices that the other is
    /// gone.
    Holding,
}

/// A connection of the driver, the notifications that come on it and end with it, and what ends it at once.
type Link = (Client, mpsc::UnboundedReceiver<Notification>, AbortHandle);

/// Makes connections.
pub(crate) struct Connector {
    config: PostgresConfig,
    texts: Arc<[Text]>,
    tls: MakeTls,
    /// The host that took writes last.
    preferred: AtomicUsize,
}

impl Connector {
    /// # Errors
    /// `InvalidConfig` if the certificates of the authorities cannot be read.
    pub(crate) fn new(config: PostgresConfig, texts: Vec<Text>) -> Result<Self> {
        let tls = tls::connector(&config.tls)?;
        Ok(Self { config, texts: texts.into(), tls, preferred: AtomicUsize::new(0) })
    }

    /// The same for one host, a replica perhaps.
    pub(crate) fn to(&self, host: &Endpoint) -> Self {
        self.with(PostgresConfig { hosts: vec![host.clone()], ..self.config.clone() })
    }

    /// The same for those who are not patient.
    pub(crate) fn within(&self, timeout: Duration) -> Self {
        let connect_timeout = self.config.connect_timeout.min(timeout + ANSWER_SLACK);
        self.with(PostgresConfig { timeout, connect_timeout, ..self.config.clone() })
    }

    fn with(&self, config: PostgresConfig) -> Self {
        let (texts, tls) = (Arc::clone(&self.texts), self.tls.clone());
        Self { config, texts, tls, preferred: AtomicUsize::new(0) }
    }

    pub(crate) fn config(&self) -> &PostgresConfig {
        &self.config
    }

    /// Connects to the primary: to the host that was it last, else to the first that takes writes.
    ///
    /// # Errors
    /// That of the last host, with those of the others in its message.
    pub(crate) async fn connect(&self, used: Use) -> Result<Connection> {
        let (client, notifications, _) = self.client(used).await?;
        // Nobody listens on this one.
        drop(notifications);
        let limit = (used != Use::Patient).then(|| self.config.timeout + ANSWER_SLACK);
        Ok(Connection::new(client, Arc::clone(&self.texts), !self.config.pgbouncer, limit))
    }

    /// The same, with the notifications that come on the connection. They end with it.
    pub(crate) async fn listen(&self) -> Result<(Connection, mpsc::UnboundedReceiver<Notification>)> {
        let (client, notifications, _) = self.client(Use::Exclusive).await?;
        let limit = Some(self.config.timeout + ANSWER_SLACK);
        Ok((Connection::new(client, Arc::clone(&self.texts), true, limit), notifications))
    }

    /// A session that is to hold a lock: its connection, what ends with it, and what ends it at once.
    pub(crate) async fn hold(
        &self,
    ) -> Result<(Connection, mpsc::UnboundedReceiver<Notification>, AbortHandle)> {
        let (client, ended, end) = self.client(Use::Holding).await?;
        Ok((Connection::new(client, Arc::clone(&self.texts), false, None), ended, end))
    }

    /// Asks the server to give up what this connection waits for. It may come too early or too late.
    pub(crate) async fn cancel(&self, connection: &Connection) {
        let asked = connection.client().cancel_token().cancel_query(self.tls.clone()).await;
        let _ = asked.inspect_err(|_| tracing::debug!("PostgreSQL was not reached to give up waiting"));
    }

    async fn client(&self, used: Use) -> Result<Link> {
        let hosts = self.config.hosts.len();
        let first = self.preferred.load(Ordering::Relaxed);
        let mut failed: Option<Error> = None;
        for offset in 0..hosts {
            let index = (first + offset) % hosts;
            let Some(host) = self.config.hosts.get(index) else { continue };
            match self.client_of(host, used).await {
                Ok(client) => {
                    self.preferred.store(index, Ordering::Relaxed);
                    return Ok(client);
                }
                // Another host would refuse the same.
                Err(error) if error.kind() == ErrorKind::Unauthorized => return Err(error),
                Err(error) => {
                    failed = Some(failed.map_or_else(|| error.clone(), |before| joined(&before, &error)))
                }
            }
        }
        Err(failed.unwrap_or_else(|| Error::new(ErrorKind::InvalidConfig, "name at least one server")))
    }

    async fn client_of(&self, host: &Endpoint, used: Use) -> Result<Link> {
        let limit = self.config.connect_timeout;
        let config = self.driver_config(host, used);
        // In a box: it is large, and part of every call that may have to connect.
        let connected = timeout(limit, Box::pin(config.connect(self.tls.clone()))).await;
        let (client, mut connection) = connected
            .map_err(|_| error::timeout(format_args!("{host}: not connected"), limit, Retry::Safe))?
            .map_err(|error| error::connect(host, &error))?;
        let (sender, receiver) = mpsc::unbounded_channel();
        let driver = tokio::spawn(async move {
            while let Some(message) = poll_fn(|context| connection.poll_message(context)).await {
                match message {
                    Ok(AsyncMessage::Notification(notification)) => drop(sender.send(notification)),
                    Ok(_) => {}
                    Err(error) => {
                        tracing::debug!(closed = error.is_closed(), "a connection to PostgreSQL ended");
                        return;
                    }
                }
            }
        });
        Ok((client, receiver, driver.abort_handle()))
    }

    fn driver_config(&self, host: &Endpoint, used: Use) -> Config {
        let mut config = Config::new();
        config
            .host(&host.host)
            .port(host.port)
            .user(&self.config.user)
            .dbname(self.config.database_name())
            .application_name(&self.config.application)
            .ssl_mode(tls::driver_mode(self.config.tls.mode))
            .connect_timeout(self.config.connect_timeout)
            .keepalives_idle(KEEPALIVE);
        if let Some(password) = &self.config.password {
            config.password(password.expose_secret());
        }
        if used == Use::Holding {
            config
                .keepalives_idle(Duration::from_secs((SILENCE_S / 2).into()))
                .keepalives_interval(Duration::from_secs(1))
                .keepalives_retries(SILENCE_S / 2)
                .tcp_user_timeout(Duration::from_secs(SILENCE_S.into()));
        }
        if self.config.hosts.len() > 1 {
            config.target_session_attrs(TargetSessionAttrs::ReadWrite);
        }
        if !self.config.pgbouncer {
            config.options(self.session(used));
        }
        config
    }

    /// Every statement finds its rows by the key, so scans of whole tables are never what is wanted: a plan that was
    /// made while the table was empty would stay with one. Nor is a bitmap for a few dozen rows: it makes a gathered read
    /// a quarter slower.
    fn session(&self, used: Use) -> String {
        let timeout = match used {
            Use::Patient | Use::Holding => 0,
            Use::Shared | Use::Exclusive => self.config.timeout.as_millis().max(1),
        };
        let lock_timeout = if used == Use::Shared { LOCK_TIMEOUT_MS } else { 0 };
        format!(
            "-c statement_timeout={timeout} -c lock_timeout={lock_timeout} -c enable_seqscan=off -c enable_bitmapscan=off \
             -c jit=off -c idle_in_transaction_session_timeout=0 -c default_transaction_isolation=read\\ committed{}",
            if used == Use::Holding { holding() } else { String::new() }
        )
    }
}

/// The settings of a session that holds a lock. Its tokens are on the disk before anybody sees them.
fn holding() -> String {
    let half = SILENCE_S / 2;
    format!(
        " -c synchronous_commit=on -c tcp_keepalives_idle={half} -c tcp_keepalives_interval=1 \
         -c tcp_keepalives_count={half} -c tcp_user_timeout={SILENCE_S}s"
    )
}

impl fmt::Debug for Connector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connector").field("config", &self.config).finish_non_exhaustive()
    }
}

/// Of two hosts that failed, what both said; as transient as the more transient of the two.
fn joined(first: &Error, second: &Error) -> Error {
    let safe = first.retry() == Retry::Safe || second.retry() == Retry::Safe;
    let kind = if second.retry() == Retry::Safe { second.kind() } else { first.kind() };
    let retry = if safe { Retry::Safe } else { Retry::Never };
    Error::new(kind, format!("{}; {}", first.message(), second.message())).with_retry(retry)
}
