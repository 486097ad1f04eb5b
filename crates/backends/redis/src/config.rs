//! Which servers hold the store and how they are spoken to.

use std::{fmt, path::PathBuf, time::Duration};

use commonhold_core::{DEFAULT_MAX_VALUE_BYTES, Error, ErrorKind, Expiry, Result, url::Endpoint};
use secrecy::SecretString;

/// What a [`RedisBackend`](crate::RedisBackend) is opened with.
///
/// ```
/// use std::time::Duration;
/// use commonhold_redis::RedisConfig;
///
/// let config = RedisConfig::standalone([("redis-1", 6379)])
///     .login(Some("app"), "secret")
///     .key_prefix("app:")
///     .default_ttl(Some(Duration::from_secs(3600)))
///     .pool_size(1, 50)
///     .timeouts(Duration::from_secs(5), Duration::from_secs(3), Duration::from_secs(3));
/// assert!(config.check().is_ok());
/// assert!(!format!("{config:?}").contains("secret"));
/// ```
#[derive(Clone)]
pub struct RedisConfig {
    pub(crate) servers: Servers,
    pub(crate) login: Login,
    pub(crate) sentinel_login: Login,
    pub(crate) tls: Option<Tls>,
    pub(crate) database: u32,
    pub(crate) prefix: String,
    pub(crate) default_ttl: Option<Duration>,
    pub(crate) max_value_bytes: u64,
    pub(crate) min_connections: usize,
    pub(crate) max_connections: usize,
    pub(crate) connect_timeout: Duration,
    pub(crate) read_timeout: Duration,
    pub(crate) write_timeout: Duration,
    pub(crate) pool_timeout: Duration,
    pub(crate) pipeline_batch_size: usize,
    pub(crate) abort_on_connect_fail: bool,
    pub(crate) read_from: ReadFrom,
}

/// How the servers are arranged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Servers {
    /// One primary: the first of these that answers and is one.
    Standalone(Vec<Endpoint>),
    /// The primary that these Sentinels name.
    Sentinel { sentinels: Vec<Endpoint>, service: String },
    /// A Cluster, of which these are some members.
    Cluster(Vec<Endpoint>),
}

/// As whom.
#[derive(Clone, Default)]
pub(crate) struct Login {
    pub(crate) user: Option<String>,
    pub(crate) password: Option<SecretString>,
}

/// How connections are encrypted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Tls {
    /// Certificates in PEM to trust instead of those of the system.
    pub(crate) ca: Option<PathBuf>,
    /// The name that a server's certificate must have, instead of its host's.
    pub(crate) server_name: Option<String>,
}

/// Which servers answer reads.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ReadFrom {
    /// The primaries: a read sees every write that was acknowledged before it.
    #[default]
    Primary,
    /// A replica where there is one, which takes work off the primaries. This gives up that a read sees what was
    /// written before it, even by the same caller, and that a later read sees what an earlier one saw. Gets
    /// alone are read so; conditions, transitions, transactions, scans and counts are not.
    Replica,
}

impl RedisConfig {
    /// The largest value that Redis takes: 512 MiB.
    pub const MAX_VALUE_BYTES: u64 = 512 * 1024 * 1024;
    /// The most connections of a [pool](Self::pool_size).
    pub const MAX_CONNECTIONS: usize = 10_000;
    /// The largest [`pipeline_batch_size`](Self::pipeline_batch_size).
    pub const MAX_PIPELINE_BATCH_SIZE: usize = 5_000;

    fn new(servers: Servers) -> Self {
        Self {
            servers,
            login: Login::default(),
            sentinel_login: Login::default(),
            tls: None,
            database: 0,
            prefix: String::new(),
            default_ttl: None,
            max_value_bytes: DEFAULT_MAX_VALUE_BYTES,
            min_connections: 0,
            max_connections: 16,
            connect_timeout: Duration::from_secs(5),
            read_timeout: Duration::from_secs(3),
            write_timeout: Duration::from_secs(3),
            pool_timeout: Duration::from_secs(3),
            pipeline_batch_size: 500,
            abort_on_connect_fail: false,
            read_from: ReadFrom::Primary,
        }
    }

