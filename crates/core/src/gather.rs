//! Gathers calls that are made while an earlier one is in flight, so that they travel together.

use std::{
    fmt, mem,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use futures_util::future::BoxFuture;
use tokio::sync::oneshot;

use crate::error::{Error, ErrorKind, Result, Retry};

/// Makes concurrent calls to a store on a network together: what is asked while an earlier request is in
/// flight waits for it and travels in the next one. A call that finds nothing in flight is made at once, so
/// nothing is delayed when there is little to do.
///
/// Each call takes effect between the moment it is made and its answer, as it would alone.
///
/// Cancellation: a call that is dropped while it waits may still be made. A call that is in flight and not
/// polled holds up nobody.
pub struct Gather<Q, A> {
    shared: Arc<Shared<Q, A>>,
}

type Run<Q, A> = Box<dyn Fn(Vec<Q>) -> BoxFuture<'static, Result<Vec<Result<A>>>> + Send + Sync>;

struct Shared<Q, A> {
    run: Run<Q, A>,
    max: usize,
    state: Mutex<State<Q, A>>,
}

struct State<Q, A> {
    waiting: Vec<Waiting<Q, A>>,
    /// A task carries out what waits.
    driven: bool,
    /// A call is carried out by its caller. Never waited for: nobody knows whether it is polled.
    alone: bool,
}

struct Waiting<Q, A> {
    question: Q,
    answer: oneshot::Sender<Result<A>>,
}

impl<Q: Send + 'static, A: Send + 'static> Gather<Q, A> {
    /// Up to `max` calls travel together in one `run`, which answers in their order; if it fails as a whole,
    /// all of them fail so.
    pub fn new<F>(max: usize, run: impl Fn(Vec<Q>) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Result<Vec<Result<A>>>> + Send + 'static,
    {
        let state = Mutex::new(State { waiting: Vec::new(), driven: false, alone: false });
        let run: Run<Q, A> = Box::new(move |questions| Box::pin(run(questions)));
        Self { shared: Arc::new(Shared { run, max: max.max(1), state }) }
    }

    /// Makes a call, alone or together with others.
    ///
    /// # Errors
    /// Those of `run`; `Closed`, with an unknown outcome, if the runtime on which it was made has ended.
    pub async fn call(&self, question: Q) -> Result<A> {
        match self.begin(question) {
            Begun::Alone(question) => self.shared.alone(question).await,
            Begun::Waiting(answer) => answer.await.unwrap_or_else(|_| {
                let message = "the runtime on which the call was made has ended";
                Err(Error::new(ErrorKind::Closed, message).with_retry(Retry::Ambiguous))
            }),
        }
    }

    // A function of its own: a guard must not be part of the future, which would not be `Send`.
    fn begin(&self, question: Q) -> Begun<Q, A> {
        let mut state = self.shared.lock();
        if !state.driven && !state.alone {
            state.alone = true;
            return Begun::Alone(question);
        }
        let (sender, receiver) = oneshot::channel();
        state.waiting.push(Waiting { question, answer: sender });
        let is_driven = mem::replace(&mut state.driven, true);
        // A runtime that has ended drops the driver here, which takes the lock.
        drop(state);
        if !is_driven {
            tokio::spawn(Driver { shared: Arc::clone(&self.shared), done: false }.drive());
        }
        Begun::Waiting(receiver)
    }
}

/// How a call is made.
enum Begun<Q, A> {
    /// By its caller.
    Alone(Q),
    /// By the task that carries out what waits.
    Waiting(oneshot::Receiver<Result<A>>),
}

/// The questions to ask together, and who waits for the answer to each.
type Calls<Q, A> = (Vec<Q>, Vec<oneshot::Sender<Result<A>>>);

impl<Q, A> Shared<Q, A> {
    async fn alone(&self, question: Q) -> Result<A> {
        let _alone = OnDrop(|| self.lock().alone = false);
        let answers = (self.run)(vec![question]).await?;
        answers.into_iter().next().unwrap_or_else(|| Err(no_answer()))
    }

    /// The next calls and those who wait for them. None, and no longer driven, if there are none.
    fn next(&self) -> Option<Calls<Q, A>> {
        let mut state = self.lock();
        // Those who have given up waiting are not asked for.
        state.waiting.retain(|waiting| !waiting.answer.is_closed());
        if state.waiting.is_empty() {
            state.driven = false;
            return None;
        }
        let count = state.waiting.len().min(self.max);
        Some(state.waiting.drain(..count).map(|waiting| (waiting.question, waiting.answer)).unzip())
    }

    // A std mutex: it is held for a few steps and never across an await.
    fn lock(&self) -> MutexGuard<'_, State<Q, A>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Carries out what waits until nothing does. Dropped before, with its runtime, those who wait learn it, and the
/// next call finds a new driver.
struct Driver<Q, A> {
    shared: Arc<Shared<Q, A>>,
    done: bool,
}

impl<Q, A> Driver<Q, A> {
    async fn drive(mut self) {
        loop {
            // Those who were answered just now ask again at once where there is much to do: all of them travel
            // together then, instead of one now and the others later.
            tokio::task::yield_now().await;
            let Some((questions, callers)) = self.shared.next() else { break };
            match (self.shared.run)(questions).await {
                Ok(answers) => {
                    let answers = answers.into_iter().map(Some).chain(std::iter::repeat_with(|| None));
                    for (caller, answer) in callers.into_iter().zip(answers) {
                        let _dropped = caller.send(answer.unwrap_or_else(|| Err(no_answer())));
                    }
                }
                Err(error) => {
                    for caller in callers {
                        let _dropped = caller.send(Err(error.clone()));
                    }
                }
            }
        }
        self.done = true;
    }
}

impl<Q, A> Drop for Driver<Q, A> {
    fn drop(&mut self) {
        if !self.done {
            let mut state = self.shared.lock();
            state.driven = false;
            state.waiting.clear();
        }
    }
}

fn no_answer() -> Error {
    Error::new(ErrorKind::Internal, "a gathered call got no answer").with_retry(Retry::Ambiguous)
}

struct OnDrop<F: FnMut()>(F);

impl<F: FnMut()> Drop for OnDrop<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}

impl<Q, A> fmt::Debug for Gather<Q, A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gather").field("max", &self.shared.max).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use futures_util::{FutureExt as _, future::join_all};
    use tokio::sync::{Semaphore, mpsc};

    use super::*;

    /// Doubles numbers; each batch is told to the test and waits for a permit.
    fn doubling(max: usize) -> (Gather<u64, u64>, mpsc::UnboundedReceiver<Vec<u64>>, Arc<Semaphore>) {
        let (batches, told) = mpsc::unbounded_channel();
        let permits = Arc::new(Semaphore::new(0));
        let gate = permits.clone();
        let gather = Gather::new(max, move |numbers: Vec<u64>| {
            let (batches, gate) = (batches.clone(), gate.clone());
            async move {
                batches.send(numbers.clone()).unwrap();
                gate.acquire().await.unwrap().forget();
                if numbers.contains(&13) {
                    return Err(Error::new(ErrorKind::Unavailable, "thirteen").with_retry(Retry::Safe));
                }
                Ok(numbers.into_iter().map(|number| Ok(number * 2)).collect())
            }
        });
        (gather, told, permits)
    }

    #[test]
    fn a_call_can_be_made_from_any_thread() {
        fn assert_send<T: Send>(_: T) {}
        let (gather, _told, _permits) = doubling(1);
        assert_send(gather.call(1));
    }

    #[tokio::test]
    async fn a_call_that_finds_nothing_in_flight_is_made_at_once_and_later_ones_travel_together() {
        let (gather, mut told, permits) = doubling(3);
        let calls = join_all((1..=7).map(|number| gather.call(number)));
        let batches = async {
            let mut batches = Vec::new();
            while batches.iter().map(Vec::len).sum::<usize>() < 7 {
                batches.push(told.recv().await.unwrap());
                if batches.len() == 2 {
                    permits.add_permits(2);
                }
            }
            permits.add_permits(1);
            batches
        };
        let (answers, batches) = tokio::join!(calls, batches);
        let answers: Vec<u64> = answers.into_iter().map(Result::unwrap).collect();
        assert_eq!(answers, [2, 4, 6, 8, 10, 12, 14]);
        assert_eq!(batches, [vec![1], vec![2, 3, 4], vec![5, 6, 7]]);
    }

    #[tokio::test]
    async fn a_failure_reaches_everybody_who_travelled_together() {
        let (gather, _told, permits) = doubling(10);
        let calls = [1, 13, 4].map(|number| gather.call(number));
        let (answers, ()) = tokio::join!(join_all(calls), async { permits.add_permits(10) });
        assert_eq!(*answers[0].as_ref().unwrap(), 2);
        for answer in &answers[1..] {
            let error = answer.as_ref().unwrap_err();
            assert_eq!((error.kind(), error.retry()), (ErrorKind::Unavailable, Retry::Safe));
        }
    }

    #[tokio::test]
    async fn a_call_that_is_never_polled_again_holds_up_nobody() {
        let (gather, _told, permits) = doubling(1);
        let mut stuck = Box::pin(gather.call(1));
        assert!(stuck.as_mut().now_or_never().is_none());
        permits.add_permits(2);
        assert_eq!(gather.call(2).await.unwrap(), 4);
        drop(stuck);
        assert_eq!(gather.call(3).await.unwrap(), 6);
    }

    #[tokio::test]
    async fn a_call_that_was_dropped_while_it_waited_is_not_made() {
        let (gather, mut told, permits) = doubling(10);
        let first = gather.call(1);
        let second = gather.call(2);
        let mut third = Box::pin(gather.call(3));
        let (mut first, mut second) = (Box::pin(first), Box::pin(second));
        assert!(first.as_mut().now_or_never().is_none());
        assert!(second.as_mut().now_or_never().is_none());
        assert_eq!(told.recv().await.unwrap(), [1]);
        assert_eq!(told.recv().await.unwrap(), [2]);
        assert!(third.as_mut().now_or_never().is_none());
        drop(third);
        permits.add_permits(3);
        assert_eq!((first.await.unwrap(), second.await.unwrap()), (2, 4));
        assert_eq!(gather.call(5).await.unwrap(), 10);
        assert_eq!(told.recv().await.unwrap(), [5]);
    }

    #[test]
    fn a_runtime_that_ends_fails_its_calls_and_leaves_the_others_working() {
        let (gather, _told, permits) = doubling(1);
        let runtime = || tokio::runtime::Builder::new_current_thread().build().unwrap();
        let (ended, alive) = (runtime(), runtime());
        let mut waiting = Box::pin(gather.call(2));
        ended.block_on(async {
            let mut alone = Box::pin(gather.call(1));
            assert!(alone.as_mut().now_or_never().is_none());
            assert!(waiting.as_mut().now_or_never().is_none());
        });
        drop(ended);
        assert_eq!(alive.block_on(waiting).unwrap_err().kind(), ErrorKind::Closed);
        permits.add_permits(1);
        assert_eq!(alive.block_on(gather.call(3)).unwrap(), 6);
    }
}
