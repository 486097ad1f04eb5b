//! Reads from replicas: who answers them, what they show, and what goes wrong.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use commonhold_core::{
    Condition, Key, Prefix, PutOptions, Scan, StateBackend as _, Store, Text, Write, url::StoreUrl,
};
use commonhold_postgres::{Isolation, PostgresBackend, PostgresConfig, ReadToken};
use commonhold_testkit::{
    eventually,
    proxy::{Mode, Proxy},
    servers::Postgres,
};
use futures_util::{StreamExt as _, TryStreamExt as _, future::join_all};

use crate::common::config;

/// Within this something that was broken is as it should be.
const RECOVERY: Duration = Duration::from_secs(30);
/// So long a replica whose replay is paused may be behind in tests that look at what it shows.
const HOUR: Duration = Duration::from_secs(3600);

/// A primary, its replica, and a proxy before each.
struct Pair {
    primary: Postgres,
    replica: Postgres,
    to_primary: Proxy,
    to_replica: Proxy,
}

impl Pair {
    fn start() -> Self {
        let primary = Postgres::start();
        let replica = primary.replica();
        let (to_primary, to_replica) = (Proxy::before(primary.port()), Proxy::before(replica.port()));
        Self { primary, replica, to_primary, to_replica }
    }

    fn config(&self) -> PostgresConfig {
        config(&self.primary.url_at(self.to_primary.port()))
            .replica("127.0.0.1", self.to_replica.port())
            .max_lag(HOUR)
    }

    /// A store that reads from the replica already.
    async fn open(&self, configure: impl FnOnce(PostgresConfig) -> PostgresConfig) -> PostgresBackend {
        let backend = PostgresBackend::open(configure(self.config())).await.unwrap();
        is_read_from(&backend, true).await;
        backend
    }

    /// A store that knows nothing of the replica.
    async fn beside(&self) -> Store {
        Store::new(PostgresBackend::open(config(&self.primary.url())).await.unwrap())
    }

    /// Puts an old value under `k`, which the replica shows from now on, and a new one, which it does not.
    async fn fall_behind(&self, beside: &Store) {
        beside.put("k", "old").await.unwrap();
        self.replica.wait_for_replay_of(&self.primary);
        self.replica.pause_replay();
        beside.put("k", "new").await.unwrap();
    }
}

/// Waits until all replicas, or none of them, are read from.
async fn is_read_from(backend: &PostgresBackend, read_from: bool) {
    eventually(RECOVERY, "replicas are looked at", async || {
        let Ok(health) = backend.health().await else { return false };
        let mut states = health.details.iter().filter(|(name, _)| name.starts_with("replica 127.0.0.1:"));
        let warned = health.warnings.iter().any(|warning| warning.contains("is not read from"));
        let as_is_said = states.all(|(_, state)| state.starts_with("read from") == read_from);
        as_is_said && warned != read_from
    })
    .await;
}

fn store_of(backend: &PostgresBackend) -> Store {
    Store::new(backend.clone())
}

async fn keys(store: &Store, prefix: &str) -> Vec<Key> {
    store.list_keys(prefix).unwrap().try_collect().await.unwrap()
}

async fn value(store: &Store) -> String {
    String::from_utf8(store.get("k").await.unwrap().unwrap().to_vec()).unwrap()
}

#[tokio::test]
async fn reads_of_every_kind_are_the_replicas_and_all_else_is_the_primarys() {
    let pair = Pair::start();
    let replicas = format!("replicas=127.0.0.1:{}&max_lag=1h", pair.to_replica.port());
    let url = StoreUrl::parse(&format!("{}?{replicas}", pair.primary.url())).unwrap();
    let backend = PostgresBackend::open(PostgresConfig::from_url(url).unwrap()).await.unwrap();
    is_read_from(&backend, true).await;
    let (store, beside) = (store_of(&backend), pair.beside().await);
    pair.fall_behind(&beside).await;
    beside.put("later", "new").await.unwrap();

    assert_eq!(value(&store).await, "old");
    assert!(!store.contains("later").await.unwrap());
    let many = store.batch_get(&["k", "later"].map(|key| Key::new(key).unwrap())).await.unwrap();
    assert_eq!(many, [Some("old".into()), None]);
    assert_eq!(store.count("").await.unwrap(), 1);
    assert_eq!(keys(&store, "").await.len(), 1);
    let scanned: Vec<_> = store.scan(Scan::prefix(Prefix::ALL)).try_collect().await.unwrap();
    assert!(scanned.len() == 1 && scanned[0].1.value == "old");

    let mut transaction = backend.begin().await.unwrap();
    let entry = transaction.get(&Key::new("k").unwrap()).await.unwrap();
    assert_eq!(entry.unwrap().value, "new", "a transaction reads from the primary");
    transaction.rollback().await.unwrap();
    assert_eq!(store.increment("n", 1).await.unwrap(), 1);
    assert!(!store.compare_and_swap("k", Some("old"), "x").await.unwrap());
    assert!(store.compare_and_swap("k", Some("new"), "newest").await.unwrap());
    assert_eq!(beside.get("k").await.unwrap().unwrap(), "newest");
    assert!(!store.stats().await.unwrap().details.is_empty());
}

