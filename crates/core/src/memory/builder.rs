//! The settings of a memory store, and the thread that sweeps it.

use std::{
    sync::{Arc, Mutex, OnceLock, Weak, atomic::AtomicU64},
    thread::{self, Thread},
    time::Duration,
};

use foldhash::fast::RandomState;

use super::{Inner, MemoryBackend, SHARDS, shard::Shard};
use crate::{
    clock::{Clock, SystemClock},
    embedded::Rules,
    hub::Hub,
};

/// The settings of a [`MemoryBackend`].
#[derive(Debug, Clone)]
pub struct MemoryBuilder {
    rules: Rules,
    max_bytes: Option<u64>,
    capacity: usize,
    cleanup_interval: Duration,
    clock: Arc<dyn Clock>,
}

impl Default for MemoryBuilder {
    fn default() -> Self {
        Self {
            rules: Rules::default(),
            max_bytes: None,
            capacity: 0,
            cleanup_interval: Duration::from_secs(1),
            clock: Arc::new(SystemClock),
        }
    }
}

impl MemoryBuilder {
    /// Lets values live this long that are put without a time to live. Without it they live for ever.
    #[must_use]
    pub fn default_ttl(mut self, ttl: Duration) -> Self {
        self.rules.default_ttl = Some(ttl);
        self
    }

    /// Refuses writes that would let keys and values, with about 192 bytes for each entry, take more than
    /// this: `Overloaded`, or `TooLarge` for what could never fit. Without it memory is the bound.
    #[must_use]
    pub fn max_bytes(mut self, bytes: u64) -> Self {
        self.max_bytes = Some(bytes);
        self
    }

    /// Refuses longer values with `TooLarge`. 64 MiB unless set.
    #[must_use]
    pub fn max_value_bytes(mut self, bytes: u64) -> Self {
        self.rules.max_value_bytes = bytes;
        self
    }

    /// Makes room for this many entries at once, so that the table need not grow, if there is memory for
    /// them.
    #[must_use]
    pub fn capacity(mut self, entries: usize) -> Self {
        self.capacity = entries;
        self
    }

    /// How often the memory of expired entries is given back, one second unless set. They are never seen,
    /// whatever this says.
    #[must_use]
    pub fn cleanup_interval(mut self, interval: Duration) -> Self {
        self.cleanup_interval = interval;
        self
    }

    /// Takes the time from this clock.
    #[must_use]
    pub fn clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = clock;
        self
    }

    /// The store.
    pub fn build(self) -> MemoryBackend {
        let capacity = self.capacity.div_ceil(SHARDS);
        let hasher = RandomState::default();
        let shards = (0..SHARDS).map(|_| Mutex::new(Shard::new(hasher.clone(), capacity))).collect();
        MemoryBackend(Arc::new_cyclic(|store| Inner {
            shards,
            hasher,
            clock: self.clock,
            rules: self.rules,
            max_bytes: self.max_bytes.unwrap_or(u64::MAX),
            used: AtomicU64::new(0),
            hub: Hub::default(),
            sweeper: Sweeper {
                interval: self.cleanup_interval.max(Duration::from_millis(1)),
                store: Weak::clone(store),
                thread: OnceLock::new(),
            },
        }))
    }
}

/// A thread that removes expired entries while the store lives. It starts with the first entry that can
/// expire.
#[derive(Debug)]
pub(super) struct Sweeper {
    interval: Duration,
    store: Weak<Inner>,
    thread: OnceLock<Option<Thread>>,
}

impl Sweeper {
    pub(super) fn start(&self) {
        self.thread.get_or_init(|| {
            let (store, interval) = (Weak::clone(&self.store), self.interval);
            let sweep = move || {
                loop {
                    thread::park_timeout(interval);
                    let Some(store) = store.upgrade() else { break };
                    store.sweep();
                }
            };
            // Without a thread, writes still sweep a little each and a full store sweeps itself.
            thread::Builder::new()
                .name("commonhold-sweep".to_owned())
                .spawn(sweep)
                .ok()
                .map(|handle| handle.thread().clone())
        });
    }
}

impl Drop for Sweeper {
    fn drop(&mut self) {
        if let Some(Some(thread)) = self.thread.get() {
            thread.unpark();
        }
    }
}
