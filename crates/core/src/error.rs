//! One error type for every backend: what went wrong, where, and whether to try again.

use std::{borrow::Cow, error::Error as StdError, fmt, sync::Arc};

use crate::key::{Key, escape};

/// What every fallible operation returns.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What kind of thing went wrong. Match on this, never on message text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// An argument is out of its range: an empty key, a time to live of zero.
    InvalidInput,
    /// A configuration, URL or option is wrong.
    InvalidConfig,
    /// The backend does not offer this; see [`Capabilities`](crate::Capabilities).
    Unsupported,
    /// The value is no integer, or the sum leaves the range of `i64`.
    NotInteger,
    /// A condition did not hold, or a transaction met a concurrent change.
    Conflict,
    /// A later holder of a lock has written: the token of this one is refused.
    Fenced,
    /// The credentials or the permissions do not suffice.
    Unauthorized,
    /// The key, value, batch or transaction is over its limit.
    TooLarge,
    /// Stored or received bytes are damaged or not of the expected form.
    Corrupt,
    /// A value could not be turned into bytes.
    Serialization,
    /// The store cannot be reached.
    Unavailable,
    /// The time allowed ran out.
    Timeout,
    /// The store is full, or too busy to take more.
    Overloaded,
    /// The store or the handle was closed.
    Closed,
    /// A defect of the backend or of this library.
    Internal,
}

impl fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::InvalidInput => "invalid input",
            Self::InvalidConfig => "invalid configuration",
            Self::Unsupported => "unsupported",
            Self::NotInteger => "not an integer",
            Self::Conflict => "conflict",
            Self::Fenced => "fenced off",
            Self::Unauthorized => "unauthorized",
            Self::TooLarge => "too large",
            Self::Corrupt => "corrupt data",
            Self::Serialization => "serialization failed",
            Self::Unavailable => "unavailable",
            Self::Timeout => "timed out",
            Self::Overloaded => "overloaded",
            Self::Closed => "closed",
            Self::Internal => "internal error",
        })
    }
}

/// Whether the same call may be made again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Retry {
    /// The same call will fail again.
    Never,
    /// Nothing was changed; the same call may succeed later.
    Safe,
    /// The call may or may not have been carried out. Repeating a read is harmless; repeating a write may
    /// apply it twice, or undo a later write of somebody else.
    Ambiguous,
}

/// What went wrong, in which backend and operation, at which key, and whether to try again.
///
/// `Display` is one line. Keys are escaped and cut; values and credentials never appear.
///
/// ```
/// use commonhold_core::{Error, ErrorKind, Retry};
///
/// let error = Error::new(ErrorKind::Unavailable, "connection refused").with_retry(Retry::Safe).at("redis", "get");
/// assert_eq!(error.to_string(), "redis: get: unavailable: connection refused");
/// ```
#[derive(Clone)]
pub struct Error(Box<Inner>);

#[derive(Clone)]
struct Inner {
    kind: ErrorKind,
    retry: Retry,
    backend: &'static str,
    operation: &'static str,
    key: Option<String>,
    message: Cow<'static, str>,
    source: Option<Arc<dyn StdError + Send + Sync>>,
}

impl Error {
    /// An error of this kind with a message that says what was wrong and, where it helps, what to do.
    ///
    /// It is marked [`Retry::Never`] until [`with_retry`](Self::with_retry) says otherwise.
    pub fn new(kind: ErrorKind, message: impl Into<Cow<'static, str>>) -> Self {
        Self(Box::new(Inner {
            kind,
            retry: Retry::Never,
            backend: "",
            operation: "",
            key: None,
            message: message.into(),
            source: None,
        }))
    }

    /// Says whether the call may be repeated.
    #[must_use]
    pub fn with_retry(mut self, retry: Retry) -> Self {
        self.0.retry = retry;
        self
    }

    /// Says in which backend and operation it happened. The innermost place that says so stays.
    #[must_use]
    pub fn at(mut self, backend: &'static str, operation: &'static str) -> Self {
        if self.0.backend.is_empty() {
            self.0.backend = backend;
        }
        if self.0.operation.is_empty() {
            self.0.operation = operation;
        }
        self
    }

    /// Names the key, escaped and cut to 64 characters.
    #[must_use]
    pub fn with_key(mut self, key: &Key) -> Self {
        self.0.key.get_or_insert_with(|| escape(key.as_bytes(), 64));
        self
    }

    /// Keeps the underlying error as [`source`](StdError::source).
    #[must_use]
    pub fn with_source(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.0.source = Some(Arc::from(source.into()));
        self
    }

    /// What kind of thing went wrong.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// Whether the call may be repeated.
    pub fn retry(&self) -> Retry {
        self.0.retry
    }

    /// The backend's name; empty where no backend was involved.
    pub fn backend(&self) -> &'static str {
        self.0.backend
    }

    /// The operation's name; empty where no operation was involved.
    pub fn operation(&self) -> &'static str {
        self.0.operation
    }

    /// The key, escaped and cut, where one key was involved.
    pub fn key(&self) -> Option<&str> {
        self.0.key.as_deref()
    }

    /// The message alone, without the place and the kind.
    pub fn message(&self) -> &str {
        &self.0.message
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let inner = &self.0;
        if !inner.backend.is_empty() {
            write!(f, "{}: ", inner.backend)?;
        }
        if !inner.operation.is_empty() {
            write!(f, "{}: ", inner.operation)?;
        }
        if let Some(key) = &inner.key {
            write!(f, "key \"{key}\": ")?;
        }
        write!(f, "{}: {}", inner.kind, inner.message)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Error({self}; retry: {:?}", self.0.retry)?;
        if let Some(source) = &self.0.source {
            write!(f, "; source: {source}")?;
        }
        f.write_str(")")
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.source.as_ref().map(|source| &**source as _)
    }
}

impl From<std::convert::Infallible> for Error {
    fn from(never: std::convert::Infallible) -> Self {
        match never {}
    }
}
