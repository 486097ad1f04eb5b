//! The state of a breaker as it lies in a store.

use std::fmt::Write as _;

use commonhold_core::Result;

use super::machine::{Bucket, Counts, MOST, MOST_BUCKETS, Machine, Probe, Reporter, State};
use crate::state::{Fields, corrupt};

/// What errors call it.
pub(super) const OF: &str = "a circuit breaker";
const MOST_PROBES: usize = 64;
const MOST_REPORTERS: usize = 16;

impl Machine {
    /// Reads `generation state until passed trips streak`, then ` P id expires` for each probe, ` R id serial in_streak` for
    /// each reporter and ` B serial calls failures slow` for each tenth of the window. Nothing is a closed one.
    ///
    /// # Errors
    /// `Corrupt` if it is something else.
    pub(super) fn parse(state: Option<&[u8]>) -> Result<Self> {
        let Some(state) = state else { return Ok(Self::default()) };
        let mut fields = Fields::new(OF, state)?;
        let mut parsed = Self {
            generation: fields.integer()?,
            state: State::of(fields.word()?).ok_or_else(|| corrupt(OF))?,
            until: fields.integer()?,
            passed: count(&mut fields)?,
            trips: count(&mut fields)?,
            streak: count(&mut fields)?,
            ..Self::default()
        };
        while let Some(kind) = fields.optional::<String>()? {
            match &*kind {
                "P" if parsed.reporters.is_empty() && parsed.buckets.is_empty() => {
                    parsed.probes.push(Probe { id: fields.integer()?, expires: fields.integer()? });
                }
                "R" if parsed.buckets.is_empty() => {
                    let (id, serial) = (fields.integer()?, fields.integer()?);
                    let in_streak = match fields.word()? {
                        "0" => false,
                        "1" => true,
                        _ => return Err(corrupt(OF)),
                    };
                    parsed.reporters.push(Reporter { id, serial, in_streak });
                }
                "B" => {
                    let serial = fields.integer()?;
                    let counts = Counts {
                        calls: count(&mut fields)?.unsigned_abs(),
                        failures: count(&mut fields)?.unsigned_abs(),
                        slow: count(&mut fields)?.unsigned_abs(),
                    };
                    parsed.buckets.push_back(Bucket { serial, counts });
                }
                _ => return Err(corrupt(OF)),
            }
        }
        let too_long = parsed.probes.len() > MOST_PROBES
            || parsed.reporters.len() > MOST_REPORTERS
            || parsed.buckets.len() > MOST_BUCKETS;
        if too_long { Err(corrupt(OF)) } else { Ok(parsed) }
    }

    pub(super) fn write(&self) -> String {
        let Self { generation, state, until, passed, trips, streak, .. } = self;
        let mut text = format!("{generation} {state} {until} {passed} {trips} {streak}");
        for Probe { id, expires } in &self.probes {
            let _ = write!(text, " P {id} {expires}");
        }
        for Reporter { id, serial, in_streak } in &self.reporters {
            let _ = write!(text, " R {id} {serial} {}", u8::from(*in_streak));
        }
        for Bucket { serial, counts: Counts { calls, failures, slow } } in &self.buckets {
            let _ = write!(text, " B {serial} {calls} {failures} {slow}");
        }
        text
    }
}

fn count(fields: &mut Fields<'_>) -> Result<i64> {
    Some(fields.integer()?).filter(|count| *count <= MOST).ok_or_else(|| corrupt(OF))
}
