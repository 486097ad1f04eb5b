//! Messages and changes from one server: one connection for all who listen, made anew when it is lost.

use std::{
    collections::{HashMap, HashSet},
    fmt, mem,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use bytes::Bytes;
use commonhold_core::{Error, Result};
use futures_util::{StreamExt as _, stream, stream::BoxStream};
use tokio::{
    sync::{Notify, broadcast, broadcast::error::RecvError},
    task::JoinHandle,
};

use crate::{
    driver::{Connection, Push, bytes, checked, command},
    error::{Access, unsupported},
    node::Node,
};

/// How many messages a listener may lag behind before it is told that it missed some.
const QUEUE_LEN: usize = 4096;

/// How long to wait before the connection is tried again, at first and at most.
const RETRY_DELAYS: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));

/// How often the connection, its server's role and what that notifies of are checked, and what nobody listens to any
/// more is unsubscribed from.
const CHECK_INTERVAL: Duration = Duration::from_secs(5);

/// What is listened to.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Topic {
    /// Messages on a channel.
    Channel(Bytes),
    /// Changes to keys, of which the server notifies on channels of this pattern.
    Changes(Bytes),
}

/// What is heard.
#[derive(Debug, Clone)]
pub(crate) enum Heard {
    /// A message, on this channel.
    Message { channel: Bytes, payload: Bytes },
    /// Something may have been missed.
    Missed,
}

/// Listens on one server. Clones are the same.
#[derive(Clone)]
pub(crate) struct Listener(Arc<Inner>);

struct Inner {
    node: Arc<Node>,
    topics: Mutex<HashMap<Topic, broadcast::Sender<Heard>>>,
    /// Tokio's mutex: held while the connection is made and while it is told of a topic.
    link: tokio::sync::Mutex<Link>,
    lost: Arc<Notify>,
}

#[derive(Default)]
struct Link {
    connection: Option<Connection>,
    /// What the server would not let us subscribe to when the connection was made anew. It is tried again: the others
    /// go on.
    refused: HashSet<Topic>,
    /// The task that watches over the connection.
    keeper: Option<JoinHandle<()>>,
}

impl Listener {
    pub(crate) fn new(node: Arc<Node>) -> Self {
        let (topics, link, lost) = (Mutex::default(), tokio::sync::Mutex::default(), Arc::default());
        Self(Arc::new(Inner { node, topics, link, lost }))
    }

    /// What is heard from now on.
    pub(crate) async fn listen(&self, topic: Topic) -> Result<BoxStream<'static, Heard>> {
        let inner = &self.0;
        let mut locked = inner.link.lock().await;
        let link = &mut *locked;
        let (mut receiver, is_new) = inner.receiver(&topic);
        let mut refusal = None;
        let live = link.connection.as_ref().filter(|connection| !connection.is_closed());
        match live {
            Some(connection) if is_new || link.refused.contains(&topic) => {
                subscribe(connection, &topic).await.inspect_err(|_| inner.lost.notify_one())?;
                if link.refused.remove(&topic) {
                    inner.tell_those(|other| *other == topic);
                }
            }
            Some(connection) => {
                // What was sent before this call is on its way to those who listen already. It is there before
                // the reply to this.
                let fence = connection.command(Access::Read, &command("PING")).await;
                fence.inspect_err(|_| inner.lost.notify_one())?;
                receiver = receiver.resubscribe();
            }
            None => {
                let was_connected = link.connection.take().is_some();
                refusal = inner.connect(link).await?.remove(&topic);
                if was_connected {
                    inner.tell_missed();
                }
            }
        }
        if link.keeper.as_ref().is_none_or(JoinHandle::is_finished) {
            link.keeper = Some(tokio::spawn(keep(Arc::downgrade(inner), Arc::clone(&inner.lost))));
        }
        drop(locked);
        match refusal {
            Some(error) => Err(error),
            None => Ok(heard(receiver, self.clone())),
        }
    }
}

/// What a receiver gets, as long as it is polled.
fn heard(receiver: broadcast::Receiver<Heard>, listener: Listener) -> BoxStream<'static, Heard> {
    stream::unfold((receiver, listener), |(mut receiver, listener)| async move {
        let heard = match receiver.recv().await {
            Ok(heard) => heard,
            Err(RecvError::Lagged(_)) => Heard::Missed,
            Err(RecvError::Closed) => return None,
        };
        Some((heard, (receiver, listener)))
    })
    .boxed()
}

