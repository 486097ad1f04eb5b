//! Which servers, and how they are used.

use std::{collections::HashSet, time::Duration};

use commonhold_core::{
    Error, ErrorKind, Expiry, Result,
    url::{Endpoint, StoreUrl},
};
use secrecy::SecretString;

/// What a [`MemcachedBackend`](crate::MemcachedBackend) is opened with. `Debug` does not show the password.
///
/// ```
/// use std::time::Duration;
/// use commonhold_memcached::MemcachedConfig;
///
/// let config = MemcachedConfig::new(["10.0.0.1", "10.0.0.2:11212"])?
///     .prefix("shop:")
///     .response_timeout(Duration::from_millis(500));
/// assert!(config.check().is_ok());
/// # Ok::<(), commonhold_core::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct MemcachedConfig {
    pub(crate) servers: Vec<Endpoint>,
    pub(crate) login: Option<(String, SecretString)>,
    pub(crate) prefix: Vec<u8>,
    pub(crate) default_ttl: Option<Duration>,
    pub(crate) max_value_bytes: u64,
    pub(crate) connect_timeout: Duration,
    pub(crate) response_timeout: Duration,
    pub(crate) queue: usize,
}

/// The options of a `memcached://` URL that [`MemcachedConfig::from_url`] takes.
pub const OPTIONS: &[&str] = &["prefix", "ttl", "max_value", "connect_timeout", "response_timeout", "queue"];

impl MemcachedConfig {
    /// The port of a server for which none is given.
    pub const DEFAULT_PORT: u16 = 11211;

    /// These servers, each as `HOST`, `HOST:PORT` or `[IPv6]:PORT`. Their order does not matter, their names do:
    /// keys are spread by them, so every client must name them alike.
    ///
    /// # Errors
    /// `InvalidConfig` if one is not of this form, or if there is none.
    pub fn new(servers: impl IntoIterator<Item = impl AsRef<str>>) -> Result<Self> {
        let servers: Vec<_> = servers.into_iter().map(|server| server.as_ref().to_owned()).collect();
        Self::from_url(StoreUrl::parse(&format!("memcached://{}", servers.join(",")))?)
    }

    /// What `memcached://[USER:PASSWORD@]HOST[:PORT],..?OPTION=VALUE` says: [`prefix`](Self::prefix),
    /// [`ttl`](Self::default_ttl), [`max_value`](Self::max_value_bytes),
    /// [`connect_timeout`](Self::connect_timeout), [`response_timeout`](Self::response_timeout),
    /// [`queue`](Self::queue).
    ///
    /// # Errors
    /// `InvalidConfig` that names what is wrong.
    pub fn from_url(mut url: StoreUrl) -> Result<Self> {
        let authority = url.authority(Self::DEFAULT_PORT)?;
        if !authority.path.is_empty() {
            return Err(invalid("memcached: has no path; write memcached://HOST,HOST?OPTION=VALUE"));
        }
        let login = match (authority.user, authority.password) {
            (Some(user), Some(password)) => Some((user, password)),
            (None, None) => None,
            _ => {
                return Err(invalid(
                    "memcached: a login has a user and a password, as in memcached://USER:PASSWORD@HOST",
                ));
            }
        };
        let mut config = Self {
            servers: authority.hosts,
            login,
            prefix: url.text("prefix").unwrap_or_default().into_bytes(),
            default_ttl: url.duration("ttl")?,
            // Beside the value, the limit of 1 MiB holds the key and what the server notes of it.
            max_value_bytes: url.bytes("max_value")?.unwrap_or(1024 * 1024 - 1024),
            connect_timeout: url.duration("connect_timeout")?.unwrap_or(Duration::from_secs(5)),
            response_timeout: url.duration("response_timeout")?.unwrap_or(Duration::from_secs(3)),
            queue: 65_536,
        };
        if let Some(queue) = url.parsed("queue", "a number of commands", |text| text.parse().ok())? {
            config.queue = queue;
        }
        url.finish()?;
        config.check()?;
        Ok(config)
    }

    /// Logs in. Memcached takes logins where it was started with `--auth-file`.
    #[must_use]
    pub fn login(mut self, user: impl Into<String>, password: impl Into<SecretString>) -> Self {
        self.login = Some((user.into(), password.into()));
        self
    }

    /// Puts this before every key. None by default.
    #[must_use]
    pub fn prefix(mut self, prefix: impl Into<Vec<u8>>) -> Self {
        self.prefix = prefix.into();
        self
    }

