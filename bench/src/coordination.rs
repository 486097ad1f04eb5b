//! Counters and locks: against the raw client's own increments, `SET NX` with a release script, and a baton that is
//! handed on by `BLPOP`.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use commonhold::{
    Store,
    coordination::{Locks, counter::Counter},
    postgres::{PostgresBackend, PostgresConfig},
    redis::{RedisBackend, RedisConfig},
    url::StoreUrl,
};
use commonhold_testkit::servers::{
    Postgres, Redis,
    shared::{postgres_url, redis_url},
    unique,
};
use deadpool_postgres::{Manager, Pool};
use redis::{
    AsyncCommands as _, IntoConnectionInfo as _, RedisResult, Script, aio::MultiplexedConnection,
    io::tcp::TcpSettings,
};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use tokio::runtime::Runtime;
use tokio_postgres::NoTls;

use crate::harness::{Comparison, Plan, compare, segment, tasks};

/// As tutorials have it.
const RELEASE: &str =
    "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) else return 0 end";
const TTL: Duration = Duration::from_secs(30);
const PATIENCE: Duration = Duration::from_secs(600);
const WAITERS: u64 = 16;

pub(crate) fn run(runtime: &Runtime, pairs: usize) -> commonhold::Result<()> {
    println!("\n### Counters: one that all increment, each told its value\n\n{}", Comparison::HEADING);
    redis_counters(runtime, pairs, redis_url())?;
    for tasks in [1, 64] {
        println!("{}", postgres_counter(runtime, pairs, tasks, "without sync", postgres_url())?);
    }
    // As it is installed: what is acknowledged is on the disk.
    let syncs = Postgres::builder().config("fsync = on").start();
    for tasks in [1, 64] {
        println!("{}", postgres_counter(runtime, pairs, tasks, "with sync", &syncs.url())?);
    }
    println!("\n### Locks over Redis\n\n{}", Comparison::HEADING);
    locks(runtime, pairs, redis_url())?;
    println!("\n### Counters and locks, with client and server on one core\n\n{}", Comparison::HEADING);
    on_one_core(|runtime, url| {
        redis_counters(runtime, pairs, url)?;
        locks(runtime, pairs, url)
    })
}

/// Runs something on one core, with a server that is there too: no time passes until the other core wakes up.
fn on_one_core(run: impl FnOnce(&Runtime, &str) -> commonhold::Result<()>) -> commonhold::Result<()> {
    let all = sched_getaffinity(None).map_err(raw_error)?;
    let mut one = CpuSet::new();
    one.set((0..CpuSet::MAX_CPU).find(|core| all.is_set(*core)).unwrap_or_default());
    sched_setaffinity(None, &one).map_err(raw_error)?;
    // Processes and threads that are started now are there too.
    let redis = Redis::start();
    let outcome = Runtime::new().map_err(raw_error).and_then(|runtime| run(&runtime, &redis.url()));
    sched_setaffinity(None, &all).map_err(raw_error)?;
    outcome
}

fn redis_counters(runtime: &Runtime, pairs: usize, url: &str) -> commonhold::Result<()> {
    let (store, raw) = runtime.block_on(sides(url))?;
    for tasks in [1, 64, 1024] {
        println!("{}", redis_counter(runtime, pairs, tasks, &store, &raw)?);
    }
    runtime.block_on(store.clear("")).map(drop)
}

fn locks(runtime: &Runtime, pairs: usize, url: &str) -> commonhold::Result<()> {
    let (store, raw) = runtime.block_on(sides(url))?;
    for tasks in [1, 64] {
        println!("{}", uncontended(runtime, pairs, tasks, &store, &raw)?);
    }
    for apart in [false, true] {
        contended(runtime, pairs, url, apart)?;
    }
    runtime.block_on(store.clear("")).map(drop)
}

async fn sides(url: &str) -> commonhold::Result<(Store, MultiplexedConnection)> {
    Ok((open(url, &unique("bench:")).await?, connect(url).await.map_err(raw_error)?))
}

async fn open(url: &str, prefix: &str) -> commonhold::Result<Store> {
    let config = RedisConfig::from_url(StoreUrl::parse(url)?)?.key_prefix(prefix);
    Ok(Store::new(RedisBackend::open(config).await?))
}

