//! Servers that are killed, paused, full, away, others than they should be, and connections that are cut.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic, missing_docs)]

use std::{
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use commonhold_core::{
    ErrorKind, Expiry, Key, PutOptions, Result, Retry, Step, Store, Timestamp, Transition,
};
use commonhold_memcached::{MemcachedBackend, MemcachedConfig};
use commonhold_testkit::{
    eventually,
    proxy::{Mode, Proxy},
    servers::{Memcached, Redis},
};

const PATIENCE: Duration = Duration::from_secs(30);
const RESPONSE_TIMEOUT: Duration = Duration::from_millis(500);

fn config(ports: &[u16]) -> MemcachedConfig {
    let servers = ports.iter().map(|port| format!("127.0.0.1:{port}"));
    MemcachedConfig::new(servers).unwrap().response_timeout(RESPONSE_TIMEOUT)
}

async fn open(config: MemcachedConfig) -> Store {
    Store::new(MemcachedBackend::open(config).await.unwrap())
}

/// Waits until the store answers.
async fn until_well(store: &Store) {
    eventually(PATIENCE, "the store answers again", async || store.get("k").await.is_ok()).await;
}

/// What a plain client receives for these commands.
fn plainly(server: &Memcached, commands: &str) -> String {
    let mut connection = TcpStream::connect(("127.0.0.1", server.port())).unwrap();
    connection.write_all(format!("{commands}\r\nquit\r\n").as_bytes()).unwrap();
    let mut reply = String::new();
    connection.read_to_string(&mut reply).unwrap();
    reply
}

/// Such errors may be had while a server is away.
fn assert_away<T: std::fmt::Debug>(result: Result<T>) {
    if let Err(error) = result {
        assert!(matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::Timeout), "{error:?}");
        assert_ne!(error.retry(), Retry::Never, "{error:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_killed_under_load_is_found_again_when_it_is_back() {
    let server = Memcached::start();
    let store = open(config(&[server.port()])).await;
    let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let tasks: Vec<_> = (0..16)
        .map(|task| {
            let (store, stop, done) = (store.clone(), Arc::clone(&stop), Arc::clone(&done));
            tokio::spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    assert_away(store.increment("counter", 1).await);
                    assert_away(store.put(format!("k{task}"), "v").await);
                    assert_away(store.get(format!("k{task}")).await);
                    done.fetch_add(1, Ordering::Relaxed);
                    tokio::task::yield_now().await;
                }
            })
        })
        .collect();
    for _ in 0..3 {
        let before = done.load(Ordering::Relaxed);
        eventually(PATIENCE, "calls are made", async || done.load(Ordering::Relaxed) > before + 100).await;
        server.kill();
        let error = store.get("k").await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
        server.start_again();
        until_well(&store).await;
    }
    stop.store(true, Ordering::Relaxed);
    for task in tasks {
        task.await.unwrap();
    }
    assert_eq!(store.increment("a new counter", 1).await.unwrap(), 1);
}

#[tokio::test]
async fn a_server_may_be_away_when_the_store_is_opened() {
    let server = Memcached::start();
    server.kill();
    let store = open(config(&[server.port()])).await;
    let error = store.put("k", "v").await.unwrap_err();
    assert_eq!((error.kind(), error.retry()), (ErrorKind::Unavailable, Retry::Safe));
    assert!(error.to_string().contains(&server.address()), "{error}");
    server.start_again();
    until_well(&store).await;
}

#[tokio::test]
async fn a_paused_server_times_out_and_is_used_again_when_it_goes_on() {
    let server = Memcached::start();
    let store = open(config(&[server.port()]).connect_timeout(RESPONSE_TIMEOUT)).await;
    store.put("k", "v").await.unwrap();
    server.pause();
    let (read, written) = tokio::join!(store.get("k"), store.put("k", "w"));
    let (read, written) = (read.unwrap_err(), written.unwrap_err());
    assert_eq!((read.kind(), read.retry()), (ErrorKind::Timeout, Retry::Safe));
    assert_eq!((written.kind(), written.retry()), (ErrorKind::Timeout, Retry::Ambiguous));
    let error = store.put("k", "x").await.unwrap_err();
    assert_eq!((error.kind(), error.retry()), (ErrorKind::Timeout, Retry::Safe), "never sent: {error}");
    server.resume();
    until_well(&store).await;
    assert!(["v", "w"].contains(&std::str::from_utf8(&store.get("k").await.unwrap().unwrap()).unwrap()));
}

