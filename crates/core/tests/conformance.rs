//! The memory backend and every layer over it pass the conformance kit.

#![allow(clippy::unwrap_used, missing_docs)]

use std::{future::Future, sync::Arc, time::Duration};

use commonhold_core::{
    Key, ManualClock, MemoryBackend, StateBackend, Store, Timestamp,
    layers::{ConcurrencyLimit, Fault, FaultPlan, Layer, Metrics, Namespace, Retry, Timeout, Trace},
};
use commonhold_testkit::{MAX_VALUE_BYTES, Subject, conformance};

/// Of all cases, two ask for a scan of one moment, which the memory backend does not promise.
const CASES: usize = 152;

fn memory(clock: &Arc<ManualClock>) -> MemoryBackend {
    MemoryBackend::builder().max_value_bytes(MAX_VALUE_BYTES).clock(clock.clone()).build()
}

fn clock() -> Arc<ManualClock> {
    Arc::new(ManualClock::new(Timestamp::from_millis(1_700_000_000_000)))
}

/// Memory with this layer around it.
fn under(layer: impl Layer) -> impl Future<Output = Subject> {
    let clock = clock();
    std::future::ready(Subject::new(layer.layer(Arc::new(memory(&clock)))).with_clock(clock))
}

conformance!(memory, CASES, || async {
    let clock = clock();
    Subject::new(Arc::new(memory(&clock))).with_clock(clock)
});

conformance!(memory_on_the_clock_of_the_machine, CASES, || async {
    Subject::new(Arc::new(MemoryBackend::builder().max_value_bytes(MAX_VALUE_BYTES).build()))
});

conformance!(memory_with_a_bound_and_a_frequent_sweep, CASES, || async {
    let clock = clock();
    let memory = MemoryBackend::builder()
        .max_value_bytes(MAX_VALUE_BYTES)
        .max_bytes(64 << 20)
        .capacity(1_000)
        .cleanup_interval(Duration::from_millis(1))
        .clock(clock.clone())
        .build();
    Subject::new(Arc::new(memory)).with_clock(clock)
});

conformance!(retry, CASES, || under(Retry::default()));
conformance!(timeout, CASES, || under(Timeout::new(Duration::from_secs(30))));
conformance!(concurrency_limit, CASES, || under(ConcurrencyLimit::new(2)));
conformance!(metrics, CASES, || under(Metrics::new("memory")));
conformance!(trace, CASES, || under(Trace));
conformance!(fault, CASES, || under(Fault::new(&FaultPlan::new())));

conformance!(namespace, CASES, || async {
    let namespace = Namespace::new("a*").unwrap();
    under(namespace).await.with_max_key_len(Key::MAX_LEN - "a*:".len())
});

conformance!(all_layers, CASES, || async {
    let clock = clock();
    let store = Store::new(memory(&clock))
        .layer(Fault::new(&FaultPlan::new()))
        .layer(Timeout::new(Duration::from_secs(30)))
        .layer(ConcurrencyLimit::new(4))
        .layer(Retry::default())
        .layer(Trace)
        .namespace("orders")
        .unwrap();
    let backend: Arc<dyn StateBackend> = store.backend().clone();
    Subject::new(backend).with_clock(clock).with_max_key_len(Key::MAX_LEN - "orders:".len())
});
