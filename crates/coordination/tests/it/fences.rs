//! Fenced writes.

use commonhold::{Condition, ErrorKind, Key, PutOptions, Write};
use commonhold_coordination::{Fence, Fenced};
use commonhold_testkit::{
    eventually,
    proxy::{Mode, Proxy},
    servers::Redis,
};

use crate::common::{PATIENCE, Place};

async fn check(place: Place) {
    let store = place.open().await;
    let fenced = |token| Fenced::new(store.clone(), Fence::new(token)).unwrap();
    let (old, new) = (fenced(1), fenced(2));
    old.put("k", "old").await.unwrap();
    old.put("k", "old again").await.unwrap();
    assert!(new.compare_and_swap("k", Some("old again"), "new").await.unwrap());
    assert!(!new.compare_and_swap("k", Some("old again"), "newer").await.unwrap());
    assert!(!new.compare_and_swap("k", None::<&str>, "newer").await.unwrap());
    let refused = |error: commonhold::Error| assert_eq!(error.kind(), ErrorKind::Fenced, "{error}");
    refused(old.put("k", "late").await.unwrap_err());
    refused(old.delete("k").await.unwrap_err());
    refused(old.compare_and_swap("k", Some("new"), "late").await.unwrap_err());
    refused(old.compare_and_swap("k", Some("other"), "late").await.unwrap_err());
    let key = |key: &str| Key::new(key).unwrap();
    let batch = vec![Write::put(key("other"), "late"), Write::put(key("k"), "late")];
    refused(old.write_batch(batch).await.unwrap_err());
    assert_eq!(store.get("k").await.unwrap().unwrap(), "new");
    assert_eq!(store.get("other").await.unwrap(), None, "all of a batch or nothing");
    assert!(new.delete("k").await.unwrap());
    assert!(!new.delete("k").await.unwrap());
    refused(old.put("k", "late").await.unwrap_err());
    assert_eq!(store.get("k").await.unwrap(), None, "a fence outlives its key");
    let absent = PutOptions::default().when(Condition::Present);
    let batch =
        vec![Write::put(key("one"), "1"), Write::Put { key: key("two"), value: "2".into(), options: absent }];
    let error = new.write_batch(batch).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict);
    assert_eq!(store.get("one").await.unwrap(), None);
    assert_eq!(store.get("fence:k").await.unwrap().unwrap(), "2");
    old.put("read", "old").await.unwrap();
    assert_eq!(new.get("read").await.unwrap().unwrap(), "old");
    refused(old.put("read", "late").await.unwrap_err());
    refused(old.get("read").await.unwrap_err());
    assert_eq!(new.get("read").await.unwrap().unwrap(), "old");
}

#[tokio::test]
async fn an_older_fence_is_refused_in_memory() {
    check(Place::memory()).await;
}

#[tokio::test]
async fn an_older_fence_is_refused_on_disk() {
    check(Place::disk()).await;
}

#[tokio::test]
async fn an_older_fence_is_refused_by_redis() {
    check(Place::redis()).await;
}

#[tokio::test]
async fn an_older_fence_is_refused_by_a_cluster_whose_keys_lie_together() {
    check(Place::cluster()).await;
}

#[tokio::test]
async fn an_older_fence_is_refused_by_postgres() {
    check(Place::postgres()).await;
}

#[tokio::test]
async fn a_store_that_cannot_check_fences_says_so() {
    let error = Fenced::new(Place::memcached().open().await, Fence::new(1)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
}

/// Writers with rising fences, all at once: what is refused is older than what is there, and what is there last is of
/// the newest that was not refused.
async fn race(place: Place) {
    let store = place.open().await;
    let mut writers = tokio::task::JoinSet::new();
    for token in 1..=20_u64 {
        let fenced = Fenced::new(store.clone(), Fence::new(token)).unwrap();
        writers.spawn(async move {
            for _ in 0..5 {
                match fenced.put("k", token.to_string()).await {
                    Ok(()) => {}
                    Err(error) => {
                        assert_eq!(error.kind(), ErrorKind::Fenced, "{error}");
                        return false;
                    }
                }
            }
            true
        });
    }
    writers.join_all().await;
    let value = store.get("k").await.unwrap().unwrap();
    assert_eq!(value, "20");
    assert_eq!(store.get("fence:k").await.unwrap().unwrap(), "20");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_newest_fence_wins_every_race() {
    race(Place::memory()).await;
    race(Place::redis()).await;
    race(Place::postgres()).await;
}

#[tokio::test]
async fn who_reads_under_a_fence_sees_what_was_written_before_also_where_replicas_answer_reads() {
    let primary = Redis::start();
    let proxy = Proxy::before(primary.port());
    let replica = Redis::builder().config(&format!("replicaof 127.0.0.1 {}", proxy.port())).start();
    let url = format!("redis://{},{}?read_from=replica", primary.address(), replica.address());
    let fenced = async |token| Fenced::new(commonhold::open(&url).await.unwrap(), Fence::new(token)).unwrap();
    let (first, second) = (fenced(1).await, fenced(2).await);
    first.put("n", "1").await.unwrap();
    eventually(PATIENCE, "the replica has it", async || replica.cli(&["GET", "n"]) == "1").await;
    proxy.set(Mode::BlackHole);
    first.put("n", "2").await.unwrap();
    assert_eq!(second.get("n").await.unwrap().unwrap(), "2");
    second.put("n", "3").await.unwrap();
    assert!(fenced(3).await.compare_and_swap("n", Some("3"), "4").await.unwrap());
}

#[tokio::test]
async fn a_fence_overwrites_no_value_of_others() {
    let store = Place::memory().open().await;
    store.put("fence:x", "5").await.unwrap();
    let error = Fenced::new(store, Fence::new(9)).unwrap().put("fence:x", "6").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
}
