//! `completions`: scripts that let a shell complete the command line.

use std::io::{self, Write as _};

use clap::CommandFactory as _;
use clap_complete::Shell;

use crate::{args::Cli, failure::Result};

/// Print the script with which a shell completes this command line
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  commonhold completions bash > ~/.local/share/bash-completion/completions/commonhold
  commonhold completions zsh > ~/.zfunc/_commonhold
  commonhold completions fish > ~/.config/fish/completions/commonhold.fish")]
pub(crate) struct Args {
    /// The shell
    shell: Shell,
}

pub(super) fn run(args: &Args) -> Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "commonhold", &mut script);
    Ok(io::stdout().write_all(&script)?)
}
