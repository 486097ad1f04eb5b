//! The PostgreSQL store through the `Store` handle, metrics on, against one prepared statement for each operation over
//! a pool of 16 connections.
//!
//! The server is the one that `COMMONHOLD_TEST_POSTGRES_URL` names, or one of its own that does not sync its files.

use std::sync::Arc;

use commonhold::{
    Key, Store, Write,
    postgres::{PostgresBackend, PostgresConfig},
    url::StoreUrl,
};
use commonhold_testkit::servers::{shared::postgres_url, unique};
use deadpool_postgres::{Manager, ManagerConfig, Pool, RecyclingMethod};
use tokio::runtime::Runtime;
use tokio_postgres::NoTls;

use crate::{
    harness::{Comparison, Plan, compare, per_second, rate, segment, tasks},
    keys::{Calls, keys, value},
};

/// As many connections as the baseline may have.
const POOL: usize = 16;
/// As many entries as `copy` writes at a time.
const BATCH: usize = 4096;

pub(crate) fn run(runtime: &Runtime, pairs: usize) -> commonhold::Result<()> {
    let (keys, calls) = (keys(), Arc::new(Calls::new()));
    let store = runtime.block_on(open())?;
    let raw = runtime.block_on(Raw::open()).map_err(raw_error)?;
    let begun = std::time::Instant::now();
    runtime.block_on(async {
        for batch in keys.chunks(BATCH) {
            let writes = batch.iter().map(|key| Write::put(key.clone(), value())).collect();
            store.write_batch(writes).await?;
        }
        Ok::<_, commonhold::Error>(())
    })?;
    let loaded = per_second(keys.len() as u64, begun.elapsed());
    runtime.block_on(raw.fill(&keys)).map_err(raw_error)?;
    println!(
        "\n### PostgreSQL: against one prepared statement for each operation over a pool of {POOL}\n\n{}",
        Comparison::HEADING
    );
    for tasks in [1, 64] {
        let plan = Plan { pairs, operations: if tasks == 1 { 1 << 11 } else { 1 << 14 }, tasks };
        println!("{}", get(runtime, plan, &calls, &store, &raw));
        println!("{}", put(runtime, plan, &calls, &store, &raw));
    }
    println!("\nBatches of {BATCH} into an empty table: {} entries/s.", rate(loaded));
    Ok(())
}

async fn open() -> commonhold::Result<Store> {
    let config = PostgresConfig::from_url(StoreUrl::parse(postgres_url())?)?.table(unique("bench"));
    Ok(Store::new(PostgresBackend::open(config).await?))
}

/// PostgreSQL as an application would use it by itself, with a table as the store has it.
#[derive(Clone)]
struct Raw {
    pool: Pool,
    get: Arc<str>,
    put: Arc<str>,
}

impl Raw {
    async fn open() -> Result<Self, Box<dyn std::error::Error>> {
        let recycling = ManagerConfig { recycling_method: RecyclingMethod::Fast };
        let manager = Manager::from_config(postgres_url().parse()?, NoTls, recycling);
        let pool = Pool::builder(manager).max_size(POOL).build()?;
        let table = unique("raw");
        let create = format!(
            "CREATE TABLE {table} (key bytea PRIMARY KEY, value bytea NOT NULL, expires_at timestamptz)"
        );
        pool.get().await?.batch_execute(&create).await?;
        Ok(Self {
            pool,
            get: format!("SELECT value, expires_at FROM {table} WHERE key = $1").into(),
            put: format!(
                "INSERT INTO {table} (key, value) VALUES ($1, $2) \
                 ON CONFLICT (key) DO UPDATE SET value = excluded.value, expires_at = excluded.expires_at"
            )
            .into(),
        })
    }

    async fn get(&self, key: &Key) -> Result<Option<Vec<u8>>, Box<dyn std::error::Error + Send + Sync>> {
        let client = self.pool.get().await?;
        let statement = client.prepare_cached(&self.get).await?;
        let row = client.query_opt(&statement, &[&key.as_bytes()]).await?;
        Ok(row.map(|row| row.get(0)))
    }

    async fn put(&self, key: &Key, value: &[u8]) -> Result<u64, Box<dyn std::error::Error + Send + Sync>> {
        let client = self.pool.get().await?;
        let statement = client.prepare_cached(&self.put).await?;
        Ok(client.execute(&statement, &[&key.as_bytes(), &value]).await?)
    }

    async fn fill(&self, keys: &[Key]) -> Result<(), Box<dyn std::error::Error>> {
        let client = self.pool.get().await?;
        let sql = self.put.replace("VALUES ($1, $2)", "SELECT * FROM unnest($1::bytea[], $2::bytea[])");
        for batch in keys.chunks(BATCH) {
            let keys: Vec<&[u8]> = batch.iter().map(Key::as_bytes).collect();
            let value = value();
            let values = vec![&value[..]; keys.len()];
            client.execute(&sql, &[&keys, &values]).await?;
        }
        Ok(())
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
        let (raw, calls) = (raw.clone(), Arc::clone(calls));
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
        let (raw, calls, value) = (raw.clone(), Arc::clone(calls), value());
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

fn raw_error(error: Box<dyn std::error::Error>) -> commonhold::Error {
    let message = format!("PostgreSQL cannot be used: {error}");
    commonhold::Error::new(commonhold::ErrorKind::Unavailable, message)
}