async fn connect(url: &str) -> RedisResult<MultiplexedConnection> {
    let info = url.into_connection_info()?;
    let info = info.set_tcp_settings(TcpSettings::default().set_nodelay(true));
    let config = redis::AsyncConnectionConfig::new().set_response_timeout(None);
    redis::Client::open(info)?.get_multiplexed_async_connection_with_config(&config).await
}

fn raw_error(error: impl std::fmt::Display) -> commonhold::Error {
    commonhold::Error::new(commonhold::ErrorKind::Unavailable, error.to_string())
}

fn redis_counter(
    runtime: &Runtime,
    pairs: usize,
    count: u64,
    store: &Store,
    raw: &MultiplexedConnection,
) -> commonhold::Result<Comparison> {
    let operations = if count == 1 { 1 << 12 } else { count << 10 };
    let plan = Plan { pairs, operations, tasks: count };
    let (counter, key) = (Counter::new(store.clone(), "counter")?, unique("counter"));
    let ours = |_, share| {
        let counter = counter.clone();
        async move {
            for _ in 0..share {
                std::hint::black_box(counter.increment(1).await.ok());
            }
        }
    };
    let theirs = |_, share| {
        let (mut raw, key) = (raw.clone(), key.clone());
        async move {
            for _ in 0..share {
                std::hint::black_box(raw.incr::<_, _, i64>(&key, 1).await.ok());
            }
        }
    };
    Ok(compare(
        format!("Redis, {}, against INCR", tasks(count)),
        pairs,
        || segment(runtime, plan, ours),
        || segment(runtime, plan, theirs),
    ))
}

fn postgres_counter(
    runtime: &Runtime,
    pairs: usize,
    count: u64,
    server: &str,
    url: &str,
) -> commonhold::Result<Comparison> {
    let plan = Plan { pairs, operations: if count == 1 { 1 << 10 } else { 1 << 12 }, tasks: count };
    let store = runtime.block_on(async {
        let config = PostgresConfig::from_url(StoreUrl::parse(url)?)?.table(unique("bench"));
        commonhold::Result::<_>::Ok(Store::new(PostgresBackend::open(config).await?))
    })?;
    let counter = Counter::new(store, "counter")?;
    let manager = Manager::new(url.parse().map_err(raw_error)?, NoTls);
    let pool = Pool::builder(manager).max_size(16).build().map_err(raw_error)?;
    let table = unique("raw");
    let create = format!(
        "CREATE TABLE {table} (key bytea PRIMARY KEY, n bigint); INSERT INTO {table} VALUES ('k', 0)"
    );
    runtime.block_on(async {
        pool.get().await.map_err(raw_error)?.batch_execute(&create).await.map_err(raw_error)
    })?;
    let update: Arc<str> = format!("UPDATE {table} SET n = n + 1 WHERE key = 'k' RETURNING n").into();
    let ours = |_, share| {
        let counter = counter.clone();
        async move {
            for _ in 0..share {
                std::hint::black_box(counter.increment(1).await.ok());
            }
        }
    };
    let theirs = |_, share| {
        let (pool, update) = (pool.clone(), Arc::clone(&update));
        async move {
            for _ in 0..share {
                let Ok(client) = pool.get().await else { return };
                let Ok(statement) = client.prepare_cached(&update).await else { return };
                std::hint::black_box(client.query_one(&statement, &[]).await.ok());
            }
        }
    };
    Ok(compare(
        format!("PostgreSQL {server}, {}, against UPDATE", tasks(count)),
        pairs,
        || segment(runtime, plan, ours),
        || segment(runtime, plan, theirs),
    ))
}

