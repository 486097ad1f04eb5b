//! `list`: the keys with a prefix.

use std::{ffi::OsString, num::NonZeroUsize};

use clap::builder::styling::Style;
use commonhold::{Entry, Key, Scan};
use futures_util::TryStreamExt as _;
use serde_json::{Map, Value};

use super::{Context, ttl, unless_interrupted};
use crate::{
    bytes,
    failure::Result,
    output::{self, FAINT},
    table::{Align, Columns},
};

/// List the keys with a prefix
///
/// One a line, in bytewise order where the store has one. Bytes that are no printable text, and the backslash,
/// are escaped; with --escaped the other commands take what is printed here.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  commonhold list
  commonhold list user: --long
  commonhold list user: --limit 10 --output json
  commonhold --escaped get 'user:\\xff'       # a key as list printed it")]
pub(crate) struct Args {
    /// What the keys begin with, byte for byte; without it, all keys
    prefix: Option<OsString>,
    /// With the size of the value and the time to live
    #[arg(long, short)]
    long: bool,
    /// At most this many
    #[arg(long, value_name = "N")]
    limit: Option<NonZeroUsize>,
}

pub(super) async fn run(context: &mut Context, args: &Args) -> Result<()> {
    let prefix = context.prefix(args.prefix.as_deref())?;
    let store = context.open().await?;
    let mut scan = Scan::prefix(prefix);
    scan.keys_only = !args.long;
    scan.page = args.limit.map_or(scan.page, |limit| limit.get().min(scan.page));
    let columns = args.long.then(long_columns);
    unless_interrupted(
        async {
            let mut entries = store.scan(scan);
            let mut left = args.limit.map_or(usize::MAX, NonZeroUsize::get);
            let mut first = true;
            while left > 0
                && let Some((key, entry)) = entries.try_next().await?
            {
                print(context, columns.as_ref(), first, &key, &entry)?;
                left -= 1;
                first = false;
            }
            Ok(())
        },
        "--limit N lists fewer",
    )
    .await
}

/// Wide enough for what `size` and `duration` say, so that keys can be printed as they come.
fn long_columns() -> Columns {
    let mut columns = Columns::new([("SIZE", Align::Right), ("TTL", Align::Right), ("KEY", Align::Left)]);
    columns.measure(&["1023.9 KiB", "36499d 23h"]);
    columns
}

fn print(
    context: &mut Context,
    columns: Option<&Columns>,
    first: bool,
    key: &Key,
    entry: &Entry,
) -> Result<()> {
    if context.out.is_json() {
        let mut object = Map::new();
        bytes::insert(&mut object, "key", key.as_bytes());
        if columns.is_some() {
            object.insert("size".to_owned(), entry.value.len().into());
            object.insert("ttl_ms".to_owned(), ttl::millis(entry.ttl));
        }
        return context.out.json(&Value::Object(object));
    }
    let Some(columns) = columns else { return context.out.line(bytes::escape(key.as_bytes())) };
    if first {
        columns.print_headings(&mut context.out)?;
    }
    let size = output::size(entry.value.len() as u64);
    let ttl = entry.ttl.map_or_else(|| "-".to_owned(), output::duration);
    let cells =
        [(size.as_str(), Style::new()), (&ttl, FAINT), (&bytes::escape(key.as_bytes()), Style::new())];
    columns.print(&mut context.out, &cells)
}
