//! The transition by which an instance holds permits of a concurrency limit on lease.

use std::{fmt::Write as _, sync::Arc, time::Duration};

use commonhold_core::{Error, ErrorKind, Expiry, Result, ScriptCall, Step, Timestamp, Transition};

use super::Instance;
use crate::{
    holders::from_label,
    limit::{
        config::MAX,
        leases::MAX_LEASES,
        state::{Number, STAYS_MICROS, Word, now_micros},
    },
    state::{Fields, corrupt},
};

/// For how long at most one who has no permits wants some, in microseconds: who is gone is not waited for.
const WISH: u64 = 10_000_000;

const OF: &str = "a concurrency limit";

/// What an instance says it has and would like to have. Replies `HELD LEFT CAP FREE NEXT`; see [`Holding`].
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
    /// Permits that the first of its calls waits for; 0 if none waits.
    pub(super) waits: u64,
    /// How long the lease lasts, in microseconds.
    pub(super) length: u64,
    /// What the instance says of itself, as one word.
    pub(super) label: Arc<str>,
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
    /// Who comes first of the others whose calls wait for no more than those; 0 if there is none.
    pub(super) next: u64,
}

impl Holding {
    /// The instance that is to be told of permits that nobody holds.
    pub(super) fn to_tell(self) -> Option<u64> {
        (self.next > 0).then_some(self.next)
    }
}

/// Replies what each instance holds, and takes nothing: `LABEL HELD WANT LEFT` for each.
#[derive(Debug)]
pub(super) struct Look;

impl Look {
    /// Those that hold or want permits, in order of their labels.
    pub(super) fn decode(reply: &[u8]) -> Result<Vec<Instance>> {
        let mut instances = Vec::new();
        if !reply.is_empty() {
            let mut fields = Fields::new(OF, reply)?;
            while let Some(Word(label)) = fields.optional()? {
                let mut next = || fields.next().map(|Number(number)| number);
                let (held, wanted, left) = (next()?, next()?, Duration::from_micros(next()?));
                instances.push(Instance { label: from_label(&label), held, wanted, left });
            }
        }
        instances.sort_by(|one, other| one.label.cmp(&other.label));
        Ok(instances)
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
                next: fields.next()?,
            })
        };
        read().map_err(|_: Error| foreign_reply())
    }

    /// With what the others hold and want.
    fn answer(&self, others: &[Lease], own: &Lease, now: u64) -> String {
        let Lease { held, expires, .. } = *own;
        let free = self.limit.saturating_sub(held_by(others) + held);
        // Whoever has just been given what it must have may use that.
        let granted = if self.need > 0 && held >= self.keep + self.need { held } else { 0 };
        let cap = self.cap(others, own.since, now).max(granted);
        let next = next(others, free).map_or(0, |next| next.id);
        format!("{held} {} {cap} {free} {next}", expires.saturating_sub(now))
    }

    /// How many it may hold: the limit if nobody else lacks any, or else an equal share, where those who want less than
    /// that leave the rest to the others. It is 0 if there are fewer permits than instances that want some, who take
    /// turns, and while another has had none for too long.
    fn cap(&self, others: &[Lease], since: u64, now: u64) -> u64 {
        if lacking(others) == 0 {
            return self.limit;
        }
        if self.is_behind(others, since, now) {
            return 0;
        }
        let mut claims: Vec<_> = others.iter().map(|lease| lease.want).chain([self.want]).collect();
        claims.sort_unstable();
        // Of those who go by different limits all keep to the smallest.
        let smallest = others.iter().map(|lease| lease.limit).fold(self.limit, u64::min);
        let (mut left, mut count) = (smallest, claims.len() as u64);
        for claim in claims {
            let share = left / count;
            if claim > share {
                return if share == 0 { 0 } else { left.div_ceil(count) };
            }
            (left, count) = (left - claim, count - 1);
        }
        self.limit
    }

    /// Whether another has wanted some and had none for a lease, and for longer than this one. Who wants many at a time
    /// would never have them otherwise while others go on with few.
    fn is_behind(&self, others: &[Lease], since: u64, now: u64) -> bool {
        let longest = others.iter().map(|lease| lease.since).filter(|since| *since > 0).min();
        longest.is_some_and(|longest| longest + self.length <= now && (since == 0 || longest < since))
    }
}

/// What an instance holds.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Lease {
    /// The instance.
    id: u64,
    /// The number of its last request.
    seq: u64,
    /// Permits it may have.
    held: u64,
    /// Permits it would like to have.
    want: u64,
    /// When they are free, in microseconds of the store's clock.
    expires: u64,
    /// How many there are, as it sees it.
    limit: u64,
    /// Since when it wants some and has none; 0 if that is not so.
    since: u64,
    /// Permits that one of its calls waits for, which is to be told; 0 if none waits.
    waits: u64,
    label: Arc<str>,
}

fn held_by(leases: &[Lease]) -> u64 {
    leases.iter().map(|lease| lease.held).sum()
}

/// How many have less than they would like to have.
fn lacking(leases: &[Lease]) -> u64 {
    leases.iter().filter(|lease| lease.want > lease.held).count() as u64
}

/// Of those who lack some and wait for no more than these, who has had none for longest, or else has the fewest.
fn next(leases: &[Lease], free: u64) -> Option<&Lease> {
    let could = leases.iter().filter(|lease| lease.want > lease.held && (1..=free).contains(&lease.waits));
    could.min_by_key(|lease| (lease.since == 0, lease.since, lease.held))
}

