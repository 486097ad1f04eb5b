//! The limiter of how many calls are in progress at a time.

mod hold;
mod inner;
mod line;
#[cfg(test)]
mod model;
mod pool;
mod shared;
mod told;
#[cfg(test)]
mod twins;

use std::{fmt, sync::Arc, time::Duration};

use commonhold_core::{Error, ErrorKind, Result, Retry, Store};
use tokio_util::sync::CancellationToken;

use self::{
    hold::Look,
    inner::{Inner, any_id},
    pool::{Form, Next, Pool},
    shared::{After, Answer, Later, Remote, Shared},
};
use super::{
    Decision, OnUnavailable,
    meter::{Meter, Verdict},
};
use crate::holders::{process_name, to_label};

/// Limits how many calls are in progress at a time: each takes permits and holds them until it drops them.
///
/// | form | a decision takes | who comes next |
/// |---|---|---|
/// | [`local`](Self::local) | nanoseconds | who came first |
/// | [`distributed`](Self::distributed) | one round trip; those that are made together travel together | within an instance who came first; between instances by shares |
/// | [`hybrid`](Self::hybrid) | nanoseconds, and now and then a round trip | the same |
///
/// **Never more than the limit are held.** What an instance holds in the store is one lease, however many its calls are: it
/// is renewed in the background, and comes back when it ends on the store's clock. A second is a good lease: what instances
/// learn of each other they learn in parts of it. An instance that cannot renew gives its permits up a tenth of the lease
/// earlier, by its own monotonic clock (which stands still while the machine is suspended), counted from before the request
/// was sent: so clocks may run up to 10 % too slow, and may show any time. The calls go on nevertheless; [`Permit::lost`]
/// tells them that they are over the limit now. If the store's clock steps back, leases last for as long as they would have;
/// if it steps forward past leases, or the store forgets them, what they held is given to others once more.
///
/// Between instances: while some lack permits, none holds more than an equal share, where those that want less leave the rest
/// to the others. Who has more gives it up as its calls end. That others lack some it learns when it next asks, after a third
/// of a lease at the latest. With fewer permits than instances that want some they take turns, and so does, for a lease at a
/// time, who wants more in one call than its share. Whoever gives some back tells the instance that has waited longest for no
/// more than is free, where the store has messages. Whoever waits asks again besides, after half of the time that calls take here, or up to twice that,
/// but after 1/50 of a lease at the earliest, and 1/10 or 2 s at the latest. Who needs to be next in order of time takes a
/// [`Semaphore`](crate::Semaphore), where each permit is a lease of its own with a fencing token.
///
/// Instances may go by different limits, as while a new configuration is rolled out: each takes nothing that is more than its
/// own allows, and while some lack permits all share as many as the smallest has. Up to 1,000 instances can hold permits at a
/// time; one more gets `Overloaded`.
///
/// A call asks the store itself. What is to be asked later, as for those who wait or to renew, a task does, on the runtime of
/// whoever found that there was none; while that runtime is not driven, as one for the current thread between two calls of
/// `block_on`, that is not done.
///
/// Cheap to clone; clones share everything. When the last clone and the last permit are dropped, the lease is given back in
/// the background; outside of a runtime it ends by itself.
///
/// ```
/// # tokio::runtime::Runtime::new().unwrap().block_on(async {
/// use std::time::Duration;
/// use commonhold_coordination::limit::{ConcurrencyLimiter, OnUnavailable};
/// use commonhold_core::{MemoryBackend, Store};
///
/// let store = Store::new(MemoryBackend::new());
/// let lease = Duration::from_secs(1);
/// let limiter = ConcurrencyLimiter::hybrid(store, "search", 2, lease, OnUnavailable::Refuse)?;
/// let Ok(permit) = limiter.try_acquire(2).await? else { panic!("two are free") };
/// let Err(decision) = limiter.try_acquire(1).await? else { panic!("none is free") };
/// println!("come back in about {:?}", decision.retry_after);
/// drop(permit);
/// assert!(limiter.acquire(1).await.is_ok());
/// # Ok::<(), commonhold_core::Error>(())
/// # }).unwrap();
/// ```
#[derive(Clone)]
pub struct ConcurrencyLimiter {
    shared: Arc<Shared>,
    meter: Option<Meter>,
}