impl Inner {
    /// A receiver for a topic, and whether nobody else listens to it.
    fn receiver(&self, topic: &Topic) -> (broadcast::Receiver<Heard>, bool) {
        let mut topics = self.topics();
        let sender = topics.entry(topic.clone()).or_insert_with(|| broadcast::Sender::new(QUEUE_LEN));
        let is_new = sender.receiver_count() == 0;
        (sender.subscribe(), is_new)
    }

    /// Connects, and subscribes to all that is listened to. What the server refuses comes back; the rest is heard.
    async fn connect(self: &Arc<Self>, link: &mut Link) -> Result<HashMap<Topic, Error>> {
        let hearing = Arc::downgrade(self);
        let on_push = move |push| {
            if let Some(inner) = hearing.upgrade() {
                inner.hear(push);
            }
        };
        let connection = self.node.dial(Some(Box::new(on_push))).await?;
        let topics: Vec<Topic> = {
            let mut topics = self.topics();
            topics.retain(|_, sender| sender.receiver_count() > 0);
            topics.keys().cloned().collect()
        };
        let mut refused = HashMap::new();
        for topic in topics {
            match subscribe(&connection, &topic).await {
                Ok(()) => {}
                Err(error) if connection.is_closed() => return Err(error),
                Err(error) => {
                    tracing::warn!(%error, "Redis lets nobody listen to one of the topics");
                    refused.insert(topic, error);
                }
            }
        }
        link.refused = refused.keys().cloned().collect();
        link.connection = Some(connection);
        Ok(refused)
    }

    /// Tries again to subscribe to what was refused.
    async fn subscribe_to_refused(&self, connection: &Connection, refused: &mut HashSet<Topic>) {
        refused.retain(|topic| self.topics().contains_key(topic));
        for topic in refused.clone() {
            if subscribe(connection, &topic).await.is_ok() {
                refused.remove(&topic);
                self.tell_those(|other| *other == topic);
            }
        }
    }

    // Called by the connection, which it must not block.
    fn hear(&self, push: Push) {
        let (topic, channel, payload) = match push {
            Push::Disconnected => return self.lost.notify_one(),
            Push::Message { channel, payload } => {
                let channel = Bytes::from(channel);
                (Topic::Channel(channel.clone()), channel, payload)
            }
            Push::PatternMessage { pattern, channel, payload } => {
                (Topic::Changes(pattern.into()), channel.into(), payload)
            }
        };
        if let Some(sender) = self.topics().get(&topic) {
            let _unheard = sender.send(Heard::Message { channel, payload: payload.into() });
        }
    }

    fn tell_missed(&self) {
        self.tell_those(|_| true);
    }

    fn tell_those(&self, missed: impl Fn(&Topic) -> bool) {
        for (_, sender) in self.topics().iter().filter(|(topic, _)| missed(topic)) {
            let _unheard = sender.send(Heard::Missed);
        }
    }

    /// Sees to it that the server still notifies of changes, if anybody listens to them. Somebody else may have
    /// changed its setting.
    async fn see_to_notifications(&self, connection: &Connection, switched_off: &mut bool) {
        let is_change = |topic: &Topic| matches!(topic, Topic::Changes(_));
        if !self.topics().keys().any(is_change) {
            return;
        }
        match switch_notifications_on(connection).await {
            Ok(was_on) => {
                if mem::take(switched_off) || !was_on {
                    self.tell_those(is_change);
                }
            }
            Err(error) if mem::replace(switched_off, true) => {
                tracing::debug!(%error, "changes are not heard of")
            }
            Err(error) => tracing::warn!(%error, "changes are not heard of"),
        }
    }

    /// Unsubscribes from what nobody listens to any more.
    async fn drop_unheard(&self, connection: &Connection) {
        let unheard: Vec<Topic> = {
            let mut topics = self.topics();
            let unheard = topics.extract_if(|_, sender| sender.receiver_count() == 0);
            unheard.map(|(topic, _)| topic).collect()
        };
        for topic in unheard {
            let (name, pattern) = topic.name();
            if connection.unsubscribe(name, pattern).await.is_err() {
                return;
            }
        }
    }

