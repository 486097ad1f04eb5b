//! From a URL to a store.

use commonhold_core::{
    Error, ErrorKind, MemoryBackend, Result, Store,
    url::{StoreUrl, did_you_mean},
};

/// Opens the store that a URL names, with the [`Metrics`](crate::layers::Metrics) layer around it.
///
/// | URL | options, with their defaults |
/// |---|---|
/// | `memory:` | `ttl` (none), `max_bytes` (none), `max_value=64MiB`, `capacity=0`, `cleanup_interval=1s` |
/// | `disk:PATH` | `durability=sync` (or `buffered`, `interval:10ms`), `ttl` (none), `max_value=64MiB`, `cache=32MiB`, `memtable=8MiB`, `journal=64MiB`, `compression=true` |
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
    match url.scheme() {
        "memory" => memory(url),
        #[cfg(feature = "disk")]
        "disk" => disk(url).await,
        scheme => Err(Error::new(
            ErrorKind::InvalidConfig,
            format!(
                "there is no store {scheme:?}; {}",
                did_you_mean(scheme, &STORES.iter().map(|(scheme, _)| *scheme).collect::<Vec<_>>())
            ),
        )),
    }
}

/// The stores that [`open`] knows: the scheme of the URL and the names of its options.
pub const STORES: &[(&str, &[&str])] = &[
    ("memory", &["ttl", "max_bytes", "max_value", "capacity", "cleanup_interval"]),
    #[cfg(feature = "disk")]
    ("disk", &["durability", "ttl", "max_value", "cache", "memtable", "journal", "compression"]),
];

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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_options_that_are_listed_are_those_that_are_taken() {
        let directory = tempfile::tempdir().unwrap();
        for (scheme, options) in STORES {
            let address = if *scheme == "memory" { "".into() } else { directory.path().to_string_lossy() };
            let error = open(&format!("{scheme}:{address}?Q=1")).await.unwrap_err().to_string();
            assert!(error.ends_with(&format!("there are: {}", options.join(", "))), "{error}");
        }
    }
}
