//! `delete`: keys, one by one.

use std::ffi::OsString;

use serde_json::json;

use super::Context;
use crate::failure::{Failure, Result};

/// Delete keys
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  commonhold delete user:1
  commonhold delete user:1 user:2 user:3

Exits with 1 if there was no entry under any of the keys.")]
pub(crate) struct Args {
    /// The keys
    #[arg(required = true)]
    keys: Vec<OsString>,
}

pub(super) async fn run(context: &mut Context, args: &Args) -> Result<()> {
    let keys = args.keys.iter().map(|key| context.key(key)).collect::<Result<Vec<_>>>()?;
    let (asked, store) = (keys.len() as u64, context.open().await?);
    let deleted = store.batch_delete(keys).await?;
    if context.out.is_json() {
        context.out.json(&json!({ "deleted": deleted, "missing": asked - deleted }))?;
    } else {
        context.out.line(format!("deleted {deleted} of {asked}"))?;
    }
    context.out.flush()?;
    if deleted > 0 { Ok(()) } else { Err(Failure::no("nothing to delete")) }
}
