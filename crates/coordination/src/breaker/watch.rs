//! What a breaker tells those who watch it: events and metrics.

use std::fmt;

use futures_util::{Stream, StreamExt as _, stream};
use metrics::{Counter, Gauge, counter, gauge};
use tokio::sync::broadcast::{self, error::RecvError};

use super::machine::{Counts, State};

/// How many events wait for one who listens before the oldest are dropped.
const QUEUE_LEN: usize = 64;

/// A breaker changed its state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Event {
    /// The state before. The same as `to` if it was [reset](super::LocalBreaker::reset), or if changes were missed.
    pub from: State,
    /// The state from now on.
    pub to: State,
}

/// `commonhold_breaker_state` (0 closed, 1 half-open, 2 open, 3 isolated), `commonhold_breaker_transitions_total` by `to`,
/// `commonhold_breaker_calls_total` by `outcome` and `commonhold_breaker_slow_calls_total`, each by `name` and `form`, in
/// the recorder that is installed when the breaker is made.
pub(super) struct Watch {
    events: broadcast::Sender<Event>,
    state: Gauge,
    transitions: [Counter; 4],
    success: Counter,
    failure: Counter,
    refused: Counter,
    cancelled: Counter,
    late: Counter,
    unguarded: Counter,
    slow: Counter,
}

/// How a call ended, as the metrics say it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    Success,
    Failure,
    Refused,
    Cancelled,
    /// Its result came in a later generation.
    Late,
    /// Let through without the store.
    Unguarded,
}

impl Outcome {
    pub(super) fn of(failed: bool) -> Self {
        if failed { Self::Failure } else { Self::Success }
    }
}

impl Watch {
    pub(super) fn new(name: &str, form: &'static str) -> Self {
        let calls = |outcome: &'static str| counter!("commonhold_breaker_calls_total", "name" => name.to_owned(), "form" => form, "outcome" => outcome);
        let transitions = |to: State| {
            let (name, to) = (name.to_owned(), to.name());
            counter!("commonhold_breaker_transitions_total", "name" => name, "form" => form, "to" => to)
        };
        let state = gauge!("commonhold_breaker_state", "name" => name.to_owned(), "form" => form);
        state.set(0.0);
        Self {
            events: broadcast::Sender::new(QUEUE_LEN),
            state,
            transitions: [State::Closed, State::HalfOpen, State::Open, State::Isolated].map(transitions),
            success: calls("success"),
            failure: calls("failure"),
            refused: calls("refused"),
            cancelled: calls("cancelled"),
            late: calls("late"),
            unguarded: calls("unguarded"),
            slow: counter!("commonhold_breaker_slow_calls_total", "name" => name.to_owned(), "form" => form),
        }
    }

    pub(super) fn turned(&self, event: Event) {
        let number = match event.to {
            State::Closed => 0,
            State::HalfOpen => 1,
            State::Open => 2,
            State::Isolated => 3,
        };
        self.state.set(number as f64);
        if let Some(transitions) = self.transitions.get(number) {
            transitions.increment(1);
        }
        // Nobody listens: that is no fault.
        let _ = self.events.send(event);
    }

    pub(super) fn count(&self, outcome: Outcome) {
        let counter = match outcome {
            Outcome::Success => &self.success,
            Outcome::Failure => &self.failure,
            Outcome::Refused => &self.refused,
            Outcome::Cancelled => &self.cancelled,
            Outcome::Late => &self.late,
            Outcome::Unguarded => &self.unguarded,
        };
        counter.increment(1);
    }

    pub(super) fn count_slow(&self, counts: Counts) {
        if counts.slow > 0 {
            self.slow.increment(counts.slow);
        }
    }

    /// The changes from now on; one who falls behind misses the oldest.
    pub(super) fn events(&self) -> impl Stream<Item = Event> + Send + Unpin + 'static {
        stream::unfold(self.events.subscribe(), |mut receiver| async {
            loop {
                match receiver.recv().await {
                    Ok(event) => return Some((event, receiver)),
                    Err(RecvError::Lagged(_)) => {}
                    Err(RecvError::Closed) => return None,
                }
            }
        })
        .boxed()
    }
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watch").field("listeners", &self.events.receiver_count()).finish_non_exhaustive()
    }
}
