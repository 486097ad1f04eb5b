//! The Redis backend against real servers.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic, missing_docs)]

mod cluster;
mod common;
mod conformance;
mod faults;
mod foreign;
mod large;
mod listening;
mod opening;
mod sentinel;
