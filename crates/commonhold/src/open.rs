//! From a URL to a store.

use commonhold_core::{
    Error, ErrorKind, MemoryBackend, Result, Store,
    url::{StoreUrl, did_you_mean},
};

/// Opens the store that a URL names, with the [`Metrics`](crate::layers::Metrics) layer around it.
///
/// | URL | feature | options, with their defaults |
/// |---|---|---|
/// | `memory:` | | `ttl` (none), `max_bytes` (none), `max_value=64MiB`, `capacity=0`, `cleanup_interval=1s` |
/// | `disk:PATH` | `disk` | `durability=sync` (or `buffered`, `interval:10ms`), `ttl` (none), `max_value=64MiB`, `cache=32MiB`, `memtable=8MiB`, `journal=64MiB`, `compression=true` |
/// | `redis://`, `redis+sentinel://`, `redis+cluster://`, and with TLS `rediss://`, .. | `redis` | those of `redis::RedisConfig` |
/// | `postgres://`, `postgresql://` | `postgres` | those of `postgres::PostgresConfig` |
/// | `memcached://HOST,HOST` | `memcached` | those of `memcached::MemcachedConfig` |
/// | `sled:PATH` | `sled` | those of `sled::SledConfig` |
///
/// Those on a network also take `retries=3`, how often a call that had no effect is made again
/// ([`Retry`](crate::layers::Retry)), `retry_base=100ms` and `retry_max=5s`, the longest pauses before the first
/// repetition and before any; and `call_timeout` (none), how long each attempt may take, whatever it is
/// ([`Timeout`](crate::layers::Timeout)), besides the timeouts that each has of its own.
///
/// # Errors
/// `InvalidConfig` for a scheme or option that does not exist or takes something else; whatever keeps the
/// store from opening.
///
/// ```
/// # tokio::runtime::Runtime::new().unwrap().block_on(async {
/// let store = commonhold::open("memory:?max_bytes=64MiB").await?;
/// assert!(commonhold::open("memory:?max_byte=64MiB").await.is_err());
/// # Ok::<(), commonhold::Error>(())
/// # }).unwrap();
/// ```
pub async fn open(url: &str) -> Result<Store> {
    let url = StoreUrl::parse(url)?;
    let schemes = schemes();
    let Some(scheme) = schemes.iter().find(|scheme| scheme.name == url.scheme()) else {
        let names: Vec<_> = schemes.iter().map(|scheme| scheme.name).collect();
        let message = format!("there is no store {:?}; {}", url.scheme(), did_you_mean(url.scheme(), &names));
        return Err(Error::new(ErrorKind::InvalidConfig, message));
    };
    match scheme.backend {
        #[cfg(feature = "disk")]
        "disk" => disk(url).await,
        #[cfg(feature = "sled")]
        "sled" => {
            let config = commonhold_sled::SledConfig::from_url(url)?;
            Ok(Store::new(commonhold_sled::SledBackend::open(config).await?))
        }
        #[cfg(feature = "redis")]
        "redis" => {
            let (layers, url) = Layers::take(url)?;
            let config = commonhold_redis::RedisConfig::from_url(url)?;
            Ok(layers.around(Store::new(commonhold_redis::RedisBackend::open(config).await?)))
        }
        #[cfg(feature = "postgres")]
        "postgres" => {
            let (layers, url) = Layers::take(url)?;
            let config = commonhold_postgres::PostgresConfig::from_url(url)?;
            Ok(layers.around(Store::new(commonhold_postgres::PostgresBackend::open(config).await?)))
        }
        #[cfg(feature = "memcached")]
        "memcached" => {
            let (layers, url) = Layers::take(url)?;
            let config = commonhold_memcached::MemcachedConfig::from_url(url)?;
            Ok(layers.around(Store::new(commonhold_memcached::MemcachedBackend::open(config).await?)))
        }
        _ => memory(url),
    }
}

/// A scheme of the URLs that [`open`] takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scheme {
    /// What stands before the `:`.
    pub name: &'static str,
    /// The backend behind it: several schemes may have the same.
    pub backend: &'static str,
    /// Whether a server is behind it, which is named as `//HOST`; otherwise a path, or nothing.
    pub network: bool,
    /// The names of the options.
    pub options: Vec<&'static str>,
}

/// All that [`open`] knows, given the features of this build.
pub fn schemes() -> Vec<Scheme> {
    let mut schemes = vec![Scheme::local("memory", MEMORY_OPTIONS)];
    if cfg!(feature = "disk") {
        schemes.push(Scheme::local("disk", DISK_OPTIONS));
    }
    #[cfg(feature = "sled")]
    schemes.push(Scheme::local("sled", commonhold_sled::OPTIONS));
    #[cfg(feature = "redis")]
    for name in ["redis", "rediss", "redis+sentinel", "rediss+sentinel", "redis+cluster", "rediss+cluster"] {
        schemes.push(Scheme::network(name, "redis", commonhold_redis::OPTIONS));
    }
    #[cfg(feature = "postgres")]
    for name in ["postgres", "postgresql"] {
        schemes.push(Scheme::network(name, "postgres", commonhold_postgres::OPTIONS));
    }
    #[cfg(feature = "memcached")]
    schemes.push(Scheme::network("memcached", "memcached", commonhold_memcached::OPTIONS));
    schemes
}

