//! A lease that this process holds: renewed in the background, and given up by the local clock before the store lets
//! somebody else have it.

use std::{
    fmt,
    ops::Range,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use commonhold_core::{Key, Result};
use tokio::{runtime::Handle, sync::Notify, task::JoinHandle, time::Instant};
use tokio_util::sync::CancellationToken;

use super::{
    leases::{Given, Leases, Wanted},
    meter::{self, Counted},
    schedule::Scheduled,
    transition::{Release, Renew, micros_of},
};

/// What a lease is said to be short of its time to live: how much faster the store's clock may run, one in this many, ..
const DRIFT: u32 = 100;
/// .. and how coarse the clocks may be.
const GRAIN: Duration = Duration::from_millis(2);

/// A lease. Dropping it gives it back in the background.
pub(crate) struct Held {
    shared: Arc<Shared>,
    /// Its first renewal.
    scheduled: Scheduled,
    /// Those that nobody has had; more than the first.
    tokens: Range<i64>,
    /// The state as its claim left it, or empty.
    untouched: String,
    given_back: bool,
    _counted: Counted,
}

/// How long a lease is held for sure at first, and when it is renewed at first.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Beginning {
    deadline: Instant,
    renewal: Instant,
}

/// What was granted to a place in the line lasts as long as that; soon it is renewed for its own time, unless it is given
/// back so soon.
const SOON: Duration = Duration::from_millis(20);

impl Beginning {
    /// Of one that was granted to a request which was sent at this time.
    pub(crate) fn claimed(sent: Instant, ttl: Duration, clock_error: Duration) -> Self {
        Self { deadline: deadline(sent, ttl, clock_error), renewal: sent + ttl / 3 }
    }

    /// Of one that was granted to a place in the line, to one who asked for that at this time.
    pub(crate) fn granted(sent: Instant, patience: Duration, clock_error: Duration) -> Self {
        let renewal = Instant::now() + SOON.min(patience / 3);
        Self { deadline: deadline(sent, patience, clock_error), renewal }
    }

    /// Whether it lasts for this long from now.
    pub(crate) fn lasts_for(self, time: Duration) -> bool {
        Instant::now() + time < self.deadline
    }
}

pub(super) struct Shared {
    leases: Arc<Leases>,
    key: Key,
    capacity: i64,
    owner: Arc<str>,
    term: Mutex<Term>,
    renewal: Mutex<Renewal>,
    /// One at a time is on its way.
    renewals: tokio::sync::Mutex<()>,
    /// The time to live is another one.
    changed: Notify,
    lost: CancellationToken,
}

/// The task that renews.
enum Renewal {
    ToCome,
    Runs(JoinHandle<()>),
    Stopped,
}

#[derive(Debug, Clone)]
struct Term {
    ttl: Duration,
    /// Until when it is held for sure.
    deadline: Instant,
    label: Arc<str>,
    floor: i64,
}

impl Held {
    pub(crate) fn new(
        leases: Arc<Leases>,
        wanted: &Wanted,
        owner: Arc<str>,
        tokens: Range<i64>,
        untouched: String,
        beginning: Beginning,
    ) -> Self {
        let Wanted { key, capacity, ttl, label, .. } = wanted.clone();
        let counted = Counted::new(&key);
        let term = Term { ttl, deadline: beginning.deadline, label, floor: 0 };
        let lost = CancellationToken::new();
        let shared = Arc::new(Shared {
            leases,
            key,
            capacity,
            owner,
            term: Mutex::new(term),
            renewal: Mutex::new(Renewal::ToCome),
            renewals: tokio::sync::Mutex::default(),
            changed: Notify::new(),
            lost,
        });
        let scheduled = shared.leases.schedule().add(beginning.renewal, Arc::clone(&shared));
        Self { shared, scheduled, tokens, untouched, given_back: false, _counted: counted }
    }

    /// A token that nobody has had, greater than those before.
    pub(crate) fn next_token(&mut self) -> Option<i64> {
        self.tokens.next()
    }

    pub(crate) fn has_tokens(&self) -> bool {
        !self.tokens.is_empty()
    }

    fn take_release(&mut self) -> Release {
        let Shared { key, owner, capacity, .. } = &*self.shared;
        Release {
            owner: Arc::clone(owner),
            capacity: *capacity,
            tokens: (self.tokens.end - 1, self.tokens.start - 1),
            key_len: key.as_bytes().len(),
            untouched: std::mem::take(&mut self.untouched),
        }
    }

    /// Whether it is held for sure, by the local clock.
    pub(crate) fn is_held(&self) -> bool {
        !self.shared.lost.is_cancelled() && Instant::now() < self.deadline()
    }

    pub(crate) fn deadline(&self) -> Instant {
        self.shared.term().deadline
    }

    /// Cancelled when it is no longer sure to be held.
    pub(crate) fn lost(&self) -> &CancellationToken {
        &self.shared.lost
    }

