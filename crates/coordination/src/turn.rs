//! Whose turn it is among the tasks of one process, and the lease that one leaves to the next.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
};

use commonhold_core::Key;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::Instant,
};

/// The things that tasks of this process take turns at; `L` is what one leaves to the next.
#[derive(Debug)]
pub(crate) struct Turns<L> {
    names: Mutex<HashMap<Key, Known<L>>>,
}

/// A name, and how many have a part in it.
#[derive(Debug)]
struct Known<L> {
    name: Arc<Name<L>>,
    users: usize,
}

#[derive(Debug)]
struct Name<L> {
    turn: Arc<Semaphore>,
    /// How many wait for their turn.
    waiting: AtomicUsize,
    /// While something is here, somebody waits or has the turn.
    left: Mutex<Option<L>>,
}

/// A turn. Dropping it ends it.
#[derive(Debug)]
pub(crate) struct Turn<L> {
    turns: Arc<Turns<L>>,
    key: Key,
    name: Arc<Name<L>>,
    permit: Option<OwnedSemaphorePermit>,
}

impl<L> Default for Turns<L> {
    fn default() -> Self {
        Self { names: Mutex::default() }
    }
}

impl<L> Default for Known<L> {
    fn default() -> Self {
        Self { name: Arc::default(), users: 0 }
    }
}

impl<L> Turns<L> {
    /// Waits for a turn, in the order of those who come; without a deadline, not at all.
    pub(crate) async fn take(self: &Arc<Self>, key: &Key, deadline: Option<Instant>) -> Option<Turn<L>> {
        let name = {
            let mut names = lock(&self.names);
            let known = names.entry(key.clone()).or_default();
            known.users += 1;
            Arc::clone(&known.name)
        };
        // Tidies up also if the turn does not come.
        let mut turn = Turn { turns: Arc::clone(self), key: key.clone(), name, permit: None };
        let semaphore = Arc::clone(&turn.name.turn);
        turn.permit = match deadline {
            None => semaphore.try_acquire_owned().ok(),
            Some(deadline) => {
                let waiting = Waiting::new(&turn.name);
                let permit = tokio::time::timeout_at(deadline, semaphore.acquire_owned()).await;
                drop(waiting);
                permit.ok()?.ok()
            }
        };
        turn.permit.is_some().then_some(turn)
    }
}

impl<L> Turn<L> {
    /// What the one before left.
    pub(crate) fn take_left(&self) -> Option<L> {
        lock(&self.name.left).take()
    }

    /// Ends the turn and leaves something to the next one, if anybody waits.
    pub(crate) fn leave(self, left: L) -> Option<(Self, L)> {
        if self.name.waiting.load(SeqCst) == 0 {
            return Some((self, left));
        }
        *lock(&self.name.left) = Some(left);
        None
    }
}

impl<L> Drop for Turn<L> {
    fn drop(&mut self) {
        self.permit = None;
        self.name.settle();
        let mut names = lock(&self.turns.names);
        if let Some(known) = names.get_mut(&self.key) {
            known.users -= 1;
            if known.users == 0 {
                names.remove(&self.key);
            }
        }
    }
}

impl<L> Name<L> {
    /// Drops what was left to somebody who is gone. Whoever leaves something or goes does this afterwards, so that the
    /// last of them finds it.
    fn settle(&self) {
        if self.waiting.load(SeqCst) == 0
            && let Ok(_turn) = self.turn.try_acquire()
        {
            drop(lock(&self.left).take());
        }
    }
}

impl<L> Default for Name<L> {
    fn default() -> Self {
        Self { turn: Arc::new(Semaphore::new(1)), waiting: AtomicUsize::new(0), left: Mutex::default() }
    }
}

/// One who waits.
struct Waiting<'a, L>(&'a Name<L>);

impl<'a, L> Waiting<'a, L> {
    fn new(name: &'a Name<L>) -> Self {
        name.waiting.fetch_add(1, SeqCst);
        Self(name)
    }
}

impl<L> Drop for Waiting<'_, L> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, SeqCst);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
