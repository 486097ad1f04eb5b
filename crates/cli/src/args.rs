//! The command line: its commands and the options that all of them have.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::{
    commands::{
        bench, breaker, clear, completions, copy, count, counter, delete, doctor, elect, get, increment,
        limit, list, lock, put, take, ttl, watch, window,
    },
    output::{Color, Format},
};

/// Holds the state that the instances of an application have in common.
#[derive(Debug, Parser)]
#[command(name = "commonhold", version, subcommand_required = true, arg_required_else_help = true)]
#[command(after_help = "\
Stores:
  memory:          gone when the command ends
  disk:PATH        embedded, in a directory; one process at a time
  redis://HOST     also redis+sentinel://HOST,HOST/NAME, redis+cluster://HOST,HOST; rediss: with TLS
  postgres://HOST/DATABASE
  memcached://HOST,HOST
  Options ride in the query: disk:./data?durability=buffered

Examples:
  commonhold put user:1 alice
  commonhold get user:1
  commonhold --store disk:/var/lib/app list user: --long
  commonhold doctor
  commonhold window trace.csv --time TIMESTAMP --size 1m --sum ContextTokens

Configuration, the first that says something wins: flags; environment (COMMONHOLD_STORE,
COMMONHOLD_NAMESPACE, COMMONHOLD_OUTPUT, COMMONHOLD_CONFIG); commonhold.toml.
Every key of [store] has a variable, as in COMMONHOLD_STORE__DISK__DURABILITY=buffered. Where the
backend is redis or postgres and has no url, REDIS_URL or DATABASE_URL says it.

  namespace = \"orders\"
  output = \"table\"

  [store]
  backend = \"disk\"            # or: url = \"disk:./commonhold-data\"

  [store.disk]
  path = \"./commonhold-data\"
  durability = \"sync\"

Exit codes: 0 done; 1 the answer is no; 2 usage or configuration; 3 store unavailable or timed out;
4 damaged data; 130 stopped by Ctrl-C.")]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What every command takes.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "Global options")]
pub(crate) struct Global {
    /// The store, as a URL [env: COMMONHOLD_STORE] [default: disk:./commonhold-data]
    #[arg(long, global = true, value_name = "URL")]
    pub(crate) store: Option<String>,
    /// Only the part of the store whose keys begin with NS: and without it; A:B is B within A [env:
    /// COMMONHOLD_NAMESPACE]
    #[arg(long, global = true, value_name = "NS")]
    pub(crate) namespace: Option<String>,
    /// The form of the output [env: COMMONHOLD_OUTPUT] [default: table]
    #[arg(long, global = true, value_name = "FORM")]
    pub(crate) output: Option<Format>,
    /// The configuration file [env: COMMONHOLD_CONFIG] [default: commonhold.toml, if there is one]
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// When to use colours; NO_COLOR is honoured
    #[arg(long, global = true, value_name = "WHEN", default_value = "auto")]
    pub(crate) color: Color,
    /// Keys, prefixes and values are typed and printed with escapes, as `list` prints keys: \n \r \t \\ \xNN
    #[arg(long, global = true)]
    pub(crate) escaped: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Get(get::Args),
    Put(put::Args),
    Delete(delete::Args),
    List(list::Args),
    Count(count::Args),
    Clear(clear::Args),
    Increment(increment::Args),
    Ttl(ttl::Args),
    Take(take::Args),
    Watch(watch::Args),
    Copy(copy::Args),
    Doctor(doctor::Args),
    Bench(bench::Args),
    Lock(lock::Args),
    Elect(elect::Args),
    Counter(counter::Args),
    Limit(limit::Args),
    Breaker(breaker::Args),
    Window(Box<window::Args>),
    Completions(completions::Args),
}
