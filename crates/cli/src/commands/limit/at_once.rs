//! Concurrency limits: a command that runs while it holds permits, and who holds how many.

use std::time::{Duration, Instant};

use clap::builder::styling::Style;
use commonhold::{
    Retry,
    coordination::limit::{ConcurrencyLimiter, Decision, Instance, OnUnavailable, Permit},
};
use serde_json::json;

use super::{LimitArgs, Take};
use crate::{
    bytes,
    commands::{Context, hold, lock::again_and_again},
    failure::{Exit, Failure, Result},
    output::{self, FAINT, thousands},
    table::{Align, Columns},
};

/// As `lock` has it.
const TTL: Duration = Duration::from_secs(30);
/// How long to wait before a store that is away is asked again.
const RETRY_DELAY: Duration = Duration::from_millis(200);
/// For whoever takes nothing: long enough for any store.
const NO_LEASE: Duration = Duration::from_secs(3_600);

async fn open(context: &Context, limit: &LimitArgs, ttl: Duration) -> Result<ConcurrencyLimiter> {
    let (store, permits) = (context.open().await?, limit.at_once.unwrap_or_default());
    // Who runs beside as many as there may be is none too many only if the store says so.
    Ok(ConcurrencyLimiter::distributed(store, &limit.name, permits, ttl, OnUnavailable::Refuse)?)
}

/// Runs a command while it holds permits.
pub(super) async fn run(context: &Context, take: Take) -> Result<()> {
    let Take { limit, permits, wait, ttl, command } = take;
    if command.is_empty() {
        hold::refuse_empty_command()?;
        return Err(Failure::usage("permits of --at-once are held while a command runs: give one after --"));
    }
    let limiter = open(context, &limit, ttl.unwrap_or(TTL)).await?;
    let mut signals = hold::Signals::new()?;
    // Takes back a request that is still under way, and what it may have brought.
    let tidy_up = || async { drop(limiter.release().await) };
    let claim = claim(&limiter, permits, wait);
    let claimed = signals.unless_stopped(claim, tidy_up(), "stopped before the permits were had").await?;
    let permit = match claimed {
        Ok(Ok(permit)) => permit,
        claimed => {
            signals.tidy_up(tidy_up()).await;
            if claimed?.is_err_and(|refused| refused.degraded) {
                // It says what is the matter with the store.
                limiter.show().await?;
                return Err(Failure::new(Exit::Unavailable, "the store did not answer in time"));
            }
            let failure = Failure::no(format!("over the limit {:?}: so many are not free", limit.name));
            return Err(failure.help("`commonhold limit show NAME --at-once N` shows who holds them"));
        }
    };
    let lost = permit.lost().cancelled_owned();
    let ended = hold::run(&command, &limit.name, None, lost, &mut signals).await;
    let release = async {
        let held = permit.is_held();
        drop(permit);
        limiter.release().await.map(|()| held)
    };
    match ended {
        Ok(hold::Ended::By(status)) => {
            hold::release("permit", release, &mut signals).await;
            hold::exit_as(status)
        }
        Ok(hold::Ended::Lost) => Err(hold::lost("permit of", &limit.name)),
        Err(failure) => {
            hold::release("permit", release, &mut signals).await;
            Err(failure)
        }
    }
}

/// Waits for permits, also for a store that is away.
async fn claim(
    limiter: &ConcurrencyLimiter,
    permits: u64,
    wait: Duration,
) -> commonhold::Result<std::result::Result<Permit, Decision>> {
    if wait.is_zero() {
        return limiter.try_acquire(permits).await;
    }
    let began = Instant::now();
    loop {
        let left = wait.saturating_sub(began.elapsed());
        match limiter.acquire_timeout(permits, left).await {
            Err(error) if error.retry() != Retry::Never && left > RETRY_DELAY => {
                tokio::time::sleep(RETRY_DELAY).await;
            }
            claimed => return claimed,
        }
    }
}

/// Shows who holds how many permits.
pub(super) async fn show(context: &mut Context, limit: &LimitArgs, live: bool) -> Result<()> {
    let limiter = open(context, limit, NO_LEASE).await?;
    again_and_again(context, live, async |context| {
        print(context, &limit.name, limiter.limit(), &limiter.show().await?)
    })
    .await
}

fn print(context: &mut Context, name: &str, limit: u64, instances: &[Instance]) -> Result<()> {
    let held: u64 = instances.iter().map(|instance| instance.held).sum();
    let free = limit.saturating_sub(held);
    if context.out.is_json() {
        let instances: Vec<_> = instances
            .iter()
            .map(|Instance { label, held, wanted, left }| {
                json!({
                    "holder": String::from_utf8_lossy(label),
                    "held": held,
                    "wanted": wanted,
                    "left_ms": left.as_millis() as u64,
                })
            })
            .collect();
        return context
            .out
            .json(&json!({ "name": name, "limit": limit, "free": free, "holders": instances }));
    }
    context.out.line(format!("{} of {} free", thousands(free), thousands(limit)))?;
    if instances.is_empty() {
        return Ok(());
    }
    let headings = [
        ("HOLDER", Align::Left),
        ("PERMITS", Align::Right),
        ("WANTED", Align::Right),
        ("LEFT", Align::Right),
    ];
    let mut columns = Columns::new(headings);
    let rows: Vec<_> = instances
        .iter()
        .map(|Instance { label, held, wanted, left }| {
            let holder = bytes::escape(label).into_owned();
            [holder, thousands(held), thousands(wanted), output::duration(*left)]
        })
        .collect();
    rows.iter().for_each(|row| columns.measure(row));
    columns.print_headings(&mut context.out)?;
    for row in &rows {
        let styles = [output::GOOD, Style::new(), Style::new(), FAINT];
        let cells: Vec<_> = row.iter().map(String::as_str).zip(styles).collect();
        columns.print(&mut context.out, &cells)?;
    }
    Ok(())
}
