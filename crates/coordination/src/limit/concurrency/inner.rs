//! What an instance has and who waits for it, under one lock.

use std::{sync::Arc, time::Duration};

use commonhold_core::{Error, Retry};
use tokio::{sync::oneshot, time::Instant};

use super::{
    Lease, Permit,
    hold::Hold,
    line::Line,
    pool::{Asked, Pool},
    shared::{Answer, Remote, Shared},
};
use crate::limit::{Decision, OnUnavailable, config::MAX, unavailable::LEFT_ALONE};

pub(super) struct Inner {
    pub(super) pool: Pool,
    pub(super) line: Line,
    pub(super) lease: Arc<Lease>,
    /// Permits that are out, lost ones and those that are of no lease among them.
    pub(super) out: u64,
    /// For how long permits were in use lately, in microseconds.
    pub(super) in_use_for: Option<u64>,
    /// There is a task that asks the store, and when it looks again.
    pub(super) driven: bool,
    pub(super) looks: u64,
    pub(super) away: Option<(Error, Instant)>,
}

pub(super) enum Outcome {
    /// The permits are counted as out.
    Admitted(Admitted),
    Refused(Decision),
    Failed(Error),
}

pub(super) struct Admitted {
    pub(super) permits: u64,
    pub(super) lease: Option<Arc<Lease>>,
    pub(super) since: u64,
    pub(super) decision: Decision,
}

/// When to ask again, in microseconds, before any permit has come back here.
const UNKNOWN: u64 = 100_000;

impl Admitted {
    pub(super) fn permit(self, shared: &Arc<Shared>) -> Permit {
        let Self { permits, lease, since, decision } = self;
        Permit { shared: Arc::clone(shared), permits, lease, since, decision }
    }
}

impl Inner {
    pub(super) fn new(pool: Pool) -> Self {
        Self {
            pool,
            line: Line::default(),
            lease: Arc::default(),
            out: 0,
            in_use_for: None,
            driven: false,
            looks: 0,
            away: None,
        }
    }

    pub(super) fn request(&mut self, now: u64) -> Hold {
        self.pool.request(self.line.waiting(), now)
    }

    pub(super) fn release(&mut self, now: u64) -> Hold {
        self.pool.release(self.line.waiting(), now)
    }

    /// Takes so many permits if they are here and nobody stands in line for them.
    pub(super) fn take(&mut self, permits: u64, now: u64) -> Option<Admitted> {
        (self.line.is_empty() && self.pool.take(permits, now)).then(|| self.admitted(permits, now))
    }

    /// Gives those in line what is here, in their order; while the store is away, up to the local share.
    pub(super) fn serve(&mut self, share: Option<u64>, now: u64) -> Vec<(oneshot::Sender<Answer>, Outcome)> {
        let mut served = Vec::new();
        while let Some((ticket, waiter)) = self.line.first() {
            let permits = waiter.permits;
            let outcome = if self.pool.take(permits, now) {
                Outcome::Admitted(self.admitted(permits, now))
            } else if self.away.is_some() && share.is_some_and(|share| self.out + permits <= share) {
                self.unbooked(permits, now)
            } else {
                break;
            };
            served.extend(self.line.leave(ticket).map(|waiter| (waiter.answer, outcome)));
        }
        served
    }

    /// Says so to those who were refused and do not wait, and lets whoever is first then wait for a while.
    pub(super) fn refuse(&mut self, refused: Asked, now: u64) -> Vec<(oneshot::Sender<Answer>, Outcome)> {
        let dismissed = self.line.dismiss(refused);
        let first = self.line.first().map(|(_, waiter)| waiter.permits);
        if first.is_none_or(|permits| permits >= refused.permits) {
            self.pool.pause(refused.permits, self.in_use_for.unwrap_or(UNKNOWN), now);
        }
        let refusal = self.refusal(refused.permits, now);
        dismissed.into_iter().map(|waiter| (waiter.answer, Outcome::Refused(refusal))).collect()
    }

    /// Does not ask at once for those who wait if nobody has as many to give.
    pub(super) fn let_wait(&mut self, now: u64) {
        if let Some((_, first)) = self.line.first()
            && first.permits > self.pool.free()
        {
            self.pool.pause(first.permits, self.in_use_for.unwrap_or(UNKNOWN), now);
        }
    }

