//! The limiter that leases portions of a shared budget.

use std::{
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use commonhold_core::{Error, ErrorKind, Key, Result, Retry, Store};
use tokio::{runtime::Handle, time::sleep};

use super::{
    Decision, Limit, OnUnavailable,
    clock::Time,
    config::MAX,
    distributed::{key, peek},
    lease::Renew,
    meter::{Meter, Verdict},
    portion::{Local, Portion},
    unavailable::Fallback,
    wait::until_allowed,
};

/// Limits what all instances do together and decides most calls without asking: each instance holds a portion of the
/// budget on lease.
///
/// **Never more than the limit is let through**: what can be taken and what all instances hold never exceed the limit
/// together, whenever they spend it: of a [`TokenBucket`](super::TokenBucket) they let through at most
/// `burst + rate * T` over any time T, of a [`SlidingWindow`](super::SlidingWindow) its number in any window. An instance
/// that is gone loses its lease on the store's clock, and what it held counts as spent; one that cannot renew stops a
/// tenth of the lease earlier by its own monotonic clock, counted from before the request was sent. So clocks of
/// instances may run up to 10 % too slow, and may show any time. (As with every limiter, a process that is stopped
/// between the decision and what follows from it does that when it goes on.)
///
/// The price:
/// - Less than the limit may be let through while permits lie with instances that do not need them. An instance asks
///   for about what it needs for a quarter of a lease, and gives back what it does not, after a third of a lease at
///   the latest. Refill of a bucket stops while it and what is leased are full together, so give a burst of at least
///   `rate * lease` for throughput near the rate. In a window what was spent counts from when the store hears of it, up to
///   a third of a lease later, or when the lease of an instance that is gone ends: let it be a tenth of the window or less.
/// - A call may be refused here while another instance, or the bucket, still has permits. A request is given at most
///   one share of what is there, with one for each instance that wants some and one for whoever comes next: of a full
///   bucket a single instance gets half, then half of the rest, and so on. Over some leases instances with enough
///   demand get about the same, not call by call: in the tests four that each want all the rate get between 20 % and
///   35 % of it.
/// - Where there are no more permits than a call needs, the store is not asked again for as long as they need to flow,
///   at least for a twentieth of a lease or a quarter of the time in which the bucket fills or the window passes, and up
///   to twice that; but after a third of a lease it is, for others may have given some back.
///
/// The state is that of a [`DistributedLimiter`](super::DistributedLimiter) of this name and limit: instances of both
/// forms share one budget. Up to 1,000 instances can hold leases at a time; as each renewal reads them all, about a hundred
/// of one name are practical with leases of a second.
///
/// If the store's clock steps forward past leases, what they hold counts as spent too early: up to one burst, or what a
/// window has, more is let through, once.
///
/// Cheap to clone; clones share everything. When the last one is dropped, the portion is given back in the background.
///
/// ```
/// # tokio::runtime::Runtime::new().unwrap().block_on(async {
/// use std::time::Duration;
/// use commonhold_coordination::limit::{HybridLimiter, OnUnavailable, Rate, TokenBucket};
/// use commonhold_core::{MemoryBackend, Store};
///
/// let store = Store::new(MemoryBackend::new());
/// let limit = TokenBucket::new(Rate::per_second(1_000)?, 2_000)?;
/// let share = OnUnavailable::LocalShare { instances: 10 };
/// let limiter = HybridLimiter::new(store, "api", limit, Duration::from_secs(1), share)?;
/// assert!(limiter.try_acquire(1).await?.allowed);
/// limiter.release().await?;
/// # Ok::<(), commonhold_core::Error>(())
/// # }).unwrap();
/// ```
#[derive(Debug, Clone)]
pub struct HybridLimiter {
    shared: Arc<Shared>,
    meter: Meter,
}

struct Shared {
    store: Store,
    key: Key,
    name: Box<str>,
    limit: Limit,
    lease: Duration,
    time: Time,
    portion: Mutex<Portion>,
    /// One request at a time.
    turn: tokio::sync::Mutex<()>,
    /// There is a task that renews.
    renewing: AtomicBool,
    fallback: Fallback,
}

/// How often the store is asked for one call: for the reply to an earlier request, for this one, and again if its lease
/// ran out on the way.
const ATTEMPTS: usize = 3;

impl HybridLimiter {
    /// The limiter of this name, with leases of this length: a second is a good one. The metrics name it so,
    /// too; see [`metered_as`](Self::metered_as).
    ///
    /// # Errors
    /// `InvalidInput` for an empty name, a lease shorter than 10 ms (where the clocks of instances decide: 4 times what they
    /// may be apart) or longer than an hour, or a local share of less than one permit; `TooLarge` for a name that makes no
    /// key; `Unsupported` if the store cannot let entries expire, or not as late as this limit needs.
    pub fn new(
        store: Store,
        name: &str,
        limit: impl Into<Limit>,
        lease: Duration,
        on_unavailable: OnUnavailable,
    ) -> Result<Self> {
        let clock_error = store.capabilities().clock_error;
        let shortest = Duration::from_millis(10).max(4 * clock_error);
        if !(shortest..=Duration::from_secs(3_600)).contains(&lease) {
            let message = format!("a lease in this store lasts between {shortest:?} and 1 h, not {lease:?}");
            return Err(Error::new(ErrorKind::InvalidInput, message));
        }
        let limit = limit.into();
        let key = key(&store, name, limit.memory() + lease)?;
        let fallback = Fallback::new(on_unavailable, limit)?;
        let time = Time::monotonic();
        let micros = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(MAX);
        let lengths = (micros(lease), micros(clock_error));
        let portion = Portion::new(limit, fastrand::u64(..MAX), lengths, time.micros());
        let shared = Shared {
            store,
            key,
            name: name.into(),
            limit,
            lease,
            time,
            portion: Mutex::new(portion),
            turn: tokio::sync::Mutex::default(),
            renewing: AtomicBool::new(false),
            fallback,
        };
        Ok(Self { shared: Arc::new(shared), meter: Meter::new(name, "hybrid") })
    }

    /// Counts its decisions in the metrics under another name: one for all limiters of a kind, where there is one
    /// for each user.
    #[must_use]
    pub fn metered_as(mut self, name: &str) -> Self {
        self.meter = Meter::new(name, "hybrid");
        self
    }

    /// What it holds to.
    pub fn limit(&self) -> Limit {
        self.shared.limit
    }

    /// Takes so many permits if they are here, or can be had from the store. If that is away,
    /// [`OnUnavailable`] decides once what is here is spent.
    ///
    /// Cancellation: a future that is dropped has taken nothing.
    ///
    /// # Errors
    /// `InvalidInput` for 0, or more than the limit ever has at once; what the store says if the same call would fail
    /// again, as `Corrupt` or `Unauthorized`.
    pub async fn try_acquire(&self, permits: u64) -> Result<Decision> {
        Ok(self.decide(permits).await?.0)
    }

    /// Waits until so many permits are there and takes them. Callers are not in line: who asks for many may wait
    /// long while others ask for few.
    ///
    /// Cancellation: a future that is dropped has taken nothing.
    ///
    /// # Errors
    /// As [`try_acquire`](Self::try_acquire). If the store is away and the rule refuses, the store's error; with a
    /// local share it waits for that.
    pub async fn acquire(&self, permits: u64) -> Result<Decision> {
        until_allowed(None, || self.decide(permits)).await
    }

    /// The same, for about this long.
    ///
    /// Refused as soon as it would have to ask again later than that; nothing is taken then.
    ///
    /// # Errors
    /// As [`acquire`](Self::acquire).
    pub async fn acquire_timeout(&self, permits: u64, timeout: Duration) -> Result<Decision> {
        until_allowed(Some(timeout), || self.decide(permits)).await
    }

    /// What a call for one permit would be told if it had to be taken from what nobody has leased. Takes nothing.
    ///
    /// # Errors
    /// Whatever keeps the store from answering.
    pub async fn peek(&self) -> Result<Decision> {
        peek(&self.shared.store, &self.shared.key, self.shared.limit).await
    }

    /// Gives the portion back now, and says what was spent. The limiter can go on to be used.
    ///
    /// # Errors
    /// Whatever keeps the store from answering; the lease then ends by itself.
    pub async fn release(&self) -> Result<()> {
        let _turn = self.shared.turn.lock().await;
        while !self.shared.portion().is_given_back() {
            self.shared.exchange(Portion::give_back).await?;
        }
        Ok(())
    }

    async fn decide(&self, permits: u64) -> Result<(Decision, Option<Error>)> {
        if let Some(decision) = self.shared.decide(permits, true, &self.meter)? {
            return Ok((decision, None));
        }
        let shared = &self.shared;
        let _turn = match shared.fallback.away_with() {
            None => shared.turn.lock().await,
            // Whoever has the turn finds out whether the store is back, which can take long.
            Some(error) => match shared.turn.try_lock() {
                Ok(turn) => turn,
                Err(_) => return shared.fallback.decide(permits, error, &self.meter),
            },
        };
        for _ in 0..ATTEMPTS {
            // Whoever had the turn before may have brought enough, or learned that there is none.
            if let Some(decision) = shared.decide(permits, false, &self.meter)? {
                return Ok((decision, None));
            }
            let request = shared.exchange(|portion, now| portion.request(permits, now));
            if let Err(error) = shared.fallback.ask(&shared.name, request).await? {
                // Its requests can be repeated, so none of them is charged twice.
                let error = error.with_retry(Retry::Safe);
                return shared.fallback.decide(permits, error, &self.meter);
            }
            Shared::keep_renewing(shared);
        }
        if let Some(decision) = shared.decide(permits, false, &self.meter)? {
            return Ok((decision, None));
        }
        let message = "the store answers more slowly than the lease lasts: take a longer lease";
        let error = Error::new(ErrorKind::Timeout, message).with_retry(Retry::Safe);
        shared.fallback.decide(permits, error, &self.meter)
    }
}

impl Shared {
    /// What can be decided here. A call is noted as demand once.
    fn decide(&self, permits: u64, first: bool, meter: &Meter) -> Result<Option<Decision>> {
        let now = self.now();
        let (local, tokens) = {
            let mut portion = self.portion();
            if first {
                self.limit.check(permits)?;
                portion.wanted(permits);
            }
            (portion.take(permits, now), portion.tokens(now))
        };
        let (allowed, retry_micros) = match local {
            Local::Allowed => (true, 0),
            Local::Refused(micros) => (false, micros),
            Local::Ask => return Ok(None),
        };
        meter.count(Verdict::of(allowed), Some(tokens));
        Ok(Some(Decision {
            allowed,
            remaining: tokens,
            retry_after: Duration::from_micros(retry_micros),
            reset_after: self.lease + self.limit.memory(),
            degraded: false,
        }))
    }

    /// Sends a request and takes in its reply. Dropped in between, the request is repeated by the next exchange.
    async fn exchange(&self, make: impl FnOnce(&mut Portion, u64) -> Renew) -> Result<()> {
        let sent = self.now();
        let request = make(&mut self.portion(), sent);
        let reply = self.store.transact(&self.key, request).await?;
        let reply = Renew::decode(&reply)?;
        let now = self.now();
        self.portion().answered(reply, sent, now);
        Ok(())
    }

    /// Renews, and gives back what lies idle, as long as there is something.
    fn keep_renewing(shared: &Arc<Self>) {
        if shared.renewing.swap(true, Ordering::AcqRel) {
            return;
        }
        let (weak, pause) = (Arc::downgrade(shared), shared.lease / 3);
        // Made here: a task on a runtime that has ended is dropped before it begins.
        let ended = Ended(weak.clone());
        tokio::spawn(async move {
            loop {
                sleep(pause).await;
                let Some(shared) = weak.upgrade() else { return };
                let _turn = shared.turn.lock().await;
                if shared.portion().idle(shared.now()) {
                    // Before the turn ends: whoever is next begins another.
                    drop(ended);
                    return;
                }
                let request = shared.exchange(|portion, now| portion.request(0, now));
                if let Err(error) = shared.fallback.ask(&shared.name, request).await {
                    tracing::warn!(limiter = &*shared.name, %error, "a portion of a limiter cannot be renewed");
                }
            }
        });
    }

    fn now(&self) -> u64 {
        self.time.micros()
    }

    // A std mutex: it is held for a few steps, which cannot panic half-way, and never across an await.
    fn portion(&self) -> MutexGuard<'_, Portion> {
        self.portion.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Says that no task renews any more, however it ended.
struct Ended(Weak<Shared>);

impl Drop for Ended {
    fn drop(&mut self) {
        if let Some(shared) = self.0.upgrade() {
            shared.renewing.store(false, Ordering::Release);
        }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        let now = self.now();
        let mut portion = self.portion();
        if portion.is_leased(now)
            && let Ok(runtime) = Handle::try_current()
        {
            let (store, key) = (self.store.clone(), self.key.clone());
            let request = portion.leave(now);
            runtime.spawn(async move { store.transact(&key, request).await });
        }
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HybridLimiter")
            .field("name", &self.name)
            .field("limit", &self.limit)
            .field("lease", &self.lease)
            .finish_non_exhaustive()
    }
}
