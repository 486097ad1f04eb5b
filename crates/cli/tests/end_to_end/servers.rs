//! All commands over the stores on a network, against real servers.

use std::{collections::BTreeMap, time::Duration};

use commonhold::{Expiry, Key, Prefix, PutOptions, Scan, Write};
use commonhold_testkit::servers::{Memcached, Postgres, Redis, shared, unique};
use futures_util::TryStreamExt as _;

use crate::sandbox::Sandbox;

const HOUR: Duration = Duration::from_secs(3600);

fn with(url: &str, option: &str) -> String {
    format!("{url}{}{option}", if url.contains('?') { '&' } else { '?' })
}

/// A part of the shared server for this test alone.
fn redis() -> String {
    with(shared::redis_url(), &format!("prefix={}:", unique("cli")))
}

fn postgres() -> String {
    with(shared::postgres_url(), &format!("table={}", unique("cli")))
}

fn memcached() -> String {
    with(shared::memcached_url(), &format!("prefix={}:", unique("cli")))
}

fn assert_commands_work(url: &str, lists: bool) {
    let sandbox = Sandbox::new();
    let run = |args: &[&str]| sandbox.run([&["--store", url], args].concat());
    let ok = |args: &[&str]| sandbox.ok(&[&["--store", url], args].concat());
    let no = |args: &[&str]| assert_eq!(run(args).code, Some(1), "{args:?}");
    no(&["get", "k"]);
    ok(&["put", "k", "v"]);
    assert_eq!(ok(&["get", "k", "--raw"]), "v");
    no(&["put", "k", "w", "--if-absent"]);
    no(&["put", "k", "w", "--if-equals", "other"]);
    ok(&["put", "k", "w", "--if-equals", "v", "--ttl", "1h"]);
    let left = ok(&["ttl", "k"]);
    assert!(left == "1h\n" || left.starts_with("59m"), "{left}");
    ok(&["ttl", "k", "--persist"]);
    assert_eq!(ok(&["ttl", "k"]), "never expires\n");
    assert_eq!(ok(&["increment", "n"]), "1\n");
    assert_eq!(ok(&["increment", "n", "41"]), "42\n");
    assert_eq!(run(&["increment", "k"]).code, Some(2), "it is no number");
    ok(&["--escaped", "put", r"odd * key\x00\xff\n", r"\xff"]);
    assert_eq!(ok(&["--escaped", "get", r"odd * key\x00\xff\n"]), "\\xff\n");
    if lists {
        assert_eq!(ok(&["count"]), "3\n");
        let mut listed: Vec<_> = ok(&["--escaped", "list"]).lines().map(str::to_owned).collect();
        listed.sort_unstable();
        assert_eq!(listed, ["k", "n", r"odd * key\x00\xff\n"]);
        assert_eq!(ok(&["count", "odd *"]), "1\n");
        assert_eq!(ok(&["count", "*"]), "0\n");
        ok(&["clear", "odd", "--yes"]);
        assert_eq!(ok(&["count"]), "2\n");
    } else {
        for args in [&["list"][..], &["count"], &["clear", "odd", "--yes"]] {
            let refused = run(args);
            assert_eq!(refused.code, Some(2), "{refused:?}");
            assert!(
                refused.stderr.contains("cannot list") && refused.stderr.contains("doctor"),
                "{refused:?}"
            );
        }
    }
    assert_eq!(ok(&["take", "k", "--raw"]), "w");
    no(&["take", "k"]);
    assert_eq!(ok(&["delete", "n", "k"]), "deleted 1 of 2\n");
}

#[test]
fn every_command_works_on_redis() {
    assert_commands_work(&redis(), true);
}

#[test]
fn every_command_works_on_postgres() {
    assert_commands_work(&postgres(), true);
}

#[test]
fn every_command_works_on_memcached() {
    assert_commands_work(&memcached(), false);
}

#[test]
fn doctor_and_bench_show_what_the_servers_are_like() {
    let sandbox = Sandbox::new();
    for url in [redis(), postgres(), memcached()] {
        let found = &sandbox.json(&["--store", &url, "doctor"])[0];
        assert!(found["version"].as_str().is_some_and(|version| !version.is_empty()), "{found}");
        assert!(found["clock_ahead_ms"].as_i64().is_some_and(|ahead| ahead.abs() < 5_000), "{found}");
        assert_eq!(found["capabilities"]["shared"], true);
        assert!(found["latency"]["get"]["median_ms"].as_f64().unwrap() > 0.0, "{found}");
        assert!(sandbox.ok(&["--store", &url, "doctor"]).contains("MEDIAN"));
        let measured = sandbox.json(&["--store", &url, "bench", "--requests", "200", "--keys", "50"]);
        assert_eq!(measured.len(), 4);
        assert!(measured.iter().all(|op| op["calls"] == 200), "{measured:?}");
    }
}

