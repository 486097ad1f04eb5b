//! What a limiter does while its store is away.

use std::{
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use commonhold_core::{Error, Result, Retry};
use tokio::time::Instant;

use super::{
    Decision, Limit, LocalLimiter,
    meter::{Meter, Verdict},
};

/// What to say to calls while the store does not answer.
///
/// A call whose request may have reached the store, but whose reply did not come, is decided by this rule too and is
/// never sent again: it may have been charged once, and is never charged twice. After a failure the store is left alone
/// for 250 ms; then one call at a time asks it again, and until it answers, all others are decided by this rule at
/// once. Decisions are [marked](Decision::degraded), counted as
/// outcomes of their own in the metrics, and the beginning of the time without the store is logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnUnavailable {
    /// Let everything through.
    Allow,
    /// Refuse everything.
    Refuse,
    /// Let through an equal share of the limit for each of so many instances.
    ///
    /// A share begins empty, so that the instances together stay within the limit while the store is away, if they
    /// are no more than this. When it is back it may have refilled: up to one more burst is let through.
    ///
    /// Of a [`ConcurrencyLimiter`](super::ConcurrencyLimiter) it is so many permits, with those that are in use already. Those
    /// that are in use still when the store is back are not known to it.
    LocalShare {
        /// How many there are at most.
        instances: u32,
    },
}

/// For how long a store that has failed is left alone.
pub(super) const LEFT_ALONE: Duration = Duration::from_millis(250);

/// The rule, and whether it is in force.
#[derive(Debug)]
pub(super) struct Fallback {
    rule: OnUnavailable,
    share: Option<LocalLimiter>,
    away: Mutex<Option<(Error, Instant)>>,
    /// A call asks whether the store is back.
    probing: AtomicBool,
}

/// That call.
struct Probe<'a>(&'a AtomicBool);

impl Drop for Probe<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

impl Fallback {
    pub(super) fn new(rule: OnUnavailable, limit: Limit) -> Result<Self> {
        let share = match rule {
            OnUnavailable::LocalShare { instances } => Some(limit.share(instances.into())?),
            OnUnavailable::Allow | OnUnavailable::Refuse => None,
        };
        Ok(Self {
            rule,
            share: share.map(LocalLimiter::new),
            away: Mutex::default(),
            probing: AtomicBool::new(false),
        })
    }

    /// Asks the store, or says why it is not to be asked.
    ///
    /// # Errors
    /// What the store says if the same call would fail again.
    pub(super) async fn ask<T>(
        &self,
        name: &str,
        store: impl Future<Output = Result<T>>,
    ) -> Result<Result<T, Error>> {
        let _probe = match self.away_with() {
            None => None,
            Some(error) => match self.probe() {
                // Only now, as the last probe may have failed just before.
                Some(probe) if !self.left_alone() => Some(probe),
                _ => return Ok(Err(error)),
            },
        };
        match store.await {
            Ok(reply) => {
                self.back(name);
                Ok(Ok(reply))
            }
            Err(error) if error.retry() == Retry::Never => {
                self.back(name);
                Err(error)
            }
            Err(error) => {
                if self.away().replace((error.clone(), Instant::now())).is_none() {
                    tracing::warn!(limiter = name, %error, rule = ?self.rule, "the store of a limiter is away");
                    if let Some(share) = &self.share {
                        share.drain();
                    }
                }
                Ok(Err(error))
            }
        }
    }

    /// What the rule says; and the error if it refuses and waiting would not help, or could be charged twice.
    pub(super) fn decide(
        &self,
        permits: u64,
        error: Error,
        meter: &Meter,
    ) -> Result<(Decision, Option<Error>)> {
        let decision = |allowed| Decision {
            allowed,
            remaining: 0,
            retry_after: if allowed { Duration::ZERO } else { LEFT_ALONE },
            reset_after: LEFT_ALONE,
            degraded: true,
        };
        let ambiguous = error.retry() == Retry::Ambiguous;
        let (verdict, decision, ends) = match (self.rule, &self.share) {
            (OnUnavailable::Allow, _) => (Verdict::FailedOpen, decision(true), false),
            (OnUnavailable::LocalShare { .. }, Some(share)) if permits <= share.limit().most() => {
                let decision = Decision { degraded: true, ..share.try_acquire(permits)? };
                let verdict = if decision.allowed { Verdict::ShareAllowed } else { Verdict::ShareRefused };
                (verdict, decision, ambiguous)
            }
            (OnUnavailable::LocalShare { .. }, _) => (Verdict::ShareRefused, decision(false), true),
            (OnUnavailable::Refuse, _) => (Verdict::FailedClosed, decision(false), true),
        };
        meter.count(verdict, None);
        Ok((decision, ends.then_some(error)))
    }

    /// Why the store is away, for calls that do not ask it.
    pub(super) fn away_with(&self) -> Option<Error> {
        self.away().as_ref().map(|(error, _)| error.clone().with_retry(Retry::Safe))
    }

    fn left_alone(&self) -> bool {
        self.away().as_ref().is_some_and(|(_, since)| since.elapsed() < LEFT_ALONE)
    }

    fn probe(&self) -> Option<Probe<'_>> {
        (!self.probing.swap(true, Ordering::AcqRel)).then(|| Probe(&self.probing))
    }

    fn back(&self, name: &str) {
        if self.away().take().is_some() {
            tracing::info!(limiter = name, "the store of the limiter is back");
        }
    }

    // A std mutex: it is held for a look and never across an await.
    fn away(&self) -> MutexGuard<'_, Option<(Error, Instant)>> {
        self.away.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};

    use commonhold_core::ErrorKind;
    use futures_util::{FutureExt as _, poll};

    use super::*;
    use crate::limit::{Rate, TokenBucket};

    #[tokio::test(start_paused = true)]
    async fn while_the_store_hangs_one_call_at_a_time_asks_it_and_the_others_are_decided_at_once() {
        let limit = TokenBucket::new(Rate::per_second(1).unwrap(), 1).unwrap();
        let fallback = Fallback::new(OnUnavailable::Allow, limit.into()).unwrap();
        let asks = || fallback.ask("a", ready(Ok(()))).now_or_never().unwrap().unwrap().is_ok();
        assert!(asks());
        let fails = ready(Err::<(), _>(Error::new(ErrorKind::Timeout, "no answer").with_retry(Retry::Safe)));
        assert!(fallback.ask("a", fails).await.unwrap().is_err());
        assert!(!asks(), "it is left alone");
        tokio::time::advance(LEFT_ALONE).await;
        let mut probe = Box::pin(fallback.ask("a", pending::<Result<()>>()));
        assert!(poll!(&mut probe).is_pending());
        assert!(!asks(), "another asks");
        drop(probe);
        assert!(asks(), "the next one may");
        let mut first = Box::pin(fallback.ask("a", pending::<Result<()>>()));
        assert!(poll!(&mut first).is_pending());
        assert!(asks(), "it is back, for everybody");
    }
}
