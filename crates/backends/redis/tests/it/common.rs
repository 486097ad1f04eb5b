//! What the tests share.

use std::time::Duration;

use commonhold_core::{Error, ErrorKind, Result, Retry, Store, url::StoreUrl};
use commonhold_redis::{RedisBackend, RedisConfig};
use commonhold_testkit::eventually;

/// How long a store may take to work again after a fault: much longer than it does.
const RECOVERY: Duration = Duration::from_secs(30);

/// The configuration that a URL is.
pub(crate) fn config(url: &str) -> RedisConfig {
    RedisConfig::from_url(StoreUrl::parse(url).unwrap()).unwrap()
}

/// A store at this URL with these options, as in `prefix=app:&ttl=1h`. It waits half a second for replies.
pub(crate) async fn open(url: &str, options: &str) -> Result<Store> {
    let joint = if url.contains('?') { '&' } else { '?' };
    let half = Duration::from_millis(500);
    let config = config(&format!("{url}{joint}{options}"));
    let config = config.timeouts(half, half, half).pool_timeout(half);
    Ok(Store::new(RedisBackend::open(config).await?))
}

/// Waits until the store takes writes again.
pub(crate) async fn works(store: &Store) {
    eventually(RECOVERY, "the store works again", async || {
        store.put("works again", "yes").await.is_ok() && store.get("works again").await.is_ok()
    })
    .await;
}

/// What an error says of itself to a program.
pub(crate) fn of(error: &Error) -> (ErrorKind, Retry) {
    (error.kind(), error.retry())
}
