//! `limit`: takes permits of a limit that instances share, or shows it.

mod at_once;

use std::{ffi::OsString, time::Duration};

use clap::ArgGroup;
use commonhold::coordination::limit::{
    Decision, DistributedLimiter, Limit, OnUnavailable, Rate, SlidingWindow, TokenBucket,
};
use serde_json::json;

use super::{
    Context, hold, lock::again_and_again, parse_duration, parse_duration_or_none, unless_interrupted,
};
use crate::{
    failure::{Failure, Result},
    output::{self, thousands},
};

/// Take permits of a limit that instances share, or show it
///
/// A limit is what --rate says, as in 10/s, 100/m or 3/5s: a bucket that is full at first, holds --burst permits and
/// refills at that rate; with --window exact, at most so many in any such time. Everybody must name the same.
///
/// With --at-once it is a concurrency limit, of how many calls are in progress at a time, and shown with who holds how many
/// permits of it. They are taken for as long as a command runs, which is ended if they are lost, as under `lock`.
///
/// Exit code: 0 if the permits were had; 1 if not; 3 if the store is unavailable, or permits were lost; that of the command
/// if one was run.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  export COMMONHOLD_STORE=redis://cache
  commonhold limit take mail --rate 10/s && ./send-mail
  commonhold limit take import --rate 100/m --burst 20 --permits 5 --wait 1m
  commonhold limit show mail --rate 10/s --watch
  commonhold limit take search --at-once 8 --permits 2 --wait 1m -- ./reindex.sh
  commonhold limit show search --at-once 8 --watch

A disk: store is open in one process at a time; to share a limit between processes takes a shared store.")]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Take permits
    Take(Take),
    /// Show what is left, and take nothing
    Show {
        #[command(flatten)]
        limit: LimitArgs,
        /// Again and again until Ctrl-C
        #[arg(long)]
        watch: bool,
    },
    /// Forget what was taken
    Reset {
        #[command(flatten)]
        limit: LimitArgs,
    },
}

#[derive(Debug, clap::Args)]
struct Take {
    #[command(flatten)]
    limit: LimitArgs,
    /// How many
    #[arg(long, value_name = "N", default_value_t = 1)]
    permits: u64,
    /// How long to wait for them; 0s is not to wait
    #[arg(long, value_name = "DURATION", value_parser = parse_duration_or_none, default_value = "0s")]
    wait: Duration,
    /// How long permits of --at-once are held after this process is gone: from 100ms (24s on Memcached) to 1h [default: 30s]
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    ttl: Option<Duration>,
    /// The command that runs while permits of --at-once are held
    #[arg(last = true, value_name = "CMD")]
    command: Vec<OsString>,
}

#[derive(Debug, clap::Args)]
#[command(group(ArgGroup::new("kind").required(true)))]
struct LimitArgs {
    /// The name of the limit
    name: String,
    /// So many in such a time, as in 10/s, 100/m or 3/5s
    #[arg(long, value_name = "N/TIME", value_parser = parse_rate, group = "kind")]
    rate: Option<(u64, Duration)>,
    /// How many may come at once: as many as --rate has unless given
    #[arg(long, value_name = "N", conflicts_with = "window")]
    burst: Option<u64>,
    /// At most so many in any such time, counted exactly, instead of a bucket that refills
    #[arg(long)]
    window: bool,
    /// So many in progress at a time, instead of --rate
    #[arg(long, value_name = "N", group = "kind", conflicts_with_all = ["burst", "window"])]
    at_once: Option<u64>,
}

impl LimitArgs {
    async fn open(&self, context: &Context) -> Result<DistributedLimiter> {
        let Some((permits, time)) = self.rate else {
            return Err(Failure::usage(
                "what holders of --at-once have is not forgotten: it comes back when they end",
            ));
        };
        let limit = if self.window {
            Limit::from(SlidingWindow::new(permits, time)?)
        } else {
            Limit::from(TokenBucket::new(Rate::new(permits, time)?, self.burst.unwrap_or(permits))?)
        };
        // A limit that nobody can look at has no answer.
        Ok(DistributedLimiter::new(context.open().await?, &self.name, limit, OnUnavailable::Refuse)?)
    }
}

pub(super) async fn run(context: &mut Context, args: Args) -> Result<()> {
    match args.command {
        Command::Take(take) if take.limit.at_once.is_some() => at_once::run(context, take).await,
        Command::Take(Take { limit, permits, wait, ttl, command }) => {
            if ttl.is_some() || !command.is_empty() {
                let message = "permits of --rate are taken for good: --ttl and a command are for --at-once";
                return Err(Failure::usage(message));
            }
            hold::refuse_empty_command()?;
            let limiter = limit.open(context).await?;
            // Though it waits for nothing: what keeps the store from answering is told as what it is.
            let take = async { Ok(limiter.acquire_timeout(permits, wait).await?) };
            let decision = unless_interrupted(take, "nothing was taken, unless it had been just now").await?;
            print(context, &limit.name, &decision)?;
            if decision.allowed {
                return Ok(());
            }
            context.out.flush()?;
            let after = output::duration(decision.retry_after);
            Err(Failure::no(format!("over the limit {:?}: again in {after}", limit.name)))
        }
        Command::Show { limit, watch } if limit.at_once.is_some() => {
            at_once::show(context, &limit, watch).await
        }
        Command::Show { limit, watch } => {
            let limiter = limit.open(context).await?;
            again_and_again(context, watch, async |context| {
                let decision = limiter.peek().await?;
                print(context, &limit.name, &decision)
            })
            .await
        }
        Command::Reset { limit } => Ok(limit.open(context).await?.reset().await?),
    }
}

fn print(context: &mut Context, name: &str, decision: &Decision) -> Result<()> {
    if context.out.is_json() {
        return context.out.json(&json!({
            "name": name,
            "allowed": decision.allowed,
            "remaining": decision.remaining,
            "retry_after_ms": whole_millis(decision.retry_after),
            "reset_after_ms": whole_millis(decision.reset_after),
            "degraded": decision.degraded,
        }));
    }
    let full = output::duration(decision.reset_after);
    context.out.line(format!("{} left, all of them again in {full}", thousands(decision.remaining)))
}

/// Not a fraction too early.
fn whole_millis(time: Duration) -> u64 {
    time.as_nanos().div_ceil(1_000_000) as u64
}

fn parse_rate(text: &str) -> Result<(u64, Duration), String> {
    let wrong = || "it takes so many in such a time, as in 10/s, 100/m or 3/5s".to_owned();
    let (permits, time) = text.split_once('/').ok_or_else(wrong)?;
    let one = if time.starts_with(|first: char| first.is_ascii_digit()) { "" } else { "1" };
    let time = parse_duration(&format!("{one}{time}")).map_err(|_| wrong())?;
    Ok((permits.parse().map_err(|_| wrong())?, time))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_waits_as_many_milliseconds_as_are_told_is_not_too_early() {
        for (micros, millis) in [(0, 0), (1, 1), (1_000, 1), (1_001, 2)] {
            assert_eq!(whole_millis(Duration::from_micros(micros)), millis);
        }
    }
}
