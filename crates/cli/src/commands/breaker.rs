//! `breaker`: shows a circuit breaker that instances share, or sets it by hand.

use std::time::Duration;

use commonhold::coordination::breaker::{DistributedBreaker, OnUnavailable, Settings, State, Status};
use serde_json::json;

use super::{
    Context,
    lock::{self, again_and_again},
};
use crate::{
    bytes,
    failure::{Failure, Result},
    output::{self, GOOD, WARNING},
};

/// Show a circuit breaker that instances share, or set it by hand
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  export COMMONHOLD_STORE=redis://cache
  commonhold breaker show
  commonhold breaker show payments --watch
  commonhold breaker isolate payments    # nothing goes through
  commonhold breaker close payments")]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Show its state: of all breakers without a name
    Show {
        /// The name of the breaker
        name: Option<String>,
        /// Again and again until Ctrl-C
        #[arg(long)]
        watch: bool,
    },
    /// Let nothing through, as if it had tripped, for as long as its instances are set to; an isolated one stays so
    Open {
        /// The name of the breaker
        name: String,
    },
    /// Let everything through again
    Close {
        /// The name of the breaker
        name: String,
    },
    /// Let nothing through until it is closed or reset
    Isolate {
        /// The name of the breaker
        name: String,
    },
    /// Close it and forget what was counted
    Reset {
        /// The name of the breaker
        name: String,
    },
}

pub(super) async fn run(context: &mut Context, args: Args) -> Result<()> {
    let store = context.open().await?;
    let breaker = |name: &str| {
        // What trips it, and for how long, is for its instances to say, which cut the longest wait to their own; here it
        // is only looked at, or set.
        let settings = Settings::new().failure_threshold(1).open_for(LONGEST);
        DistributedBreaker::new(store.clone(), name, &settings, OnUnavailable::Refuse)
    };
    match args.command {
        Command::Show { name, watch } => {
            again_and_again(context, watch, async |context| {
                let show = async |name: &str| Ok(breaker(name)?.show().await?);
                let all = match &name {
                    Some(name) => vec![(name.clone(), show(name).await?)],
                    None => lock::all(&store, PREFIX, show).await?,
                };
                all.iter().try_for_each(|(name, status)| print(context, name, status))
            })
            .await
        }
        Command::Open { name } => {
            let breaker = breaker(&name)?;
            breaker.open().await?;
            if breaker.show().await?.state == State::Isolated {
                let failure = Failure::no(format!("the breaker {name:?} stays isolated"));
                return Err(failure.help("`commonhold breaker close` ends that"));
            }
            Ok(())
        }
        Command::Close { name } => Ok(breaker(&name)?.close().await?),
        Command::Isolate { name } => Ok(breaker(&name)?.isolate().await?),
        Command::Reset { name } => Ok(breaker(&name)?.reset().await?),
    }
}

/// How long a breaker may stay open.
const LONGEST: Duration = Duration::from_secs(24 * 60 * 60);

/// What the keys of breakers begin with.
const PREFIX: &str = "breaker:";

fn print(context: &mut Context, name: &str, status: &Status) -> Result<()> {
    let Status { state, trips, consecutive_failures, probes, reporters, .. } = status;
    if context.out.is_json() {
        return context.out.json(&json!({
            "name": name,
            "state": state.to_string(),
                "trips": trips,
            "consecutive_failures": consecutive_failures,
            "probes": probes,
            "reporters": reporters,
        }));
    }
    let closed = matches!(state, State::Closed);
    let state = context.out.paint(if closed { GOOD } else { WARNING }, &state.to_string());
    let mut line = format!("{}: {state}", bytes::escape(name.as_bytes()));
    if *consecutive_failures > 0 {
        line += &format!(", {} in a row", output::counted(*consecutive_failures, "failure"));
    }
    if *trips > 0 {
        line += &format!(", opened {} since it was closed", output::counted(*trips, "time"));
    }
    if *probes > 0 {
        line += &format!(", {} under way", output::counted(*probes as u64, "probe"));
    }
    context.out.line(line)
}