async fn fill(url: &str, entries: u32) {
    let store = commonhold::open(url).await.unwrap();
    let put = |i: u32| Write::Put {
        key: Key::new([b"k\0*".as_slice(), &i.to_be_bytes()].concat()).unwrap(),
        value: [&i.to_le_bytes()[..], &[0xff; 100]].concat().into(),
        options: PutOptions::default().expiry(Expiry::from(i.is_multiple_of(2).then_some(HOUR))),
    };
    for first in (0..entries).step_by(1_000) {
        store.write_batch((first..entries.min(first + 1_000)).map(put).collect()).await.unwrap();
    }
}

/// Whoever scans the shared server would pass over it all.
async fn clear(url: &str) {
    commonhold::open(url).await.unwrap().clear("").await.unwrap();
}

async fn contents(url: &str) -> BTreeMap<Vec<u8>, (Vec<u8>, bool)> {
    let store = commonhold::open(url).await.unwrap();
    let entry = |(key, entry): (Key, commonhold::Entry)| {
        assert!(entry.ttl.is_none_or(|ttl| ttl <= HOUR));
        (key.as_bytes().to_vec(), (entry.value.to_vec(), entry.ttl.is_some()))
    };
    store.scan(Scan::prefix(Prefix::ALL)).map_ok(entry).try_collect().await.unwrap()
}

#[tokio::test]
async fn copies_go_from_server_to_server_and_back_to_disk() {
    let sandbox = Sandbox::new();
    let (redis, postgres) = (redis(), postgres());
    fill(&redis, 5_000).await;
    for (from, to) in [(&*redis, &*postgres), (&postgres, &memcached()), (&postgres, "disk:to")] {
        let report = &sandbox.json(&["copy", from, to])[0];
        assert_eq!(report["copied"], 5_000, "{report}");
        assert_eq!((&report["verified"], &report["different"]), (&5_000.into(), &0.into()), "{report}");
    }
    let expected = contents(&redis).await;
    assert_eq!(expected.len(), 5_000);
    assert!(contents(&postgres).await == expected);
    let disk = format!("disk:{}", sandbox.path("to").display());
    assert!(contents(&disk).await == expected);
    clear(&redis).await;
}

#[test]
fn what_cannot_be_listed_cannot_be_copied_from() {
    let sandbox = Sandbox::new();
    let refused = sandbox.run(["copy", &memcached(), "disk:to"]);
    assert!(refused.code == Some(2) && refused.stderr.contains("cannot list"), "{refused:?}");
}

#[tokio::test]
async fn a_copy_from_a_store_without_order_begins_again_and_skips_what_is_there() {
    let sandbox = Sandbox::new();
    let (redis, postgres) = (redis(), postgres());
    fill(&redis, 20_000).await;
    let mut copy = sandbox.start(["copy", &redis, &postgres]);
    let target = commonhold::open(&postgres).await.unwrap();
    commonhold_testkit::eventually(Duration::from_secs(60), "something is copied", async || {
        target.count(&Prefix::new("k").unwrap()).await.unwrap() > 0
    })
    .await;
    copy.child().kill().unwrap();
    copy.end();
    let again = sandbox.run(["copy", &redis, &postgres, "--output", "json"]);
    assert_eq!(again.code, Some(0), "{again:?}");
    assert!(again.stderr.contains("beginning again"), "{again:?}");
    let report: serde_json::Value = serde_json::from_slice(&again.stdout).unwrap();
    assert!(report["skipped"].as_u64().unwrap() > 0, "{report}");
    assert_eq!(report["skipped"].as_u64().unwrap() + report["copied"].as_u64().unwrap(), 20_000);
    assert!(contents(&redis).await == contents(&postgres).await);
    clear(&redis).await;
}

