//! Elections: one of many leads, and the others know who.

use std::{sync::Arc, time::Duration};

use commonhold_core::{Change, Error, ErrorKind, Key, Result};
use futures_util::{Stream, StreamExt as _, stream, stream::BoxStream};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::{
    fence::Fence,
    guard::{Guard, Lease},
    holders::{Holders, to_label},
    lease::{self, Leases, Wanted, after},
    state,
};

/// An election in a store: `election:NAME` is the entry.
///
/// The lead is a lease that is renewed in the background. A leader that cannot renew it steps down before anybody else
/// can be chosen, by its own monotonic clock: [`Lead::lost`] is cancelled then. This holds as long as that clock and the
/// store's differ in speed by no more than 1 %, and the store's clock does not step forward; steps of any other clock
/// play no part. A leader that is paused finds out only when it wakes up, so what it writes must carry the
/// [fence](Lead::fence).
///
/// Who campaigned first is chosen first.
///
/// ```
/// # tokio::runtime::Runtime::new().unwrap().block_on(async {
/// use std::time::Duration;
/// use commonhold_coordination::Election;
/// use commonhold_core::{MemoryBackend, Store};
///
/// let election = Election::new(Store::new(MemoryBackend::new()), "scheduler")?;
/// let lead = election.campaign("10.0.0.7:8080", Duration::from_secs(10)).await?;
/// let leader = election.leader().await?.expect("one was chosen");
/// assert_eq!(leader.value, b"10.0.0.7:8080");
/// lead.resign().await?;
/// assert!(election.leader().await?.is_none());
/// # Ok::<(), commonhold_core::Error>(())
/// # }).unwrap();
/// ```
#[derive(Debug, Clone)]
pub struct Election {
    leases: Arc<Leases>,
    key: Key,
}

/// The lead, while one has it. Dropping it resigns in the background.
#[derive(Debug)]
#[must_use = "who drops it resigns"]
pub struct Lead {
    guard: Guard,
}

/// Who leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leader {
    /// What it [proclaims](Lead::proclaim).
    pub value: Vec<u8>,
    /// Its fencing token: greater than that of every earlier leader.
    pub token: u64,
}

/// The longest value that a leader can proclaim, in bytes.
const MAX_VALUE_LEN: usize = 1024;
/// How often it is looked who leads where changes are reported, and where they are not.
const LOOK: (Duration, Duration) = (Duration::from_secs(5), Duration::from_millis(500));
/// As good as for ever.
const LONG: Duration = Duration::from_secs(365 * 24 * 60 * 60);

impl Election {
    /// What the keys of elections begin with; their names follow.
    pub const KEY_PREFIX: &str = "election:";

    /// The election of this name.
    ///
    /// # Errors
    /// `Unsupported` if entries of the store have no time to live; `InvalidInput` for an empty name; `TooLarge`
    /// for one that makes no key.
    pub fn new(store: commonhold_core::Store, name: impl AsRef<str>) -> Result<Self> {
        let key = state::key(Self::KEY_PREFIX, name.as_ref())?;
        Ok(Self { leases: Arc::new(Leases::new(store)?), key })
    }

    /// Waits until this one is chosen. The others see `value` (an address, say; at most 1 KiB) for as long as it leads.
    /// Whoever does not renew its lead for the time `ttl`, from 20 ms to 365 days, loses it.
    ///
    /// # Errors
    /// `InvalidInput` for such a value or time; those of the store that do not pass. Errors that may pass (a store that
    /// is away) are waited out.
    ///
    /// Cancellation: a dropped future stands down.
    pub async fn campaign(&self, value: impl AsRef<[u8]>, ttl: Duration) -> Result<Lead> {
        loop {
            if let Some(lead) = self.campaign_for(value.as_ref(), ttl, LONG).await? {
                return Ok(lead);
            }
        }
    }

    /// As [`campaign`](Self::campaign), but only for this long; `None` if it was not chosen until then.
    ///
    /// # Errors
    /// As [`campaign`](Self::campaign).
    ///
    /// Cancellation: as with [`campaign`](Self::campaign).
    pub async fn campaign_for(
        &self,
        value: impl AsRef<[u8]>,
        ttl: Duration,
        timeout: Duration,
    ) -> Result<Option<Lead>> {
        let label = label(value.as_ref())?;
        let wanted = Wanted { label, ..self.leases.one(self.key.clone(), ttl) };
        let asked = Instant::now();
        let claimed = self.leases.claim(&wanted, Some(after(timeout))).await;
        lease::claimed(&wanted.key, asked, &claimed);
        Ok(claimed?
            .map(|(held, token)| Lead { guard: Guard::new(wanted.key, token, Lease::new(held), None) }))
    }

    /// Campaigns, and works while it leads. When the lead is lost the work is dropped where it is, and it campaigns
    /// again; when the work is done it resigns.
    ///
    /// # Errors
    /// As [`campaign`](Self::campaign).
    ///
    /// Cancellation: drops the work, and resigns in the background.
    pub async fn run_while_leader<F: Future>(
        &self,
        value: impl AsRef<[u8]>,
        ttl: Duration,
        mut work: impl FnMut(Fence) -> F,
    ) -> Result<F::Output> {
        loop {
            let lead = self.campaign(value.as_ref(), ttl).await?;
            let lost = lead.lost();
            tokio::select! {
                done = work(lead.fence()) => {
                    let _ = lead.resign().await.inspect_err(|error| tracing::debug!(%error, "the lead will expire"));
                    return Ok(done);
                }
                () = lost.cancelled() => tracing::warn!(election = %self.key, "the lead was lost"),
            }
        }
    }