#[tokio::test]
async fn replicas_take_turns() {
    let primary = Postgres::start();
    let replicas = [primary.replica(), primary.replica()];
    let proxies = replicas.each_ref().map(|replica| Proxy::before(replica.port()));
    let to_primary = Proxy::before(primary.port());
    let both = proxies.iter().fold(config(&primary.url_at(to_primary.port())), |config, proxy| {
        config.replica("127.0.0.1", proxy.port())
    });
    let backend = PostgresBackend::open(both).await.unwrap();
    let store = store_of(&backend);
    let long = 100_000;
    store.put("k", vec![b'v'; long]).await.unwrap();
    // What this store wrote itself it reads from those alone that show it.
    let turns = async || {
        let before = proxies.each_ref().map(|proxy| proxy.traffic().reply_bytes);
        let before_primary = to_primary.traffic().reply_bytes;
        for _ in 0..20 {
            assert_eq!(store.get("k").await.unwrap().unwrap().len(), long);
        }
        let gained = |proxy: &Proxy, before: u64| (proxy.traffic().reply_bytes - before) / long as u64;
        gained(&proxies[0], before[0]) == 10
            && gained(&proxies[1], before[1]) == 10
            && gained(&to_primary, before_primary) == 0
    };
    eventually(RECOVERY, "each replica answers every other read", turns).await;
}

#[tokio::test]
async fn a_replica_that_is_too_far_behind_is_not_read_from_until_it_has_caught_up() {
    let pair = Pair::start();
    let beside = pair.beside().await;
    let backend = pair.open(|config| config.max_lag(Duration::from_millis(500))).await;
    let store = store_of(&backend);
    pair.fall_behind(&beside).await;
    eventually(RECOVERY, "the primary answers", async || value(&store).await == "new").await;
    is_read_from(&backend, false).await;
    let health = store.health_check().await.unwrap();
    assert!(health.warnings.iter().any(|warning| warning.contains("behind the primary")), "{health:?}");
    for i in 0..50 {
        beside.put("k", i.to_string()).await.unwrap();
        assert_eq!(value(&store).await, i.to_string());
    }
    pair.replica.resume_replay();
    is_read_from(&backend, true).await;
}

#[tokio::test]
async fn a_store_reads_what_it_wrote_and_of_other_keys_what_the_replica_shows() {
    let pair = Pair::start();
    let beside = pair.beside().await;
    let backend = pair.open(|config| config).await;
    let store = store_of(&backend);
    let names = ["put", "batch", "swapped", "counter", "deleted", "deleted too", "transaction"];
    for name in names {
        beside.put(name, "0").await.unwrap();
    }
    pair.fall_behind(&beside).await;
    let [put, batch, deleted] = ["put", "batch", "deleted too"].map(|name| Key::new(name).unwrap());

    store.put(&put, "1").await.unwrap();
    assert_eq!(store.get(&put).await.unwrap().unwrap(), "1");
    store.write_batch(vec![Write::put(batch.clone(), "1"), Write::delete(deleted)]).await.unwrap();
    assert_eq!(store.batch_get(&[batch, put]).await.unwrap(), [Some("1".into()), Some("1".into())]);
    assert!(!store.contains("deleted too").await.unwrap());
    assert!(store.compare_and_swap("swapped", Some("0"), "1").await.unwrap());
    assert_eq!(store.get("swapped").await.unwrap().unwrap(), "1");
    assert_eq!(store.increment("counter", 1).await.unwrap(), 1);
    assert_eq!(store.get("counter").await.unwrap().unwrap(), "1");
    assert!(store.delete("deleted").await.unwrap());
    assert!(!store.contains("deleted").await.unwrap());
    store.transaction(|tx| async move { tx.put("transaction", "1").await }).await.unwrap();
    assert_eq!(store.get("transaction").await.unwrap().unwrap(), "1");
    assert_eq!(value(&store).await, "old", "what others wrote is where the replica is");
    assert_eq!(store.count("").await.unwrap(), 6, "a count must show every write");
    assert_eq!(keys(&store, "deleted").await.len(), 0);

    assert_eq!(store.clear("").await.unwrap(), 6);
    assert_eq!(store.get("k").await.unwrap(), None);
    pair.replica.resume_replay();
    is_read_from(&backend, true).await;
    assert_eq!(store.get("k").await.unwrap(), None);
}

