//! The vocabulary of Commonhold: keys and entries, what a store must be able to do, transitions, the layers
//! around a store, the handle that users hold, and the memory backend.
//!
//! Users add the crate `commonhold`, which re-exports this. Those who write a backend implement
//! [`StateBackend`] and run the conformance kit of `commonhold-testkit` against it.
//!
//! This is not a database: it holds no files and speaks no protocol. Backends do.

mod answer;
mod backend;
mod clock;
mod codec;
pub mod embedded;
mod error;
mod gather;
mod hub;
mod key;
pub mod layers;
mod memory;
mod stats;
mod store;
mod transition;
pub mod url;

pub use self::{
    answer::Answer,
    backend::{
        Applied, Capabilities, Change, Condition, DEFAULT_MAX_VALUE_BYTES, Entry, Expiry, Health,
        Maintenance, Message, PutOptions, Scan, StateBackend, Transaction, Write,
    },
    clock::{Clock, ManualClock, SystemClock, Timestamp},
    codec::{Decode, Encode, Json, MessagePack, Postcard, Raw, Text},
    error::{Error, ErrorKind, Result, Retry},
    gather::Gather,
    hub::Hub,
    key::{Key, Prefix},
    memory::{MemoryBackend, MemoryBuilder},
    stats::{Latency, Stats},
    store::{IntoKey, IntoPrefix, Store, StoreTransaction},
    transition::{Action, Increment, ScriptCall, Step, Transition},
};
