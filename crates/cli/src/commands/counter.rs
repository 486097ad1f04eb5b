//! `counter`: counts by hand, once for each id where one is given.

use std::ffi::OsString;

use commonhold::coordination::counter::Counter;
use serde_json::json;

use super::{Context, lock::again_and_again};
use crate::{bytes, failure::Result};

/// Show a counter, add to it, or begin anew
///
/// `increment` adds as well; this one can be repeated: with --id it counts once, however often it is called, for a day.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  commonhold counter add visits
  commonhold counter add stock --by -3 --id order-4711    # counts once
  commonhold counter show visits --watch")]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Show its value; 0 if there is none
    Show {
        /// The key of the counter
        key: OsString,
        /// Again and again until Ctrl-C
        #[arg(long)]
        watch: bool,
    },
    /// Add to it, and print the value after that
    Add {
        /// The key of the counter
        key: OsString,
        /// How much
        #[arg(long, value_name = "N", default_value_t = 1, allow_negative_numbers = true)]
        by: i64,
        /// Count once for all calls with this id
        #[arg(long)]
        id: Option<String>,
    },
    /// Begin from 0
    Reset {
        /// The key of the counter
        key: OsString,
    },
}

pub(super) async fn run(context: &mut Context, args: Args) -> Result<()> {
    let store = context.open().await?;
    let (Command::Show { key, .. } | Command::Add { key, .. } | Command::Reset { key }) = &args.command;
    let key = context.key(key)?;
    let counter = Counter::new(store, &key)?;
    match args.command {
        Command::Show { watch, .. } => {
            again_and_again(context, watch, async |context| {
                let value = counter.get().await?;
                print(context, key.as_bytes(), value)
            })
            .await
        }
        Command::Add { by, id, .. } => {
            let value = match id {
                Some(id) => counter.increment_once(id, by).await?,
                None => counter.increment(by).await?,
            };
            print(context, key.as_bytes(), value)
        }
        Command::Reset { .. } => Ok(counter.reset().await?),
    }
}

fn print(context: &mut Context, key: &[u8], value: i64) -> Result<()> {
    if context.out.is_json() {
        let mut object = serde_json::Map::new();
        bytes::insert(&mut object, "key", key);
        object.insert("value".to_owned(), json!(value));
        return context.out.json(&object);
    }
    context.out.line(value.to_string())
}
