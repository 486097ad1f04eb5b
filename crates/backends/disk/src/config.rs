//! Where the store lies and how it is kept.

use std::{
    fmt,
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

use commonhold_core::{Error, ErrorKind, Expiry, Result, embedded::Rules};

const MIB: u64 = 1024 * 1024;

/// What a [`DiskBackend`](crate::DiskBackend) is opened with.
///
/// ```
/// use std::time::Duration;
/// use commonhold_disk::{DiskConfig, Durability};
///
/// let config = DiskConfig::new("./state")
///     .durability(Durability::Interval(Duration::from_millis(10)))
///     .cache_bytes(64 * 1024 * 1024);
/// assert_eq!(config.path(), std::path::Path::new("./state"));
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskConfig {
    pub(crate) path: PathBuf,
    pub(crate) durability: Durability,
    pub(crate) cache_bytes: u64,
    pub(crate) memtable_bytes: u64,
    pub(crate) journal_bytes: u64,
    pub(crate) compression: bool,
    pub(crate) rules: Rules,
}

impl DiskConfig {
    /// The smallest [`memtable_bytes`](Self::memtable_bytes): 64 KiB.
    pub const MIN_MEMTABLE_BYTES: u64 = 64 * 1024;
    /// The smallest [`journal_bytes`](Self::journal_bytes): 64 MiB.
    pub const MIN_JOURNAL_BYTES: u64 = 64 * MIB;

    /// A store in this directory, which is created if it is not there, with `sync` durability.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            durability: Durability::Sync,
            cache_bytes: 32 * MIB,
            memtable_bytes: 8 * MIB,
            journal_bytes: Self::MIN_JOURNAL_BYTES,
            compression: true,
            rules: Rules::default(),
        }
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// When a write is answered. The default is [`Durability::Sync`].
    #[must_use]
    pub fn durability(mut self, durability: Durability) -> Self {
        self.durability = durability;
        self
    }

    /// Memory for blocks read from disk. The default is 32 MiB.
    #[must_use]
    pub fn cache_bytes(mut self, bytes: u64) -> Self {
        self.cache_bytes = bytes;
        self
    }

    /// Memory for writes before they go into a table: 64 KiB to 1 GiB, 8 MiB by default. While tables are
    /// being written up to four times as much is used.
    #[must_use]
    pub fn memtable_bytes(mut self, bytes: u64) -> Self {
        self.memtable_bytes = bytes;
        self
    }

    /// How large the journals may grow together before the engine writes tables to be rid of them: 64 MiB,
    /// the default, or more. What is in the journals is read again when the store is opened.
    #[must_use]
    pub fn journal_bytes(mut self, bytes: u64) -> Self {
        self.journal_bytes = bytes;
        self
    }

    /// Whether values are compressed with LZ4. On by default. Tables keep what was chosen when the store was
    /// created.
    #[must_use]
    pub fn compression(mut self, compression: bool) -> Self {
        self.compression = compression;
        self
    }

    /// How long a value lives that is put without a time to live. By default, for ever.
    #[must_use]
    pub fn default_ttl(mut self, ttl: Option<Duration>) -> Self {
        self.rules.default_ttl = ttl;
        self
    }

    /// The longest value, in bytes. The default is 64 MiB; more than 1 GiB is refused.
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
            return invalid("the path of the store is empty; give a directory".to_owned());
        }
        if !(Self::MIN_MEMTABLE_BYTES..=1024 * MIB).contains(&self.memtable_bytes) {
            return invalid(format!("the memtable takes 64 KiB to 1 GiB, not {} bytes", self.memtable_bytes));
        }
        if self.journal_bytes < Self::MIN_JOURNAL_BYTES {
            return invalid(format!(
                "the journal limit is at least 64 MiB, not {} bytes",
                self.journal_bytes
            ));
        }
        if self.rules.max_value_bytes > 1024 * MIB {
            return invalid(format!("the value limit is at most 1 GiB, not {}", self.rules.max_value_bytes));
        }
        if let Durability::Interval(interval) = self.durability
            && !(MIN_INTERVAL..=MAX_INTERVAL).contains(&interval)
        {
            return invalid(format!("the interval of durability is 1ms to 1h, not {interval:?}"));
        }
        let ttl = Expiry::from(self.rules.default_ttl);
        ttl.check().map_err(|error| Error::new(ErrorKind::InvalidConfig, error.message().to_owned()))
    }
}

