//! The single writer, and group commit.
//!
//! Operations stand in one queue. Whoever finds it without a leader becomes its leader: takes everything that
//! stands there, carries it out as one group, commits the group in one write (one `fsync`), answers, and
//! looks again. What arrives meanwhile is the next group. That there is only one writer at a time makes
//! conditions, transitions, batches and transactions atomic without further locks.
//!
//! A leader blocks, so it runs on a blocking thread; except that a write which will not wait for the disk is
//! carried out right where it is called.

use std::{
    mem,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use commonhold_core::{Error, ErrorKind, Result, Retry};
use tokio::{runtime, sync::oneshot};

use crate::{
    config::Durability,
    error::contained,
    group::{Group, Operation, Reply},
    shared::Handle,
};

/// How many operations, and how many bytes of them, may wait.
const MAX_QUEUED: usize = 65_536;
const MAX_QUEUED_BYTES: usize = 128 * 1024 * 1024;

/// How large an operation may be, and how many groups in a row may be led, outside of a blocking thread.
const MAX_INLINE_BYTES: usize = 64 * 1024;
const MAX_INLINE_GROUPS: usize = 16;

#[derive(Default)]
pub(crate) struct Writer {
    queue: Mutex<Queue>,
    /// Operations that were carried out, and the commits they took.
    pub(crate) operations: AtomicU64,
    pub(crate) commits: AtomicU64,
}

#[derive(Default)]
struct Queue {
    waiting: Vec<Waiting>,
    bytes: usize,
    /// Whether one of those who wait looks at what is stored.
    reads: bool,
    has_leader: bool,
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

    /// Takes everything that waits. If that is nothing, there is no leader any more.
    fn take_if(&self, condition: impl Fn(&Queue) -> bool) -> Taken {
        let mut queue = self.queue();
        if queue.waiting.is_empty() {
            queue.has_leader = false;
            return Taken::Nothing;
        }
        if !condition(&queue) {
            return Taken::NotThis;
        }
        Taken::Group(mem::replace(&mut *queue, Queue { has_leader: true, ..Queue::default() }))
    }
}

enum Taken {
    Group(Queue),
    NotThis,
    Nothing,
}

/// Where a new operation finds itself.
enum Place {
    /// At the head of an empty queue: carry it out here and now.
    Leader(Operation),
    /// In the queue.
    Queued { answer: oneshot::Receiver<Result<Reply>>, has_leader: bool },
}

impl Handle {
    /// Carries out one operation. If this is dropped, the operation may still be carried out, in full.
    pub(crate) async fn submit(&self, operation: Operation) -> Result<Reply> {
        match self.enqueue(operation)? {
            Place::Leader(operation) => {
                let reply = self.carry_out(vec![operation]).pop();
                self.lead_inline();
                reply.unwrap_or_else(|| Err(unanswered()))
            }
            Place::Queued { answer, has_leader } => {
                if !has_leader {
                    self.lead_in_background();
                }
                answer.await.unwrap_or_else(|_| Err(unanswered()))
            }
        }
    }

    fn enqueue(&self, operation: Operation) -> Result<Place> {
        let (bytes, reads) = (operation.bytes(), operation.reads());
        let may_lead = self.may_write_inline(bytes, reads);
        let mut queue = self.writer.queue();
        if !queue.has_leader && may_lead {
            queue.has_leader = true;
            return Ok(Place::Leader(operation));
        }
        let is_full = queue.waiting.len() >= MAX_QUEUED || queue.bytes + bytes > MAX_QUEUED_BYTES;
        if is_full && !queue.waiting.is_empty() {
            let message = format!("{} writes are waiting for the disk already", queue.waiting.len());
            return Err(Error::new(ErrorKind::Overloaded, message).with_retry(Retry::Safe));
        }
        let (sender, answer) = oneshot::channel();
        queue.waiting.push(Waiting { operation, answer: sender });
        queue.bytes += bytes;
        queue.reads |= reads;
        let has_leader = mem::replace(&mut queue.has_leader, true);
        Ok(Place::Queued { answer, has_leader })
    }

    /// Whether writing this will not wait for the disk, as far as one can tell.
    fn may_write_inline(&self, bytes: usize, reads: bool) -> bool {
        self.engine.config().durability != Durability::Sync
            && bytes <= MAX_INLINE_BYTES
            && self.engine.has_room(bytes)
            && (!reads || self.reads.are_fast())
    }

    /// Leads a few groups more, and leaves the rest to a blocking thread.
    fn lead_inline(&self) {
        for _ in 0..MAX_INLINE_GROUPS {
            match self.writer.take_if(|queue| self.may_write_inline(queue.bytes, queue.reads)) {
                Taken::Group(group) => self.carry_out_group(group.waiting),
                Taken::NotThis => break,
                Taken::Nothing => return,
            }
        }
        self.lead_in_background();
    }

    fn lead_in_background(&self) {
        let leader = Leader(self.clone());
        match runtime::Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn_blocking(move || drop(leader))),
            // Outside of a runtime there are no async threads to protect.
            Err(_) => drop(leader),
        }
    }

    fn carry_out_group(&self, waiting: Vec<Waiting>) {
        let (operations, answers): (Vec<_>, Vec<_>) =
            waiting.into_iter().map(|waiting| (waiting.operation, waiting.answer)).unzip();
        for (answer, reply) in answers.into_iter().zip(self.carry_out(operations)) {
            // Who does not wait any more has had its operation carried out all the same.
            let _ = answer.send(reply);
        }
    }

    /// Carries out operations and makes them durable together. Does not panic.
    fn carry_out(&self, operations: Vec<Operation>) -> Vec<Result<Reply>> {
        let len = operations.len();
        self.writer.operations.fetch_add(len as u64, Ordering::Relaxed);
        let carried_out = contained(self.engine.path(), || {
            let rules = &self.engine.config().rules;
            let mut group = Group::new(|key| self.read(key), self.clock.now(), rules);
            let replies: Vec<_> = operations.into_iter().map(|operation| group.apply(operation)).collect();
            Ok((replies, group.into_changes()))
        });
        let (replies, changes) = match carried_out {
            Ok(carried_out) => carried_out,
            Err(error) => return (0..len).map(|_| Err(copy(&error))).collect(),
        };
        if changes.is_empty() {
            return replies;
        }
        self.writer.commits.fetch_add(1, Ordering::Relaxed);
        if let Err(error) = self.engine.commit(&changes) {
            // Each may rest on what another one of the group would have written.
            return replies.into_iter().map(|reply| reply.and_then(|_| Err(copy(&error)))).collect();
        }
        if self.hub.is_watched() {
            changes.into_log().into_iter().for_each(|change| self.hub.report(change));
        }
        replies
    }
}

/// Leads when it is dropped, until the queue is empty: so also when a runtime that is shutting down drops the
/// task it is in.
struct Leader(Handle);

impl Drop for Leader {
    fn drop(&mut self) {
        while let Taken::Group(group) = self.0.writer.take_if(|_| true) {
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

fn copy(error: &Error) -> Error {
    Error::new(error.kind(), error.message().to_owned()).with_retry(error.retry())
}
