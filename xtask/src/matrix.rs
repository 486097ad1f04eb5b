//! `cargo xtask matrix`: writes docs/feature-matrix.md from what the stores declare.
//!
//! A test of `commonhold` makes it, against real servers, and fails where the file says something else.

use std::process::Command;

/// The command that writes the file.
pub(crate) fn write(mut test: Command) -> Command {
    test.args(["--package", "commonhold", "--all-features", "--test", "matrix", "the_feature_matrix"]);
    test.env("COMMONHOLD_WRITE_MATRIX", "1");
    test
}
