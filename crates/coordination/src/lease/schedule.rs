//! When leases are renewed for the first time. Most are given back before: a task for each of them from the beginning would
//! cost more than all the rest that this process does for it.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use tokio::{
    runtime::{Handle, Id},
    sync::Notify,
    time::Instant,
};

use super::held::Shared;

/// The leases of a process that were not renewed yet, by the runtime on which they were claimed.
#[derive(Debug, Default)]
pub(super) struct Schedule(Mutex<HashMap<Id, Arc<Queue>>>);

/// Those of one runtime.
#[derive(Debug)]
struct Queue {
    runtime: Handle,
    waiting: Mutex<Waiting>,
    /// The task is to look earlier than it has said, or to end.
    sooner: Arc<Notify>,
}

#[derive(Debug, Default)]
struct Waiting {
    leases: BTreeMap<(Instant, u64), Arc<Shared>>,
    /// How many there were until now.
    count: u64,
    /// When the task looks again, at the latest; there is none without.
    looks: Option<Instant>,
}

/// A lease in a queue. Dropping it takes it out.
#[derive(Debug)]
pub(super) struct Scheduled {
    queue: Arc<Queue>,
    place: (Instant, u64),
}

impl Schedule {
    /// Begins to renew a lease at this time, on the runtime of the caller.
    pub(super) fn add(&self, due: Instant, lease: Arc<Shared>) -> Scheduled {
        let queue = self.queue(Handle::current());
        let place = queue.add(due, lease);
        Scheduled { queue, place }
    }

    fn queue(&self, runtime: Handle) -> Arc<Queue> {
        let mut queues = lock(&self.0);
        let id = runtime.id();
        if let Some(queue) = queues.get(&id) {
            return Arc::clone(queue);
        }
        // Those of runtimes that have ended are not asked for any more.
        queues.retain(|_, queue| lock(&queue.waiting).looks.is_some());
        let queue = Queue { runtime, waiting: Mutex::default(), sooner: Arc::default() };
        Arc::clone(queues.entry(id).or_insert(Arc::new(queue)))
    }
}

impl Scheduled {
    /// Where it is renewed.
    pub(super) fn runtime(&self) -> &Handle {
        &self.queue.runtime
    }
}

impl Queue {
    fn add(self: &Arc<Self>, due: Instant, lease: Arc<Shared>) -> (Instant, u64) {
        let mut waiting = lock(&self.waiting);
        waiting.count += 1;
        let place = (due, waiting.count);
        waiting.leases.insert(place, lease);
        // It looks as early as it once had to. Where leases come and go it is not woken for each.
        if waiting.looks.is_some_and(|looks| looks <= due) {
            return place;
        }
        let looked = waiting.looks.replace(due);
        // A runtime that has ended drops the task here, which takes the lock.
        drop(waiting);
        match looked {
            Some(_) => self.sooner.notify_one(),
            None => {
                let looking = Looking { queue: Arc::downgrade(self), sooner: Arc::clone(&self.sooner) };
                self.runtime.spawn(looking.until_none_waits());
            }
        }
        place
    }

    /// Begins to renew those for which it is time. Says when it is for the next one.
    fn begin_due(&self) -> Option<Instant> {
        let mut waiting = lock(&self.waiting);
        let later = waiting.leases.split_off(&(Instant::now(), u64::MAX));
        let due = std::mem::replace(&mut waiting.leases, later);
        waiting.looks = waiting.leases.first_key_value().map(|(place, _)| place.0);
        let next = waiting.looks;
        drop(waiting);
        due.into_values().for_each(|lease| lease.begin(Duration::ZERO, &self.runtime));
        next
    }
}

/// The task of a queue. It does not keep it.
struct Looking {
    queue: Weak<Queue>,
    sooner: Arc<Notify>,
}

impl Looking {
    async fn until_none_waits(mut self) {
        while let Some(next) = self.queue.upgrade().and_then(|queue| queue.begin_due()) {
            tokio::select! {
                () = tokio::time::sleep_until(next) => {}
                () = self.sooner.notified() => {}
            }
        }
        // Who comes from now on begins another.
        self.queue = Weak::new();
    }
}

impl Drop for Looking {
    /// Ended with its runtime, perhaps.
    fn drop(&mut self) {
        if let Some(queue) = self.queue.upgrade() {
            lock(&queue.waiting).looks = None;
        }
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        self.sooner.notify_one();
    }
}

impl Drop for Scheduled {
    fn drop(&mut self) {
        // Dropped after the lock is given back: with it may go the last of the leases, and the queue.
        let _lease = lock(&self.queue.waiting).leases.remove(&self.place);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
