//! `elect`: runs a command while this process leads, or shows who leads.

use std::{ffi::OsString, time::Duration};

use commonhold::coordination::Election;

use super::{
    Context,
    hold::{self, Shown},
    lock, parse_duration,
};
use crate::{failure::Result, output::note};

/// Run a command while this process is the leader, or show who leads
///
/// It waits until it is chosen. The command sees its fencing token in COMMONHOLD_FENCE. If the lead is lost meanwhile,
/// the command is ended (SIGTERM, and after 5 seconds SIGKILL; the next leader may have begun then) and it campaigns
/// again; when the command ends by itself it resigns and ends too.
///
/// Without a command it shows who leads, in this election or in all.
///
/// Exit code: that of the command (127 if there is none of that name, 126 if it cannot be run, 128 and the number of
/// the signal that ended it); 3 if the store is unavailable.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  export COMMONHOLD_STORE=redis://cache
  commonhold elect scheduler -- ./scheduler
  commonhold elect scheduler --value 10.0.0.7:8080 --ttl 5s -- ./scheduler
  commonhold elect --watch")]
pub(crate) struct Args {
    /// The name of the election
    name: Option<String>,
    /// What the others see of the leader, at most 1 KiB: the process and the machine unless given
    #[arg(long)]
    value: Option<String>,
    /// How long the lead lasts after this process is gone: from 20ms to 365d
    #[arg(long, value_name = "DURATION", value_parser = parse_duration, default_value = "10s")]
    ttl: Duration,
    /// Show who leads, again and again until Ctrl-C
    #[arg(long, conflicts_with = "command")]
    watch: bool,
    /// The command and its arguments. Where standard input is a terminal, what the command has started is not ended with it
    #[arg(last = true, value_name = "CMD", requires = "name")]
    command: Vec<OsString>,
}

const KIND: &str = "election";

pub(super) async fn run(context: &mut Context, args: Args) -> Result<()> {
    let store = context.open().await?;
    match &args.name {
        Some(name) if !args.command.is_empty() => run_leading(Election::new(store, name)?, name, &args).await,
        name => {
            hold::refuse_empty_command()?;
            let show = async |name: &str| Ok(Election::new(store.clone(), name)?.show().await?);
            let list = async || match name {
                Some(name) => Ok(vec![Shown { kind: KIND, name: name.clone(), holders: show(name).await? }]),
                None => lock::held(&store, KIND, Election::KEY_PREFIX, show).await,
            };
            lock::show(context, args.watch, list).await
        }
    }
}

async fn run_leading(election: Election, name: &str, args: &Args) -> Result<()> {
    let value = args.value.clone().unwrap_or_else(commonhold::coordination::process_name);
    let mut signals = hold::Signals::new()?;
    loop {
        let campaign = election.campaign(&value, args.ttl);
        let lead =
            signals.unless_stopped(campaign, election.settled(), "stopped before it was chosen").await??;
        let lost = lead.lost().cancelled_owned();
        match hold::run(&args.command, name, Some(lead.fence()), lost, &mut signals).await {
            Ok(hold::Ended::By(status)) => {
                hold::release("lead", lead.resign(), &mut signals).await;
                return hold::exit_as(status);
            }
            Ok(hold::Ended::Lost) => note("the lead was lost, and the command ended: campaigning again"),
            Err(failure) => {
                hold::release("lead", lead.resign(), &mut signals).await;
                return Err(failure);
            }
        }
    }
}
