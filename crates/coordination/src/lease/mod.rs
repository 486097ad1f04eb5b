//! Leases: who holds something, for how long, and who waits for it. Locks, semaphores and elections are made of them.

mod held;
mod leases;
mod meter;
#[cfg(test)]
mod properties;
mod schedule;
mod state;
mod transition;
mod wake;

pub(crate) use self::{
    held::Held,
    leases::{Leases, Wanted, after},
    meter::claimed,
    state::Holder,
};