#[tokio::test]
async fn a_write_whose_reply_is_lost_is_ambiguous_and_not_made_again() {
    let server = Memcached::start();
    let proxy = Proxy::before(server.port());
    let store = open(config(&[proxy.port()])).await;
    until_well(&store).await;
    proxy.set(Mode::CutReply(0));
    let error = store.put("k", "v").await.unwrap_err();
    assert_eq!((error.kind(), error.retry()), (ErrorKind::Unavailable, Retry::Ambiguous));
    until_well(&store).await;
    assert_eq!(store.get("k").await.unwrap().unwrap(), "v", "it was carried out");
}

#[tokio::test]
async fn no_increment_is_applied_twice_wherever_the_connection_is_cut() {
    let server = Memcached::start();
    let proxy = Proxy::before(server.port());
    let store = open(config(&[proxy.port()])).await;
    let (mut least, mut most, mut ambiguous) = (0, 0, 0);
    for round in 0..120u64 {
        until_well(&store).await;
        proxy.set(if round % 2 == 0 { Mode::CutReply(round / 2) } else { Mode::CutRequest(round / 2) });
        match store.increment("counter", 1).await {
            Ok(value) => {
                assert!((least + 1..=most + 1).contains(&value), "{value}, {least} to {most}");
                (least, most) = (value, value);
            }
            Err(error) => match error.retry() {
                Retry::Safe => {}
                Retry::Ambiguous => {
                    ambiguous += 1;
                    most += 1;
                }
                Retry::Never => panic!("{error}"),
            },
        }
        proxy.set(Mode::Pass);
    }
    assert!(ambiguous > 0, "no reply to a write was lost");
    until_well(&store).await;
    let value = store.increment("counter", 0).await.unwrap();
    assert!((least..=most).contains(&value), "{value}, {least} to {most}");
}

/// Appends to the value; but the first time that it is asked, the server is started anew meanwhile, and another
/// value gets the number that the one that was read had.
#[derive(Debug)]
struct AppendAcrossARestart {
    server: Arc<Memcached>,
    asked: AtomicU64,
}

impl Transition for AppendAcrossARestart {
    fn name(&self) -> &'static str {
        "append"
    }

    fn apply(&self, state: Option<&[u8]>, _now: Timestamp) -> Result<Step> {
        if self.asked.fetch_add(1, Ordering::Relaxed) == 0 {
            let number = plainly(&self.server, "mg k c");
            // The number may be taken by what a client writes as soon as it is connected again.
            let meets = (0..100).any(|_| {
                self.server.kill();
                self.server.start_again();
                (0..10).any(|_| {
                    plainly(&self.server, "ms k 5\r\nother");
                    plainly(&self.server, "mg k c") == number
                })
            });
            assert!(meets, "no other value gets the number {number:?}");
        }
        Ok(Step::put([state.unwrap_or_default(), b" appended"].concat(), Expiry::Keep, ""))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_that_was_read_before_a_restart_is_not_made_after_it() {
    let server = Arc::new(Memcached::start());
    let store = open(config(&[server.port()])).await;
    store.put("k", "old").await.unwrap();
    let append = AppendAcrossARestart { server: Arc::clone(&server), asked: AtomicU64::new(0) };
    until_well(&store).await;
    let appended = store.backend().transact(&Key::new("k").unwrap(), Arc::new(append)).await;
    until_well(&store).await;
    let value = store.get("k").await.unwrap().unwrap();
    let expected = if appended.is_ok() { "other appended" } else { "other" };
    assert_eq!(value, expected, "{appended:?}");
}

#[tokio::test]
async fn something_else_than_memcached_is_named_at_once() {
    let redis = Redis::start();
    let store = open(config(&[redis.port()])).await;
    let error = store.get("k").await.unwrap_err();
    assert_eq!((error.kind(), error.retry()), (ErrorKind::InvalidConfig, Retry::Never));
    assert!(error.to_string().contains("no Memcached"), "{error}");
}

/// A server that answers each connection with these bytes and says nothing more.
fn answering(reply: &'static [u8]) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for connection in listener.incoming() {
            let Ok(mut connection) = connection else { return };
            thread::spawn(move || {
                let _ = connection.read(&mut [0; 1024]);
                let _ = connection.write_all(reply);
                let _ = connection.read_to_end(&mut Vec::new());
            });
        }
    });
    port
}

#[tokio::test]
async fn what_a_server_refuses_is_one_clear_error_at_once() {
    for (reply, kind, retry) in [
        (&b"ERROR Too many open connections\r\n"[..], ErrorKind::Overloaded, Retry::Safe),
        (b"ERROR\r\n", ErrorKind::Unsupported, Retry::Never),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", ErrorKind::InvalidConfig, Retry::Never),
    ] {
        let config = config(&[answering(reply)]).login("u", "hunter2".to_owned());
        let error = open(config).await.put("k", "v").await.unwrap_err();
        assert_eq!((error.kind(), error.retry()), (kind, retry), "{error}");
        assert!(!format!("{error:?}").contains("hunter2"));
    }
}

