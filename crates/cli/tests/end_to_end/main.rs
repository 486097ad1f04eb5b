//! The command line as people and scripts use it: the real binary, in a directory of its own.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic, missing_docs)]

mod bytes;
mod configuration;
mod copy;
mod hold;
mod interruption;
mod sandbox;
mod servers;
mod store;
mod usage;
mod window;
