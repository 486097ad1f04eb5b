//! Gathers calls in two lanes, so that the next ones are put together while the server works on the last.

use std::{
    fmt,
    sync::atomic::{AtomicUsize, Ordering},
};

use commonhold_core::{Gather, Result};

/// How many calls travel together at most.
const MAX_TOGETHER: usize = 128;

/// Two [`Gather`]s that are used in turn. With one, the server would wait while the client works and the other way
/// round: half of the speed, and less where the two do not lie well on the machine's cores.
pub(crate) struct Lanes<Q, A> {
    lanes: [Gather<Q, A>; 2],
    turn: AtomicUsize,
}

impl<Q: Send + 'static, A: Send + 'static> Lanes<Q, A> {
    pub(crate) fn new<F>(run: impl Fn(Vec<Q>) -> F + Clone + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Result<Vec<Result<A>>>> + Send + 'static,
    {
        let lanes = [Gather::new(MAX_TOGETHER, run.clone()), Gather::new(MAX_TOGETHER, run)];
        Self { lanes, turn: AtomicUsize::new(0) }
    }

    pub(crate) async fn call(&self, question: Q) -> Result<A> {
        let [first, second] = &self.lanes;
        let lane = if self.turn.fetch_add(1, Ordering::Relaxed).is_multiple_of(2) { first } else { second };
        lane.call(question).await
    }
}

impl<Q, A> fmt::Debug for Lanes<Q, A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lanes").finish_non_exhaustive()
    }
}
