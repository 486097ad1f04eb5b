//! The limiter of how many calls are in progress at a time.

mod hold;
mod line;

#[cfg(test)]
mod model;
mod pool;

#[cfg(test)]
mod twins;

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use commonhold_core::{Error, ErrorKind, Key, Result, Retry, Store};
use tokio::{
    runtime::Handle,
    sync::{Notify, oneshot},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use self::{
    hold::{Hold, Look},
    line::Line,
    pool::{Answered, Asked, Form, Next, Pool},
};
use super::{
    Decision, OnUnavailable,
    clock::Time,
    meter::{Meter, Verdict},
    state::STAYS_MICROS,
    unavailable::LEFT_ALONE,
};
use crate::state;

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
/// time, who wants more in one call than its share. Whoever waits asks again after half of the time that calls take here, or
/// up to twice that, but after 1/50 of a lease at the earliest and 1/10 at the latest. Who needs to be next in order of time
/// takes a [`Semaphore`](crate::Semaphore), where each permit is a lease of its own with a fencing token.
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

/// Cancelled when it is over. In a counter of its own: to clone a token takes a lock.
type Lease = CancellationToken;

struct Shared {
    limit: u64,
    remote: Option<Remote>,
    time: Time,
    inner: Mutex<Inner>,
    /// One request at a time.
    turn: tokio::sync::Mutex<()>,
    /// For the task that asks: something has changed.
    wake: Arc<Notify>,
}

struct Remote {
    store: Store,
    key: Key,
    name: Box<str>,
    clock_error: Duration,
    rule: OnUnavailable,
    /// How many this instance may use while the store is away.
    share: Option<u64>,
}

struct Inner {
    pool: Pool,
    line: Line,
    lease: Arc<Lease>,
    /// Permits that are out, lost ones and those that are of no lease among them.
    out: u64,
    /// For how long permits were in use lately, in microseconds.
    in_use_for: Option<u64>,
    /// There is a task that asks the store, and when it looks again.
    driven: bool,
    looks: u64,
    away: Option<(Error, Instant)>,
}

type Answer = Result<std::result::Result<Permit, Decision>>;

/// What is to be done once the lock is free.
struct After {
    answers: Vec<(oneshot::Sender<Answer>, Outcome)>,
    over: Option<Arc<Lease>>,
}

enum Outcome {
    /// The permits are counted as out.
    Admitted(Admitted),
    Refused(Decision),
    Failed(Error),
}

struct Admitted {
    permits: u64,
    lease: Option<Arc<Lease>>,
    since: u64,
    decision: Decision,
}

/// The most permits that there can be.
const MAX_PERMITS: u64 = 1 << 32;
const LEASES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(3_600));
/// How often a call begins a task that asks for it.
const ATTEMPTS: usize = 3;
/// When to ask again, in microseconds, before any permit has come back here.
const UNKNOWN: u64 = 100_000;

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
    /// `InvalidInput` for an empty name, no permits or more than 2^32, a lease shorter than 100 ms (where the clocks of instances
    /// decide: 4 times what they may be apart) or longer than an hour, or a local share of less than one permit; `TooLarge` for a name that makes no key; `Unsupported` if the store cannot let
    /// entries expire.
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
        let inner = Inner {
            pool: Pool::new(form, permits, (micros(lease), micros(clock_error)), any_id()),
            line: Line::default(),
            lease: Arc::default(),
            out: 0,
            in_use_for: None,
            driven: false,
            looks: 0,
            away: None,
        };
        let shared = Shared {
            limit: permits,
            remote,
            time: Time::monotonic(),
            inner: Mutex::new(inner),
            turn: tokio::sync::Mutex::default(),
            wake: Arc::default(),
        };
        Ok(Self { shared: Arc::new(shared), meter })
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

    /// The same, for this long: refused if they were not to be had until then.
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
        let Some(remote) = &shared.remote else { return Ok(here()) };
        let free = Look::decode(&remote.store.transact(&remote.key, Look(shared.limit)).await?)?;
        // What is given back meanwhile may be in both.
        Ok(shared.limit.min(here() + free))
    }

    /// Gives back now what is not in use. The limiter can go on to be used.
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
            if !shared.inner().pool.is_released() {
                shared.exchange(|inner, now| inner.pool.release(now)).await?;
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

impl Remote {
    fn new(store: Store, name: &str, permits: u64, lease: Duration, rule: OnUnavailable) -> Result<Self> {
        let invalid = |message| Err(Error::new(ErrorKind::InvalidInput, message));
        let offered = store.capabilities();
        let clock_error = offered.clock_error;
        let shortest = LEASES.0.max(4 * clock_error);
        if !(shortest..=LEASES.1).contains(&lease) {
            return invalid(format!(
                "a lease in this store lasts between {shortest:?} and 1 h, not {lease:?}"
            ));
        }
        let share = match rule {
            OnUnavailable::LocalShare { instances } => permits.checked_div(instances.into()),
            OnUnavailable::Allow | OnUnavailable::Refuse => None,
        };
        if share.unwrap_or(0) == 0 && matches!(rule, OnUnavailable::LocalShare { .. }) {
            return invalid(format!("a local share of {permits} permits is one of 1 to {permits} instances"));
        }
        if !offered.ttl || offered.max_ttl < lease + Duration::from_micros(STAYS_MICROS) {
            let message = "a concurrency limit needs a store whose entries can expire";
            return Err(Error::new(ErrorKind::Unsupported, message).at(store.backend().name(), "limit"));
        }
        let key = state::key(ConcurrencyLimiter::KEY_PREFIX, name)?;
        Ok(Self { store, key, name: name.into(), clock_error, rule, share })
    }
}

impl Shared {
    async fn admit(self: &Arc<Self>, permits: u64, patient: bool) -> Answer {
        // The task that asks may have ended with its runtime: then this one begins another.
        for _ in 0..ATTEMPTS {
            let now = self.now();
            let (over, outcome, joined) = {
                let mut inner = self.inner();
                let over = inner.give_up_what_is_over(self.name(), now);
                let outcome = self.decide(&mut inner, permits, patient, now);
                let joined = outcome.is_none().then(|| inner.line.join(permits, patient));
                (over, outcome, joined)
            };
            let joined = joined.map(|(ticket, answer)| (InLine { shared: self, ticket }, answer));
            self.finish(After { answers: Vec::new(), over });
            if let Some(outcome) = outcome {
                return self.answer(outcome);
            }
            let Some((_in_line, mut answer)) = joined else { continue };
            let answered = tokio::select! {
                biased;
                // By others: then the task repeats what was asked here.
                answered = &mut answer => answered,
                can_ask = self.ask() => if can_ask { answer.await } else { break },
            };
            if let Ok(answer) = answered {
                return answer;
            }
        }
        let message = "there is no runtime on which the store could be asked";
        Err(Error::new(ErrorKind::Closed, message))
    }

    /// What can be said at once.
    fn decide(&self, inner: &mut Inner, permits: u64, patient: bool, now: u64) -> Option<Outcome> {
        if let Some(admitted) = inner.take(permits, now) {
            return Some(Outcome::Admitted(admitted));
        }
        let waiting = inner.line.waiting().all;
        inner.pool.wanted(waiting.saturating_add(permits));
        let Some(remote) = &self.remote else {
            return (!patient).then(|| Outcome::Refused(inner.refusal(permits, now)));
        };
        if let Some((error, since)) = &inner.away
            && (inner.driven || since.elapsed() < LEFT_ALONE)
        {
            let error = error.clone();
            return inner.by_rule(remote, permits, patient, error, now);
        }
        if inner.line.is_empty() {
            inner.pool.asks_anew();
        }
        let refused = inner.line.is_patient() || inner.pool.is_refused(permits, now);
        (!patient && refused).then(|| Outcome::Refused(inner.refusal(permits, now)))
    }

    fn answer(self: &Arc<Self>, outcome: Outcome) -> Answer {
        match outcome {
            Outcome::Admitted(admitted) => Ok(Ok(admitted.permit(self))),
            Outcome::Refused(decision) => Ok(Err(decision)),
            Outcome::Failed(error) => Err(error),
        }
    }

    fn finish(self: &Arc<Self>, after: After) {
        for (waiter, outcome) in after.answers {
            // Who does not wait any more drops its permits.
            drop(waiter.send(self.answer(outcome)));
        }
        if let Some(lease) = after.over {
            lease.cancel();
        }
    }

    fn refusal(&self, permits: u64) -> Decision {
        let inner = self.inner();
        let degraded = inner.away.is_some();
        Decision { degraded, ..inner.refusal(permits, self.now()) }
    }

    /// Asks for those in line unless somebody does, and leaves to a task what is to be done later. `false` if there can be
    /// none.
    async fn ask(self: &Arc<Self>) -> bool {
        if self.remote.is_none() {
            return true;
        }
        if Handle::try_current().is_err() {
            return false;
        }
        let _later = Later(self);
        if let Ok(_turn) = self.turn.try_lock()
            && self.is_to_ask()
            && let Err(error) = self.exchange(Inner::request).await
        {
            tracing::debug!(%error, "a concurrency limit was not asked");
        }
        true
    }

    fn is_to_ask(&self) -> bool {
        let inner = self.inner();
        inner.away.is_none() && inner.pool.next(inner.line.waiting(), self.now()) == Next::Ask
    }

    /// Sees to it that there is a task that asks the store in time, if there is something to ask.
    fn drive(self: &Arc<Self>) {
        let mut inner = self.inner();
        let due = match inner.pool.next(inner.line.waiting(), self.now()) {
            Next::Ask => 0,
            Next::At(at) => at,
            Next::Nothing => return,
        };
        if inner.driven {
            if due < inner.looks {
                self.wake.notify_one();
            }
            return;
        }
        // Without a runtime the lease ends by itself.
        let Ok(runtime) = Handle::try_current() else { return };
        (inner.driven, inner.looks) = (true, 0);
        // A runtime that has ended drops the task here, which takes the lock.
        drop(inner);
        let driver = Driver { shared: Arc::downgrade(self), wake: Arc::clone(&self.wake) };
        runtime.spawn(driver.ask_as_long_as_there_is_something_to_ask());
    }

    /// Sends a request and takes in its reply, in the turn of the caller. Dropped in between, the request is repeated by the
    /// next exchange.
    async fn exchange(self: &Arc<Self>, make: impl FnOnce(&mut Inner, u64) -> Hold) -> Result<()> {
        let Some(remote) = &self.remote else { return Ok(()) };
        let sent = self.now();
        let request = make(&mut self.inner(), sent);
        let reply = remote.store.transact(&remote.key, request).await;
        let now = self.now();
        let reply = reply.and_then(|reply| {
            let reply = Hold::decode(&reply)?;
            if reply.held > 0 && now >= self.inner().pool.until(reply, sent) {
                let message = "the store answers more slowly than the lease lasts: take a longer lease";
                return Err(Error::new(ErrorKind::Timeout, message).with_retry(Retry::Safe));
            }
            Ok(reply)
        });
        let (after, result) = {
            let mut inner = self.inner();
            match reply {
                Ok(reply) => {
                    if inner.away.take().is_some() {
                        tracing::info!(limiter = &*remote.name, "the store of the limiter is back");
                    }
                    let Answered { held, refused } = inner.pool.answered(reply, sent);
                    let over = if held { None } else { inner.give_up(&remote.name) };
                    let mut answers = inner.serve(remote.share, now);
                    match refused {
                        Some(refused) => answers.extend(inner.refuse(refused, now)),
                        None => inner.let_wait(now),
                    }
                    (After { answers, over }, Ok(()))
                }
                Err(error) if error.retry() == Retry::Never => {
                    inner.away = None;
                    inner.pool.unanswered();
                    if inner.line.is_empty() {
                        tracing::warn!(limiter = &*remote.name, %error, "permits cannot be renewed");
                    }
                    let line = inner.line.dissolve().into_values();
                    let failed = line.map(|waiter| (waiter.answer, Outcome::Failed(error.clone())));
                    (After { answers: failed.collect(), over: None }, Err(error))
                }
                Err(error) => {
                    let answers = inner.is_away(remote, &error, now);
                    (After { answers, over: None }, Err(error))
                }
            }
        };
        self.finish(after);
        result
    }

    fn name(&self) -> &str {
        self.remote.as_ref().map_or("", |remote| &remote.name)
    }

    fn now(&self) -> u64 {
        self.time.micros()
    }

    // A std mutex: it is held for a few steps, which cannot panic half-way, and never across an await.
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Admitted {
    fn permit(self, shared: &Arc<Shared>) -> Permit {
        let Self { permits, lease, since, decision } = self;
        Permit { shared: Arc::clone(shared), permits, lease, since, decision }
    }
}

impl Inner {
    fn request(&mut self, now: u64) -> Hold {
        self.pool.request(self.line.waiting(), now)
    }

    /// Takes so many permits if they are here and nobody stands in line for them.
    fn take(&mut self, permits: u64, now: u64) -> Option<Admitted> {
        (self.line.is_empty() && self.pool.take(permits, now)).then(|| self.admitted(permits, now))
    }

    /// Gives those in line what is here, in their order; while the store is away, up to the local share.
    fn serve(&mut self, share: Option<u64>, now: u64) -> Vec<(oneshot::Sender<Answer>, Outcome)> {
        let mut served = Vec::new();
        while let Some((ticket, waiter)) = self.line.first() {
            let permits = waiter.permits;
            let outcome = if self.pool.take(permits, now) {
                Outcome::Admitted(self.admitted(permits, now))
            } else if self.away.is_some() && share.is_some_and(|share| self.out + permits <= share) {
                self.unbooked(permits, now)
            } else {
                break;
            };
            served.extend(self.line.leave(ticket).map(|waiter| (waiter.answer, outcome)));
        }
        served
    }

    /// Says so to those who were refused and do not wait, and lets whoever is first then wait for a while.
    fn refuse(&mut self, refused: Asked, now: u64) -> Vec<(oneshot::Sender<Answer>, Outcome)> {
        let dismissed = self.line.dismiss(refused);
        let first = self.line.first().map(|(_, waiter)| waiter.permits);
        if first.is_none_or(|permits| permits >= refused.permits) {
            self.pool.pause(refused.permits, self.in_use_for.unwrap_or(UNKNOWN), now);
        }
        let refusal = self.refusal(refused.permits, now);
        dismissed.into_iter().map(|waiter| (waiter.answer, Outcome::Refused(refusal))).collect()
    }

    /// Does not ask at once for those who wait if nobody has as many to give.
    fn let_wait(&mut self, now: u64) {
        if let Some((_, first)) = self.line.first()
            && first.permits > self.pool.free()
        {
            self.pool.pause(first.permits, self.in_use_for.unwrap_or(UNKNOWN), now);
        }
    }

    /// Goes by the rule from now on.
    fn is_away(
        &mut self,
        remote: &Remote,
        error: &Error,
        now: u64,
    ) -> Vec<(oneshot::Sender<Answer>, Outcome)> {
        // Its requests can be repeated, so none of them is charged twice.
        let error = error.clone().with_retry(Retry::Safe);
        if self.away.replace((error.clone(), Instant::now())).is_none() {
            let rule = remote.rule;
            tracing::warn!(limiter = &*remote.name, %error, ?rule, "the store of a limiter is away");
        }
        self.answer_by_rule(remote, &error, now)
    }

    /// What the rule says to all in line. Those whom it lets wait stay.
    fn answer_by_rule(
        &mut self,
        remote: &Remote,
        error: &Error,
        now: u64,
    ) -> Vec<(oneshot::Sender<Answer>, Outcome)> {
        let mut answers = Vec::new();
        for (ticket, waiter) in self.line.dissolve() {
            match self.by_rule(remote, waiter.permits, waiter.patient, error.clone(), now) {
                Some(outcome) => answers.push((waiter.answer, outcome)),
                None => self.line.insert(ticket, waiter),
            }
        }
        answers
    }

    /// What the rule says; nothing to those who wait for the local share.
    fn by_rule(
        &mut self,
        remote: &Remote,
        permits: u64,
        patient: bool,
        error: Error,
        now: u64,
    ) -> Option<Outcome> {
        let refused = || {
            let decision = Decision { degraded: true, retry_after: LEFT_ALONE, ..self.refusal(permits, now) };
            if patient { Outcome::Failed(error) } else { Outcome::Refused(decision) }
        };
        match (remote.rule, remote.share) {
            (OnUnavailable::Allow, _) => Some(self.unbooked(permits, now)),
            (OnUnavailable::Refuse, _) | (_, None) => Some(refused()),
            (_, Some(share)) if permits > share => Some(refused()),
            (_, Some(share)) if self.line.is_empty() && self.out + permits <= share => {
                Some(self.unbooked(permits, now))
            }
            _ => (!patient).then(refused),
        }
    }

    /// Of permits that the pool has given.
    fn admitted(&mut self, permits: u64, now: u64) -> Admitted {
        self.out += permits;
        let decision = Decision { allowed: true, retry_after: Duration::ZERO, ..self.refusal(permits, now) };
        Admitted { permits, lease: Some(Arc::clone(&self.lease)), since: now, decision }
    }

    /// Of permits that nobody has given.
    fn unbooked(&mut self, permits: u64, now: u64) -> Outcome {
        self.out += permits;
        let decision = Decision {
            allowed: true,
            remaining: 0,
            retry_after: Duration::ZERO,
            degraded: true,
            ..self.refusal(permits, now)
        };
        Outcome::Admitted(Admitted { permits, lease: None, since: now, decision })
    }

    fn refusal(&self, permits: u64, now: u64) -> Decision {
        let in_use_for = self.in_use_for.unwrap_or(UNKNOWN);
        // Of so many that are out, each for this long, the next one comes back after this.
        let next = (in_use_for / self.out.max(1)).max(self.pool.again(permits).saturating_sub(now));
        Decision {
            allowed: false,
            remaining: self.pool.remaining(now),
            retry_after: Duration::from_micros(next.max(1)),
            reset_after: Duration::from_micros(if self.out > 0 { in_use_for } else { 0 }),
            degraded: false,
        }
    }

    fn give_up_what_is_over(&mut self, name: &str, now: u64) -> Option<Arc<Lease>> {
        if self.pool.is_over(now) { self.give_up(name) } else { None }
    }

    /// Counts no more on what the lease has brought.
    fn give_up(&mut self, name: &str) -> Option<Arc<Lease>> {
        let in_use = self.pool.begin_anew(any_id());
        let over = std::mem::take(&mut self.lease);
        if in_use > 0 {
            tracing::warn!(limiter = name, permits = in_use, "permits were lost while they were in use");
        }
        Some(over)
    }
}

/// Leaves to a task what is to be done when it is dropped.
struct Later<'a>(&'a Arc<Shared>);

impl Drop for Later<'_> {
    fn drop(&mut self) {
        self.0.drive();
    }
}