    /// One server, or a primary and its replicas: the first that answers and is a primary is used.
    pub fn standalone(servers: impl IntoIterator<Item = (impl Into<String>, u16)>) -> Self {
        Self::new(Servers::Standalone(endpoints(servers)))
    }

    /// The primary that Sentinels know under this service name, wherever it moves.
    pub fn sentinel(
        sentinels: impl IntoIterator<Item = (impl Into<String>, u16)>,
        service: impl Into<String>,
    ) -> Self {
        Self::new(Servers::Sentinel { sentinels: endpoints(sentinels), service: service.into() })
    }

    /// A Cluster. Some of its members suffice; the others are found through them.
    pub fn cluster(members: impl IntoIterator<Item = (impl Into<String>, u16)>) -> Self {
        Self::new(Servers::Cluster(endpoints(members)))
    }

    /// Logs in with this password, as this user or as `default`.
    #[must_use]
    pub fn login(mut self, user: Option<&str>, password: impl Into<SecretString>) -> Self {
        self.login = Login { user: user.map(str::to_owned), password: Some(password.into()) };
        self
    }

    /// The same for the Sentinels, which have users of their own. Without it they are asked without a login.
    #[must_use]
    pub fn sentinel_login(mut self, user: Option<&str>, password: impl Into<SecretString>) -> Self {
        self.sentinel_login = Login { user: user.map(str::to_owned), password: Some(password.into()) };
        self
    }

    /// Encrypts the connections, also those to Sentinels. Servers must show a certificate for their host that the
    /// system trusts, unless [`tls_ca`](Self::tls_ca) and [`tls_server_name`](Self::tls_server_name) say otherwise.
    #[must_use]
    pub fn tls(mut self, tls: bool) -> Self {
        self.tls = tls.then(|| self.tls.unwrap_or_default());
        self
    }

    /// Encrypts the connections and trusts the certificates in this PEM file instead of those of the system.
    #[must_use]
    pub fn tls_ca(mut self, file: impl Into<PathBuf>) -> Self {
        self.tls.get_or_insert_default().ca = Some(file.into());
        self
    }

    /// Encrypts the connections and expects this name in the servers' certificates instead of their hosts'.
    #[must_use]
    pub fn tls_server_name(mut self, name: impl Into<String>) -> Self {
        self.tls.get_or_insert_default().server_name = Some(name.into());
        self
    }

    /// The number of the database. The default is 0, the only one that a Cluster has.
    #[must_use]
    pub fn database(mut self, number: u32) -> Self {
        self.database = number;
        self
    }

    /// What is put before every key and channel name, and taken off again. It does not count towards the length
    /// of keys. In a Cluster a prefix with a hash tag, as `{app}:`, keeps the whole store in one slot.
    #[must_use]
    pub fn key_prefix(mut self, prefix: impl Into<String>) -> Self {
        self.prefix = prefix.into();
        self
    }

    /// How long a value lives that is put without a time to live. By default, for ever.
    #[must_use]
    pub fn default_ttl(mut self, ttl: Option<Duration>) -> Self {
        self.default_ttl = ttl;
        self
    }

    /// The longest value, in bytes. The default is 64 MiB; more than 512 MiB is refused.
    #[must_use]
    pub fn max_value_bytes(mut self, bytes: u64) -> Self {
        self.max_value_bytes = bytes;
        self
    }

    /// How many connections are kept ready for transactions, and how many there may be at once: 0 and 16 by
    /// default. All else shares one connection to each server, and one more for messages and changes.
    #[must_use]
    pub fn pool_size(mut self, min: usize, max: usize) -> Self {
        (self.min_connections, self.max_connections) = (min, max);
        self
    }

    /// How long a transaction waits for a connection of the pool. The default is 3 s.
    #[must_use]
    pub fn pool_timeout(mut self, timeout: Duration) -> Self {
        self.pool_timeout = timeout;
        self
    }

