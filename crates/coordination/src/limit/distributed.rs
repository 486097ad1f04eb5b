//! The limiter whose state lies in a store.

use std::{fmt, sync::Arc, time::Duration};

use commonhold_core::{Error, ErrorKind, Gather, Key, Result, Store};

use super::{
    Decision, Limit, OnUnavailable, Outcome,
    meter::{Meter, Verdict},
    state::STAYS_MICROS,
    take::{Peek, Take, decode},
    unavailable::Fallback,
    wait::until_allowed,
};
use crate::state;

/// Calls that travel together at most.
const TOGETHER: usize = 512;

/// Limits what all instances do together: the state is the entry `limit:NAME` of a store, and its clock is the store's.
///
/// A decision takes one round trip; calls that are made while another is in flight travel together in the next one.
/// Limiters of one name may have different limits, as while a new configuration is rolled out. Each decides by its own
/// on what is there, which all of them refill, so what holds is that together they let through no more than the
/// greatest burst at the greatest rate of them allows; of windows, the greatest number in the shortest time. An unused
/// entry goes away.
///
/// If the store's clock steps forward, what would have come in that time is there at once; if it steps back, nothing
/// refills until it is where it was: after a great step, [`reset`](Self::reset).
///
/// Cheap to clone; clones share everything.
#[derive(Clone)]
pub struct DistributedLimiter {
    store: Store,
    key: Key,
    name: Arc<str>,
    limit: Limit,
    calls: Arc<Gather<u64, Outcome>>,
    fallback: Arc<Fallback>,
    meter: Meter,
}

impl DistributedLimiter {
    /// The limiter of this name. The metrics name it so, too; see [`metered_as`](Self::metered_as).
    ///
    /// # Errors
    /// `InvalidInput` for an empty name or a local share of less than one permit; `TooLarge` for a name that makes no key;
    /// `Unsupported` if the store cannot let entries expire, or not as late as this limit needs.
    pub fn new(
        store: Store,
        name: &str,
        limit: impl Into<Limit>,
        on_unavailable: OnUnavailable,
    ) -> Result<Self> {
        let limit = limit.into();
        let key = key(&store, name, limit.memory())?;
        let fallback = Arc::new(Fallback::new(on_unavailable, limit)?);
        let (shared, at) = (store.clone(), key.clone());
        let calls = Gather::new(TOGETHER, move |permits: Vec<u64>| {
            let (store, key) = (shared.clone(), at.clone());
            async move {
                let callers = permits.len();
                let reply = store.transact(&key, Take { limit, permits }).await?;
                Ok(decode(&reply, callers)?.into_iter().map(Ok).collect())
            }
        });
        let meter = Meter::new(name, "distributed");
        Ok(Self { store, key, name: name.into(), limit, calls: Arc::new(calls), fallback, meter })
    }

    /// Counts its decisions in the metrics under another name: one for all limiters of a kind, where there is one
    /// for each user.
    #[must_use]
    pub fn metered_as(mut self, name: &str) -> Self {
        self.meter = Meter::new(name, "distributed");
        self
    }

    /// What it holds to.
    pub fn limit(&self) -> Limit {
        self.limit
    }

    /// Takes so many permits if they are there. If the store is away, [`OnUnavailable`] decides.
    ///
    /// Cancellation: a future that is dropped may have taken them.
    ///
    /// # Errors
    /// `InvalidInput` for 0, or more than the limit ever has at once; what the store says if the same call would fail
    /// again, as `Corrupt` or `Unauthorized`.
    pub async fn try_acquire(&self, permits: u64) -> Result<Decision> {
        Ok(self.ask(permits).await?.0)
    }

    /// Waits until so many permits are there and takes them. Callers are not in line: who asks for many may wait
    /// long while others ask for few.
    ///
    /// Cancellation: a future that is dropped while it waits has taken nothing; while it asks, it may have.
    ///
    /// # Errors
    /// As [`try_acquire`](Self::try_acquire). If the store is away and the rule refuses, the store's error; with a
    /// local share it waits for that, unless the call may have been charged already.
    pub async fn acquire(&self, permits: u64) -> Result<Decision> {
        until_allowed(None, || self.ask(permits)).await
    }

    /// The same, for about this long.
    ///
    /// Refused as soon as it would have to ask again later than that; nothing is taken then.
    ///
    /// # Errors
    /// As [`acquire`](Self::acquire).
    pub async fn acquire_timeout(&self, permits: u64, timeout: Duration) -> Result<Decision> {
        until_allowed(Some(timeout), || self.ask(permits)).await
    }

    /// What a call for one permit would be told, with what remains before it. Takes nothing.
    ///
    /// # Errors
    /// Whatever keeps the store from answering.
    pub async fn peek(&self) -> Result<Decision> {
        peek(&self.store, &self.key, self.limit).await
    }

    /// Forgets what was taken, for all instances. What they hold on lease they may spend still.
    ///
    /// # Errors
    /// Whatever keeps the store from answering.
    pub async fn reset(&self) -> Result<()> {
        self.store.delete(&self.key).await.map(drop)
    }

    async fn ask(&self, permits: u64) -> Result<(Decision, Option<Error>)> {
        self.limit.check(permits)?;
        match self.fallback.ask(&self.name, self.calls.call(permits)).await? {
            Ok(outcome) => {
                self.meter.count(Verdict::of(outcome.allowed), Some(outcome.remaining));
                Ok((outcome.into(), None))
            }
            Err(error) => self.fallback.decide(permits, error, &self.meter),
        }
    }
}

impl fmt::Debug for DistributedLimiter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DistributedLimiter")
            .field("name", &self.name)
            .field("limit", &self.limit)
            .finish_non_exhaustive()
    }
}

/// The key of a limiter in a store that can hold it for as long as it remembers.
pub(super) fn key(store: &Store, name: &str, memory: Duration) -> Result<Key> {
    let needed = memory.saturating_add(Duration::from_micros(STAYS_MICROS));
    let offered = store.capabilities();
    if !offered.ttl || offered.max_ttl < needed {
        let message = format!("this limiter needs entries that expire after up to {needed:?}");
        return Err(Error::new(ErrorKind::Unsupported, message).at(store.backend().name(), "limit"));
    }
    state::key("limit:", name)
}

pub(super) async fn peek(store: &Store, key: &Key, limit: Limit) -> Result<Decision> {
    let reply = store.transact(key, Peek(limit)).await?;
    let outcome = decode(&reply, 1)?.into_iter().next();
    outcome
        .map(Decision::from)
        .ok_or_else(|| Error::new(ErrorKind::Internal, "a look at a limiter got no answer"))
}