    pub(crate) fn ttl(&self) -> Duration {
        self.shared.term().ttl
    }

    /// Holds on for this long from now, and from each renewal on. Says whether it was still held.
    pub(crate) async fn extend(&self, ttl: Duration) -> Result<bool> {
        self.shared.leases.check_ttl(ttl)?;
        self.shared.term().ttl = ttl;
        // The next renewal may have to come sooner.
        self.shared.begin(ttl / 3, self.scheduled.runtime());
        self.shared.changed.notify_one();
        self.shared.renew().await
    }

    /// Says this of itself from now on.
    pub(crate) async fn relabel(&self, label: Arc<str>) -> Result<bool> {
        self.shared.term().label = label;
        self.shared.renew().await
    }

    /// Raises the tokens to come. Says whether it was still held.
    pub(crate) async fn raise(&self, floor: i64) -> Result<bool> {
        self.shared.term().floor = floor;
        self.shared.renew().await
    }

    /// Gives it back, and says whether it was held until then.
    ///
    /// A dropped future gives it back in the background.
    pub(crate) async fn release(mut self) -> Result<bool> {
        let (was_held, release) = (self.is_held(), self.take_release());
        self.stop();
        let Shared { leases, key, .. } = &*self.shared;
        let given = leases.release(key, release).await?;
        self.given_back = true;
        Ok(given == Given::Back || given == Given::Perhaps && was_held)
    }

    /// Stops the renewal. One that is on its way does nothing once the lease is given back.
    fn stop(&self) {
        if let Renewal::Runs(task) = std::mem::replace(&mut *self.shared.renewal(), Renewal::Stopped) {
            task.abort();
        }
        self.shared.lost.cancel();
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if !self.given_back {
            let release = self.take_release();
            self.stop();
            self.shared.leases.abandon(self.shared.key.clone(), release);
        }
    }
}

impl Shared {
    fn term(&self) -> MutexGuard<'_, Term> {
        self.term.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn renewal(&self) -> MutexGuard<'_, Renewal> {
        self.renewal.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Renews it after this pause and from then on, unless that has begun, or it is given back.
    pub(super) fn begin(self: &Arc<Self>, pause: Duration, runtime: &Handle) {
        let mut renewal = self.renewal();
        if let Renewal::ToCome = *renewal {
            *renewal = Renewal::Runs(runtime.spawn(renew(Arc::clone(self), pause)));
        }
    }

    /// Renews once, and says whether it is still held. One renewal at a time: the last decides how long it lasts.
    async fn renew(&self) -> Result<bool> {
        let _one = self.renewals.lock().await;
        let (renew, renewed_to) = {
            let mut term = self.term();
            let Term { ttl, label, floor, .. } = term.clone();
            let renew = Renew { owner: self.owner.clone(), ttl: micros_of(ttl), label, floor };
            let renewed_to = deadline(Instant::now(), ttl, self.leases.clock_error());
            // Until the answer is here, either may hold: the time to live may be shorter than it was.
            term.deadline = term.deadline.min(renewed_to);
            (renew, renewed_to)
        };
        let renewed = Renew::decode(&self.leases.store().transact(&self.key, renew).await?);
        if renewed {
            self.term().deadline = renewed_to;
        } else {
            self.lost.cancel();
        }
        Ok(renewed)
    }
}

fn deadline(sent: Instant, ttl: Duration, clock_error: Duration) -> Instant {
    sent + ttl.saturating_sub(ttl / DRIFT + GRAIN + clock_error)
}

/// Renews a lease after the first pause, and then whenever a third of its time is over, until it is lost.
async fn renew(shared: Arc<Shared>, mut pause: Duration) {
    loop {
        let deadline = shared.term().deadline;
        tokio::select! {
            () = tokio::time::sleep_until(deadline.min(Instant::now() + pause)) => {}
            () = shared.changed.notified() => {
                pause = shared.term().ttl / 3;
                continue;
            }
        }
        let deadline = shared.term().deadline;
        if Instant::now() >= deadline {
            shared.lost.cancel();
        }
        if shared.lost.is_cancelled() {
            meter::lost(&shared.key);
            tracing::warn!(key = %shared.key, "a lease was lost");
            return;
        }
        let ttl = shared.term().ttl;
        pause = match tokio::time::timeout_at(deadline, shared.renew()).await {
            Ok(Ok(_)) => ttl / 3,
            // Again soon: there is time for several attempts.
            Ok(Err(error)) => {
                tracing::debug!(key = %shared.key, %error, "a lease was not renewed");
                ttl / 20
            }
            Err(_) => Duration::ZERO,
        };
    }
}

impl fmt::Debug for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.shared.fmt(f)
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { key, owner, .. } = self;
        f.debug_struct("Held").field("key", key).field("owner", owner).finish_non_exhaustive()
    }
}
