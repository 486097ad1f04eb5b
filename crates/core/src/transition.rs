//! Transitions: pure functions that a store applies atomically to one key.

use std::{
    fmt::{self, Write as _},
    time::Duration,
};

use bytes::Bytes;

use crate::{
    backend::Expiry,
    clock::Timestamp,
    error::{Error, ErrorKind, Result},
};

/// A pure function `(state, now) -> (state, reply)` that a store applies to one key, atomically, on its own
/// clock.
///
/// A store may call [`apply`](Self::apply) several times for one call of
/// [`transact`](crate::StateBackend::transact) (it runs optimistically on some); only one result counts.
///
/// ```
/// use bytes::Bytes;
/// use commonhold_core::{Action, Expiry, Result, Step, Timestamp, Transition};
///
/// /// Keeps the greatest value it was ever given.
/// #[derive(Debug)]
/// struct Max(Bytes);
///
/// impl Transition for Max {
///     fn name(&self) -> &'static str {
///         "max"
///     }
///
///     fn apply(&self, state: Option<&[u8]>, _now: Timestamp) -> Result<Step> {
///         Ok(match state {
///             Some(state) if state >= &self.0[..] => Step::nothing(Bytes::copy_from_slice(state)),
///             _ => Step::put(self.0.clone(), Expiry::Keep, self.0.clone()),
///         })
///     }
/// }
/// ```
pub trait Transition: fmt::Debug + Send + Sync + 'static {
    /// A short name for traces and metrics.
    fn name(&self) -> &'static str;

    /// What follows from this state at this time of the store's clock. `None` is no entry.
    ///
    /// # Errors
    /// Whatever the transition refuses. Nothing is changed then, and the error reaches the caller.
    fn apply(&self, state: Option<&[u8]>, now: Timestamp) -> Result<Step>;

    /// The same inside of Redis, for transitions that have such a twin. A store that runs no scripts applies
    /// the transition.
    fn script(&self) -> Option<ScriptCall> {
        None
    }

    /// The increment that this is, if it is one: a store that has increments of its own makes that.
    fn as_increment(&self) -> Option<&Increment> {
        None
    }
}

/// A Lua script that does to `KEYS[1]` what a transition does, with `ARGV` as here, and returns the reply as a
/// string or an integer. It may publish besides.
///
/// It refuses with `redis.error_reply('NAME message')`, where the name is that of an [`ErrorKind`], as in
/// `NotInteger`. It takes the time from `redis.call('TIME')`, the clock that expiry is judged by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScriptCall {
    source: &'static str,
    /// All arguments, one after the other: one piece of memory for all.
    text: String,
    /// Where each ends.
    ends: Vec<usize>,
}

impl ScriptCall {
    /// A call of the script with this text without arguments. Stores keep the text and send its digest.
    pub fn new(source: &'static str) -> Self {
        // More than most have.
        Self { source, text: String::with_capacity(192), ends: Vec::with_capacity(16) }
    }

    /// Adds an argument.
    #[must_use]
    pub fn arg(mut self, argument: impl fmt::Display) -> Self {
        // A String takes all that is written to it.
        let _ = write!(self.text, "{argument}");
        self.ends.push(self.text.len());
        self
    }

    /// Adds arguments.
    #[must_use]
    pub fn args(self, arguments: impl IntoIterator<Item = impl fmt::Display>) -> Self {
        arguments.into_iter().fold(self, Self::arg)
    }

    /// The text of the script.
    pub fn source(&self) -> &'static str {
        self.source
    }

    /// What it is called with.
    pub fn arguments(&self) -> impl ExactSizeIterator<Item = &str> {
        let mut begin = 0;
        self.ends.iter().map(move |&end| {
            let argument = self.text.get(begin..end).unwrap_or_default();
            begin = end;
            argument
        })
    }
}

/// What a transition decides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// What to do with the entry.
    pub action: Action,
    /// What to answer to the caller.
    pub reply: Bytes,
}

/// What to do with the entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Leave it as it is.
    Nothing,
    /// Put this value.
    Put {
        /// The new value.
        value: Bytes,
        /// How long it lives.
        expiry: Expiry,
    },
    /// Leave the value and change how long it lives. Without an entry, nothing.
    Expire(Expiry),
    /// Delete it.
    Delete,
}

impl Step {
    /// Leave the entry as it is.
    pub fn nothing(reply: impl Into<Bytes>) -> Self {
        Self { action: Action::Nothing, reply: reply.into() }
    }

    /// Put a value.
    pub fn put(value: impl Into<Bytes>, expiry: Expiry, reply: impl Into<Bytes>) -> Self {
        Self { action: Action::Put { value: value.into(), expiry }, reply: reply.into() }
    }

    /// Delete the entry.
    pub fn delete(reply: impl Into<Bytes>) -> Self {
        Self { action: Action::Delete, reply: reply.into() }
    }
}

/// Adds to a counter kept as decimal text, as Redis does; a missing one counts as 0.
///
/// The time to live stays as it is; a counter that this creates gets `ttl`. Replies the new value as text.
///
/// Refuses with `NotInteger` what is no signed 64-bit integer without sign `+`, blanks or leading zeros, and sums that
/// are none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Increment {
    /// What is added.
    pub delta: i64,
    /// The time to live of a counter that this creates; the default of the store for none.
    pub ttl: Option<Duration>,
}

