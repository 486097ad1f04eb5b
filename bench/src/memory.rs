//! The memory store through the `Store` handle, metrics on, against the raw concurrent map `scc::HashMap`.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use commonhold::{
    Key, MemoryBackend, StateBackend, Store,
    layers::{ConcurrencyLimit, Layer, Metrics, Retry, Timeout, Trace},
};
use tokio::runtime::Runtime;

use crate::{
    harness::{Comparison, Plan, breathe, compare, segment, tasks},
    keys::{Calls, KEYS, keys, value},
};

type RawMap = scc::HashMap<Bytes, Bytes, foldhash::fast::RandomState>;

pub(crate) fn run(runtime: &Runtime, pairs: usize) {
    let (keys, calls) = (keys(), Arc::new(Calls::new()));
    let store = Store::new(MemoryBackend::builder().capacity(KEYS).build());
    let raw: Arc<RawMap> = Arc::new(RawMap::with_capacity_and_hasher(KEYS, Default::default()));
    runtime.block_on(async {
        for key in keys.iter() {
            let _ = store.put(key, value()).await;
            let _ = raw.insert_async(key.clone().into_bytes(), value()).await;
        }
    });
    println!("\n### Memory: `Store` with metrics against raw `scc::HashMap`\n\n{}", Comparison::HEADING);
    for tasks in [1, 64] {
        let plan = Plan { pairs, operations: 1 << 19, tasks };
        println!("{}", get(runtime, plan, &calls, &store, &raw));
        println!("{}", put(runtime, plan, &calls, &store, &raw));
    }
    layers(runtime, pairs, &keys);
}

fn get(runtime: &Runtime, plan: Plan, calls: &Arc<Calls>, store: &Store, raw: &Arc<RawMap>) -> Comparison {
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
        let (raw, calls) = (Arc::clone(raw), Arc::clone(calls));
        async move {
            for (call, key) in (0..share).zip(calls.of_task(task, plan.tasks)) {
                std::hint::black_box(raw.read_async(key.as_bytes(), |_, value| value.clone()).await);
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

fn put(runtime: &Runtime, plan: Plan, calls: &Arc<Calls>, store: &Store, raw: &Arc<RawMap>) -> Comparison {
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
        let (raw, calls, value) = (Arc::clone(raw), Arc::clone(calls), value());
        async move {
            for (call, key) in (0..share).zip(calls.of_task(task, plan.tasks)) {
                std::hint::black_box(raw.upsert_async(key.clone().into_bytes(), value.clone()).await);
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

/// What each uniform layer adds to a get from memory.
fn layers(runtime: &Runtime, pairs: usize, keys: &[Key]) {
    println!("\n### Uniform layers: what one adds to a get from memory, one task\n");
    println!("| layer | added, ns (median of {pairs} pairs) |\n|---|---:|");
    let bare: Arc<dyn StateBackend> = Arc::new(MemoryBackend::new());
    runtime.block_on(async {
        for key in keys.iter() {
            let _ = bare.put(key, value(), Default::default()).await;
        }
    });
    let over = |layer: &dyn Fn(Arc<dyn StateBackend>) -> Arc<dyn StateBackend>| layer(Arc::clone(&bare));
    let layered = [
        ("retry", over(&|inner| Retry::default().layer(inner))),
        ("timeout", over(&|inner| Timeout::new(Duration::from_secs(3)).layer(inner))),
        ("concurrency limit", over(&|inner| ConcurrencyLimit::new(256).layer(inner))),
        ("metrics", over(&|inner| Metrics::new("memory").layer(inner))),
        ("trace", over(&|inner| Trace.layer(inner))),
    ];
    let plan = Plan { pairs, operations: 1 << 19, tasks: 1 };
    // Few keys: what the layer adds would drown in cache misses otherwise.
    let hot: Vec<Key> = keys.iter().take(64).cloned().collect();
    for (name, layered) in layered {
        let side = |backend: &Arc<dyn StateBackend>| {
            segment(runtime, plan, |_, share| {
                let (backend, keys) = (Arc::clone(backend), hot.clone());
                async move {
                    for key in keys.iter().cycle().take(share as usize) {
                        std::hint::black_box(backend.get(key).await.ok());
                    }
                }
            })
        };
        let comparison = compare(name, pairs, || side(&layered), || side(&bare));
        println!("| {name} | {:.0} |", comparison.extra_nanos());
    }
}
