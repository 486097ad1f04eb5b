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
async fn a_channel_that_is_forbidden_does_not_silence_the_others_and_is_heard_once_it_is_allowed() {
    let redis = Redis::start();
    redis.cli(&["ACL", "SETUSER", "app", "on", ">pw", "~*", "&*", "+@all"]);
    let store = open(&format!("redis://app:pw@{}", redis.address()), "").await.unwrap();
    let mut kept = store.subscribe("kept").await.unwrap();
    let mut taken = store.subscribe("taken").await.unwrap();
    // The server closes connections that are subscribed to what is forbidden from now on.
    redis.cli(&["ACL", "SETUSER", "app", "resetchannels", "&kept"]);
    assert_eq!(next(&mut kept).await, Message::Missed);
    assert_eq!(next(&mut taken).await, Message::Missed);
    redis.cli(&["PUBLISH", "kept", "1"]);
    assert_eq!(next(&mut kept).await, Message::Payload("1".into()));
    let error = store.subscribe("taken").await.map(drop).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unauthorized, "{error}");

    redis.cli(&["ACL", "SETUSER", "app", "&taken"]);
    while next(&mut taken).await != Message::Missed {}
    redis.cli(&["PUBLISH", "taken", "2"]);
    assert_eq!(next(&mut taken).await, Message::Payload("2".into()));
    redis.cli(&["PUBLISH", "kept", "3"]);
    assert_eq!(next(&mut kept).await, Message::Payload("3".into()));
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
async fn a_watch_switches_notifications_on_again_that_somebody_switched_off_and_says_that_it_missed_changes()
{
    let redis = Redis::start();
    let store = open(&redis.url(), "").await.unwrap();
    let mut changes = store.watch("").await.unwrap();
    let mut messages = store.subscribe("news").await.unwrap();
    redis.cli(&["CONFIG", "SET", "notify-keyspace-events", "Ex"]);
    redis.cli(&["SET", "meanwhile", "v"]);
    missed_and_heard_again(&store, &mut changes).await;
    let setting = redis.cli(&["CONFIG", "GET", "notify-keyspace-events"]);
    assert!(setting.lines().last().unwrap().contains('x'), "{setting}");
    store.publish("news", "1").await.unwrap();
    assert_eq!(next(&mut messages).await, Message::Payload("1".into()), "no message was missed");
}

#[tokio::test]
async fn a_watch_says_that_it_missed_changes_once_somebody_else_switches_notifications_on_again() {
    let redis = Redis::builder().config("notify-keyspace-events Kg$").start();
    redis.cli(&["ACL", "SETUSER", "app", "on", ">pw", "~*", "&*", "+@all", "-config|set"]);
    let store = open(&format!("redis://app:pw@{}", redis.address()), "").await.unwrap();
    let mut changes = store.watch("").await.unwrap();
    redis.cli(&["CONFIG", "SET", "notify-keyspace-events", ""]);
    redis.cli(&["SET", "meanwhile", "v"]);
    let tried = async || redis.cli(&["INFO", "errorstats"]).contains("NOPERM");
    eventually(PATIENCE, "it is switched on in vain", tried).await;
    redis.cli(&["CONFIG", "SET", "notify-keyspace-events", "Kg$"]);
    missed_and_heard_again(&store, &mut changes).await;
}

#[tokio::test]
async fn a_watch_leaves_a_server_that_is_no_longer_the_primary() {
    let (first, second) = (Redis::start(), Redis::start());
    second.follow(&first);
    let url = format!("redis://{},{}", first.address(), second.address());
    let store = open(&url, "").await.unwrap();
    let mut changes = store.watch("").await.unwrap();
    second.cli(&["REPLICAOF", "NO", "ONE"]);
    // It follows nobody who is there, and so hears of no change.
    first.cli(&["REPLICAOF", "127.0.0.1", "1"]);
    second.cli(&["SET", "meanwhile", "v"]);
    assert_eq!(next(&mut changes).await, Change::Missed);
    second.cli(&["SET", "k", "v"]);
    assert_eq!(next(&mut changes).await, Change::Put(Key::new("k").unwrap()));
}

#[tokio::test]
async fn changes_of_what_is_no_value_are_not_reported() {
    let redis = Redis::builder().config("notify-keyspace-events KA").start();
    let store = open(&redis.url(), "").await.unwrap();
    let mut changes = store.watch("").await.unwrap();
    for command in
        ["RPUSH list v w", "LPOP list", "HSET hash f v", "SADD set v", "ZADD zset 1 v", "XADD stream * f v"]
    {
        run(&redis, command);
    }
    run(&redis, "SET k v");
    assert_eq!(next(&mut changes).await, Change::Put(Key::new("k").unwrap()));
}

#[tokio::test]
async fn every_command_that_changes_a_value_is_reported() {
    let redis = Redis::start();
    let store = open(&redis.url(), "").await.unwrap();
    let mut changes = store.watch("").await.unwrap();
    let put = |key| Change::Put(Key::new(key).unwrap());
    let deleted = |key| Change::Deleted(Key::new(key).unwrap());
    for (command, expected) in [
        ("SET k 1", put("k")),
        ("GETSET k 1", put("k")),
        ("MSET k 1", put("k")),
        ("INCR k", put("k")),
        ("DECRBY k 1", put("k")),
        ("INCRBYFLOAT k 0.5", put("k")),
        ("APPEND k 1", put("k")),
        ("SETRANGE k 0 1", put("k")),
        ("SETBIT k 0 1", put("k")),
        ("BITFIELD k SET u8 0 1", put("k")),
        ("BITOP NOT k k", put("k")),
        ("EXPIRE k 1000", put("k")),
        ("PERSIST k", put("k")),
        ("GETEX k EX 1000", put("k")),
        ("PFADD hll v", put("hll")),
        ("COPY k copy", put("copy")),
        ("GETDEL copy", deleted("copy")),
        ("MOVE k 1", deleted("k")),
        ("-n 1 MOVE k 0", put("k")),
        ("EXPIRE k -1", deleted("k")),
    ] {
        run(&redis, command);
        assert_eq!(next(&mut changes).await, expected, "{command}");
    }
}

fn run(redis: &Redis, command: &str) {
    redis.cli(&command.split(' ').collect::<Vec<_>>());
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
