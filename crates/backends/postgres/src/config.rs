//! Where the server is, which table is used, and how.

use std::{fmt, path::PathBuf, time::Duration};

use commonhold_core::{
    Error, ErrorKind, Expiry, Result,
    embedded::Rules,
    url::{Endpoint, StoreUrl},
};
use secrecy::SecretString;

use crate::names::Names;

/// The port of PostgreSQL.
const PORT: u16 = 5432;
const MAX_CONNECTIONS: usize = 1000;

/// The options that [`PostgresConfig::from_url`] takes.
pub const OPTIONS: &[&str] = &[
    "table",
    "schema",
    "unlogged",
    "watch",
    "isolation",
    "replicas",
    "max_lag",
    "read_your_writes",
    "pool",
    "timeout",
    "connect_timeout",
    "pool_timeout",
    "sweep",
    "ttl",
    "max_value",
    "sslmode",
    "sslrootcert",
    "tls_server_name",
    "pgbouncer",
    "application_name",
];

/// What a [`PostgresBackend`](crate::PostgresBackend) is opened with. `Debug` does not show the password.
///
/// ```
/// use std::time::Duration;
/// use commonhold_core::url::StoreUrl;
/// use commonhold_postgres::PostgresConfig;
///
/// let config = PostgresConfig::new("db.internal", 5432)
///     .user("app")
///     .password("secret")
///     .database("app")
///     .table("state")
///     .timeout(Duration::from_secs(3));
/// assert!(!format!("{config:?}").contains("secret"));
///
/// let url = StoreUrl::parse("postgres://app:secret@db.internal/app?table=state&timeout=3s")?;
/// PostgresConfig::from_url(url)?;
/// # Ok::<(), commonhold_core::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct PostgresConfig {
    pub(crate) hosts: Vec<Endpoint>,
    pub(crate) user: String,
    pub(crate) password: Option<SecretString>,
    pub(crate) database: Option<String>,
    pub(crate) application: String,
    pub(crate) schema: String,
    pub(crate) table: String,
    pub(crate) unlogged: bool,
    pub(crate) watch: bool,
    pub(crate) pgbouncer: bool,
    pub(crate) isolation: Option<Isolation>,
    pub(crate) replicas: Vec<Endpoint>,
    pub(crate) max_lag: Duration,
    pub(crate) read_your_writes: bool,
    pub(crate) pool: usize,
    pub(crate) timeout: Duration,
    pub(crate) connect_timeout: Duration,
    pub(crate) pool_timeout: Duration,
    pub(crate) sweep: Option<Duration>,
    pub(crate) rules: Rules,
    pub(crate) tls: Tls,
}

/// How the connection is protected.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tls {
    pub(crate) mode: TlsMode,
    pub(crate) authority: Option<PathBuf>,
    pub(crate) server_name: Option<String>,
}

/// What is asked of the server's TLS, by the names that libpq gives them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum TlsMode {
    /// `disable`: none.
    Disable,
    /// `prefer`, the default: encrypted if the server offers it, whoever it is. As in libpq, this protects from
    /// nobody who can change what is on the wire.
    #[default]
    Prefer,
    /// `require`: encrypted, whoever the server is.
    Require,
    /// `verify-ca`: encrypted, and an authority that is trusted has signed the server's certificate.
    VerifyCa,
    /// `verify-full`: the same, and the certificate is for the host that was asked for.
    VerifyFull,
}

impl TlsMode {
    fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "disable" => Self::Disable,
            "prefer" => Self::Prefer,
            "require" => Self::Require,
            "verify-ca" => Self::VerifyCa,
            "verify-full" => Self::VerifyFull,
            _ => return None,
        })
    }
}

/// PostgreSQL's own isolation levels, for [`PostgresConfig::isolation`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Isolation {
    /// `read-committed`: each read sees what is committed when it is made.
    ReadCommitted,
    /// `repeatable-read`: all reads see one moment; an update of what changed since is a conflict.
    RepeatableRead,
    /// `serializable`: as if the transactions that are at this level ran one after the other.
    Serializable,
}

