//! What URLs open, and what they refuse.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic, missing_docs)]

use std::time::Duration;

use commonhold::{ErrorKind, open};

async fn refusal(url: &str) -> String {
    let error = open(url).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidConfig, "{url}: {error}");
    error.to_string()
}

#[tokio::test]
async fn every_option_of_memory_is_read() {
    let store =
        open("memory:?ttl=1h&max_bytes=10KiB&max_value=100B&capacity=10&cleanup_interval=5s").await.unwrap();
    store.put("key", "value").await.unwrap();
    let ttl = store.ttl("key").await.unwrap().flatten().unwrap();
    // Expiry is rounded up to the next millisecond.
    assert!(ttl <= Duration::from_millis(3_600_001), "{ttl:?}");
    assert_eq!(store.put("key", vec![0; 101]).await.unwrap_err().kind(), ErrorKind::TooLarge);
    let full = loop {
        if let Err(error) = store.put(format!("{}", next()), vec![0; 100]).await {
            break error;
        }
    };
    assert_eq!(full.kind(), ErrorKind::Overloaded);
}

/// Keys that do not repeat.
fn next() -> usize {
    static NEXT: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);
    NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed)
}

#[tokio::test]
async fn every_option_of_disk_is_read() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("state");
    let options = "durability=interval:20ms&ttl=1h&max_value=100B&cache=1MiB&memtable=1MiB&journal=64MiB&compression=false";
    let store = open(&format!("disk:{}?{options}", path.display())).await.unwrap();
    store.put("key", "value").await.unwrap();
    assert!(store.ttl("key").await.unwrap().flatten().is_some());
    assert_eq!(store.put("key", vec![0; 101]).await.unwrap_err().kind(), ErrorKind::TooLarge);
    let capabilities = store.capabilities();
    assert!(!capabilities.durable && !capabilities.compression);
    let health = store.health_check().await.unwrap();
    assert!(health.details.contains(&("durability".to_owned(), "interval:20ms".to_owned())), "{health:?}");
    assert!(path.is_dir());
}

#[tokio::test]
async fn what_a_url_says_wrong_is_named_with_what_it_takes() {
    assert!(refusal("data").await.contains("memory:"));
    assert!(refusal("cassandra://host").await.contains("there are: memory, disk"));
    assert!(refusal("memory:data").await.contains("memory:?OPTION=VALUE"));
    assert!(refusal("memory:?max_byte=1MiB").await.contains("did you mean \"max_bytes\"?"));
    assert!(refusal("memory:?ttl=0s").await.contains("more than zero"));
    assert!(refusal("disk:").await.contains("directory"));
    assert!(refusal("disk:x?durability=never").await.contains("interval:10ms"));
    assert!(refusal("disk:x?memtable=1B").await.contains("64 KiB"));
    assert!(refusal("disk:x?compression=yes").await.contains("true or false"));
    assert!(!std::path::Path::new("x").exists());
}

/// An address that every store of this kind takes.
fn address(scheme: &commonhold::Scheme) -> &'static str {
    match (scheme.name, scheme.network) {
        ("memory", _) => "",
        (name, true) if name.ends_with("+sentinel") => "//127.0.0.1:1/main",
        (_, true) => "//127.0.0.1:1",
        (_, false) => "x",
    }
}

#[tokio::test]
async fn the_list_of_stores_names_exactly_the_options_that_they_read() {
    for scheme in commonhold::schemes() {
        let url = format!("{}:{}", scheme.name, address(&scheme));
        let all = refusal(&format!("{url}?qqqq=1")).await;
        let known = all.split("there are: ").nth(1).unwrap_or_default();
        let mut known: Vec<_> = known.split(", ").collect();
        let mut listed = scheme.options.clone();
        known.sort_unstable();
        listed.sort_unstable();
        assert_eq!(known, listed, "{}", scheme.name);
    }
}

#[tokio::test]
async fn an_option_that_makes_no_sense_is_named() {
    let schemes = commonhold::schemes();
    for scheme in schemes.iter().filter(|scheme| ["memory", "disk"].contains(&scheme.name)) {
        for option in &scheme.options {
            let error = refusal(&format!("{}:{}?{option}=%00", scheme.name, address(scheme))).await;
            assert!(error.contains(&format!("the option {option}=")), "{}: {error}", scheme.name);
        }
    }
    for scheme in schemes.iter().filter(|scheme| scheme.network) {
        for option in ["retries", "retry_base", "retry_max", "call_timeout"] {
            let error = refusal(&format!("{}:{}?{option}=%00", scheme.name, address(scheme))).await;
            assert!(error.contains(&format!("the option {option}=")), "{}: {error}", scheme.name);
        }
    }
}
