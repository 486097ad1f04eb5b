//! `take`: the value under a key, deleted in the same step.

use std::ffi::OsString;

use commonhold::Entry;

use super::{Context, get};
use crate::failure::Result;

/// Print the value under a key and delete it, in one atomic step
///
/// Of several who take the same key at once, one gets the value. It is printed as `get` prints it.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  commonhold take job:17
  commonhold take job:17 > job.bin

Exits with 1 if there is no entry under the key.")]
pub(crate) struct Args {
    /// The key
    key: OsString,
    /// Print the bytes as they are on a terminal too
    #[arg(long)]
    raw: bool,
}

pub(super) async fn run(context: &mut Context, args: &Args) -> Result<()> {
    let key = context.key(&args.key)?;
    let value = context.open().await?.get_and_delete(&key).await?;
    // What was taken is gone: it has no time left.
    let entry = value.map(|value| Entry { value, ttl: None });
    get::print(context, &key, entry.as_ref(), args.raw)
}
