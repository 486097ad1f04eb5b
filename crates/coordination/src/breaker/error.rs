//! Why a call did not succeed.

use std::{convert::Infallible, error::Error as StdError, fmt, time::Duration};

use commonhold_core::Error;

use super::machine::State;

/// Why a call was not let through, or how it failed: with `E`, its own error. [`Infallible`] where only the decision is
/// asked for.
#[derive(Debug, Clone)]
pub enum BreakerError<E = Infallible> {
    /// The breaker is open, or half-open with all its probes under way. The call was not made.
    Open {
        /// When to ask again: a call may be let through then.
        retry_after: Duration,
    },
    /// The breaker is isolated by hand, until it is closed by hand. The call was not made.
    Isolated,
    /// The store of a [`DistributedBreaker`](super::DistributedBreaker) that
    /// [refuses](super::OnUnavailable::Refuse) is away, or refuses the breaker. The call was not made.
    Unavailable(Error),
    /// The call was made and failed.
    Inner(E),
}

impl BreakerError {
    pub(super) fn refused(state: State, left: i64) -> Self {
        match state {
            State::Isolated => Self::Isolated,
            _ => Self::Open { retry_after: Duration::from_micros(left.max(0).unsigned_abs()) },
        }
    }

    /// The same, for calls with an error of their own.
    pub fn widen<E>(self) -> BreakerError<E> {
        match self {
            Self::Open { retry_after } => BreakerError::Open { retry_after },
            Self::Isolated => BreakerError::Isolated,
            Self::Unavailable(error) => BreakerError::Unavailable(error),
            Self::Inner(never) => match never {},
        }
    }
}

impl<E> BreakerError<E> {
    /// The error of the call, if it was made.
    pub fn into_inner(self) -> Option<E> {
        match self {
            Self::Inner(error) => Some(error),
            _ => None,
        }
    }
}

impl<E: fmt::Display> fmt::Display for BreakerError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Open { retry_after } => write!(f, "the circuit breaker is open; retry in {retry_after:?}"),
            Self::Isolated => f.write_str("the circuit breaker is isolated; close it by hand"),
            Self::Unavailable(error) => write!(f, "the store of the circuit breaker: {error}"),
            Self::Inner(error) => error.fmt(f),
        }
    }
}

impl<E: StdError + 'static> StdError for BreakerError<E> {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        match self {
            Self::Unavailable(error) => Some(error),
            Self::Inner(error) => error.source(),
            Self::Open { .. } | Self::Isolated => None,
        }
    }
}
