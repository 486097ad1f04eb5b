//! Reads that see all of a commit or nothing of it.
//!
//! The engine makes the items of a batch visible one after the other to plain reads, all of them later to its
//! snapshots, and these can see into a batch when a table is finished at the same moment. While a commit is under
//! way, readers are therefore given a snapshot that was taken before it; a read that a commit overtook is repeated.
//! So what one read has seen, no later one misses, whichever way each is made.
//!
//! A commit of a single item that does not wait for the disk is over in microseconds, and a snapshot before it would
//! cost as much as the commit. It is shown as it comes; who takes a snapshot meanwhile waits for its end.

use std::{
    hint,
    sync::{
        PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
    thread,
};

use fjall::Snapshot;

#[derive(Default)]
pub(crate) struct View {
    /// Odd while a commit is under way.
    epoch: AtomicU64,
    before: RwLock<Option<Snapshot>>,
    /// Odd while a single item is being written.
    single: AtomicU64,
}

impl View {
    /// Reads through a snapshot or, for `None`, plainly.
    pub(crate) fn read<T>(&self, read: impl Fn(Option<&Snapshot>) -> T) -> T {
        loop {
            let epoch = self.epoch.load(Ordering::SeqCst);
            if epoch.is_multiple_of(2) {
                let seen = read(None);
                // Whoever saw an item of a commit also sees that the commit had begun.
                if self.epoch.load(Ordering::SeqCst) == epoch {
                    return seen;
                }
            } else {
                // A copy: a reader that waits for the disk must not hold up the writer.
                let before = self.before.read().unwrap_or_else(PoisonError::into_inner).clone();
                if let Some(before) = before {
                    return read(Some(&before));
                }
            }
        }
    }

    /// A snapshot of all that any earlier read has seen.
    pub(crate) fn snapshot(&self, take: impl Fn() -> Snapshot) -> Snapshot {
        let single = self.single.load(Ordering::SeqCst);
        let mut spins = 0u32;
        // The item of just this commit may have been seen already, but that of no later one.
        while !single.is_multiple_of(2) && self.single.load(Ordering::SeqCst) == single {
            spins += 1;
            if spins.is_multiple_of(64) { thread::yield_now() } else { hint::spin_loop() }
        }
        self.read(|before| before.cloned().unwrap_or_else(&take))
    }

    /// Announces a single item that is written until the guard is dropped. To be called by the one writer.
    pub(crate) fn single(&self) -> Single<'_> {
        self.single.fetch_add(1, Ordering::SeqCst);
        Single(self)
    }

    /// Shows readers this snapshot until the guard is dropped. To be called by the one writer.
    pub(crate) fn hide(&self, before: Snapshot) -> Hidden<'_> {
        *self.before.write().unwrap_or_else(PoisonError::into_inner) = Some(before);
        self.epoch.fetch_add(1, Ordering::SeqCst);
        Hidden(self)
    }
}

pub(crate) struct Hidden<'a>(&'a View);

impl Drop for Hidden<'_> {
    fn drop(&mut self) {
        self.0.epoch.fetch_add(1, Ordering::SeqCst);
        *self.0.before.write().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

pub(crate) struct Single<'a>(&'a View);

impl Drop for Single<'_> {
    fn drop(&mut self) {
        self.0.single.fetch_add(1, Ordering::SeqCst);
    }
}
