//! The `commonhold` command line.
fn main() {}