impl Isolation {
    fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "read-committed" => Self::ReadCommitted,
            "repeatable-read" => Self::RepeatableRead,
            "serializable" => Self::Serializable,
            _ => return None,
        })
    }

    pub(crate) fn sql(self) -> &'static str {
        match self {
            Self::ReadCommitted => "READ COMMITTED",
            Self::RepeatableRead => "REPEATABLE READ",
            Self::Serializable => "SERIALIZABLE",
        }
    }
}

impl PostgresConfig {
    /// The table `commonhold` in the schema `public` of the server on this host and port, as the user and in the
    /// database `postgres`.
    pub fn new(host: impl Into<String>, port: u16) -> Self {
        Self {
            hosts: vec![Endpoint { host: host.into(), port }],
            user: "postgres".to_owned(),
            password: None,
            database: None,
            application: "commonhold".to_owned(),
            schema: "public".to_owned(),
            table: "commonhold".to_owned(),
            unlogged: false,
            watch: false,
            pgbouncer: false,
            isolation: None,
            replicas: Vec::new(),
            max_lag: Duration::from_secs(1),
            read_your_writes: true,
            pool: 16,
            timeout: Duration::from_secs(10),
            connect_timeout: Duration::from_secs(5),
            pool_timeout: Duration::from_secs(5),
            sweep: Some(Duration::from_secs(60)),
            rules: Rules::default(),
            tls: Tls::default(),
        }
    }

    /// Reads `postgres://[USER[:PASSWORD]@]HOST[:PORT][,HOST[:PORT]..][/DATABASE]?OPTION=VALUE..`; the options are
    /// [`OPTIONS`], the builder's methods of the same names say what they do.
    ///
    /// # Errors
    /// `InvalidConfig` naming what is wrong; the password is not in it.
    pub fn from_url(mut url: StoreUrl) -> Result<Self> {
        let authority = url.authority(PORT)?;
        let mut config = Self::new("localhost", PORT);
        if !authority.hosts.is_empty() {
            config.hosts = authority.hosts;
        }
        config.user = authority.user.unwrap_or(config.user);
        config.password = authority.password;
        config.database = Some(authority.path).filter(|path| !path.is_empty());
        config.table = url.text("table").unwrap_or(config.table);
        config.schema = url.text("schema").unwrap_or(config.schema);
        config.unlogged = flag(&mut url, "unlogged")?;
        config.watch = flag(&mut url, "watch")?;
        config.isolation =
            url.parsed("isolation", "read-committed, repeatable-read or serializable", Isolation::parse)?;
        config.replicas = replicas(&url.text("replicas").unwrap_or_default())?;
        config.max_lag = url.duration("max_lag")?.unwrap_or(config.max_lag);
        let read_your_writes = url.parsed("read_your_writes", "true or false", |text| text.parse().ok())?;
        config.read_your_writes = read_your_writes.unwrap_or(true);
        let pool = url.parsed("pool", "a number of connections", |text| text.parse().ok())?;
        config.pool = pool.unwrap_or(config.pool);
        config.timeout = url.duration("timeout")?.unwrap_or(config.timeout);
        config.connect_timeout = url.duration("connect_timeout")?.unwrap_or(config.connect_timeout);
        config.pool_timeout = url.duration("pool_timeout")?.unwrap_or(config.pool_timeout);
        config = config.read_rest(&mut url)?;
        url.finish()?;
        config.check()?;
        Ok(config)
    }

    fn read_rest(mut self, url: &mut StoreUrl) -> Result<Self> {
        let interval = |text: &str| match text {
            "off" => Some(None),
            text => commonhold_core::url::parse_duration(text).map(Some),
        };
        self.sweep = url.parsed("sweep", "`off` or a duration, as in 1m", interval)?.unwrap_or(self.sweep);
        self.rules.default_ttl = url.duration("ttl")?;
        self.rules.max_value_bytes = url.bytes("max_value")?.unwrap_or(self.rules.max_value_bytes);
        let modes = "disable, prefer, require, verify-ca or verify-full";
        self.tls.mode = url.parsed("sslmode", modes, TlsMode::parse)?.unwrap_or_default();
        self.tls.authority = url.text("sslrootcert").map(PathBuf::from);
        self.tls.server_name = url.text("tls_server_name");
        self.pgbouncer = flag(url, "pgbouncer")?;
        self.application = url.text("application_name").unwrap_or(self.application);
        Ok(self)
    }

