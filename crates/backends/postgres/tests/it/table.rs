//! The table beside the store: names, migrations, plain SQL, expired rows, and what the server says of itself.

use std::time::Duration;

use crate::common::{Table, config, sql};
use commonhold_core::{
    Change, ErrorKind, Expiry, Key, Maintenance, MemoryBackend, Prefix, PutOptions, Scan, Store, Write,
};
use commonhold_postgres::{PostgresBackend, PostgresConfig};
use commonhold_testkit::{
    eventually,
    servers::{Postgres, shared::postgres_url, unique},
};
use futures_util::{StreamExt as _, TryStreamExt as _, future::join_all};

async fn open(config: PostgresConfig) -> Store {
    Store::new(PostgresBackend::open(config).await.unwrap())
}

#[tokio::test]
async fn hostile_names_are_just_names() {
    let server = Postgres::start();
    for (schema, table) in [
        ("public", "x\"; DROP SCHEMA public CASCADE; --"),
        ("it's \\ a \"schema\"", "'||pg_sleep(9)||'"),
        ("%s {} $1", "$$; SELECT 1; $$"),
        ("\u{e9}\n\t", &"long".repeat(15)),
        ("Select", "Table"),
    ] {
        let store = open(config(&server.url()).schema(schema).table(table).watch(true)).await;
        let mut changes = store.watch("").await.unwrap();
        store.put("k", "v").await.unwrap();
        assert_eq!(store.increment("n", 2).await.unwrap(), 2);
        assert_eq!(changes.next().await.unwrap().unwrap(), Change::Put(Key::new("k").unwrap()));
        assert_eq!(store.count("").await.unwrap(), 2);
        store.stats().await.unwrap();
        store.backend().maintain(Maintenance::Sweep).await.unwrap();
        store.backend().maintain(Maintenance::Compact).await.unwrap();
        let again = open(config(&server.url()).schema(schema).table(table)).await;
        assert_eq!(again.get("k").await.unwrap().unwrap(), "v");
    }
    let views = server.sql("SELECT count(*) FROM pg_views WHERE viewname LIKE '%readable'");
    assert_eq!(views, "5");
}

#[tokio::test]
async fn many_instances_that_start_at_once_make_the_table_once() {
    let server = Postgres::start();
    let started =
        join_all((0..12).map(|_| open(config(&server.url()).schema("new").watch(true).pool(2)))).await;
    for (i, store) in started.iter().enumerate() {
        store.put(format!("k{i}"), "v").await.unwrap();
    }
    assert_eq!(started[0].count("").await.unwrap(), 12);
    assert_eq!(server.sql("SELECT * FROM new.commonhold_schema"), "commonhold|1");
    assert_eq!(server.sql("SELECT count(*) FROM pg_trigger WHERE NOT tgisinternal"), "3");
}

#[tokio::test]
async fn a_table_of_somebody_else_is_left_alone() {
    let table = Table::new();
    sql(postgres_url(), &format!("CREATE TABLE {} (mine int)", table.name)).await;
    let error = PostgresBackend::open(table.config()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidConfig);
    assert!(error.message().contains("table="), "{error}");
    assert_eq!(sql(postgres_url(), &format!("SELECT count(mine) FROM {}", table.name)).await, ["0"]);
}

#[tokio::test]
async fn a_table_of_a_later_version_is_not_touched() {
    let table = Table::new();
    open(table.config()).await;
    let later = format!("UPDATE commonhold_schema SET version = 7 WHERE table_name = '{}'", table.name);
    sql(postgres_url(), &later).await;
    let error = PostgresBackend::open(table.config()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
}

#[tokio::test]
async fn a_table_that_was_dropped_by_hand_is_made_again_once() {
    let table = Table::new();
    drop(open(table.config()).await);
    let dropped = format!(
        "DROP TABLE {0} CASCADE; UPDATE commonhold_schema SET version = 7 WHERE table_name = '{0}'",
        table.name
    );
    sql(postgres_url(), &dropped).await;
    let opened = join_all((0..4).map(|_| open(table.config().pool(2)))).await;
    opened[0].put("k", "v").await.unwrap();
    assert_eq!(opened[3].get("k").await.unwrap().unwrap(), "v");
    let version = format!("SELECT version FROM commonhold_schema WHERE table_name = '{}'", table.name);
    assert_eq!(sql(postgres_url(), &version).await, ["1"]);
}

#[tokio::test]
async fn a_user_without_rights_uses_a_table_that_is_there_and_is_told_what_is_missing_otherwise() {
    let server = Postgres::start();
    let owner = open(config(&server.url())).await;
    server.sql("CREATE USER guest PASSWORD 'guest'; GRANT SELECT ON commonhold, commonhold_schema TO guest");
    let guest = || config(&server.url()).user("guest").password("guest").database("postgres");
    let store = open(guest()).await;
    owner.put("k", "v").await.unwrap();
    assert_eq!(store.get("k").await.unwrap().unwrap(), "v");
    let refused = store.put("k", "w").await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Unauthorized);
    let refused = PostgresBackend::open(guest().table("another")).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Unauthorized);
    let refused = PostgresBackend::open(guest().database("nowhere")).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::InvalidConfig);
}

