//! `copy`: the entries of one store into another.

use std::{ffi::OsString, fmt, fs, time::Instant};

use commonhold::{
    Scheme,
    copy::{Compared, Copy, Progress},
    url::StoreUrl,
};
use indicatif::{ProgressBar, ProgressState, ProgressStyle};
use serde::Serialize;

use super::{Context, unless_interrupted};
use crate::{
    bytes,
    config::{local_path, missing_path},
    failure::{Failure, Result},
    output::{self, entries, note, thousands},
};

/// Copy the entries of one store into another
///
/// Entries keep the time they have left. What the target has under the same keys is replaced; what else it has
/// stays. Stopped at any moment, the same command goes on where it was; from a store that has no order in its keys
/// (Redis) it reads all of them again, but writes only what the target does not have yet. At the end every entry of
/// the source is compared with that of the target. Memory stays flat, however many entries there are. --store is not
/// used; --namespace is that of both stores.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  commonhold copy disk:./commonhold-data disk:/mnt/backup
  commonhold copy disk:./old disk:./new --prefix user:
  commonhold copy redis://localhost 'postgres://app@db/app?table=state'
  commonhold copy sled:./old disk:./new
  commonhold copy disk:./old 'disk:./new?durability=buffered' --restart

Exits with 1 if the two differ at the end, as they do when the source is changed meanwhile.")]
pub(crate) struct Args {
    /// The store to copy from, as a URL
    from: String,
    /// The store to copy to, as a URL
    to: String,
    /// Only keys that begin with this, byte for byte
    #[arg(long)]
    prefix: Option<OsString>,
    /// Begin anew instead of going on where an interrupted copy stopped
    #[arg(long)]
    restart: bool,
}

pub(super) async fn run(context: &mut Context, args: &Args) -> Result<()> {
    if place(&args.from) == place(&args.to) {
        return Err(Failure::usage("FROM and TO are the same store").help("copy to another one"));
    }
    if let Some(path) = missing_path(&args.from) {
        let path = path.display();
        return Err(Failure::usage(format!("{path}: there is no such store to copy from")));
    }
    let work = copy(context, args);
    unless_interrupted(work, "what is copied stays; the same command goes on from there").await
}

async fn copy(context: &mut Context, args: &Args) -> Result<()> {
    let began = Instant::now();
    let prefix = context.prefix(args.prefix.as_deref())?;
    let from = context.settings.open_url(&args.from).await?;
    let to = context.settings.open_url(&args.to).await?;
    let source =
        format!("{} {}", place(&args.from), context.settings.namespace.as_deref().unwrap_or_default());
    let copy = Copy::new(&from, &to, prefix, &source)?;
    if args.restart {
        copy.forget().await?;
    }
    let (start, end) = transfer(&copy).await?;
    let compared = compare(&copy, end.entries).await?;
    copy.forget().await?;
    report(context, &start, &end, &compared, began)?;
    verdict(&compared)
}

async fn transfer(copy: &Copy<'_>) -> Result<(Progress, Progress)> {
    let start = copy.progress().await?;
    if start.after.is_some() {
        note(format!("going on behind {} copied before", entries(start.entries)));
    }
    if start.skips {
        note("beginning again, as the source has no order: what is copied already is not written again");
    }
    let bar = bar("copying", copy.from.count(&copy.prefix).await?);
    bar.set_position(start.entries);
    bar.reset_eta();
    let progress = copy.run(start.clone(), |progress| bar.set_position(progress.entries)).await;
    bar.finish_and_clear();
    Ok((start, progress?))
}

async fn compare(copy: &Copy<'_>, entries: u64) -> Result<Compared> {
    let bar = bar("comparing", entries);
    let compared = copy.compare(|entries| bar.inc(entries)).await;
    bar.finish_and_clear();
    Ok(compared?)
}

