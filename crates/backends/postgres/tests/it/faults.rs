//! What goes wrong between the store and its server: which errors appear, what is kept, and that it works again.

use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use commonhold_core::{Change, ErrorKind, Key, Prefix, PutOptions, Retry, Scan, StateBackend, Store, Write};
use commonhold_postgres::{Isolation, PostgresBackend, PostgresConfig};
use commonhold_testkit::{
    eventually,
    history::{Load, record},
    proxy::{Mode, Proxy},
    servers::{Postgres, shared::postgres_url},
};
use futures_util::{StreamExt as _, TryStreamExt as _, future::join_all};

use crate::common::{Table, config, sql};

/// Within this the store works again after whatever it was.
const RECOVERY: Duration = Duration::from_secs(30);

/// A server and a proxy before it.
fn proxied() -> (Postgres, Proxy) {
    let server = Postgres::start();
    let proxy = Proxy::before(server.port());
    (server, proxy)
}

/// Impatient enough for a test.
fn impatient(server: &Postgres, proxy: &Proxy) -> PostgresConfig {
    config(&server.url_at(proxy.port()))
        .timeout(Duration::from_millis(500))
        .connect_timeout(Duration::from_secs(2))
        .pool_timeout(Duration::from_secs(2))
        .sweep(None)
}

async fn open(config: PostgresConfig) -> Store {
    Store::new(PostgresBackend::open(config).await.unwrap())
}

async fn works_again(store: &Store) {
    eventually(RECOVERY, "the store works again", async || {
        store.put("again", "1").await.is_ok()
            && store.get("again").await.is_ok()
            && store.increment("again counter", 1).await.is_ok()
            && store.count("again").await.is_ok()
    })
    .await;
}

/// Increments from several tasks until `stop` says so; answers how many were acknowledged, and how many may have been.
struct Increments {
    acknowledged: AtomicI64,
    unknown: AtomicI64,
    stop: std::sync::atomic::AtomicBool,
}

impl Increments {
    async fn during(store: &Store, faults: impl AsyncFnOnce(&Self)) {
        let counts = Arc::new(Self {
            acknowledged: AtomicI64::new(0),
            unknown: AtomicI64::new(0),
            stop: std::sync::atomic::AtomicBool::new(false),
        });
        let tasks: Vec<_> =
            (0..4).map(|_| tokio::spawn(Arc::clone(&counts).increment(store.clone()))).collect();
        counts.reach(20).await;
        faults(&counts).await;
        counts.reach(counts.acknowledged.load(Ordering::SeqCst) + 20).await;
        counts.stop.store(true, Ordering::SeqCst);
        join_all(tasks).await.into_iter().for_each(|task| task.unwrap());
        let total: i64 =
            std::str::from_utf8(&store.get("n").await.unwrap().unwrap()).unwrap().parse().unwrap();
        let (acknowledged, unknown) =
            (counts.acknowledged.load(Ordering::SeqCst), counts.unknown.load(Ordering::SeqCst));
        eprintln!("{acknowledged} acknowledged, {unknown} unknown, {total} counted");
        assert!(
            (acknowledged..=acknowledged + unknown).contains(&total),
            "{acknowledged} + {unknown}: {total}"
        );
    }

    async fn increment(self: Arc<Self>, store: Store) {
        while !self.stop.load(Ordering::SeqCst) {
            match store.increment("n", 1).await {
                Ok(_) => self.acknowledged.fetch_add(1, Ordering::SeqCst),
                Err(error) if error.retry() == Retry::Ambiguous => {
                    self.unknown.fetch_add(1, Ordering::SeqCst)
                }
                Err(error) => {
                    assert_eq!(error.retry(), Retry::Safe, "{error}");
                    0
                }
            };
        }
    }

