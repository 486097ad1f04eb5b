//! The transitions that take permits and that look how many there are.

use commonhold_core::{Error, ErrorKind, Expiry, Result, ScriptCall, Step, Timestamp, Transition};

use super::{
    Outcome,
    bucket::Bucket,
    config::{Limit, SlidingWindow, TokenBucket},
    state::{STAYS_MICROS, now_micros},
    window::Window,
};
use crate::state::Fields;

/// Takes permits for several callers, one after the other. Replies `ALLOWED REMAINING RETRY RESET` for each.
#[derive(Debug)]
pub(super) struct Take {
    pub(super) limit: Limit,
    pub(super) permits: Vec<u64>,
}

/// Replies what [`Take`] would to a caller of one, and takes nothing.
#[derive(Debug)]
pub(super) struct Peek(pub(super) Limit);

/// The state of any limit.
#[derive(Debug)]
enum Held {
    Bucket(TokenBucket, Bucket),
    Window(SlidingWindow, Window),
}

impl Held {
    fn read(limit: Limit, state: Option<&[u8]>, now: u64) -> Result<Self> {
        Ok(match limit {
            Limit::Bucket(limit) => Self::Bucket(limit, Bucket::read(limit, state, now)?),
            Limit::Window(limit) => Self::Window(limit, Window::read(limit, state, now)?),
        })
    }

    fn take(&mut self, permits: u64, now: u64) -> Outcome {
        match self {
            Self::Bucket(limit, bucket) => bucket.take(*limit, permits, now),
            Self::Window(limit, window) => window.take(*limit, permits, now),
        }
    }

    fn reset_micros(&self, now: u64) -> u64 {
        match self {
            Self::Bucket(limit, bucket) => bucket.reset_micros(*limit, now),
            Self::Window(limit, window) => window.reset_micros(*limit, now),
        }
    }

    fn moved(&self) -> bool {
        matches!(self, Self::Window(_, window) if window.moved())
    }

    fn write(&self) -> String {
        match self {
            Self::Bucket(limit, bucket) => bucket.write(*limit),
            Self::Window(limit, window) => window.write(*limit),
        }
    }
}

/// Puts a state that lives until it has nothing to say any more.
pub(super) fn put(state: String, reset_micros: u64, reply: String) -> Step {
    let ttl = std::time::Duration::from_micros(reset_micros + STAYS_MICROS);
    Step::put(state, Expiry::After(ttl), reply)
}

fn encode(outcomes: &[Outcome]) -> String {
    let words = outcomes.iter().map(|outcome| {
        let Outcome { allowed, remaining, retry_micros, reset_micros } = outcome;
        format!("{} {remaining} {retry_micros} {reset_micros}", u8::from(*allowed))
    });
    words.collect::<Vec<_>>().join(" ")
}

/// Reads the reply to so many callers.
pub(super) fn decode(reply: &[u8], callers: usize) -> Result<Vec<Outcome>> {
    let mut fields = Fields::new("a limiter", reply)?;
    let mut number = || fields.next::<u64>();
    let outcomes = (0..callers).map(|_| {
        Ok(Outcome {
            allowed: number()? == 1,
            remaining: number()?,
            retry_micros: number()?,
            reset_micros: number()?,
        })
    });
    let outcomes = outcomes.collect::<Result<Vec<_>>>();
    outcomes.map_err(|_| Error::new(ErrorKind::Corrupt, "the reply of the store is not that of a limiter"))
}

impl Transition for Take {
    fn name(&self) -> &'static str {
        "limit_take"
    }

    fn apply(&self, state: Option<&[u8]>, now: Timestamp) -> Result<Step> {
        let now = now_micros(now);
        let mut held = Held::read(self.limit, state, now)?;
        let outcomes: Vec<_> = self.permits.iter().map(|permits| held.take(*permits, now)).collect();
        let reply = encode(&outcomes);
        // What only time has changed need not be written down.
        if !outcomes.iter().any(|outcome| outcome.allowed) && !held.moved() {
            return Ok(Step::nothing(reply));
        }
        Ok(put(held.write(), held.reset_micros(now), reply))
    }

    fn script(&self) -> Option<ScriptCall> {
        let (source, config) = match self.limit {
            Limit::Bucket(limit) => (
                concat!(
                    include_str!("begin.lua"),
                    include_str!("quick.lua"),
                    include_str!("fields.lua"),
                    include_str!("bucket.lua"),
                    include_str!("take.lua")
                ),
                vec![limit.unit(), limit.flow(), limit.burst()],
            ),
            Limit::Window(limit) => (
                concat!(include_str!("fields.lua"), include_str!("window.lua")),
                vec![limit.slice_micros(), limit.permits()],
            ),
        };
        let callers = self.permits.len() as u64;
        Some(ScriptCall::new(source).args(config).arg(callers).args(&self.permits))
    }
}

impl Transition for Peek {
    fn name(&self) -> &'static str {
        "limit_peek"
    }

    fn apply(&self, state: Option<&[u8]>, now: Timestamp) -> Result<Step> {
        let now = now_micros(now);
        let mut held = Held::read(self.0, state, now)?;
        let reset_micros = held.reset_micros(now);
        let outcome = held.take(1, now);
        let remaining = outcome.remaining + u64::from(outcome.allowed);
        Ok(Step::nothing(encode(&[Outcome { remaining, reset_micros, ..outcome }])))
    }
}
