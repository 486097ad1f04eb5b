//! Leases: who holds something, for how long, and who waits for it. Locks, semaphores and elections are made of them.

mod state;
mod transition;

pub(crate) use self::{
    state::{Holder, State, Waiter},
    transition::{Claim, Claimed, Release, Released, Renew},
};
