//! What can be done to a lease.

use std::{
    fmt::{self, Write as _},
    sync::Arc,
    time::Duration,
};

use commonhold_core::{Expiry, Result, ScriptCall, Step, Timestamp, Transition};

use super::state::{OF, State, Term, Waiter};
use crate::state::{Fields, corrupt, micros};

/// How long the greatest token is remembered when nobody holds or waits: the next is greater for two reasons then, for
/// as long as the clock does not step back by more than this.
const REMEMBERED: i64 = 24 * 60 * 60 * 1_000_000;

/// Takes a part if there is room for it behind those who stand in line before, or stands in line.
///
/// Who holds already is given the same again: an answer that was lost can be asked for once more.
#[derive(Debug, Clone)]
pub(crate) struct Claim {
    pub(crate) owner: Arc<str>,
    pub(crate) label: Arc<str>,
    /// How much of the capacity.
    pub(crate) weight: i64,
    pub(crate) capacity: i64,
    /// For how long, in microseconds.
    pub(crate) ttl: i64,
    /// How long a place in the line lasts, and what is granted to it, in microseconds; 0 is not to stand in line.
    pub(crate) patience: i64,
    /// How many tokens are given at once, each greater by one than the one before.
    pub(crate) tokens: i64,
}

/// What became of a claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Claimed {
    /// Granted, with this as the first token.
    Granted(i64),
    /// Not granted.
    Taken {
        /// The first of those who hold, or else of those who wait, goes after this time at the latest, unless it is heard
        /// of.
        left: Duration,
        /// The greatest token that was given until now.
        last: i64,
    },
}

/// Holds on for another term.
#[derive(Debug, Clone)]
pub(crate) struct Renew {
    pub(crate) owner: Arc<str>,
    /// For how long from now, in microseconds.
    pub(crate) ttl: i64,
    /// What it says of itself from now on.
    pub(crate) label: Arc<str>,
    /// The least that the greatest token is to be: others may have given greater ones.
    pub(crate) floor: i64,
}

/// Gives back what this owner holds, and its place in the line, and grants what has become free to those who wait.
///
/// One that finds nothing writes all the same: a claim that is still on its way finds another state then than it has read.
#[derive(Debug, Clone)]
pub(crate) struct Release {
    pub(crate) owner: Arc<str>,
    pub(crate) capacity: i64,
    /// The last of the tokens that were granted, and the last that anybody got.
    pub(crate) tokens: (i64, i64),
    /// How many bytes the key has.
    pub(crate) key_len: usize,
    /// The state as a claim that was granted at once has left it, or empty: what is still this the script need not read.
    pub(crate) untouched: String,
}

/// Changes nothing; replies the time in microseconds and what is left of the state.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Show;

/// What became of a release.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Released {
    /// Whether something was held.
    pub(crate) held: bool,
    /// Those who waited and hold now, each with its first token.
    pub(crate) granted: Vec<(String, i64)>,
    /// Whether those in other processes have been told, as the script does.
    pub(crate) told: bool,
}

impl Transition for Claim {
    fn name(&self) -> &'static str {
        "claim"
    }

    fn apply(&self, state: Option<&[u8]>, now: Timestamp) -> Result<Step> {
        let now = micros(now);
        let mut state = State::read(state, now)?;
        if state.holders.is_empty() {
            state.sweep(now);
        }
        let term = Term { ttl: self.ttl, since: now };
        if let Some(holder) = state.holders.iter_mut().find(|holder| *holder.owner == *self.owner) {
            holder.term = term;
            let reply = granted(holder.token);
            return Ok(put(&state, now, reply));
        }
        let place = state.waiters.iter().position(|waiter| *waiter.owner == *self.owner);
        let ahead = place.unwrap_or(state.waiters.len());
        let waiter = |term| {
            let (owner, label) = (self.owner.to_string(), self.label.to_string());
            Waiter { owner, weight: self.weight, tokens: self.tokens, term, label }
        };
        if state.fits(self.weight, ahead, self.capacity) {
            if let Some(place) = place {
                state.waiters.remove(place);
            }
            let token = state.grant(waiter(term), now);
            return Ok(put(&state, now, granted(token)));
        }
        let first = state.holders.iter().map(|holder| holder.term.expires()).min();
        let first =
            first.or_else(|| state.waiters.first().map(|waiter| waiter.term.expires())).unwrap_or(now);
        let reply = format!("taken {} {}", first - now, state.last_token);
        if self.patience > 0 {
            let waiter = waiter(Term { ttl: self.patience, since: now });
            match place.and_then(|place| state.waiters.get_mut(place)) {
                Some(place) => *place = waiter,
                None => state.waiters.push(waiter),
            }
        } else if !state.clamped {
            return Ok(Step::nothing(reply));
        }
        Ok(put(&state, now, reply))
    }

    fn script(&self) -> Option<ScriptCall> {
        let Self { owner, label, weight, capacity, ttl, patience, tokens } = self;
        let kept = (ttl + REMEMBERED).unsigned_abs().div_ceil(1_000);
        call(&[&"claim", owner, ttl, label, weight, capacity, patience, tokens, &kept])
    }
}