/// Permits that are in use. Dropping it returns them.
#[must_use = "its permits are returned when it is dropped"]
pub struct Permit {
    shared: Arc<Shared>,
    permits: u64,
    /// Under which they are held; none if the store was away.
    lease: Option<Arc<Lease>>,
    since: u64,
    decision: Decision,
}

/// What an instance holds of a concurrency limit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Instance {
    /// Its process and machine, as in `4711@host`.
    pub label: Vec<u8>,
    /// How many permits: those in use, and those that a hybrid limiter keeps for its next calls.
    pub held: u64,
    /// How many it would like to have: more while some of its calls wait, fewer than `held` if it is about to give some up.
    pub wanted: u64,
    /// How long it holds them unless it renews, which it does after a third of a lease.
    pub left: Duration,
}

/// Cancelled when it is over. In a counter of its own: to clone a token takes a lock.
type Lease = CancellationToken;

/// The most permits that there can be.
const MAX_PERMITS: u64 = 1 << 32;

impl ConcurrencyLimiter {
    /// What the keys of concurrency limits begin with; their names follow.
    pub const KEY_PREFIX: &str = "concurrency:";

    /// So many at a time in this process. Its decisions are not counted unless it is [`metered_as`](Self::metered_as).
    ///
    /// # Errors
    /// `InvalidInput` for none or more than 2^32.
    pub fn local(permits: u64) -> Result<Self> {
        Self::new(Form::Local, permits, Duration::ZERO, None)
    }

    /// So many at a time in all instances. Permits come from the store and go back at once: the entry `concurrency:NAME`.
    ///
    /// # Errors
    /// `InvalidInput` for an empty name, no permits or more than 2^32, a lease shorter than 100 ms (where the clocks of
    /// instances decide: 4 times what they may be apart) or longer than an hour, or a local share of less than one permit;
    /// `TooLarge` for a name that makes no key or no channel; `Unsupported` if the store cannot let entries expire.
    pub fn distributed(
        store: Store,
        name: &str,
        permits: u64,
        lease: Duration,
        on_unavailable: OnUnavailable,
    ) -> Result<Self> {
        let remote = Remote::new(store, name, permits, lease, on_unavailable)?;
        Self::new(Form::Distributed, permits, lease, Some(remote))
    }

    /// The same, but an instance keeps as many as its calls have needed at a time lately, and gives back the others after two
    /// thirds of a lease at the latest: most calls are decided here. A call may be refused while another instance keeps
    /// permits that it does not use now. Instances of both forms share the limit.
    ///
    /// # Errors
    /// As [`distributed`](Self::distributed).
    pub fn hybrid(
        store: Store,
        name: &str,
        permits: u64,
        lease: Duration,
        on_unavailable: OnUnavailable,
    ) -> Result<Self> {
        let remote = Remote::new(store, name, permits, lease, on_unavailable)?;
        Self::new(Form::Hybrid, permits, lease, Some(remote))
    }

    fn new(form: Form, permits: u64, lease: Duration, remote: Option<Remote>) -> Result<Self> {
        check(permits, MAX_PERMITS)?;
        let micros = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        let clock_error = remote.as_ref().map_or(Duration::ZERO, |remote| remote.clock_error);
        let meter = match form {
            Form::Local => None,
            Form::Distributed => Some("distributed"),
            Form::Hybrid => Some("hybrid"),
        };
        let meter = meter.zip(remote.as_ref()).map(|(form, remote)| Meter::new(&remote.name, form));
        let instance = (any_id(), to_label(process_name().as_bytes()).into());
        let pool = Pool::new(form, permits, (micros(lease), micros(clock_error)), instance);
        Ok(Self { shared: Arc::new(Shared::new(permits, remote, pool)), meter })
    }

    /// Counts its decisions in the metrics under this name instead of its own.
    #[must_use]
    pub fn metered_as(mut self, name: &str) -> Self {
        self.meter = Some(match &self.meter {
            Some(meter) => meter.named(name),
            None => Meter::new(name, "local"),
        });
        self
    }