#[tokio::test]
async fn a_transaction_of_the_server_is_read_by_the_store_that_committed_it() {
    let pair = Pair::start();
    let beside = pair.beside().await;
    let backend = pair.open(|config| config.isolation(Some(Isolation::Serializable))).await;
    let store = Store::new(backend);
    pair.fall_behind(&beside).await;
    assert_eq!(value(&store).await, "old");
    store
        .transaction(|tx| async move {
            assert_eq!(tx.get_as::<String, _>("k", Text).await?.unwrap(), "new");
            tx.put("k", "newest").await
        })
        .await
        .unwrap();
    assert_eq!(value(&store).await, "newest");
}

#[tokio::test]
async fn who_does_not_ask_to_read_their_writes_reads_what_the_replica_shows() {
    let pair = Pair::start();
    let beside = pair.beside().await;
    let store = Store::new(pair.open(|config| config.read_your_writes(false)).await);
    pair.fall_behind(&beside).await;
    store.put("k", "newest").await.unwrap();
    assert_eq!(value(&store).await, "old");
}

#[tokio::test]
async fn a_token_lets_one_store_read_what_another_has_seen() {
    let pair = Pair::start();
    let writer = PostgresBackend::open(config(&pair.primary.url())).await.unwrap();
    let reader = pair.open(|config| config).await;
    let reads = store_of(&reader);
    pair.fall_behind(&store_of(&writer)).await;
    assert_eq!(value(&reads).await, "old");

    let token = writer.token().await.unwrap().to_string();
    reader.observe(token.parse().unwrap());
    assert_eq!(value(&reads).await, "new");
    assert_eq!(reads.count("").await.unwrap(), 1);
    assert!(reader.token().await.unwrap() >= token.parse().unwrap(), "what was observed is handed on");

    pair.replica.resume_replay();
    store_of(&writer).put("long", vec![b'v'; 100_000]).await.unwrap();
    let from_replica = async || {
        let before = pair.to_replica.traffic().reply_bytes;
        let _answer = reads.get("long").await.unwrap();
        pair.to_replica.traffic().reply_bytes - before > 100_000
    };
    eventually(RECOVERY, "the replica is read from again", from_replica).await;
    assert_eq!(value(&reads).await, "new");
}

#[tokio::test]
async fn a_token_that_is_beyond_the_primary_does_not_keep_reads_from_replicas() {
    let pair = Pair::start();
    let beside = pair.beside().await;
    let backend = pair.open(|config| config).await;
    pair.fall_behind(&beside).await;
    backend.observe("FFFFFFFF/0".parse().unwrap());
    eventually(RECOVERY, "it is forgotten", async || {
        backend.token().await.unwrap() < "FFFFFFFF/0".parse().unwrap()
    })
    .await;
    assert_eq!(value(&store_of(&backend)).await, "new", "what the primary has, all the same");
    pair.replica.resume_replay();
    is_read_from(&backend, true).await;
    let store = store_of(&backend);
    let from_replica = async || {
        let before = pair.to_replica.traffic().reply_bytes;
        beside.put("long", LONG.to_vec()).await.unwrap();
        let read = store.get("long").await.unwrap();
        read.is_none() || pair.to_replica.traffic().reply_bytes - before > LONG.len() as u64
    };
    eventually(RECOVERY, "the replica is read from", from_replica).await;
}

#[tokio::test]
async fn whoever_is_told_of_a_change_reads_it() {
    let pair = Pair::start();
    let beside = Store::new(PostgresBackend::open(config(&pair.primary.url()).watch(true)).await.unwrap());
    let store = Store::new(pair.open(|config| config.watch(true)).await);
    pair.fall_behind(&beside).await;
    let mut changes = store.watch("").await.unwrap();
    assert_eq!(value(&store).await, "old");
    beside.put("k", "newest").await.unwrap();
    let _told = changes.next().await.unwrap().unwrap();
    assert_eq!(value(&store).await, "newest");
}