#[tokio::test]
async fn a_login_is_for_the_server_that_asks_for_one_and_a_wrong_one_is_refused_at_once() {
    let directory = tempfile::tempdir().unwrap();
    let users = directory.path().join("users");
    std::fs::write(&users, "app:hunter2\n").unwrap();
    let asks = Memcached::with_arguments(&["-Y", users.to_str().unwrap(), "-u", "root"]);
    let login =
        |server: &Memcached, password: &str| config(&[server.port()]).login("app", password.to_owned());

    let store = open(login(&asks, "hunter2")).await;
    store.put("k", "v").await.unwrap();
    assert_eq!(store.get("k").await.unwrap().unwrap(), "v");
    for config in [login(&asks, "hunter3"), config(&[asks.port()])] {
        let error = open(config).await.put("k", "v").await.unwrap_err();
        assert_eq!((error.kind(), error.retry()), (ErrorKind::Unauthorized, Retry::Never), "{error}");
        assert!(!format!("{error:?}").contains("hunter"), "{error:?}");
    }

    let open_to_all = Memcached::start();
    let store = open(login(&open_to_all, "hunter2")).await;
    store.put("k", "v").await.unwrap();
    assert_eq!(plainly(&open_to_all, "get login"), "END\r\n", "the password lies where all can read it");
}

#[tokio::test]
async fn a_server_that_answers_nonsense_is_given_up() {
    for reply in [
        &b"MN\r\nHD O0\r\nHD t5 O1\r\nVA 3 O999\r\nabc\r\n"[..],
        b"MN\r\nHD O0\r\nHD t5 O1\r\n\xff\xff\r\n",
        b"MN\r\nHD O0\r\nHD t5 O1\r\nHD\r\nHD\r\nHD\r\nHD\r\n",
    ] {
        let error = open(config(&[answering(reply)])).await.get("k").await.unwrap_err();
        assert!(
            matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::Timeout | ErrorKind::Unavailable),
            "{error}"
        );
    }
}

#[tokio::test]
async fn with_several_servers_only_the_share_of_the_one_that_is_away_is_missed() {
    let (one, other) = (Memcached::start(), Memcached::start());
    let store = open(config(&[one.port(), other.port()])).await;
    let keys: Vec<_> = (0..100).map(|i| Key::new(format!("k{i}")).unwrap()).collect();
    store.batch_put(keys.iter().map(|key| (key, "v"))).await.unwrap();
    other.kill();
    let (mut there, mut away) = (0, 0);
    for key in &keys {
        match store.get(key).await {
            Ok(Some(_)) => there += 1,
            Ok(None) => panic!("{key} has moved"),
            Err(_) => away += 1,
        }
    }
    assert!(there > 20 && away > 20, "{there} and {away}");
    let health = store.health_check().await.unwrap();
    assert!(health.warnings.iter().any(|warning| warning.contains(&other.address())), "{health:?}");
    one.kill();
    assert_eq!(store.health_check().await.unwrap_err().kind(), ErrorKind::Unavailable);
}

#[tokio::test]
async fn evicted_entries_are_warned_of() {
    let server = Memcached::with_arguments(&["-m", "8"]);
    let store = open(config(&[server.port()])).await;
    assert_eq!(store.health_check().await.unwrap().warnings, Vec::<String>::new());
    for i in 0..20 {
        store.put(format!("k{i}"), vec![0; 1_000_000]).await.unwrap();
    }
    let health = store.health_check().await.unwrap();
    assert!(health.warnings.iter().any(|warning| warning.contains("state is lost")), "{health:?}");
    let stats = store.stats().await.unwrap();
    assert_eq!(stats.memory_limit_bytes, Some(8 << 20));
}

#[tokio::test]
async fn a_server_that_is_full_and_evicts_nothing_is_overloaded() {
    let server = Memcached::with_arguments(&["-m", "8", "-M"]);
    let store = open(config(&[server.port()])).await;
    let full = async || {
        for i in 0..20 {
            store.put(format!("k{i}"), vec![0; 1_000_000]).await?;
        }
        Ok::<_, commonhold_core::Error>(())
    };
    let error = full().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Overloaded, "{error}");
    store.get("k0").await.unwrap();
}