const MIN_INTERVAL: Duration = Duration::from_millis(1);
const MAX_INTERVAL: Duration = Duration::from_secs(3600);

/// When a write is answered, and what of it a crash can take back.
///
/// As text: `sync`, `buffered`, `interval:10ms`.
///
/// ```
/// use std::time::Duration;
/// use commonhold_disk::Durability;
///
/// assert_eq!("interval:10ms".parse(), Ok(Durability::Interval(Duration::from_millis(10))));
/// assert_eq!(Durability::Sync.to_string(), "sync");
/// assert!("never".parse::<Durability>().is_err());
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Durability {
    /// When the operating system has it. A crash of the process takes nothing back, one of the machine the
    /// writes of the last seconds.
    Buffered,
    /// When the operating system has it, which is told to write it to the disk every so often (1 ms to 1 h).
    /// A crash of the machine takes back what was written in about that time.
    Interval(Duration),
    /// When it is on the disk. Concurrent writers share one `fsync`.
    #[default]
    Sync,
}

impl fmt::Display for Durability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Buffered => f.write_str("buffered"),
            Self::Interval(interval) => write!(f, "interval:{interval:?}"),
            Self::Sync => f.write_str("sync"),
        }
    }
}

/// Why a text is no [`Durability`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InvalidDurability(String);

impl fmt::Display for InvalidDurability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "durability is `sync`, `buffered` or `interval:` and 1ms to 1h (`interval:10ms`), not {:?}",
            self.0
        )
    }
}

impl std::error::Error for InvalidDurability {}

impl From<InvalidDurability> for Error {
    fn from(invalid: InvalidDurability) -> Self {
        Self::new(ErrorKind::InvalidConfig, invalid.to_string())
    }
}

impl FromStr for Durability {
    type Err = InvalidDurability;

    fn from_str(text: &str) -> Result<Self, InvalidDurability> {
        let interval = |text: &str| {
            let duration: jiff::SignedDuration = text.parse().ok()?;
            let duration = Duration::try_from(duration).ok()?;
            (MIN_INTERVAL..=MAX_INTERVAL).contains(&duration).then_some(Self::Interval(duration))
        };
        match text {
            "sync" => Some(Self::Sync),
            "buffered" => Some(Self::Buffered),
            _ => text.strip_prefix("interval:").and_then(interval),
        }
        .ok_or_else(|| InvalidDurability(text.chars().take(64).collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durability_reads_what_it_writes_and_refuses_the_rest() {
        for durability in [
            Durability::Sync,
            Durability::Buffered,
            Durability::Interval(Duration::from_millis(10)),
            Durability::Interval(Duration::from_secs(3)),
        ] {
            assert_eq!(durability.to_string().parse(), Ok(durability));
        }
        for text in
            ["", "Sync", "interval", "interval:", "interval:0s", "interval:-5ms", "interval:2h", "interval:5"]
        {
            assert_eq!(text.parse::<Durability>(), Err(InvalidDurability(text.to_owned())), "{text}");
        }
    }

    #[test]
    fn every_option_out_of_range_is_refused() {
        let config = || DiskConfig::new("x");
        assert!(config().check().is_ok());
        for wrong in [
            DiskConfig::new(""),
            config().memtable_bytes(1),
            config().memtable_bytes(u64::MAX),
            config().journal_bytes(1),
            config().max_value_bytes(u64::MAX),
            config().durability(Durability::Interval(Duration::ZERO)),
            config().default_ttl(Some(Duration::ZERO)),
        ] {
            assert_eq!(wrong.check().unwrap_err().kind(), ErrorKind::InvalidConfig, "{wrong:?}");
        }
    }
}
