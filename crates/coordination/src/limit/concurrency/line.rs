//! Those who wait, in the order in which they came.

use std::collections::BTreeMap;

use tokio::sync::oneshot;

use super::{Answer, pool::Waiting};

#[derive(Default)]
pub(super) struct Line {
    waiters: BTreeMap<u64, Waiter>,
    /// Given until now.
    tickets: u64,
    /// Permits that all of them want.
    wanted: u64,
    impatient: usize,
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
        self.impatient += usize::from(!waiter.patient);
        self.waiters.insert(ticket, waiter);
    }

    pub(super) fn leave(&mut self, ticket: u64) -> Option<Waiter> {
        let waiter = self.waiters.remove(&ticket)?;
        self.wanted -= waiter.permits;
        self.impatient -= usize::from(!waiter.patient);
        Some(waiter)
    }

    /// The ticket of the first, and what it wants.
    pub(super) fn first(&self) -> Option<(u64, u64)> {
        self.waiters.first_key_value().map(|(ticket, waiter)| (*ticket, waiter.permits))
    }

    /// Lets those go who came before this ticket and are not patient.
    pub(super) fn dismiss(&mut self, before: u64) -> Vec<Waiter> {
        if self.impatient == 0 {
            return Vec::new();
        }
        let impatient = self.waiters.range(..before).filter(|(_, waiter)| !waiter.patient);
        let tickets: Vec<_> = impatient.map(|(ticket, _)| *ticket).collect();
        tickets.into_iter().filter_map(|ticket| self.leave(ticket)).collect()
    }

    /// Lets everybody go.
    pub(super) fn dissolve(&mut self) -> BTreeMap<u64, Waiter> {
        (self.wanted, self.impatient) = (0, 0);
        std::mem::take(&mut self.waiters)
    }

    /// The ticket that will be given next.
    pub(super) fn end(&self) -> u64 {
        self.tickets
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiters.is_empty()
    }

    pub(super) fn waiting(&self) -> Waiting {
        let first = self.first().map_or(0, |(_, permits)| permits);
        Waiting { first, all: self.wanted, presses: self.impatient > 0 }
    }
}
