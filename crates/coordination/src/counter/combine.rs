//! Adds up what is added while something is on its way, so that it travels together, with the exact value for each.

use std::{
    mem,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
};

use commonhold_core::{Error, ErrorKind, Result, Retry};
use futures_util::future::BoxFuture;
use metrics::{Counter, counter};

/// Adds a sum to a number, and returns the number after it.
type AddSum = Box<dyn Fn(i64) -> BoxFuture<'static, Result<i64>> + Send + Sync>;

/// Combines additions to one number.
///
/// Lighter than [`Gather`](commonhold_core::Gather), which carries a question and an answer for each: here all share an
/// answer, and each knows its place in the sum. As there, who finds nothing on its way travels at once and by itself.
pub(crate) struct Combine {
    add_sum: AddSum,
    state: Mutex<State>,
    /// Additions, and the requests that they took.
    counts: (Counter, Counter),
}

#[derive(Default)]
struct State {
    /// What is added next.
    next: Arc<Batch>,
    /// A caller carries out what it adds itself.
    alone: bool,
    /// A task carries out what is added.
    driven: bool,
}

/// What travels together.
#[derive(Default)]
struct Batch(Mutex<Progress>);

#[derive(Default)]
struct Progress {
    sum: i64,
    parts: usize,
    waiting: Vec<Waker>,
    /// What the number was before the sum was added to it.
    before: Option<Result<i64>>,
}

/// The outcome of an addition that was made together with others.
pub(crate) struct Added {
    /// The number after it.
    pub(crate) result: Result<i64>,
    /// Whether it travelled alone.
    pub(crate) alone: bool,
}

/// An addition on its way.
struct Part {
    batch: Arc<Batch>,
    /// The sum with it.
    place: i64,
    waits: bool,
}

impl Combine {
    pub(crate) fn new(
        add_sum: impl Fn(i64) -> BoxFuture<'static, Result<i64>> + Send + Sync + 'static,
    ) -> Arc<Self> {
        let counts =
            (counter!("commonhold_counter_increments_total"), counter!("commonhold_counter_requests_total"));
        Arc::new(Self { add_sum: Box::new(add_sum), state: Mutex::default(), counts })
    }

    /// Adds this; `None` if it cannot travel with what is waiting, because their sum is no `i64`.
    ///
    /// If the future is dropped, it is added or not.
    pub(crate) async fn add(self: &Arc<Self>, delta: i64) -> Option<Added> {
        match self.begin(delta)? {
            Some(part) => Some(part.await),
            None => {
                let _alone = Alone(self);
                self.count(1);
                Some(Added { result: (self.add_sum)(delta).await, alone: true })
            }
        }
    }

    fn count(&self, additions: u64) {
        self.counts.0.increment(additions);
        self.counts.1.increment(1);
    }

    /// The place in what is added next; none for whoever is to travel alone.
    fn begin(self: &Arc<Self>, delta: i64) -> Option<Option<Part>> {
        let mut state = lock(&self.state);
        if !state.driven && !state.alone {
            state.alone = true;
            return Some(None);
        }
        let mut progress = lock(&state.next.0);
        progress.sum = progress.sum.checked_add(delta)?;
        progress.parts += 1;
        let place = progress.sum;
        drop(progress);
        let batch = Arc::clone(&state.next);
        let is_driven = mem::replace(&mut state.driven, true);
        // A runtime that has ended drops the driver here, which takes the lock.
        drop(state);
        if !is_driven {
            tokio::spawn(Driver { combine: Arc::clone(self), batch: None, done: false }.drive());
        }
        Some(Some(Part { batch, place, waits: false }))
    }

    /// What is to be added now. Nothing, and no longer driven, if there is none.
    fn next(&self) -> Option<Arc<Batch>> {
        let mut state = lock(&self.state);
        let parts = lock(&state.next.0).parts;
        state.driven = parts > 0;
        state.driven.then(|| mem::take(&mut state.next))
    }
}

/// Somebody travels alone until this is dropped.
struct Alone<'a>(&'a Combine);

impl Drop for Alone<'_> {
    fn drop(&mut self) {
        lock(&self.0.state).alone = false;
    }
}

/// Carries out one sum after the other. Dropped before, with its runtime, those who wait learn it, and the next finds a
/// new driver.
struct Driver {
    combine: Arc<Combine>,
    batch: Option<Arc<Batch>>,
    done: bool,
}

impl Driver {
    async fn drive(mut self) {
        while let Some(batch) = self.combine.next() {
            let (sum, parts) = {
                let progress = lock(&batch.0);
                (progress.sum, progress.parts)
            };
            self.combine.count(parts as u64);
            self.batch = Some(Arc::clone(&batch));
            let after = (self.combine.add_sum)(sum).await;
            self.batch = None;
            batch.settle(after.map(|after| after.wrapping_sub(sum)));
            // Those who have their answer now and add again travel together with those who came meanwhile.
            tokio::task::yield_now().await;
        }
        self.done = true;
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        if self.done {
            return;
        }
        let ended = |retry| {
            let message = "the runtime on which it was added has ended";
            Err(Error::new(ErrorKind::Closed, message).with_retry(retry))
        };
        if let Some(batch) = self.batch.take() {
            batch.settle(ended(Retry::Ambiguous));
        }
        let mut state = lock(&self.combine.state);
        state.driven = false;
        mem::take(&mut state.next).settle(ended(Retry::Safe));
    }
}

impl Batch {
    fn settle(&self, before: Result<i64>) {
        let mut progress = lock(&self.0);
        progress.before = Some(before);
        let waiting = mem::take(&mut progress.waiting);
        drop(progress);
        waiting.into_iter().for_each(Waker::wake);
    }
}

impl Future for Part {
    type Output = Added;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Added> {
        let Self { batch, place, waits } = self.get_mut();
        let mut progress = lock(&batch.0);
        if let Some(before) = &progress.before {
            let result = before.clone().map(|before| before.wrapping_add(*place));
            return Poll::Ready(Added { result, alone: progress.parts == 1 });
        }
        // Polled again early, by another task perhaps: the last waker is among them.
        if !*waits || !progress.waiting.iter().any(|waker| waker.will_wake(context.waker())) {
            progress.waiting.push(context.waker().clone());
            *waits = true;
        }
        Poll::Pending
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
