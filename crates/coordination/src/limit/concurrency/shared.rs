//! What all clones and permits of a limiter share, and how it asks the store.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use commonhold_core::{Error, ErrorKind, Key, Result, Retry, Store};
use futures_util::{StreamExt as _, future::BoxFuture};
use tokio::{
    runtime::Handle,
    sync::{Notify, oneshot},
};

use super::{
    ConcurrencyLimiter, Lease, Permit,
    hold::Hold,
    inner::{Inner, Outcome},
    pool::{Answered, Next, Pool},
    told::{self, Told},
};
use crate::{
    limit::{Decision, OnUnavailable, clock::Time, state::STAYS_MICROS, unavailable::LEFT_ALONE},
    state,
};

pub(super) struct Shared {
    pub(super) limit: u64,
    pub(super) remote: Option<Remote>,
    pub(super) time: Time,
    pub(super) inner: Mutex<Inner>,
    /// One request at a time, and whoever is to be told of it is told before the next.
    pub(super) turn: Arc<tokio::sync::Mutex<()>>,
    /// For the task that asks: something has changed.
    pub(super) wake: Arc<Notify>,
}

#[derive(Clone)]
pub(super) struct Remote {
    pub(super) store: Store,
    pub(super) key: Key,
    pub(super) name: Arc<str>,
    pub(super) clock_error: Duration,
    pub(super) rule: OnUnavailable,
    /// How long whoever is next may be told: renewals wait for that.
    pub(super) tells_for: Duration,
    /// How many this instance may use while the store is away.
    pub(super) share: Option<u64>,
}

pub(super) type Answer = Result<std::result::Result<Permit, Decision>>;

/// What is to be done once the lock is free.
pub(super) struct After {
    pub(super) answers: Vec<(oneshot::Sender<Answer>, Outcome)>,
    pub(super) over: Option<Arc<Lease>>,
}

const LEASES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(3_600));

/// How often a call begins a task that asks for it.
const ATTEMPTS: usize = 3;

impl Remote {
    pub(super) fn new(
        store: Store,
        name: &str,
        permits: u64,
        lease: Duration,
        rule: OnUnavailable,
    ) -> Result<Self> {
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
        Key::new(told::channel(name))?;
        Ok(Self { store, key, name: name.into(), clock_error, rule, tells_for: lease / 10, share })
    }

    /// Tells an instance that there are permits for it. It asks now and then as well: a message that is lost delays it.
    fn tell(&self, next: u64) -> BoxFuture<'static, ()> {
        let (store, channel, time) = (self.store.clone(), told::channel(&self.name), self.tells_for);
        Box::pin(async move {
            // Without a runtime there is no clock for it.
            if !store.capabilities().publish || Handle::try_current().is_err() {
                return;
            }
            match tokio::time::timeout(time, store.publish(channel, next.to_string())).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::debug!(%error, "nobody was told of free permits"),
                Err(_) => tracing::debug!("nobody was told of free permits in time"),
            }
        })
    }
}

impl Shared {
    pub(super) fn new(limit: u64, remote: Option<Remote>, pool: Pool) -> Self {
        Self {
            limit,
            remote,
            time: Time::monotonic(),
            inner: Mutex::new(Inner::new(pool)),
            turn: Arc::default(),
            wake: Arc::default(),
        }
    }

