//! Times to live as Memcached takes them: whole seconds of the server's own time.

use std::time::Duration;

use commonhold_core::{Error, ErrorKind, Expiry, Result};

use crate::{
    backend::unexpected,
    connection::LAST_SECOND,
    keys::WireKey,
    server::Server,
    wire::{Commands, Reply, Set, When},
};

/// Up to this many seconds are counted from now, more from 1970.
const MAX_RELATIVE: u64 = 30 * 24 * 60 * 60;

/// How often the server's time is read before that counts as failed. Each fails only if a second ends within.
const MAX_READINGS: usize = 20;

/// Checks the range that is the same for all stores, and what Memcached can tell in any year.
pub(crate) fn check(expiry: Expiry) -> Result<()> {
    expiry.check()?;
    match expiry {
        Expiry::After(ttl) if ttl.as_secs() >= LAST_SECOND => Err(too_late()),
        _ => Ok(()),
    }
}

fn too_late() -> Error {
    let message = "Memcached tells times to January 2038 only; take a shorter time to live, or none";
    Error::new(ErrorKind::InvalidInput, message)
}

/// The seconds to send so that an entry does not expire early: the one that has begun does not count.
fn seconds(ttl: Duration) -> u64 {
    ttl.as_secs() + u64::from(ttl.subsec_nanos() > 0) + 1
}

impl Server {
    /// When a value expires that is put now.
    pub(crate) async fn expires(&self, expiry: Expiry) -> Result<u64> {
        let Expiry::After(ttl) = expiry else { return Ok(0) };
        let seconds = seconds(ttl);
        if seconds <= MAX_RELATIVE {
            return Ok(seconds);
        }
        let mut commands = self.commands();
        ask_time(&mut commands);
        let now = match self.ask(commands).await?.single_of_two()? {
            Reply::Done(flags) => LAST_SECOND.saturating_sub(flags.seconds_left.unwrap_or_default()),
            other => return Err(unexpected(other)),
        };
        // One more second, should the next one begin before it is stored.
        let at = now + seconds + 1;
        if at > LAST_SECOND { Err(too_late()) } else { Ok(at) }
    }

    /// At which second an entry expires, exactly: put again with the seconds that it has left, it would live longer
    /// each time that a second ends in between, and one that is changed all the time for ever.
    ///
    /// So the time is read before and after. `None` if the entry has changed.
    pub(crate) async fn expires_at(&self, connection: u64, key: &WireKey, cas: u64) -> Result<Option<u64>> {
        for _ in 0..MAX_READINGS {
            let mut commands = self.commands();
            ask_time(&mut commands);
            commands.get(key, "t c");
            commands.get(&WireKey::clock(), "t");
            let Some(answer) = self.ask_on(connection, commands).await? else { return Ok(None) };
            let [_, before, entry, after] = answer.array()?;
            match (before, entry, after) {
                (Reply::Done(before), Reply::Done(entry), Reply::Done(after)) => {
                    if entry.cas != Some(cas) {
                        return Ok(None);
                    }
                    if let (Some(clock), Some(left)) = (before.seconds_left, entry.seconds_left)
                        && before.seconds_left == after.seconds_left
                    {
                        return Ok(Some(LAST_SECOND.saturating_sub(clock) + left));
                    }
                }
                (_, Reply::Missing(_), _) => return Ok(None),
                // The clock was evicted in between.
                (Reply::Missing(_), ..) | (.., Reply::Missing(_)) => {}
                (Reply::Done(_), Reply::Done(_), other) | (Reply::Done(_), other, _) | (other, ..) => {
                    return Err(unexpected(other));
                }
            }
        }
        Err(Error::new(ErrorKind::Overloaded, "the server is too slow to tell its time")
            .with_retry(commonhold_core::Retry::Safe))
    }
}

/// How much time is left until [`LAST_SECOND`]: that is an entry which expires then. Answered by two replies.
pub(crate) fn ask_time(commands: &mut Commands) {
    let (clock, writes) = (WireKey::clock(), commands.writes);
    commands.set(&clock, b"", Set { when: When::Absent, expires: LAST_SECOND, client_flags: 0 });
    commands.get(&clock, "t");
    // Nobody minds if that is repeated.
    commands.writes = writes;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_to_live_are_rounded_up_behind_the_second_that_has_begun() {
        for (nanos, expected) in [(1, 2), (1_000_000_000, 2), (1_000_000_001, 3), (1_500_000_000, 3)] {
            assert_eq!(seconds(Duration::from_nanos(nanos)), expected);
        }
    }

    #[test]
    fn times_that_memcached_cannot_tell_are_refused() {
        for ttl in [Duration::ZERO, Expiry::MAX, Duration::MAX] {
            assert_eq!(check(Expiry::After(ttl)).unwrap_err().kind(), ErrorKind::InvalidInput);
        }
        assert!(check(Expiry::After(Duration::from_secs(31 * 24 * 60 * 60))).is_ok());
    }
}