    async fn reach(&self, count: i64) {
        eventually(RECOVERY, "increments are acknowledged", async || {
            self.acknowledged.load(Ordering::SeqCst) >= count
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_killed_and_restarted_under_load_loses_nothing_that_was_acknowledged() {
    let (server, proxy) = proxied();
    let store = open(impatient(&server, &proxy)).await;
    let faults = async |_: &Increments| {
        for _ in 0..2 {
            server.kill();
            let error = store.put("k", "nobody is there").await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
            server.start_again();
            works_again(&store).await;
        }
    };
    Increments::during(&store, faults).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_of_the_primary_is_survived() {
    let (server, proxy) = proxied();
    let store = open(impatient(&server, &proxy)).await;
    let faults = async |_: &Increments| {
        server.restart();
        works_again(&store).await;
    };
    Increments::during(&store, faults).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reply_that_is_lost_counts_no_increment_twice() {
    let (server, proxy) = proxied();
    let store = open(impatient(&server, &proxy)).await;
    let faults = async |counts: &Increments| {
        for mode in [Mode::CutReply(0), Mode::CutReply(7), Mode::CutRequest(20), Mode::CutReply(0)] {
            proxy.set(mode);
            eventually(RECOVERY, "a connection is cut", async || proxy.mode() == Mode::Pass).await;
            works_again(&store).await;
        }
        proxy.set(Mode::LoseReplies);
        eventually(RECOVERY, "nobody knows", async || counts.unknown.load(Ordering::SeqCst) > 0).await;
        proxy.set(Mode::Pass);
        works_again(&store).await;
    };
    Increments::during(&store, faults).await;
}

#[tokio::test]
async fn a_compare_and_swap_whose_reply_is_lost_says_that_it_does_not_know() {
    let (server, proxy) = proxied();
    let store = open(impatient(&server, &proxy)).await;
    store.put("k", "old").await.unwrap();
    let every_shared_connection_is_made = async || {
        for _ in 0..2 {
            assert!(!store.compare_and_swap("k", Some("none"), "x").await.unwrap());
        }
    };
    every_shared_connection_is_made().await;
    proxy.set(Mode::LoseReplies);
    let error = store.compare_and_swap("k", Some("old"), "new").await.unwrap_err();
    assert_eq!((error.kind(), error.retry()), (ErrorKind::Timeout, Retry::Ambiguous), "{error}");
    proxy.set(Mode::Pass);
    works_again(&store).await;
    assert_eq!(store.get("k").await.unwrap().unwrap(), "new", "the server did it");

    every_shared_connection_is_made().await;
    proxy.set(Mode::CutRequest(10));
    let error = store.compare_and_swap("k", Some("new"), "newer").await.unwrap_err();
    assert_eq!((error.kind(), error.retry()), (ErrorKind::Unavailable, Retry::Ambiguous), "{error}");
    works_again(&store).await;
    assert_eq!(store.get("k").await.unwrap().unwrap(), "new", "the server did not");
}

#[tokio::test]
async fn a_read_whose_reply_is_lost_may_be_repeated() {
    let (server, proxy) = proxied();
    let store = open(impatient(&server, &proxy)).await;
    store.put("k", "v").await.unwrap();
    assert!(store.get("k").await.unwrap().is_some());
    proxy.set(Mode::CutReply(3));
    let error = store.get("k").await.unwrap_err();
    assert_eq!((error.kind(), error.retry()), (ErrorKind::Unavailable, Retry::Safe), "{error}");
    assert_eq!(store.get("k").await.unwrap().unwrap(), "v");
    proxy.set(Mode::BlackHole);
    let error = store.get("k").await.unwrap_err();
    assert_eq!((error.kind(), error.retry()), (ErrorKind::Timeout, Retry::Safe), "{error}");
    proxy.set(Mode::Pass);
    works_again(&store).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_paused_past_the_timeouts_is_waited_for_no_longer_and_used_again() {
    let (server, proxy) = proxied();
    let store = open(impatient(&server, &proxy)).await;
    let faults = async |_: &Increments| {
        server.pause();
        let begun = Instant::now();
        let error = store.put("k", "v").await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Timeout, "{error}");
        let error = store.count("").await.unwrap_err();
        assert_eq!(error.retry(), Retry::Safe, "{error}");
        assert!(begun.elapsed() < RECOVERY);
        server.resume();
        works_again(&store).await;
    };
    Increments::during(&store, faults).await;
}

#[tokio::test]
async fn a_batch_and_a_transaction_are_whole_or_not_there_when_the_connection_is_cut() {
    let (server, proxy) = proxied();
    let store = open(impatient(&server, &proxy)).await;
    let key = |name: &str, round: usize| Key::new(format!("{name}{round}")).unwrap();
    let mut failed = 0;
    for round in 0..60 {
        let [a, b, c] = ["a", "b", "c"].map(|name| key(name, round));
        proxy.set(match round % 3 {
            0 => Mode::CutRequest(round as u64 * 10),
            1 => Mode::CutReply(round as u64 * 2),
            _ => Mode::Pass,
        });
        let written = match round % 2 {
            0 => {
                let absent = PutOptions::default().when(commonhold_core::Condition::Absent);
                let first = Write::Put { key: a.clone(), value: "1".into(), options: absent };
                store.write_batch(vec![first, Write::put(b.clone(), "1"), Write::delete(c)]).await.map(drop)
            }
            _ => {
                let (a, b) = (&a, &b);
                store
                    .transaction(|tx| async move {
                        assert!(tx.get(a).await?.is_none());
                        tx.put(a, "1").await?;
                        tx.put(b, "1").await
                    })
                    .await
            }
        };
        proxy.set(Mode::Pass);
        works_again(&store).await;
        let there = store.batch_get(&[a, b]).await.unwrap();
        assert_eq!(there[0].is_some(), there[1].is_some(), "round {round}");
        failed += usize::from(written.is_err());
        match written {
            Ok(()) => assert!(there[0].is_some(), "round {round}"),
            Err(error) if error.retry() == Retry::Ambiguous => {}
            Err(error) => assert!(there[0].is_none(), "round {round}: {error}"),
        }
    }
    assert!(failed > 20, "only {failed} were cut");
}

#[tokio::test]
async fn a_pool_that_is_exhausted_says_so_and_nothing_was_done() {
    let table = Table::new();
    let config = table.config().pool(2).pool_timeout(Duration::from_millis(50));
    let backend = PostgresBackend::open(config.isolation(Some(Isolation::ReadCommitted))).await.unwrap();
    let held = [backend.begin().await.unwrap(), backend.begin().await.unwrap()];
    let error = backend.begin().await.unwrap_err();
    assert_eq!((error.kind(), error.retry()), (ErrorKind::Overloaded, Retry::Safe), "{error}");
    assert!(error.message().contains("pool="), "{error}");
    let _ = backend.put(&Key::new("k").unwrap(), "v".into(), PutOptions::default()).await.unwrap();
    drop(held);
    backend.begin().await.unwrap().commit().await.unwrap();
}

#[tokio::test]
async fn a_server_that_takes_no_more_connections_is_overloaded() {
    let server = Postgres::builder().config("max_connections = 12").start();
    let isolation = Some(Isolation::ReadCommitted);
    let backend = PostgresBackend::open(config(&server.url()).isolation(isolation).pool(20)).await.unwrap();
    let begun = join_all((0..20).map(|_| backend.begin())).await;
    let errors: Vec<_> = begun.iter().filter_map(|begun| begun.as_ref().err()).collect();
    assert!(!errors.is_empty() && errors.len() < 20);
    for error in errors {
        assert_eq!((error.kind(), error.retry()), (ErrorKind::Overloaded, Retry::Safe), "{error}");
    }
    drop(begun);
    backend.begin().await.unwrap().rollback().await.unwrap();
}

#[tokio::test]
async fn a_wrong_password_is_one_clear_error_at_once() {
    let (server, proxy) = proxied();
    for password in ["hunter2", ""] {
        let before = proxy.traffic().connections;
        let config = config(&server.url_at(proxy.port())).password(password);
        let error = PostgresBackend::open(config).await.unwrap_err();
        assert_eq!((error.kind(), error.retry()), (ErrorKind::Unauthorized, Retry::Never), "{error}");
        assert!(error.message().contains("password") && !format!("{error:?}").contains("hunter2"), "{error}");
        assert_eq!(proxy.traffic().connections, before + 1, "it is tried once");
    }
    server.sql("CREATE USER app PASSWORD 'one'; GRANT ALL ON SCHEMA public TO app");
    let store = open(impatient(&server, &proxy).user("app").password("one").database("postgres")).await;
    store.put("k", "v").await.unwrap();
    server.sql("ALTER USER app PASSWORD 'other'");
    proxy.cut();
    let refused =
        async || store.put("k", "w").await.is_err_and(|error| error.kind() == ErrorKind::Unauthorized);
    eventually(RECOVERY, "the new password is missing", refused).await;
    server.sql("ALTER USER app PASSWORD 'one'");
    works_again(&store).await;
}

#[tokio::test]
async fn a_value_that_is_too_large_is_refused_and_the_largest_comes_back() {
    let table = Table::new();
    let store = open(table.config()).await;
    let largest = 64 << 20;
    let error = store.put("k", vec![1; largest + 1]).await.unwrap_err();
    assert_eq!((error.kind(), error.retry()), (ErrorKind::TooLarge, Retry::Never));
    assert_eq!(store.get("k").await.unwrap(), None);
    store.put("k", vec![1; largest]).await.unwrap();
    assert_eq!(store.get("k").await.unwrap().unwrap().len(), largest);
}

#[tokio::test]
async fn a_server_that_is_not_there_at_the_start_is_an_error_within_bounds() {
    let (server, proxy) = proxied();
    let config = || impatient(&server, &proxy).connect_timeout(Duration::from_millis(300));
    proxy.set(Mode::Refuse);
    let error = PostgresBackend::open(config()).await.unwrap_err();
    assert_eq!((error.kind(), error.retry()), (ErrorKind::Unavailable, Retry::Safe), "{error}");
    proxy.set(Mode::BlackHole);
    let error = PostgresBackend::open(config()).await.unwrap_err();
    assert_eq!((error.kind(), error.retry()), (ErrorKind::Timeout, Retry::Safe), "{error}");
    proxy.set(Mode::Close);
    let error = PostgresBackend::open(config()).await.unwrap_err();
    assert_eq!((error.kind(), error.retry()), (ErrorKind::Unavailable, Retry::Safe), "{error}");
    proxy.set(Mode::Pass);
    works_again(&open(config()).await).await;
}

#[tokio::test]
async fn a_watcher_is_told_that_it_may_have_missed_something_and_goes_on() {
    let (server, proxy) = proxied();
    let store = open(impatient(&server, &proxy).watch(true)).await;
    let beside = open(config(&server.url())).await;
    let mut changes = store.watch("").await.unwrap();
    let mut messages = store.subscribe("channel").await.unwrap();
    let change = |name: &str| Change::Put(Key::new(name).unwrap());
    store.put("a", "1").await.unwrap();
    assert_eq!(changes.next().await.unwrap().unwrap(), change("a"));
    for (round, restart) in [(0, false), (1, true)] {
        proxy.set(Mode::Refuse);
        beside.put("unseen", "1").await.unwrap();
        if restart {
            server.restart();
        }
        proxy.set(Mode::Pass);
        assert_eq!(changes.next().await.unwrap().unwrap(), Change::Missed, "round {round}");
        assert_eq!(messages.next().await.unwrap().unwrap(), commonhold_core::Message::Missed);
        eventually(RECOVERY, "it works again", async || beside.put("b", "1").await.is_ok()).await;
        loop {
            match changes.next().await.unwrap().unwrap() {
                Change::Missed => {}
                seen => break assert_eq!(seen, change("b"), "round {round}"),
            }
        }
        works_again(&store).await;
        let mut rest = store.watch("last").await.unwrap();
        store.put("last", "1").await.unwrap();
        assert_eq!(rest.next().await.unwrap().unwrap(), change("last"));
        while changes.next().await.unwrap().unwrap() != change("last") {}
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_million_keys_are_listed_and_cleared_while_others_write() {
    let table = Table::new();
    let store = open(table.config().timeout(Duration::from_secs(60))).await;
    let fill = format!(
        "INSERT INTO {} SELECT convert_to('many:' || lpad(i::text, 7, '0'), 'UTF8'), '\\x00' FROM generate_series(1, 1000000) i",
        table.name
    );
    sql(postgres_url(), &fill).await;
    let written = Arc::new(AtomicU64::new(0));
    let writer = tokio::spawn({
        let (store, written) = (store.clone(), Arc::clone(&written));
        async move {
            loop {
                let n = written.load(Ordering::SeqCst);
                store.put(format!("other:{n}"), "v").await.unwrap();
                store.increment("many counter", 1).await.unwrap();
                written.fetch_add(1, Ordering::SeqCst);
            }
        }
    });
    let before = resident_bytes();
    let mut scan = Scan::prefix(Prefix::new("many:").unwrap());
    scan.page = Scan::MAX_PAGE;
    let mut last: Option<Key> = None;
    let mut listed = 0;
    let mut entries = store.scan(scan);
    while let Some((key, _)) = entries.try_next().await.unwrap() {
        assert!(last.is_none_or(|last| last < key));
        last = Some(key);
        listed += 1;
    }
    assert_eq!(listed, 1_000_000);
    assert!(resident_bytes() < before + (64 << 20), "{before} bytes became {}", resident_bytes());
    assert_eq!(store.count("many:").await.unwrap(), 1_000_000);
    assert_eq!(store.clear("many:").await.unwrap(), 1_000_000);
    assert_eq!(store.count("many:").await.unwrap(), 0);
    eventually(RECOVERY, "others write", async || written.load(Ordering::SeqCst) > 10).await;
    writer.abort();
    assert!(store.count("other:").await.unwrap() >= written.load(Ordering::SeqCst));
}

fn resident_bytes() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn histories_are_linearizable_through_kills_and_lost_replies() {
    let (server, proxy) = proxied();
    let stores = [open(impatient(&server, &proxy)).await, open(impatient(&server, &proxy)).await];
    let history = record(&stores, &Load::default(), async |progress| {
        progress.reaches(200).await;
        server.kill();
        server.start_again();
        progress.gains(200).await;
        for mode in [Mode::CutReply(0), Mode::CutRequest(0), Mode::CutReply(0)] {
            proxy.set(mode);
            progress.gains(50).await;
        }
        proxy.set(Mode::LoseReplies);
        tokio::time::sleep(Duration::from_millis(200)).await;
        proxy.set(Mode::Pass);
        progress.gains(200).await;
        server.pause();
        tokio::time::sleep(Duration::from_millis(1200)).await;
        server.resume();
        progress.gains(200).await;
    })
    .await;
    eprintln!("{:?}, longest outage {:?}", history.error_kinds(), history.longest_outage);
    assert!(history.unknown() > 0, "no reply was lost");
    history.assert_linearizable();
}

/// As a process does that is stopped: its server has the lock, and it never hears of that.
#[tokio::test(flavor = "multi_thread")]
async fn one_that_stops_while_it_holds_a_lock_holds_nobody_up() {
    let (server, proxy) = proxied();
    let stopped = open(impatient(&server, &proxy).timeout(Duration::from_secs(600))).await;
    let other = open(config(&server.url()).sweep(None)).await;
    let key = Key::new("k").unwrap();
    other.put("k", "v").await.unwrap();
    let batch = move || {
        let options = PutOptions::default().when(commonhold_core::Condition::Present);
        vec![Write::Put { key: key.clone(), value: "w".into(), options }]
    };
    stopped.write_batch(batch()).await.unwrap();
    proxy.set(Mode::LoseReplies);
    let stuck = tokio::spawn(async move { stopped.write_batch(batch()).await });
    let locked = "SELECT count(*) FROM pg_stat_activity WHERE state = 'idle in transaction'";
    eventually(RECOVERY, "the server holds the lock", async || server.sql(locked).trim() == "1").await;
    eventually(RECOVERY, "others write", async || other.put("k", "x").await.is_ok()).await;
    assert_eq!(other.get("k").await.unwrap().unwrap(), "x");
    stuck.abort();
}