    pub(super) async fn admit(self: &Arc<Self>, permits: u64, patient: bool) -> Answer {
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
    pub(super) fn decide(&self, inner: &mut Inner, permits: u64, patient: bool, now: u64) -> Option<Outcome> {
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

    pub(super) fn answer(self: &Arc<Self>, outcome: Outcome) -> Answer {
        match outcome {
            Outcome::Admitted(admitted) => Ok(Ok(admitted.permit(self))),
            Outcome::Refused(decision) => Ok(Err(decision)),
            Outcome::Failed(error) => Err(error),
        }
    }

    pub(super) fn finish(self: &Arc<Self>, after: After) {
        for (waiter, outcome) in after.answers {
            // Who does not wait any more drops its permits.
            drop(waiter.send(self.answer(outcome)));
        }
        if let Some(lease) = after.over {
            lease.cancel();
        }
    }

    pub(super) fn refusal(&self, permits: u64) -> Decision {
        let inner = self.inner();
        let degraded = inner.away.is_some();
        Decision { degraded, ..inner.refusal(permits, self.now()) }
    }

    /// Asks for those in line unless somebody does, and leaves to a task what is to be done later. `false` if there can be
    /// none.
    pub(super) async fn ask(self: &Arc<Self>) -> bool {
        if self.remote.is_none() {
            return true;
        }
        if Handle::try_current().is_err() {
            return false;
        }
        let _later = Later(self);
        if let Ok(turn) = Arc::clone(&self.turn).try_lock_owned()
            && self.is_to_ask()
        {
            match self.exchange(Inner::request).await {
                Ok(None) => {}
                // In the background: the caller has its answer.
                Ok(Some(tell)) => drop(tokio::spawn(async move {
                    tell.await;
                    drop(turn);
                })),
                Err(error) => tracing::debug!(%error, "a concurrency limit was not asked"),
            }
        }
        true
    }

    pub(super) fn is_to_ask(&self) -> bool {
        let inner = self.inner();
        inner.away.is_none() && inner.pool.next(inner.line.waiting(), self.now()) == Next::Ask
    }

    /// Sees to it that there is a task that asks the store in time, if there is something to ask.
    pub(super) fn drive(self: &Arc<Self>) {
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
        let driver = Driver { shared: Arc::downgrade(self), wake: Arc::clone(&self.wake), told: None };
        runtime.spawn(driver.ask_as_long_as_there_is_something_to_ask());
    }

    /// Sends a request and takes in its reply, in the turn of the caller; returns what tells the next, if it is to be told.
    /// Dropped in between, the request is repeated by the next exchange.
    pub(super) async fn exchange(
        self: &Arc<Self>,
        make: impl FnOnce(&mut Inner, u64) -> Hold,
    ) -> Result<Option<BoxFuture<'static, ()>>> {
        let Some(remote) = &self.remote else { return Ok(None) };
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
                    let Answered { held, refused, tell } = inner.pool.answered(reply, sent);
                    let over = if held { None } else { inner.give_up(&remote.name) };
                    let mut answers = inner.serve(remote.share, now);
                    match refused {
                        Some(refused) => answers.extend(inner.refuse(refused, now)),
                        None => inner.let_wait(now),
                    }
                    (After { answers, over }, Ok(tell))
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
        Ok(result?.map(|next| remote.tell(next)))
    }

    /// How many may be in use here while the store is away.
    pub(super) fn share(&self) -> Option<u64> {
        self.remote.as_ref().and_then(|remote| remote.share)
    }

    pub(super) fn name(&self) -> &str {
        self.remote.as_ref().map_or("", |remote| &remote.name)
    }

    pub(super) fn now(&self) -> u64 {
        self.time.micros()
    }

    // A std mutex: it is held for a few steps, which cannot panic half-way, and never across an await.
    pub(super) fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Leaves to a task what is to be done when it is dropped.
pub(super) struct Later<'a>(pub(super) &'a Arc<Shared>);

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
            inner.serve(self.shared.share(), self.shared.now())
        };
        self.shared.finish(After { answers, over: None });
    }
}

/// The task that asks the store. It does not keep the limiter.
struct Driver {
    shared: Weak<Shared>,
    wake: Arc<Notify>,
    /// From when on somebody has waited.
    told: Option<Told>,
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
                        let turn = shared.turn.lock().await;
                        let tell = if shared.is_to_ask() || shared.inner().away.is_some() {
                            shared.exchange(Inner::request).await?
                        } else {
                            None
                        };
                        Ok::<_, Error>((turn, tell))
                    };
                    // However long the store takes, what is over is given up then.
                    match (tokio::time::timeout(left, ask).await, &shared.remote) {
                        (Ok(Ok((_turn, Some(tell)))), _) => tell.await,
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
                    if let Some(remote) = &shared.remote
                        && self.told.is_none()
                        && shared.inner().line.is_patient()
                    {
                        self.told = told::listen(&remote.store, &remote.name);
                    }
                    drop(shared);
                    let pause = tokio::time::sleep(Duration::from_micros(at - now));
                    let told = async {
                        match &mut self.told {
                            Some(told) => told.next().await.flatten(),
                            None => std::future::pending().await,
                        }
                    };
                    tokio::select! {
                        () = pause => {}
                        () = self.wake.notified() => {}
                        told = told => self.hear(told),
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

impl Driver {
    /// Takes in which instance was told, if that is known.
    fn hear(&self, told: Option<u64>) {
        if let Some(shared) = self.shared.upgrade() {
            let pool = &mut shared.inner().pool;
            if told.is_none_or(|told| told == pool.id()) {
                pool.hears();
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
            let remote = remote.clone();
            runtime.spawn(async move {
                let reply = remote.store.transact(&remote.key, request).await?;
                if let Some(next) = Hold::decode(&reply)?.to_tell() {
                    remote.tell(next).await;
                }
                Ok::<(), Error>(())
            });
        }
    }
}
