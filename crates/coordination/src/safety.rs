//! What a lock can be relied on for.

use std::fmt;

use commonhold_core::{Capabilities, Store};

/// Under which faults locks, semaphores and elections of a store keep their promise that nobody else holds what one
/// holds. `Display` says it in words.
///
/// On every store the promise needs two things besides: the clocks of the holder and of the store must not differ in speed
/// by more than 1 %, and the store's clock must not be set forward. (Where processes tell the store's time themselves, which
/// is so with Memcached, leases last at least four times as long as they may be apart, and are given up as much earlier.)
/// And on every store a holder that was paused learns
/// too late that it lost the lock. Against all of these a [fence](crate::Fenced) keeps what it protects from harm,
/// wherever the fence and the value were not lost themselves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Safety {
    /// Holders in several processes exclude each other, not only tasks of one.
    pub between_processes: bool,
    /// A lock that was granted is still known when the store was killed and started again.
    ///
    /// Redis promises no such thing as it comes; with `appendonly yes` and `appendfsync always` it does. Memcached may
    /// also forget at any other time, when its memory is full.
    pub survives_restart: bool,
    /// A lock that was granted is still known when a replica took the primary's place.
    ///
    /// Neither Redis (Sentinel, Cluster) nor PostgreSQL with asynchronous replicas promises that: what the replica had not
    /// heard of is lost. PostgreSQL with synchronous replicas does, which the store cannot see.
    pub survives_failover: bool,
    /// [Fenced writes](crate::Fenced) are possible in this store.
    pub fenced_writes: bool,
}

impl Safety {
    pub(crate) fn of(store: &Store) -> Self {
        let Capabilities { shared, durable, atomic_batch, .. } = store.capabilities();
        Self {
            between_processes: shared,
            survives_restart: durable,
            // A store that one process has open has no replicas.
            survives_failover: !shared,
            fenced_writes: atomic_batch,
        }
    }
}

impl fmt::Display for Safety {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { between_processes, survives_restart, survives_failover, fenced_writes } = *self;
        let say = |yes: bool, this: &'static str, that: &'static str| if yes { this } else { that };
        write!(
            f,
            "excludes {}; {} a restart of the store; {}; writes {} be fenced",
            say(between_processes, "processes from each other", "only tasks of one process from each other"),
            say(survives_restart, "survives", "may be forgotten at"),
            say(
                survives_failover,
                "there are no replicas to fail over to",
                "may be forgotten at a failover to a replica"
            ),
            say(fenced_writes, "can", "cannot"),
        )
    }
}

#[cfg(test)]
mod tests {
    use commonhold_core::MemoryBackend;

    use super::*;

    #[test]
    fn what_is_promised_is_said_in_words() {
        let safety = Safety::of(&Store::new(MemoryBackend::new()));
        assert_eq!(
            safety.to_string(),
            "excludes only tasks of one process from each other; may be forgotten at a restart of the store; there are \
             no replicas to fail over to; writes can be fenced"
        );
    }
}
