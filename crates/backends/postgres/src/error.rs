//! The one place where errors of the server and of the connection become errors of this library.

use std::{error::Error as StdError, fmt, io, time::Duration};

use commonhold_core::{Error, ErrorKind, Retry};
use deadpool::managed::{PoolError, TimeoutType};
use tokio_postgres::error::SqlState;

/// The five letters by which the server says what was wrong. Its own words may show values; they are not kept.
#[derive(Debug, Clone)]
pub(crate) struct Code(SqlState);

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SQLSTATE {}", self.0.code())
    }
}

impl StdError for Code {}

/// What the server said, if it did.
pub(crate) fn code(error: &Error) -> Option<&SqlState> {
    error.source()?.downcast_ref().map(|Code(state)| state)
}

/// Whether the statement gave up because others hold a lock.
pub(crate) fn is_locked_out(error: &Error) -> bool {
    code(error) == Some(&SqlState::LOCK_NOT_AVAILABLE)
}

/// Whether the server undid the statement so that others could go on. The same may succeed at once.
pub(crate) fn is_deadlock(error: &Error) -> bool {
    code(error) == Some(&SqlState::T_R_DEADLOCK_DETECTED)
}

/// What a statement met. `writes` says whether it may have changed something when no answer came.
pub(crate) fn statement(error: &tokio_postgres::Error, writes: bool) -> Error {
    let lost = if writes { Retry::Ambiguous } else { Retry::Safe };
    match error.as_db_error() {
        Some(error) => database(error.code(), error.message(), lost),
        None if error.is_closed() || find_io(error).is_some() => {
            Error::new(ErrorKind::Unavailable, "the connection to the server was lost").with_retry(lost)
        }
        None => Error::new(ErrorKind::Internal, printable(&error.to_string())).with_retry(lost),
    }
}

/// What connecting met: nothing was asked of the server.
pub(crate) fn connect(server: &impl fmt::Display, error: &tokio_postgres::Error) -> Error {
    if let Some(error) = error.as_db_error() {
        return database(error.code(), error.message(), Retry::Safe);
    }
    match find_io(error) {
        Some(cause) if cause.kind() == io::ErrorKind::InvalidData => tls(server, &cause.to_string()),
        Some(cause) => {
            let message = format!("{server}: cannot connect: {}", printable(&cause.to_string()));
            Error::new(ErrorKind::Unavailable, message).with_retry(Retry::Safe)
        }
        None if error.is_closed() => {
            let message = format!("{server}: the server closed the connection while it was being made");
            Error::new(ErrorKind::Unavailable, message).with_retry(Retry::Safe)
        }
        None => {
            let cause = error.source().map_or_else(|| error.to_string(), ToString::to_string);
            match cause.as_str() {
                "password missing" => Error::new(
                    ErrorKind::Unauthorized,
                    format!(
                        "{server}: the server asks for a password; write postgres://USER:PASSWORD@HOST/DATABASE"
                    ),
                ),
                _ if cause.contains("TLS") => tls(server, &cause),
                // Servers that do not take writes, and whatever else may be otherwise later.
                _ => {
                    let message = format!("{server}: cannot connect: {}", printable(&cause));
                    Error::new(ErrorKind::Unavailable, message).with_retry(Retry::Safe)
                }
            }
        }
    }
}

fn tls(server: &impl fmt::Display, cause: &str) -> Error {
    let message = format!(
        "{server}: no trusted TLS connection: {}; sslrootcert=FILE names the authority, sslmode what is asked of it",
        printable(cause)
    );
    Error::new(ErrorKind::InvalidConfig, message)
}

fn find_io(error: &tokio_postgres::Error) -> Option<&io::Error> {
    let mut cause = error.source();
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<io::Error>() {
            return Some(error);
        }
        cause = error.source();
    }
    None
}

/// Nothing came back in time. `lost` says whether the call may be repeated.
pub(crate) fn timeout(what: impl fmt::Display, after: Duration, lost: Retry) -> Error {
    Error::new(ErrorKind::Timeout, format!("{what} within {after:?}")).with_retry(lost)
}

/// No connection could be had from the pool.
pub(crate) fn pool(error: PoolError<Error>, size: usize, after: Duration) -> Error {
    match error {
        PoolError::Backend(error) => error,
        PoolError::Timeout(TimeoutType::Wait) => Error::new(
            ErrorKind::Overloaded,
            format!("all {size} connections of the pool were busy for {after:?}; pool= gives it more"),
        )
        .with_retry(Retry::Safe),
        error => Error::new(ErrorKind::Unavailable, format!("no connection from the pool: {error}"))
            .with_retry(Retry::Safe),
    }
}

