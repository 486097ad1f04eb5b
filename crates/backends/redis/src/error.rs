//! The one place where errors of Redis and of connections to it become errors of this library.

use std::{borrow::Cow, time::Duration};

use commonhold_core::{Error, ErrorKind, Retry};

use crate::driver::ServerError;

/// Whether a request changes something, which decides its timeout and what is known when its reply is lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    Read,
    Write,
}

impl Access {
    fn lost(self) -> Retry {
        match self {
            Self::Read => Retry::Safe,
            Self::Write => Retry::Ambiguous,
        }
    }
}

/// The kinds that a script names in front of its message, as in `NotInteger the value is none`.
const KINDS: [(&str, ErrorKind); 11] = [
    ("InvalidInput", ErrorKind::InvalidInput),
    ("InvalidConfig", ErrorKind::InvalidConfig),
    ("Unsupported", ErrorKind::Unsupported),
    ("NotInteger", ErrorKind::NotInteger),
    ("Conflict", ErrorKind::Conflict),
    ("Unauthorized", ErrorKind::Unauthorized),
    ("TooLarge", ErrorKind::TooLarge),
    ("Corrupt", ErrorKind::Corrupt),
    ("Overloaded", ErrorKind::Overloaded),
    ("Closed", ErrorKind::Closed),
    ("Internal", ErrorKind::Internal),
];

/// Says what an error reply means. Nothing was carried out where one comes back.
pub(crate) fn server_error(error: &ServerError) -> Error {
    let (code, detail) = (error.code(), error.details().unwrap_or_default());
    if let Some((_, kind)) = KINDS.iter().find(|(name, _)| *name == code) {
        return Error::new(*kind, plain(detail));
    }
    // What follows are the arguments, which are values, or the line of a script.
    let detail = [", with args beginning with", " script: "]
        .iter()
        .fold(detail, |detail, end| detail.split(end).next().unwrap_or_default())
        .trim_end_matches('.');
    let (kind, retry, advice) = meaning(code, detail);
    Error::new(kind, format!("{code} {}{advice}", plain(detail))).with_retry(retry)
}

fn meaning(code: &str, detail: &str) -> (ErrorKind, Retry, &'static str) {
    let says = |text: &str| detail.contains(text);
    match code {
        "NOAUTH" => (ErrorKind::Unauthorized, Retry::Never, "; the server wants a password: give one"),
        "WRONGPASS" => (ErrorKind::Unauthorized, Retry::Never, "; give the right user and password"),
        "NOPERM" => (ErrorKind::Unauthorized, Retry::Never, "; give the user this right with ACL SETUSER"),
        "DENIED" => (ErrorKind::Unauthorized, Retry::Never, ""),
        "OOM" => {
            (ErrorKind::Overloaded, Retry::Safe, "; the server is full: delete something or raise maxmemory")
        }
        "BUSY" => (ErrorKind::Overloaded, Retry::Safe, ""),
        "LOADING" | "MASTERDOWN" | "CLUSTERDOWN" | "TRYAGAIN" | "READONLY" | "NOREPLICAS" | "MISCONF"
        | "NOTREADY" => (ErrorKind::Unavailable, Retry::Safe, ""),
        "MOVED" | "ASK" => (
            ErrorKind::Unavailable,
            Retry::Safe,
            "; the key is on another node: the server is a member of a Cluster, whose URL is redis+cluster://",
        ),
        "WRONGTYPE" => {
            (ErrorKind::Corrupt, Retry::Never, "; the key holds something that this store did not put")
        }
        "CROSSSLOT" => (
            ErrorKind::InvalidInput,
            Retry::Never,
            "; give the keys a common {hash tag}, or a prefix that has one",
        ),
        "NOPROTO" => (ErrorKind::Unsupported, Retry::Never, "; Redis 6 or later is needed"),
        _ if says("not an integer") || says("would overflow") => (
            ErrorKind::NotInteger,
            Retry::Never,
            "; counters are signed 64-bit integers, and so are their sums",
        ),
        _ if says("max number of clients") => (ErrorKind::Overloaded, Retry::Safe, ""),
        _ if says("invalid bulk length") => (
            ErrorKind::TooLarge,
            Retry::Never,
            "; the server takes no value of this length (proto-max-bulk-len)",
        ),
        _ if says("string exceeds maximum") => (ErrorKind::TooLarge, Retry::Never, ""),
        _ if says("without any password configured") || says("invalid password") || says("AUTH failed") => {
            (ErrorKind::Unauthorized, Retry::Never, "; give the right user and password")
        }
        _ if says("cluster support disabled") => (
            ErrorKind::InvalidConfig,
            Retry::Never,
            "; the server is no member of a Cluster: its URL is redis://",
        ),
        _ if says("unknown command") && says("SENTINEL") => {
            (ErrorKind::InvalidConfig, Retry::Never, "; the server is no Sentinel: its URL is redis://")
        }
        // An unknown command, subcommand, or Redis command in a script.
        _ if says("nknown ") && says("command") => (
            ErrorKind::Unsupported,
            Retry::Never,
            "; Redis 6 or later is needed, and the command allowed; if this is a Sentinel, its URL is \
             redis+sentinel://",
        ),
        _ if says("DB index is out of range") || says("SELECT is not allowed") => {
            (ErrorKind::InvalidConfig, Retry::Never, "; choose another database")
        }
        _ => (ErrorKind::Internal, Retry::Never, ""),
    }
}