#[tokio::test]
async fn a_replica_whose_clock_is_off_is_not_read_from() {
    let pair = Pair::start();
    pair.primary.sql(
        "CREATE SCHEMA fake; CREATE FUNCTION fake.clock_timestamp() RETURNS timestamptz LANGUAGE sql VOLATILE AS $$
             SELECT pg_catalog.clock_timestamp() + CASE WHEN pg_is_in_recovery() THEN interval '2h' ELSE '0' END $$;
         ALTER ROLE commonhold SET search_path = fake, public, pg_catalog",
    );
    pair.replica.wait_for_replay_of(&pair.primary);
    let backend = PostgresBackend::open(pair.config()).await.unwrap();
    let store = store_of(&backend);
    let warned = async || {
        let health = store.health_check().await.unwrap();
        health.warnings.iter().any(|warning| warning.contains("clock"))
    };
    eventually(RECOVERY, "the clock is noticed", warned).await;
    store.put_with_ttl("k", "v", HOUR).await.unwrap();
    assert_eq!(value(&store).await, "v", "by the replica's clock it would have expired");
}

/// A read of this is seen by whoever counts what is on the wire.
const LONG: [u8; 10_000] = [b'v'; 10_000];

/// Reads from several tasks, of which none may fail, however long a replica is away.
struct Reads {
    done: AtomicU64,
    stop: AtomicBool,
    /// In milliseconds.
    longest: AtomicU64,
}

impl Reads {
    async fn during(store: &Store, faults: impl AsyncFnOnce(&Self)) -> Duration {
        store.put("k", LONG.to_vec()).await.unwrap();
        let reads = Arc::new(Self {
            done: AtomicU64::new(0),
            stop: AtomicBool::new(false),
            longest: AtomicU64::new(0),
        });
        let tasks: Vec<_> = (0..4).map(|_| tokio::spawn(Arc::clone(&reads).read(store.clone()))).collect();
        faults(&reads).await;
        reads.gain(100).await;
        reads.stop.store(true, Ordering::SeqCst);
        join_all(tasks).await.into_iter().for_each(|task| task.unwrap());
        Duration::from_millis(reads.longest.load(Ordering::SeqCst))
    }

