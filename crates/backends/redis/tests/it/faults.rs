//! Servers that are killed, paused and full, and connections that are cut: which errors appear, that nothing is
//! lost or done twice, and that it works again afterwards.

use std::time::Duration;

use commonhold_core::{Error, ErrorKind, Key, Retry, Store, layers};
use commonhold_testkit::{
    eventually,
    history::{History, Load, record},
    proxy::{Mode, Proxy},
    servers::Redis,
};

use crate::common::{of, open, works};

/// That no failure was of another kind, and that the operations agree with one copy of the data.
fn assert_sound(history: &History) {
    for error in &history.errors {
        let expected = matches!(
            of(error),
            (ErrorKind::Unavailable | ErrorKind::Timeout, Retry::Safe | Retry::Ambiguous)
        );
        assert!(expected, "{error:?}");
    }
    history.assert_linearizable();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_killed_and_restarted_under_load_loses_nothing_that_it_acknowledged() {
    let redis = Redis::builder().append_only().start();
    let store = open(&redis.url(), "").await.unwrap();
    let history = record(&[store], &Load::default(), async |progress| {
        for _ in 0..3 {
            progress.gains(300).await;
            redis.kill();
            redis.start_again();
        }
        progress.gains(300).await;
    })
    .await;
    assert!(!history.errors.is_empty(), "the load met no fault");
    assert_sound(&history);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_paused_past_the_timeouts_works_when_it_goes_on() {
    let redis = Redis::builder().append_only().start();
    let store = open(&redis.url(), "").await.unwrap();
    let history = record(std::slice::from_ref(&store), &Load::default(), async |progress| {
        progress.gains(300).await;
        redis.pause();
        let read = store.get("k").await.unwrap_err();
        assert_eq!(of(&read), (ErrorKind::Timeout, Retry::Safe), "{read}");
        redis.resume();
        progress.gains(300).await;
    })
    .await;
    assert_sound(&history);
}

#[tokio::test(flavor = "multi_thread")]
async fn histories_through_cut_and_silent_connections_are_linearizable() {
    let redis = Redis::start();
    let proxy = Proxy::before(redis.port());
    let store = open(&redis.url_at(proxy.port()), "").await.unwrap();
    let history = record(&[store], &Load::default(), async |progress| {
        for mode in [
            Mode::CutRequest(0),
            Mode::CutRequest(20),
            Mode::CutReply(0),
            Mode::CutReply(3),
            Mode::LoseReplies,
            Mode::BlackHole,
            Mode::Refuse,
            Mode::Close,
        ] {
            progress.gains(150).await;
            proxy.set(mode);
            if !matches!(mode, Mode::CutRequest(_) | Mode::CutReply(_)) {
                tokio::time::sleep(Duration::from_millis(700)).await;
                proxy.set(Mode::Pass);
            }
            progress.gains(50).await;
        }
    })
    .await;
    assert!(history.unknown() > 0, "no reply was lost");
    assert_sound(&history);
}

#[tokio::test]
async fn a_write_whose_reply_is_lost_is_ambiguous_and_done_once() {
    let redis = Redis::start();
    let proxy = Proxy::before(redis.port());
    let plain = open(&redis.url_at(proxy.port()), "").await.unwrap();
    let retrying = plain.clone().layer(layers::Retry::default());
    for (count, store) in [plain, retrying].iter().enumerate() {
        // The scripts are known by then: one request, one reply.
        store.increment("warm", 1).await.unwrap();
        assert!(!store.compare_and_swap("warm", Some("v"), "w").await.unwrap());
        proxy.set(Mode::CutReply(0));
        let error = store.increment("n", 1).await.unwrap_err();
        assert_eq!(of(&error), (ErrorKind::Unavailable, Retry::Ambiguous), "{error}");
        assert_eq!(redis.cli(&["GET", "n"]), (count + 1).to_string());
        works(store).await;
        assert_eq!(redis.cli(&["GET", "n"]), (count + 1).to_string(), "it was done again later");

        proxy.set(Mode::CutReply(0));
        let error = store.put("k", "v").await.unwrap_err();
        assert_eq!(error.retry(), Retry::Ambiguous, "{error}");
        works(store).await;

        proxy.set(Mode::CutReply(0));
        let swapped = store.compare_and_swap("k", Some("v"), "w").await;
        assert_eq!(swapped.unwrap_err().retry(), Retry::Ambiguous);
        assert_eq!(redis.cli(&["GET", "k"]), "w");
        works(store).await;
        store.put("k", "v").await.unwrap();
    }
}

#[tokio::test]
async fn a_read_whose_reply_is_lost_may_be_repeated() {
    let redis = Redis::start();
    let proxy = Proxy::before(redis.port());
    let store = open(&redis.url_at(proxy.port()), "").await.unwrap();
    store.put("k", "v").await.unwrap();
    proxy.set(Mode::CutReply(0));
    let error = store.get("k").await.unwrap_err();
    assert_eq!(of(&error), (ErrorKind::Unavailable, Retry::Safe), "{error}");
    let retrying = store.layer(layers::Retry::default());
    proxy.set(Mode::CutReply(2));
    assert_eq!(retrying.get("k").await.unwrap().unwrap(), "v");
}

#[tokio::test]
async fn a_server_that_is_away_refuses_safely_and_at_once() {
    let redis = Redis::start();
    let store = open(&redis.url(), "").await.unwrap();
    redis.kill();
    // The first may still meet the old connection.
    let _ = store.put("k", "v").await;
    for _ in 0..3 {
        let error = store.put("k", "v").await.unwrap_err();
        assert_eq!(of(&error), (ErrorKind::Unavailable, Retry::Safe), "{error}");
        let error = store.increment("n", 1).await.unwrap_err();
        assert_eq!(of(&error), (ErrorKind::Unavailable, Retry::Safe), "{error}");
    }
    redis.start_again();
    works(&store).await;
}

/// Writes until not even the smallest value is taken, and returns how many large and small ones were and why.
async fn fill(store: &Store) -> (u64, Error) {
    let (mut written, mut last) = (0, None);
    for size in [1 << 20, 1 << 14, 1 << 8, 1] {
        let mut refused = 0;
        // What the refused request itself took of the memory is free again a moment later.
        while refused < 20 {
            match store.put(format!("k{written}"), vec![b'v'; size]).await {
                Ok(()) => (written, refused) = (written + 1, 0),
                Err(error) => (last, refused) = (Some(error), refused + 1),
            }
        }
    }
    (written, last.unwrap())
}

#[tokio::test]
async fn a_full_server_refuses_writes_and_lets_read_and_delete() {
    let redis = Redis::builder().max_memory(20 << 20).start();
    let store = open(&redis.url(), "").await.unwrap();
    let (written, error) = fill(&store).await;
    assert!(written > 0);
    assert_eq!(of(&error), (ErrorKind::Overloaded, Retry::Safe), "{error}");
    let refused = [
        store.increment("n", 1).await.map(drop),
        store.batch_put([("a", "1"), ("b", "2")]).await,
        store.set_if_not_exists("c", "1").await.map(drop),
        store.compare_and_swap("k0", Some(vec![b'v'; 1 << 20]), "small").await.map(drop),
        store.put_with_ttl("d", "1", Duration::from_secs(60)).await,
    ];
    for error in refused.map(Result::unwrap_err) {
        assert_eq!(of(&error), (ErrorKind::Overloaded, Retry::Safe), "{error}");
    }
    assert_eq!(store.get("k0").await.unwrap().unwrap().len(), 1 << 20);
    assert!(store.health_check().await.unwrap().warnings.iter().any(|warning| warning.contains("full")));
    assert_eq!(store.count("").await.unwrap(), written);
    assert_eq!(store.batch_delete(["k1", "k2", "nothing"]).await.unwrap(), 2);
    assert_eq!(store.clear("k").await.unwrap(), written - 2);
    works(&store).await;
}

/// A batch whose deletion comes before its put, on a server that takes the deletion alone.
#[tokio::test]
async fn a_batch_on_a_full_server_is_not_carried_out_by_half() {
    use commonhold_core::{Condition, PutOptions, Write};

    let redis = Redis::builder().max_memory(20 << 20).start();
    let store = open(&redis.url(), "").await.unwrap();
    store.put("there", "x").await.unwrap();
    fill(&store).await;
    let delete = Write::delete(Key::new("there").unwrap());
    let put = |condition| Write::Put {
        key: Key::new("new").unwrap(),
        value: "v".into(),
        options: PutOptions::default().when(condition),
    };
    for condition in [Condition::Always, Condition::Absent] {
        let error = store.write_batch(vec![delete.clone(), put(condition)]).await.unwrap_err();
        assert_eq!(of(&error), (ErrorKind::Overloaded, Retry::Safe), "{error}");
        assert!(store.contains("there").await.unwrap(), "the half of a batch was carried out");
    }
}

#[tokio::test]
async fn a_value_that_the_server_does_not_take_is_an_error_and_others_go_on() {
    let redis = Redis::builder().config("proto-max-bulk-len 1mb").start();
    let store = open(&redis.url(), "").await.unwrap();
    let error = store.put("k", vec![b'v'; 2 << 20]).await.unwrap_err();
    // The server says so and closes the connection, which may be noticed first.
    assert!(
        matches!(
            of(&error),
            (ErrorKind::TooLarge, Retry::Never) | (ErrorKind::Unavailable, Retry::Ambiguous)
        ),
        "{error:?}"
    );
    works(&store).await;
    assert_eq!(store.get("k").await.unwrap(), None);
    let limited = open(&redis.url(), "max_value=1MiB").await.unwrap();
    let error = limited.put("k", vec![b'v'; 2 << 20]).await.unwrap_err();
    assert_eq!(of(&error), (ErrorKind::TooLarge, Retry::Never));
}

#[tokio::test]
async fn an_exhausted_pool_refuses_safely_and_recovers() {
    let redis = Redis::start();
    let store = open(&redis.url(), "max_connections=1").await.unwrap();
    let mut holder = store.backend().begin().await.unwrap();
    let key = Key::new("k").unwrap();
    assert_eq!(holder.get(&key).await.unwrap(), None);
    let mut waiting = store.backend().begin().await.unwrap();
    let error = waiting.get(&key).await.unwrap_err();
    assert_eq!(of(&error), (ErrorKind::Overloaded, Retry::Safe), "{error}");
    assert!(error.to_string().contains("max_connections"), "{error}");
    // What needs no connection of its own goes on.
    store.put("k", "v").await.unwrap();
    drop(holder);
    assert!(waiting.get(&key).await.unwrap().is_some());
    waiting.commit().await.unwrap();
}

#[tokio::test]
async fn a_connection_comes_back_to_the_pool_with_nothing_watched() {
    let redis = Redis::start();
    let store = open(&redis.url(), "max_connections=1").await.unwrap();
    let (watched, other) = (Key::new("watched").unwrap(), Key::new("other").unwrap());
    let mut dropped = store.backend().begin().await.unwrap();
    dropped.get(&watched).await.unwrap();
    drop(dropped);
    let mut next = store.backend().begin().await.unwrap();
    assert_eq!(next.get(&other).await.unwrap(), None);
    store.put("watched", "changed").await.unwrap();
    next.commit().await.unwrap();
}

#[tokio::test]
async fn a_transaction_whose_connection_is_lost_writes_nothing_and_the_next_one_goes_through() {
    let redis = Redis::start();
    let proxy = Proxy::before(redis.port());
    let store = open(&redis.url_at(proxy.port()), "").await.unwrap();
    let mut transaction = store.backend().begin().await.unwrap();
    let key = Key::new("k").unwrap();
    transaction.get(&key).await.unwrap();
    assert!(transaction.put(&key, "v".into(), Default::default()).await.unwrap().is_yes());
    proxy.cut();
    let error = transaction.commit().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    assert_eq!(redis.cli(&["EXISTS", "k"]), "0");
    works(&store).await;
    store.transaction(|tx| async move { tx.put("k", "v").await }).await.unwrap();
    assert_eq!(redis.cli(&["GET", "k"]), "v");
}

#[tokio::test]
async fn scripts_that_the_server_has_forgotten_are_loaded_again() {
    let redis = Redis::start();
    let store = open(&redis.url(), "").await.unwrap();
    for sum in 1..=3 {
        assert_eq!(store.increment("n", 1).await.unwrap(), sum);
        redis.cli(&["SCRIPT", "FLUSH"]);
        assert!(store.get_entry("n").await.unwrap().is_some());
        redis.cli(&["SCRIPT", "FLUSH"]);
        assert!(store.compare_and_swap("n", Some(sum.to_string()), sum.to_string()).await.unwrap());
        store.batch_put([("a", "1"), ("b", "2")]).await.unwrap();
        redis.cli(&["SCRIPT", "FLUSH"]);
        assert_eq!(store.batch_delete(["a", "b", "c", "a"]).await.unwrap(), 2);
    }
}

#[tokio::test]
async fn concurrent_calls_share_one_reconnect() {
    let redis = Redis::start();
    let proxy = Proxy::before(redis.port());
    let store = open(&redis.url_at(proxy.port()), "").await.unwrap();
    store.put("k", "v").await.unwrap();
    proxy.cut();
    eventually(Duration::from_secs(10), "the cut is noticed", async || store.get("k").await.is_err()).await;
    let before = proxy.traffic().connections;
    let calls: Vec<_> = (0..64).map(|_| tokio::spawn(get(store.clone()))).collect();
    for call in calls {
        assert!(call.await.unwrap());
    }
    assert_eq!(proxy.traffic().connections, before + 1);
}

async fn get(store: Store) -> bool {
    store.get_entry("k").await.is_ok()
}