    // A std mutex: it is held for a few steps and never across an await.
    fn topics(&self) -> MutexGuard<'_, HashMap<Topic, broadcast::Sender<Heard>>> {
        self.topics.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Watches over the connection until nobody listens any more: checks it, and makes it anew when it is lost.
async fn keep(inner: Weak<Inner>, lost: Arc<Notify>) {
    let (mut wait, mut delay) = (CHECK_INTERVAL, RETRY_DELAYS.0);
    let mut switched_off = false;
    loop {
        let _ = tokio::time::timeout(wait, lost.notified()).await;
        let Some(inner) = inner.upgrade() else { return };
        let mut link = inner.link.lock().await;
        let live = match &mut *link {
            Link { connection: Some(connection), refused, .. } if !connection.is_closed() => {
                inner.drop_unheard(connection).await;
                inner.subscribe_to_refused(connection, refused).await;
                inner.see_to_notifications(connection, &mut switched_off).await;
                connection.command(Access::Read, &command("PING")).await.is_ok()
                    && inner.node.is_current(connection).await
            }
            _ => false,
        };
        inner.topics().retain(|_, sender| live || sender.receiver_count() > 0);
        if inner.topics().is_empty() {
            *link = Link::default();
            return;
        }
        if !live {
            link.connection = None;
            match inner.connect(&mut link).await {
                Ok(_) => {
                    // Only now: who reads anew when told so must not miss what comes after.
                    inner.tell_missed();
                    switched_off = false;
                }
                Err(error) => {
                    tracing::debug!(%error, "not connected to listen to Redis");
                    wait = delay.mul_f64(0.5 + fastrand::f64() / 2.0);
                    delay = (delay * 2).min(RETRY_DELAYS.1);
                    continue;
                }
            }
        }
        (wait, delay) = (CHECK_INTERVAL, RETRY_DELAYS.0);
    }
}

impl Topic {
    /// Its name, and whether that is a pattern.
    fn name(&self) -> (&[u8], bool) {
        match self {
            Self::Channel(name) => (name, false),
            Self::Changes(pattern) => (pattern, true),
        }
    }
}

async fn subscribe(connection: &Connection, topic: &Topic) -> Result<()> {
    if matches!(topic, Topic::Changes(_)) {
        switch_notifications_on(connection).await?;
    }
    let (name, pattern) = topic.name();
    connection.subscribe(name, pattern).await
}

/// Sees to it that the server notifies of changes to keys, and says whether it did already. A server that was started
/// anew has forgotten it.
async fn switch_notifications_on(connection: &Connection) -> Result<bool> {
    const SETTING: &str = "notify-keyspace-events";
    let advice = |error: &dyn fmt::Display| {
        unsupported(format!(
            "watching needs the server's setting {SETTING} to hold at least \"Kg$\", and it could not be asked or \
             set: {error}; set it in redis.conf or where the service is configured"
        ))
    };
    let mut ask = command("CONFIG");
    ask.arg("GET").arg(SETTING);
    let reply = checked(connection.command(Access::Read, &ask).await?).map_err(|error| advice(&error))?;
    let current = match reply {
        crate::driver::Value::Map(pairs) => pairs.into_iter().next().map(|(_, value)| value),
        reply => crate::driver::array(reply)?.into_iter().nth(1),
    };
    let current = current.map(bytes).transpose()?.flatten().unwrap_or_default();
    let has = |flag: u8| current.contains(&flag) || (flag != b'K' && current.contains(&b'A'));
    let missing: Vec<u8> = b"Kg$".iter().copied().filter(|flag| !has(*flag)).collect();
    if missing.is_empty() {
        return Ok(true);
    }
    let mut set = command("CONFIG");
    set.arg("SET").arg(SETTING).arg([&current[..], &missing].concat());
    let reply = checked(connection.command(Access::Read, &set).await?);
    reply.map(|_| false).map_err(|error| advice(&error))
}

impl fmt::Debug for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Listener").field("topics", &self.0.topics().len()).finish_non_exhaustive()
    }
}
