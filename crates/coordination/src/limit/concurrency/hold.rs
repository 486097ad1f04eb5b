//! The transition by which an instance holds permits of a concurrency limit on lease.

use std::time::Duration;

use commonhold_core::{Error, ErrorKind, Expiry, Result, ScriptCall, Step, Timestamp, Transition};

use crate::{
    limit::{
        config::MAX,
        leases::{Lease, Leases, MAX_LEASES},
        state::{Number, STAYS_MICROS, Word, now_micros},
    },
    state::{Fields, corrupt},
};

const OF: &str = "a concurrency limit";

/// What an instance says it has and would like to have. Replies `HELD LEFT CAP FREE`; see [`Holding`].
///
/// Repeated with the same number it changes nothing and replies the same, so a lost reply costs nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Hold {
    /// How many permits there are.
    pub(super) limit: u64,
    /// The instance.
    pub(super) id: u64,
    /// The number of the request: later ones have greater ones.
    pub(super) seq: u64,
    /// Permits that it has and keeps; the others it had are free.
    pub(super) keep: u64,
    /// Permits that it must have beyond those, or else it takes none.
    pub(super) need: u64,
    /// Permits that it would like to have, all in all.
    pub(super) want: u64,
    /// How long the lease lasts, in microseconds.
    pub(super) length: u64,
}

/// What an instance holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Holding {
    /// Permits, with those it kept.
    pub(super) held: u64,
    /// For how long, in microseconds from the reply.
    pub(super) left: u64,
    /// How many of them it may go on to use: fewer if others lack some and have less than it has.
    pub(super) cap: u64,
    /// Permits that nobody holds.
    pub(super) free: u64,
}

/// Replies how many permits nobody holds, and takes nothing.
#[derive(Debug)]
pub(super) struct Look(pub(super) u64);

impl Holding {
    /// Until when it is held for sure if this is the reply to a request that was sent at this time.
    pub(super) fn until(&self, sent: u64) -> u64 {
        // A clock that is a tenth too slow still ends before the store does.
        sent.saturating_add(self.left - self.left / 10)
    }
}

impl Look {
    pub(super) fn decode(reply: &[u8]) -> Result<u64> {
        let mut fields = Fields::new(OF, reply)?;
        fields.next().map_err(|_: Error| foreign_reply())
    }
}

impl Hold {
    pub(super) fn decode(reply: &[u8]) -> Result<Holding> {
        let mut fields = Fields::new(OF, reply)?;
        let mut read = || {
            Ok(Holding {
                held: fields.next()?,
                left: fields.next()?,
                cap: fields.next()?,
                free: fields.next()?,
            })
        };
        read().map_err(|_: Error| foreign_reply())
    }

    /// With what the others hold and want.
    fn answer(&self, others: &Leases, held: u64, expires: u64, now: u64) -> String {
        let free = self.limit.saturating_sub(others.held() + held);
        // Whoever has just been given what it must have may use that.
        let granted = if self.need > 0 && held >= self.keep + self.need { held } else { 0 };
        let cap = self.cap(others).max(granted);
        format!("{held} {} {cap} {free}", expires.saturating_sub(now))
    }

    /// How many it may hold: the limit if nobody else lacks any, or else an equal share, where those who want less than
    /// that leave the rest to the others. It is 0 if there are fewer permits than instances that want some: they take turns.
    fn cap(&self, others: &Leases) -> u64 {
        if lacking(others) == 0 {
            return self.limit;
        }
        let mut claims: Vec<_> = others.0.iter().map(|lease| lease.want).chain([self.want]).collect();
        claims.sort_unstable();
        let (mut left, mut count) = (self.limit, claims.len() as u64);
        for claim in claims {
            let share = left / count;
            if claim > share {
                return if share == 0 { 0 } else { left.div_ceil(count) };
            }
            (left, count) = (left - claim, count - 1);
        }
        self.limit
    }
}

/// How many have less than they would like to have.
fn lacking(leases: &Leases) -> u64 {
    leases.0.iter().filter(|lease| lease.want > lease.held).count() as u64
}

impl Transition for Hold {
    fn name(&self) -> &'static str {
        "concurrency_hold"
    }

    fn apply(&self, state: Option<&[u8]>, now: Timestamp) -> Result<Step> {
        let now = now_micros(now);
        let mut leases = read(state, now)?;
        let own = leases.remove(self.id);
        if let Some(own) = &own
            && own.seq >= self.seq
        {
            return Ok(Step::nothing(self.answer(&leases, own.held, own.expires, now)));
        }
        if leases.0.len() == MAX_LEASES {
            let message = format!("{MAX_LEASES} instances hold permits of this limit, and no more can");
            return Err(Error::new(ErrorKind::Overloaded, message));
        }
        let free = self.limit.saturating_sub(leases.held());
        // What a greater limit has lent stays lent.
        let keep = self.keep.min(own.map_or(0, |own| own.held).max(free));
        let (available, most) = (free.saturating_sub(keep), self.cap(&leases));
        let yields = keep > 0 && keep + self.need > most;
        let more = if available < self.need || self.need > 0 && yields {
            0
        } else {
            // One share stays for those who come next.
            let share = (available / (lacking(&leases) + 2)).min(most.saturating_sub(keep));
            self.want.saturating_sub(keep).min(share.max(self.need))
        };
        let (held, expires) = (keep + more, (now + self.length).min(MAX - 1));
        let reply = self.answer(&leases, held, expires, now);
        let Self { id, seq, want, .. } = *self;
        if held > 0 || want > 0 {
            leases.0.push(Lease { id, seq, held, want, expires });
        }
        let Some(last) = leases.0.iter().map(|lease| lease.expires).max() else {
            return Ok(Step::delete(reply));
        };
        let mut state = format!("concurrency {now}");
        leases.write(&mut state);
        let ttl = Duration::from_micros(last.saturating_sub(now) + STAYS_MICROS);
        Ok(Step::put(state, Expiry::After(ttl), reply))
    }

    fn script(&self) -> Option<ScriptCall> {
        const SOURCE: &str =
            concat!(include_str!("../fields.lua"), include_str!("../leases.lua"), include_str!("hold.lua"));
        let Self { limit, id, seq, keep, need, want, length } = *self;
        Some(ScriptCall::new(SOURCE).args([limit, id, seq, keep, need, want, length]))
    }
}

impl Transition for Look {
    fn name(&self) -> &'static str {
        "concurrency_look"
    }

    fn apply(&self, state: Option<&[u8]>, now: Timestamp) -> Result<Step> {
        let leases = read(state, now_micros(now))?;
        Ok(Step::nothing(self.0.saturating_sub(leases.held()).to_string()))
    }
}

/// The leases that go on at this time. The state is `concurrency AT` and the leases, with the time at which it was written.
fn read(state: Option<&[u8]>, now: u64) -> Result<Leases> {
    let Some(state) = state else { return Ok(Leases::default()) };
    let mut fields = Fields::new(OF, state)?;
    let (Word(kind), Number(at)) = (fields.next()?, fields.next()?);
    let mut leases = Leases::read(OF, fields)?;
    if kind != "concurrency" || leases.held() >= MAX {
        return Err(corrupt(OF));
    }
    // If the clock has stepped back they last as long as they would have then.
    let back = at.saturating_sub(now);
    for lease in &mut leases.0 {
        lease.expires = lease.expires.saturating_sub(back);
    }
    leases.0.retain(|lease| lease.expires > now);
    Ok(leases)
}

fn foreign_reply() -> Error {
    Error::new(ErrorKind::Corrupt, "the reply of the store is not that of a concurrency limit")
}
