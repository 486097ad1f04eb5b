//! What only the memory backend does: bounds, sweeping, capacity.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic, missing_docs)]

use std::{sync::Arc, time::Duration};

use commonhold_core::{
    ErrorKind, Expiry, Key, Maintenance, ManualClock, MemoryBackend, Prefix, PutOptions, Retry, Scan, Store,
    Write,
};
use futures_util::TryStreamExt as _;

fn entries(stats: &commonhold_core::Stats) -> u64 {
    stats.details.iter().find(|(name, _)| *name == "entries").unwrap().1
}

#[tokio::test]
async fn a_full_store_refuses_and_evicts_nothing() {
    let store = Store::new(MemoryBackend::builder().max_bytes(10_000).build());
    let mut stored = 0;
    let error = loop {
        match store.put(format!("key:{stored:04}"), vec![0; 100]).await {
            Ok(()) => stored += 1,
            Err(error) => break error,
        }
    };
    assert_eq!((error.kind(), error.retry()), (ErrorKind::Overloaded, Retry::Safe));
    assert!(stored > 10, "{stored}");
    assert_eq!(store.count("").await.unwrap(), stored);
    assert!(store.memory_usage().await.unwrap().unwrap() <= 10_000);
    // What does not grow is taken, and deleting makes room.
    store.put("key:0000", vec![1; 100]).await.unwrap();
    assert!(store.put("key:0000", vec![1; 1000]).await.is_err());
    store.delete("key:0001").await.unwrap();
    store.put("other", vec![0; 100]).await.unwrap();
}

#[tokio::test]
async fn what_can_never_fit_is_too_large() {
    let store = Store::new(MemoryBackend::builder().max_bytes(10_000).build());
    assert_eq!(store.put("key", vec![0; 20_000]).await.unwrap_err().kind(), ErrorKind::TooLarge);
    let batch = (0..100).map(|n| (format!("{n}"), vec![0; 200]));
    assert_eq!(store.batch_put(batch).await.unwrap_err().kind(), ErrorKind::TooLarge);
    assert_eq!(store.count("").await.unwrap(), 0);
    store.put("key", vec![0; 5_000]).await.unwrap();
}

#[tokio::test]
async fn the_bound_counts_exactly_what_is_there_after_every_kind_of_write() {
    let clock = Arc::new(ManualClock::default());
    let backend = MemoryBackend::builder()
        .max_bytes(1_000_000)
        .clock(clock.clone())
        .cleanup_interval(Duration::from_secs(3600))
        .build();
    let store = Store::new(backend);
    for round in 0..50 {
        store.put("a", vec![0; round * 7]).await.unwrap();
        store.put_with_ttl("b", vec![0; 300], Duration::from_millis(5)).await.unwrap();
        let key = |name: &str| Key::new(name).unwrap();
        store
            .write_batch(vec![
                Write::put(key("c"), vec![0; 50]),
                Write::delete(key("c")),
                Write::put(key("d"), vec![0; round]),
            ])
            .await
            .unwrap();
        store
            .transaction(|tx| async move {
                tx.delete("a").await?;
                tx.put("e", vec![0; 10]).await
            })
            .await
            .unwrap();
        store.get_and_delete("d").await.unwrap();
        clock.advance(Duration::from_millis(10));
        store.clear("e").await.unwrap();
        store.maintain(Maintenance::Sweep).await.unwrap();
    }
    assert_eq!(store.memory_usage().await.unwrap(), Some(0));
    // Nothing is counted that is not there: all of the bound can be used again.
    store.put("all", vec![0; 999_000]).await.unwrap();
}

#[tokio::test]
async fn what_has_expired_makes_room_for_what_comes() {
    let clock = Arc::new(ManualClock::default());
    let backend = MemoryBackend::builder()
        .max_bytes(1_000)
        .clock(clock.clone())
        .cleanup_interval(Duration::from_secs(3600))
        .build();
    let store = Store::new(backend);
    store.put_with_ttl("old", vec![0; 700], Duration::from_secs(1)).await.unwrap();
    assert_eq!(store.put("new", vec![0; 700]).await.unwrap_err().kind(), ErrorKind::Overloaded);
    clock.advance(Duration::from_secs(1));
    store.put("new", vec![0; 700]).await.unwrap();
}