/// No reply came in time, or the connection was lost before it did.
pub(crate) fn lost(access: Access, source: impl std::error::Error + Send + Sync + 'static) -> Error {
    let what = match access {
        Access::Read => "the connection was lost before the reply came",
        Access::Write => "the connection was lost before the reply came; the write may have been carried out",
    };
    Error::new(ErrorKind::Unavailable, what).with_retry(access.lost()).with_source(source)
}

pub(crate) fn timed_out(access: Access, limit: Duration) -> Error {
    let done = match access {
        Access::Read => "",
        Access::Write => "; the write may have been carried out, or may be later",
    };
    Error::new(ErrorKind::Timeout, format!("no reply within {limit:?}{done}")).with_retry(access.lost())
}

/// No connection could be made, so nothing was sent.
pub(crate) fn unreachable(server: &dyn std::fmt::Display, why: &dyn std::fmt::Display) -> Error {
    Error::new(ErrorKind::Unavailable, format!("cannot connect to {server}: {why}; is it running?"))
        .with_retry(Retry::Safe)
}

/// A reply that does not have the form it must have.
pub(crate) fn unexpected() -> Error {
    Error::new(ErrorKind::Internal, "the server's reply does not have the form that this command's has")
}

pub(crate) fn unsupported(message: impl Into<Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::Unsupported, message)
}

/// One printable line of at most 200 characters.
fn plain(text: &str) -> String {
    let printable = |c: char| if c == ' ' || c.is_ascii_graphic() { c } else { '?' };
    text.chars().map(printable).take(200).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::driver::error_reply;

    #[test]
    fn what_was_wrong_is_said_without_where_in_a_script() {
        let text =
            "OOM command not allowed when used memory > 'maxmemory'. script: 9022f3c19, on @user_script:61.";
        let said = server_error(&error_reply(text)).to_string();
        assert!(said.contains("'maxmemory'; the server is full"), "{said}");
        assert!(!said.contains("script"), "{said}");
    }

    #[test]
    fn every_error_of_the_server_is_told_apart() {
        use ErrorKind as K;
        use Retry::{Never, Safe};
        for (reply, kind, retry) in [
            ("NOAUTH Authentication required.", K::Unauthorized, Never),
            ("WRONGPASS invalid username-password pair or user is disabled.", K::Unauthorized, Never),
            ("ERR AUTH <password> called without any password configured", K::Unauthorized, Never),
            ("NOPERM this user has no permissions to run the 'get' command", K::Unauthorized, Never),
            ("OOM command not allowed when used memory > 'maxmemory'.", K::Overloaded, Safe),
            ("LOADING Redis is loading the dataset in memory", K::Unavailable, Safe),
            ("MASTERDOWN Link with MASTER is down", K::Unavailable, Safe),
            ("CLUSTERDOWN The cluster is down", K::Unavailable, Safe),
            ("TRYAGAIN Multiple keys request during rehashing of slot", K::Unavailable, Safe),
            ("READONLY You can't write against a read only replica.", K::Unavailable, Safe),
            ("MISCONF Errors writing to the AOF file: No space left on device", K::Unavailable, Safe),
            ("WRONGTYPE Operation against a key holding the wrong kind of value", K::Corrupt, Never),
            ("MOVED 3999 127.0.0.1:6381", K::Unavailable, Safe),
            ("ERR This instance has cluster support disabled", K::InvalidConfig, Never),
            ("ERR unknown command 'SENTINEL', with args beginning with: 'hunter2'", K::InvalidConfig, Never),
            ("CROSSSLOT Keys in request don't hash to the same slot", K::InvalidInput, Never),
            ("ERR Protocol error: invalid bulk length", K::TooLarge, Never),
            ("ERR max number of clients reached", K::Overloaded, Safe),
            ("ERR unknown command 'UNLINK', with args beginning with: 'hunter2'", K::Unsupported, Never),
            (
                "ERR Unknown Redis command called from script script: 5fc, on @user_script:4.",
                K::Unsupported,
                Never,
            ),
            (
                "ERR unknown command 'INCRBY', with args beginning with: 'would overflow'",
                K::Unsupported,
                Never,
            ),
            ("ERR DB index is out of range", K::InvalidConfig, Never),
            ("ERR value is not an integer or out of range", K::NotInteger, Never),
            ("ERR increment or decrement would overflow", K::NotInteger, Never),
            ("NotInteger the value is no integer", K::NotInteger, Never),
            ("ERR something else", K::Internal, Never),
        ] {
            let error = server_error(&error_reply(reply));
            assert_eq!((error.kind(), error.retry()), (kind, retry), "{reply}");
            assert!(!error.to_string().contains("hunter2"), "{error}");
        }
    }
}