#[test]
fn passwords_never_appear() {
    const SECRET: &str = "hunter2";
    let sandbox = Sandbox::new();
    let (redis, postgres, memcached) = (Redis::start(), Postgres::start(), Memcached::start());
    redis.cli(&["CONFIG", "SET", "requirepass", "correct-horse"]);
    let urls = [
        format!("redis://u:{SECRET}@127.0.0.1:{}?retries=0", redis.port()),
        format!("redis://:{SECRET}@127.0.0.1:1?retries=0"),
        format!("redis+sentinel://u:{SECRET}@127.0.0.1:1/m?retries=0"),
        format!("redis+cluster://u:{SECRET}@127.0.0.1:1?retries=0"),
        format!("postgres://u:{SECRET}@127.0.0.1:{}/d?retries=0", postgres.port()),
        format!("postgres://u:{SECRET}@127.0.0.1:1/d?retries=0"),
        format!("memcached://u:{SECRET}@127.0.0.1:{}?retries=0", memcached.port()),
        format!("memcached://u:{SECRET}@127.0.0.1:1?retries=0"),
        format!("memcached://u:{SECRET}@127.0.0.1:x"),
        format!("redis://u:{SECRET}@127.0.0.1?nonsense={SECRET}"),
        format!("cassandra://u:{SECRET}@127.0.0.1"),
    ];
    for url in &urls {
        for args in [
            &["--store", url, "get", "k"][..],
            &["--store", url, "doctor"],
            &["copy", url, "disk:to"],
            &["copy", url, url],
            &["copy", "memory:", url],
        ] {
            let outcome = sandbox.run(args);
            let told = format!("{}{}", outcome.stderr, String::from_utf8_lossy(&outcome.stdout));
            assert!(!told.contains(SECRET), "{args:?}: {told}");
        }
    }
}

#[test]
fn a_wrong_password_is_one_clear_error_of_the_configuration() {
    let sandbox = Sandbox::new();
    let redis = Redis::start();
    redis.cli(&["CONFIG", "SET", "requirepass", "correct-horse"]);
    let url = format!("redis://:wrong@127.0.0.1:{}", redis.port());
    let outcome = sandbox.run(["--store", &url, "get", "k"]);
    assert_eq!(outcome.code, Some(2), "{outcome:?}");
    assert!(outcome.stderr.contains("unauthorized"), "{outcome:?}");
}

#[test]
fn the_address_comes_from_the_variables_that_people_have() {
    let sandbox = Sandbox::new();
    let (redis, postgres) = (redis(), postgres());
    for (backend, variable, url) in [("redis", "REDIS_URL", redis), ("postgres", "DATABASE_URL", postgres)] {
        sandbox.write("commonhold.toml", format!("[store]\nbackend = \"{backend}\"\n"));
        let put = sandbox.run_with(["put", "k", backend], &[(variable, &url)], b"");
        assert_eq!(put.code, Some(0), "{put:?}");
        assert_eq!(sandbox.ok(&["--store", &url, "get", "k", "--raw"]), backend);
    }
}

#[test]
fn a_server_that_is_away_is_said_with_exit_code_3() {
    let sandbox = Sandbox::new();
    for url in ["redis://127.0.0.1:1", "postgres://127.0.0.1:1", "memcached://127.0.0.1:1"] {
        let outcome = sandbox.run(["--store", &with(url, "retry_base=1ms"), "get", "k"]);
        assert_eq!(outcome.code, Some(3), "{url}: {outcome:?}");
        assert!(outcome.stderr.contains("127.0.0.1:1"), "{url}: {outcome:?}");
    }
}

#[test]
#[cfg(feature = "sled")]
fn an_old_sled_database_is_moved_to_disk() {
    let sandbox = Sandbox::new();
    let old = sled::open(sandbox.path("old")).unwrap();
    for i in 0..3_000u32 {
        old.insert(i.to_be_bytes(), vec![0xff; 50]).unwrap();
    }
    old.flush().unwrap();
    let held = sandbox.run(["copy", "sled:old", "disk:new"]);
    assert!(held.code == Some(3) && held.stderr.contains("another process"), "{held:?}");
    drop(old);
    // Threads of its own may hold it for a moment more.
    while sandbox.run(["--store", "sled:old", "count"]).code == Some(3) {}
    let report = &sandbox.json(&["copy", "sled:old", "disk:new"])[0];
    assert_eq!((&report["copied"], &report["verified"]), (&3_000.into(), &3_000.into()), "{report}");
    assert_eq!(sandbox.ok(&["--store", "disk:new", "count"]), "3000\n");
    let missing = sandbox.run(["copy", "sled:mistyped", "disk:new"]);
    assert!(missing.code == Some(2) && !sandbox.path("mistyped").exists(), "{missing:?}");
}
