//! Messages and changes through lost connections, and servers that do not notify.

use std::time::Duration;

use commonhold_core::{Change, ErrorKind, Key, Message, Result, Store};
use commonhold_testkit::{eventually, proxy::Proxy, servers::Redis};
use futures_util::{StreamExt as _, stream::BoxStream};

use crate::common::{open, works};

const PATIENCE: Duration = Duration::from_secs(30);

async fn next<T>(stream: &mut BoxStream<'static, Result<T>>) -> T {
    tokio::time::timeout(PATIENCE, stream.next()).await.expect("something is heard").unwrap().unwrap()
}

/// Writes until a change of a key is reported, and fails if that of another one is before a `Missed`.
async fn missed_and_heard_again(store: &Store, changes: &mut BoxStream<'static, Result<Change>>) {
    assert_eq!(next(changes).await, Change::Missed);
    works(store).await;
    loop {
        if let Change::Put(key) = next(changes).await
            && key == Key::new("works again").unwrap()
        {
            return;
        }
    }
}

#[tokio::test]
async fn a_watch_says_that_it_missed_changes_when_the_connection_was_lost_and_goes_on() {
    let redis = Redis::start();
    let proxy = Proxy::before(redis.port());
    let store = open(&redis.url_at(proxy.port()), "").await.unwrap();
    let mut changes = store.watch("").await.unwrap();
    store.put("k", "v").await.unwrap();
    assert_eq!(next(&mut changes).await, Change::Put(Key::new("k").unwrap()));
    proxy.cut();
    redis.cli(&["SET", "meanwhile", "v"]);
    missed_and_heard_again(&store, &mut changes).await;
}

#[tokio::test]
async fn a_watch_goes_on_after_a_restart_that_forgot_the_setting() {
    let redis = Redis::start();
    let store = open(&redis.url(), "").await.unwrap();
    let mut changes = store.watch("").await.unwrap();
    redis.kill();
    redis.start_again();
    missed_and_heard_again(&store, &mut changes).await;
    assert!(redis.cli(&["CONFIG", "GET", "notify-keyspace-events"]).contains('K'));
}

#[tokio::test]
async fn a_subscriber_learns_that_it_missed_messages_and_hears_the_next() {
    let redis = Redis::start();
    let store = open(&redis.url(), "prefix=app:").await.unwrap();
    let mut messages = store.subscribe("news").await.unwrap();
    store.publish("news", "1").await.unwrap();
    assert_eq!(next(&mut messages).await, Message::Payload("1".into()));
    redis.kill();
    redis.start_again();
    assert_eq!(next(&mut messages).await, Message::Missed);
    works(&store).await;
    store.publish("news", "2").await.unwrap();
    assert_eq!(next(&mut messages).await, Message::Payload("2".into()));
    redis.cli(&["PUBLISH", "app:news", "3"]);
    assert_eq!(next(&mut messages).await, Message::Payload("3".into()));
}

#[tokio::test]
async fn what_nobody_listens_to_any_more_is_unsubscribed_from() {
    let redis = Redis::start();
    let store = open(&redis.url(), "").await.unwrap();
    let stays = store.subscribe("stays").await.unwrap();
    let goes = store.subscribe("goes").await.unwrap();
    assert_eq!(redis.cli(&["PUBSUB", "CHANNELS"]).lines().count(), 2);
    drop(goes);
    eventually(PATIENCE, "it is unsubscribed from", async || redis.cli(&["PUBSUB", "CHANNELS"]) == "stays")
        .await;
    drop(stays);
}

#[tokio::test]
async fn a_server_that_cannot_be_told_to_notify_is_said_to_need_the_setting() {
    let redis = Redis::start();
    redis.cli(&["ACL", "SETUSER", "app", "on", ">pw", "~*", "&*", "+@all", "-config"]);
    let store = open(&format!("redis://app:pw@{}", redis.address()), "").await.unwrap();
    let error = store.watch("").await.map(drop).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.to_string().contains("notify-keyspace-events"), "{error}");
}

#[tokio::test]
async fn settings_of_others_are_kept_when_notifications_are_switched_on() {
    let redis = Redis::builder().config("notify-keyspace-events Ex").start();
    let store = open(&redis.url(), "").await.unwrap();
    let _changes = store.watch("").await.unwrap();
    let setting = redis.cli(&["CONFIG", "GET", "notify-keyspace-events"]);
    let flags = setting.lines().last().unwrap();
    assert!("ExKg$".chars().all(|flag| flags.contains(flag)), "{flags}");
}

#[tokio::test]
async fn what_others_write_is_reported_too() {
    let redis = Redis::start();
    let store = open(&redis.url(), "prefix=app:").await.unwrap();
    let mut changes = store.watch("k").await.unwrap();
    redis.cli(&["SET", "app:k1", "v"]);
    redis.cli(&["SET", "other:k1", "v"]);
    redis.cli(&["APPEND", "app:k1", "w"]);
    redis.cli(&["RENAME", "app:k1", "app:k2"]);
    let key = |name| Key::new(name).unwrap();
    let expected =
        [Change::Put(key("k1")), Change::Put(key("k1")), Change::Deleted(key("k1")), Change::Put(key("k2"))];
    for change in expected {
        assert_eq!(next(&mut changes).await, change);
    }
}
