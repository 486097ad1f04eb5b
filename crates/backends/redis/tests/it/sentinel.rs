//! A primary that Sentinels watch over, and what becomes of a store when it fails.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU64, Ordering},
};

use commonhold_core::{ErrorKind, Retry, Store};
use commonhold_testkit::servers::RedisSentinel;

use crate::common::{of, open, works};

/// Increments a counter until it is told to stop. How many were acknowledged, and how many may have been done.
pub(crate) struct Counting {
    over: Arc<AtomicBool>,
    acknowledged: Arc<AtomicU64>,
    task: tokio::task::JoinHandle<u64>,
}

impl Counting {
    pub(crate) fn start(store: Store, key: &'static str) -> Self {
        let (over, acknowledged) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (until, count) = (over.clone(), acknowledged.clone());
        let task = tokio::spawn(async move {
            let mut ambiguous = 0;
            while !until.load(Ordering::SeqCst) {
                match store.increment(key, 1).await {
                    Ok(_) => {
                        count.fetch_add(1, Ordering::SeqCst);
                    }
                    Err(error) => {
                        let expected = matches!(
                            error.kind(),
                            ErrorKind::Unavailable | ErrorKind::Timeout | ErrorKind::Overloaded
                        );
                        assert!(expected && error.retry() != Retry::Never, "{error:?}");
                        ambiguous += u64::from(error.retry() == Retry::Ambiguous);
                    }
                }
                tokio::time::sleep(std::time::Duration::from_millis(1)).await;
            }
            ambiguous
        });
        Self { over, acknowledged, task }
    }

    pub(crate) fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Ordering::SeqCst)
    }

    /// Waits until so many more are acknowledged.
    pub(crate) async fn gains(&self, more: u64) {
        let enough = self.acknowledged() + more;
        commonhold_testkit::eventually(
            std::time::Duration::from_secs(60),
            "increments succeed",
            async || {
                assert!(!self.task.is_finished(), "an increment failed as it must not");
                self.acknowledged() >= enough
            },
        )
        .await;
    }

    /// How many were acknowledged, and how many more may have been done.
    pub(crate) async fn stop(self) -> (u64, u64) {
        self.over.store(true, Ordering::SeqCst);
        let ambiguous = self.task.await.unwrap();
        (self.acknowledged.load(Ordering::SeqCst), ambiguous)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failover_under_load_is_followed_and_nothing_is_done_twice() {
    let group = RedisSentinel::start();
    let store = open(&group.url(), "prefix=app:").await.unwrap();
    let counting = Counting::start(store.clone(), "n");
    counting.gains(200).await;
    let old = group.primary();
    old.kill();
    let new = group.wait_for_failover_from(old);
    works(&store).await;
    counting.gains(200).await;
    // The old primary comes back as a replica, which must not be taken for the primary again.
    old.start_again();
    counting.gains(200).await;
    let (acknowledged, ambiguous) = counting.stop().await;
    let counted: u64 = new.cli(&["GET", "app:n"]).parse().unwrap();
    // Replication is asynchronous: what the old primary acknowledged last may not have reached the new one.
    assert!(counted <= acknowledged + ambiguous, "{counted} of {acknowledged} and {ambiguous}: done twice");
    assert!(counted >= 400, "{counted} of {acknowledged}");
}

#[tokio::test]
async fn a_primary_that_is_demoted_while_connected_is_left() {
    let group = RedisSentinel::start();
    let store = open(&group.url(), "").await.unwrap();
    store.put("k", "v").await.unwrap();
    let old = group.primary();
    group.sentinels[0].cli(&["SENTINEL", "FAILOVER", "mymaster"]);
    let new = group.wait_for_failover_from(old);
    // Until then it takes writes, and loses them.
    let patience = std::time::Duration::from_secs(30);
    commonhold_testkit::eventually(patience, "the old primary is a replica", async || {
        old.info("role") == "slave"
    })
    .await;
    works(&store).await;
    assert_eq!(new.cli(&["GET", "works again"]), "yes");
    store.transaction(|tx| async move { tx.put("k", "w").await }).await.unwrap();
    assert_eq!(new.cli(&["GET", "k"]), "w");
}

#[tokio::test]
async fn one_sentinel_is_enough_and_an_unknown_service_is_named() {
    let group = RedisSentinel::start();
    group.sentinels[0].kill();
    group.sentinels[1].pause();
    let store = open(&group.url(), "").await.unwrap();
    works(&store).await;
    group.sentinels[1].resume();
    let url = group.url().replace("mymaster", "elsewhere");
    let error = open(&url, "abort_on_connect_fail=true").await.unwrap_err();
    assert_eq!(of(&error), (ErrorKind::Unavailable, Retry::Safe));
    assert!(error.to_string().contains("elsewhere"), "{error}");
}

#[tokio::test]
async fn replicas_that_sentinels_know_answer_gets_if_asked_to() {
    let group = RedisSentinel::start();
    let store = open(&group.url(), "read_from=replica").await.unwrap();
    store.put("k", "v").await.unwrap();
    commonhold_testkit::eventually(std::time::Duration::from_secs(10), "a replica has it", async || {
        store.get("k").await.unwrap().is_some()
    })
    .await;
    assert_eq!(group.primary().info("keyspace_hits"), "0");
}