/// On a terminal; elsewhere it shows nothing.
fn bar(what: &'static str, entries: u64) -> ProgressBar {
    let template = "{msg:>9} {wide_bar:.cyan/dim} {human_pos} of {human_len}, {rate}, {eta} left";
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    let rate = |state: &ProgressState, line: &mut dyn fmt::Write| {
        let _ = write!(line, "{} a second", thousands(state.per_sec().round()));
    };
    let style = style.with_key("rate", rate).progress_chars("━╸─");
    ProgressBar::new(entries).with_style(style).with_message(what)
}

/// Options that say which part of a server or database a store is.
const PLACES: [&str; 6] = ["prefix", "database", "service", "schema", "table", "tree"];

/// What tells stores apart, as far as their URLs do. Without user and password: it may be printed.
fn place(url: &str) -> String {
    let Ok(mut parsed) = StoreUrl::parse(url) else { return String::new() };
    let schemes = commonhold::schemes();
    let Some(scheme) = schemes.iter().find(|scheme| scheme.name == parsed.scheme()) else {
        return String::new();
    };
    let address = match (scheme.network, local_path(url)) {
        (true, _) => match parsed.authority(default_port(scheme)) {
            Ok(authority) => {
                let mut hosts: Vec<_> = authority.hosts.iter().map(ToString::to_string).collect();
                hosts.sort_unstable();
                format!("//{}/{}", hosts.join(","), authority.path)
            }
            Err(_) => String::new(),
        },
        (false, Some(path)) => fs::canonicalize(&path).unwrap_or(path).display().to_string(),
        (false, None) => String::new(),
    };
    let mut place = format!("{}:{address}", scheme.backend);
    for name in PLACES {
        if let Some(value) = parsed.text(name) {
            place.push_str(&format!(" {name}={value}"));
        }
    }
    place
}

fn default_port(scheme: &Scheme) -> u16 {
    match scheme.backend {
        _ if scheme.name.ends_with("+sentinel") => 26379,
        "redis" => 6379,
        "postgres" => 5432,
        _ => 11211,
    }
}

#[derive(Serialize)]
struct Report {
    copied: u64,
    copied_before: u64,
    skipped: u64,
    verified: u64,
    different: u64,
    expired_meanwhile: u64,
    further_in_target: Option<u64>,
    checksum: String,
    seconds: f64,
}

fn report(
    context: &mut Context,
    start: &Progress,
    end: &Progress,
    compared: &Compared,
    began: Instant,
) -> Result<()> {
    let elapsed = began.elapsed();
    let report = Report {
        copied: end.entries - start.entries - end.skipped,
        skipped: end.skipped,
        copied_before: start.entries,
        verified: compared.same,
        different: compared.different,
        expired_meanwhile: compared.gone,
        further_in_target: compared.further,
        checksum: format!("{:016x}", compared.checksum),
        seconds: elapsed.as_secs_f64(),
    };
    if context.out.is_json() {
        context.out.json(&report)?;
        return context.out.flush();
    }
    let rate = report.copied as f64 / elapsed.as_secs_f64();
    let mut lines = vec![format!(
        "copied {} in {}, {} a second",
        entries(report.copied),
        output::duration(elapsed),
        thousands(rate.round())
    )];
    lines.push(format!(
        "verified {}, the same on both sides, checksum {}",
        entries(report.verified),
        report.checksum
    ));
    if report.skipped > 0 {
        lines.push(format!("{} were there already", entries(report.skipped)));
    }
    if compared.gone > 0 {
        lines.push(format!("{} expired meanwhile", entries(compared.gone)));
    }
    if let Some(further @ 1..) = compared.further {
        lines.push(format!("the target has {} beside these, left as they are", entries(further)));
    }
    lines.iter().try_for_each(|line| context.out.line(line))?;
    context.out.flush()
}

fn verdict(compared: &Compared) -> Result<()> {
    if compared.different == 0 {
        return Ok(());
    }
    let named: Vec<_> = compared.named.iter().map(|key| bytes::escape(key.as_bytes())).collect();
    let more = if compared.different > named.len() as u64 { ", .." } else { "" };
    Err(Failure::no(format!(
        "not the same on both sides: {}: {}{more}",
        entries(compared.different),
        named.join(", ")
    ))
    .help("the source was changed while it was copied; the same command copies it anew"))
}