    /// How long connecting with all that belongs to it, the answer to a read and that to a write may take. The
    /// defaults are 5 s, 3 s and 3 s.
    #[must_use]
    pub fn timeouts(mut self, connect: Duration, read: Duration, write: Duration) -> Self {
        (self.connect_timeout, self.read_timeout, self.write_timeout) = (connect, read, write);
        self
    }

    /// How many keys of a batch travel in one piece, 1 to 5,000; 500 by default. A batch of writes that must
    /// happen as a whole travels as a whole.
    #[must_use]
    pub fn pipeline_batch_size(mut self, keys: usize) -> Self {
        self.pipeline_batch_size = keys;
        self
    }

    /// Whether opening fails if no server can be reached. By default it does not: calls fail until one can. A
    /// wrong password is an error in either case.
    #[must_use]
    pub fn abort_on_connect_fail(mut self, abort: bool) -> Self {
        self.abort_on_connect_fail = abort;
        self
    }

    /// Which servers answer gets. The default is [`ReadFrom::Primary`].
    #[must_use]
    pub fn read_from(mut self, read_from: ReadFrom) -> Self {
        self.read_from = read_from;
        self
    }

    /// Checks the ranges.
    ///
    /// # Errors
    /// `InvalidConfig` that names the option and what it takes.
    pub fn check(&self) -> Result<()> {
        let (hosts, cluster) = match &self.servers {
            Servers::Standalone(hosts) => (hosts, false),
            Servers::Sentinel { sentinels, service } => {
                if service.is_empty() {
                    return invalid("Sentinels are asked for a service: redis+sentinel://HOST,HOST/SERVICE");
                }
                (sentinels, false)
            }
            Servers::Cluster(members) => (members, true),
        };
        if hosts.is_empty() {
            return invalid("no server is named; write HOST or HOST:PORT");
        }
        if cluster && self.database != 0 {
            return invalid(format!("a Cluster has database 0 alone, not {}", self.database));
        }
        if self.prefix.len() > 1024 {
            return invalid(format!("the key prefix has at most 1024 bytes, not {}", self.prefix.len()));
        }
        if self.max_value_bytes > Self::MAX_VALUE_BYTES {
            return invalid(format!(
                "the value limit is at most 512 MiB, not {} bytes",
                self.max_value_bytes
            ));
        }
        if !(1..=Self::MAX_CONNECTIONS).contains(&self.max_connections) {
            return invalid(format!("the pool has 1 to 10000 connections, not {}", self.max_connections));
        }
        if self.min_connections > self.max_connections {
            return invalid(format!(
                "the pool cannot keep {} connections ready when it has at most {}",
                self.min_connections, self.max_connections
            ));
        }
        if !(1..=Self::MAX_PIPELINE_BATCH_SIZE).contains(&self.pipeline_batch_size) {
            return invalid(format!("a pipeline has 1 to 5000 keys, not {}", self.pipeline_batch_size));
        }
        let timeouts = [
            ("connect_timeout", self.connect_timeout),
            ("read_timeout", self.read_timeout),
            ("write_timeout", self.write_timeout),
            ("pool_timeout", self.pool_timeout),
        ];
        for (name, timeout) in timeouts {
            if !(Duration::from_millis(1)..=Duration::from_secs(3600)).contains(&timeout) {
                return invalid(format!("{name} is 1ms to 1h, not {timeout:?}"));
            }
        }
        let ttl = Expiry::from(self.default_ttl);
        ttl.check().map_err(|error| Error::new(ErrorKind::InvalidConfig, error.message().to_owned()))
    }
}

fn endpoints(servers: impl IntoIterator<Item = (impl Into<String>, u16)>) -> Vec<Endpoint> {
    servers.into_iter().map(|(host, port)| Endpoint { host: host.into(), port }).collect()
}

fn invalid<T>(message: impl Into<std::borrow::Cow<'static, str>>) -> Result<T> {
    Err(Error::new(ErrorKind::InvalidConfig, message))
}

impl fmt::Debug for RedisConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisConfig")
            .field("servers", &self.servers)
            .field("user", &self.login.user)
            .field("tls", &self.tls)
            .field("database", &self.database)
            .field("prefix", &self.prefix)
            .finish_non_exhaustive()
    }
}
