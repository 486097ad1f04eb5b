//! A Cluster whose slots move and whose nodes fail.

use std::time::Duration;

use commonhold_core::{Change, Key, Store};
use commonhold_redis::RedisBackend;
use commonhold_testkit::{eventually, servers::RedisCluster};
use futures_util::{StreamExt as _, TryStreamExt as _};

use crate::{
    common::{config, open, works},
    sentinel::Counting,
};

/// Keys that lie in all parts of the Cluster.
fn keys(count: usize) -> Vec<Key> {
    (0..count).map(|i| Key::new(format!("k{i}")).unwrap()).collect()
}

async fn fill(store: &Store, count: usize) {
    store.batch_put(keys(count).iter().map(|key| (key, key.clone().into_bytes()))).await.unwrap();
}

async fn assert_filled(store: &Store, count: usize) {
    let values = store.batch_get(&keys(count)).await.unwrap();
    let expected: Vec<_> = keys(count).into_iter().map(|key| Some(key.into_bytes())).collect();
    assert!(values == expected, "a batch has answered something else");
}

#[tokio::test(flavor = "multi_thread")]
async fn slots_that_move_under_load_are_followed_and_nothing_is_lost() {
    let cluster = RedisCluster::start();
    // Patient: whatever takes long here is no fault.
    let store = Store::new(RedisBackend::open(config(&cluster.url())).await.unwrap());
    fill(&store, 1_000).await;
    let counting = Counting::start(store.clone(), "n");
    counting.gains(50).await;
    let slots: Vec<u16> =
        (0..40).map(|i| cluster.slot(&format!("k{i}"))).chain([cluster.slot("n")]).collect();
    std::thread::scope(|scope| {
        let mover = scope.spawn(|| {
            let mut moved = std::collections::BTreeSet::new();
            for slot in slots {
                if moved.insert(slot) {
                    let from = cluster.primary_of(slot).port();
                    let target = cluster.nodes[..3].iter().find(|node| node.port() != from).unwrap();
                    cluster.move_slots([slot], target);
                }
            }
        });
        while !mover.is_finished() {
            tokio::task::block_in_place(|| {
                tokio::runtime::Handle::current().block_on(async {
                    assert_filled(&store, 1_000).await;
                    store
                        .batch_put(keys(50).iter().map(|key| (key, key.clone().into_bytes())))
                        .await
                        .unwrap();
                });
            });
        }
    });
    counting.gains(50).await;
    let (acknowledged, ambiguous) = counting.stop().await;
    assert_eq!(ambiguous, 0, "no connection was lost");
    assert_eq!(store.increment("n", 0).await.unwrap(), acknowledged as i64);
    assert_filled(&store, 1_000).await;
    assert_eq!(store.count("k").await.unwrap(), 1_000);
}

