//! The transitions that take permits and that look how many there are.

use commonhold_core::{Error, ErrorKind, Result, ScriptCall, Step, Timestamp, Transition};

use super::{Limit, Outcome, budget::Budget, state::now_micros};
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
        let mut budget = Budget::read(self.limit, state, now)?;
        let outcomes: Vec<_> = self.permits.iter().map(|permits| budget.take(*permits, now)).collect();
        let reply = encode(&outcomes);
        // What only time has changed need not be written down.
        if !outcomes.iter().any(|outcome| outcome.allowed) && !budget.moved() {
            return Ok(Step::nothing(reply));
        }
        Ok(budget.put(now, reply))
    }

    fn script(&self) -> Option<ScriptCall> {
        let source = match self.limit {
            Limit::Bucket(_) => concat!(
                include_str!("begin.lua"),
                include_str!("quick.lua"),
                include_str!("fields.lua"),
                include_str!("leases.lua"),
                include_str!("bucket.lua"),
                include_str!("take.lua")
            ),
            Limit::Window(_) => concat!(
                include_str!("fields.lua"),
                include_str!("leases.lua"),
                include_str!("window.lua"),
                include_str!("take.lua")
            ),
        };
        let callers = self.permits.len() as u64;
        Some(ScriptCall::new(source).args(self.limit.numbers()).arg(callers).args(&self.permits))
    }
}

impl Transition for Peek {
    fn name(&self) -> &'static str {
        "limit_peek"
    }

    fn apply(&self, state: Option<&[u8]>, now: Timestamp) -> Result<Step> {
        let now = now_micros(now);
        let mut budget = Budget::read(self.0, state, now)?;
        let reset_micros = budget.reset_micros(now);
        let outcome = budget.take(1, now);
        let remaining = outcome.remaining + u64::from(outcome.allowed);
        Ok(Step::nothing(encode(&[Outcome { remaining, reset_micros, ..outcome }])))
    }
}
