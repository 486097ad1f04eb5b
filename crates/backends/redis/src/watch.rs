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
use tokio::sync::watch;

use crate::{
    cluster::Cluster,
    driver::command,
    error::Access,
    keyspace::Keyspace,
    listener::{Heard, Listener, Topic},
    node::{Node, Request},
    servers::Servers,
};

/// How often a Cluster that is watched is asked for new primaries.
const LOOK_INTERVAL: Duration = Duration::from_secs(2);

/// Listens on the servers of a store.
#[derive(Debug, Clone)]
pub(crate) struct Watches {
    servers: Servers,
    keyspace: Keyspace,
    database: u32,
    messages: Listener,
    /// A listener for each primary of a Cluster that was ever watched and still is one.
    primaries: Arc<Mutex<HashMap<Endpoint, Listener>>>,
}

impl Watches {
    pub(crate) fn new(servers: Servers, keyspace: Keyspace, database: u32) -> Self {
        let node = match &servers {
            Servers::One { primary, .. } => Arc::clone(primary),
            Servers::Cluster { cluster, .. } => Arc::new(some_primary(cluster.clone())),
        };
        let messages = Listener::new(node);
        Self { servers, keyspace, database, messages, primaries: Arc::default() }
    }

    pub(crate) async fn publish(&self, channel: &Key, message: Bytes) -> Result<()> {
        let channel = self.keyspace.full(channel);
        let mut publish = command("PUBLISH");
        publish.arg(&channel[..]).arg(&message[..]);
        self.servers.send(&channel, &Request::new(Access::Write, publish)).await.map(drop)
    }

    pub(crate) async fn messages(&self, channel: &Key) -> Result<BoxStream<'static, Result<Message>>> {
        let heard = self.messages.listen(Topic::Channel(self.keyspace.full(channel))).await?;
        let message = |heard| match heard {
            Heard::Message { payload, .. } => Message::Payload(payload),
            Heard::Missed => Message::Missed,
        };
        Ok(heard.map(move |heard| Ok(message(heard))).boxed())
    }

    pub(crate) async fn changes(&self, prefix: &Prefix) -> Result<BoxStream<'static, Result<Change>>> {
        let channels = format!("__keyspace@{}__:", self.database);
        let pattern = [channels.as_bytes(), &self.keyspace.pattern(prefix)].concat();
        let topic = Topic::Changes(pattern.into());
        let heard = match &self.servers {
            Servers::One { .. } => self.messages.listen(topic).await?,
            Servers::Cluster { cluster, .. } => self.everywhere(cluster, topic).await?,
        };
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

    /// What is heard from every primary, those that come later included.
    async fn everywhere(&self, cluster: &Cluster, topic: Topic) -> Result<BoxStream<'static, Heard>> {
        let mut layout = cluster.changes();
        layout.mark_unchanged();
        let heard = self.all_primaries(cluster, &topic).await?;
        let state = Everywhere { watches: self.clone(), cluster: cluster.clone(), topic, layout, heard };
        Ok(stream::unfold(state, Everywhere::next).boxed())
    }

    async fn all_primaries(
        &self,
        cluster: &Cluster,
        topic: &Topic,
    ) -> Result<SelectAll<BoxStream<'static, Heard>>> {
        let layout = cluster.look().await?;
        let listeners: Vec<Listener> = {
            let mut known = self.primaries.lock().unwrap_or_else(PoisonError::into_inner);
            known.retain(|server, _| layout.primaries().any(|primary| primary == server));
            let listener = |server: &Endpoint| {
                known.entry(server.clone()).or_insert_with(|| Listener::new(cluster.node(server))).clone()
            };
            layout.primaries().map(listener).collect()
        };
        let mut all = SelectAll::new();
        for listener in listeners {
            all.push(listener.listen(topic.clone()).await?);
        }
        Ok(all)
    }
}

struct Everywhere {
    watches: Watches,
    cluster: Cluster,
    topic: Topic,
    layout: watch::Receiver<u64>,
    heard: SelectAll<BoxStream<'static, Heard>>,
}

impl Everywhere {
    async fn next(mut self) -> Option<(Heard, Self)> {
        loop {
            tokio::select! {
                Some(heard) = self.heard.next() => return Some((heard, self)),
                _ = self.layout.changed() => {
                    match self.watches.all_primaries(&self.cluster, &self.topic).await {
                        Ok(heard) => {
                            self.heard = heard;
                            return Some((Heard::Missed, self));
                        }
                        Err(error) => {
                            tracing::debug!(%error, "not connected to all primaries to watch");
                            self.layout.mark_changed();
                            tokio::time::sleep(LOOK_INTERVAL / 4).await;
                        }
                    }
                }
                () = tokio::time::sleep(LOOK_INTERVAL) => {
                    let _ = self.cluster.look().await;
                }
            }
        }
    }
}

/// Some primary: messages reach all of a Cluster's nodes.
fn some_primary(cluster: Cluster) -> Node {
    Node::new(Arc::new(move |on_push| {
        let cluster = cluster.clone();
        Box::pin(async move {
            let layout = cluster.look().await?;
            let primaries: Vec<&Endpoint> = layout.primaries().collect();
            let chosen = fastrand::choice(primaries).ok_or_else(crate::error::unexpected)?;
            cluster.node(chosen).dial(on_push).await
        })
    }))
}

/// What an event of the server says of a key; nothing if it is no change.
fn change(key: Key, event: &[u8]) -> Option<Change> {
    match event {
        b"del" | b"rename_from" | b"move_from" => Some(Change::Deleted(key)),
        b"expired" | b"evicted" | b"new" => None,
        _ => Some(Change::Put(key)),
    }
}
