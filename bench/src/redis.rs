//! The Redis store through the `Store` handle, metrics on, against one multiplexed connection of the crate `redis`, and
//! against OpenDAL, which also has one interface over many stores.
//!
//! The server is the one that `COMMONHOLD_TEST_REDIS_URL` names, or one of its own that keeps nothing on disk.

use std::sync::Arc;

use bytes::Bytes;
use commonhold::{
    Key, Store,
    redis::{RedisBackend, RedisConfig},
    url::StoreUrl,
};
use commonhold_testkit::servers::{shared::redis_url, unique};
use redis::{IntoConnectionInfo as _, RedisResult, aio::MultiplexedConnection, io::tcp::TcpSettings};
use tokio::runtime::Runtime;

use crate::{
    harness::{Comparison, Plan, compare, segment, tasks},
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
    compare_with(runtime, pairs, &calls, &store, &raw);
    let by_batch: Arc<[Vec<Key>]> = keys.chunks(BATCH).map(<[Key]>::to_vec).collect();
    for tasks in [1, 8] {
        batches(runtime, pairs, tasks, &by_batch, &store, &raw);
    }
    let opendal = OpenDal::open().map_err(|error| opendal_error(&error))?;
    runtime.block_on(async {
        for key in keys.iter() {
            opendal.put(key, value()).await;
        }
    });
    println!("\n### Redis: against OpenDAL\n\n{}", Comparison::HEADING);
    compare_with(runtime, pairs, &calls, &store, &opendal);

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

    async fn get_many(&self, keys: &[Key]) -> RedisResult<Vec<Option<Vec<u8>>>> {
        let mut mget = redis::cmd("MGET");
        for key in keys {
            mget.arg(key.as_bytes());
        }
        mget.query_async(&mut self.connection.clone()).await
    }

    async fn put_many(&self, keys: &[Key]) -> RedisResult<()> {
        let mut mset = redis::cmd("MSET");
        for key in keys {
            mset.arg(key.as_bytes()).arg(&value()[..]);
        }
        mset.exec_async(&mut self.connection.clone()).await
    }
}

/// What the store is compared with.
trait Rival: Clone + Send + Sync + 'static {
    fn get(&self, key: &Key) -> impl Future<Output = bool> + Send;
    fn put(&self, key: &Key, value: Bytes) -> impl Future<Output = bool> + Send;
}

impl Rival for Raw {
    async fn get(&self, key: &Key) -> bool {
        let mut connection = self.connection.clone();
        let value: RedisResult<Option<Vec<u8>>> =
            redis::cmd("GET").arg(key.as_bytes()).query_async(&mut connection).await;
        std::hint::black_box(value).is_ok()
    }

    async fn put(&self, key: &Key, value: Bytes) -> bool {
        let mut connection = self.connection.clone();
        redis::cmd("SET").arg(key.as_bytes()).arg(&value[..]).exec_async(&mut connection).await.is_ok()
    }
}

#[derive(Clone)]
struct OpenDal {
    operator: opendal::Operator,
}

impl OpenDal {
    fn open() -> opendal::Result<Self> {
        let redis = opendal::services::Redis::default().endpoint(redis_url()).root(&unique("/bench"));
        Ok(Self { operator: opendal::Operator::new(redis)? })
    }
}

impl Rival for OpenDal {
    async fn get(&self, key: &Key) -> bool {
        let path = std::str::from_utf8(key.as_bytes()).unwrap_or_default();
        std::hint::black_box(self.operator.read(path).await).is_ok()
    }

    async fn put(&self, key: &Key, value: Bytes) -> bool {
        let path = std::str::from_utf8(key.as_bytes()).unwrap_or_default();
        self.operator.write(path, value).await.is_ok()
    }
}

fn compare_with(runtime: &Runtime, pairs: usize, calls: &Arc<Calls>, store: &Store, rival: &impl Rival) {
    for tasks in [1, 64] {
        let plan = Plan { pairs, operations: if tasks == 1 { 1 << 12 } else { 1 << 16 }, tasks };
        println!("{}", get(runtime, plan, calls, store, rival));
        println!("{}", put(runtime, plan, calls, store, rival));
    }
}

