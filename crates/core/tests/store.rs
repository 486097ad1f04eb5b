//! What the handle promises beyond what its backend does.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic, missing_docs)]

use std::time::Duration;

use commonhold_core::{
    Answer, ErrorKind, MemoryBackend, Store, Text,
    layers::{Call, Operation, Outcome, Uniform},
};
use futures_util::future::try_join_all;

/// Lets a commit take as long as on a disk.
#[derive(Debug)]
struct SlowCommit;

impl Uniform for SlowCommit {
    fn once<'a, T: Outcome>(
        &'a self,
        call: Call<'a>,
        attempt: impl FnOnce() -> Answer<'a, T> + Send + 'a,
    ) -> Answer<'a, T> {
        if call.operation != Operation::Commit {
            return attempt();
        }
        Answer::later(async move {
            tokio::time::sleep(Duration::from_millis(4)).await;
            attempt().await
        })
    }
}

#[tokio::test(start_paused = true)]
async fn sixty_four_tasks_in_transactions_on_one_key_all_have_their_turn() {
    fastrand::seed(7);
    let store = &Store::new(MemoryBackend::new()).layer(SlowCommit);
    try_join_all((0..64).map(|_| async move {
        for _ in 0..20 {
            store
                .transaction(|tx| async move {
                    let count: i64 = tx.get_as("count", Text).await?.unwrap_or(0);
                    tx.put("count", (count + 1).to_string()).await
                })
                .await?;
        }
        Ok::<_, commonhold_core::Error>(())
    }))
    .await
    .unwrap();
    assert_eq!(store.get("count").await.unwrap().unwrap(), "1280");
}

#[tokio::test]
async fn a_counter_refuses_a_wrong_time_to_live_whether_it_is_there_or_not() {
    let store = Store::new(MemoryBackend::new());
    for _ in 0..2 {
        let error = store.increment_with_ttl("count", 1, Duration::ZERO).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        store.increment("count", 1).await.unwrap();
    }
}