impl Claim {
    /// The state after it was granted this token at once, to one who holds alone.
    pub(crate) fn untouched(&self, token: i64) -> String {
        let Self { owner, label, weight, ttl, tokens, .. } = self;
        format!("{} H {owner} {weight} {token} {ttl} {token} {label}", token + tokens - 1)
    }
}

impl Claimed {
    pub(crate) fn decode(reply: &[u8]) -> Result<Self> {
        let mut fields = Fields::new("an answer to a claim", reply)?;
        let (outcome, number) = (fields.word()?, fields.integer()?);
        match outcome {
            "granted" => Ok(Self::Granted(number)),
            "taken" => {
                let left = Duration::from_micros(number.unsigned_abs());
                Ok(Self::Taken { left, last: fields.integer()? })
            }
            _ => Err(corrupt("an answer to a claim")),
        }
    }
}

impl Transition for Renew {
    fn name(&self) -> &'static str {
        "renew"
    }

    /// Replies `1` if it holds on, `0` if it was lost. Keeps the line behind one who stays from growing without end.
    fn apply(&self, state: Option<&[u8]>, now: Timestamp) -> Result<Step> {
        let now = micros(now);
        let mut state = State::read(state, now)?;
        state.sweep(now);
        let Some(holder) = state.holders.iter_mut().find(|holder| *holder.owner == *self.owner) else {
            return Ok(Step::nothing("0"));
        };
        holder.term = Term { ttl: self.ttl, since: now };
        holder.label = self.label.to_string();
        state.last_token = state.last_token.max(self.floor);
        Ok(put(&state, now, "1".into()))
    }

    fn script(&self) -> Option<ScriptCall> {
        let Self { owner, ttl, label, floor } = self;
        call(&[&"renew", owner, ttl, label, floor])
    }
}

impl Renew {
    pub(crate) fn decode(reply: &[u8]) -> bool {
        reply == b"1"
    }
}

impl Transition for Release {
    fn name(&self) -> &'static str {
        "release"
    }

    /// Replies whether something was held, `0` or `1`, and then those who hold now, each with its first token. What is
    /// over is still held as long as nobody has asked for it since.
    fn apply(&self, state: Option<&[u8]>, now: Timestamp) -> Result<Step> {
        let now = micros(now);
        let mut state = state.map(State::parse).transpose()?.unwrap_or_default();
        let (holders, waiters) = (state.holders.len(), state.waiters.len());
        state.holders.retain(|holder| *holder.owner != *self.owner);
        state.waiters.retain(|waiter| *waiter.owner != *self.owner);
        let held = state.holders.len() < holders;
        let (granted, used) = self.tokens;
        if held && state.last_token == granted {
            state.last_token = used;
        } else if !held && state.waiters.len() == waiters {
            state.last_token = now.max(state.last_token.saturating_add(1));
        }
        state.let_go(now);
        let mut reply = String::from(if held { "1" } else { "0" });
        for (owner, token) in state.grant_next(self.capacity, now) {
            let _ = write!(reply, " {owner} {token}");
        }
        Ok(put(&state, now, reply))
    }

    fn script(&self) -> Option<ScriptCall> {
        let (granted, used) = self.tokens;
        call(&[&"release", &self.owner, &self.capacity, &granted, &used, &self.key_len, &self.untouched])
    }
}

impl Released {
    pub(crate) fn decode(reply: &[u8]) -> Result<Self> {
        let mut fields = Fields::new("an answer to a release", reply)?;
        let held = fields.word()? == "1";
        let (mut granted, mut told) = (Vec::new(), false);
        while let Some(owner) = fields.optional::<String>()? {
            if owner == "told" {
                told = true;
                break;
            }
            granted.push((owner, fields.integer()?));
        }
        fields.end()?;
        Ok(Self { held, granted, told })
    }
}

impl Transition for Show {
    fn name(&self) -> &'static str {
        "show"
    }

    fn apply(&self, state: Option<&[u8]>, now: Timestamp) -> Result<Step> {
        let now = micros(now);
        Ok(Step::nothing(format!("{now} {}", State::read(state, now)?.write())))
    }

    fn script(&self) -> Option<ScriptCall> {
        call(&[&"show", &"-"])
    }
}

impl Show {
    /// The time, and the state.
    pub(crate) fn decode(reply: &[u8]) -> Result<(i64, State)> {
        let space = reply.iter().position(|&byte| byte == b' ').unwrap_or(reply.len());
        let (now, state) = reply.split_at(space);
        let now = Fields::new(OF, now)?.integer()?;
        Ok((now, State::parse(state.get(1..).unwrap_or_default())?))
    }
}

/// Whole microseconds.
pub(crate) fn micros_of(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}

fn granted(token: i64) -> String {
    format!("granted {token}")
}

fn put(state: &State, now: i64, reply: String) -> Step {
    let kept = state.expires().map_or(0, |expires| expires - now) + REMEMBERED;
    Step::put(state.write(), Expiry::After(Duration::from_micros(kept.unsigned_abs())), reply)
}

fn call(args: &[&dyn fmt::Display]) -> Option<ScriptCall> {
    Some(ScriptCall::new(include_str!("lease.lua")).args(args))
}
