//! Advisory locks: one holder at a time, through everything that can happen to its session.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use commonhold_core::{ErrorKind, Retry};
use commonhold_postgres::{AdvisoryGuard, AdvisoryLocks};
use commonhold_testkit::{
    eventually,
    proxy::{Mode, Proxy},
    servers::{PgBouncer, Postgres, shared::postgres_url},
};
use futures_util::future::join_all;
use tokio_postgres::NoTls;

use crate::common::{Table, config, sql};

const PATIENCE: Duration = Duration::from_secs(60);

/// Locks under this table's name, their sessions known by it.
async fn open(table: &Table) -> AdvisoryLocks {
    AdvisoryLocks::open(table.config().pool(64).application_name(&table.name)).await.unwrap()
}

async fn on(server: &Postgres, port: u16) -> AdvisoryLocks {
    AdvisoryLocks::open(config(&server.url_at(port))).await.unwrap()
}

async fn take(locks: &AdvisoryLocks, name: &str) -> AdvisoryGuard {
    locks.acquire(name, PATIENCE).await.unwrap().expect("it is had in time")
}

fn wait(locks: &AdvisoryLocks, name: &str) -> tokio::task::JoinHandle<AdvisoryGuard> {
    let (locks, name) = (locks.clone(), name.to_owned());
    tokio::spawn(async move { locks.acquire(name, PATIENCE * 60).await.unwrap().unwrap() })
}

/// How many sessions of this name have, or wait for, an advisory lock.
async fn sessions(table: &Table, granted: bool) -> usize {
    let statement = format!(
        "SELECT l.pid FROM pg_locks l JOIN pg_stat_activity a USING (pid) \
         WHERE l.locktype = 'advisory' AND a.application_name = '{}' AND l.granted = {granted}",
        table.name
    );
    sql(postgres_url(), &statement).await.len()
}

async fn waiters_are(table: &Table, count: usize) {
    eventually(PATIENCE, "so many wait", async || sessions(table, false).await == count).await;
}

async fn nothing_is_left(table: &Table) {
    let left = format!("SELECT 1 FROM pg_stat_activity WHERE application_name = '{}'", table.name);
    eventually(PATIENCE, "no session is left", async || sql(postgres_url(), &left).await.is_empty()).await;
}

#[tokio::test]
async fn one_holds_a_lock_at_a_time() {
    let table = Table::new();
    let (one, other) = (open(&table).await, open(&table).await);
    let first = one.try_acquire("l").await.unwrap().unwrap();
    assert!(first.is_held() && first.name() == b"l" && !first.lost().is_cancelled());
    assert!(other.try_acquire("l").await.unwrap().is_none());
    assert!(one.try_acquire("l").await.unwrap().is_none(), "nor may the same process have it twice");
    assert!(other.acquire("l", Duration::from_millis(20)).await.unwrap().is_none());
    assert!(one.acquire("l", Duration::ZERO).await.unwrap().is_none());
    let unrelated = other.acquire("m", Duration::ZERO).await.unwrap().unwrap();

    let waiting = wait(&other, "l");
    waiters_are(&table, 1).await;
    let (lost, token) = (first.lost(), first.token());
    assert!(first.release().await.unwrap());
    assert!(lost.is_cancelled());
    let second = waiting.await.unwrap();
    assert!(second.token() > token && second.is_held());
    let (lost, token) = (second.lost(), second.token());
    drop(second);
    assert!(lost.is_cancelled());
    assert!(take(&one, "l").await.token() > token);
    drop(unrelated);
    assert!(one.with_lock("m", PATIENCE, |token| async move { token }).await.unwrap() > token);
    nothing_is_left(&table).await;
}

#[tokio::test]
async fn another_table_or_schema_has_other_locks() {
    let (table, other) = (Table::new(), Table::new());
    let held = take(&open(&table).await, "l").await;
    assert!(open(&other).await.try_acquire("l").await.unwrap().is_some());
    assert!(open(&table).await.try_acquire("l").await.unwrap().is_none());
    drop(held);
}