impl Scheme {
    fn local(name: &'static str, options: &[&'static str]) -> Self {
        Self { name, backend: name, network: false, options: options.to_vec() }
    }

    #[cfg(any(feature = "redis", feature = "postgres", feature = "memcached"))]
    fn network(name: &'static str, backend: &'static str, options: &[&'static str]) -> Self {
        Self { name, backend, network: true, options: [Layers::OPTIONS, options].concat() }
    }
}

/// What is put around a store on a network.
#[cfg(any(feature = "redis", feature = "postgres", feature = "memcached"))]
struct Layers {
    retry: crate::layers::Retry,
    timeout: Option<crate::layers::Timeout>,
}

#[cfg(any(feature = "redis", feature = "postgres", feature = "memcached"))]
impl Layers {
    const OPTIONS: &[&'static str] = &["retries", "retry_base", "retry_max", "call_timeout"];

    fn take(mut url: StoreUrl) -> Result<(Self, StoreUrl)> {
        use std::time::Duration;

        let retries = url.parsed("retries", "a number, 0 for none", |text| text.parse::<u32>().ok())?;
        let base = url.duration("retry_base")?.unwrap_or(Duration::from_millis(100));
        let max = url.duration("retry_max")?.unwrap_or(Duration::from_secs(5));
        let timeout = url.duration("call_timeout")?.map(crate::layers::Timeout::new);
        let attempts = retries.unwrap_or(3).saturating_add(1);
        let retry = crate::layers::Retry::default().attempts(attempts).delays(base, max);
        Ok((Self { retry, timeout }, url))
    }

    fn around(self, store: Store) -> Store {
        let store = match self.timeout {
            Some(timeout) => store.layer(timeout),
            None => store,
        };
        store.layer(self.retry)
    }
}

const MEMORY_OPTIONS: &[&str] = &["ttl", "max_bytes", "max_value", "capacity", "cleanup_interval"];

const DISK_OPTIONS: &[&str] =
    &["durability", "ttl", "max_value", "cache", "memtable", "journal", "compression"];

fn memory(mut url: StoreUrl) -> Result<Store> {
    if !url.address().is_empty() {
        return Err(Error::new(
            ErrorKind::InvalidConfig,
            "memory: has no address; write memory:?OPTION=VALUE",
        ));
    }
    let mut builder = MemoryBackend::builder();
    if let Some(ttl) = url.duration("ttl")? {
        builder = builder.default_ttl(ttl);
    }
    if let Some(bytes) = url.bytes("max_bytes")? {
        builder = builder.max_bytes(bytes);
    }
    if let Some(bytes) = url.bytes("max_value")? {
        builder = builder.max_value_bytes(bytes);
    }
    if let Some(entries) = url.parsed("capacity", "a number of entries", |text| text.parse().ok())? {
        builder = builder.capacity(entries);
    }
    if let Some(interval) = url.duration("cleanup_interval")? {
        builder = builder.cleanup_interval(interval);
    }
    url.finish()?;
    Ok(Store::new(builder.build()))
}

#[cfg(feature = "disk")]
async fn disk(mut url: StoreUrl) -> Result<Store> {
    use commonhold_disk::{DiskBackend, DiskConfig};

    if url.address().is_empty() {
        return Err(Error::new(
            ErrorKind::InvalidConfig,
            "disk: needs a directory, as in disk:./commonhold-data",
        ));
    }
    let mut config = DiskConfig::new(url.address());
    if let Some(durability) =
        url.parsed("durability", "sync, buffered or interval:10ms", |text| text.parse().ok())?
    {
        config = config.durability(durability);
    }
    if let Some(ttl) = url.duration("ttl")? {
        config = config.default_ttl(Some(ttl));
    }
    if let Some(bytes) = url.bytes("max_value")? {
        config = config.max_value_bytes(bytes);
    }
    if let Some(bytes) = url.bytes("cache")? {
        config = config.cache_bytes(bytes);
    }
    if let Some(bytes) = url.bytes("memtable")? {
        config = config.memtable_bytes(bytes);
    }
    if let Some(bytes) = url.bytes("journal")? {
        config = config.journal_bytes(bytes);
    }
    if let Some(compression) = url.parsed("compression", "true or false", |text| text.parse().ok())? {
        config = config.compression(compression);
    }
    url.finish()?;
    Ok(Store::new(DiskBackend::open(config).await?))
}