impl Increment {
    pub(crate) fn decode(reply: &[u8]) -> Result<i64> {
        parse_integer(reply)
    }
}

impl Transition for Increment {
    fn name(&self) -> &'static str {
        "increment"
    }

    fn apply(&self, state: Option<&[u8]>, _now: Timestamp) -> Result<Step> {
        let value = state.map(parse_integer).transpose()?.unwrap_or(0);
        let sum = value.checked_add(self.delta).ok_or_else(|| {
            Error::new(ErrorKind::NotInteger, "the sum leaves the range of a signed 64-bit integer")
        })?;
        let text = Bytes::from(sum.to_string());
        let expiry = if state.is_some() { Expiry::Keep } else { self.ttl.into() };
        Ok(Step::put(text.clone(), expiry, text))
    }

    /// Without a time to live it is no more than Redis's own increment.
    fn script(&self) -> Option<ScriptCall> {
        let millis = self.ttl?.as_nanos().div_ceil(1_000_000);
        Some(ScriptCall::new(include_str!("increment.lua")).arg(self.delta).arg(millis))
    }

    fn as_increment(&self) -> Option<&Increment> {
        Some(self)
    }
}

/// Decimal text without sign `+`, blanks or leading zeros: what every store's own increment takes.
fn parse_integer(text: &[u8]) -> Result<i64> {
    let digits = text.strip_prefix(b"-").unwrap_or(text);
    let canonical = match digits {
        b"0" => text.len() == 1,
        [b'1'..=b'9', rest @ ..] => rest.iter().all(u8::is_ascii_digit),
        _ => false,
    };
    std::str::from_utf8(text)
        .ok()
        .filter(|_| canonical)
        .and_then(|text| text.parse().ok())
        .ok_or_else(|| Error::new(ErrorKind::NotInteger, "the value is not a signed 64-bit decimal integer"))
}

/// Deletes the entry and replies what it was.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Take;

impl Take {
    pub(crate) fn decode(reply: Bytes) -> Option<Bytes> {
        (!reply.is_empty()).then(|| reply.slice(1..))
    }
}

impl Transition for Take {
    fn name(&self) -> &'static str {
        "take"
    }

    /// Replies nothing for no entry, and a zero byte before the value otherwise, so that an empty value is one.
    fn apply(&self, state: Option<&[u8]>, _now: Timestamp) -> Result<Step> {
        Ok(match state {
            None => Step::nothing(Bytes::new()),
            Some(value) => Step::delete([&[0], value].concat()),
        })
    }
}

/// Changes how long an entry lives. Replies `1` if there is one, `0` if not.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SetExpiry(pub(crate) Expiry);

impl SetExpiry {
    pub(crate) fn decode(reply: &[u8]) -> bool {
        reply == b"1"
    }
}

impl Transition for SetExpiry {
    fn name(&self) -> &'static str {
        "set_expiry"
    }

    fn apply(&self, state: Option<&[u8]>, _now: Timestamp) -> Result<Step> {
        Ok(match state {
            None => Step::nothing("0"),
            Some(_) => Step { action: Action::Expire(self.0), reply: Bytes::from_static(b"1") },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn increment(state: Option<&[u8]>, delta: i64) -> Result<Step> {
        Increment { delta, ttl: None }.apply(state, Timestamp::default())
    }

    #[test]
    fn an_increment_starts_at_zero_and_stays_decimal_text() {
        assert_eq!(increment(None, -3).unwrap().reply, "-3");
        assert_eq!(increment(Some(b"-3"), 5).unwrap().reply, "2");
    }

    #[test]
    fn only_canonical_integers_within_i64_are_incremented() {
        for text in
            ["", "x", " 1", "1 ", "+1", "01", "-0", "-", "1.0", "9223372036854775808", "\u{0661}", "1\0"]
        {
            let error = increment(Some(text.as_bytes()), 1).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::NotInteger, "{text:?}");
        }
        assert_eq!(increment(Some(b"9223372036854775807"), 1).unwrap_err().kind(), ErrorKind::NotInteger);
        assert_eq!(increment(Some(b"-9223372036854775808"), -1).unwrap_err().kind(), ErrorKind::NotInteger);
        assert_eq!(increment(Some(b"-9223372036854775808"), 0).unwrap().reply, "-9223372036854775808");
    }

    #[test]
    fn a_counter_keeps_its_time_to_live_and_gets_one_only_when_created() {
        let transition = Increment { delta: 1, ttl: Some(Duration::from_secs(1)) };
        let expiry =
            |state: Option<&[u8]>| match transition.apply(state, Timestamp::default()).unwrap().action {
                Action::Put { expiry, .. } => expiry,
                other => panic!("{other:?}"),
            };
        assert_eq!(expiry(None), Expiry::After(Duration::from_secs(1)));
        assert_eq!(expiry(Some(b"1")), Expiry::Keep);
    }

    #[test]
    fn taking_tells_an_empty_value_from_none() {
        let take = |state| Take::decode(Take.apply(state, Timestamp::default()).unwrap().reply);
        assert_eq!(take(None), None);
        assert_eq!(take(Some(b"")), Some(Bytes::new()));
        assert_eq!(take(Some(b"v")), Some(Bytes::from_static(b"v")));
    }
}
