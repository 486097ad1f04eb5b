//! `put`: a value under a key.

use std::{
    ffi::OsString,
    fs,
    io::{self, Read},
    path::PathBuf,
    time::Duration,
};

use commonhold::{Condition, Expiry, PutOptions};
use serde_json::{Map, Value};

use super::{Context, parse_duration};
use crate::{
    bytes,
    failure::{Failure, Result},
};

/// Put a value under a key
///
/// Without --ttl or --keep-ttl the entry lives for ever, whatever was there before.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  commonhold put user:1 alice
  commonhold put session:1 token --ttl 30m
  commonhold put leader me --if-absent --ttl 10s
  commonhold put config v2 --if-equals v1
  commonhold put image:7 --file image.png
  tar c dir | commonhold put backup -

Exits with 1 if the condition does not hold; nothing is changed then.")]
pub(crate) struct Args {
    /// The key
    key: OsString,
    /// The value; `-` reads it from standard input, byte for byte
    #[arg(allow_hyphen_values = true, required_unless_present = "file")]
    value: Option<OsString>,
    /// Read the value from this file
    #[arg(long, conflicts_with = "value")]
    file: Option<PathBuf>,
    /// Let the entry expire after this long, as in 500ms, 30s, 10m, 1h30m
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    ttl: Option<Duration>,
    /// Keep the time to live that the entry has
    #[arg(long, conflicts_with = "ttl")]
    keep_ttl: bool,
    /// Only if there is no entry under the key
    #[arg(long)]
    if_absent: bool,
    /// Only if the value under the key is this one
    #[arg(long, value_name = "VALUE", conflicts_with = "if_absent", allow_hyphen_values = true)]
    if_equals: Option<OsString>,
}

/// No store takes longer values; most take less.
const MAX_BYTES: u64 = 1024 * 1024 * 1024;

pub(super) async fn run(context: &mut Context, args: Args) -> Result<()> {
    let key = context.key(&args.key)?;
    let condition = match &args.if_equals {
        Some(expected) => Condition::Equals(context.bytes(expected)?.into()),
        None if args.if_absent => Condition::Absent,
        None => Condition::Always,
    };
    let expiry = if args.keep_ttl { Expiry::Keep } else { Expiry::from(args.ttl) };
    // Read before the store is opened: what is piped in may come from the same store.
    let value = value(context, &args)?;
    let store = context.open().await?;
    let applied = store.put_with(&key, value, PutOptions::default().when(condition).expiry(expiry)).await?;
    if context.out.is_json() {
        let mut object = Map::new();
        bytes::insert(&mut object, "key", key.as_bytes());
        object.insert("applied".to_owned(), applied.is_yes().into());
        context.out.json(&Value::Object(object))?;
        context.out.flush()?;
    }
    if applied.is_yes() {
        return Ok(());
    }
    let reason =
        if args.if_absent { "there is an entry already" } else { "the value is another, or there is none" };
    Err(Failure::no(format!("not put: {}: {reason}", bytes::escape(key.as_bytes()))))
}

fn value(context: &Context, args: &Args) -> Result<Vec<u8>> {
    match (&args.file, args.value.as_deref().unwrap_or_default()) {
        (Some(path), _) => {
            let read_file = || read(fs::File::open(path)?);
            read_file().map_err(|error| Failure::file(path, &error))
        }
        (None, value) if value == "-" => {
            read(io::stdin().lock()).map_err(|error| Failure::usage(format!("standard input: {error}")))
        }
        (None, value) => context.bytes(value),
    }
}

/// Reads to the end. What is over the limit is refused without reading on.
fn read(from: impl Read) -> io::Result<Vec<u8>> {
    let mut value = Vec::new();
    from.take(MAX_BYTES + 1).read_to_end(&mut value)?;
    if value.len() as u64 > MAX_BYTES {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, "no store takes a value over 1 GiB"));
    }
    Ok(value)
}
