//! Holds the script of a transition equal to the transition: both are carried out on the same states at the same times.

use bytes::Bytes;
use commonhold_core::{Action, ErrorKind, Expiry, Timestamp, Transition};
use commonhold_testkit::servers;

use crate::state::micros;

/// A key in Redis and its model.
pub(crate) struct Twin {
    connection: redis::Connection,
    key: String,
    /// The value, and when it expires in nanoseconds.
    model: Option<(Bytes, Option<i64>)>,
}

/// How far the time to live in Redis may be from that of the model: it is counted by another clock, in milliseconds.
const SLACK_MILLIS: i64 = 2_000;

impl Twin {
    /// With nothing in it.
    pub(crate) fn new() -> Self {
        let client = redis::Client::open(servers::shared::redis_url()).unwrap();
        let connection = client.get_connection().unwrap();
        Self { connection, key: servers::unique("twin"), model: None }
    }

    /// The value under the key.
    pub(crate) fn state(&self) -> Option<&[u8]> {
        self.model.as_ref().map(|(value, _)| &value[..])
    }

    /// Puts a value under the key, whatever it is.
    pub(crate) fn put(&mut self, value: &[u8]) {
        redis::cmd("SET").arg(&self.key).arg(value).exec(&mut self.connection).unwrap();
        self.model = Some((Bytes::copy_from_slice(value), None));
    }

    /// Applies a transition at this time and returns its reply, which is that of both; a script may add that it has told
    /// others.
    pub(crate) fn apply(&mut self, transition: &dyn Transition, now: Timestamp) -> Result<Bytes, ErrorKind> {
        if self.model.as_ref().is_some_and(|(_, expires)| expires.is_some_and(|at| at <= now.as_nanos())) {
            self.model = None;
            redis::cmd("DEL").arg(&self.key).exec(&mut self.connection).unwrap();
        }
        let before = self.state().map(Bytes::copy_from_slice);
        let by_script = self.run_script(transition, now);
        let (by_transition, sets_expiry) = self.run_transition(transition, now);
        assert_eq!(by_script, by_transition, "{transition:?} at {now:?} on {before:?}: replies differ");
        let (value, ttl): (Option<Vec<u8>>, i64) =
            redis::pipe().get(&self.key).pttl(&self.key).query(&mut self.connection).unwrap();
        assert_eq!(
            value.as_deref().map(String::from_utf8_lossy),
            self.state().map(String::from_utf8_lossy),
            "{transition:?} at {now:?} on {before:?}: states differ"
        );
        if !sets_expiry {
            return by_script;
        }
        match self.model.as_ref().and_then(|(_, expires)| *expires) {
            Some(at) => {
                let expected = (at - now.as_nanos()) / 1_000_000;
                assert!(
                    ttl <= expected + 1 && ttl >= (expected - SLACK_MILLIS).max(-2),
                    "{transition:?} on {before:?}: expires in {ttl} ms, in the model in {expected} ms"
                );
                // The model says when it expires.
                redis::cmd("SET").arg(&self.key).arg(value).exec(&mut self.connection).unwrap();
            }
            None => assert!(ttl < 0, "{transition:?} on {before:?}: expires in {ttl} ms, in the model never"),
        }
        by_script
    }

    fn run_script(&mut self, transition: &dyn Transition, now: Timestamp) -> Result<Bytes, ErrorKind> {
        let call = transition.script().expect("the transition has a script");
        let clock = "redis.call('TIME')";
        assert!(call.source().matches(clock).count() <= 1, "a script asks for the time once");
        let source = call.source().replace(clock, "{ARGV[#ARGV - 1], ARGV[#ARGV]}");
        let micros = micros(now);
        let script = redis::Script::new(&source);
        let mut invocation = script.key(&self.key);
        for argument in call.arguments() {
            invocation.arg(argument);
        }
        invocation.arg(micros.div_euclid(1_000_000)).arg(micros.rem_euclid(1_000_000));
        match invocation.invoke::<redis::Value>(&mut self.connection) {
            Ok(redis::Value::BulkString(reply)) => {
                Ok(Bytes::copy_from_slice(reply.strip_suffix(b" told").unwrap_or(&reply)))
            }
            Ok(redis::Value::Int(reply)) => Ok(reply.to_string().into()),
            Ok(other) => panic!("{transition:?}: the script replies {other:?}"),
            Err(error) => match error.code() {
                Some("Corrupt") => Err(ErrorKind::Corrupt),
                Some("NotInteger") => Err(ErrorKind::NotInteger),
                Some("InvalidInput") => Err(ErrorKind::InvalidInput),
                Some("Conflict") => Err(ErrorKind::Conflict),
                _ => panic!("{transition:?}: {error}"),
            },
        }
    }

    /// Its reply, and whether it says anew when the value expires.
    fn run_transition(
        &mut self,
        transition: &dyn Transition,
        now: Timestamp,
    ) -> (Result<Bytes, ErrorKind>, bool) {
        let step = match transition.apply(self.state(), now) {
            Ok(step) => step,
            Err(error) => return (Err(error.kind()), false),
        };
        let sets_expiry = match &step.action {
            Action::Put { expiry, .. } | Action::Expire(expiry) => *expiry != Expiry::Keep,
            Action::Nothing | Action::Delete => false,
        };
        let after = |expiry, kept: Option<i64>| match expiry {
            Expiry::Never => None,
            Expiry::Keep => kept,
            Expiry::After(ttl) => Some(now.saturating_add(ttl).as_nanos()),
        };
        let kept = self.model.as_ref().and_then(|(_, expires)| *expires);
        match step.action {
            Action::Nothing => {}
            Action::Put { value, expiry } => self.model = Some((value, after(expiry, kept))),
            Action::Expire(expiry) => {
                if let Some((_, expires)) = &mut self.model {
                    *expires = after(expiry, kept);
                }
            }
            Action::Delete => self.model = None,
        }
        (Ok(step.reply), sets_expiry)
    }
}
