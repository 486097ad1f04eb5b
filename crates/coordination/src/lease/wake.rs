//! Wakes those who wait for a lease when it is granted to them: one subscription for the whole process, however many wait.

use std::{
    collections::{BTreeMap, HashMap},
    fmt::Write as _,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicI64, Ordering::SeqCst},
    },
    time::Duration,
};

use commonhold_core::{Error, ErrorKind, Message, Result, Store};
use futures_util::{StreamExt as _, future::join_all};
use tokio::sync::{Notify, futures::OwnedNotified};
use tokio_util::sync::CancellationToken;

/// What the channels are called on which those who wait in a process are told what was granted to them: the names of
/// their claims, each with its first token. The name of the process follows: nobody hears what others are told. `lease.lua`
/// publishes there too.
const CHANNEL: &str = "commonhold:released:";
/// How long to wait before the channel is subscribed to again.
const RETRY_DELAY: Duration = Duration::from_secs(1);

/// Who waits in this process.
#[derive(Debug)]
pub(crate) struct Wakeups {
    store: Store,
    process: String,
    waiting: Mutex<Waiting>,
    /// Cancelled when this is dropped: nobody keeps the store open for it then.
    ended: CancellationToken,
}

#[derive(Debug, Default)]
struct Waiting {
    /// By the names of their claims.
    claims: HashMap<String, Arc<Waiter>>,
    /// A task hears for them.
    heard: bool,
}

#[derive(Debug, Default)]
struct Waiter {
    notify: Arc<Notify>,
    /// The first token of what was granted; 0 if nothing was.
    token: AtomicI64,
}

/// A place among those who wait. Dropping it leaves it.
#[derive(Debug)]
pub(crate) struct Place {
    wakeups: Arc<Wakeups>,
    owner: String,
    waiter: Arc<Waiter>,
}

impl Wakeups {
    pub(crate) fn new(store: Store, process: &str) -> Arc<Self> {
        let ended = CancellationToken::new();
        Arc::new(Self { store, process: process.to_owned(), waiting: Mutex::default(), ended })
    }

    /// Whether the store can wake anybody.
    pub(crate) fn can_wake(&self) -> bool {
        self.store.capabilities().publish
    }

    /// Tells these claims what was granted to them: those that wait here, and with `others` those that wait elsewhere. They
    /// poll as well: a message that is lost delays them.
    pub(crate) async fn tell(&self, granted: &[(String, i64)], others: bool) {
        let mut told: BTreeMap<&str, String> = BTreeMap::new();
        for (owner, token) in granted {
            let message = told.entry(process_of(owner)).or_default();
            let joint = if message.is_empty() { "" } else { " " };
            let _ = write!(message, "{joint}{owner} {token}");
        }
        if let Some(here) = told.remove(&*self.process) {
            self.wake(here.as_bytes());
        }
        if !others || !self.can_wake() {
            return;
        }
        let told = told.into_iter().map(async |(process, message)| {
            let told = self.store.publish(channel(process), message).await;
            let _ = told.inspect_err(|error| tracing::debug!(%error, "what was granted was not told"));
        });
        join_all(told).await;
    }

    pub(crate) fn wait_for(self: &Arc<Self>, owner: &str) -> Place {
        let mut waiting = self.waiting();
        let waiter = Arc::<Waiter>::default();
        waiting.claims.insert(owner.to_owned(), Arc::clone(&waiter));
        let is_heard = !self.can_wake() || std::mem::replace(&mut waiting.heard, true);
        // A runtime that has ended drops the task here, which takes the lock.
        drop(waiting);
        if !is_heard {
            let hearing = Hearing { wakeups: Arc::downgrade(self), done: false };
            tokio::spawn(hearing.hear(self.store.clone(), self.ended.clone()));
        }
        Place { wakeups: Arc::clone(self), owner: owner.to_owned(), waiter }
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake(&self, message: &[u8]) {
        let waiting = self.waiting();
        let message = String::from_utf8_lossy(message);
        let mut words = message.split(' ');
        while let (Some(owner), Some(token)) = (words.next(), words.next()) {
            if let (Some(waiter), Ok(token)) = (waiting.claims.get(owner), token.parse()) {
                waiter.token.store(token, SeqCst);
                waiter.notify.notify_waiters();
            }
        }
    }

    fn wake_all(&self) {
        self.waiting().claims.values().for_each(|waiter| waiter.notify.notify_waiters());
    }
}

impl Drop for Wakeups {
    fn drop(&mut self) {
        self.ended.cancel();
    }
}

impl Place {
    /// Ends with the next message, counted from now on, not from when it is first polled.
    pub(crate) fn told(&self) -> OwnedNotified {
        Arc::clone(&self.waiter.notify).notified_owned()
    }

    /// The first token of what was granted, if it is one after this.
    pub(crate) fn granted_after(&self, last: i64) -> Option<i64> {
        Some(self.waiter.token.load(SeqCst)).filter(|&token| token > last)
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

/// Hears what is granted to those who wait in a process.
struct Hearing {
    wakeups: Weak<Wakeups>,
    done: bool,
}

impl Hearing {
    /// Goes on until nobody has waited for a while.
    async fn hear(mut self, store: Store, ended: CancellationToken) {
        let Some(channel) = self.wakeups.upgrade().map(|wakeups| channel(&wakeups.process)) else { return };
        let until_idle = async {
            while let Err(error) = self.hear_until_idle(&store, &channel).await {
                tracing::debug!(%error, "what is granted is not heard of");
                tokio::time::sleep(RETRY_DELAY).await;
            }
        };
        tokio::select! {
            () = until_idle => {}
            () = ended.cancelled() => {}
        }
    }

    async fn hear_until_idle(&mut self, store: &Store, channel: &str) -> Result<()> {
        let mut messages = store.subscribe(channel).await?;
        // What was granted before is not told any more.
        if let Some(wakeups) = self.wakeups.upgrade() {
            wakeups.wake_all();
        }
        loop {
            let message = tokio::time::timeout(IDLE, messages.next()).await;
            let Some(wakeups) = self.wakeups.upgrade() else { return Ok(()) };
            match message {
                Ok(Some(message)) => match message? {
                    Message::Payload(granted) => wakeups.wake(&granted),
                    Message::Missed => wakeups.wake_all(),
                },
                Ok(None) => return Err(Error::new(ErrorKind::Unavailable, "the subscription ended")),
                Err(_) => {
                    let mut waiting = wakeups.waiting();
                    if waiting.claims.is_empty() {
                        waiting.heard = false;
                        self.done = true;
                        return Ok(());
                    }
                }
            }
        }
    }
}

impl Drop for Hearing {
    /// Ended with its runtime, perhaps: the next who waits is heard for by another.
    fn drop(&mut self) {
        if let Some(wakeups) = self.wakeups.upgrade().filter(|_| !self.done) {
            wakeups.waiting().heard = false;
        }
    }
}

/// How long the subscription stays when nobody waits.
const IDLE: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_script_tells_where_it_is_heard() {
        assert!(include_str!("lease.lua").contains(&format!("'{CHANNEL}'")));
    }
}
