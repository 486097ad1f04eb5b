//! Transitions: as scripts where they have one, as compare-and-swap on the server's time where not.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use commonhold_core::{
    Action, Error, ErrorKind, Expiry, Increment, Key, Result, Retry, ScriptCall, Timestamp, Transition,
};

use crate::{
    driver::{Value, array, bytes, command, integer},
    error::{Access, unexpected},
    keyspace::Keyspace,
    node::{Request, Script},
    servers::Servers,
    writes::{Rules, time_to_live},
};

/// How often a compare-and-swap is tried before it fails: a hundred tasks on one key take their turns in less.
const MAX_ATTEMPTS: u32 = 256;

/// Applies transitions on the servers of a store.
#[derive(Debug)]
pub(crate) struct Transitions {
    servers: Servers,
    keyspace: Keyspace,
    rules: Rules,
    look: Script,
    swap: Script,
    /// By the address and length of their text, which never changes.
    scripts: Mutex<HashMap<(usize, usize), Script>>,
}

/// A value and the time at which it was that.
struct Seen {
    value: Option<Bytes>,
    at: Timestamp,
}

impl Transitions {
    pub(crate) fn new(servers: Servers, keyspace: Keyspace, rules: Rules) -> Self {
        Self {
            servers,
            keyspace,
            rules,
            look: Script::new(include_str!("scripts/look.lua")),
            swap: Script::new(include_str!("scripts/swap.lua")),
            scripts: Mutex::default(),
        }
    }

    pub(crate) async fn apply(&self, key: &Key, transition: &dyn Transition) -> Result<Bytes> {
        let key = self.keyspace.full(key);
        if let Some(increment) = transition.as_increment() {
            return self.increment(&key, increment).await;
        }
        match transition.script() {
            // A script does not know of the default.
            Some(call) if self.rules.default_ttl.is_none() => self.call(&key, call).await,
            _ => self.compare_and_swap(&key, transition).await,
        }
    }

    /// INCRBY takes canonical integers only and keeps the time to live, as the transition does. Only what a new counter is
    /// to live for takes a script.
    async fn increment(&self, key: &Bytes, increment: &Increment) -> Result<Bytes> {
        let ttl = increment.ttl.or(self.rules.default_ttl);
        Expiry::from(ttl).check()?;
        if let Some(call) = (Increment { ttl, ..*increment }).script() {
            return self.call(key, call).await;
        }
        let mut incrby = command("INCRBY");
        incrby.arg(&key[..]).arg(increment.delta);
        let sum = integer(self.servers.send(key, &Request::new(Access::Write, incrby)).await?)?;
        Ok(sum.to_string().into())
    }

    async fn call(&self, key: &Bytes, call: ScriptCall) -> Result<Bytes> {
        let script = self.script(call.source());
        let request = script.call(Access::Write, [key].into_iter()).args(call.arguments());
        Ok(bytes(self.servers.send(key, &request).await?)?.unwrap_or_default())
    }

    fn script(&self, source: &'static str) -> Script {
        // A std mutex: it is held for a look and never across an await.
        let mut scripts = self.scripts.lock().unwrap_or_else(PoisonError::into_inner);
        let address = (source.as_ptr() as usize, source.len());
        scripts.entry(address).or_insert_with(|| Script::new(source)).clone()
    }

    /// Compares values alone: that one was another meanwhile makes no difference to what the transition decides.
    async fn compare_and_swap(&self, key: &Bytes, transition: &dyn Transition) -> Result<Bytes> {
        let look = self.look.call(Access::Read, [key].into_iter());
        let mut seen = parse(self.servers.send(key, &look).await?)?;
        for attempt in 1..=MAX_ATTEMPTS {
            let step = transition.apply(seen.value.as_deref(), seen.at)?;
            let Some((action, ttl, value)) = self.action(step.action, seen.value.is_some())? else {
                return Ok(step.reply);
            };
            let expected = match &seen.value {
                None => b"-".to_vec(),
                Some(value) => [b"=", &value[..]].concat(),
            };
            let swap = self.swap.call(Access::Write, [key].into_iter());
            let swap = swap.arg(expected).arg(action).arg(ttl).arg(value);
            match self.servers.send(key, &swap).await? {
                Value::Int(1) => return Ok(step.reply),
                other => seen = parse(other)?,
            }
            // Apart by chance, and further each time, so that the same do not meet again and again.
            let longest = Duration::from_millis(1 << (attempt / 4).min(6));
            tokio::time::sleep(longest.mul_f64(fastrand::f64())).await;
        }
        let message = format!("another writer changed the value before each of {MAX_ATTEMPTS} attempts");
        Err(Error::new(ErrorKind::Conflict, message).with_retry(Retry::Safe))
    }

    /// What the server is to do; nothing if there is nothing to do.
    fn action(&self, action: Action, there: bool) -> Result<Option<(&'static str, String, Bytes)>> {
        Ok(match action {
            Action::Put { value, expiry } => {
                let expiry = self.rules.check(&value, expiry)?;
                Some(("put", time_to_live(expiry), value))
            }
            Action::Expire(expiry) => {
                expiry.check()?;
                let changes = there && expiry != Expiry::Keep;
                changes.then(|| ("expire", time_to_live(expiry), Bytes::new()))
            }
            Action::Delete => there.then(|| ("delete", String::new(), Bytes::new())),
            Action::Nothing => None,
        })
    }
}

fn parse(reply: Value) -> Result<Seen> {
    let mut reply = array(reply)?.into_iter();
    let mut next = || reply.next().ok_or_else(unexpected);
    let value = bytes(next()?)?;
    Ok(Seen { value, at: time(next()?, next()?)? })
}

/// The time as TIME tells it: seconds and microseconds.
pub(crate) fn time(seconds: Value, micros: Value) -> Result<Timestamp> {
    let nanos = integer(seconds)?
        .checked_mul(1_000_000_000)
        .and_then(|nanos| nanos.checked_add(integer(micros).ok()?.checked_mul(1_000)?));
    nanos.map(Timestamp::from_nanos).ok_or_else(unexpected)
}
