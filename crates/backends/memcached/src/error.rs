//! The one place where what goes wrong between us and a server becomes an error of this library.

use std::io;

use commonhold_core::{Error, ErrorKind, Retry, url::Endpoint};

pub(crate) const NAME: &str = "memcached";

/// What the server, or the lack of one, has to say, at most this much of it.
const MAX_QUOTE: usize = 100;

/// Bytes from a server, for people: on one line, escaped and cut.
pub(crate) fn quote(bytes: &[u8]) -> String {
    let cut = bytes.get(..MAX_QUOTE).unwrap_or(bytes);
    let dots = if cut.len() < bytes.len() { ".." } else { "" };
    format!("\"{}\"{dots}", cut.escape_ascii())
}

/// No connection could be made: certainly nothing was sent.
pub(crate) fn unreachable(endpoint: &Endpoint, error: &io::Error) -> Error {
    Error::new(ErrorKind::Unavailable, format!("{endpoint}: {error}"))
        .with_retry(Retry::Safe)
        .with_source(io::Error::new(error.kind(), error.to_string()))
}

/// The connection ended.
pub(crate) fn lost(endpoint: &Endpoint, error: &io::Error) -> Error {
    Error::new(ErrorKind::Unavailable, format!("{endpoint}: the connection was lost: {error}"))
        .with_source(io::Error::new(error.kind(), error.to_string()))
}

/// The server does not answer.
pub(crate) fn silent(endpoint: &Endpoint, after: std::time::Duration) -> Error {
    Error::new(ErrorKind::Timeout, format!("{endpoint}: no answer within {after:?}"))
}

/// The server answers what no Memcached would answer here.
pub(crate) fn nonsense(what: &str, line: &[u8]) -> Error {
    Error::new(ErrorKind::Corrupt, format!("the server answered {} {what}", quote(line)))
}

/// What a line means that begins with `ERROR`, `CLIENT_ERROR` or `SERVER_ERROR`; `None` if it is no such line.
pub(crate) fn refusal(line: &[u8]) -> Option<Error> {
    let is = |start: &str| line.starts_with(start.as_bytes());
    let has = |part: &str| line.windows(part.len()).any(|window| window == part.as_bytes());
    let said = quote(line);
    Some(match () {
        () if is("ERROR Too many open connections") => {
            Error::new(ErrorKind::Overloaded, "the server has no connection left (its option -c)")
                .with_retry(Retry::Safe)
        }
        () if is("CLIENT_ERROR unauthenticated") => {
            Error::new(ErrorKind::Unauthorized, "the server asks for a user and a password")
        }
        () if is("SERVER_ERROR") && has("too large") => Error::new(
            ErrorKind::TooLarge,
            "the server takes no value of this length; raise its option -I or lower max_value; \
             it dropped what was under the key",
        ),
        // It drops the old value rather than serve it on, so this is not without effect.
        () if is("SERVER_ERROR") && has("ut of memory") => {
            Error::new(ErrorKind::Overloaded, format!("the server is full: {said}; raise its option -m"))
                .with_retry(Retry::Ambiguous)
        }
        () if is("SERVER_ERROR") => {
            Error::new(ErrorKind::Unavailable, format!("the server says {said}")).with_retry(Retry::Ambiguous)
        }
        () if is("CLIENT_ERROR") || is("ERROR") => {
            Error::new(ErrorKind::Internal, format!("the server does not understand us: {said}"))
        }
        () => return None,
    })
}

/// What became of a request on whose answer nobody can wait any more: a write may have been carried out.
pub(crate) fn unanswered(error: &Error, writes: bool) -> Error {
    error.clone().with_retry(if writes { Retry::Ambiguous } else { Retry::Safe })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_refusal_has_its_kind() {
        let table = [
            ("ERROR Too many open connections", ErrorKind::Overloaded, Retry::Safe),
            ("CLIENT_ERROR unauthenticated", ErrorKind::Unauthorized, Retry::Never),
            ("SERVER_ERROR object too large for cache", ErrorKind::TooLarge, Retry::Never),
            ("SERVER_ERROR out of memory storing object", ErrorKind::Overloaded, Retry::Ambiguous),
            ("SERVER_ERROR Out of memory during read", ErrorKind::Overloaded, Retry::Ambiguous),
            ("SERVER_ERROR backend failure", ErrorKind::Unavailable, Retry::Ambiguous),
            ("CLIENT_ERROR bad data chunk", ErrorKind::Internal, Retry::Never),
            ("ERROR", ErrorKind::Internal, Retry::Never),
        ];
        for (line, kind, retry) in table {
            let error = refusal(line.as_bytes()).unwrap();
            assert_eq!((error.kind(), error.retry()), (kind, retry), "{line}");
        }
        assert!(refusal(b"HD").is_none());
    }

    #[test]
    fn what_a_server_says_is_shown_escaped_and_cut() {
        assert_eq!(quote(b"\x1b[31mred\n"), "\"\\x1b[31mred\\n\"");
        assert!(quote(&[b'x'; 1000]).len() < 120);
    }

    #[test]
    fn only_reads_may_be_repeated_when_an_answer_is_lost() {
        let endpoint = Endpoint { host: "h".into(), port: 1 };
        let error = lost(&endpoint, &io::ErrorKind::ConnectionReset.into());
        assert_eq!(unanswered(&error, false).retry(), Retry::Safe);
        assert_eq!(unanswered(&error, true).retry(), Retry::Ambiguous);
        assert_eq!(unreachable(&endpoint, &io::ErrorKind::ConnectionRefused.into()).retry(), Retry::Safe);
    }
}