/// A place in the line. Dropping it leaves the line.
struct InLine<'a> {
    shared: &'a Arc<Shared>,
    ticket: u64,
}

impl Drop for InLine<'_> {
    fn drop(&mut self) {
        let answers = {
            let mut inner = self.shared.inner();
            if inner.line.leave(self.ticket).is_none() {
                return;
            }
            // The next ones may want fewer.
            let share = self.shared.remote.as_ref().and_then(|remote| remote.share);
            inner.serve(share, self.shared.now())
        };
        self.shared.finish(After { answers, over: None });
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
            let answers = inner.serve(shared.remote.as_ref().and_then(|remote| remote.share), now);
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

/// The task that asks the store. It does not keep the limiter.
struct Driver {
    shared: Weak<Shared>,
    wake: Arc<Notify>,
}

impl Driver {
    async fn ask_as_long_as_there_is_something_to_ask(mut self) {
        loop {
            let Some(shared) = self.shared.upgrade() else { return };
            let now = shared.now();
            let (over, next) = {
                let mut inner = shared.inner();
                let over = inner.give_up_what_is_over(shared.name(), now);
                let next = match (inner.pool.next(inner.line.waiting(), now), &inner.away) {
                    (Next::Ask, Some((_, since))) if since.elapsed() < LEFT_ALONE => {
                        Next::At(now + (LEFT_ALONE - since.elapsed()).as_micros() as u64 + 1)
                    }
                    (next, _) => next,
                };
                // Under the lock: whoever comes later begins another.
                inner.driven = next != Next::Nothing;
                inner.looks = if let Next::At(at) = next { at } else { 0 };
                (over, next)
            };
            shared.finish(After { answers: Vec::new(), over });
            match next {
                Next::Ask => {
                    let left = shared.inner().pool.left(now);
                    let ask = async {
                        let _turn = shared.turn.lock().await;
                        if shared.is_to_ask() || shared.inner().away.is_some() {
                            shared.exchange(Inner::request).await?;
                        }
                        Ok::<(), Error>(())
                    };
                    // However long the store takes, what is over is given up then.
                    match (tokio::time::timeout(left, ask).await, &shared.remote) {
                        (Ok(Err(error)), _) => tracing::debug!(%error, "a concurrency limit was not asked"),
                        (Err(_), Some(remote)) => {
                            let error =
                                Error::new(ErrorKind::Timeout, "the store did not answer within the lease");
                            let answers = shared.inner().is_away(remote, &error, shared.now());
                            shared.finish(After { answers, over: None });
                        }
                        _ => {}
                    }
                }
                Next::At(at) => {
                    drop(shared);
                    let pause = tokio::time::sleep(Duration::from_micros(at - now));
                    tokio::select! {
                        () = pause => {}
                        () = self.wake.notified() => {}
                    }
                }
                Next::Nothing => {
                    self.shared = Weak::new();
                    return;
                }
            }
        }
    }
}

impl Drop for Driver {
    /// Ended with its runtime, perhaps: those in line begin another.
    fn drop(&mut self) {
        let Some(shared) = self.shared.upgrade() else { return };
        let line = {
            let mut inner = shared.inner();
            if !inner.driven {
                return;
            }
            inner.driven = false;
            inner.line.dissolve()
        };
        drop(line);
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.wake.notify_one();
        let now = self.now();
        let inner = self.inner.get_mut().unwrap_or_else(PoisonError::into_inner);
        if let Some(remote) = &self.remote
            && let Some(request) = inner.pool.leave(now)
            && let Ok(runtime) = Handle::try_current()
        {
            let (store, key) = (remote.store.clone(), remote.key.clone());
            runtime.spawn(async move { store.transact(&key, request).await });
        }
    }
}

/// Another one than that of any other instance.
fn any_id() -> u64 {
    fastrand::u64(..super::config::MAX)
}

fn check(permits: u64, most: u64) -> Result<()> {
    if (1..=most).contains(&permits) {
        return Ok(());
    }
    Err(Error::new(ErrorKind::InvalidInput, format!("from 1 to {most} permits, not {permits}")))
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
