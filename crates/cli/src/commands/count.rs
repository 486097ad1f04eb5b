//! `count`: how many entries there are with a prefix.

use std::ffi::OsString;

use serde_json::json;

use super::{Context, unless_interrupted};
use crate::failure::Result;

/// Count the entries with a prefix
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  commonhold count
  commonhold count user:")]
pub(crate) struct Args {
    /// What the keys begin with, byte for byte; without it, all keys
    prefix: Option<OsString>,
}

pub(super) async fn run(context: &mut Context, args: &Args) -> Result<()> {
    let prefix = context.prefix(args.prefix.as_deref())?;
    let store = context.open().await?;
    let count = async { Ok(store.count(&prefix).await?) };
    let count = unless_interrupted(count, "a longer prefix has fewer entries").await?;
    if context.out.is_json() {
        context.out.json(&json!({ "count": count }))
    } else {
        context.out.line(count.to_string())
    }
}
