//! The disk store through the `Store` handle, metrics on, against raw `fjall` with the same settings.

use std::{path::Path, sync::Arc};

use commonhold::{
    Key, Store,
    disk::{DiskBackend, DiskConfig, Durability},
};
use fjall::{Database, Keyspace, KeyspaceCreateOptions, PersistMode};
use tokio::runtime::Runtime;

use crate::{
    harness::{Comparison, Plan, breathe, compare, segment, tasks},
    keys::{Calls, keys, value},
};

const MIB: u64 = 1024 * 1024;

pub(crate) fn run(runtime: &Runtime, pairs: usize) -> commonhold::Result<()> {
    let (keys, calls) = (keys(), Arc::new(Calls::new()));
    println!("\n### Disk: `durability=buffered` against raw `fjall`\n\n{}", Comparison::HEADING);
    for tasks in [1, 64] {
        let directory = tempfile::tempdir().map_err(io)?;
        let store = open(runtime, &directory.path().join("ours"), Durability::Buffered)?;
        let raw = Raw::open(&directory.path().join("raw")).map_err(raw_error)?;
        runtime.block_on(async {
            for key in keys.iter() {
                store.put(key, value()).await?;
                raw.put(key);
            }
            Ok::<_, commonhold::Error>(())
        })?;
        let plan = Plan { pairs, operations: 1 << 17, tasks };
        println!("{}", get(runtime, plan, &calls, &store, &raw));
        println!("{}", put(runtime, plan, &calls, &store, &raw));
    }
    println!("\n### Disk: `durability=sync`, writers that share an fsync\n\n{}", Comparison::HEADING);
    let directory = tempfile::tempdir().map_err(io)?;
    let store = open(runtime, &directory.path().join("ours"), Durability::Sync)?;
    let raw = Raw::open(&directory.path().join("raw")).map_err(raw_error)?;
    for tasks in [1, 64] {
        println!("{}", sync(runtime, pairs, tasks, &calls, &store, &raw));
    }
    Ok(())
}

fn open(runtime: &Runtime, path: &Path, durability: Durability) -> commonhold::Result<Store> {
    let config = DiskConfig::new(path).durability(durability);
    Ok(Store::new(runtime.block_on(DiskBackend::open(config))?))
}

/// Fjall as an application would use it by itself, with the memory that the disk store gives it.
#[derive(Clone)]
struct Raw {
    database: Database,
    entries: Keyspace,
}

impl Raw {
    fn open(path: &Path) -> fjall::Result<Self> {
        let database = Database::builder(path).cache_size(32 * MIB).max_journaling_size(64 * MIB).open()?;
        let entries =
            database.keyspace("entries", || KeyspaceCreateOptions::default().max_memtable_size(8 * MIB))?;
        Ok(Self { database, entries })
    }

    fn put(&self, key: &Key) {
        std::hint::black_box(self.entries.insert(key.as_bytes(), &value()[..]).is_ok());
    }
}

fn get(runtime: &Runtime, plan: Plan, calls: &Arc<Calls>, store: &Store, raw: &Raw) -> Comparison {
    let ours = |task, share| {
        let (store, calls) = (store.clone(), Arc::clone(calls));
        async move {
            for (call, key) in (0..share).zip(calls.of_task(task, plan.tasks)) {
                std::hint::black_box(store.get(key).await.ok());
                breathe(call).await;
            }
        }
    };
    let theirs = |task, share| {
        let (raw, calls) = (raw.clone(), Arc::clone(calls));
        async move {
            for (call, key) in (0..share).zip(calls.of_task(task, plan.tasks)) {
                std::hint::black_box(raw.entries.get(key.as_bytes()).ok());
                breathe(call).await;
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
            for (call, key) in (0..share).zip(calls.of_task(task, plan.tasks)) {
                std::hint::black_box(store.put(key, value.clone()).await.ok());
                breathe(call).await;
            }
        }
    };
    let theirs = |task, share| {
        let (raw, calls) = (raw.clone(), Arc::clone(calls));
        async move {
            for (call, key) in (0..share).zip(calls.of_task(task, plan.tasks)) {
                raw.put(key);
                breathe(call).await;
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

/// Writers of ours against one writer on raw fjall that calls fsync after each write.
fn sync(
    runtime: &Runtime,
    pairs: usize,
    writers: u64,
    calls: &Arc<Calls>,
    store: &Store,
    raw: &Raw,
) -> Comparison {
    let many = Plan { pairs, operations: 128 * writers, tasks: writers };
    let one = Plan { pairs, operations: 128, tasks: 1 };
    let ours = |task, share| {
        let (store, calls, value) = (store.clone(), Arc::clone(calls), value());
        async move {
            for (_, key) in (0..share).zip(calls.of_task(task, writers)) {
                std::hint::black_box(store.put(key, value.clone()).await.ok());
            }
        }
    };
    let theirs = |task, share| {
        let (raw, calls) = (raw.clone(), Arc::clone(calls));
        async move {
            for (_, key) in (0..share).zip(calls.of_task(task, 1)) {
                raw.put(key);
                std::hint::black_box(raw.database.persist(PersistMode::SyncAll).is_ok());
            }
        }
    };
    compare(
        format!("put, {} against 1 raw writer with an fsync each", tasks(writers)),
        pairs,
        || segment(runtime, many, ours),
        || segment(runtime, one, theirs),
    )
}

fn io(error: std::io::Error) -> commonhold::Error {
    commonhold::Error::new(commonhold::ErrorKind::Unavailable, "no temporary directory").with_source(error)
}

fn raw_error(error: fjall::Error) -> commonhold::Error {
    commonhold::Error::new(commonhold::ErrorKind::Unavailable, "raw fjall does not open").with_source(error)
}
