//! Where the database lies and which of its trees is used.

use std::{path::PathBuf, time::Duration};

use commonhold_core::{Error, ErrorKind, Expiry, Result, embedded::Rules, url::StoreUrl};

/// What a [`SledBackend`](crate::SledBackend) is opened with.
///
/// ```
/// use commonhold_sled::SledConfig;
///
/// let config = SledConfig::new("/var/lib/app/state").tree("sessions");
/// assert!(config.check().is_ok());
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SledConfig {
    pub(crate) path: PathBuf,
    pub(crate) tree: Option<String>,
    pub(crate) durability: Durability,
    pub(crate) cache_bytes: u64,
    pub(crate) rules: Rules,
}

/// When a write is answered.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Durability {
    /// When it is on the disk.
    #[default]
    Sync,
    /// At once; sled writes it to the disk within half a second. A crash takes back what was written since.
    Buffered,
}

/// The options of a `sled:` URL that [`SledConfig::from_url`] takes.
pub const OPTIONS: &[&str] = &["tree", "durability", "ttl", "max_value", "cache"];

impl SledConfig {
    /// The default tree of the database in this directory, which is created if it is not there.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            tree: None,
            durability: Durability::Sync,
            cache_bytes: 64 * 1024 * 1024,
            rules: Rules::default(),
        }
    }

    /// What `sled:PATH?OPTION=VALUE` says: [`tree`](Self::tree), [`durability`](Self::durability) (`sync` or
    /// `buffered`), [`ttl`](Self::default_ttl), [`max_value`](Self::max_value_bytes), [`cache`](Self::cache_bytes).
    ///
    /// # Errors
    /// `InvalidConfig` that names what is wrong.
    pub fn from_url(mut url: StoreUrl) -> Result<Self> {
        let mut config = Self::new(url.address());
        config.tree = url.text("tree");
        let durability = |text: &str| match text {
            "sync" => Some(Durability::Sync),
            "buffered" => Some(Durability::Buffered),
            _ => None,
        };
        if let Some(durability) = url.parsed("durability", "sync or buffered", durability)? {
            config = config.durability(durability);
        }
        config = config.default_ttl(url.duration("ttl")?);
        if let Some(bytes) = url.bytes("max_value")? {
            config = config.max_value_bytes(bytes);
        }
        if let Some(bytes) = url.bytes("cache")? {
            config = config.cache_bytes(bytes);
        }
        url.finish()?;
        config.check()?;
        Ok(config)
    }

    /// Another tree of the database. One that an existing database does not have is refused.
    #[must_use]
    pub fn tree(mut self, name: impl Into<String>) -> Self {
        self.tree = Some(name.into());
        self
    }

    /// When a write is answered. The default is [`Durability::Sync`].
    #[must_use]
    pub fn durability(mut self, durability: Durability) -> Self {
        self.durability = durability;
        self
    }

    /// Memory for what was read and written last. The default is 64 MiB.
    #[must_use]
    pub fn cache_bytes(mut self, bytes: u64) -> Self {
        self.cache_bytes = bytes;
        self
    }

    /// How long a value lives that is put without a time to live. By default, for ever.
    #[must_use]
    pub fn default_ttl(mut self, ttl: Option<Duration>) -> Self {
        self.rules.default_ttl = ttl;
        self
    }

    /// The longest value that is written, in bytes. The default is 64 MiB; more than 1 GiB is refused.
    #[must_use]
    pub fn max_value_bytes(mut self, bytes: u64) -> Self {
        self.rules.max_value_bytes = bytes;
        self
    }

    /// Checks the ranges.
    ///
    /// # Errors
    /// `InvalidConfig` that names the option and what it takes.
    pub fn check(&self) -> Result<()> {
        let invalid = |message| Err(Error::new(ErrorKind::InvalidConfig, message));
        if self.path.as_os_str().is_empty() {
            return invalid("sled: needs a directory, as in sled:/var/lib/app/state".to_owned());
        }
        if self.rules.max_value_bytes > 1 << 30 {
            return invalid(format!("the value limit is at most 1 GiB, not {}", self.rules.max_value_bytes));
        }
        let ttl = Expiry::from(self.rules.default_ttl);
        ttl.check().map_err(|error| Error::new(ErrorKind::InvalidConfig, error.message().to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_option_of_a_url_is_read_and_wrong_ones_are_named() {
        let config = |url: &str| SledConfig::from_url(StoreUrl::parse(url)?);
        let all = config("sled:./old?tree=a&durability=buffered&ttl=1h&max_value=1KiB&cache=1MiB").unwrap();
        let expected = SledConfig::new("./old")
            .tree("a")
            .durability(Durability::Buffered)
            .default_ttl(Some(Duration::from_secs(3600)))
            .max_value_bytes(1024)
            .cache_bytes(1 << 20);
        assert_eq!(all, expected);
        for (url, part) in [
            ("sled:", "directory"),
            ("sled:x?durability=never", "sync or buffered"),
            ("sled:x?max_value=2GiB", "1 GiB"),
        ] {
            let error = config(url).unwrap_err();
            assert!(error.kind() == ErrorKind::InvalidConfig && error.to_string().contains(part), "{error}");
        }
        let error = config("sled:x?Q=1").unwrap_err().to_string();
        assert!(error.ends_with(&format!("there are: {}", OPTIONS.join(", "))), "{error}");
    }
}
