//! The single writer, and group commit.
//!
//! Operations stand in one queue. Whoever finds it without a leader appoints one, on a blocking thread: it takes
//! everything that stands there, carries it out as one group, commits the group in one write (one `fsync`),
//! answers, and looks again. What arrives meanwhile is the next group.
//!
//! While there is no leader, a write that will not wait for the disk is carried out right where it is called,
//! under a lock. So there is only ever one writer at a time, which makes conditions, transitions, batches and
//! transactions atomic without further locks.

use std::{
    mem,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use commonhold_core::{
    Answer, Applied, Change, Condition, Error, ErrorKind, Expiry, Key, PutOptions, Result, Retry, embedded,
};
use tokio::{runtime, sync::oneshot};

use crate::{
    config::Durability,
    error::contained,
    group::{Group, Operation, Reply},
    shared::{Handle, Shared, Task},
};

/// How many operations, and how many bytes of them, may wait.
const MAX_QUEUED: usize = 65_536;
const MAX_QUEUED_BYTES: usize = 128 * 1024 * 1024;

/// How large an operation may be that is carried out where it is called.
const MAX_INLINE_BYTES: usize = 64 * 1024;

#[derive(Default)]
pub(crate) struct Writer {
    queue: Mutex<Queue>,
    /// Written under the lock of the queue.
    has_leader: AtomicBool,
    /// Held while writing without being the leader; and nobody begins to while there is one.
    inline: Mutex<()>,
    /// Operations that were carried out, and the commits they took.
    pub(crate) operations: AtomicU64,
    pub(crate) commits: AtomicU64,
}

#[derive(Default)]
struct Queue {
    waiting: Vec<Waiting>,
    bytes: usize,
}

struct Waiting {
    operation: Operation,
    answer: oneshot::Sender<Result<Reply>>,
}

impl Writer {
    // A std mutex: it is held for a few instructions and never across an await.
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    // A std mutex: it is held for a write to memory and never across an await.
    fn inline(&self) -> MutexGuard<'_, ()> {
        self.inline.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes everything that waits. If that is nothing, there is no leader any more.
    fn take(&self) -> Option<Queue> {
        let mut queue = self.queue();
        if queue.waiting.is_empty() {
            self.has_leader.store(false, Ordering::SeqCst);
            return None;
        }
        Some(mem::take(&mut *queue))
    }
}

impl Handle {
    /// Carries out one operation. If the answer is dropped, the operation may still be carried out, in full.
    pub(crate) fn submit(&self, operation: Operation) -> Answer<'static, Reply> {
        match self.write_inline(operation) {
            Ok(reply) => Answer::Ready(reply),
            Err(operation) => match self.enqueue(operation) {
                Ok(answer) => Answer::later(async { answer.await.unwrap_or_else(|_| Err(unanswered())) }),
                Err(error) => Answer::Ready(Err(error)),
            },
        }
    }

    /// Carries it out here and now if that will not wait for the disk, as far as one can tell. Otherwise gives it
    /// back.
    fn write_inline(&self, operation: Operation) -> Result<Result<Reply>, Operation> {
        if operation.reads() && !self.reads.are_fast() {
            return Err(operation);
        }
        match self.begin_inline(operation.bytes()) {
            Some(_writing) => Ok(self.carry_out(|group| group.apply(operation)).flatten()),
            None => Err(operation),
        }
    }

    /// Puts a value here and now, like [`submit`](Self::submit), but without what a group costs: a quarter of the
    /// time of a put. `None` if the put looks at what is stored, or may wait for the disk.
    pub(crate) fn put_inline(
        &self,
        key: &Key,
        value: &Bytes,
        options: &PutOptions,
    ) -> Option<Result<Applied>> {
        if options.condition != Condition::Always || options.expiry == Expiry::Keep {
            return None;
        }
        let _writing = self.begin_inline(key.as_bytes().len() + value.len())?;
        let rules = &self.engine.config().rules;
        let record = embedded::put(None, value.clone(), options.expiry, self.clock.now(), rules);
        Some(record.and_then(|record| {
            self.writer.operations.fetch_add(1, Ordering::Relaxed);
            self.writer.commits.fetch_add(1, Ordering::Relaxed);
            self.engine.commit_single(key, &record)?;
            if self.hub.is_watched() {
                self.hub.report(Change::Put(key.clone()));
            }
            Ok(Applied::Yes)
        }))
    }

    /// Permission to write so many bytes where they are called for, if that will not wait for the disk.
    fn begin_inline(&self, bytes: usize) -> Option<MutexGuard<'_, ()>> {
        if self.engine.config().durability == Durability::Sync || bytes > MAX_INLINE_BYTES {
            return None;
        }
        let writing = self.writer.inline();
        let may_write = !self.writer.has_leader.load(Ordering::SeqCst) && self.engine.has_room(bytes);
        may_write.then_some(writing)
    }

    fn enqueue(&self, operation: Operation) -> Result<oneshot::Receiver<Result<Reply>>> {
        let bytes = operation.bytes();
        let mut queue = self.writer.queue();
        let is_full = queue.waiting.len() >= MAX_QUEUED || queue.bytes + bytes > MAX_QUEUED_BYTES;
        if is_full && !queue.waiting.is_empty() {
            let message = format!("{} writes are waiting for the disk already", queue.waiting.len());
            return Err(Error::new(ErrorKind::Overloaded, message).with_retry(Retry::Safe));
        }
        let (sender, answer) = oneshot::channel();
        queue.waiting.push(Waiting { operation, answer: sender });
        queue.bytes += bytes;
        let has_leader = self.writer.has_leader.swap(true, Ordering::SeqCst);
        drop(queue);
        if !has_leader {
            let leader = Leader(self.task());
            match runtime::Handle::try_current() {
                Ok(runtime) => drop(runtime.spawn_blocking(move || drop(leader))),
                // Outside of a runtime there are no async threads to protect.
                Err(_) => drop(leader),
            }
        }
        Ok(answer)
    }
}

