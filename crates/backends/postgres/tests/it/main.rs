//! The PostgreSQL backend against real servers.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic, missing_docs)]

mod advisory;
mod common;
mod conformance;
mod faults;
mod isolation;
mod replicas;
mod table;
mod ways;
