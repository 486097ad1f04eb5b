//! What all handles to one open store share, and how the last one closes it.

use std::{
    ops::Deref,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU32, AtomicUsize, Ordering},
    },
    time::Duration,
};

use commonhold_core::{Clock, Error, ErrorKind, Hub, Key, Result, embedded::Record};
use quanta::Instant;
use tokio::runtime;

use crate::{directory::Closing, engine::Engine, error::panic_message, writer::Writer};

pub(crate) struct Shared {
    pub(crate) engine: Engine,
    pub(crate) writer: Writer,
    pub(crate) reads: Reads,
    pub(crate) hub: Hub,
    pub(crate) clock: Arc<dyn Clock>,
    handles: AtomicUsize,
    closing: Mutex<Option<Closing>>,
}

impl Shared {
    /// The record under a key, live or not. Blocks if it is not in memory.
    pub(crate) fn read(&self, key: &Key) -> Result<Option<Record>> {
        self.reads.measured(1, || self.engine.read(key))
    }

    /// The records under these keys at one moment. Blocks if they are not in memory.
    pub(crate) fn read_many(&self, keys: &[Key]) -> Result<Vec<Option<Record>>> {
        self.reads.measured(keys.len(), || self.engine.read_many(keys))
    }
}

/// What users hold: while there is one, the store is open to them.
pub(crate) struct Handle(Task);

impl Handle {
    pub(crate) fn new(engine: Engine, clock: Arc<dyn Clock>) -> Self {
        let shared = Shared {
            engine,
            writer: Writer::default(),
            reads: Reads::default(),
            hub: Hub::default(),
            clock,
            handles: AtomicUsize::new(1),
            closing: Mutex::default(),
        };
        Self(Task(Some(Arc::new(shared))))
    }

    /// For work that nobody may wait for any more.
    pub(crate) fn task(&self) -> Task {
        self.0.clone()
    }

    /// Runs this on a thread that may block.
    pub(crate) async fn blocking<T: Send + 'static>(
        &self,
        call: impl FnOnce(&Shared) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let task = self.task();
        blocking(move || call(&task)).await
    }
}

impl Clone for Handle {
    fn clone(&self) -> Self {
        self.handles.fetch_add(1, Ordering::SeqCst);
        Self(self.task())
    }
}

impl Deref for Handle {
    type Target = Shared;

    fn deref(&self) -> &Shared {
        &self.0
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        if self.handles.fetch_sub(1, Ordering::SeqCst) == 1 {
            // From here on, opening the same directory waits instead of finding it locked.
            let closing = Closing::announce(self.engine.path());
            *self.closing.lock().unwrap_or_else(PoisonError::into_inner) = Some(closing);
        }
    }
}

/// What work in the background holds. The last one closes the store, away from the async threads.
#[derive(Clone)]
pub(crate) struct Task(Option<Arc<Shared>>);

impl Deref for Task {
    type Target = Shared;

    #[expect(clippy::unreachable, reason = "only `drop` takes it out")]
    fn deref(&self) -> &Shared {
        let Some(shared) = &self.0 else { unreachable!("a task is not used after it was dropped") };
        shared
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        let Some(mut shared) = self.0.take().and_then(Arc::into_inner) else { return };
        let closing = shared.closing.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        let close = Close { _shared: shared, _closing: closing };
        match runtime::Handle::try_current() {
            // A runtime that is shutting down drops the task instead of running it; that closes the store too.
            Ok(runtime) => drop(runtime.spawn_blocking(move || drop(close))),
            Err(_) => drop(close),
        }
    }
}

/// A store about to be closed. In this order it is dropped.
struct Close {
    _shared: Shared,
    _closing: Option<Closing>,
}

/// Runs this on a thread that may block. It runs to its end even if nobody waits for it any more.
pub(crate) async fn blocking<T: Send + 'static>(
    call: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let Ok(runtime) = runtime::Handle::try_current() else {
        // Outside of a runtime there are no async threads to protect.
        return call();
    };
    runtime.spawn_blocking(call).await.unwrap_or_else(|error| {
        Err(match error.try_into_panic() {
            Ok(panic) => Error::new(ErrorKind::Internal, panic_message(&*panic)),
            Err(_) => Error::new(ErrorKind::Closed, "the async runtime is shutting down"),
        })
    })
}

/// Whether reads come from memory, judged by how long the last ones took.
///
/// While they do, they are made right where they are called. One that had to wait for the disk sends the next
/// ones to blocking threads, until [`Reads::TRUST`] in a row were fast.
#[derive(Default)]
pub(crate) struct Reads {
    /// How many reads have to be fast before they are trusted.
    distrust: AtomicU32,
}

impl Reads {
    /// Longer than a read from memory takes, shorter than one from most disks.
    const SLOW: Duration = Duration::from_micros(200);
    const TRUST: u32 = 32;

    pub(crate) fn are_fast(&self) -> bool {
        self.distrust.load(Ordering::Relaxed) == 0
    }

    fn measured<T>(&self, reads: usize, read: impl FnOnce() -> T) -> T {
        let begun = Instant::now();
        let result = read();
        if begun.elapsed() > Self::SLOW * u32::try_from(reads).unwrap_or(u32::MAX).max(1) {
            self.distrust.store(Self::TRUST, Ordering::Relaxed);
        } else if !self.are_fast() {
            // Racing with others it counts a read too few or too many.
            let left = self.distrust.load(Ordering::Relaxed).saturating_sub(1);
            self.distrust.store(left, Ordering::Relaxed);
        }
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_slow_read_sends_the_next_ones_away_until_enough_were_fast() {
        let reads = Reads::default();
        let slow = || std::thread::sleep(2 * Reads::SLOW);
        assert!(reads.are_fast());
        reads.measured(1, slow);
        assert!(!reads.are_fast());
        reads.distrust.store(1, Ordering::Relaxed);
        reads.measured(1, slow);
        assert_eq!(reads.distrust.load(Ordering::Relaxed), Reads::TRUST);
        // A read of nothing is not slow 32 times in a row for ever.
        while !reads.are_fast() {
            reads.measured(1, || ());
        }
    }
}
