//! Wakes those who wait for a lease when one is released: one subscription for the whole process, however many wait.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use commonhold_core::{Message, Result, Store};
use futures_util::{StreamExt as _, future::join_all};
use tokio::sync::{Notify, futures::OwnedNotified};

/// What the channels are called on which those who wait in a process are told that they are next, by the names of their
/// claims. The name of the process follows: nobody hears what others are told.
const CHANNEL: &str = "commonhold:released:";
/// How long to wait before the channel is subscribed to again.
const RETRY_DELAY: Duration = Duration::from_secs(1);

/// Who waits in this process.
#[derive(Debug)]
pub(crate) struct Wakeups {
    store: Store,
    process: String,
    waiting: Mutex<Waiting>,
}

#[derive(Debug, Default)]
struct Waiting {
    /// By the names of their claims.
    claims: HashMap<String, Arc<Notify>>,
    /// A task hears for them.
    heard: bool,
}

/// A place among those who wait. Dropping it leaves it.
#[derive(Debug)]
pub(crate) struct Place {
    wakeups: Arc<Wakeups>,
    owner: String,
    notify: Arc<Notify>,
}

impl Wakeups {
    pub(crate) fn new(store: Store, process: &str) -> Arc<Self> {
        Arc::new(Self { store, process: process.to_owned(), waiting: Mutex::default() })
    }

    /// Whether the store can wake anybody.
    pub(crate) fn can_wake(&self) -> bool {
        self.store.capabilities().publish
    }

    /// Tells these claims, wherever they wait, that they are next. They poll as well: a message that is lost delays them.
    pub(crate) async fn tell(&self, owners: &[String]) {
        if !self.can_wake() {
            return;
        }
        let mut told: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for owner in owners {
            told.entry(process_of(owner)).or_default().push(owner);
        }
        let told = told.into_iter().map(async |(process, owners)| {
            let told = self.store.publish(channel(process), owners.join(" ")).await;
            let _ = told.inspect_err(|error| tracing::debug!(%error, "those who are next were not told"));
        });
        join_all(told).await;
    }

    pub(crate) fn wait_for(self: &Arc<Self>, owner: &str) -> Place {
        let mut waiting = self.waiting();
        let notify = Arc::<Notify>::default();
        waiting.claims.insert(owner.to_owned(), Arc::clone(&notify));
        if self.can_wake() && !std::mem::replace(&mut waiting.heard, true) {
            tokio::spawn(hear(Arc::downgrade(self)));
        }
        Place { wakeups: Arc::clone(self), owner: owner.to_owned(), notify }
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake(&self, message: &[u8]) {
        let waiting = self.waiting();
        for owner in String::from_utf8_lossy(message).split(' ') {
            if let Some(notify) = waiting.claims.get(owner) {
                notify.notify_waiters();
            }
        }
    }

    fn wake_all(&self) {
        self.waiting().claims.values().for_each(|notify| notify.notify_waiters());
    }
}

impl Place {
    /// Ends with the next release, counted from now on, not from when it is first polled.
    pub(crate) fn released(&self) -> OwnedNotified {
        Arc::clone(&self.notify).notified_owned()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.wakeups.waiting().claims.remove(&self.owner);
    }
}

/// The name of the process in that of a claim.
fn process_of(owner: &str) -> &str {
    owner.split_once('.').map_or(owner, |(process, _)| process)
}

fn channel(process: &str) -> String {
    format!("{CHANNEL}{process}")
}

/// Hears of releases until nobody has waited for a while.
async fn hear(wakeups: Weak<Wakeups>) {
    let Some((store, channel)) =
        wakeups.upgrade().map(|wakeups| (wakeups.store.clone(), channel(&wakeups.process)))
    else {
        return;
    };
    loop {
        if let Err(error) = hear_until_lost(&wakeups, &store, &channel).await {
            tracing::debug!(%error, "releases are not heard of");
            tokio::time::sleep(RETRY_DELAY).await;
        }
        let Some(wakeups) = wakeups.upgrade() else { return };
        let mut waiting = wakeups.waiting();
        if waiting.claims.is_empty() {
            waiting.heard = false;
            return;
        }
    }
}

/// How long the subscription stays when nobody waits.
const IDLE: Duration = Duration::from_secs(10);

async fn hear_until_lost(wakeups: &Weak<Wakeups>, store: &Store, channel: &str) -> Result<()> {
    let mut messages = store.subscribe(channel).await?;
    // What was released before is not told any more.
    if let Some(wakeups) = wakeups.upgrade() {
        wakeups.wake_all();
    }
    loop {
        let message = match tokio::time::timeout(IDLE, messages.next()).await {
            Ok(Some(message)) => Some(message?),
            Ok(None) => return Ok(()),
            Err(_) => None,
        };
        let Some(wakeups) = wakeups.upgrade() else { return Ok(()) };
        match message {
            Some(Message::Payload(owners)) => wakeups.wake(&owners),
            Some(Message::Missed) => wakeups.wake_all(),
            None if wakeups.waiting().claims.is_empty() => return Ok(()),
            None => {}
        }
    }
}