#[tokio::test]
async fn expired_entries_are_never_seen_though_nobody_has_swept() {
    let clock = Arc::new(ManualClock::default());
    let backend =
        MemoryBackend::builder().clock(clock.clone()).cleanup_interval(Duration::from_secs(3600)).build();
    let store = Store::new(backend);
    store.batch_put([("a", "1"), ("b", "1")]).await.unwrap();
    store.expire("a", Duration::from_millis(5)).await.unwrap();
    clock.advance(Duration::from_millis(5));
    assert_eq!(store.get("a").await.unwrap(), None);
    assert_eq!(store.count("").await.unwrap(), 1);
    assert!(store.set_if_not_exists("a", "2").await.unwrap());
}

#[tokio::test]
async fn the_sweeper_gives_memory_back_without_being_asked() {
    let clock = Arc::new(ManualClock::default());
    let backend =
        MemoryBackend::builder().clock(clock.clone()).cleanup_interval(Duration::from_millis(1)).build();
    let store = Store::new(backend);
    for n in 0..1000 {
        store.put_with_ttl(format!("{n}"), "", Duration::from_secs(1)).await.unwrap();
    }
    assert_eq!(entries(&store.stats().await.unwrap()), 1000);
    clock.advance(Duration::from_secs(1));
    while entries(&store.stats().await.unwrap()) > 0 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn the_default_time_to_live_holds_for_plain_puts_and_can_be_taken_away() {
    let clock = Arc::new(ManualClock::default());
    let store = Store::new(
        MemoryBackend::builder().clock(clock.clone()).default_ttl(Duration::from_secs(60)).build(),
    );
    store.put("plain", "").await.unwrap();
    store.put_with_ttl("own", "", Duration::from_secs(5)).await.unwrap();
    store.increment("counter", 1).await.unwrap();
    assert_eq!(store.ttl("plain").await.unwrap(), Some(Some(Duration::from_secs(60))));
    assert_eq!(store.ttl("own").await.unwrap(), Some(Some(Duration::from_secs(5))));
    assert_eq!(store.ttl("counter").await.unwrap(), Some(Some(Duration::from_secs(60))));
    assert!(store.persist("plain").await.unwrap());
    assert_eq!(store.ttl("plain").await.unwrap(), Some(None));
    clock.advance(Duration::from_secs(60));
    assert!(store.contains("plain").await.unwrap());
    assert!(!store.contains("counter").await.unwrap());
}

#[tokio::test]
async fn an_expiry_that_was_changed_is_not_swept_at_its_old_time() {
    let clock = Arc::new(ManualClock::default());
    let store = Store::new(MemoryBackend::builder().clock(clock.clone()).build());
    store.put_with_ttl("key", "", Duration::from_secs(1)).await.unwrap();
    store.expire("key", Duration::from_secs(10)).await.unwrap();
    clock.advance(Duration::from_secs(2));
    store.maintain(Maintenance::Sweep).await.unwrap();
    assert!(store.contains("key").await.unwrap());
    let keep = PutOptions::default().expiry(Expiry::Keep);
    assert!(store.put_with("key", "new", keep).await.unwrap().is_yes());
    clock.advance(Duration::from_secs(8));
    store.maintain(Maintenance::Sweep).await.unwrap();
    assert_eq!(entries(&store.stats().await.unwrap()), 0);
}

#[tokio::test]
async fn a_scan_hands_out_nothing_that_expired_while_its_reader_was_away() {
    let clock = Arc::new(ManualClock::default());
    let store = Store::new(MemoryBackend::builder().clock(clock.clone()).build());
    for at in 0..10 {
        store.put_with_ttl(format!("{at}"), "v", Duration::from_secs(2)).await.unwrap();
    }
    store.put("for ever", "v").await.unwrap();
    let mut scan = store.scan(Scan::prefix(Prefix::ALL));
    scan.try_next().await.unwrap().unwrap();
    clock.advance(Duration::from_secs(1));
    let (_, entry) = scan.try_next().await.unwrap().unwrap();
    assert_eq!(entry.ttl, Some(Duration::from_secs(1)));
    clock.advance(Duration::from_secs(1));
    let rest: Vec<_> = scan.map_ok(|(key, _)| key).try_collect().await.unwrap();
    assert_eq!(rest, [Key::new("for ever").unwrap()]);
}

#[tokio::test]
async fn a_capacity_that_no_machine_has_is_no_panic() {
    let store = Store::new(MemoryBackend::builder().capacity(usize::MAX).build());
    store.put("key", "value").await.unwrap();
}
