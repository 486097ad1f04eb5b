//! The Redis store through the `Store` handle, metrics on, against one multiplexed connection of the crate `redis`.
//!
//! The server is the one that `COMMONHOLD_TEST_REDIS_URL` names, or one of its own that keeps nothing on disk.

use std::sync::Arc;

use commonhold::{
    Key, Store,
    redis::{RedisBackend, RedisConfig},
    url::StoreUrl,
};
use commonhold_testkit::servers::{shared::redis_url, unique};
use redis::{IntoConnectionInfo as _, RedisResult, aio::MultiplexedConnection, io::tcp::TcpSettings};
use tokio::runtime::Runtime;

use crate::{
    harness::{Comparison, Plan, compare, rate, segment, tasks},
    keys::{Calls, keys, value},
};

/// How many keys a batch has.
const BATCH: usize = 100;

pub(crate) fn run(runtime: &Runtime, pairs: usize) -> commonhold::Result<()> {
    let (keys, calls): (Arc<[Key]>, _) = (keys().into(), Arc::new(Calls::new()));
    let store = runtime.block_on(open())?;
    let raw = runtime.block_on(Raw::open()).map_err(raw_error)?;
    runtime.block_on(async {
        for batch in keys.chunks(1000) {
            store.batch_put(batch.iter().map(|key| (key, value()))).await?;
            raw.put_many(batch).await.map_err(raw_error)?;
        }
        Ok::<_, commonhold::Error>(())
    })?;
    println!("\n### Redis: against one multiplexed connection of `redis`\n\n{}", Comparison::HEADING);
    for tasks in [1, 64] {
        let plan = Plan { pairs, operations: if tasks == 1 { 1 << 12 } else { 1 << 16 }, tasks };
        println!("{}", get(runtime, plan, &calls, &store, &raw));
        println!("{}", put(runtime, plan, &calls, &store, &raw));
    }
    println!();
    for tasks in [1, 8] {
        println!("{}", batches(runtime, pairs, tasks, &keys, &store));
    }
    let cleared = runtime.block_on(store.clear(""))?;
    debug_assert_eq!(cleared as usize, keys.len());
    Ok(())
}

async fn open() -> commonhold::Result<Store> {
    let config = RedisConfig::from_url(StoreUrl::parse(redis_url())?)?.key_prefix(unique("bench:"));
    Ok(Store::new(RedisBackend::open(config).await?))
}

/// Redis as an application would use it by itself.
#[derive(Clone)]
struct Raw {
    connection: MultiplexedConnection,
}

impl Raw {
    async fn open() -> RedisResult<Self> {
        let info = redis_url().into_connection_info()?;
        let info = info.set_tcp_settings(TcpSettings::default().set_nodelay(true));
        let connection = redis::Client::open(info)?.get_multiplexed_async_connection().await?;
        Ok(Self { connection })
    }

    async fn get(&mut self, key: &Key) -> RedisResult<Option<Vec<u8>>> {
        redis::cmd("GET").arg(key.as_bytes()).query_async(&mut self.connection).await
    }

    async fn put(&mut self, key: &Key, value: &[u8]) -> RedisResult<()> {
        redis::cmd("SET").arg(key.as_bytes()).arg(value).exec_async(&mut self.connection).await
    }

    async fn put_many(&self, keys: &[Key]) -> RedisResult<()> {
        let mut pipeline = redis::pipe();
        for key in keys {
            pipeline.cmd("SET").arg(key.as_bytes()).arg(&value()[..]);
        }
        pipeline.exec_async(&mut self.connection.clone()).await
    }
}

fn get(runtime: &Runtime, plan: Plan, calls: &Arc<Calls>, store: &Store, raw: &Raw) -> Comparison {
    let ours = |task, share| {
        let (store, calls) = (store.clone(), Arc::clone(calls));
        async move {
            for (_, key) in (0..share).zip(calls.of_task(task, plan.tasks)) {
                std::hint::black_box(store.get(key).await.ok());
            }
        }
    };
    let theirs = |task, share| {
        let (mut raw, calls) = (raw.clone(), Arc::clone(calls));
        async move {
            for (_, key) in (0..share).zip(calls.of_task(task, plan.tasks)) {
                std::hint::black_box(raw.get(key).await.ok());
            }
        }
    };
    compare(
        format!("get, {}", tasks(plan.tasks)),
        plan.pairs,
        || segment(runtime, plan, ours),
        || segment(runtime, plan, theirs),
    )
}

fn put(runtime: &Runtime, plan: Plan, calls: &Arc<Calls>, store: &Store, raw: &Raw) -> Comparison {
    let ours = |task, share| {
        let (store, calls, value) = (store.clone(), Arc::clone(calls), value());
        async move {
            for (_, key) in (0..share).zip(calls.of_task(task, plan.tasks)) {
                std::hint::black_box(store.put(key, value.clone()).await.ok());
            }
        }
    };
    let theirs = |task, share| {
        let (mut raw, calls, value) = (raw.clone(), Arc::clone(calls), value());
        async move {
            for (_, key) in (0..share).zip(calls.of_task(task, plan.tasks)) {
                std::hint::black_box(raw.put(key, &value).await.ok());
            }
        }
    };
    compare(
        format!("put, {}", tasks(plan.tasks)),
        plan.pairs,
        || segment(runtime, plan, ours),
        || segment(runtime, plan, theirs),
    )
}

/// The median of keys per second in batches, got and put.
fn batches(runtime: &Runtime, segments: usize, count: u64, keys: &Arc<[Key]>, store: &Store) -> String {
    let plan = Plan { pairs: segments, operations: (1 << 16) / BATCH as u64, tasks: count };
    let median = |run: &dyn Fn() -> f64| {
        let mut rates: Vec<f64> = (0..segments.max(1)).map(|_| run() * BATCH as f64).collect();
        rates.sort_by(f64::total_cmp);
        rate(rates.get(rates.len() / 2).copied().unwrap_or(f64::NAN))
    };
    let of_task = |task: u64, share: u64| {
        let (store, keys) = (store.clone(), Arc::clone(keys));
        let batches: Vec<Vec<Key>> = keys.chunks(BATCH).map(<[Key]>::to_vec).collect();
        let chosen = (0..share)
            .filter_map(move |call| batches.get((task * share + call) as usize % batches.len()).cloned());
        (store, chosen)
    };
    let got = median(&|| {
        segment(runtime, plan, |task, share| {
            let (store, batches) = of_task(task, share);
            async move {
                for batch in batches {
                    std::hint::black_box(store.batch_get(&batch).await.ok());
                }
            }
        })
    });
    let put = median(&|| {
        segment(runtime, plan, |task, share| {
            let (store, batches) = of_task(task, share);
            async move {
                for batch in batches {
                    let entries = batch.iter().map(|key| (key, value()));
                    std::hint::black_box(store.batch_put(entries).await.ok());
                }
            }
        })
    });
    format!("Batches of {BATCH}, {}: {got} keys/s got, {put} keys/s put.", tasks(count))
}

fn raw_error(error: redis::RedisError) -> commonhold::Error {
    commonhold::Error::new(commonhold::ErrorKind::Unavailable, "raw redis does not answer").with_source(error)
}
