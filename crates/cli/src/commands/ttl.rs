//! `ttl`: how long an entry has left to live.

use std::{ffi::OsString, time::Duration};

use serde_json::{Map, Value};

use super::{Context, missing, parse_duration};
use crate::{bytes, failure::Result, output};

/// Print or change how long an entry has left to live
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  commonhold ttl session:1
  commonhold ttl session:1 --set 30m
  commonhold ttl session:1 --persist

Exits with 1 if there is no entry under the key.")]
pub(crate) struct Args {
    /// The key
    key: OsString,
    /// Let the entry expire this long from now
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    set: Option<Duration>,
    /// Let the entry live for ever
    #[arg(long, conflicts_with = "set")]
    persist: bool,
}

pub(super) async fn run(context: &mut Context, args: &Args) -> Result<()> {
    let key = context.key(&args.key)?;
    let store = context.open().await?;
    let found = match args.set {
        Some(ttl) => store.expire(&key, ttl).await?,
        None if args.persist => store.persist(&key).await?,
        None => true,
    };
    let ttl = if found { store.ttl(&key).await? } else { None };
    if context.out.is_json() {
        let mut object = Map::new();
        bytes::insert(&mut object, "key", key.as_bytes());
        object.insert("found".to_owned(), ttl.is_some().into());
        if let Some(ttl) = ttl {
            object.insert("ttl_ms".to_owned(), millis(ttl));
        }
        context.out.json(&Value::Object(object))?;
    } else if let Some(ttl) = ttl {
        context.out.line(ttl.map_or_else(|| "never expires".to_owned(), output::duration))?;
    }
    context.out.flush()?;
    ttl.map(drop).ok_or_else(|| missing(&key))
}

/// A time to live in JSON: milliseconds, rounded up; `null` for ever.
pub(super) fn millis(ttl: Option<Duration>) -> Value {
    ttl.map_or(Value::Null, |ttl| {
        u64::try_from(ttl.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX).into()
    })
}
