//! `clear`: deletes the entries with a prefix.

use std::{
    ffi::OsString,
    io::{self, IsTerminal as _, Write as _},
};

use commonhold::Prefix;
use serde_json::json;

use super::{Context, unless_interrupted};
use crate::{
    bytes,
    failure::{Failure, Result},
    output::entries,
};

/// Delete all entries with a prefix
///
/// Asks first on a terminal; elsewhere it needs --yes. The empty prefix '' is that of every key. Not one atomic
/// step: stopped in the middle, some entries are gone and the others are not.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  commonhold clear session:
  commonhold clear session: --yes
  commonhold --namespace test clear '' --yes")]
pub(crate) struct Args {
    /// What the keys begin with, byte for byte
    prefix: OsString,
    /// Do not ask
    #[arg(long, short)]
    yes: bool,
}

pub(super) async fn run(context: &mut Context, args: &Args) -> Result<()> {
    let prefix = context.prefix(Some(&args.prefix))?;
    let store = context.open().await?;
    if !args.yes {
        let count = async { Ok(store.count(&prefix).await?) };
        let count = unless_interrupted(count, "nothing was deleted").await?;
        confirm(&prefix, count)?;
    }
    let clear = async { Ok(store.clear(&prefix).await?) };
    let cleared = unless_interrupted(clear, "some entries are deleted; the same command goes on").await?;
    if context.out.is_json() {
        context.out.json(&json!({ "deleted": cleared }))
    } else {
        context.out.line(format!("deleted {cleared}"))
    }
}

fn confirm(prefix: &Prefix, count: u64) -> Result<()> {
    let what = match prefix.as_bytes() {
        b"" => format!("all of {}", entries(count)),
        prefix => format!("{} with the prefix {}", entries(count), bytes::escape(prefix)),
    };
    if !io::stdin().is_terminal() || !io::stderr().is_terminal() {
        return Err(Failure::usage(format!("this would delete {what}")).help("say --yes to do it"));
    }
    write!(io::stderr(), "Delete {what}? [y/N] ")?;
    let mut answer = String::new();
    io::stdin().read_line(&mut answer)?;
    match answer.trim().to_ascii_lowercase().as_str() {
        "y" | "yes" => Ok(()),
        _ => Err(Failure::no("nothing was deleted")),
    }
}