    /// A further server, for where the primary moves between several: whoever takes writes is used.
    #[must_use]
    pub fn host(mut self, host: impl Into<String>, port: u16) -> Self {
        self.hosts.push(Endpoint { host: host.into(), port });
        self
    }

    /// As whom to connect. The default is `postgres`.
    #[must_use]
    pub fn user(mut self, user: impl Into<String>) -> Self {
        self.user = user.into();
        self
    }

    /// The user's password.
    #[must_use]
    pub fn password(mut self, password: impl Into<SecretString>) -> Self {
        self.password = Some(password.into());
        self
    }

    /// The database. The default is that of the user's name.
    #[must_use]
    pub fn database(mut self, database: impl Into<String>) -> Self {
        self.database = Some(database.into());
        self
    }

    /// What the server's own views call the connections (`application_name`). The default is `commonhold`.
    #[must_use]
    pub fn application_name(mut self, name: impl Into<String>) -> Self {
        self.application = name.into();
        self
    }

    /// The table, which is created if it is not there. 1 to 63 bytes of any kind but NUL; the default is `commonhold`.
    #[must_use]
    pub fn table(mut self, table: impl Into<String>) -> Self {
        self.table = table.into();
        self
    }

    /// The schema of the table, which is created if it is not there. 1 to 63 bytes of any kind but NUL; the default is
    /// `public`.
    #[must_use]
    pub fn schema(mut self, schema: impl Into<String>) -> Self {
        self.schema = schema.into();
        self
    }

    /// Whether the table, if it is created now, does without the write-ahead log: faster writes, and empty after a
    /// crash of the server. Off by default.
    #[must_use]
    pub fn unlogged(mut self, unlogged: bool) -> Self {
        self.unlogged = unlogged;
        self
    }

    /// Whether changes can be [watched](commonhold_core::StateBackend::watch). Off by default, because it costs every
    /// write: a trigger on the table notifies of it, and commits that notify follow each other one by one.
    ///
    /// The trigger stays when a store is opened without: other instances may rely on it. `DROP TRIGGER
    /// commonhold_changed ON ..` and `commonhold_truncated` remove it.
    #[must_use]
    pub fn watch(mut self, watch: bool) -> Self {
        self.watch = watch;
        self
    }

    /// Whether pgbouncer in transaction mode stands before the server. Then no prepared statements and no settings of
    /// the session are used, and there is no watching and no publishing, which need a session. Off by default.
    #[must_use]
    pub fn pgbouncer(mut self, pgbouncer: bool) -> Self {
        self.pgbouncer = pgbouncer;
        self
    }

    /// Runs transactions as the server's own, at this level, on a connection of their own and under its locks.
    ///
    /// `None`, the default, runs them without holding anything until they commit: they are then checked against all
    /// other writers, whatever those use, and conflict if something that they read has changed. The server's
    /// levels know only of each other, and their writes make others wait until they end.
    #[must_use]
    pub fn isolation(mut self, isolation: Option<Isolation>) -> Self {
        self.isolation = isolation;
        self
    }

    /// A replica to read from. `replicas=HOST:PORT,HOST:PORT` in a URL.
    #[must_use]
    pub fn replica(mut self, host: impl Into<String>, port: u16) -> Self {
        self.replicas.push(Endpoint { host: host.into(), port });
        self
    }

    /// How far behind the primary a replica may be to be read from: 100 ms to 1 day, 1 s by default. So far may its clock
    /// be off, too, by which it judges expiry.
    ///
    /// Primary and replicas are looked at eight times in that time, and once a second at least. When the primary is
    /// away it is not known what replicas lack: they are read from so long and no longer.
    #[must_use]
    pub fn max_lag(mut self, lag: Duration) -> Self {
        self.max_lag = lag;
        self
    }

    /// Whether reads show at least what this store itself has written: those of keys that it has just written go to
    /// the primary until the replicas are known to have come so far. On by default.
    #[must_use]
    pub fn read_your_writes(mut self, read_your_writes: bool) -> Self {
        self.read_your_writes = read_your_writes;
        self
    }

    /// The most connections for batches with conditions, transactions and whatever waits for a lock: 1 to 1000, 16
    /// by default. Six more are shared by the single statements. [`AdvisoryLocks`](crate::AdvisoryLocks) have as many of
    /// their own.
    #[must_use]
    pub fn pool(mut self, connections: usize) -> Self {
        self.pool = connections;
        self
    }

