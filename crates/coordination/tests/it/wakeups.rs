//! What those who wait are told of what is granted to them.

use std::time::Duration;

use commonhold_coordination::Locks;
use commonhold_testkit::{
    eventually,
    servers::{Redis, shared::redis_url, unique},
};

use crate::common::PATIENCE;

const TTL: Duration = Duration::from_secs(30);

/// Who waits in another process is told once what a release grants it, where it hears, also behind a prefix and a
/// namespace. By the script, or by who released where no script is run.
async fn tells_once(options: &str) {
    let prefix = format!("{}:", unique("p"));
    let url = format!("{}?prefix={prefix}{options}", redis_url());
    let open = async || Locks::new(commonhold::open(&url).await.unwrap().namespace("n").unwrap()).unwrap();
    let (one, other) = (open().await, open().await);
    let first = one.try_acquire("l", TTL).await.unwrap().unwrap();
    let waiting = tokio::spawn(async move { other.acquire("l", TTL, PATIENCE).await });
    let client = redis::Client::open(redis_url()).unwrap();
    let mut raw = client.get_connection().unwrap();
    let mut channels = || -> Vec<String> {
        redis::cmd("PUBSUB").arg("CHANNELS").arg(format!("{prefix}*")).query(&mut raw).unwrap()
    };
    eventually(PATIENCE, "it hears", async || channels().len() == 1).await;
    let channel = channels().remove(0);
    eventually(PATIENCE, "it stands in line", async || one.show("l").await.unwrap().waiting == 1).await;
    let mut listener = client.get_connection().unwrap();
    let mut listening = listener.as_pubsub();
    listening.set_read_timeout(Some(PATIENCE)).unwrap();
    listening.psubscribe(format!("{prefix}*")).unwrap();

    assert!(first.release().await.unwrap());
    let second = waiting.await.unwrap().unwrap().unwrap();
    redis::cmd("PUBLISH").arg(format!("{prefix}end")).arg("").exec(&mut raw).unwrap();
    let message = listening.get_message().unwrap();
    assert_eq!(message.get_channel_name(), channel);
    assert!(message.get_payload::<String>().unwrap().ends_with(&format!(" {}", second.token())));
    assert_eq!(listening.get_message().unwrap().get_channel_name(), format!("{prefix}end"));
}

#[tokio::test]
async fn who_waits_in_another_process_is_told_once() {
    tells_once("").await;
    tells_once("&ttl=1h").await;
}

#[tokio::test]
async fn a_grant_that_the_server_does_not_write_is_told_to_nobody() {
    let redis = Redis::start();
    let open = async || {
        let locks = Locks::new(commonhold::open(&redis.url()).await.unwrap()).unwrap();
        (locks.semaphore("s", 3).unwrap(), locks)
    };
    // Two of three are granted by the script's long way, all of them by a short one.
    for permits in [2, 3] {
        let ((one, _), (other, others)) = (open().await, open().await);
        let first = one.try_acquire(permits, TTL).await.unwrap().unwrap();
        let waiting = tokio::spawn(async move { other.acquire(permits, TTL, PATIENCE).await });
        eventually(PATIENCE, "it stands in line", async || one.show().await.unwrap().waiting == 1).await;
        let mut raw = redis::Client::open(redis.url()).unwrap().get_connection().unwrap();
        let mut listening = raw.as_pubsub();
        listening.set_read_timeout(Some(PATIENCE)).unwrap();
        listening.psubscribe("*").unwrap();

        redis.cli(&["CONFIG", "SET", "maxmemory", "1"]);
        assert!(first.release().await.is_err());
        redis.cli(&["PUBLISH", "end", ""]);
        assert_eq!(listening.get_message().unwrap().get_channel_name(), "end");
        redis.cli(&["CONFIG", "SET", "maxmemory", "0"]);
        waiting.abort();
        assert!(waiting.await.unwrap_err().is_cancelled());
        others.settled().await;
        redis.cli(&["FLUSHALL"]);
    }
}
