//! `lock`: runs a command while holding a lock, or shows who holds locks.

use std::{ffi::OsString, time::Duration};

use commonhold::{
    Prefix, Scan, Store,
    coordination::{Holders, Locks, RwLock, Semaphore},
};
use futures_util::TryStreamExt as _;

use super::{
    Context,
    hold::{self, Shown},
    parse_duration, parse_duration_or_none, unless_interrupted,
};
use crate::{
    failure::{Failure, Result},
    output::note,
};

/// Run a command while holding a lock, or show who holds locks
///
/// The command is run once the lock is had, and sees its fencing token in COMMONHOLD_FENCE. The lock is renewed until
/// the command ends. If the lock is lost meanwhile (the store is away for longer than --ttl) the command is ended:
/// SIGTERM, and after 5 seconds SIGKILL. Until then, or if this process itself is killed, the command goes on without a
/// lock, and the next holder may have begun: what it writes must carry the token.
///
/// With --at-once so many may hold it at a time: it is a semaphore then, apart from the lock of that name, and everybody must
/// name the same number. Its tokens tell the holders apart, and keep nobody from writing.
///
/// Without a command it shows who holds the lock; without a name, too, who holds any lock, semaphore or read-write lock.
///
/// Exit code: that of the command (127 if there is none of that name, 126 if it cannot be run, 128 and the number of
/// the signal that ended it); 1 if the lock was not had; 3 if it was lost, or the store is unavailable.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  export COMMONHOLD_STORE=redis://cache
  commonhold lock nightly-report -- ./report.sh
  commonhold lock deploy --wait 10m --ttl 1m -- make deploy
  commonhold lock cleanup --wait 0s -- ./cleanup.sh   # not had: exit code 1
  commonhold lock export --at-once 3 --wait 1h -- ./export.sh
  commonhold lock --watch

A disk: store is open in one process at a time; to hold a lock between processes takes a shared store.")]
pub(crate) struct Args {
    /// The name of the lock
    name: Option<String>,
    /// How long the lock is held after this process is gone: from 20ms to 365d
    #[arg(long, value_name = "DURATION", value_parser = parse_duration, default_value = "30s")]
    ttl: Duration,
    /// How long to wait for the lock; 0s is not to wait
    #[arg(long, value_name = "DURATION", value_parser = parse_duration_or_none, default_value = "10s")]
    wait: Duration,
    /// How many may hold it at a time, if more than one
    #[arg(long, value_name = "N", requires = "name")]
    at_once: Option<u64>,
    /// Show who holds it, again and again until Ctrl-C
    #[arg(long, conflicts_with = "command")]
    watch: bool,
    /// The command and its arguments. Where standard input is a terminal, what the command has started is not ended with it
    #[arg(last = true, value_name = "CMD", requires = "name")]
    command: Vec<OsString>,
}

const LOCK: &str = "lock";
const SEMAPHORE: &str = "semaphore";

pub(super) async fn run(context: &mut Context, args: Args) -> Result<()> {
    let store = context.open().await?;
    let locks = Locks::new(store.clone())?;
    match &args.name {
        Some(name) if !args.command.is_empty() => run_under(&locks, name, &args).await,
        name => {
            hold::refuse_empty_command()?;
            let list = async || match name {
                Some(name) => {
                    let (kind, holders) = match args.at_once {
                        Some(permits) => (SEMAPHORE, locks.semaphore(name, permits)?.show().await?),
                        None => (LOCK, locks.show(name).await?),
                    };
                    Ok(vec![Shown { kind, name: name.clone(), holders }])
                }
                None => {
                    let lock = async |name: &str| Ok(locks.show(name).await?);
                    // How many permits there are is not in the store.
                    let semaphore = async |name: &str| Ok(locks.semaphore(name, 1)?.show().await?);
                    let rw_lock = async |name: &str| Ok(locks.rw_lock(name)?.show().await?);
                    let mut all = held(&store, LOCK, Locks::KEY_PREFIX, lock).await?;
                    all.extend(held(&store, SEMAPHORE, Semaphore::KEY_PREFIX, semaphore).await?);
                    all.extend(held(&store, hold::RWLOCK, RwLock::KEY_PREFIX, rw_lock).await?);
                    Ok(all)
                }
            };
            show(context, args.watch, list).await
        }
    }
}

