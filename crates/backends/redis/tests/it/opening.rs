//! Opening stores: servers that are away, logins, TLS, several servers, databases.

use std::time::Duration;

use commonhold_core::{Error, ErrorKind, Increment, Retry};
use commonhold_redis::RedisConfig;
use commonhold_testkit::{
    proxy::Proxy,
    servers::{PASSWORD, Redis, RedisCluster, RedisSentinel},
};

use crate::common::{of, open, works};

#[tokio::test]
async fn a_store_can_be_opened_while_its_server_is_away() {
    let redis = Redis::start();
    redis.stop();
    let store = open(&redis.url(), "").await.unwrap();
    let error = store.get("k").await.unwrap_err();
    assert_eq!(of(&error), (ErrorKind::Unavailable, Retry::Safe), "{error}");
    let error = open(&redis.url(), "abort_on_connect_fail=true").await.unwrap_err();
    assert_eq!(of(&error), (ErrorKind::Unavailable, Retry::Safe), "{error}");
    redis.start_again();
    works(&store).await;
}

#[tokio::test]
async fn a_wrong_login_is_one_error_at_once() {
    let redis = Redis::builder().user("app").start();
    let proxy = Proxy::before(redis.port());
    for login in ["app:wrong-horse@", "other:correct-horse@", ":correct-horse@", ""] {
        let before = proxy.traffic().connections;
        let error = open(&format!("redis://{login}127.0.0.1:{}", proxy.port()), "").await.unwrap_err();
        assert_eq!(of(&error), (ErrorKind::Unauthorized, Retry::Never), "{login}: {error}");
        let text = format!("{error} {error:?}");
        assert!(!text.contains(PASSWORD) && !text.contains("wrong-horse"), "{text}");
        assert_eq!(proxy.traffic().connections, before + 1, "{login}: it was tried again");
    }
    let store = open(&redis.url_at(proxy.port()), "").await.unwrap();
    works(&store).await;
}

#[tokio::test]
async fn a_user_without_a_password_logs_in() {
    let redis = Redis::start();
    redis.cli(&["ACL", "SETUSER", "app", "on", "nopass", "~app:*", "&*", "+@all"]);
    let store = open(&format!("redis://app@{}", redis.address()), "prefix=app:").await.unwrap();
    works(&store).await;
    assert!(redis.cli(&["CLIENT", "LIST"]).contains("user=app"));
}

#[tokio::test]
async fn a_server_that_wants_a_password_is_said_to() {
    let redis = Redis::start();
    redis.cli(&["CONFIG", "SET", "requirepass", "secret-horse"]);
    let error = open(&format!("redis://{}", redis.address()), "").await.unwrap_err();
    assert_eq!(of(&error), (ErrorKind::Unauthorized, Retry::Never), "{error}");
    assert!(error.to_string().contains("wants a password"), "{error}");
}

#[tokio::test]
async fn a_url_whose_scheme_is_for_others_is_told_the_right_one() {
    let (cluster, sentinel, redis) = (RedisCluster::start(), RedisSentinel::start(), Redis::start());
    let (member, sentinel) = (cluster.nodes[0].address(), sentinel.sentinels[0].address());
    for (url, right) in [
        (format!("redis://{member}"), "redis+cluster://"),
        (format!("redis://{sentinel}"), "redis+sentinel://"),
        (format!("redis://{sentinel},{}", redis.address()), "redis+sentinel://"),
        (format!("redis+cluster://{}", redis.address()), "redis://"),
        (format!("redis+cluster://{sentinel}"), "redis+sentinel://"),
        (format!("redis+sentinel://{}/mymaster", redis.address()), "redis://"),
    ] {
        let failed = async {
            let store = open(&url, "").await?;
            for key in ["a", "b", "c", "d"] {
                store.get(key).await?;
            }
            Ok::<(), Error>(())
        };
        let error = failed.await.unwrap_err();
        assert!(error.to_string().contains(right), "{url}: {error}");
    }
}

#[tokio::test]
async fn what_the_user_may_not_do_is_said() {
    let redis = Redis::start();
    redis.cli(&[
        "ACL", "SETUSER", "reader", "on", ">pw", "~*", "+@read", "+hello", "+ping", "+evalsha", "+script",
    ]);
    let store = open(&format!("redis://reader:pw@{}", redis.address()), "").await.unwrap();
    assert_eq!(store.get("k").await.unwrap(), None);
    let error = store.put("k", "v").await.unwrap_err();
    assert_eq!(of(&error), (ErrorKind::Unauthorized, Retry::Never), "{error}");
}

