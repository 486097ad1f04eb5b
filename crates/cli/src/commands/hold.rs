//! Running a command for as long as something is held.

use std::{
    ffi::OsString,
    io::{self, IsTerminal as _},
    os::unix::process::ExitStatusExt as _,
    process::{ExitStatus, Stdio},
    time::Duration,
};

use clap::builder::styling::Style;
use commonhold::coordination::{Fence, Holders};
use futures_util::future::select_all;
use rustix::process::{Pid, Signal, kill_process, kill_process_group, test_kill_process_group};
use serde_json::{Value, json};
use tokio::{
    process::{Child, Command},
    signal::unix::{self, SignalKind},
};

use super::Context;
use crate::{
    bytes,
    failure::{Exit, Failure, Result},
    output::{self, FAINT, GOOD},
    table::{Align, Columns},
};

/// How long a command that is to end may take before it is killed, and a store to take back what was held.
const GRACE: Duration = Duration::from_secs(5);

/// How often it is looked whether a group of processes is gone.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);

/// How the command ended.
pub(crate) enum Ended {
    /// By itself.
    By(ExitStatus),
    /// Because what it ran under was lost.
    Lost,
}

/// The signals that ask a process to end. From when this is made they no longer end this one.
pub(crate) struct Signals([(Signal, unix::Signal); 4]);

impl Signals {
    pub(crate) fn new() -> Result<Self> {
        let catch = |signal: Signal| unix::signal(SignalKind::from_raw(signal.as_raw()));
        let [hang_up, interrupt, quit, terminate] = [Signal::HUP, Signal::INT, Signal::QUIT, Signal::TERM];
        Ok(Self([
            (hang_up, catch(hang_up)?),
            (interrupt, catch(interrupt)?),
            (quit, catch(quit)?),
            (terminate, catch(terminate)?),
        ]))
    }

    async fn next(&mut self) -> Signal {
        let received = self
            .0
            .iter_mut()
            .map(|(signal, caught)| Box::pin(async { caught.recv().await.map(|()| *signal) }));
        match select_all(received).await.0 {
            Some(signal) => signal,
            None => std::future::pending().await,
        }
    }

    /// Waits for something before a command runs. Asked to end it gives up, tidies up for 5 s at most, and fails; asked
    /// again, at once.
    pub(crate) async fn unless_stopped<T>(
        &mut self,
        wait: impl Future<Output = T>,
        tidy_up: impl Future<Output = ()>,
        what: &str,
    ) -> Result<T> {
        let signal = tokio::select! {
            done = wait => return Ok(done),
            signal = self.next() => signal,
        };
        self.tidy_up(tidy_up).await;
        if signal == Signal::INT {
            return Err(Failure::new(Exit::Interrupted, what));
        }
        output::note(what);
        Err(Failure::of_command(u8::try_from(128 + signal.as_raw()).unwrap_or(u8::MAX)))
    }

    /// Waits for what tidies up, for 5 s at most, and no longer once asked to end.
    pub(crate) async fn tidy_up(&mut self, work: impl Future<Output = ()>) {
        tokio::select! {
            () = work => {}
            () = tokio::time::sleep(GRACE) => {}
            _ = self.next() => {}
        }
    }
}