#[tokio::test]
async fn a_value_is_refused_before_it_is_sent_or_by_the_server() {
    let server = Memcached::start();
    let store = open(config(&[server.port()])).await;
    store.put("k", "v").await.unwrap();
    let max = usize::try_from(store.capabilities().max_value_bytes).unwrap();
    assert_eq!(store.put("k", vec![0; max + 1]).await.unwrap_err().kind(), ErrorKind::TooLarge);
    assert_eq!(store.get("k").await.unwrap().unwrap(), "v", "it was not sent");
    store.put("k".repeat(250), vec![0; max]).await.unwrap();

    let store = open(config(&[server.port()]).max_value_bytes(8 << 20)).await;
    let error = store.put("k", vec![0; 2 << 20]).await.unwrap_err();
    assert_eq!((error.kind(), error.retry()), (ErrorKind::TooLarge, Retry::Never), "{error}");
    let health = store.health_check().await.unwrap();
    assert!(health.warnings.iter().any(|warning| warning.contains("-I")), "{health:?}");
    store.put("k", "v").await.unwrap();
    let narrow = open(config(&[server.port()]).max_value_bytes(100)).await;
    assert_eq!(narrow.get("k".repeat(250)).await.unwrap_err().kind(), ErrorKind::TooLarge);
    assert_eq!(narrow.get("k").await.unwrap().unwrap(), "v");
}

#[tokio::test]
async fn a_full_queue_is_overloaded_and_drains() {
    let server = Memcached::start();
    let store = open(config(&[server.port()]).queue(10)).await;
    until_well(&store).await;
    server.pause();
    let gets = futures_util::future::join_all((0..30).map(|_| store.get("k"))).await;
    let overloaded =
        gets.iter().flat_map(|get| get.as_ref().err()).filter(|error| error.kind() == ErrorKind::Overloaded);
    assert_eq!(overloaded.inspect(|error| assert_eq!(error.retry(), Retry::Safe)).count(), 20);
    server.resume();
    until_well(&store).await;
}

#[tokio::test]
async fn a_plain_client_sees_keys_and_values_as_they_are() {
    let server = Memcached::start();
    let store = open(config(&[server.port()]).prefix("app:")).await;
    store.put("user:1", "Ada").await.unwrap();
    assert!(plainly(&server, "get app:user:1").starts_with("VALUE app:user:1 0 3\r\nAda\r\n"));
    plainly(&server, "set app:user:2 7 0 5\r\nGrace");
    assert_eq!(store.get("user:2").await.unwrap().unwrap(), "Grace");
    store.increment("visits", 41).await.unwrap();
    assert!(plainly(&server, "incr app:visits 1").starts_with("42\r\n"));
    // A change of the time to live leaves what the client noted beside the value.
    assert!(store.expire("user:2", Duration::from_secs(60)).await.unwrap());
    assert!(plainly(&server, "get app:user:2").starts_with("VALUE app:user:2 7 5\r\n"));
    let binary = Key::new(b"a b\r\n\0").unwrap();
    store.put(&binary, "v").await.unwrap();
    assert!(plainly(&server, "mg YXBwOmEgYg0KAA== v b").starts_with("VA 1\r\nv\r\n"));
}

/// Each change that keeps the time to live reads and writes it: if a second that ends in between were added each
/// time, this counter would live for ever.
#[tokio::test(flavor = "multi_thread")]
async fn an_entry_that_is_changed_all_the_time_expires_all_the_same() {
    let server = Memcached::start();
    let store = open(config(&[server.port()])).await;
    let ttl = Duration::from_secs(2);
    assert_eq!(store.increment_with_ttl("counter", 1, ttl).await.unwrap(), 1);
    let tasks: Vec<_> = (0..2)
        .map(|_| {
            let store = store.clone();
            let work =
                async move { while store.increment_with_ttl("counter", 1, ttl).await.unwrap() != 1 {} };
            tokio::spawn(tokio::time::timeout(PATIENCE, work))
        })
        .collect();
    let (begun_anew, _) = futures_util::future::select_ok(
        tasks.into_iter().map(|task| Box::pin(async { task.await.unwrap() })),
    )
    .await
    .unwrap();
    assert_eq!(begun_anew, ());
}

#[tokio::test]
async fn times_to_live_beyond_thirty_days_are_kept() {
    let server = Memcached::start();
    let store = open(config(&[server.port()])).await;
    let day = Duration::from_secs(24 * 60 * 60);
    for days in [29, 30, 31, 365] {
        let ttl = day * days;
        let backend = store.backend();
        let options = PutOptions::default().expiry(Expiry::After(ttl));
        assert!(backend.put(&Key::new("k").unwrap(), "v".into(), options).await.unwrap().is_yes());
        for _ in 0..3 {
            let left = store.ttl("k").await.unwrap().unwrap().unwrap();
            assert!(left <= ttl + Duration::from_secs(1) && left + PATIENCE > ttl, "{left:?} of {ttl:?}");
            let keep = PutOptions::default().expiry(Expiry::Keep);
            assert!(backend.put(&Key::new("k").unwrap(), "w".into(), keep).await.unwrap().is_yes());
        }
    }
    let error = store.put_with_ttl("k", "v", day * 365 * 50).await.unwrap_err();
    assert!(error.kind() == ErrorKind::InvalidInput && error.to_string().contains("2038"), "{error}");
}
