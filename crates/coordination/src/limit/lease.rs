//! The transition by which an instance takes a portion of a bucket on lease, renews it and gives it back.

use commonhold_core::{Error, ErrorKind, Result, ScriptCall, Step, Timestamp, Transition};

use super::{
    bucket::{Bucket, Lease, MAX_LEASES},
    config::TokenBucket,
    state::now_micros,
    take::put,
};
use crate::state::Fields;

/// What an instance says it has and would like to have. Replies `HELD LEFT RETRY`; see [`Portioned`].
///
/// Repeated with the same number it changes nothing and replies the same, so a lost reply costs nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Renew {
    pub(super) limit: TokenBucket,
    /// The instance.
    pub(super) id: u64,
    /// The number of the request: later ones have greater ones.
    pub(super) seq: u64,
    /// Permits that it has and keeps. Those it had and does not name any more count as spent.
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

    fn answer(&self, bucket: &Bucket, held: u64, expires: u64, now: u64) -> String {
        // As if the last lease to be renewed were this one: its own time is what counts.
        let left = expires.saturating_sub(bucket.at);
        let retry = if held < self.need {
            bucket.retry(self.limit, self.need * self.limit.unit(), now).max(1)
        } else {
            0
        };
        format!("{held} {left} {retry}")
    }

    /// How many permits it is given beyond the `keep` that it has.
    fn grant(&self, bucket: &Bucket, keep: u64) -> u64 {
        let available = bucket.level / self.limit.unit();
        let lacking = self.need.saturating_sub(keep);
        if available < lacking {
            return 0;
        }
        // One share stays for those who come next, and so that there is room to refill.
        let wanting = 1 + bucket.leases.iter().filter(|lease| lease.want > 0).count() as u64;
        let share = available / (wanting + 1);
        self.want.max(self.need).saturating_sub(keep).min(share.max(lacking))
    }
}

impl Transition for Renew {
    fn name(&self) -> &'static str {
        "limit_lease"
    }

    fn apply(&self, state: Option<&[u8]>, now: Timestamp) -> Result<Step> {
        let now = now_micros(now);
        let mut bucket = Bucket::read(self.limit, state, now)?;
        let mut held = 0;
        if let Some(index) = bucket.leases.iter().position(|lease| lease.id == self.id) {
            let lease = bucket.leases.remove(index);
            if lease.seq >= self.seq {
                return Ok(Step::nothing(self.answer(&bucket, lease.held, lease.expires, now)));
            }
            held = lease.held;
        }
        if bucket.leases.len() == MAX_LEASES {
            let message = format!("{MAX_LEASES} instances lease from this limiter, and no more can");
            return Err(Error::new(ErrorKind::Overloaded, message));
        }
        let keep = self.keep.min(held);
        let back = self.back.min(held - keep);
        let room = bucket.room(self.limit).saturating_sub(keep) * self.limit.unit();
        bucket.level = (bucket.level + back * self.limit.unit()).min(room);
        let grant = self.grant(&bucket, keep);
        bucket.level -= grant * self.limit.unit();
        let held = keep + grant;
        let expires = bucket.at + self.length;
        let reply = self.answer(&bucket, held, expires, now);
        if held > 0 || self.want > 0 {
            bucket.leases.push(Lease { id: self.id, seq: self.seq, held, want: self.want, expires });
        }
        Ok(put(bucket.write(self.limit), bucket.reset_micros(self.limit, now), reply))
    }

    fn script(&self) -> Option<ScriptCall> {
        let Self { limit, id, seq, keep, back, need, want, length } = self;
        let numbers =
            [limit.unit(), limit.flow(), limit.burst(), *id, *seq, *keep, *back, *need, *want, *length];
        let source = concat!(
            include_str!("begin.lua"),
            include_str!("fields.lua"),
            include_str!("bucket.lua"),
            include_str!("lease.lua")
        );
        Some(ScriptCall::new(source).args(numbers))
    }
}
