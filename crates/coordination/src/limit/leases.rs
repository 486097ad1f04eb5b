//! What instances hold of a limit on lease.

use std::fmt::Write as _;

use commonhold_core::Result;

use super::state::Number;
use crate::state::{Fields, corrupt};

/// More instances than this cannot lease from one limiter at a time.
pub(super) const MAX_LEASES: usize = 1_000;

/// What an instance holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Lease {
    /// The instance.
    pub(super) id: u64,
    /// The number of its last request.
    pub(super) seq: u64,
    /// Permits it may have: those it said it had, and those it was given then.
    pub(super) held: u64,
    /// Permits it would have liked to have.
    pub(super) want: u64,
    /// When they are gone, in microseconds of the store's clock.
    pub(super) expires: u64,
}

/// The end of a state: ` ID SEQ HELD WANT EXPIRES` for each.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Leases(pub(super) Vec<Lease>);

impl Leases {
    /// Reads what is left of the fields of such a state.
    pub(super) fn read(of: &'static str, mut fields: Fields<'_>) -> Result<Self> {
        let mut leases = Vec::new();
        while let Some(Number(id)) = fields.optional()? {
            let (Number(seq), Number(held)) = (fields.next()?, fields.next()?);
            let (Number(want), Number(expires)) = (fields.next()?, fields.next()?);
            if leases.len() == MAX_LEASES {
                return Err(corrupt(of));
            }
            leases.push(Lease { id, seq, held, want, expires });
        }
        Ok(Self(leases))
    }

    pub(super) fn write(&self, text: &mut String) {
        for Lease { id, seq, held, want, expires } in &self.0 {
            let _infallible = write!(text, " {id} {seq} {held} {want} {expires}");
        }
    }

    /// Takes out the lease of an instance.
    pub(super) fn remove(&mut self, id: u64) -> Option<Lease> {
        let index = self.0.iter().position(|lease| lease.id == id)?;
        Some(self.0.remove(index))
    }

    /// Permits that are held.
    pub(super) fn held(&self) -> u64 {
        self.0.iter().map(|lease| lease.held).sum()
    }

    /// How many would have liked to have some.
    pub(super) fn wanting(&self) -> u64 {
        self.0.iter().filter(|lease| lease.want > 0).count() as u64
    }

    /// When the last one ends under which something is held; 0 if there is none.
    pub(super) fn last(&self) -> u64 {
        let holding = self.0.iter().filter(|lease| lease.held > 0);
        holding.map(|lease| lease.expires).max().unwrap_or(0)
    }
}