    /// How many at a time.
    pub fn limit(&self) -> u64 {
        self.shared.limit
    }

    /// Takes so many permits if they are free and nobody stands in line here. If the store is away, [`OnUnavailable`]
    /// decides once what is here is in use.
    ///
    /// Of a refusal, [`retry_after`](Decision::retry_after) and [`reset_after`](Decision::reset_after) are guesses: by how
    /// long permits were in use in this instance lately. A hybrid limiter refuses as many, without asking, until then.
    ///
    /// Cancellation: a future that is dropped has taken nothing.
    ///
    /// # Errors
    /// `InvalidInput` for 0, or more than there are; what the store says if the same call would fail again, as `Corrupt` or
    /// `Unauthorized`.
    pub async fn try_acquire(&self, permits: u64) -> Result<std::result::Result<Permit, Decision>> {
        if let Some(permit) = self.take_here(permits)? {
            return Ok(Ok(permit));
        }
        self.admit(permits, false).await
    }

    /// Waits for so many permits and takes them.
    ///
    /// Cancellation: a future that is dropped has taken nothing, and stands in line no more.
    ///
    /// # Errors
    /// As [`try_acquire`](Self::try_acquire). If the store is away and the rule refuses, the store's error; with a local
    /// share it waits for that.
    pub async fn acquire(&self, permits: u64) -> Result<Permit> {
        if let Some(permit) = self.take_here(permits)? {
            return Ok(permit);
        }
        let answer = self.admit(permits, true).await?;
        // Who waits is not refused.
        answer.map_err(|_| Error::new(ErrorKind::Internal, "a call that waits for permits was refused"))
    }

    /// The same, for this long: refused if it has none by then. It asks now and then, so what came back just before may go
    /// unseen, and in less than a round trip nothing is had of a store.
    ///
    /// # Errors
    /// As [`acquire`](Self::acquire).
    pub async fn acquire_timeout(
        &self,
        permits: u64,
        timeout: Duration,
    ) -> Result<std::result::Result<Permit, Decision>> {
        match tokio::time::timeout(timeout, self.acquire(permits)).await {
            Ok(permit) => permit.map(Ok),
            Err(_) => {
                let decision = self.shared.refusal(permits);
                self.count(&decision);
                Ok(Err(decision))
            }
        }
    }

    /// How many permits can be had now: here, and of a store those that no instance holds.
    ///
    /// # Errors
    /// Whatever keeps the store from answering.
    pub async fn remaining(&self) -> Result<u64> {
        let shared = &self.shared;
        let here = || shared.inner().pool.idle_now(shared.now());
        if shared.remote.is_none() {
            return Ok(here());
        }
        let held: u64 = self.show().await?.iter().map(|instance| instance.held).sum();
        // What is given back meanwhile may be in both.
        Ok(shared.limit.min(here() + shared.limit.saturating_sub(held)))
    }

    /// What each instance holds, in order of their labels; a local limiter shows its own.
    ///
    /// # Errors
    /// Whatever keeps the store from answering; `Corrupt` if something else lies there.
    pub async fn show(&self) -> Result<Vec<Instance>> {
        let shared = &self.shared;
        if let Some(remote) = &shared.remote {
            return Look::decode(&remote.store.transact(&remote.key, Look).await?);
        }
        let inner = shared.inner();
        let (held, label) = (inner.out, process_name().into_bytes());
        let wanted = held + inner.line.waiting().all;
        Ok(vec![Instance { label, held, wanted, left: Duration::MAX }])
    }

    /// Gives back now what is not in use, and wants no more than what calls wait for. The limiter can go on to be used.
    ///
    /// # Errors
    /// Whatever keeps the store from answering; the lease then ends by itself.
    pub async fn release(&self) -> Result<()> {
        let shared = &self.shared;
        if shared.remote.is_none() {
            return Ok(());
        }
        let _later = Later(shared);
        let _turn = shared.turn.lock().await;
        // A request that has no reply yet comes first.
        for _ in 0..2 {
            let is_released = {
                let inner = shared.inner();
                inner.pool.is_released(inner.line.waiting())
            };
            if !is_released {
                let tell = shared.exchange(Inner::release).await?;
                if let Some(tell) = tell {
                    tell.await;
                }
            }
        }
        Ok(())
    }