#[tokio::test]
async fn keys_of_a_slot_that_is_on_the_move_are_found_on_both_sides() {
    let cluster = RedisCluster::start();
    let store = open(&cluster.url(), "").await.unwrap();
    let tagged = open(&cluster.url(), "prefix={one}:").await.unwrap();
    let slot = cluster.slot("{one}:");
    tagged.batch_put((0..150).map(|i| (format!("k{i}"), "v"))).await.unwrap();
    let from = cluster.primary_of(slot).port();
    let target = cluster.nodes[..3].iter().find(|node| node.port() != from).unwrap();
    cluster.begin_move(slot, target);
    assert_eq!(cluster.move_keys(slot, target), 100, "some have moved and some have not");
    for i in 0..150 {
        assert_eq!(tagged.get(format!("k{i}")).await.unwrap().unwrap(), "v", "k{i}");
        assert_eq!(tagged.increment(format!("n{i}"), 1).await.unwrap(), 1);
        store.put(format!("{{one}}:k{i}"), "w").await.unwrap();
    }
    // What is not there is asked for on the other side, which does not know the script yet.
    assert_eq!(tagged.batch_delete(["none"]).await.unwrap(), 0);
    while cluster.move_keys(slot, target) > 0 {}
    cluster.finish_move(slot, target);
    assert_eq!(tagged.batch_delete(["n0", "n1", "n2"]).await.unwrap(), 3);
    let all: Vec<Key> = (0..150).map(|i| Key::new(format!("k{i}")).unwrap()).collect();
    assert!(tagged.batch_get(&all).await.unwrap().iter().all(|value| value.as_deref() == Some(b"w")));
    tagged.transaction(|tx| async move { tx.put("k0", "x").await }).await.unwrap();
    assert_eq!(tagged.count("").await.unwrap(), 297);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failover_under_load_is_followed_and_nothing_is_done_twice() {
    let cluster = RedisCluster::start();
    let store = open(&cluster.url(), "").await.unwrap();
    fill(&store, 300).await;
    let counting = Counting::start(store.clone(), "n");
    counting.gains(100).await;
    let slot = cluster.slot("n");
    let old = cluster.primary_of(slot);
    old.kill();
    counting.gains(100).await;
    assert_ne!(cluster.primary_of(slot).port(), old.port());
    old.start_again();
    cluster.wait_until_whole();
    counting.gains(50).await;
    let (acknowledged, ambiguous) = counting.stop().await;
    let counted = store.increment("n", 0).await.unwrap() as u64;
    assert!(counted <= acknowledged + ambiguous, "{counted} of {acknowledged} and {ambiguous}: done twice");
    assert!(counted >= 150, "{counted} of {acknowledged}");
    works(&store).await;
    assert_filled(&store, 300).await;
}

#[tokio::test]
async fn scans_counts_and_clears_reach_every_primary() {
    let cluster = RedisCluster::start();
    let store = open(&cluster.url(), "prefix=app:").await.unwrap();
    fill(&store, 2_000).await;
    let listed: Vec<Key> = store.list_keys("k").unwrap().try_collect().await.unwrap();
    let distinct: std::collections::BTreeSet<&Key> = listed.iter().collect();
    assert_eq!((listed.len(), distinct.len()), (2_000, 2_000));
    let spread = cluster.nodes[..3].iter().all(|node| node.cli(&["DBSIZE"]) != "0");
    assert!(spread, "all lie on one node");
    assert_eq!(store.clear("k1").await.unwrap(), 1_111);
    assert_eq!(store.count("").await.unwrap(), 889);
}

#[tokio::test]
async fn a_scan_during_which_slots_move_says_that_it_is_not_whole() {
    let cluster = RedisCluster::start();
    let store = open(&cluster.url(), "").await.unwrap();
    fill(&store, 5_000).await;
    let mut listed = store.list_keys("").unwrap();
    assert!(listed.try_next().await.unwrap().is_some());
    let slot = cluster.slot("k7");
    let from = cluster.primary_of(slot).port();
    let target = cluster.nodes[..3].iter().find(|node| node.port() != from).unwrap();
    cluster.move_slots([slot], target);
    let error = listed.try_collect::<Vec<_>>().await.unwrap_err();
    assert!(error.to_string().contains("slots"), "{error}");
    assert_eq!(store.count("k").await.unwrap(), 5_000);
}

#[tokio::test]
async fn a_watch_hears_every_primary_and_goes_on_after_a_failover() {
    let cluster = RedisCluster::start();
    let store = open(&cluster.url(), "").await.unwrap();
    let mut changes = store.watch("k").await.unwrap();
    fill(&store, 100).await;
    let mut heard = std::collections::BTreeSet::new();
    while heard.len() < 100 {
        match changes.next().await.unwrap().unwrap() {
            Change::Put(key) => heard.insert(key),
            other => panic!("{other:?}"),
        };
    }
    let slot = cluster.slot("k0");
    let old = cluster.primary_of(slot);
    old.kill();
    let patience = Duration::from_secs(60);
    let missed = async { while changes.next().await.unwrap().unwrap() != Change::Missed {} };
    tokio::time::timeout(patience, missed).await.expect("the watch says that it missed changes");
    eventually(patience, "the key can be written", async || store.put("k0", "again").await.is_ok()).await;
    let again = async {
        while changes.next().await.unwrap().unwrap() != Change::Put(Key::new("k0").unwrap()) {
            let _ = store.put("k0", "again").await;
        }
    };
    tokio::time::timeout(patience, again).await.expect("the watch goes on");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_learns_of_a_failover_while_the_other_shards_are_never_quiet() {
    let cluster = RedisCluster::start();
    let store = open(&cluster.url(), "").await.unwrap();
    // Another store writes: what fails there does not tell the one that watches.
    let other = open(&cluster.url(), "").await.unwrap();
    let mut changes = store.watch("").await.unwrap();
    let old = cluster.primary_of(cluster.slot("k0"));
    let elsewhere = |key: &Key| cluster.primary_of(cluster.slot(&key.to_string())).port() != old.port();
    let busy = keys(100).into_iter().find(elsewhere).unwrap();
    let writer = tokio::spawn({
        let (other, busy) = (other.clone(), busy.clone());
        async move {
            loop {
                let _ = other.put(&busy, "v").await;
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    });
    old.kill();
    let patience = Duration::from_secs(30);
    let missed = async {
        let mut heard = 0;
        loop {
            match changes.next().await.unwrap().unwrap() {
                Change::Missed => break heard,
                _ => heard += 1,
            }
        }
    };
    let heard = tokio::time::timeout(patience, missed).await.expect("the watch says that it missed changes");
    assert!(heard > 0, "the other shard was quiet");
    eventually(patience, "the key can be written", async || other.put("k0", "again").await.is_ok()).await;
    let again = async {
        while changes.next().await.unwrap().unwrap() != Change::Put(Key::new("k0").unwrap()) {
            let _ = other.put("k0", "again").await;
        }
    };
    tokio::time::timeout(patience, again).await.expect("the watch goes on");
    writer.abort();
}

#[tokio::test]
async fn replicas_of_a_cluster_answer_gets_if_asked_to_and_primaries_if_they_are_gone() {
    let cluster = RedisCluster::start();
    let store = open(&cluster.url(), "read_from=replica").await.unwrap();
    fill(&store, 30).await;
    let hits = |nodes: &[commonhold_testkit::servers::Redis]| -> u64 {
        nodes.iter().map(|node| node.info("keyspace_hits").parse::<u64>().unwrap()).sum()
    };
    // The nodes name a replica only once they have heard how far it has come.
    eventually(Duration::from_secs(30), "every replica answers", async || {
        for key in keys(30) {
            store.get(&key).await.unwrap();
        }
        cluster.nodes[3..].iter().all(|node| hits(std::slice::from_ref(node)) > 0)
    })
    .await;
    let before = hits(&cluster.nodes[..3]);
    for key in keys(30) {
        assert!(store.get(&key).await.unwrap().is_some());
    }
    assert_eq!(hits(&cluster.nodes[..3]), before, "the primaries were asked");

    for replica in &cluster.nodes[3..] {
        replica.pause();
    }
    let key = &keys(1)[0];
    assert!(store.get(key).await.unwrap().is_some(), "the primary answers where the replica is too slow");
    for replica in &cluster.nodes[3..] {
        replica.kill();
    }
    for key in keys(30) {
        assert!(store.get(&key).await.unwrap().is_some(), "the primaries answer where no replica does");
    }
}