#[tokio::test]
async fn plain_sql_reads_the_view() {
    let table = Table::new();
    let store = open(table.config()).await;
    store.put("user:1", r#"{"name": "Ada", "city": "Oslo"}"#).await.unwrap();
    store.put("user:2", r#"{"name": "Bo", "city": "Rome"}"#).await.unwrap();
    store.put_with_ttl("user:3", r#"{"city": "Oslo"}"#, Duration::from_millis(1)).await.unwrap();
    for value in
        [&b"no json"[..], b"", b"\0", b"\xff\xfe", br#"{"nul": "\u0000"}"#, b"{", b"12", &[b'['; 100_000]]
    {
        store.put([b"odd:", &value[..value.len().min(9)]].concat(), value.to_vec()).await.unwrap();
    }
    eventually(Duration::from_secs(5), "the third user expires", async || {
        store.get("user:3").await.unwrap().is_none()
    })
    .await;
    let view = format!("{}_readable", table.name);
    let select =
        format!("SELECT key, json->>'name' AS name FROM {view} WHERE json->>'city' = 'Oslo' ORDER BY key");
    assert_eq!(sql(postgres_url(), &select).await, ["user:1|Ada"]);
    assert_eq!(
        sql(postgres_url(), &format!("SELECT count(*), count(text), count(json) FROM {view}")).await,
        ["10|10|3"]
    );
    let select = format!("SELECT key, text FROM {view} WHERE raw_key = '\\x6f64643afffe'");
    assert_eq!(sql(postgres_url(), &select).await, ["odd:\\377\\376|\\377\\376"]);
}

#[tokio::test]
async fn what_plain_sql_writes_is_read_and_watched() {
    let table = Table::new();
    let store = open(table.config().watch(true)).await;
    let changes = store.watch("").await.unwrap();
    let name = &table.name;
    let statements = [
        format!("INSERT INTO {name} VALUES ('a', '1', 'infinity')"),
        format!("UPDATE {name} SET key = 'b'"),
        format!(
            "BEGIN; DELETE FROM {name}; INSERT INTO {name} VALUES ('b', '2'); DELETE FROM {name}; COMMIT"
        ),
        format!("TRUNCATE {name}"),
        format!("INSERT INTO {name} VALUES ('c', '3', '200000-01-01')"),
    ];
    for statement in &statements {
        sql(postgres_url(), statement).await;
    }
    let entry = store.get_entry("c").await.unwrap().unwrap();
    assert!(entry.value == "3" && entry.ttl.unwrap() > Duration::from_secs(200 * 365 * 24 * 3600));
    let [a, b, c] = ["a", "b", "c"].map(|key| Key::new(key).unwrap());
    let seen: Vec<Change> = changes.take(8).try_collect().await.unwrap();
    let (put, deleted) = (Change::Put, Change::Deleted);
    let expected =
        [put(a.clone()), deleted(a), put(b.clone()), deleted(b.clone()), put(b.clone()), deleted(b)];
    assert_eq!(seen[..6], expected);
    assert_eq!(seen[6..], [Change::Missed, put(c)]);
}

#[tokio::test]
async fn an_unlogged_table_is_one_and_a_warning_says_so() {
    let table = Table::new();
    let store = open(table.config().unlogged(true)).await;
    let select = format!("SELECT relpersistence FROM pg_class WHERE relname = '{}'", table.name);
    assert_eq!(sql(postgres_url(), &select).await, ["u"]);
    let health = store.health_check().await.unwrap();
    assert!(health.warnings.iter().any(|warning| warning.contains("unlogged")), "{health:?}");
    assert!(!store.capabilities().durable);
}

#[tokio::test]
async fn durability_is_promised_where_the_server_keeps_it() {
    let server = Postgres::builder().config("fsync = on").start();
    assert!(open(config(&server.url())).await.capabilities().durable);
    assert!(!open(config(&server.url()).table("u").unlogged(true)).await.capabilities().durable);
    let server = Postgres::builder().config("fsync = on").config("synchronous_commit = off").start();
    let store = open(config(&server.url())).await;
    assert!(!store.capabilities().durable);
    store.backend().maintain(Maintenance::Flush).await.unwrap();
}

#[tokio::test]
async fn expired_rows_are_swept_in_the_background_and_by_one_at_a_time() {
    let table = Table::new();
    let store = open(table.config().sweep(Some(Duration::from_millis(20)))).await;
    let expiry = PutOptions::default().expiry(Expiry::After(Duration::from_millis(1)));
    let expiring = |i| Write::Put {
        key: Key::new(format!("k{i}")).unwrap(),
        value: "v".into(),
        options: expiry.clone(),
    };
    store.write_batch((0..2_500).map(expiring).collect()).await.unwrap();
    store.put("stays", "v").await.unwrap();
    let rows = format!("SELECT count(*) FROM {}", table.name);
    eventually(Duration::from_secs(20), "the rows go", async || sql(postgres_url(), &rows).await == ["1"])
        .await;

    let quiet = open(table.config().sweep(None)).await;
    drop(store);
    quiet.put_with_ttl("k", "v", Duration::from_millis(1)).await.unwrap();
    eventually(Duration::from_secs(5), "it expires", async || quiet.get("k").await.unwrap().is_none()).await;
    let (other, connection) = tokio_postgres::connect(postgres_url(), tokio_postgres::NoTls).await.unwrap();
    tokio::spawn(connection);
    let lock = format!("SELECT pg_advisory_lock(6516589 << 32 | '{}'::regclass::oid::int8)", table.name);
    other.batch_execute(&lock).await.unwrap();
    quiet.backend().maintain(Maintenance::Sweep).await.unwrap();
    assert_eq!(sql(postgres_url(), &rows).await, ["2"], "another is at it");
    other.batch_execute("SELECT pg_advisory_unlock_all()").await.unwrap();
    quiet.backend().maintain(Maintenance::Sweep).await.unwrap();
    assert_eq!(sql(postgres_url(), &rows).await, ["1"]);
}

#[tokio::test]
async fn a_put_without_a_time_to_live_gets_the_default_one() {
    let table = Table::new();
    let hour = Duration::from_secs(3600);
    let store = open(table.config().default_ttl(Some(hour))).await;
    store.put("single", "v").await.unwrap();
    store.batch_put([("batch", "v")]).await.unwrap();
    assert!(store.set_if_not_exists("absent", "v").await.unwrap());
    store.increment("counter", 1).await.unwrap();
    for key in ["single", "batch", "absent", "counter"] {
        let ttl = store.ttl(key).await.unwrap().unwrap().unwrap();
        assert!(ttl <= hour && ttl > hour / 2, "{key}: {ttl:?}");
    }
    assert!(store.persist("single").await.unwrap());
    assert_eq!(store.ttl("single").await.unwrap(), Some(None));
}

#[tokio::test]
async fn a_big_batch_comes_by_copy_with_the_later_of_two_values_and_times_to_live() {
    let table = Table::new();
    let store = open(table.config()).await;
    store.put("k7", "old").await.unwrap();
    let put = |i: usize| {
        let ttl = i.is_multiple_of(2).then_some(Duration::from_secs(3600));
        let options = PutOptions::default().expiry(ttl.into());
        Write::Put {
            key: Key::new(format!("k{}", i % 20_000)).unwrap(),
            value: i.to_string().into(),
            options,
        }
    };
    let applied = store.write_batch((0..30_000).map(put).collect()).await.unwrap();
    assert!(applied.len() == 30_000 && applied.iter().all(|applied| applied.is_yes()));
    assert_eq!(store.count("").await.unwrap(), 20_000);
    assert_eq!(store.get("k7").await.unwrap().unwrap(), "20007");
    assert_eq!(store.get("k19999").await.unwrap().unwrap(), "19999");
    assert_eq!(store.ttl("k19999").await.unwrap(), Some(None));
    assert!(store.ttl("k19998").await.unwrap().unwrap().is_some());
}

#[tokio::test]
async fn the_store_says_how_it_is() {
    let table = Table::new();
    let store = open(table.config()).await;
    store.put("k", "v").await.unwrap();
    store.backend().maintain(Maintenance::Analyze).await.unwrap();
    let health = store.health_check().await.unwrap();
    assert!(health.version.starts_with("15") || !health.version.is_empty());
    assert!(health.now.is_some());
    let detail =
        |name: &str| health.details.iter().find(|(other, _)| other == name).map(|(_, value)| value.clone());
    assert_eq!(detail("role").unwrap(), "primary");
    for name in ["round trip", "connections", "pool", "table"] {
        assert!(detail(name).is_some(), "{name}: {health:?}");
    }
    let stats = store.stats().await.unwrap();
    assert!(stats.disk_bytes.unwrap() > 0);
    for name in ["database bytes", "table bytes", "dead rows", "pool connections at most"] {
        assert!(stats.details.iter().any(|(other, _)| *other == name), "{name}: {stats:?}");
    }
}

#[tokio::test]
async fn long_values_make_short_pages() {
    let table = Table::new();
    let store = open(table.config()).await;
    for i in 0..20 {
        store.put(format!("k{i:02}"), vec![b'x'; 3 << 20]).await.unwrap();
    }
    let entries: Vec<_> = store.scan(Scan::prefix(Prefix::ALL)).try_collect().await.unwrap();
    assert_eq!(entries.len(), 20);
    assert!(entries.iter().all(|(_, entry)| entry.value.len() == 3 << 20));
    assert!(entries.windows(2).all(|pair| pair[0].0 < pair[1].0));
    // Two values fill a page, and each page is one scan of the index.
    let scans = format!("SELECT idx_scan >= 10 FROM pg_stat_all_tables WHERE relname = '{}'", table.name);
    eventually(Duration::from_secs(20), "the server counts ten pages", async || {
        sql(postgres_url(), &scans).await == ["t"]
    })
    .await;
    let halves: Vec<_> =
        store.scan(Scan { page: 1, ..Scan::prefix(Prefix::ALL) }).try_collect().await.unwrap();
    assert_eq!(halves, entries);
}

#[tokio::test]
async fn rows_of_plain_sql_whose_keys_are_none_are_left_alone_and_neither_listed_nor_counted() {
    let table = Table::new();
    let store = open(table.config()).await;
    let name = &table.name;
    let foreign = format!(
        "INSERT INTO {name} VALUES ('', 'x'), (convert_to(repeat('a', 1025), 'UTF8'), 'x'), \
         (decode(repeat('ff', 1025), 'hex'), 'x')"
    );
    sql(postgres_url(), &foreign).await;
    let longest = "a".repeat(Key::MAX_LEN);
    store.batch_put([("a", "1"), (longest.as_str(), "2"), ("b", "3")]).await.unwrap();
    let expected: Vec<Key> = ["a", &longest, "b"].map(|key| Key::new(key).unwrap()).into();
    for keys_only in [false, true] {
        let scan = Scan { page: 2, keys_only, ..Scan::prefix(Prefix::ALL) };
        let listed: Vec<Key> = store.scan(scan).map_ok(|(key, _)| key).try_collect().await.unwrap();
        assert_eq!(listed, expected);
    }
    assert_eq!(store.count("").await.unwrap(), 3);
    assert_eq!(store.count("aa").await.unwrap(), 1);
    assert_eq!(store.clear("").await.unwrap(), 3);
    assert_eq!(sql(postgres_url(), &format!("SELECT count(*) FROM {name}")).await, ["3"]);
}

#[tokio::test]
async fn a_lock_held_by_plain_sql_holds_up_its_row_alone() {
    let table = Table::new();
    let store = open(table.config()).await;
    store.batch_put([("locked", "1"), ("free", "1")]).await.unwrap();
    let (other, connection) = tokio_postgres::connect(postgres_url(), tokio_postgres::NoTls).await.unwrap();
    tokio::spawn(connection);
    let lock = format!("BEGIN; SELECT FROM {} WHERE key = 'locked' FOR UPDATE", table.name);
    other.batch_execute(&lock).await.unwrap();
    let held_up = (0..4).map(|i| {
        let store = store.clone();
        tokio::spawn(async move {
            match i % 2 {
                0 => store.put("locked", "2").await,
                _ => store.increment("locked", 0).await.map(drop),
            }
        })
    });
    let held_up: Vec<_> = held_up.collect();
    for i in 0..50 {
        store.put("free", i.to_string()).await.unwrap();
        assert_eq!(store.increment(format!("n{i}"), 1).await.unwrap(), 1);
    }
    assert!(held_up.iter().all(|task| !task.is_finished()));
    other.batch_execute("ROLLBACK").await.unwrap();
    for task in held_up {
        task.await.unwrap().unwrap();
    }
}

/// The server adds by itself; what it takes for a number, and for a sum, is what others take.
#[tokio::test]
async fn increments_are_those_of_memory_whatever_lies_there() {
    let (max, min) = (i64::MAX.to_string(), i64::MIN.to_string());
    let states: Vec<&[u8]> = vec![
        b"0",
        b"-1",
        b"41",
        b"-0",
        b"00",
        b"01",
        b"+1",
        b" 1",
        b"1 ",
        b"1\n",
        b"",
        b"-",
        b"1e3",
        b"1.0",
        b"NaN",
        b"Infinity",
        b"1_000",
        b"0x10",
        b"1\0",
        b"\xff",
        b"\\061",
        "\u{0661}".as_bytes(),
        max.as_bytes(),
        min.as_bytes(),
        b"9223372036854775808",
        b"-9223372036854775809",
        b"9999999999999999999",
        b"-9999999999999999999",
        b"99999999999999999999999999",
        b"999999999999999999",
        b"-999999999999999999",
        b"1000000000000000000",
        &[b'1'; 100_000],
    ];
    let table = Table::new();
    let (ours, memory) = (open(table.config()).await, Store::new(MemoryBackend::new()));
    for state in states {
        for delta in [0, 1, -1, 7, 8_000_000_000_000_000_000, i64::MAX, i64::MIN] {
            let mut outcomes = Vec::new();
            for store in [&ours, &memory] {
                store.put("n", state.to_vec()).await.unwrap();
                let sum = store.increment("n", delta).await.map_err(|error| error.kind());
                outcomes.push((sum, store.get("n").await.unwrap()));
            }
            assert_eq!(outcomes[0], outcomes[1], "{} and {delta}", state.escape_ascii());
        }
    }
    let error = ours.increment("n", 1).await.unwrap_err();
    assert!(error.to_string().contains("not a signed 64-bit decimal integer"), "{error}");
}

#[tokio::test]
async fn an_increment_keeps_the_time_to_live_and_counts_anew_what_has_expired() {
    let table = Table::new();
    let store = open(table.config()).await;
    let hour = Duration::from_secs(3600);
    assert_eq!(store.increment_with_ttl("n", 5, hour).await.unwrap(), 5);
    assert_eq!(store.increment("n", 1).await.unwrap(), 6);
    assert_eq!(store.increment_with_ttl("n", 1, 2 * hour).await.unwrap(), 7);
    let left = async || store.ttl("n").await.unwrap().unwrap();
    assert!(left().await.is_some_and(|left| left <= hour && left > hour / 2));
    store.put_with_ttl("n", "9", Duration::from_millis(1)).await.unwrap();
    eventually(Duration::from_secs(10), "the counter expires", async || {
        store.get("n").await.unwrap().is_none()
    })
    .await;
    assert_eq!(store.increment("n", 1).await.unwrap(), 1);
    assert_eq!(left().await, None);
}

#[tokio::test]
async fn a_message_that_is_too_long_is_refused() {
    let table = Table::new();
    let store = open(table.config()).await;
    let error = store.publish("channel", vec![0; 6_000]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TooLarge);
    let mut messages = store.subscribe(unique("channel")).await.unwrap();
    store.publish("channel", vec![0; 5_900]).await.unwrap();
    assert!(futures_util::FutureExt::now_or_never(messages.next()).is_none());
}