/// Runs a command until it ends or `lost` comes; then it is asked to end (SIGTERM) and after 5 s killed.
///
/// It sees the fencing token, if there is one, in `COMMONHOLD_FENCE` and the name in `COMMONHOLD_NAME`. Signals that ask to
/// end are passed on to it and to what it has started, which is a process group of its own. Where standard input is a
/// terminal it is not, because it could not read from there: SIGINT, SIGQUIT and SIGHUP reach it from the terminal then, and
/// SIGTERM only the command itself.
pub(crate) async fn run(
    command: &[OsString],
    name: &str,
    fence: Option<Fence>,
    lost: impl Future<Output = ()>,
    signals: &mut Signals,
) -> Result<Ended> {
    let grouped = !io::stdin().is_terminal();
    let mut child = start(command, name, fence, grouped)?;
    let id = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
    tokio::pin!(lost);
    loop {
        tokio::select! {
            status = child.wait() => return Ok(Ended::By(status?)),
            () = &mut lost => break,
            signal = signals.next() => {
                if let Some(id) = id.filter(|_| grouped || signal == Signal::TERM) {
                    send(id, grouped, signal);
                }
            }
        }
    }
    let Some(id) = id else { return Ok(Ended::Lost) };
    send(id, grouped, Signal::TERM);
    let all_end = async {
        child.wait().await?;
        // Nobody is told when the last of a group has ended.
        while grouped && test_kill_process_group(id).is_ok() {
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
        io::Result::Ok(())
    };
    match tokio::time::timeout(GRACE, all_end).await {
        Ok(ended) => ended?,
        Err(_) => {
            send(id, grouped, Signal::KILL);
            child.wait().await?;
        }
    }
    Ok(Ended::Lost)
}

/// Sends a signal to a command and, if it has a group of its own, to what it has started. Those that have just ended need
/// none.
fn send(id: Pid, grouped: bool, signal: Signal) {
    let _ = if grouped { kill_process_group(id, signal) } else { kill_process(id, signal) };
}

fn start(command: &[OsString], name: &str, fence: Option<Fence>, grouped: bool) -> Result<Child> {
    let (program, arguments) = command.split_first().ok_or_else(|| Failure::usage("no command to run"))?;
    let mut started = Command::new(program);
    if grouped {
        started.process_group(0);
    }
    let started = started
        .args(arguments)
        .envs(fence.map(|fence| ("COMMONHOLD_FENCE", fence.to_string())))
        .env("COMMONHOLD_NAME", name)
        .stdin(Stdio::inherit())
        .kill_on_drop(true)
        .spawn();
    started.map_err(|error| {
        // As shells and `env` say it.
        let code = if error.kind() == io::ErrorKind::NotFound { 127 } else { 126 };
        output::note(format!("{}: {error}", program.to_string_lossy()));
        Failure::of_command(code)
    })
}

/// `-- $CMD` where that is empty: nothing was run, which must not look like success.
pub(crate) fn refuse_empty_command() -> Result<()> {
    match std::env::args_os().any(|argument| argument == "--") {
        true => Err(Failure::usage("there is no command after --")),
        false => Ok(()),
    }
}

/// Gives back what a command ran under that has ended, and says what became of it where somebody should know. It waits no
/// longer than 5 s for the store, and no longer once it is asked to end.
pub(crate) async fn release(
    what: &str,
    released: impl Future<Output = commonhold::Result<bool>>,
    signals: &mut Signals,
) {
    let late =
        |why: &str| output::note(format!("warning: the {what} comes free after its --ttl only: {why}"));
    tokio::select! {
        released = released => match released {
            Ok(true) => {}
            Ok(false) => output::note(format!("warning: the {what} was lost before the command ended")),
            Err(error) => late(&error.to_string()),
        },
        () = tokio::time::sleep(GRACE) => late("the store does not answer"),
        _ = signals.next() => late("stopped before the store has answered"),
    }
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

/// The kind of a read-write lock.
pub(crate) const RWLOCK: &str = "rwlock";

/// Something that can be held, and who holds it.
pub(crate) struct Shown {
    /// `lock`, `semaphore`, `rwlock` or `election`.
    pub(crate) kind: &'static str,
    pub(crate) name: String,
    pub(crate) holders: Holders,
}

/// Prints who holds things, in the form that is asked for.
pub(crate) fn print(context: &mut Context, all: &[Shown]) -> Result<()> {
    if context.out.is_json() {
        for shown in all {
            context.out.json(&json(shown))?;
        }
        return Ok(());
    }
    let headings = ["NAME", "KIND", "HOLDER", "PERMITS", "FENCE", "TTL", "LEFT", "WAITING"];
    let texts = [Align::Left; 3].into_iter().chain([Align::Right; 5]);
    let mut columns = Columns::new(headings.into_iter().zip(texts));
    let mut rows: Vec<[String; 8]> = Vec::new();
    for Shown { kind, name, holders: Holders { holders, waiting, last_token } } in all {
        let (kind, name) = ((*kind).to_owned(), bytes::escape(name.as_bytes()).into_owned());
        for holder in holders {
            // Who writes has more of them than there can be readers.
            let permits = match holder.weight {
                2.. if kind == RWLOCK => "all".to_owned(),
                weight => weight.to_string(),
            };
            rows.push([
                name.clone(),
                kind.clone(),
                bytes::escape(&holder.label).into_owned(),
                permits,
                holder.token.to_string(),
                output::duration(holder.ttl),
                output::duration(holder.left),
                waiting.to_string(),
            ]);
        }
        if holders.is_empty() {
            let dash = || "-".to_owned();
            let last = last_token.to_string();
            rows.push([name, kind, dash(), dash(), last, dash(), dash(), waiting.to_string()]);
        }
    }
    rows.iter().for_each(|row| columns.measure(row));
    columns.print_headings(&mut context.out)?;
    for row in &rows {
        let [.., holder, _, _, _, _, _] = row;
        let plain = Style::new();
        let style = if holder == "-" { FAINT } else { GOOD };
        let styles = [plain, FAINT, style, plain, plain, FAINT, plain, plain];
        let cells: Vec<_> = row.iter().map(String::as_str).zip(styles).collect();
        columns.print(&mut context.out, &cells)?;
    }
    Ok(())
}

fn json(Shown { kind, name, holders: Holders { holders, waiting, last_token } }: &Shown) -> Value {
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
    json!({ "kind": kind, "name": name, "holders": holders, "waiting": waiting, "last_fence": last_token })
}