/// Each task takes and releases a lock of its own.
fn uncontended(
    runtime: &Runtime,
    pairs: usize,
    count: u64,
    store: &Store,
    raw: &MultiplexedConnection,
) -> commonhold::Result<Comparison> {
    let plan = Plan { pairs, operations: if count == 1 { 1 << 11 } else { 1 << 14 }, tasks: count };
    let (locks, prefix) = (Locks::new(store.clone())?, unique("lock"));
    let ours = |task, share| {
        let locks = locks.clone();
        async move {
            let name = format!("own {task}");
            for _ in 0..share {
                let Ok(Some(guard)) = locks.try_acquire(&name, TTL).await else { return };
                std::hint::black_box(guard.release().await.ok());
            }
        }
    };
    let theirs = |task, share| {
        let (mut raw, key, release) = (raw.clone(), format!("{prefix}{task}"), Script::new(RELEASE));
        async move {
            for call in 0..share {
                let mut set = redis::cmd("SET");
                set.arg(&key).arg(call).arg("NX").arg("PX").arg(TTL.as_millis() as u64);
                std::hint::black_box(set.query_async::<redis::Value>(&mut raw).await.ok());
                std::hint::black_box(release.key(&key).arg(call).invoke_async::<i64>(&mut raw).await.ok());
            }
        }
    };
    Ok(compare(
        format!("lock and release, {}, each its own", tasks(count)),
        pairs,
        || segment(runtime, plan, ours),
        || segment(runtime, plan, theirs),
    ))
}

/// Tasks that all want one thing: ours by a lock, theirs by a baton in a list that each takes and puts back, over a
/// connection of its own. `apart`: each task has `Locks` of its own, as if it were a process.
fn contended(runtime: &Runtime, pairs: usize, url: &str, apart: bool) -> commonhold::Result<()> {
    let plan = Plan { pairs, operations: if apart { 1 << 12 } else { 1 << 14 }, tasks: WAITERS };
    let (locks, batons) = runtime.block_on(parties(url, apart))?;
    let (name, baton) = (unique("hot"), unique("baton"));
    let [longest, their_longest] = [(); 2].map(|()| Arc::new(AtomicU64::new(0)));
    let first = pick(&batons, 0);
    runtime.block_on(async {
        if let Some(mut raw) = first {
            raw.rpush::<_, _, i64>(&baton, 1).await.map_err(raw_error)?;
        }
        commonhold::Result::<_>::Ok(())
    })?;
    let ours = |task, share| {
        let (locks, name, longest) = (pick(&locks, task), name.clone(), Arc::clone(&longest));
        async move {
            let Some(locks) = locks else { return };
            for _ in 0..share {
                let asked = Instant::now();
                let Ok(Some(guard)) = locks.acquire(&name, TTL, PATIENCE).await else { return };
                longest.fetch_max(asked.elapsed().as_micros() as u64, Relaxed);
                std::hint::black_box(guard.release().await.ok());
            }
        }
    };
    let theirs = |task, share| {
        let (raw, baton, longest) = (pick(&batons, task), baton.clone(), Arc::clone(&their_longest));
        async move {
            let Some(mut raw) = raw else { return };
            for _ in 0..share {
                let asked = Instant::now();
                std::hint::black_box(raw.blpop::<_, redis::Value>(&baton, 0.0).await.ok());
                longest.fetch_max(asked.elapsed().as_micros() as u64, Relaxed);
                std::hint::black_box(raw.rpush::<_, _, i64>(&baton, 1).await.ok());
            }
        }
    };
    let what = if apart { "as 16 processes" } else { "in one process" };
    let comparison = compare(
        format!("hand-overs, {WAITERS} waiters {what}, against BLPOP"),
        pairs,
        || segment(runtime, plan, ours),
        || segment(runtime, plan, theirs),
    );
    println!("{comparison}");
    let [longest, their_longest] =
        [longest, their_longest].map(|longest| Duration::from_micros(longest.load(Relaxed)));
    println!("\nThe longest wait {what}: {longest:.1?}, of the batons {their_longest:.1?}.\n");
    Ok(())
}

fn pick<T: Clone>(of: &[T], task: u64) -> Option<T> {
    of.get(usize::try_from(task).ok()?).cloned()
}

async fn parties(url: &str, apart: bool) -> commonhold::Result<(Vec<Locks>, Vec<MultiplexedConnection>)> {
    let (mut locks, mut batons) = (Vec::new(), Vec::new());
    let prefix = unique("bench:");
    let shared = Locks::new(open(url, &prefix).await?)?;
    for _ in 0..WAITERS {
        locks.push(if apart { Locks::new(open(url, &prefix).await?)? } else { shared.clone() });
        batons.push(connect(url).await.map_err(raw_error)?);
    }
    Ok((locks, batons))
}
