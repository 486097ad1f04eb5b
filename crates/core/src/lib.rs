//! The vocabulary of Commonhold.

mod error;
mod key;
mod clock;
mod backend;
mod transition;
mod stats;
pub mod embedded;
mod hub;

pub use self::{
    backend::{
        Applied, Capabilities, Change, Condition, DEFAULT_MAX_VALUE_BYTES, Entry, Expiry, Health, Maintenance,
        Message, PutOptions, Scan, StateBackend, Transaction, Write,
    },
    clock::{Clock, ManualClock, SystemClock, Timestamp},
    error::{Error, ErrorKind, Result, Retry},
    hub::Hub,
    key::{Key, Prefix},
    stats::{Latency, Stats},
    transition::{Action, Step, Transition},
};