#[tokio::test]
async fn names_are_any_bytes_and_each_is_another_lock() {
    let table = Table::new();
    let locks = open(&table).await;
    let long = [b'x'; 1024];
    let names: [&[u8]; 9] = [
        b"a",
        b"A",
        b"a\0",
        b"\0a",
        b"\xff\xfe",
        b"'; DROP TABLE x; --",
        "\u{1f512}".as_bytes(),
        b" ",
        &long,
    ];
    let mut held = Vec::new();
    for name in names {
        let guard = locks.try_acquire(name).await.unwrap().unwrap();
        assert_eq!(guard.name(), name);
        held.push(guard);
    }
    for name in names {
        assert!(locks.try_acquire(name).await.unwrap().is_none(), "{name:?}");
    }
    let refused = [(b"".as_slice(), ErrorKind::InvalidInput), (&[0; 1025], ErrorKind::TooLarge)];
    for (name, kind) in refused {
        let error = locks.try_acquire(name).await.unwrap_err();
        assert_eq!((error.kind(), error.retry()), (kind, Retry::Never), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_counts_under_the_lock_loses_nothing() {
    let table = Table::new();
    let (one, other) = (open(&table).await, open(&table).await);
    let (count, last) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let tasks = (0..8).map(|i| {
        let locks = if i % 2 == 0 { one.clone() } else { other.clone() };
        let (count, last) = (Arc::clone(&count), Arc::clone(&last));
        tokio::spawn(async move {
            for _ in 0..10 {
                let counted = locks.with_lock("n", PATIENCE, async |token| {
                    let read = count.load(Ordering::SeqCst);
                    assert!(last.swap(token, Ordering::SeqCst) < token);
                    tokio::task::yield_now().await;
                    count.store(read + 1, Ordering::SeqCst);
                });
                counted.await.unwrap();
            }
        })
    });
    join_all(tasks).await.into_iter().for_each(|task| task.unwrap());
    assert_eq!(count.load(Ordering::SeqCst), 80);
}

#[tokio::test]
async fn sixteen_waiters_have_it_in_the_order_of_their_coming() {
    let table = Table::new();
    let locks = open(&table).await;
    let held = take(&locks, "l").await;
    let order = Arc::new(std::sync::Mutex::new(Vec::new()));
    let mut waiters = Vec::new();
    for i in 0..16 {
        let (locks, order) = (locks.clone(), Arc::clone(&order));
        waiters.push(tokio::spawn(async move {
            locks.with_lock("l", PATIENCE, |_| async { order.lock().unwrap().push(i) }).await.unwrap();
        }));
        waiters_are(&table, i + 1).await;
    }
    assert!(held.release().await.unwrap());
    join_all(waiters).await.into_iter().for_each(|waiter| waiter.unwrap());
    assert_eq!(*order.lock().unwrap(), (0..16).collect::<Vec<_>>());
}

#[tokio::test]
async fn whoever_stops_waiting_leaves_the_queue() {
    let table = Table::new();
    let locks = open(&table).await;
    let held = take(&locks, "l").await;
    let waiting: Vec<_> = (0..5).map(|_| wait(&locks, "l")).collect();
    waiters_are(&table, 5).await;
    waiting.iter().for_each(tokio::task::JoinHandle::abort);
    waiters_are(&table, 0).await;
    assert!(held.is_held());
    drop(held);
    nothing_is_left(&table).await;
}

#[tokio::test]
async fn a_claim_that_is_dropped_at_any_moment_leaves_no_lock_behind() {
    let table = Table::new();
    let locks = open(&table).await;
    for round in 0..60 {
        let claim = async {
            if round % 2 == 0 { locks.acquire("l", PATIENCE).await } else { locks.try_acquire("l").await }
        };
        let _ = tokio::time::timeout(Duration::from_micros(300 * round), claim).await;
    }
    nothing_is_left(&table).await;
    assert!(take(&locks, "l").await.release().await.unwrap());
}

#[tokio::test]
async fn work_is_dropped_when_its_lock_is_lost() {
    let table = Table::new();
    let locks = open(&table).await;
    let work = locks.with_lock("l", PATIENCE, |_| async {
        let holders = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name";
        sql(postgres_url(), &format!("{holders} = '{}'", table.name)).await;
        std::future::pending::<()>().await;
    });
    let error = work.await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict, "{error}");
    let held = take(&locks, "l").await;
    let error = locks.with_lock("l", Duration::ZERO, |_| async {}).await.unwrap_err();
    assert_eq!((error.kind(), error.retry()), (ErrorKind::Timeout, Retry::Safe), "{error}");
    drop(held);
}

#[tokio::test]
async fn a_session_that_is_terminated_loses_its_lock_and_its_holder_is_told() {
    let server = Postgres::start();
    let locks = on(&server, server.port()).await;
    let held = take(&locks, "l").await;
    let waiting = wait(&locks, "l");
    let waiter = "SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND NOT granted";
    eventually(PATIENCE, "one waits", async || !server.sql(waiter).is_empty()).await;
    server.sql(&waiter.replace("SELECT pid", "SELECT pg_terminate_backend(pid)"));
    eventually(PATIENCE, "it waits again", async || !server.sql(waiter).is_empty()).await;
    server.sql("SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND granted");
    held.lost().cancelled().await;
    assert!(!held.is_held());
    let token = held.token();
    assert!(!held.release().await.unwrap());
    assert!(waiting.await.unwrap().token() > token);
}

#[tokio::test]
async fn a_lock_is_lost_with_its_server_and_tokens_rise_after_the_restart() {
    let server = Postgres::start();
    let locks = on(&server, server.port()).await;
    let mut last = 0;
    for round in 0..3 {
        let held = take(&locks, "l").await;
        assert!(held.token() > last, "{} after {last}", held.token());
        last = held.token();
        let waiting = wait(&locks, "l");
        if round == 0 {
            server.stop()
        } else {
            server.kill()
        }
        held.lost().cancelled().await;
        let error = locks.try_acquire("l").await.unwrap_err();
        assert_eq!((error.kind(), error.retry()), (ErrorKind::Unavailable, Retry::Safe), "{error}");
        server.start_again();
        let waited = waiting.await.unwrap();
        assert!(waited.token() > last, "{} after {last}", waited.token());
        last = waited.token();
        assert!(waited.release().await.unwrap());
    }
}

#[tokio::test]
async fn tokens_rise_over_a_crash_though_the_server_does_not_wait_for_its_log() {
    let server =
        Postgres::builder().config("synchronous_commit = off").config("wal_writer_delay = 10s").start();
    let locks = on(&server, server.port()).await;
    let mut last = 0;
    for _ in 0..3 {
        for name in ["a", "b", "a", "b"] {
            let held = take(&locks, name).await;
            assert!(held.token() > last, "{} after {last}", held.token());
            last = held.token();
        }
        server.kill();
        server.start_again();
        // A number that somebody has taken and not committed is not on the disk, and those that follow may need it.
        let (client, connection) = tokio_postgres::connect(&server.url(), NoTls).await.unwrap();
        tokio::spawn(connection);
        client.batch_execute("BEGIN; SELECT nextval('commonhold_lock_tokens')").await.unwrap();
        let held = take(&locks, "a").await;
        assert!(held.token() > last, "{} after {last}", held.token());
        last = held.token();
        server.kill();
        server.start_again();
    }
}

#[tokio::test]
async fn a_holder_whose_server_falls_silent_knows_before_another_has_the_lock() {
    let server = Postgres::start();
    let proxy = Proxy::before(server.port());
    let (far, near) = (on(&server, proxy.port()).await, on(&server, server.port()).await);
    let held = take(&far, "l").await;
    let waiting = wait(&near, "l");
    proxy.set(Mode::BlackHole);
    let next = waiting.await.unwrap();
    assert!(held.lost().is_cancelled() && !held.is_held());
    assert!(next.token() > held.token());
    assert!(!held.release().await.unwrap());
    proxy.set(Mode::Pass);
    assert!(next.release().await.unwrap());
    assert!(take(&far, "l").await.is_held());
}

#[tokio::test]
async fn a_claim_whose_answer_is_lost_holds_nothing() {
    let server = Postgres::start();
    let proxy = Proxy::before(server.port());
    let (far, near) = (on(&server, proxy.port()).await, on(&server, server.port()).await);
    // The last bytes of the replies are those about the lock and its token.
    let before = proxy.traffic().reply_bytes;
    drop(take(&far, "l").await);
    let claim = proxy.traffic().reply_bytes - before;
    for cut in 1..claim {
        proxy.set(Mode::CutReply(cut));
        match far.try_acquire("l").await {
            Ok(held) => drop(held),
            Err(error) => assert_eq!((error.kind(), error.retry()), (ErrorKind::Unavailable, Retry::Safe)),
        }
        proxy.set(Mode::Pass);
    }
    assert!(take(&near, "l").await.is_held());
}

#[tokio::test]
async fn a_server_that_is_paused_for_long_takes_the_lock_away() {
    let server = Postgres::start();
    let locks = on(&server, server.port()).await;
    let held = take(&locks, "l").await;
    server.pause();
    held.lost().cancelled().await;
    assert!(!held.release().await.unwrap());
    server.resume();
    assert!(take(&locks, "l").await.is_held());
}

#[tokio::test]
async fn more_sessions_than_the_limit_are_refused_until_one_has_ended() {
    let table = Table::new();
    let few = table.config().pool(2).pool_timeout(Duration::from_millis(50));
    let locks = AdvisoryLocks::open(few).await.unwrap();
    let held = take(&locks, "a").await;
    let waiting = wait(&locks, "a");
    eventually(PATIENCE, "both are in use", async || {
        let refused = locks.try_acquire("b").await;
        let overloaded = refused.as_ref().is_err_and(|error| error.kind() == ErrorKind::Overloaded);
        assert!(overloaded || refused.is_ok(), "{refused:?}");
        overloaded
    })
    .await;
    let error = locks.acquire("b", Duration::ZERO).await.unwrap_err();
    assert_eq!((error.kind(), error.retry()), (ErrorKind::Overloaded, Retry::Safe), "{error}");
    assert!(error.message().contains("pool="), "{error}");
    assert!(held.release().await.unwrap());
    drop(waiting.await.unwrap());
    assert!(take(&locks, "b").await.is_held());
}

#[tokio::test]
async fn behind_pgbouncer_there_are_none() {
    let server = Postgres::start();
    let bouncer = PgBouncer::start(&server);
    let error = AdvisoryLocks::open(config(&bouncer.url()).pgbouncer(true)).await.unwrap_err();
    assert_eq!((error.kind(), error.retry()), (ErrorKind::Unsupported, Retry::Never), "{error}");
    assert!(error.message().contains("session"), "{error}");
    // Nor where nobody said so: it does not let the settings of a session through.
    let error = AdvisoryLocks::open(config(&bouncer.url())).await.unwrap_err();
    assert!(error.message().contains("options"), "{error}");
}
