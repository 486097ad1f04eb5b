//! Changes to keys and messages on channels, on however many servers.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use commonhold_core::{Change, Key, Message, Prefix, Result, url::Endpoint};
use futures_util::{
    StreamExt as _,
    stream::{self, BoxStream, SelectAll},
};
use tokio::{
    sync::watch,
    time::{Instant, Interval, MissedTickBehavior},
};

use crate::{
    cluster::Cluster,
    driver::command,
    error::Access,
    keyspace::Keyspace,
    listener::{Heard, Listener, Topic},
    node::Request,
    servers::Servers,
    slot::slot,
};

/// How often a Cluster that is watched is asked for new primaries.
const LOOK_INTERVAL: Duration = Duration::from_secs(2);

/// Listens on the servers of a store.
#[derive(Debug, Clone)]
pub(crate) struct Watches {
    servers: Servers,
    keyspace: Keyspace,
    database: u32,
    sources: Sources,
}

#[derive(Debug, Clone)]
enum Sources {
    One(Listener),
    /// With a listener for each primary that was ever listened to and still is one.
    Cluster(Cluster, Arc<Mutex<HashMap<Endpoint, Listener>>>),
}

impl Watches {
    pub(crate) fn new(servers: Servers, keyspace: Keyspace, database: u32) -> Self {
        let sources = match &servers {
            Servers::One { primary, .. } => Sources::One(Listener::new(Arc::clone(primary))),
            Servers::Cluster { cluster, .. } => Sources::Cluster(cluster.clone(), Arc::default()),
        };
        Self { servers, keyspace, database, sources }
    }

    pub(crate) async fn publish(&self, channel: &Key, message: Bytes) -> Result<()> {
        let channel = self.keyspace.full(channel);
        let mut publish = command("PUBLISH");
        publish.arg(&channel[..]).arg(&message[..]);
        self.servers.send(&channel, &Request::new(Access::Write, publish)).await.map(drop)
    }

    /// In a Cluster, from the node on which the channel's name lies: [`publish`](Self::publish) sends them there, so that
    /// they come in order. Those of scripts come by way of the keys' nodes.
    pub(crate) async fn messages(&self, channel: &Key) -> Result<BoxStream<'static, Result<Message>>> {
        let channel = self.keyspace.full(channel);
        let place = Place::Slot(slot(&channel));
        let heard = self.heard(Topic::Channel(channel), place).await?;
        let message = |heard| match heard {
            Heard::Message { payload, .. } => Message::Payload(payload),
            Heard::Missed => Message::Missed,
        };
        Ok(heard.map(move |heard| Ok(message(heard))).boxed())
    }

    pub(crate) async fn changes(&self, prefix: &Prefix) -> Result<BoxStream<'static, Result<Change>>> {
        let channels = format!("__keyspace@{}__:", self.database);
        let pattern = [channels.as_bytes(), &self.keyspace.pattern(prefix)].concat();
        let heard = self.heard(Topic::Changes(pattern.into()), Place::Everywhere).await?;
        let (keyspace, channel_len) = (self.keyspace.clone(), channels.len());
        let changes = heard.filter_map(move |heard| {
            let change = match heard {
                Heard::Missed => Some(Change::Missed),
                Heard::Message { channel, payload } => {
                    keyspace.own(channel.slice(channel_len..)).and_then(|key| change(key, &payload))
                }
            };
            std::future::ready(change.map(Ok))
        });
        Ok(changes.boxed())
    }

    async fn heard(&self, topic: Topic, place: Place) -> Result<BoxStream<'static, Heard>> {
        let (cluster, listeners) = match &self.sources {
            Sources::One(listener) => return listener.listen(topic).await,
            Sources::Cluster(cluster, listeners) => (cluster.clone(), Arc::clone(listeners)),
        };
        let mut layout = cluster.changes();
        layout.mark_unchanged();
        let heard = listen(&cluster, &listeners, &topic, place).await?;
        let mut look = tokio::time::interval_at(Instant::now() + LOOK_INTERVAL, LOOK_INTERVAL);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let state = Listening { cluster, listeners, topic, place, layout, look, heard };
        Ok(stream::unfold(state, Listening::next).boxed())
    }
}

async fn listen(
    cluster: &Cluster,
    listeners: &Mutex<HashMap<Endpoint, Listener>>,
    topic: &Topic,
    place: Place,
) -> Result<SelectAll<BoxStream<'static, Heard>>> {
    let layout = cluster.look().await?;
    let servers: Vec<&Endpoint> = match place {
        Place::Slot(slot) => layout.primary(slot).into_iter().collect(),
        Place::Everywhere => layout.primaries().collect(),
    };
    let listeners: Vec<Listener> = {
        let mut known = listeners.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|server, _| layout.primaries().any(|primary| primary == server));
        let listener = |server: &Endpoint| {
            known.entry(server.clone()).or_insert_with(|| Listener::new(cluster.node(server))).clone()
        };
        servers.into_iter().map(listener).collect()
    };
    let mut all = SelectAll::new();
    for listener in listeners {
        all.push(listener.listen(topic.clone()).await?);
    }
    Ok(all)
}

/// Which nodes of a Cluster are listened to.
#[derive(Debug, Clone, Copy)]
enum Place {
    /// All primaries, those that come later included.
    Everywhere,
    /// The primary of a slot, wherever that moves.
    Slot(u16),
}

struct Listening {
    cluster: Cluster,
    listeners: Arc<Mutex<HashMap<Endpoint, Listener>>>,
    topic: Topic,
    place: Place,
    layout: watch::Receiver<u64>,
    /// When to look for new primaries, however much is heard of the others.
    look: Interval,
    heard: SelectAll<BoxStream<'static, Heard>>,
}

impl Listening {
    async fn next(mut self) -> Option<(Heard, Self)> {
        loop {
            tokio::select! {
                Some(heard) = self.heard.next() => return Some((heard, self)),
                _ = self.layout.changed() => {
                    match listen(&self.cluster, &self.listeners, &self.topic, self.place).await {
                        Ok(heard) => {
                            self.heard = heard;
                            return Some((Heard::Missed, self));
                        }
                        Err(error) => {
                            tracing::debug!(%error, "not connected to the primaries to listen to");
                            self.layout.mark_changed();
                            tokio::time::sleep(LOOK_INTERVAL / 4).await;
                        }
                    }
                }
                // Not waited for: events would pile up while a node that is gone is asked.
                _ = self.look.tick() => self.cluster.look_soon(),
            }
        }
    }
}

/// What an event of the server says of a key; nothing if it is no change, or one of what is no value.
fn change(key: Key, event: &[u8]) -> Option<Change> {
    match event {
        b"del" | b"rename_from" | b"move_from" => Some(Change::Deleted(key)),
        b"set" | b"setrange" | b"append" | b"incrby" | b"decrby" | b"incrbyfloat" | b"setbit" | b"pfadd"
        | b"expire" | b"persist" | b"rename_to" | b"move_to" | b"copy_to" | b"restore" => {
            Some(Change::Put(key))
        }
        _ => None,
    }
}