    /// Waits until whatever was dropped, leads and campaigns, is given up. To be called before the runtime ends.
    pub async fn settled(&self) {
        self.leases.settled().await;
    }

    /// Who leads now.
    ///
    /// # Errors
    /// Those of the store; `Corrupt` if something else lies there.
    pub async fn leader(&self) -> Result<Option<Leader>> {
        Ok(self.look().await?.0)
    }

    /// Who leads, how long without being heard of, and how many campaign.
    ///
    /// # Errors
    /// As [`leader`](Self::leader).
    pub async fn show(&self) -> Result<Holders> {
        Holders::read(&self.leases, &self.key).await
    }

    /// Who leads now, and from then on whenever that changes: another leader, another value, or nobody. Leaders in quick
    /// succession may be passed over; the last is always told. Errors that may pass are waited out, others are told.
    pub fn observe(&self) -> impl Stream<Item = Result<Option<Leader>>> + Send + use<> {
        let watching = Watching { election: self.clone(), changes: None, told: None, failed: false };
        stream::unfold(watching, |mut watching| async move { Some((watching.next().await, watching)) })
    }

    /// Who leads, and how long it is until that may have changed by itself.
    async fn look(&self) -> Result<(Option<Leader>, Option<Duration>)> {
        let holder = self.show().await?.holders.into_iter().next();
        let left = holder.as_ref().map(|holder| holder.left);
        Ok((holder.map(|holder| Leader { value: holder.label, token: holder.token }), left))
    }
}

/// Where one who observes is.
struct Watching {
    election: Election,
    changes: Option<BoxStream<'static, Result<Change>>>,
    told: Option<Option<Leader>>,
    /// The last thing that was told was an error.
    failed: bool,
}

impl Watching {
    async fn next(&mut self) -> Result<Option<Leader>> {
        let Election { leases, key } = self.election.clone();
        if std::mem::take(&mut self.failed) {
            tokio::time::sleep(LOOK.1).await;
        }
        loop {
            if self.changes.is_none() && leases.store().capabilities().watch {
                self.changes = leases.store().watch(key.as_bytes()).await.ok();
            }
            let left = match self.election.look().await {
                Ok((leader, _)) if self.told.as_ref() != Some(&leader) => {
                    self.told = Some(leader.clone());
                    return Ok(leader);
                }
                Ok((_, left)) => left,
                Err(error) if error.retry() == commonhold_core::Retry::Never => {
                    self.failed = true;
                    return Err(error);
                }
                Err(_) => None,
            };
            let look = if self.changes.is_some() { LOOK.0 } else { LOOK.1 };
            // A lead that ends by itself is no change that is reported.
            let until = Instant::now() + left.map_or(look, |left| look.min(left + Duration::from_millis(5)));
            let Some(changes) = &mut self.changes else {
                tokio::time::sleep_until(until).await;
                continue;
            };
            let change = tokio::time::timeout_at(until, changes.next()).await;
            if matches!(change, Ok(None | Some(Err(_)))) {
                self.changes = None;
                tokio::time::sleep(LOOK.1).await;
            }
        }
    }
}

impl Lead {
    /// The fencing token: greater than that of every earlier leader. See [`Guard::token`].
    pub fn token(&self) -> u64 {
        self.guard.token()
    }

    /// The token as what [fenced writes](crate::Fenced) take.
    pub fn fence(&self) -> Fence {
        self.guard.fence()
    }

    /// Whether it still leads for sure. See [`Guard::is_held`].
    pub fn is_leader(&self) -> bool {
        self.guard.is_held()
    }

    /// Until when it leads for sure if the lead is not renewed again. See [`Guard::deadline`].
    pub fn deadline(&self) -> std::time::Instant {
        self.guard.deadline()
    }

    /// Cancelled the moment at which it is no longer sure to lead, and when it resigns.
    pub fn lost(&self) -> CancellationToken {
        self.guard.lost()
    }

    /// Has the others see another value from now on. Says whether it still led.
    ///
    /// # Errors
    /// `InvalidInput` for more than 1 KiB; those of the store: the value may then be seen or not, and is after the next
    /// renewal.
    pub async fn proclaim(&self, value: impl AsRef<[u8]>) -> Result<bool> {
        match self.guard.held() {
            Some(held) => held.relabel(label(value.as_ref())?).await,
            None => Ok(false),
        }
    }

    /// Gives the lead up, and says whether it led until now.
    ///
    /// # Errors
    /// As [`Guard::release`].
    ///
    /// Cancellation: a dropped future resigns in the background.
    pub async fn resign(self) -> Result<bool> {
        self.guard.release().await
    }
}

fn label(value: &[u8]) -> Result<Arc<str>> {
    if value.len() > MAX_VALUE_LEN {
        let message = format!("a leader proclaims at most {MAX_VALUE_LEN} bytes, not {}", value.len());
        return Err(Error::new(ErrorKind::InvalidInput, message));
    }
    Ok(to_label(value).into())
}
