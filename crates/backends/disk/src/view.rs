//! Reads that see all of a commit or nothing of it.
//!
//! The engine makes the items of a batch visible one after the other to plain reads, all of them later to its
//! snapshots, and these can see into a batch when a table is finished at the same moment. While a commit is under
//! way, readers are therefore given a snapshot that was taken before it; a read that a commit overtook is repeated.
//! So what one read has seen, no later one misses, whichever way each is made.

use std::sync::{
    PoisonError, RwLock,
    atomic::{AtomicU64, Ordering},
};

use fjall::Snapshot;

#[derive(Default)]
pub(crate) struct View {
    /// Odd while a commit is under way.
    epoch: AtomicU64,
    before: RwLock<Option<Snapshot>>,
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