/// Says what the server means. Unless the connection goes with it, nothing was changed.
fn database(state: &SqlState, message: &str, lost: Retry) -> Error {
    use ErrorKind as K;
    let (kind, retry, hint) = match (state, state.code().get(..2).unwrap_or_default()) {
        (&SqlState::INSUFFICIENT_PRIVILEGE, _) => {
            (K::Unauthorized, Retry::Never, "; grant this user what it lacks")
        }
        (&SqlState::QUERY_CANCELED, _) => (K::Timeout, Retry::Safe, "; timeout= allows longer"),
        (&SqlState::LOCK_NOT_AVAILABLE, _) => (K::Timeout, Retry::Safe, ""),
        (&SqlState::TOO_MANY_CONNECTIONS, _) => {
            (K::Overloaded, Retry::Safe, "; lower pool= or raise max_connections on the server")
        }
        (&SqlState::DISK_FULL, _) => (K::Overloaded, Retry::Safe, "; make room on the server's disk"),
        (&SqlState::CANNOT_CONNECT_NOW, _) => (K::Unavailable, Retry::Safe, ""),
        (&SqlState::ADMIN_SHUTDOWN | &SqlState::CRASH_SHUTDOWN | &SqlState::IDLE_SESSION_TIMEOUT, _) => {
            (K::Unavailable, lost, "")
        }
        (&SqlState::READ_ONLY_SQL_TRANSACTION, _) => {
            (K::Unavailable, Retry::Safe, "; this server takes no writes (name the primary too)")
        }
        (&SqlState::T_R_STATEMENT_COMPLETION_UNKNOWN | &SqlState::TRANSACTION_RESOLUTION_UNKNOWN, _) => {
            (K::Unavailable, lost, "")
        }
        (
            &SqlState::INVALID_CATALOG_NAME | &SqlState::INVALID_SCHEMA_NAME | &SqlState::UNDEFINED_TABLE,
            _,
        ) => (K::InvalidConfig, Retry::Never, ""),
        (_, "28") => (K::Unauthorized, Retry::Never, "; check user and password"),
        (_, "08") => (K::Unavailable, lost, ""),
        (_, "53") => (K::Overloaded, Retry::Safe, ""),
        (_, "54") => (K::TooLarge, Retry::Never, ""),
        (_, "40") => (K::Conflict, Retry::Safe, ""),
        (_, "57" | "58") => (K::Unavailable, lost, ""),
        (_, "XX") => (K::Corrupt, Retry::Never, "; look into the server's log"),
        (_, "42") => (K::InvalidConfig, Retry::Never, "; was the table changed?"),
        _ => (K::Internal, Retry::Never, ""),
    };
    Error::new(kind, format!("{} (SQLSTATE {}){hint}", printable(message), state.code()))
        .with_retry(retry)
        .with_source(Code(state.clone()))
}

/// The text on one line, as ASCII, cut.
fn printable(text: &str) -> String {
    let mut line: String = text.chars().take(300).flat_map(char::escape_default).collect();
    line = line.replace("\\\"", "\"").replace("\\'", "'");
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_state_of_the_server_has_its_kind_and_says_whether_to_try_again() {
        use ErrorKind as K;
        let table = [
            ("28P01", K::Unauthorized, Retry::Never),
            ("28000", K::Unauthorized, Retry::Never),
            ("42501", K::Unauthorized, Retry::Never),
            ("53100", K::Overloaded, Retry::Safe),
            ("53200", K::Overloaded, Retry::Safe),
            ("53300", K::Overloaded, Retry::Safe),
            ("57P01", K::Unavailable, Retry::Ambiguous),
            ("57P02", K::Unavailable, Retry::Ambiguous),
            ("57P03", K::Unavailable, Retry::Safe),
            ("08006", K::Unavailable, Retry::Ambiguous),
            ("25006", K::Unavailable, Retry::Safe),
            ("40001", K::Conflict, Retry::Safe),
            ("40P01", K::Conflict, Retry::Safe),
            ("40003", K::Unavailable, Retry::Ambiguous),
            ("54000", K::TooLarge, Retry::Never),
            ("57014", K::Timeout, Retry::Safe),
            ("55P03", K::Timeout, Retry::Safe),
            ("3D000", K::InvalidConfig, Retry::Never),
            ("42P01", K::InvalidConfig, Retry::Never),
            ("XX001", K::Corrupt, Retry::Never),
            ("22000", K::Internal, Retry::Never),
        ];
        for (state, kind, retry) in table {
            let error = database(&SqlState::from_code(state), "a \"message\"\n", Retry::Ambiguous);
            assert_eq!((error.kind(), error.retry()), (kind, retry), "{state}");
            assert!(error.message().starts_with("a \"message\"\\n (SQLSTATE "), "{error}");
            assert_eq!(code(&error).unwrap().code(), state);
        }
        let read = database(&SqlState::ADMIN_SHUTDOWN, "", Retry::Safe);
        assert_eq!(read.retry(), Retry::Safe, "a read may be repeated");
    }
}