#[tokio::test]
async fn a_connection_is_encrypted_and_the_certificate_checked() {
    let redis = Redis::builder().user("app").tls().start();
    let store = open(&redis.url(), "").await.unwrap();
    works(&store).await;
    store.transaction(|tx| async move { tx.put("k", "v").await }).await.unwrap();
    assert_eq!(redis.cli(&["GET", "k"]), "v");

    let named = open(&redis.url(), "tls_server_name=commonhold.test").await.unwrap();
    works(&named).await;
    let refused = |error: Error, why: &str| {
        assert_eq!(of(&error), (ErrorKind::Unauthorized, Retry::Never), "{error}");
        assert!(error.to_string().contains(why), "{error}");
    };
    refused(open(&redis.url(), "tls_server_name=elsewhere.test").await.unwrap_err(), "tls_server_name");
    let other = Redis::builder().tls().start();
    let ca = other.directory().join("ca.pem");
    let url = format!("rediss://{}?tls_ca={}", redis.address(), ca.display());
    refused(open(&url, "").await.unwrap_err(), "tls_ca");
}

#[tokio::test]
async fn certificates_that_cannot_be_read_are_named() {
    let directory = tempfile::tempdir().unwrap();
    let empty = directory.path().join("empty.pem");
    std::fs::write(&empty, "no certificate").unwrap();
    for file in [empty, directory.path().join("missing.pem")] {
        let error = open(&format!("rediss://127.0.0.1:1?tls_ca={}", file.display()), "").await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidConfig);
        assert!(error.to_string().contains("tls_ca") && error.to_string().contains(".pem"), "{error}");
    }
}

#[tokio::test]
async fn a_plain_connection_to_a_server_with_tls_fails_and_says_where() {
    let redis = Redis::builder().tls().start();
    let url = format!("redis://{}", redis.address());
    let error = open(&url, "abort_on_connect_fail=true").await.unwrap_err();
    assert_eq!(error.retry(), Retry::Safe);
    assert!(error.to_string().contains(&redis.address()), "{error}");
}

#[tokio::test]
async fn of_several_servers_the_primary_is_found_and_followed() {
    let (first, second) = (Redis::start(), Redis::start());
    second.follow(&first);
    let url = format!("redis://{},{}", second.address(), first.address());
    let store = open(&url, "").await.unwrap();
    store.put("k", "v").await.unwrap();
    assert_eq!(first.cli(&["GET", "k"]), "v");
    // They change places: the first is demoted while connections to it stay.
    second.cli(&["REPLICAOF", "NO", "ONE"]);
    first.follow(&second);
    works(&store).await;
    store.put("k", "w").await.unwrap();
    assert_eq!(second.cli(&["GET", "k"]), "w");
}

#[tokio::test]
async fn who_only_reads_leaves_a_server_that_is_no_longer_the_primary() {
    let (first, second) = (Redis::start(), Redis::start());
    second.follow(&first);
    let url = format!("redis://{},{}", first.address(), second.address());
    let store = open(&url, "").await.unwrap();
    assert_eq!(store.get("k").await.unwrap(), None);
    second.cli(&["REPLICAOF", "NO", "ONE"]);
    // It follows nobody who is there, and so goes on with what it has.
    first.cli(&["REPLICAOF", "127.0.0.1", "1"]);
    second.cli(&["SET", "k", "v"]);
    commonhold_testkit::eventually(Duration::from_secs(30), "the primary is read from", async || {
        store.get("k").await.is_ok_and(|value| value.is_some())
    })
    .await;
}

#[tokio::test]
async fn transactions_leave_a_server_that_is_no_longer_the_primary() {
    let (first, second) = (Redis::start(), Redis::start());
    second.follow(&first);
    let url = format!("redis://{},{}", first.address(), second.address());
    let store = open(&url, "").await.unwrap();
    let read = async || store.transaction(|tx| async move { tx.get("k").await }).await;
    assert_eq!(read().await.unwrap(), None);
    second.cli(&["REPLICAOF", "NO", "ONE"]);
    first.cli(&["REPLICAOF", "127.0.0.1", "1"]);
    second.cli(&["SET", "k", "v"]);
    commonhold_testkit::eventually(Duration::from_secs(30), "the primary is read from", async || {
        read().await.is_ok_and(|value| value.is_some())
    })
    .await;
}

