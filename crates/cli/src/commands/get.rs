//! `get`: the value under a key.

use std::ffi::OsString;

use commonhold::{Entry, Key};
use serde_json::{Map, Value};

use super::{Context, missing};
use crate::{bytes, failure::Result};

/// Print the value under a key
///
/// To a file or a pipe the bytes go exactly as they are. A terminal gets a newline behind them, and bytes that
/// it would obey instead of show are escaped; --raw prevents both.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  commonhold get user:1
  commonhold get image:7 > image.png
  commonhold get user:1 --output json        # with size and time to live

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
    let entry = context.open().await?.get_entry(&key).await?;
    print(context, &key, entry.as_ref(), args.raw)
}

/// Prints an entry, or says that there is none.
pub(super) fn print(context: &mut Context, key: &Key, entry: Option<&Entry>, raw: bool) -> Result<()> {
    if context.out.is_json() {
        let mut object = Map::new();
        bytes::insert(&mut object, "key", key.as_bytes());
        object.insert("found".to_owned(), entry.is_some().into());
        if let Some(entry) = entry {
            bytes::insert(&mut object, "value", &entry.value);
            object.insert("size".to_owned(), entry.value.len().into());
            object.insert("ttl_ms".to_owned(), super::ttl::millis(entry.ttl));
        }
        context.out.json(&Value::Object(object))?;
        context.out.flush()?;
    } else if let Some(entry) = entry {
        context.print_value(&entry.value, raw)?;
        context.out.flush()?;
    }
    entry.map(drop).ok_or_else(|| missing(key))
}