impl Shared {
    fn carry_out_group(&self, waiting: Vec<Waiting>) {
        let mut waiting = waiting.into_iter().peekable();
        while waiting.peek().is_some() {
            let mut answers = Vec::new();
            let replies = self.carry_out(|group| {
                let mut replies = Vec::new();
                while !group.is_full()
                    && let Some(next) = waiting.next()
                {
                    answers.push(next.answer);
                    replies.push(group.apply(next.operation));
                }
                replies
            });
            // Who does not wait any more has had its operation carried out all the same.
            match replies {
                Ok(replies) => {
                    answers.into_iter().zip(replies).for_each(|(answer, reply)| drop(answer.send(reply)));
                }
                Err(error) => answers.into_iter().for_each(|answer| drop(answer.send(Err(error.clone())))),
            }
        }
    }

    /// Carries out operations and makes them durable together. Does not panic.
    ///
    /// # Errors
    /// If they could not be written. Then all have failed: each may rest on what another one would have written.
    fn carry_out<T>(&self, apply: impl FnOnce(&mut Group<'_>) -> T) -> Result<T> {
        let (replies, operations, changes) = contained(self.engine.path(), || {
            let read = |key: &Key| self.read(key);
            let mut group = Group::new(&read, self.clock.now(), &self.engine.config().rules);
            Ok((apply(&mut group), group.operations(), group.into_changes()))
        })?;
        self.writer.operations.fetch_add(operations, Ordering::Relaxed);
        if !changes.is_empty() {
            self.writer.commits.fetch_add(1, Ordering::Relaxed);
            self.engine.commit(&changes)?;
            if self.hub.is_watched() {
                changes.into_log().for_each(|change| self.hub.report(change));
            }
        }
        Ok(replies)
    }
}

/// Leads when it is dropped, until the queue is empty: so also when a runtime that is shutting down drops the
/// task it is in.
struct Leader(Task);

impl Drop for Leader {
    fn drop(&mut self) {
        // Whoever is writing right now may finish; nobody else begins to.
        drop(self.0.writer.inline());
        while let Some(group) = self.0.writer.take() {
            if !self.0.engine.has_room(group.bytes) {
                // If there can be none any more, the engine refuses the commit and says why.
                let _ = self.0.engine.make_room();
            }
            self.0.carry_out_group(group.waiting);
        }
    }
}

fn unanswered() -> Error {
    let message = "the store was closed before the write was answered";
    Error::new(ErrorKind::Closed, message).with_retry(Retry::Ambiguous)
}