#[tokio::test]
async fn a_database_is_chosen_by_its_number() {
    let redis = Redis::start();
    let store = open(&format!("{}/3", redis.url()), "").await.unwrap();
    store.put("k", "v").await.unwrap();
    assert_eq!(redis.cli(&["-n", "3", "GET", "k"]), "v");
    assert_eq!(redis.cli(&["EXISTS", "k"]), "0");
    let error = open(&redis.url(), "database=4000").await.unwrap_err();
    assert_eq!(of(&error), (ErrorKind::InvalidConfig, Retry::Never), "{error}");
}

#[tokio::test]
async fn a_default_time_to_live_is_given_to_what_has_none() {
    let redis = Redis::start();
    let store = open(&redis.url(), "ttl=1h").await.unwrap();
    store.put("put", "v").await.unwrap();
    store.batch_put([("batch", "v")]).await.unwrap();
    store.increment("counter", 1).await.unwrap();
    store.transaction(|tx| async move { tx.put("tx", "v").await }).await.unwrap();
    for key in ["put", "batch", "counter", "tx"] {
        let left = store.ttl(key).await.unwrap().unwrap().expect(key);
        // Rounded up to milliseconds, in a transaction at its put and at its commit.
        let bounds = Duration::from_secs(3500)..=Duration::from_millis(3_600_001);
        assert!(bounds.contains(&left), "{key}: {left:?}");
    }
    for key in ["put", "counter"] {
        store.persist(key).await.unwrap();
        assert_eq!(store.ttl(key).await.unwrap(), Some(None), "{key}");
    }
    assert_eq!(store.increment("counter", 1).await.unwrap(), 2);
    assert_eq!(store.ttl("counter").await.unwrap(), Some(None), "only a new counter is given one");
    for ttl in [Duration::ZERO, Duration::MAX] {
        let error = store.transact("new", Increment { delta: 1, ttl: Some(ttl) }).await.unwrap_err();
        assert_eq!(of(&error), (ErrorKind::InvalidInput, Retry::Never), "{ttl:?}: {error}");
    }
    assert_eq!(store.get("new").await.unwrap(), None);
}

#[tokio::test]
async fn replicas_answer_gets_if_asked_to() {
    let (primary, replica) = (Redis::start(), Redis::start());
    replica.follow(&primary);
    let url = format!("redis://{},{}", primary.address(), replica.address());
    let store = open(&url, "read_from=replica").await.unwrap();
    store.put("k", "v").await.unwrap();
    commonhold_testkit::eventually(Duration::from_secs(10), "the replica has it", async || {
        store.get("k").await.unwrap().is_some()
    })
    .await;
    let hits: u64 = replica.info("keyspace_hits").parse().unwrap();
    assert!(hits > 0, "the replica was not asked");
    assert_eq!(primary.info("keyspace_hits"), "0");
}

#[tokio::test]
async fn health_tells_the_role_and_warns_of_what_loses_state() {
    let redis = Redis::builder().config("maxmemory 100mb").config("maxmemory-policy allkeys-lru").start();
    let store = open(&redis.url(), "").await.unwrap();
    let health = store.health_check().await.unwrap();
    assert!(!health.version.is_empty() && health.now.is_some());
    let detail =
        |name: &str| health.details.iter().find(|(other, _)| other == name).map(|(_, value)| &**value);
    assert_eq!(detail("role"), Some("master"));
    assert!(detail("round_trip").is_some());
    for warning in ["noeviction", "nothing on disk"] {
        assert!(
            health.warnings.iter().any(|text| text.contains(warning)),
            "{warning}: {:?}",
            health.warnings
        );
    }
    let stats = store.stats().await.unwrap();
    assert!(stats.memory_bytes.unwrap() > 0 && stats.memory_limit_bytes == Some(100 << 20));

    let durable = Redis::builder().append_only().start();
    let store = open(&durable.url(), "").await.unwrap();
    assert_eq!(store.health_check().await.unwrap().warnings, Vec::<String>::new());
}

#[tokio::test]
async fn health_warns_of_a_full_server_in_readable_sizes() {
    let redis = Redis::builder().max_memory(500_000).start();
    let store = open(&redis.url(), "").await.unwrap();
    let warnings = store.health_check().await.unwrap().warnings;
    assert!(warnings.iter().any(|warning| warning.contains(" MB of 0.5 MB")), "{warnings:?}");
}

#[tokio::test]
async fn a_configuration_out_of_range_is_refused_by_name() {
    let config = RedisConfig::standalone([("h", 1)]).pipeline_batch_size(0);
    let error = commonhold_redis::RedisBackend::open(config).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidConfig);
}
