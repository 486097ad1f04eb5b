//! The commands, one file each.

pub(crate) mod bench;
pub(crate) mod breaker;
pub(crate) mod clear;
pub(crate) mod completions;
pub(crate) mod copy;
pub(crate) mod count;
pub(crate) mod counter;
pub(crate) mod delete;
pub(crate) mod doctor;
pub(crate) mod elect;
pub(crate) mod get;
mod hold;
pub(crate) mod increment;
pub(crate) mod limit;
pub(crate) mod list;
pub(crate) mod lock;
pub(crate) mod put;
pub(crate) mod take;
pub(crate) mod ttl;
pub(crate) mod watch;
pub(crate) mod window;

use std::{ffi::OsStr, future::Future, process, time::Duration};

use commonhold::{Key, Prefix, Store};
use tokio::signal;

use crate::{
    args::{Cli, Command},
    bytes,
    config::Settings,
    failure::{Exit, Failure, Result},
    output::{Format, Output},
};

/// Runs the command.
pub(crate) async fn run(cli: Cli) -> Result<()> {
    if let Command::Completions(args) = &cli.command {
        return completions::run(args);
    }
    let settings = Settings::load(&cli.global)?;
    if settings.output == Format::Csv && !matches!(cli.command, Command::Window(_)) {
        return Err(
            Failure::usage("only `window` has csv as output").help("--output takes table or json here")
        );
    }
    let out = Output::new(settings.output, cli.global.color);
    let mut context = Context { settings, out, escaped: cli.global.escaped };
    let context = &mut context;
    match cli.command {
        Command::Get(args) => get::run(context, &args).await,
        Command::Put(args) => put::run(context, args).await,
        Command::Delete(args) => delete::run(context, &args).await,
        Command::List(args) => list::run(context, &args).await,
        Command::Count(args) => count::run(context, &args).await,
        Command::Clear(args) => clear::run(context, &args).await,
        Command::Increment(args) => increment::run(context, &args).await,
        Command::Ttl(args) => ttl::run(context, &args).await,
        Command::Take(args) => take::run(context, &args).await,
        Command::Watch(args) => watch::run(context, &args).await,
        Command::Copy(args) => copy::run(context, &args).await,
        Command::Doctor(_) => doctor::run(context).await,
        Command::Bench(args) => bench::run(context, args).await,
        Command::Lock(args) => lock::run(context, args).await,
        Command::Counter(args) => counter::run(context, args).await,
        Command::Limit(args) => limit::run(context, args).await,
        Command::Breaker(args) => breaker::run(context, args).await,
        Command::Elect(args) => elect::run(context, args).await,
        Command::Window(args) => window::run(context, *args).await,
        Command::Completions(args) => completions::run(&args),
    }?;
    context.out.flush()
}

/// What a command works with.
#[derive(Debug)]
pub(crate) struct Context {
    pub(crate) settings: Settings,
    pub(crate) out: Output,
    escaped: bool,
}

impl Context {
    pub(crate) async fn open(&self) -> Result<Store> {
        self.settings.open().await
    }

    pub(crate) fn key(&self, argument: &OsStr) -> Result<Key> {
        Ok(Key::new(self.bytes(argument)?)?)
    }

    pub(crate) fn prefix(&self, argument: Option<&OsStr>) -> Result<Prefix> {
        Ok(Prefix::new(self.bytes(argument.unwrap_or_default())?)?)
    }

    pub(crate) fn bytes(&self, argument: &OsStr) -> Result<Vec<u8>> {
        bytes::argument(argument, self.escaped)
    }

    /// Prints a value: exactly as it is, except where a person sees it.
    pub(crate) fn print_value(&mut self, value: &[u8], raw: bool) -> Result<()> {
        if self.escaped {
            return self.out.line(bytes::escape(value));
        }
        if raw || !self.out.terminal {
            return self.out.raw(value);
        }
        if !bytes::is_text(value) {
            return self.out.line(bytes::escape(value));
        }
        self.out.raw(value)?;
        if value.ends_with(b"\n") { Ok(()) } else { self.out.raw(b"\n") }
    }
}

/// There is no entry under this key.
pub(crate) fn missing(key: &Key) -> Failure {
    Failure::no(format!("no entry: {}", bytes::escape(key.as_bytes())))
}

/// Does long work until it is done or Ctrl-C is pressed, and says then how to go on.
pub(crate) async fn unless_interrupted<T>(
    work: impl Future<Output = Result<T>>,
    go_on: impl Into<String>,
) -> Result<T> {
    tokio::select! {
        // First the signal: once the work has begun, it is listened for.
        biased;
        () = interrupted() => Err(Failure::new(Exit::Interrupted, "stopped").help(go_on)),
        result = work => result,
    }
}

/// Returns when Ctrl-C is pressed. Pressed once more it ends the process, whatever is still going on.
pub(crate) async fn interrupted() {
    if signal::ctrl_c().await.is_err() {
        // Without a handler the signal ends the process by itself.
        std::future::pending::<()>().await;
    }
    tokio::spawn(async {
        let _ = signal::ctrl_c().await;
        process::exit(Exit::Interrupted as i32);
    });
}

/// Parses a duration that may be none: 0s.
pub(crate) fn parse_duration_or_none(text: &str) -> Result<Duration, String> {
    let none = text.trim_end_matches(char::is_alphabetic) == "0";
    if none { Ok(Duration::ZERO) } else { parse_duration(text) }
}

/// Parses a time to live.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, String> {
    commonhold::url::parse_duration(text)
        .ok_or_else(|| "it takes a duration of more than zero, as in 250ms, 10s or 1h30m".to_owned())
}
