//! `watch`: the changes to keys with a prefix, as they happen.

use std::ffi::OsString;

use commonhold::Change;
use futures_util::TryStreamExt as _;
use jiff::Timestamp;
use serde_json::{Map, Value};

use super::{Context, unless_interrupted};
use crate::{
    bytes,
    failure::Result,
    output::{FAINT, GOOD, WARNING, note},
};

/// Print changes to keys with a prefix as they happen
///
/// One a line, from now on, until Ctrl-C. An expiry is not a change. A memory: store lives within one process,
/// and a disk: store is open in one process at a time, so only stores that several processes share have
/// something to show here.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  commonhold watch
  commonhold watch user: --output json")]
pub(crate) struct Args {
    /// What the keys begin with, byte for byte; without it, all keys
    prefix: Option<OsString>,
}

pub(super) async fn run(context: &mut Context, args: &Args) -> Result<()> {
    let prefix = context.prefix(args.prefix.as_deref())?;
    let watch = async {
        let store = context.open().await?;
        if !store.capabilities().shared {
            note(
                "note: while this store is open here no other process can change it: there will be nothing to see",
            );
        }
        let mut changes = store.watch(&prefix).await?;
        while let Some(change) = changes.try_next().await? {
            print(context, &change)?;
            context.out.flush()?;
        }
        Ok(())
    };
    unless_interrupted(watch, "changes from now on are not seen").await
}

fn print(context: &mut Context, change: &Change) -> Result<()> {
    let (name, key, style) = match change {
        Change::Put(key) => ("put", Some(key), GOOD),
        Change::Deleted(key) => ("deleted", Some(key), WARNING),
        Change::Missed => ("missed", None, WARNING),
    };
    let time = format!("{:.3}", Timestamp::now());
    if context.out.is_json() {
        let mut object = Map::new();
        object.insert("time".to_owned(), time.into());
        object.insert("change".to_owned(), name.into());
        if let Some(key) = key {
            bytes::insert(&mut object, "key", key.as_bytes());
        }
        return context.out.json(&Value::Object(object));
    }
    let what = key.map_or("some changes were missed: read anew".into(), |key| bytes::escape(key.as_bytes()));
    let line = format!(
        "{}  {}  {what}",
        context.out.paint(FAINT, &time),
        context.out.paint(style, &format!("{name:<7}"))
    );
    context.out.line(line)
}