    /// How long a statement may take. The default is 10 s. Vacuuming may take longer.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// How long it may take to connect to one server. The default is 5 s.
    #[must_use]
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self
    }

    /// How long to wait for a connection of the [`pool`](Self::pool). The default is 5 s.
    #[must_use]
    pub fn pool_timeout(mut self, timeout: Duration) -> Self {
        self.pool_timeout = timeout;
        self
    }

    /// How often expired entries are removed in the background; `None` for never. The default is 1 minute. Of all
    /// instances one does it at a time.
    #[must_use]
    pub fn sweep(mut self, interval: Option<Duration>) -> Self {
        self.sweep = interval;
        self
    }

    /// How long a value lives that is put without a time to live. By default, for ever.
    #[must_use]
    pub fn default_ttl(mut self, ttl: Option<Duration>) -> Self {
        self.rules.default_ttl = ttl;
        self
    }

    /// The longest value, in bytes. The default is 64 MiB; more than 256 MiB is refused.
    #[must_use]
    pub fn max_value_bytes(mut self, bytes: u64) -> Self {
        self.rules.max_value_bytes = bytes;
        self
    }

    /// How the connection is protected. The default is [`TlsMode::Prefer`].
    #[must_use]
    pub fn tls(mut self, mode: TlsMode) -> Self {
        self.tls.mode = mode;
        self
    }

    /// A file with the certificates, in PEM, of the authorities that are trusted, instead of those of the system.
    #[must_use]
    pub fn tls_authority(mut self, path: impl Into<PathBuf>) -> Self {
        self.tls.authority = Some(path.into());
        self
    }

    /// The name that the server's certificate must be for, if it is not the host's.
    #[must_use]
    pub fn tls_server_name(mut self, name: impl Into<String>) -> Self {
        self.tls.server_name = Some(name.into());
        self
    }

    /// Checks the ranges.
    ///
    /// # Errors
    /// `InvalidConfig` that names the option and what it takes.
    pub fn check(&self) -> Result<()> {
        let invalid = |message: String| Err(Error::new(ErrorKind::InvalidConfig, message));
        Names::new(&self.schema, &self.table)?;
        if self.hosts.is_empty() {
            return invalid("name at least one server".to_owned());
        }
        for (option, text) in [
            ("user", Some(&self.user)),
            ("database", self.database.as_ref()),
            ("application_name", Some(&self.application)),
        ] {
            if text.is_some_and(|text| text.contains('\0')) {
                return invalid(format!("{option} must not contain NUL"));
            }
        }
        if !(1..=MAX_CONNECTIONS).contains(&self.pool) {
            return invalid(format!("pool takes 1 to {MAX_CONNECTIONS} connections, not {}", self.pool));
        }
        for (option, duration) in [
            ("timeout", Some(self.timeout)),
            ("connect_timeout", Some(self.connect_timeout)),
            ("pool_timeout", Some(self.pool_timeout)),
            ("sweep", self.sweep),
        ] {
            if duration.is_some_and(|duration| !(MIN_DURATION..=MAX_DURATION).contains(&duration)) {
                return invalid(format!("{option} takes 1ms to 1 day"));
            }
        }
        if !(MIN_LAG..=MAX_DURATION).contains(&self.max_lag) {
            return invalid("max_lag takes 100ms to 1 day".to_owned());
        }
        if self.rules.max_value_bytes > MAX_VALUE_BYTES {
            return invalid(format!(
                "max_value is at most 256 MiB, not {} bytes",
                self.rules.max_value_bytes
            ));
        }
        if self.unlogged && !self.replicas.is_empty() {
            return invalid("an unlogged table has no replicas; leave unlogged or replicas out".to_owned());
        }
        if self.pgbouncer && self.watch {
            return invalid(
                "watch needs a session of its own, which pgbouncer in transaction mode has not".to_owned(),
            );
        }
        let ttl = Expiry::from(self.rules.default_ttl);
        ttl.check().map_err(|error| Error::new(ErrorKind::InvalidConfig, error.message().to_owned()))
    }

    pub(crate) fn database_name(&self) -> &str {
        self.database.as_deref().unwrap_or(&self.user)
    }
}