    /// How long a value lives that is put without a time to live. By default, for ever, or rather until the server
    /// needs its place.
    #[must_use]
    pub fn default_ttl(mut self, ttl: Option<Duration>) -> Self {
        self.default_ttl = ttl;
        self
    }

    /// The longest value, in bytes. The default is 1 KiB below 1 MiB: what fits where the server's own limit
    /// (`-I`) is its default, 1 MiB with the key. At most 1 GiB.
    #[must_use]
    pub fn max_value_bytes(mut self, bytes: u64) -> Self {
        self.max_value_bytes = bytes;
        self
    }

    /// How long connecting may take. 5 s by default.
    #[must_use]
    pub fn connect_timeout(mut self, limit: Duration) -> Self {
        self.connect_timeout = limit;
        self
    }

    /// How long a server may be silent while it owes an answer; then the connection is given up. 3 s by default.
    #[must_use]
    pub fn response_timeout(mut self, limit: Duration) -> Self {
        self.response_timeout = limit;
        self
    }

    /// How many commands may wait for one server before further ones are
    /// [`Overloaded`](commonhold_core::ErrorKind::Overloaded). 65,536 by default.
    #[must_use]
    pub fn queue(mut self, commands: usize) -> Self {
        self.queue = commands;
        self
    }

    /// Checks the ranges.
    ///
    /// # Errors
    /// `InvalidConfig` that names the option and what it takes.
    pub fn check(&self) -> Result<()> {
        if self.servers.is_empty() {
            return Err(invalid("memcached: needs a server, as in memcached://localhost"));
        }
        if let Some(twice) = first_repeated(&self.servers) {
            return Err(invalid(format!("memcached: the server {twice} is named twice")));
        }
        if self.max_value_bytes > 1 << 30 {
            let message = format!("the value limit is at most 1 GiB, not {}", self.max_value_bytes);
            return Err(invalid(message));
        }
        if self.connect_timeout.is_zero() || self.response_timeout.is_zero() {
            return Err(invalid("a timeout is more than zero"));
        }
        if self.queue == 0 {
            return Err(invalid("the queue has room for at least one command"));
        }
        if self.login.as_ref().is_some_and(|(user, _)| user.contains(' ')) {
            return Err(invalid("a user of Memcached has no blanks"));
        }
        let ttl = Expiry::from(self.default_ttl);
        ttl.check().map_err(|error| invalid(error.message().to_owned()))
    }
}

fn first_repeated(servers: &[Endpoint]) -> Option<&Endpoint> {
    let mut seen = HashSet::new();
    servers.iter().find(|server| !seen.insert(*server))
}

fn invalid(message: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::InvalidConfig, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(url: &str) -> Result<MemcachedConfig> {
        MemcachedConfig::from_url(StoreUrl::parse(url)?)
    }

    #[test]
    fn every_option_of_a_url_is_read() {
        let config = config(
            "memcached://u:hunter2@a,b:1?prefix=p:&ttl=1h&max_value=1KiB&connect_timeout=1s&response_timeout=2s&queue=7",
        );
        let config = config.unwrap();
        assert_eq!(config.servers.iter().map(ToString::to_string).collect::<Vec<_>>(), ["a:11211", "b:1"]);
        assert_eq!((&config.prefix[..], config.default_ttl), (&b"p:"[..], Some(Duration::from_secs(3600))));
        assert_eq!((config.max_value_bytes, config.queue), (1024, 7));
        assert_eq!(
            (config.connect_timeout, config.response_timeout),
            (Duration::from_secs(1), Duration::from_secs(2))
        );
        assert!(!format!("{config:?}").contains("hunter2"));
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (url, part) in [
            ("memcached:", "//"),
            ("memcached://", "needs a server"),
            ("memcached://h/1", "no path"),
            ("memcached://u@h", "password"),
            ("memcached://h,h:11211", "twice"),
            ("memcached://h?queue=0", "queue"),
            ("memcached://h?queue=x", "queue"),
            ("memcached://h?max_value=2GiB", "1 GiB"),
            ("memcached://h?prefx=1", "did you mean \"prefix\"?"),
        ] {
            let error = config(url).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidConfig, "{url}");
            assert!(error.to_string().contains(part), "{url}: {error}");
        }
    }

    #[test]
    fn the_options_that_are_listed_are_those_that_are_taken() {
        let error = config("memcached://h?Q=1").unwrap_err().to_string();
        assert!(error.ends_with(&format!("there are: {}", OPTIONS.join(", "))), "{error}");
    }
}
