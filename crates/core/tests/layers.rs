//! What each layer does when calls fail, hang, pile up or are dropped.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic, missing_docs)]

use std::{sync::Arc, time::Duration};

use commonhold_core::{
    Change, ErrorKind, Key, MemoryBackend, Prefix, Retry as Again, Scan, StateBackend, Store,
    layers::{
        ConcurrencyLimit, Fault, FaultPlan, Layer, Metrics, Namespace, Operation, Retry, Timeout, Trace,
    },
};
use futures_util::{FutureExt as _, StreamExt as _, TryStreamExt as _};
use tokio::time::Instant;

fn faulty() -> (FaultPlan, Store) {
    let plan = FaultPlan::new();
    (plan.clone(), Store::new(MemoryBackend::new()).layer(Fault::new(&plan)))
}

mod retry {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn repeats_what_had_no_effect_and_counts_it() {
        let (plan, store) = faulty();
        plan.refuse(Operation::Put);
        plan.refuse(Operation::Put);
        let store = store.layer(Retry::default());
        store.put("key", "value").await.unwrap();
        assert_eq!(store.stats().await.unwrap().retries, 2);
    }

    #[tokio::test(start_paused = true)]
    async fn gives_up_after_its_attempts_with_the_last_error() {
        let (plan, store) = faulty();
        (0..5).for_each(|_| plan.refuse(Operation::Get));
        let error = store.layer(Retry::default().attempts(3)).get("key").await.unwrap_err();
        assert_eq!((error.kind(), error.retry()), (ErrorKind::Unavailable, Again::Safe));
        assert_eq!(plan.pending(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn never_repeats_a_write_whose_reply_was_lost() {
        for operation in [Operation::Put, Operation::Transact, Operation::Delete, Operation::WriteMany] {
            let (plan, store) = faulty();
            store.put("key", "0").await.unwrap();
            let store = store.layer(Retry::default());
            plan.lose_reply(operation);
            let error = match operation {
                Operation::Put => store.put("key", "1").await.unwrap_err(),
                Operation::Transact => store.increment("key", 1).await.unwrap_err(),
                Operation::Delete => store.delete("key").await.unwrap_err(),
                _ => store.batch_put([("key", "1")]).await.unwrap_err(),
            };
            assert_eq!(error.retry(), Again::Ambiguous, "{operation}");
            // Once: the counter is 1, not 2.
            let after = store.get("key").await.unwrap();
            assert_eq!(
                after.as_deref(),
                (operation != Operation::Delete).then_some(&b"1"[..]),
                "{operation}"
            );
        }
    }

    #[tokio::test(start_paused = true)]
    async fn repeats_a_read_whose_reply_was_lost() {
        let (plan, store) = faulty();
        store.put("key", "value").await.unwrap();
        plan.lose_reply(Operation::Get);
        assert!(store.layer(Retry::default()).get("key").await.unwrap().is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn does_not_repeat_what_would_fail_again() {
        let (plan, store) = faulty();
        store.put("key", "text").await.unwrap();
        let store = store.layer(Retry::default());
        plan.refuse(Operation::Delete);
        assert_eq!(store.increment("key", 1).await.unwrap_err().kind(), ErrorKind::NotInteger);
        assert_eq!(store.stats().await.unwrap().retries, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn begins_no_attempt_after_its_deadline() {
        let (plan, store) = faulty();
        (0..1000).for_each(|_| plan.refuse(Operation::Get));
        let retry = Retry::default()
            .attempts(u32::MAX)
            .delays(Duration::from_millis(100), Duration::from_secs(1))
            .deadline(Duration::from_secs(10));
        let begun = Instant::now();
        store.layer(retry).get("key").await.unwrap_err();
        assert!(begun.elapsed() <= Duration::from_secs(10), "{:?}", begun.elapsed());
        assert!(plan.pending() > 900 && plan.pending() < 1000, "{}", plan.pending());
    }
}

mod timeout {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_read_that_hangs_is_safe_to_repeat_and_a_write_is_not() {
        let (plan, store) = faulty();
        let store = store.layer(Timeout::new(Duration::from_secs(3)));
        plan.hang(Operation::Get);
        plan.hang(Operation::Put);
        let read = store.get("key").await.unwrap_err();
        let write = store.put("key", "value").await.unwrap_err();
        assert_eq!((read.kind(), read.retry()), (ErrorKind::Timeout, Again::Safe));
        assert_eq!((write.kind(), write.retry()), (ErrorKind::Timeout, Again::Ambiguous));
        assert_eq!(write.to_string(), "memory: put: key \"key\": timed out: no answer within 3s");
    }

    #[tokio::test(start_paused = true)]
    async fn with_retry_around_it_bounds_each_attempt() {
        let (plan, store) = faulty();
        store.put("key", "value").await.unwrap();
        plan.hang(Operation::Get);
        let store = store.layer(Timeout::new(Duration::from_secs(3))).layer(Retry::default());
        assert!(store.get("key").await.unwrap().is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn bounds_the_wait_for_each_entry_of_a_scan() {
        let (plan, store) = faulty();
        plan.hang(Operation::Scan);
        let store = store.layer(Timeout::new(Duration::from_secs(3)));
        let items: Vec<_> = store.scan(Scan::prefix(Default::default())).collect().await;
        assert_eq!(items.len(), 1);
        assert_eq!(items[0].as_ref().unwrap_err().kind(), ErrorKind::Timeout);
    }

    #[tokio::test(start_paused = true)]
    async fn lets_a_watch_be_silent() {
        let store = Store::new(MemoryBackend::new()).layer(Timeout::new(Duration::from_secs(3)));
        let mut changes = store.watch("").await.unwrap();
        tokio::time::advance(Duration::from_secs(60)).await;
        assert!(changes.next().now_or_never().is_none());
        store.put("key", "value").await.unwrap();
        changes.next().await.unwrap().unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn bounds_the_operations_of_a_transaction() {
        let (plan, store) = faulty();
        let store = store.layer(Timeout::new(Duration::from_secs(3)));
        plan.hang(Operation::Commit);
        let error = store.transaction(|tx| async move { tx.put("key", "value").await }).await.unwrap_err();
        assert_eq!((error.kind(), error.retry()), (ErrorKind::Timeout, Again::Ambiguous));
    }
}

mod concurrency_limit {
    use super::*;

    #[tokio::test]
    async fn lets_no_more_calls_through_than_it_says() {
        let (plan, store) = faulty();
        let store = store.layer(ConcurrencyLimit::new(2));
        plan.hang(Operation::Get);
        plan.hang(Operation::Get);
        let hung: Vec<_> = (0..2)
            .map(|_| {
                tokio::spawn({
                    let store = store.clone();
                    async move { store.get("key").await }
                })
            })
            .collect();
        while plan.pending() > 0 {
            tokio::task::yield_now().await;
        }
        let mut third = Box::pin(store.get("key"));
        assert!((&mut third).now_or_never().is_none());
        hung[0].abort();
        assert!(third.await.unwrap().is_none());
        hung[1].abort();
    }

    #[tokio::test]
    async fn refuses_at_once_when_its_line_is_full() {
        let (plan, store) = faulty();
        let store = store.layer(ConcurrencyLimit::new(1).max_waiting(1));
        plan.hang(Operation::Get);
        let mut hung = Box::pin(store.get("key"));
        assert!((&mut hung).now_or_never().is_none());
        let mut waiting = Box::pin(store.get("key"));
        assert!((&mut waiting).now_or_never().is_none());
        let error = store.get("key").await.unwrap_err();
        assert_eq!((error.kind(), error.retry()), (ErrorKind::Overloaded, Again::Safe));
        // Dropping one that waits frees its place in the line.
        drop(waiting);
        assert!(store.get("key").now_or_never().is_none());
        drop(hung);
        assert!(store.get("key").await.unwrap().is_none());
    }
}

mod metrics_layer {
    use metrics_util::debugging::{DebugValue, DebuggingRecorder};

    use super::*;

    #[tokio::test]
    async fn counts_calls_hits_misses_bytes_and_errors() {
        let store = Store::new(MemoryBackend::new());
        store.put("a", "12345").await.unwrap();
        store.batch_put([("b", "1"), ("c", "1")]).await.unwrap();
        store.get("a").await.unwrap();
        store.get("nothing").await.unwrap();
        store.batch_get(&[Key::new("b").unwrap(), Key::new("nothing").unwrap()]).await.unwrap();
        store.delete("b").await.unwrap();
        store.increment("c", 1).await.unwrap();
        store.increment("a", i64::MAX).await.unwrap_err();
        store.count("").await.unwrap();
        let _: Vec<_> = store.list_keys("").unwrap().try_collect().await.unwrap();
        let stats = store.stats().await.unwrap();
        assert_eq!((stats.gets, stats.hits, stats.misses), (4, 2, 2));
        assert_eq!((stats.puts, stats.deletes, stats.transitions, stats.scans), (3, 1, 2, 2));
        assert_eq!((stats.bytes_written, stats.bytes_read, stats.errors), (7, 6, 1));
        assert_eq!(stats.hit_rate(), Some(0.5));
        // Put, put many, two gets, get many, delete, two increments, count, scan; and the statistics themselves.
        assert_eq!((stats.calls, stats.latency.count), (11, 11));
        assert!(stats.latency.p50 <= stats.latency.p99 && stats.latency.p99 <= stats.latency.max);
        assert!(stats.latency.mean > Duration::ZERO);
    }

    #[tokio::test]
    async fn has_no_hit_rate_before_the_first_read() {
        assert_eq!(Store::new(MemoryBackend::new()).stats().await.unwrap().hit_rate(), None);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn loses_no_count_among_many_tasks() {
        let store = Store::new(MemoryBackend::new());
        let tasks: Vec<_> = (0..16)
            .map(|_| {
                let store = store.clone();
                tokio::spawn(async move {
                    for _ in 0..500 {
                        store.get("key").await.unwrap();
                        tokio::task::yield_now().await;
                    }
                })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
        assert_eq!(store.stats().await.unwrap().misses, 16 * 500);
    }

    #[test]
    fn feeds_the_metrics_facade() {
        let recorder = DebuggingRecorder::new();
        let snapshotter = recorder.snapshotter();
        metrics::with_local_recorder(&recorder, || {
            let store = Store::new(MemoryBackend::new());
            store.put("key", "12345").now_or_never().unwrap().unwrap();
            store.get("key").now_or_never().unwrap().unwrap();
            store.increment("key", i64::MAX).now_or_never().unwrap().unwrap_err();
            let refused = store.scan(Scan { page: 0, ..Scan::prefix(Prefix::ALL) });
            refused.try_collect::<Vec<_>>().now_or_never().unwrap().unwrap_err();
        });
        let values: Vec<_> = snapshotter
            .snapshot()
            .into_vec()
            .into_iter()
            .filter(|(_, _, _, value)| !matches!(value, DebugValue::Counter(0)))
            .map(|(key, _, _, value)| {
                let operation = key.key().labels().find(|label| label.key() == "operation");
                let operation = operation.map(|label| label.value().to_owned()).unwrap_or_default();
                (key.key().name().to_owned(), operation, value)
            })
            .collect();
        let counter = |name: &str, operation: &str| {
            values.iter().find_map(|(n, o, value)| match value {
                DebugValue::Counter(count) if n == name && o == operation => Some(*count),
                _ => None,
            })
        };
        assert_eq!(counter("commonhold_calls_total", "put"), Some(1));
        assert_eq!(counter("commonhold_hits_total", ""), Some(1));
        assert_eq!(counter("commonhold_written_bytes_total", ""), Some(5));
        assert_eq!(counter("commonhold_errors_total", "transact"), Some(1));
        assert_eq!(counter("commonhold_errors_total", "scan"), Some(1));
        let recorded = |(name, operation, value): &(String, String, DebugValue)| {
            name == "commonhold_call_seconds"
                && operation == "get"
                && matches!(value, DebugValue::Histogram(values) if values.len() == 1)
        };
        assert!(values.iter().any(recorded));
    }
}

mod trace {
    use std::sync::Mutex;

    use tracing_subscriber::fmt::MakeWriter;

    use super::*;

    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<u8>>>);

    impl std::io::Write for Log {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    impl MakeWriter<'_> for Log {
        type Writer = Self;
        fn make_writer(&self) -> Self {
            self.clone()
        }
    }

    #[test]
    fn names_the_operation_the_key_and_the_failure_but_no_value() {
        let log = Log::default();
        let subscriber = tracing_subscriber::fmt()
            .with_max_level(tracing::Level::DEBUG)
            .with_span_events(tracing_subscriber::fmt::format::FmtSpan::CLOSE)
            .with_ansi(false)
            .with_writer(log.clone())
            .finish();
        tracing::subscriber::with_default(subscriber, || {
            let store = Store::new(MemoryBackend::new()).layer(Trace);
            store.put("user:1", "hunter2").now_or_never().unwrap().unwrap();
            store.increment("user:1", 1).now_or_never().unwrap().unwrap_err();
        });
        let text = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
        assert!(text.contains("operation=\"put\" key=user:1"), "{text}");
        assert!(text.contains("operation=\"transact\" key=user:1 error=not an integer"), "{text}");
        assert!(!text.contains("hunter2"), "{text}");
    }
}

mod namespace {
    use super::*;

    #[tokio::test]
    async fn keeps_keys_apart_and_nests() {
        let store = Store::new(MemoryBackend::new());
        let orders = store.namespace("orders").unwrap();
        let old = orders.namespace("old").unwrap();
        orders.put("1", "new").await.unwrap();
        old.put("1", "old").await.unwrap();
        store.put("order", "outside").await.unwrap();
        assert_eq!(orders.get("1").await.unwrap().unwrap(), "new");
        assert_eq!(store.get("orders:old:1").await.unwrap().unwrap(), "old");
        assert_eq!(old.clear("").await.unwrap(), 1);
        let keys: Vec<Key> = store.list_keys("").unwrap().try_collect().await.unwrap();
        assert_eq!(keys, ["order", "orders:1"].map(|key| Key::new(key).unwrap()));
    }

    #[tokio::test]
    async fn passes_over_a_key_that_is_its_prefix_and_nothing_more() {
        let store = Store::new(MemoryBackend::new());
        let orders = store.namespace("orders").unwrap();
        let changes = orders.watch("").await.unwrap();
        store.put("orders:", "from outside").await.unwrap();
        orders.put("1", "new").await.unwrap();
        let keys: Vec<Key> = orders.list_keys("").unwrap().try_collect().await.unwrap();
        assert_eq!(keys, [Key::new("1").unwrap()]);
        let changes: Vec<_> = changes.take(1).try_collect().await.unwrap();
        assert_eq!(changes, [Change::Put(Key::new("1").unwrap())]);
    }

    #[tokio::test]
    async fn refuses_names_that_could_be_taken_for_others_and_keys_that_get_too_long() {
        let store = Store::new(MemoryBackend::new());
        for name in ["", "a:b", &"x".repeat(256)] {
            assert_eq!(store.namespace(name).unwrap_err().kind(), ErrorKind::InvalidInput, "{name:?}");
        }
        let error = store.namespace("ns").unwrap().put([b'k'; 1024].to_vec(), "").await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TooLarge);
    }

    #[tokio::test]
    async fn keeps_messages_and_changes_apart() {
        let store = Store::new(MemoryBackend::new());
        let (a, b) = (store.namespace("a").unwrap(), store.namespace("b").unwrap());
        let mut changes = a.watch("").await.unwrap();
        let mut messages = a.subscribe("channel").await.unwrap();
        b.put("key", "").await.unwrap();
        b.publish("channel", "for b").await.unwrap();
        a.put("key", "").await.unwrap();
        a.publish("channel", "for a").await.unwrap();
        let change = changes.next().await.unwrap().unwrap();
        assert_eq!(change, commonhold_core::Change::Put(Key::new("key").unwrap()));
        assert_eq!(
            messages.next().await.unwrap().unwrap(),
            commonhold_core::Message::Payload("for a".into())
        );
    }
}

#[tokio::test]
async fn layers_stack_over_any_backend() {
    let plan = FaultPlan::new();
    let backend: Arc<dyn StateBackend> = Namespace::new("app").unwrap().layer(
        Retry::default()
            .layer(Timeout::new(Duration::from_secs(1)).layer(
                Fault::new(&plan).layer(Metrics::new("memory").layer(Arc::new(MemoryBackend::new()))),
            )),
    );
    plan.refuse(Operation::Get);
    assert_eq!(backend.get(&Key::new("key").unwrap()).await.unwrap(), None);
    assert_eq!(backend.stats().await.unwrap().retries, 1);
}
