//! Reads that see every write that was acknowledged before.

use bytes::Bytes;
use commonhold_core::{Key, Result, ScriptCall, Step, Store, Timestamp, Transition};
use futures_util::future::try_join_all;

/// The values under these keys, never from a replica that may be behind: each of its own moment.
pub(crate) async fn newest(store: &Store, keys: &[Key]) -> Result<Vec<Option<Bytes>>> {
    if !store.capabilities().shared {
        return store.batch_get(keys).await;
    }
    let read = async |key| {
        let reply = store.transact(key, Read).await?;
        Ok((!reply.is_empty()).then(|| reply.slice(1..)))
    };
    try_join_all(keys.iter().map(read)).await
}

/// Replies nothing for no entry, and `=` before its value otherwise. Changes nothing.
#[derive(Debug, Clone, Copy)]
struct Read;

impl Transition for Read {
    fn name(&self) -> &'static str {
        "read"
    }

    fn apply(&self, state: Option<&[u8]>, _now: Timestamp) -> Result<Step> {
        Ok(Step::nothing(state.map_or_else(Vec::new, |value| [b"=", value].concat())))
    }

    fn script(&self) -> Option<ScriptCall> {
        let source = "local value = redis.call('GET', KEYS[1]) return value and '=' .. value or ''";
        Some(ScriptCall::new(source))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::twin::Twin;

    #[test]
    fn the_script_does_what_the_transition_does() {
        let mut twin = Twin::new();
        assert_eq!(twin.apply(&Read, Timestamp::default()).unwrap(), "");
        for value in [&b""[..], b"=", b"v", b"\0\xff"] {
            twin.put(value);
            assert_eq!(twin.apply(&Read, Timestamp::default()).unwrap(), [b"=", value].concat());
        }
    }
}
