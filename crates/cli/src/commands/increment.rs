//! `increment`: adds to a counter.

use std::{ffi::OsString, time::Duration};

use serde_json::{Map, Value};

use super::{Context, parse_duration};
use crate::{bytes, failure::Result};

/// Add to a counter and print the sum
///
/// A counter is decimal text under a key; a missing one counts as 0. Its time to live stays as it is.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  commonhold increment visits
  commonhold increment stock:17 -3
  commonhold increment hits:18:05 --ttl 1h")]
pub(crate) struct Args {
    /// The key
    key: OsString,
    /// How much to add; negative to subtract
    #[arg(default_value_t = 1, allow_negative_numbers = true)]
    delta: i64,
    /// Let a counter that this creates expire after this long
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    ttl: Option<Duration>,
}

pub(super) async fn run(context: &mut Context, args: &Args) -> Result<()> {
    let key = context.key(&args.key)?;
    let store = context.open().await?;
    let sum = match args.ttl {
        Some(ttl) => store.increment_with_ttl(&key, args.delta, ttl).await?,
        None => store.increment(&key, args.delta).await?,
    };
    if !context.out.is_json() {
        return context.out.line(sum.to_string());
    }
    let mut object = Map::new();
    bytes::insert(&mut object, "key", key.as_bytes());
    object.insert("value".to_owned(), sum.into());
    context.out.json(&Value::Object(object))
}