fn get(runtime: &Runtime, plan: Plan, calls: &Arc<Calls>, store: &Store, rival: &impl Rival) -> Comparison {
    let ours = |task, share| {
        let (store, calls) = (store.clone(), Arc::clone(calls));
        async move {
            for (_, key) in (0..share).zip(calls.of_task(task, plan.tasks)) {
                std::hint::black_box(store.get(key).await.ok());
            }
        }
    };
    let theirs = |task, share| {
        let (rival, calls) = (rival.clone(), Arc::clone(calls));
        async move {
            for (_, key) in (0..share).zip(calls.of_task(task, plan.tasks)) {
                assert!(rival.get(key).await, "the rival fails");
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

fn put(runtime: &Runtime, plan: Plan, calls: &Arc<Calls>, store: &Store, rival: &impl Rival) -> Comparison {
    let ours = |task, share| {
        let (store, calls, value) = (store.clone(), Arc::clone(calls), value());
        async move {
            for (_, key) in (0..share).zip(calls.of_task(task, plan.tasks)) {
                std::hint::black_box(store.put(key, value.clone()).await.ok());
            }
        }
    };
    let theirs = |task, share| {
        let (rival, calls, value) = (rival.clone(), Arc::clone(calls), value());
        async move {
            for (_, key) in (0..share).zip(calls.of_task(task, plan.tasks)) {
                assert!(rival.put(key, value.clone()).await, "the rival fails");
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

/// Keys per second in batches, got and put, against MGET and MSET.
fn batches(runtime: &Runtime, pairs: usize, count: u64, keys: &Arc<[Vec<Key>]>, store: &Store, raw: &Raw) {
    let plan = Plan { pairs, operations: (1 << 16) / BATCH as u64, tasks: count };
    let of_task = |task: u64, share: u64| {
        let keys = Arc::clone(keys);
        move |call: u64| keys.get((task * share + call) as usize % keys.len()).cloned().unwrap_or_default()
    };
    let keys_per_second = |batches: f64| batches * BATCH as f64;
    let ours = |task, share| {
        let (store, batch) = (store.clone(), of_task(task, share));
        async move {
            for call in 0..share {
                std::hint::black_box(store.batch_get(&batch(call)).await.ok());
            }
        }
    };
    let theirs = |task, share| {
        let (raw, batch) = (raw.clone(), of_task(task, share));
        async move {
            for call in 0..share {
                std::hint::black_box(raw.get_many(&batch(call)).await.ok());
            }
        }
    };
    let got = compare(
        format!("get batches of {BATCH}, {}", tasks(count)),
        pairs,
        || keys_per_second(segment(runtime, plan, ours)),
        || keys_per_second(segment(runtime, plan, theirs)),
    );
    let ours = |task, share| {
        let (store, batch) = (store.clone(), of_task(task, share));
        async move {
            for call in 0..share {
                let entries = batch(call).into_iter().map(|key| (key, value()));
                std::hint::black_box(store.batch_put(entries).await.ok());
            }
        }
    };
    let theirs = |task, share| {
        let (raw, batch) = (raw.clone(), of_task(task, share));
        async move {
            for call in 0..share {
                std::hint::black_box(raw.put_many(&batch(call)).await.ok());
            }
        }
    };
    let put = compare(
        format!("put batches of {BATCH}, {}", tasks(count)),
        pairs,
        || keys_per_second(segment(runtime, plan, ours)),
        || keys_per_second(segment(runtime, plan, theirs)),
    );
    println!("{got}\n{put}");
}

fn opendal_error(error: &opendal::Error) -> commonhold::Error {
    let message = format!("OpenDAL cannot be used: {error}");
    commonhold::Error::new(commonhold::ErrorKind::Unavailable, message)
}

fn raw_error(error: redis::RedisError) -> commonhold::Error {
    commonhold::Error::new(commonhold::ErrorKind::Unavailable, "raw redis does not answer").with_source(error)
}