impl Transition for Hold {
    fn name(&self) -> &'static str {
        "concurrency_hold"
    }

    fn apply(&self, state: Option<&[u8]>, now: Timestamp) -> Result<Step> {
        let (mut leases, now) = read(state, now_micros(now), self.length)?;
        let own = leases.iter().position(|lease| lease.id == self.id).map(|index| leases.remove(index));
        if let Some(own) = &own
            && own.seq >= self.seq
        {
            return Ok(Step::nothing(self.answer(&leases, own, now)));
        }
        if leases.len() == MAX_LEASES {
            let message = format!("{MAX_LEASES} instances hold permits of this limit, and no more can");
            return Err(Error::new(ErrorKind::Overloaded, message));
        }
        let (had, since) = own.map_or((0, 0), |own| (own.held, own.since));
        let free = self.limit.saturating_sub(held_by(&leases));
        // What a greater limit has lent stays lent.
        let keep = self.keep.min(had.max(free));
        let (available, others, most) =
            (free.saturating_sub(keep), lacking(&leases), self.cap(&leases, since, now));
        let refused = if self.need == 0 {
            others > 0
        } else {
            available < self.need
                || keep > 0 && keep + self.need > most
                || self.is_behind(&leases, since, now)
        };
        let more = if refused {
            0
        } else {
            // One share stays for those who come next.
            let share = (available / (others + 2)).min(most.saturating_sub(keep));
            self.want.saturating_sub(keep).min(share.max(self.need))
        };
        let Self { limit, id, seq, want, waits, length, .. } = *self;
        let label = Arc::clone(&self.label);
        let held = keep + more;
        // Who has none must say so in time, or keeps nobody back.
        let lasts = if held == 0 { length.min(WISH) } else { length };
        let expires = (now + lasts).min(MAX - 1);
        let since = match (held, since) {
            (0, 0) if want > 0 => now.max(1),
            (0, since) if want > 0 => since,
            _ => 0,
        };
        let own = Lease { id, seq, held, want, expires, limit, since, waits, label };
        let reply = self.answer(&leases, &own, now);
        if held > 0 || want > 0 {
            leases.push(own);
        }
        let Some(last) = leases.iter().map(|lease| lease.expires).max() else {
            return Ok(Step::delete(reply));
        };
        let mut state = format!("concurrency {now}");
        for Lease { id, seq, held, want, expires, limit, since, waits, label } in &leases {
            let _infallible =
                write!(state, " {id} {seq} {held} {want} {expires} {limit} {since} {waits} {label}");
        }
        let ttl = Duration::from_micros(last.saturating_sub(now) + STAYS_MICROS);
        Ok(Step::put(state, Expiry::After(ttl), reply))
    }

    fn script(&self) -> Option<ScriptCall> {
        const SOURCE: &str = concat!(include_str!("../fields.lua"), include_str!("hold.lua"));
        let Self { limit, id, seq, keep, need, want, waits, length, .. } = *self;
        Some(ScriptCall::new(SOURCE).args([limit, id, seq, keep, need, want, length, waits]).arg(&self.label))
    }
}

impl Transition for Look {
    fn name(&self) -> &'static str {
        "concurrency_look"
    }

    fn apply(&self, state: Option<&[u8]>, now: Timestamp) -> Result<Step> {
        let (leases, now) = read(state, now_micros(now), u64::MAX)?;
        let show = |lease: &Lease| {
            let Lease { label, held, want, expires, .. } = lease;
            format!("{label} {held} {want} {}", expires - now)
        };
        Ok(Step::nothing(leases.iter().map(show).collect::<Vec<_>>().join(" ")))
    }
}

/// The leases that go on at this time, and the time. The state is `concurrency AT` with the time at which it was written, and
/// for each `ID SEQ HELD WANT EXPIRES LIMIT SINCE WAITS LABEL`.
///
/// A clock that has stepped back, or is not that of whoever has written, stands still. If it is behind by more than a lease,
/// which the clocks of those who use a store never are, the leases are moved back with it.
fn read(state: Option<&[u8]>, now: u64, length: u64) -> Result<(Vec<Lease>, u64)> {
    let Some(state) = state else { return Ok((Vec::new(), now)) };
    let mut fields = Fields::new(OF, state)?;
    let (Word(kind), Number(at)) = (fields.next()?, fields.next()?);
    let behind = at.saturating_sub(now);
    let (back, now) = if behind > length { (behind, now) } else { (0, now.max(at)) };
    let mut leases = Vec::new();
    while let Some(Number(id)) = fields.optional()? {
        let mut next = || fields.next().map(|Number(number)| number);
        let (seq, held, want, expires) = (next()?, next()?, next()?, next()?.saturating_sub(back));
        let (limit, since, waits) = (next()?, next()?, next()?);
        let since = if since > 0 { since.saturating_sub(back).max(1) } else { 0 };
        let label = fields.word()?.into();
        leases.push(Lease { id, seq, held, want, expires, limit, since, waits, label });
    }
    if kind != "concurrency" || leases.len() > MAX_LEASES || held_by(&leases) >= MAX {
        return Err(corrupt(OF));
    }
    leases.retain(|lease| lease.expires > now);
    Ok((leases, now))
}

fn foreign_reply() -> Error {
    Error::new(ErrorKind::Corrupt, "the reply of the store is not that of a concurrency limit")
}