    async fn read(self: Arc<Self>, store: Store) {
        while !self.stop.load(Ordering::SeqCst) {
            let begun = Instant::now();
            assert_eq!(store.get("k").await.unwrap().unwrap(), LONG[..]);
            assert_eq!(store.count("").await.unwrap(), 1);
            let took = u64::try_from(begun.elapsed().as_millis()).unwrap();
            self.longest.fetch_max(took, Ordering::SeqCst);
            self.done.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// Waits until the replica answers them.
    async fn come_to(&self, replica: &Proxy) {
        let goal = replica.traffic().reply_bytes + 50 * LONG.len() as u64;
        let come = async || replica.traffic().reply_bytes >= goal;
        eventually(RECOVERY, "the replica answers", come).await;
    }

    async fn gain(&self, more: u64) {
        let goal = self.done.load(Ordering::SeqCst) + more;
        eventually(RECOVERY, "reads are answered", async || self.done.load(Ordering::SeqCst) >= goal).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_read_fails_when_a_replica_is_killed_cut_or_gone_and_it_is_read_from_again() {
    let pair = Pair::start();
    let backend = pair.open(|config| config).await;
    let faults = async |reads: &Reads| {
        for mode in [Mode::CutReply(10), Mode::CutRequest(10), Mode::Refuse, Mode::Close] {
            reads.come_to(&pair.to_replica).await;
            pair.to_replica.set(mode);
            reads.gain(50).await;
            if matches!(mode, Mode::Refuse | Mode::Close) {
                is_read_from(&backend, false).await;
            }
            pair.to_replica.set(Mode::Pass);
        }
        for _ in 0..2 {
            reads.come_to(&pair.to_replica).await;
            pair.replica.kill();
            reads.gain(50).await;
            is_read_from(&backend, false).await;
            pair.replica.start_again();
        }
        reads.come_to(&pair.to_replica).await;
    };
    Reads::during(&store_of(&backend), faults).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_says_nothing_holds_up_reads_once_and_not_for_their_whole_time() {
    let pair = Pair::start();
    let timeout = Duration::from_secs(60);
    let backend = pair.open(|config| config.timeout(timeout)).await;
    let faults = async |reads: &Reads| {
        reads.come_to(&pair.to_replica).await;
        pair.replica.pause();
        is_read_from(&backend, false).await;
        reads.gain(500).await;
        pair.replica.resume();
        for mode in [Mode::BlackHole, Mode::LoseReplies, Mode::Hold] {
            reads.come_to(&pair.to_replica).await;
            pair.to_replica.set(mode);
            is_read_from(&backend, false).await;
            reads.gain(500).await;
            pair.to_replica.set(Mode::Pass);
        }
        reads.come_to(&pair.to_replica).await;
    };
    let longest = Reads::during(&store_of(&backend), faults).await;
    assert!(longest < timeout / 2, "a read took {longest:?}");
}

#[tokio::test]
async fn a_replica_that_becomes_a_primary_of_its_own_is_not_read_from() {
    let pair = Pair::start();
    let backend = pair.open(|config| config).await;
    let store = store_of(&backend);
    store.put("k", "of the primary").await.unwrap();
    pair.replica.wait_for_replay_of(&pair.primary);
    pair.replica.promote();
    pair.replica.sql("UPDATE commonhold SET value = 'of nobody'");
    is_read_from(&backend, false).await;
    let health = store.health_check().await.unwrap();
    assert!(health.warnings.iter().any(|warning| warning.contains("no replica")), "{health:?}");
    assert_eq!(value(&store).await, "of the primary");
}

/// A primary that fails, a replica that follows it in office, and one that goes on as its replica.
struct Succession {
    first: Postgres,
    second: Postgres,
    replica: Postgres,
}

impl Succession {
    fn start() -> Self {
        let first = Postgres::start();
        let (second, replica) = (first.replica(), first.replica());
        Self { first, second, replica }
    }

    async fn open(&self) -> PostgresBackend {
        let hosts = config(&self.first.url()).host("127.0.0.1", self.second.port());
        let config = hosts.replica("127.0.0.1", self.replica.port()).timeout(Duration::from_secs(2));
        let backend = PostgresBackend::open(config).await.unwrap();
        is_read_from(&backend, true).await;
        backend
    }

    /// Ends the first and has the second take over.
    async fn proceed(&self, store: &Store) {
        self.first.kill();
        self.second.start_again();
        self.second.promote();
        let writes = async || store.put("k", "of the second").await.is_ok();
        eventually(RECOVERY, "the new primary is found", writes).await;
    }
}

#[tokio::test]
async fn after_a_change_of_primary_its_replica_is_read_from_whatever_was_lost_with_the_former() {
    let servers = Succession::start();
    let backend = servers.open().await;
    let store = store_of(&backend);
    store.put("k", "of the first").await.unwrap();
    servers.second.wait_for_replay_of(&servers.first);
    servers.replica.wait_for_replay_of(&servers.first);
    servers.second.kill();
    servers.replica.kill();
    store.batch_put((0..2_000).map(|i| (format!("lost {i}"), "v"))).await.unwrap();
    backend.observe(backend.token().await.unwrap());
    servers.proceed(&store).await;
    servers.replica.start_again();
    servers.replica.sql(&format!(
        "ALTER SYSTEM SET primary_conninfo = 'host=127.0.0.1 port={} user=commonhold password={}'",
        servers.second.port(),
        commonhold_testkit::servers::PASSWORD
    ));
    servers.replica.sql("SELECT pg_reload_conf()");
    servers.replica.wait_for_replay_of(&servers.second);
    // Until its log is longer than that of the first was, what replicas have may be of either.
    let long: Vec<u8> = std::iter::repeat_with(|| fastrand::u8(..)).take(4 << 20).collect();
    store.put("long", long).await.unwrap();
    is_read_from(&backend, true).await;
    let shown: ReadToken = servers.replica.sql("SELECT pg_last_wal_replay_lsn()").parse().unwrap();
    assert!(backend.token().await.unwrap() >= shown);
    assert_eq!(value(&store).await, "of the second");
    assert_eq!(store.count("lost").await.unwrap(), 0);
}

#[tokio::test]
async fn a_replica_with_what_was_lost_with_the_former_primary_is_left_out() {
    let servers = Succession::start();
    let backend = servers.open().await;
    let store = store_of(&backend);
    store.put("k", "of the first").await.unwrap();
    servers.second.wait_for_replay_of(&servers.first);
    servers.second.kill();
    store.batch_put((0..2_000).map(|i| (format!("lost {i}"), "v"))).await.unwrap();
    servers.replica.wait_for_replay_of(&servers.first);
    is_read_from(&backend, true).await;
    servers.proceed(&store).await;
    is_read_from(&backend, false).await;
    let absent = PutOptions::default().when(Condition::Absent);
    assert!(store.put_with("lost 7", "again", absent).await.unwrap().is_yes());
    for i in 0..20 {
        assert_eq!(store.get(format!("lost {i}")).await.unwrap().is_some(), i == 7);
        assert_eq!(value(&store).await, "of the second");
        store.put(format!("other {i}"), "v").await.unwrap();
    }
    assert_eq!(store.count("lost").await.unwrap(), 1);
}