async fn run_under(locks: &Locks, name: &str, args: &Args) -> Result<()> {
    let semaphore = args.at_once.map(|permits| locks.semaphore(name, permits)).transpose()?;
    let kind = if semaphore.is_some() { SEMAPHORE } else { LOCK };
    let claim = async {
        match (&semaphore, args.wait) {
            (None, Duration::ZERO) => locks.try_acquire(name, args.ttl).await,
            (None, wait) => locks.acquire(name, args.ttl, wait).await,
            (Some(semaphore), Duration::ZERO) => semaphore.try_acquire(1, args.ttl).await,
            (Some(semaphore), wait) => semaphore.acquire(1, args.ttl, wait).await,
        }
    };
    let mut signals = hold::Signals::new()?;
    let claimed = signals.unless_stopped(claim, locks.settled(), "stopped before the lock was had").await?;
    let Ok(Some(guard)) = claimed else {
        // What a store that hung grants later would be held by nobody for as long as --ttl.
        signals.tidy_up(locks.settled()).await;
        claimed?;
        let others = if semaphore.is_some() { "as many others as may" } else { "somebody else" };
        let failure = Failure::no(format!("the {kind} {name:?} is held by {others}"));
        return Err(failure.help("without a command, `commonhold lock` shows who holds what"));
    };
    let lost = guard.lost();
    match hold::run(&args.command, name, Some(guard.fence()), lost.cancelled_owned(), &mut signals).await {
        Ok(hold::Ended::By(status)) => {
            hold::release(kind, guard.release(), &mut signals).await;
            hold::exit_as(status)
        }
        Ok(hold::Ended::Lost) => Err(hold::lost(kind, name)),
        Err(failure) => {
            hold::release(kind, guard.release(), &mut signals).await;
            Err(failure)
        }
    }
}

/// All whose keys begin with this and that somebody holds or waits for, by name.
pub(super) async fn held(
    store: &Store,
    kind: &'static str,
    prefix: &str,
    show: impl AsyncFn(&str) -> Result<Holders>,
) -> Result<Vec<Shown>> {
    let all = all(store, prefix, show).await?.into_iter();
    let held = all.filter(|(_, holders)| !holders.holders.is_empty() || holders.waiting > 0);
    Ok(held.map(|(name, holders)| Shown { kind, name, holders }).collect())
}

/// What there is to show of all whose keys begin with this, by name.
pub(super) async fn all<T>(
    store: &Store,
    prefix: &str,
    show: impl AsyncFn(&str) -> Result<T>,
) -> Result<Vec<(String, T)>> {
    let mut all = Vec::new();
    for name in names(store, prefix).await? {
        match show(&name).await {
            Ok(shown) => all.push((name, shown)),
            // Something of somebody else's may lie under such a key.
            Err(failure) if failure.is_damage() => note(failure.to_string()),
            Err(failure) => return Err(failure),
        }
    }
    Ok(all)
}

/// The names of those whose keys begin with this, in order.
async fn names(store: &Store, prefix: &str) -> Result<Vec<String>> {
    let name = async |(key, _): (commonhold::Key, _)| {
        let name = std::str::from_utf8(key.as_bytes()).ok().and_then(|key| key.strip_prefix(prefix));
        Ok(name.filter(|name| !name.is_empty()).map(str::to_owned))
    };
    let scan = Scan::prefix(Prefix::new(prefix)?).keys_only();
    let mut names: Vec<String> = store.scan(scan).try_filter_map(name).try_collect().await?;
    names.sort();
    Ok(names)
}

/// How often what is shown live is looked at.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// Shows holders once or live.
pub(super) async fn show(
    context: &mut Context,
    live: bool,
    list: impl AsyncFn() -> Result<Vec<Shown>>,
) -> Result<()> {
    again_and_again(context, live, async |context| hold::print(context, &list().await?)).await
}

/// Prints something once, or live until Ctrl-C: on a terminal in the same place.
pub(super) async fn again_and_again(
    context: &mut Context,
    live: bool,
    print: impl AsyncFn(&mut Context) -> Result<()>,
) -> Result<()> {
    let look = async {
        let mut shown = false;
        loop {
            if live && context.out.terminal && !context.out.is_json() {
                // Clears the screen.
                context.out.raw(b"\x1b[2J\x1b[H")?;
            }
            match print(context).await {
                // A store that comes back is shown again.
                Err(failure) if live && shown && failure.is_unavailable() => note(failure.to_string()),
                printed => printed?,
            }
            shown = true;
            context.out.flush()?;
            if !live {
                return Ok(());
            }
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
    };
    unless_interrupted(look, "without --watch it is shown once").await
}