    /// Goes by the rule from now on.
    pub(super) fn is_away(
        &mut self,
        remote: &Remote,
        error: &Error,
        now: u64,
    ) -> Vec<(oneshot::Sender<Answer>, Outcome)> {
        // Its requests can be repeated, so none of them is charged twice.
        let error = error.clone().with_retry(Retry::Safe);
        if self.away.replace((error.clone(), Instant::now())).is_none() {
            let rule = remote.rule;
            tracing::warn!(limiter = &*remote.name, %error, ?rule, "the store of a limiter is away");
        }
        self.answer_by_rule(remote, &error, now)
    }

    /// What the rule says to all in line. Those whom it lets wait stay.
    pub(super) fn answer_by_rule(
        &mut self,
        remote: &Remote,
        error: &Error,
        now: u64,
    ) -> Vec<(oneshot::Sender<Answer>, Outcome)> {
        let mut answers = Vec::new();
        for (ticket, waiter) in self.line.dissolve() {
            match self.by_rule(remote, waiter.permits, waiter.patient, error.clone(), now) {
                Some(outcome) => answers.push((waiter.answer, outcome)),
                None => self.line.insert(ticket, waiter),
            }
        }
        answers
    }

    /// What the rule says; nothing to those who wait for the local share.
    pub(super) fn by_rule(
        &mut self,
        remote: &Remote,
        permits: u64,
        patient: bool,
        error: Error,
        now: u64,
    ) -> Option<Outcome> {
        let refused = || {
            let decision = Decision { degraded: true, retry_after: LEFT_ALONE, ..self.refusal(permits, now) };
            if patient { Outcome::Failed(error) } else { Outcome::Refused(decision) }
        };
        match (remote.rule, remote.share) {
            (OnUnavailable::Allow, _) => Some(self.unbooked(permits, now)),
            (OnUnavailable::Refuse, _) | (_, None) => Some(refused()),
            (_, Some(share)) if permits > share => Some(refused()),
            (_, Some(share)) if self.line.is_empty() && self.out + permits <= share => {
                Some(self.unbooked(permits, now))
            }
            _ => (!patient).then(refused),
        }
    }

    /// Of permits that the pool has given.
    pub(super) fn admitted(&mut self, permits: u64, now: u64) -> Admitted {
        self.out += permits;
        let decision = Decision { allowed: true, retry_after: Duration::ZERO, ..self.refusal(permits, now) };
        Admitted { permits, lease: Some(Arc::clone(&self.lease)), since: now, decision }
    }

    /// Of permits that nobody has given.
    pub(super) fn unbooked(&mut self, permits: u64, now: u64) -> Outcome {
        self.out += permits;
        let decision = Decision {
            allowed: true,
            remaining: 0,
            retry_after: Duration::ZERO,
            degraded: true,
            ..self.refusal(permits, now)
        };
        Outcome::Admitted(Admitted { permits, lease: None, since: now, decision })
    }

    pub(super) fn refusal(&self, permits: u64, now: u64) -> Decision {
        let in_use_for = self.in_use_for.unwrap_or(UNKNOWN);
        // Of so many that are out, each for this long, the next one comes back after this.
        let next = (in_use_for / self.out.max(1)).max(self.pool.again(permits).saturating_sub(now));
        Decision {
            allowed: false,
            remaining: self.pool.remaining(now),
            retry_after: Duration::from_micros(next.max(1)),
            reset_after: Duration::from_micros(if self.out > 0 { in_use_for } else { 0 }),
            degraded: false,
        }
    }

    pub(super) fn give_up_what_is_over(&mut self, name: &str, now: u64) -> Option<Arc<Lease>> {
        if self.pool.is_over(now) { self.give_up(name) } else { None }
    }

    /// Counts no more on what the lease has brought.
    pub(super) fn give_up(&mut self, name: &str) -> Option<Arc<Lease>> {
        let in_use = self.pool.begin_anew(any_id());
        let over = std::mem::take(&mut self.lease);
        if in_use > 0 {
            tracing::warn!(limiter = name, permits = in_use, "permits were lost while they were in use");
        }
        Some(over)
    }
}

/// Another one than that of any other instance.
pub(super) fn any_id() -> u64 {
    fastrand::u64(1..MAX)
}