    /// Takes so many permits if they are here.
    fn take_here(&self, permits: u64) -> Result<Option<Permit>> {
        let shared = &self.shared;
        check(permits, shared.limit)?;
        let now = shared.now();
        let taken = shared.inner().take(permits, now);
        let permit = taken.map(|admitted| admitted.permit(shared));
        if let Some(permit) = &permit {
            self.count(&permit.decision);
        }
        Ok(permit)
    }

    async fn admit(&self, permits: u64, patient: bool) -> Answer {
        let answer = self.shared.admit(permits, patient).await;
        match &answer {
            Ok(Ok(permit)) => self.count(&permit.decision),
            Ok(Err(decision)) => self.count(decision),
            // What the rule has refused to one who would have waited.
            Err(error) if error.retry() != Retry::Never => {
                let decision = self.shared.refusal(permits);
                self.count(&Decision { degraded: true, ..decision });
            }
            Err(_) => {}
        }
        answer
    }

    fn count(&self, decision: &Decision) {
        let Some(meter) = &self.meter else { return };
        let rule = self.shared.remote.as_ref().map(|remote| remote.rule);
        let verdict = match (decision.degraded, decision.allowed, rule) {
            (false, allowed, _) => Verdict::of(allowed),
            (true, true, Some(OnUnavailable::LocalShare { .. })) => Verdict::ShareAllowed,
            (true, false, Some(OnUnavailable::LocalShare { .. })) => Verdict::ShareRefused,
            (true, true, _) => Verdict::FailedOpen,
            (true, false, _) => Verdict::FailedClosed,
        };
        meter.count(verdict, (!decision.degraded).then_some(decision.remaining));
    }
}

impl Permit {
    /// How many permits it has.
    pub fn permits(&self) -> u64 {
        self.permits
    }

    /// What was said when they were taken.
    pub fn decision(&self) -> Decision {
        self.decision
    }

    /// Whether they are held for sure. Those that were let through without the store are held by no lease and are not lost.
    pub fn is_held(&self) -> bool {
        let inner = self.shared.inner();
        let holds = |lease| Arc::ptr_eq(lease, &inner.lease) && inner.pool.holds(self.shared.now());
        self.lease.as_ref().is_none_or(holds)
    }

    /// Cancelled when they are no longer sure to be held: others may be given them. That is the work of the task that renews;
    /// where its runtime has ended or is not driven, only [`is_held`](Self::is_held) tells.
    pub fn lost(&self) -> CancellationToken {
        self.lease.as_ref().map(|lease| lease.child_token()).unwrap_or_default()
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let shared = &self.shared;
        let now = shared.now();
        let (answers, ask) = {
            let mut inner = shared.inner();
            inner.out -= self.permits;
            let used_for = now.saturating_sub(self.since);
            // The mean of about the last eight.
            let mean = inner.in_use_for.map_or(used_for, |mean| mean - mean / 8 + used_for / 8);
            inner.in_use_for = Some(mean);
            if self.lease.as_ref().is_some_and(|lease| Arc::ptr_eq(lease, &inner.lease)) {
                inner.pool.give_back(self.permits);
            }
            let answers = inner.serve(shared.share(), now);
            (answers, inner.away.is_none() && inner.pool.next(inner.line.waiting(), now) == Next::Ask)
        };
        if !answers.is_empty() {
            shared.finish(After { answers, over: None });
        }
        if ask {
            shared.drive();
        }
    }
}

impl fmt::Debug for ConcurrencyLimiter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.shared.remote.as_ref().map(|remote| &remote.name);
        f.debug_struct("ConcurrencyLimiter")
            .field("name", &name)
            .field("limit", &self.shared.limit)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Permit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Permit").field("permits", &self.permits).finish_non_exhaustive()
    }
}

fn check(permits: u64, most: u64) -> Result<()> {
    if (1..=most).contains(&permits) {
        return Ok(());
    }
    Err(Error::new(ErrorKind::InvalidInput, format!("from 1 to {most} permits, not {permits}")))
}
