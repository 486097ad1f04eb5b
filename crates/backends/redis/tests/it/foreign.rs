//! Beside a plain `redis-cli` and other users of the same server.

use commonhold_core::Key;
use commonhold_testkit::servers::Redis;
use futures_util::TryStreamExt as _;

use crate::common::open;

#[tokio::test]
async fn values_lie_in_the_server_as_they_were_put() {
    let redis = Redis::start();
    let store = open(&redis.url(), "prefix=app:").await.unwrap();
    store.put("greeting", "hello").await.unwrap();
    store.increment("visits", 41).await.unwrap();
    assert_eq!(redis.cli(&["GET", "app:greeting"]), "hello");
    assert_eq!(redis.cli(&["INCR", "app:visits"]), "42");
    assert_eq!(store.increment("visits", 1).await.unwrap(), 43);
    redis.cli(&["SET", "app:theirs", "1", "EX", "100"]);
    assert!(store.ttl("theirs").await.unwrap().unwrap().is_some());
}

#[tokio::test]
async fn other_tenants_are_neither_seen_nor_cleared() {
    let redis = Redis::start();
    // Each as a pattern would match the others.
    let prefixes = ["a*:", "a?:", "[a-z]b:", "ab:", "\\ab:", "a"];
    let mut stores = Vec::new();
    for prefix in prefixes {
        let config = crate::common::config(&redis.url()).key_prefix(prefix);
        let backend = commonhold_redis::RedisBackend::open(config).await.unwrap();
        stores.push(commonhold_core::Store::new(backend));
    }
    for store in &stores {
        store.batch_put([("k1", "v"), ("k2", "v")]).await.unwrap();
    }
    // The last prefix begins the others of those that begin with it.
    for (store, prefix) in stores.iter().zip(prefixes).take(5) {
        assert_eq!(store.count("").await.unwrap(), 2, "{prefix}");
        assert_eq!(store.clear("").await.unwrap(), 2, "{prefix}");
        assert_eq!(store.count("").await.unwrap(), 0, "{prefix}");
    }
    assert_eq!(stores[5].count("").await.unwrap(), 2);
}

#[tokio::test]
async fn what_is_no_string_is_not_of_the_store() {
    let redis = Redis::start();
    let store = open(&redis.url(), "prefix=app:").await.unwrap();
    store.put("k", "v").await.unwrap();
    redis.cli(&["LPUSH", "app:list", "x"]);
    let listed: Vec<Key> = store.list_keys("").unwrap().try_collect().await.unwrap();
    assert_eq!(listed, [Key::new("k").unwrap()]);
    assert_eq!(store.get("list").await.unwrap(), None);
    assert_eq!(store.get_entry("list").await.unwrap(), None);
    assert_eq!(store.clear("").await.unwrap(), 1);
    assert_eq!(redis.cli(&["LLEN", "app:list"]), "1");
}