/// A row of the old value and the new one must fit into a message of 1 GiB.
const MAX_VALUE_BYTES: u64 = 256 * 1024 * 1024;
const MIN_DURATION: Duration = Duration::from_millis(1);
/// What replicas show is looked at several times in that time.
const MIN_LAG: Duration = Duration::from_millis(100);
const MAX_DURATION: Duration = Duration::from_secs(24 * 60 * 60);

/// Reads the hosts of replicas as those of a URL.
fn replicas(text: &str) -> Result<Vec<Endpoint>> {
    if text.contains(['@', '/', '?']) {
        let message =
            "replicas takes HOST[:PORT],HOST[:PORT]..; user, password and database are the primary's";
        return Err(Error::new(ErrorKind::InvalidConfig, message));
    }
    Ok(StoreUrl::parse(&format!("replicas://{text}"))?.authority(PORT)?.hosts)
}

fn flag(url: &mut StoreUrl, name: &'static str) -> Result<bool> {
    Ok(url.parsed(name, "true or false", |text| text.parse().ok())?.unwrap_or(false))
}

impl fmt::Display for Isolation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ReadCommitted => "read-committed",
            Self::RepeatableRead => "repeatable-read",
            Self::Serializable => "serializable",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from_url(text: &str) -> Result<PostgresConfig> {
        PostgresConfig::from_url(StoreUrl::parse(text).unwrap())
    }

    #[test]
    fn a_url_says_everything() {
        let config = from_url(
            "postgres://us%40er:p%3Aw@a,b:1/my%20db?table=s&schema=x&unlogged=true&pool=3&timeout=2s&sweep=off\
             &sslmode=verify-full&sslrootcert=/ca.pem&isolation=repeatable-read&ttl=1h",
        )
        .unwrap();
        assert!(config.replicas.is_empty() && config.read_your_writes);
        let hosts: Vec<_> = config.hosts.iter().map(ToString::to_string).collect();
        assert_eq!(hosts, ["a:5432", "b:1"]);
        assert_eq!((config.user.as_str(), config.database_name()), ("us@er", "my db"));
        assert_eq!((config.table.as_str(), config.schema.as_str(), config.pool), ("s", "x", 3));
        assert_eq!(
            (config.tls.mode, config.isolation),
            (TlsMode::VerifyFull, Some(Isolation::RepeatableRead))
        );
        assert!(config.unlogged && config.sweep.is_none() && !format!("{config:?}").contains("p:w"));
        assert_eq!(from_url("postgres://app@h").unwrap().database_name(), "app");
    }

    #[test]
    fn a_url_names_replicas_as_it_names_hosts() {
        let config =
            from_url("postgres://h/d?replicas=a,b:1,[::1]:2&max_lag=250ms&read_your_writes=false").unwrap();
        let replicas: Vec<_> = config.replicas.iter().map(ToString::to_string).collect();
        assert_eq!(replicas, ["a:5432", "b:1", "[::1]:2"]);
        assert_eq!((config.max_lag, config.read_your_writes), (Duration::from_millis(250), false));
        assert_eq!(from_url("postgres://h/d?replicas=").unwrap().replicas.len(), 0);
    }

    #[test]
    fn every_wrong_option_is_refused() {
        for options in [
            "table=",
            "schema=",
            "pool=0",
            "pool=x",
            "timeout=0s",
            "sweep=never",
            "sslmode=allow",
            "isolation=none",
            "unlogged=1",
            "pgbouncer=true&watch=true",
            "unlogged=true&replicas=h",
            "replicas=h:x",
            "replicas=u:hunter2@h",
            "replicas=h/d",
            "max_lag=99ms",
            "max_lag=2d",
            "read_your_writes=yes",
            "ttl=0s",
            "max_value=1GB",
            "tabel=x",
            "sweep=1000d",
        ] {
            let error = from_url(&format!("postgres://u:hunter2@h/d?{options}")).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidConfig, "{options}");
            assert!(!error.to_string().contains("hunter2"), "{options}");
        }
    }

    #[test]
    fn the_options_that_are_listed_are_those_that_are_taken() {
        let error = from_url("postgres://h?Q=1").unwrap_err().to_string();
        assert!(error.ends_with(&format!("there are: {}", OPTIONS.join(", "))), "{error}");
    }
}
