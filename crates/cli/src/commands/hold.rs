//! Running a command for as long as something is held.

use std::{
    ffi::OsString,
    io::IsTerminal as _,
    os::unix::process::ExitStatusExt as _,
    process::{ExitStatus, Stdio},
    time::Duration,
};

use clap::builder::styling::Style;
use commonhold::coordination::{Fence, Holders};
use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use serde_json::{Value, json};
use tokio::{
    process::{Child, Command},
    signal::unix::{SignalKind, signal},
};

use super::Context;
use crate::{
    bytes,
    failure::{Exit, Failure, Result},
    output::{self, FAINT, GOOD},
    table::{Align, Columns},
};

/// How long a command that is to end may take before it is killed.
const GRACE: Duration = Duration::from_secs(5);

/// How the command ended.
pub(crate) enum Ended {
    /// By itself.
    By(ExitStatus),
    /// Because what it ran under was lost.
    Lost,
}

/// Runs a command until it ends or `lost` comes; then it is asked to end (SIGTERM) and after 5 s killed.
///
/// It sees the fencing token in `COMMONHOLD_FENCE` and the name in `COMMONHOLD_NAME`. SIGTERM and SIGINT are passed on to
/// it and to what it has started, which is a process group of its own. Where standard input is a terminal it is not,
/// because it could not read from there: SIGINT reaches it from the terminal then, and SIGTERM only the command itself.
pub(crate) async fn run(
    command: &[OsString],
    name: &str,
    fence: Fence,
    lost: impl Future<Output = ()>,
) -> Result<Ended> {
    let grouped = !std::io::stdin().is_terminal();
    let mut child = start(command, name, fence, grouped)?;
    let send = |child: &Child, signal| {
        let pid = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        // One that has just ended needs no signal.
        let _ =
            pid.map(|pid| if grouped { kill_process_group(pid, signal) } else { kill_process(pid, signal) });
    };
    let mut terminate = signal(SignalKind::terminate())?;
    // Caught, so that this process is there to give back what it holds when the command has ended.
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::pin!(lost);
    loop {
        tokio::select! {
            status = child.wait() => return Ok(Ended::By(status?)),
            () = &mut lost => {
                send(&child, Signal::TERM);
                if tokio::time::timeout(GRACE, child.wait()).await.is_err() {
                    send(&child, Signal::KILL);
                    child.wait().await?;
                }
                return Ok(Ended::Lost);
            }
            _ = terminate.recv() => send(&child, Signal::TERM),
            _ = interrupt.recv() => if grouped { send(&child, Signal::INT) },
        }
    }
}

fn start(command: &[OsString], name: &str, fence: Fence, grouped: bool) -> Result<Child> {
    let (program, arguments) = command.split_first().ok_or_else(|| Failure::usage("no command to run"))?;
    let mut started = Command::new(program);
    if grouped {
        started.process_group(0);
    }
    let started = started
        .args(arguments)
        .env("COMMONHOLD_FENCE", fence.to_string())
        .env("COMMONHOLD_NAME", name)
        .stdin(Stdio::inherit())
        .kill_on_drop(true)
        .spawn();
    started.map_err(|error| {
        // As shells and `env` say it.
        let code = if error.kind() == std::io::ErrorKind::NotFound { 127 } else { 126 };
        output::note(format!("{}: {error}", program.to_string_lossy()));
        Failure::of_command(code)
    })
}

/// Ends as the command did.
pub(crate) fn exit_as(status: ExitStatus) -> Result<()> {
    // As shells say it.
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(1);
    match u8::try_from(code).unwrap_or(u8::MAX) {
        0 => Ok(()),
        code => Err(Failure::of_command(code)),
    }
}

/// The failure when what the command ran under was lost.
pub(crate) fn lost(what: &str, name: &str) -> Failure {
    Failure::new(
        Exit::Unavailable,
        format!("the {what} {} was lost, and the command ended", bytes::escape(name.as_bytes())),
    )
    .help("the store was away for longer than --ttl, or this process was stopped for so long")
}

/// Prints who holds things: of each name, in the form that is asked for.
pub(crate) fn print(context: &mut Context, all: &[(String, Holders)]) -> Result<()> {
    if context.out.is_json() {
        for (name, holders) in all {
            context.out.json(&json(name, holders))?;
        }
        return Ok(());
    }
    let headings = ["NAME", "HOLDER", "FENCE", "TTL", "LEFT", "WAITING"];
    let sides = [Align::Left, Align::Left, Align::Right, Align::Right, Align::Right, Align::Right];
    let mut columns = Columns::new(headings.into_iter().zip(sides));
    let mut rows: Vec<[String; 6]> = Vec::new();
    for (name, Holders { holders, waiting, last_token }) in all {
        let name = bytes::escape(name.as_bytes()).into_owned();
        for holder in holders {
            rows.push([
                name.clone(),
                bytes::escape(&holder.label).into_owned(),
                holder.token.to_string(),
                output::duration(holder.ttl),
                output::duration(holder.left),
                waiting.to_string(),
            ]);
        }
        if holders.is_empty() {
            let dash = || "-".to_owned();
            rows.push([name, dash(), last_token.to_string(), dash(), dash(), waiting.to_string()]);
        }
    }
    rows.iter().for_each(|row| columns.measure(row));
    columns.print_headings(&mut context.out)?;
    for [name, holder, token, ttl, left, waiting] in &rows {
        let style = if holder == "-" { FAINT } else { GOOD };
        let plain = Style::new();
        columns.print(
            &mut context.out,
            &[(name, plain), (holder, style), (token, plain), (ttl, FAINT), (left, plain), (waiting, plain)],
        )?;
    }
    Ok(())
}

fn json(name: &str, Holders { holders, waiting, last_token }: &Holders) -> Value {
    let holders: Vec<Value> = holders
        .iter()
        .map(|holder| {
            json!({
                "holder": String::from_utf8_lossy(&holder.label),
                "weight": holder.weight,
                "fence": holder.token,
                "ttl_ms": holder.ttl.as_millis() as u64,
                "left_ms": holder.left.as_millis() as u64,
            })
        })
        .collect();
    json!({ "name": name, "holders": holders, "waiting": waiting, "last_fence": last_token })
}
