//! Why a command did not do what it was asked, as people and scripts are told.

use std::{fmt, io, process::ExitCode};

use commonhold::{Error, ErrorKind};

/// What every command returns.
pub(crate) type Result<T, E = Failure> = std::result::Result<T, E>;

/// What is printed on standard error, and the code with which the process exits.
#[derive(Debug)]
pub(crate) struct Failure {
    exit: Exit,
    message: String,
    help: Option<String>,
    /// The code of a command that was run, which has told by itself what was wrong.
    code_of_command: Option<u8>,
}

/// The exit codes. 0 is success.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    /// Nobody reads the output any more: end quietly, with success.
    Quiet = 0,
    /// The answer is no: a missing key, a condition that does not hold.
    No = 1,
    /// Wrong usage or configuration.
    Usage = 2,
    /// The store is unavailable, or took too long.
    Unavailable = 3,
    /// Damaged data.
    Damaged = 4,
    /// Stopped by Ctrl-C, as a shell says it.
    Interrupted = 130,
}

impl Failure {
    /// A failure with this exit code.
    pub(crate) fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self { exit, message: message.into(), help: None, code_of_command: None }
    }

    /// A command that was run ended with this code.
    pub(crate) fn of_command(code: u8) -> Self {
        Self { code_of_command: Some(code), ..Self::new(Exit::Quiet, "") }
    }

    /// The answer is no.
    pub(crate) fn no(message: impl Into<String>) -> Self {
        Self::new(Exit::No, message)
    }

    /// The command line, a file that it names, or the configuration is wrong.
    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self::new(Exit::Usage, message)
    }

    /// Whether it may pass by itself.
    pub(crate) fn is_unavailable(&self) -> bool {
        matches!(self.exit, Exit::Unavailable)
    }

    /// Whether what lies in the store is not what was put there.
    pub(crate) fn is_damage(&self) -> bool {
        matches!(self.exit, Exit::Damaged)
    }

    /// Says what to do.
    #[must_use]
    pub(crate) fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    /// A file that the command line names cannot be read or written.
    pub(crate) fn file(path: &std::path::Path, error: &io::Error) -> Self {
        Self::usage(format!("{}: {error}", path.display()))
    }

    /// Tells the user, and gives the code to exit with.
    pub(crate) fn report(&self) -> ExitCode {
        let label = match self.exit {
            Exit::Quiet => return self.code_of_command.map_or(ExitCode::SUCCESS, ExitCode::from),
            Exit::No | Exit::Interrupted => "",
            _ => "error: ",
        };
        // Where standard error is gone too, there is nobody left to tell.
        let tell = |line: String| drop(io::Write::write_all(&mut io::stderr(), line.as_bytes()));
        tell(format!("{label}{}\n", self.message.trim_end()));
        if let Some(help) = &self.help {
            tell(format!("help: {help}\n"));
        }
        ExitCode::from(self.exit as u8)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        // Results that nobody reads any more.
        let source = std::error::Error::source(&error).and_then(|source| source.downcast_ref::<io::Error>());
        if source.is_some_and(|source| source.kind() == io::ErrorKind::BrokenPipe) {
            return Self::new(Exit::Quiet, "");
        }
        let (exit, help) = match error.kind() {
            ErrorKind::Conflict | ErrorKind::Fenced => (Exit::No, ""),
            ErrorKind::Unsupported => (Exit::Usage, "`commonhold doctor` shows what this store can do"),
            ErrorKind::NotInteger => {
                (Exit::Usage, "nothing was changed; `commonhold get KEY` shows the value")
            }
            ErrorKind::InvalidConfig
            | ErrorKind::InvalidInput
            | ErrorKind::TooLarge
            | ErrorKind::Unauthorized => (Exit::Usage, ""),
            ErrorKind::Corrupt | ErrorKind::Serialization => (Exit::Damaged, ""),
            _ => (Exit::Unavailable, ""),
        };
        let failure = Self::new(exit, error.to_string());
        if help.is_empty() { failure } else { failure.help(help) }
    }
}

impl From<io::Error> for Failure {
    /// Standard output or input failed.
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self::new(Exit::Quiet, ""),
            _ => Self::new(Exit::Unavailable, format!("standard input or output: {error}")),
        }
    }
}
