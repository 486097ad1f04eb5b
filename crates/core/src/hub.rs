//! Changes and messages within one process, for the embedded backends.

use std::{
    collections::HashMap,
    fmt,
    sync::{Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use futures_util::{StreamExt as _, stream, stream::BoxStream};
use tokio::sync::broadcast::{self, error::RecvError};

use crate::{
    backend::{Change, Message},
    error::Result,
    key::{Key, Prefix},
};

/// How many changes or messages a slow receiver may lag behind before it is told that it missed some.
const QUEUE_LEN: usize = 4096;

/// Hands changes to watchers and messages to subscribers of one process.
pub struct Hub {
    changes: broadcast::Sender<Change>,
    channels: Mutex<HashMap<Key, broadcast::Sender<Message>>>,
}

impl Default for Hub {
    fn default() -> Self {
        Self { changes: broadcast::Sender::new(QUEUE_LEN), channels: Mutex::default() }
    }
}

impl Hub {
    /// Whether anybody watches. Where nobody does, changes need not be made up.
    pub fn is_watched(&self) -> bool {
        self.changes.receiver_count() > 0
    }

    /// Reports a change to the watchers. To be called in the order of the changes of each key.
    pub fn report(&self, change: Change) {
        let _ = self.changes.send(change);
    }

    /// The changes under a prefix from now on.
    pub fn watch(&self, prefix: &Prefix) -> BoxStream<'static, Result<Change>> {
        let prefix = prefix.clone();
        let changes = receive(self.changes.subscribe(), || Change::Missed);
        changes
            .filter(move |change| {
                let wanted = match change {
                    Change::Put(key) | Change::Deleted(key) => key.starts_with(&prefix),
                    Change::Missed => true,
                };
                std::future::ready(wanted)
            })
            .map(Ok)
            .boxed()
    }

    /// Sends a message to the subscribers of a channel.
    pub fn publish(&self, channel: &Key, message: Bytes) {
        let mut channels = self.channels();
        if let Some(sender) = channels.get(channel)
            && sender.send(Message::Payload(message)).is_err()
        {
            channels.remove(channel);
        }
    }

    /// The messages on a channel from now on.
    pub fn subscribe(&self, channel: &Key) -> BoxStream<'static, Result<Message>> {
        let mut channels = self.channels();
        channels.retain(|_, sender| sender.receiver_count() > 0);
        let sender = channels.entry(channel.clone()).or_insert_with(|| broadcast::Sender::new(QUEUE_LEN));
        receive(sender.subscribe(), || Message::Missed).map(Ok).boxed()
    }

    /// Tells every watcher and every subscriber that something may have been missed.
    pub fn missed(&self) {
        self.report(Change::Missed);
        self.channels().retain(|_, sender| sender.send(Message::Missed).is_ok());
    }

    // A std mutex: it is held for a few map operations and never across an await.
    fn channels(&self) -> MutexGuard<'_, HashMap<Key, broadcast::Sender<Message>>> {
        self.channels.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Hub {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hub").field("watchers", &self.changes.receiver_count()).finish_non_exhaustive()
    }
}

fn receive<T: Clone + Send + 'static>(
    receiver: broadcast::Receiver<T>,
    missed: fn() -> T,
) -> BoxStream<'static, T> {
    stream::unfold(receiver, move |mut receiver| async move {
        match receiver.recv().await {
            Ok(item) => Some((item, receiver)),
            Err(RecvError::Lagged(_)) => Some((missed(), receiver)),
            Err(RecvError::Closed) => None,
        }
    })
    .boxed()
}
