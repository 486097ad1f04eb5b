//! The transition by which an instance takes a portion of a limit on lease, renews it and gives it back.

use commonhold_core::{Error, ErrorKind, Result, ScriptCall, Step, Timestamp, Transition};

use super::{
    Limit,
    budget::Budget,
    config::MAX,
    leases::{Lease, MAX_LEASES},
    state::now_micros,
};
use crate::state::Fields;

/// What an instance says it has and would like to have. Replies `HELD LEFT RETRY`; see [`Portioned`].
///
/// Repeated with the same number it changes nothing and replies the same, so a lost reply costs nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Renew {
    pub(super) limit: Limit,
    /// The instance.
    pub(super) id: u64,
    /// The number of the request: later ones have greater ones.
    pub(super) seq: u64,
    /// Permits that it has and keeps. Those it had and does not name any more were spent, now at the latest.
    pub(super) keep: u64,
    /// Permits that it had and gives back.
    pub(super) back: u64,
    /// Permits that it must have, or else it takes none.
    pub(super) need: u64,
    /// Permits that it would like to have.
    pub(super) want: u64,
    /// How long the lease lasts, in microseconds.
    pub(super) length: u64,
}

/// What an instance has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Portioned {
    /// Permits, with those it kept.
    pub(super) held: u64,
    /// For how long, in microseconds from the reply.
    pub(super) left: u64,
    /// When to ask again for as many as it must have; 0 if it has them.
    pub(super) retry_micros: u64,
}

impl Renew {
    pub(super) fn decode(reply: &[u8]) -> Result<Portioned> {
        let mut fields = Fields::new("a limiter", reply)?;
        let mut read =
            || Ok(Portioned { held: fields.next()?, left: fields.next()?, retry_micros: fields.next()? });
        read().map_err(|_: Error| {
            Error::new(ErrorKind::Corrupt, "the reply of the store is not that of a limiter")
        })
    }

    fn answer(&self, budget: &Budget, held: u64, expires: u64, now: u64) -> String {
        // As if the last lease to be renewed were this one: its own time is what counts.
        let left = expires.saturating_sub(budget.at(now));
        let retry = if held < self.need { budget.retry(self.need, now).max(1) } else { 0 };
        format!("{held} {left} {retry}")
    }

    /// How many of the available permits it is given beyond the `keep` that it has, if so many others want some.
    fn grant(&self, available: u64, keep: u64, others: u64) -> u64 {
        let lacking = self.need.saturating_sub(keep);
        if available < lacking {
            return 0;
        }
        // One share stays for those who come next, and so that there is room to refill.
        let share = available / (others + 2);
        self.want.max(self.need).saturating_sub(keep).min(share.max(lacking))
    }
}

impl Transition for Renew {
    fn name(&self) -> &'static str {
        "limit_lease"
    }

    fn apply(&self, state: Option<&[u8]>, now: Timestamp) -> Result<Step> {
        let now = now_micros(now);
        let mut budget = Budget::read(self.limit, state, now)?;
        let mut held = 0;
        if let Some(lease) = budget.leases().remove(self.id) {
            if lease.seq >= self.seq {
                return Ok(Step::nothing(self.answer(&budget, lease.held, lease.expires, now)));
            }
            held = lease.held;
        }
        if budget.leases().0.len() == MAX_LEASES {
            let message = format!("{MAX_LEASES} instances lease from this limiter, and no more can");
            return Err(Error::new(ErrorKind::Overloaded, message));
        }
        let keep = self.keep.min(held);
        let back = self.back.min(held - keep);
        let available = budget.settle(keep, back, held - keep - back);
        let grant = self.grant(available, keep, budget.leases().wanting());
        budget.lend(grant);
        let held = keep + grant;
        let expires = (budget.at(now) + self.length).min(MAX - 1);
        let reply = self.answer(&budget, held, expires, now);
        if held > 0 || self.want > 0 {
            let Self { id, seq, want, .. } = *self;
            budget.leases().0.push(Lease { id, seq, held, want, expires });
        }
        Ok(budget.put(now, reply))
    }

    fn script(&self) -> Option<ScriptCall> {
        let source = match self.limit {
            Limit::Bucket(_) => concat!(
                include_str!("begin.lua"),
                include_str!("fields.lua"),
                include_str!("leases.lua"),
                include_str!("bucket.lua"),
                include_str!("lease.lua")
            ),
            Limit::Window(_) => concat!(
                include_str!("fields.lua"),
                include_str!("leases.lua"),
                include_str!("window.lua"),
                include_str!("lease.lua")
            ),
        };
        let Self { limit, id, seq, keep, back, need, want, length } = *self;
        let numbers = [id, seq, keep, back, need, want, length];
        Some(ScriptCall::new(source).args(limit.numbers()).args(numbers))
    }
}
