//! Reading values, with and without the time that they have left.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use commonhold_core::{Entry, Result};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};

use crate::{
    driver::{Value, array, bytes, command, integer},
    error::{Access, unexpected},
    lanes::Lanes,
    node::{Node, Request, Script},
    servers::Servers,
};

/// How many pieces of a batch are on their way at once.
const PIECES_AT_ONCE: usize = 4;

/// Reads from the servers of a store.
#[derive(Debug)]
pub(crate) struct Reads {
    servers: Servers,
    entries: Script,
    piece: usize,
    /// Where all keys lie together, concurrent reads travel together.
    gathered: Option<Gathered>,
}

#[derive(Debug)]
struct Gathered {
    values: Lanes<Bytes, Option<Bytes>>,
    entries: Lanes<Bytes, Option<Entry>>,
}

impl Reads {
    pub(crate) fn new(servers: Servers, piece: usize) -> Self {
        let entries = Script::new(include_str!("scripts/entries.lua"));
        let gathered = match &servers {
            Servers::Cluster { .. } => None,
            Servers::One { reader, .. } => {
                let (node, other, script) = (Arc::clone(reader), Arc::clone(reader), entries.clone());
                Some(Gathered {
                    values: Lanes::new(move |keys| values(Arc::clone(&node), keys)),
                    entries: Lanes::new(move |keys| entries_of(Arc::clone(&other), script.clone(), keys)),
                })
            }
        };
        Self { servers, entries, piece, gathered }
    }

    pub(crate) async fn value(&self, key: Bytes) -> Result<Option<Bytes>> {
        if let Some(gathered) = &self.gathered {
            return gathered.values.call(key).await;
        }
        let reply = self.servers.read(&key, &mget([&key].into_iter())).await?;
        parse_values(reply, 1)?.pop().ok_or_else(unexpected)
    }

    pub(crate) async fn entry(&self, key: Bytes) -> Result<Option<Entry>> {
        if let Some(gathered) = &self.gathered {
            return gathered.entries.call(key).await;
        }
        let request = self.entries.call(Access::Read, [&key].into_iter());
        parse_entries(self.servers.read(&key, &request).await?, 1)?.pop().ok_or_else(unexpected)
    }

    pub(crate) async fn values(&self, keys: Vec<Bytes>) -> Result<Vec<Option<Bytes>>> {
        self.many(keys, |keys| mget(keys.iter()), parse_values).await
    }

    pub(crate) async fn entries(&self, keys: Vec<Bytes>) -> Result<Vec<Option<Entry>>> {
        self.many(keys, |keys| self.entries.call(Access::Read, keys.iter()), parse_entries).await
    }

    /// The same from the primaries, whatever answers other reads.
    pub(crate) async fn current_entries(&self, keys: &[Bytes]) -> Result<Vec<Option<Entry>>> {
        if !self.servers.are_together() {
            return self.entries(keys.to_vec()).await;
        }
        let requests = keys.chunks(self.piece).filter_map(|piece| {
            Some((piece.first()?.clone(), self.entries.call(Access::Read, piece.iter())))
        });
        let replies = self.servers.send_all(Access::Read, requests.collect(), self.piece).await?;
        let entries = replies.into_iter().zip(keys.chunks(self.piece));
        let entries = entries.map(|(reply, piece)| parse_entries(reply?, piece.len()));
        Ok(entries.collect::<Result<Vec<_>>>()?.into_iter().flatten().collect())
    }

    async fn many<T>(
        &self,
        keys: Vec<Bytes>,
        request: impl Fn(&[Bytes]) -> Request,
        parse: fn(Value, usize) -> Result<Vec<Option<T>>>,
    ) -> Result<Vec<Option<T>>> {
        if self.servers.are_together() {
            let pieces: Vec<(Bytes, Request, usize)> = keys
                .chunks(self.piece)
                .filter_map(|piece| Some((piece.first()?.clone(), request(piece), piece.len())))
                .collect();
            let replies = stream::iter(pieces).map(|(key, request, count)| async move {
                parse(self.servers.read(&key, &request).await?, count)
            });
            return replies.buffered(PIECES_AT_ONCE).try_concat().await;
        }
        let requests = keys.into_iter().map(|key| {
            let request = request(std::slice::from_ref(&key));
            (key, request)
        });
        let replies = self.servers.send_all(Access::Read, requests.collect(), self.piece).await?;
        let parsed = replies.into_iter().map(|reply| parse(reply?, 1)?.pop().ok_or_else(unexpected));
        parsed.collect()
    }
}

async fn values(node: Arc<Node>, keys: Vec<Bytes>) -> Result<Vec<Result<Option<Bytes>>>> {
    let reply = node.send(&mget(keys.iter())).await?;
    Ok(parse_values(reply, keys.len())?.into_iter().map(Ok).collect())
}

async fn entries_of(node: Arc<Node>, script: Script, keys: Vec<Bytes>) -> Result<Vec<Result<Option<Entry>>>> {
    let reply = node.send(&script.call(Access::Read, keys.iter())).await?;
    Ok(parse_entries(reply, keys.len())?.into_iter().map(Ok).collect())
}

/// MGET also for one key: it takes a key that holds another type for missing, as it does for many.
fn mget<'a>(keys: impl Iterator<Item = &'a Bytes>) -> Request {
    let mut mget = command("MGET");
    for key in keys {
        mget.arg(&key[..]);
    }
    Request::new(Access::Read, mget)
}

fn parse_values(reply: Value, count: usize) -> Result<Vec<Option<Bytes>>> {
    let values = array(reply)?;
    if values.len() != count {
        return Err(unexpected());
    }
    values.into_iter().map(bytes).collect()
}

fn parse_entries(reply: Value, count: usize) -> Result<Vec<Option<Entry>>> {
    let mut values = array(reply)?;
    if values.len() < count {
        return Err(unexpected());
    }
    let mut ttls = values.split_off(count).into_iter();
    let entry = |value| Ok(bytes(value)?.map(|value| Entry { value, ttl: None }));
    let mut entries = values.into_iter().map(entry).collect::<Result<Vec<_>>>()?;
    while let (Some(index), Some(ttl)) = (ttls.next(), ttls.next()) {
        let index = usize::try_from(integer(index)?).ok().and_then(|index| index.checked_sub(1));
        if let Some(Some(entry)) = index.and_then(|index| entries.get_mut(index)) {
            entry.ttl = Some(ttl_of(integer(ttl)?));
        }
    }
    Ok(entries)
}

/// What is there has some time left, if less than a millisecond.
pub(crate) fn ttl_of(millis: i64) -> Duration {
    Duration::from_millis(u64::try_from(millis).unwrap_or_default().max(1))
}
