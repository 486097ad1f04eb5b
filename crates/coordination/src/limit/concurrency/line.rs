//! Those who wait, in the order in which they came.

use std::collections::BTreeMap;

use tokio::sync::oneshot;

use super::{
    Answer,
    pool::{Asked, Waiting},
};

#[derive(Default)]
pub(super) struct Line {
    waiters: BTreeMap<u64, Waiter>,
    /// Given until now.
    tickets: u64,
    /// Permits that all of them want.
    wanted: u64,
}

pub(super) struct Waiter {
    pub(super) permits: u64,
    /// Waits until it has them, not just for an answer.
    pub(super) patient: bool,
    pub(super) answer: oneshot::Sender<Answer>,
}

impl Line {
    /// A ticket, and where the answer comes.
    pub(super) fn join(&mut self, permits: u64, patient: bool) -> (u64, oneshot::Receiver<Answer>) {
        let (answer, receiver) = oneshot::channel();
        let ticket = self.tickets;
        self.tickets += 1;
        self.insert(ticket, Waiter { permits, patient, answer });
        (ticket, receiver)
    }

    pub(super) fn insert(&mut self, ticket: u64, waiter: Waiter) {
        self.wanted += waiter.permits;
        self.waiters.insert(ticket, waiter);
    }

    pub(super) fn leave(&mut self, ticket: u64) -> Option<Waiter> {
        let waiter = self.waiters.remove(&ticket)?;
        self.wanted -= waiter.permits;
        Some(waiter)
    }

    /// The ticket of the first, and what it wants.
    pub(super) fn first(&self) -> Option<(u64, &Waiter)> {
        self.waiters.first_key_value().map(|(ticket, waiter)| (*ticket, waiter))
    }

    /// Whether the first waits for more than an answer: nobody passes it.
    pub(super) fn is_patient(&self) -> bool {
        self.first().is_some_and(|(_, waiter)| waiter.patient)
    }

    /// Lets those go who are not patient and were refused: who wants as many, or stands behind one who waits.
    pub(super) fn dismiss(&mut self, refused: Asked) -> Vec<Waiter> {
        let all = self.is_patient();
        let asked = self.waiters.range(..refused.before).filter(|(_, waiter)| !waiter.patient);
        let refused = asked.filter(|(_, waiter)| all || waiter.permits >= refused.permits);
        let tickets: Vec<_> = refused.map(|(ticket, _)| *ticket).collect();
        tickets.into_iter().filter_map(|ticket| self.leave(ticket)).collect()
    }

    /// Lets everybody go.
    pub(super) fn dissolve(&mut self) -> BTreeMap<u64, Waiter> {
        self.wanted = 0;
        std::mem::take(&mut self.waiters)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiters.is_empty()
    }

    pub(super) fn waiting(&self) -> Waiting {
        let first = self.first().map(|(_, waiter)| waiter);
        Waiting {
            first: first.map_or(0, |first| first.permits),
            all: self.wanted,
            presses: first.is_some_and(|first| !first.patient),
            end: self.tickets,
        }
    }
}
