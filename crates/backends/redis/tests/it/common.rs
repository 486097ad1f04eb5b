//! What the tests share: stores on servers, under a prefix of their own.

use commonhold_core::{Result, url::StoreUrl};
use commonhold_redis::{RedisBackend, RedisConfig};

/// The configuration that a URL is.
pub(crate) fn config(url: &str) -> RedisConfig {
    RedisConfig::from_url(StoreUrl::parse(url).unwrap()).unwrap()
}

/// A store at this URL.
pub(crate) async fn open(url: &str) -> Result<RedisBackend> {
    RedisBackend::open(config(url)).await
}
