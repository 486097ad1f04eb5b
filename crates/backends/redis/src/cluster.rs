//! A Cluster: which node holds which slot, and requests that follow slots as they move.

use std::{
    collections::{HashMap, HashSet},
    fmt,
    sync::{Arc, Mutex, PoisonError, RwLock},
    time::{Duration, Instant},
};

use bytes::Bytes;
use commonhold_core::{Error, ErrorKind, Result, Retry, url::Endpoint};
use futures_util::future::join_all;
use tokio::sync::watch;

use crate::{
    driver::{Dialer, ServerError, Value, array, bytes, checked, command, integer},
    error::{Access, unexpected},
    flight::Flight,
    node::{Dial, Node, Request},
    primary::{at, endpoint},
    slot::{SLOTS, slot},
};

/// How often a request is sent elsewhere before it fails: more than a slot moves meanwhile.
const MAX_REDIRECTS: u32 = 16;
/// How often readers look for replicas.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// A Cluster. Clones are the same.
#[derive(Clone)]
pub(crate) struct Cluster(Arc<Inner>);

struct Inner {
    dialer: Arc<Dialer>,
    seeds: Vec<Endpoint>,
    nodes: Mutex<HashMap<Endpoint, Arc<Node>>>,
    /// Replicas answer reads only on connections that say that they read.
    readers: Mutex<HashMap<Endpoint, Arc<Node>>>,
    layout: RwLock<Option<Arc<Layout>>>,
    looking: Flight<Arc<Layout>>,
    /// When readers had a look at the layout last: nobody tells them of replicas that come and go.
    looked: Mutex<Option<Instant>>,
    changed: watch::Sender<u64>,
}

/// Who holds which slots.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    /// For each slot, the index of its shard.
    owners: Vec<Option<u16>>,
    shards: Vec<Shard>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Shard {
    primary: Endpoint,
    replicas: Vec<Endpoint>,
}

impl Layout {
    /// The primary that holds a slot.
    pub(crate) fn primary(&self, slot: u16) -> Option<&Endpoint> {
        self.shard(slot).map(|shard| &shard.primary)
    }

    /// All primaries that hold slots.
    pub(crate) fn primaries(&self) -> impl Iterator<Item = &Endpoint> {
        self.shards.iter().map(|shard| &shard.primary)
    }

    /// Each node tells the shards in an order of its own; two layouts are to be equal if they say the same.
    fn in_order(mut self) -> Self {
        let place = |server: &Endpoint| (server.host.clone(), server.port);
        let mut order: Vec<usize> = (0..self.shards.len()).collect();
        order.sort_by_key(|index| self.shards.get(*index).map(|shard| place(&shard.primary)));
        let new_index = |old: u16| order.iter().position(|index| *index == usize::from(old));
        let moved: Vec<Option<u16>> =
            (0..).take(order.len()).map(|old| u16::try_from(new_index(old)?).ok()).collect();
        for owner in &mut self.owners {
            *owner = owner.and_then(|old| moved.get(usize::from(old)).copied().flatten());
        }
        self.shards.sort_by_key(|shard| place(&shard.primary));
        for shard in &mut self.shards {
            shard.replicas.sort_by_key(place);
        }
        self
    }

    /// Whether the same primaries hold the same slots.
    fn agrees_with(&self, other: &Self) -> bool {
        self.owners == other.owners && self.primaries().eq(other.primaries())
    }

    fn shard(&self, slot: u16) -> Option<&Shard> {
        self.shards.get(usize::from((*self.owners.get(usize::from(slot))?)?))
    }
}

impl Cluster {
    pub(crate) fn new(dialer: Arc<Dialer>, seeds: Vec<Endpoint>) -> Self {
        Self(Arc::new(Inner {
            dialer,
            seeds,
            nodes: Mutex::default(),
            readers: Mutex::default(),
            layout: RwLock::default(),
            looking: Flight::default(),
            looked: Mutex::default(),
            changed: watch::Sender::new(0),
        }))
    }

    /// Who holds which slots, as far as is known.
    pub(crate) async fn layout(&self) -> Result<Arc<Layout>> {
        let known = self.0.layout.read().unwrap_or_else(PoisonError::into_inner).clone();
        match known {
            Some(layout) => Ok(layout),
            None => self.look().await,
        }
    }

    /// Asks the nodes who holds which slots. All who want to know at once wait for one answer.
    pub(crate) async fn look(&self) -> Result<Arc<Layout>> {
        let cluster = self.clone();
        self.0.looking.join(async move { cluster.ask_around().await }).await
    }

    /// The same without waiting for it.
    pub(crate) fn look_soon(&self) {
        let cluster = self.clone();
        tokio::spawn(async move { cluster.look().await.map(drop) });
    }

    fn look_now_and_then(&self) {
        let mut looked = self.0.looked.lock().unwrap_or_else(PoisonError::into_inner);
        if looked.is_none_or(|looked| looked.elapsed() >= LOOK_EVERY) {
            *looked = Some(Instant::now());
            self.look_soon();
        }
    }

    /// Told whenever slots have moved to other nodes.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.0.changed.subscribe()
    }

    async fn ask_around(&self) -> Result<Arc<Layout>> {
        let known = self.0.layout.read().unwrap_or_else(PoisonError::into_inner).clone();
        let mut members: Vec<Endpoint> = known
            .iter()
            .flat_map(|layout| layout.shards.iter())
            .flat_map(|shard| shard.replicas.iter().chain([&shard.primary]))
            .cloned()
            .collect();
        fastrand::shuffle(&mut members);
        members.extend(self.0.seeds.iter().cloned());
        let mut failed = None;
        for member in members {
            match self.ask(&member).await {
                Ok(layout) => {
                    let layout = Arc::new(layout);
                    self.adopt(Arc::clone(&layout));
                    return Ok(layout);
                }
                Err(error) if error.kind() == ErrorKind::Unauthorized => return Err(error),
                Err(error) => failed = Some(error),
            }
        }
        Err(failed.unwrap_or_else(unexpected))
    }

    async fn ask(&self, member: &Endpoint) -> Result<Layout> {
        let mut slots = command("CLUSTER");
        slots.arg("SLOTS");
        let reply = self.node(member).send(&Request::new(Access::Read, slots)).await?;
        let mut owners = vec![None; usize::from(SLOTS)];
        let mut shards: Vec<Shard> = Vec::new();
        for range in array(reply)? {
            let mut range = array(range)?.into_iter();
            let mut number = || integer(range.next().ok_or_else(unexpected)?);
            let (first, last) = (number()?, number()?);
            let mut nodes = range.filter_map(|node| {
                let mut fields = array(node).ok()?.into_iter();
                let (host, port) = (fields.next()?, fields.next()?);
                // One that does not know its own address is where it was asked.
                let unnamed = matches!(&host, Value::Nil) || bytes(host.clone()).ok()??.is_empty();
                let host = if unnamed { Value::SimpleString(member.host.clone()) } else { host };
                endpoint(Some(host), Some(port))
            });
            let primary = nodes.next().ok_or_else(unexpected)?;
            let replicas = nodes.collect();
            let shard = match shards.iter().position(|shard| shard.primary == primary) {
                Some(index) => index,
                None => {
                    shards.push(Shard { primary, replicas });
                    shards.len() - 1
                }
            };
            let range = usize::try_from(first).unwrap_or(usize::MAX)..=usize::try_from(last).unwrap_or(0);
            for owner in owners.get_mut(range).ok_or_else(unexpected)? {
                *owner = u16::try_from(shard).ok();
            }
        }
        if shards.is_empty() {
            let message =
                format!("{member} knows of no slots; is it a member of a Cluster that is complete?");
            return Err(Error::new(ErrorKind::Unavailable, message).with_retry(Retry::Safe));
        }
        Ok(Layout { owners, shards }.in_order())
    }

    fn adopt(&self, layout: Arc<Layout>) {
        let old = {
            let mut known = self.0.layout.write().unwrap_or_else(PoisonError::into_inner);
            known.replace(Arc::clone(&layout))
        };
        let Some(old) = old.filter(|old| *old != layout) else { return };
        let members: HashSet<&Endpoint> =
            layout.shards.iter().flat_map(|shard| shard.replicas.iter().chain([&shard.primary])).collect();
        for nodes in [&self.0.nodes, &self.0.readers] {
            nodes.lock().unwrap_or_else(PoisonError::into_inner).retain(|server, _| members.contains(server));
        }
        if !old.agrees_with(&layout) {
            self.0.changed.send_modify(|version| *version += 1);
        }
    }

    /// The node at this address.
    pub(crate) fn node(&self, server: &Endpoint) -> Arc<Node> {
        let mut nodes = self.0.nodes.lock().unwrap_or_else(PoisonError::into_inner);
        let new = || Arc::new(Node::new(at(Arc::clone(&self.0.dialer), server.clone())));
        Arc::clone(nodes.entry(server.clone()).or_insert_with(new))
    }

    /// The primary of a slot.
    pub(crate) async fn primary(&self, slot: u16) -> Result<Arc<Node>> {
        let mut layout = self.layout().await?;
        if layout.primary(slot).is_none() {
            layout = self.look().await?;
        }
        layout.primary(slot).map(|server| self.node(server)).ok_or_else(|| {
            let message = format!("no node of the Cluster holds slot {slot}");
            Error::new(ErrorKind::Unavailable, message).with_retry(Retry::Safe)
        })
    }

    /// A replica of a slot, or its primary if it has none.
    async fn reader(&self, slot: u16) -> Result<Arc<Node>> {
        let layout = self.layout().await?;
        self.look_now_and_then();
        let replicas = layout.shard(slot).map(|shard| shard.replicas.as_slice()).unwrap_or_default();
        match fastrand::choice(replicas) {
            None => self.primary(slot).await,
            Some(replica) => {
                let mut readers = self.0.readers.lock().unwrap_or_else(PoisonError::into_inner);
                let dial = at(Arc::clone(&self.0.dialer), replica.clone());
                let new = || Arc::new(Node::new(reading(dial)));
                Ok(Arc::clone(readers.entry(replica.clone()).or_insert_with(new)))
            }
        }
    }

    /// Sends a command to the node that holds its key, wherever that moves. An error of the server that is not
    /// about slots is a [`Value::ServerError`].
    pub(crate) async fn send(&self, key: &[u8], request: &Request) -> Result<Value> {
        self.follow(self.primary(slot(key)).await?, false, request).await
    }

    /// Sends a read to a replica, and to the primary if that replica is gone, slow or not ready.
    pub(crate) async fn read(&self, key: &[u8], request: &Request) -> Result<Value> {
        let read = self.follow(self.reader(slot(key)).await?, false, request).await;
        match read.and_then(checked) {
            Err(error) if matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::Timeout) => {
                self.send(key, request).await
            }
            read => read,
        }
    }

    async fn follow(&self, mut node: Arc<Node>, mut asking: bool, request: &Request) -> Result<Value> {
        for redirects in 0..MAX_REDIRECTS {
            let reply = if asking { node.send_asking(request).await } else { node.send(request).await };
            let reply = reply.inspect_err(|_| self.look_soon())?;
            match redirect(&reply) {
                None => return Ok(reply),
                Some(Redirect::Moved(server)) => {
                    // Who was asked may not have heard of it yet; the one that is named knows.
                    let _ = self.look().await;
                    (node, asking) = (self.node(&server), false);
                }
                Some(Redirect::Ask(server)) => (node, asking) = (self.node(&server), true),
                Some(Redirect::Later) => {
                    tokio::time::sleep(Duration::from_millis(1 << redirects.min(7))).await;
                }
            }
        }
        let message = "the nodes of the Cluster send the request from one to another";
        Err(Error::new(ErrorKind::Unavailable, message).with_retry(Retry::Safe))
    }

    /// Sends commands to the nodes that hold their keys, in pieces of so many at most, to all nodes at once, and
    /// returns the replies in order. Writes to one key are carried out in their order.
    pub(crate) async fn send_all(
        &self,
        access: Access,
        requests: Vec<(Bytes, Request)>,
        piece: usize,
    ) -> Vec<Result<Value>> {
        let mut replies: Vec<Result<Value>> = Vec::new();
        replies.resize_with(requests.len(), || Err(unexpected()));
        let layout = match self.layout().await {
            Ok(layout) => layout,
            Err(error) => return requests.iter().map(|_| Err(error.clone())).collect(),
        };
        let mut by_node: HashMap<Option<Endpoint>, Vec<(usize, Bytes, Request)>> = HashMap::new();
        for (index, (key, request)) in requests.into_iter().enumerate() {
            by_node.entry(layout.primary(slot(&key)).cloned()).or_default().push((index, key, request));
        }
        let pieces = by_node.into_iter().map(|(server, mut requests)| async move {
            let mut replies = Vec::with_capacity(requests.len());
            while !requests.is_empty() {
                let rest = requests.split_off(piece_len(access, &requests, piece));
                replies.extend(self.send_piece(access, server.as_ref(), requests).await);
                requests = rest;
            }
            replies
        });
        for (index, reply) in join_all(pieces).await.into_iter().flatten() {
            if let Some(place) = replies.get_mut(index) {
                *place = reply;
            }
        }
        replies
    }

    async fn send_piece(
        &self,
        access: Access,
        server: Option<&Endpoint>,
        piece: Vec<(usize, Bytes, Request)>,
    ) -> Vec<(usize, Result<Value>)> {
        let (places, requests): (Vec<_>, Vec<_>) =
            piece.into_iter().map(|(index, key, request)| ((index, key), request)).unzip();
        let first = match server {
            Some(server) => self.node(server).send_all(access, &requests).await,
            None => Ok(Vec::new()),
        };
        let first = match first {
            Ok(replies) => replies,
            Err(error) => {
                self.look_soon();
                return places.into_iter().map(|(index, _)| (index, Err(error.clone()))).collect();
            }
        };
        let mut replies = Vec::with_capacity(places.len());
        let mut first = first.into_iter();
        for ((index, key), request) in places.into_iter().zip(&requests) {
            let reply = match first.next() {
                None => self.send(&key, request).await,
                Some(reply) => match redirect(&reply) {
                    None => Ok(reply),
                    Some(Redirect::Ask(server)) => self.follow(self.node(&server), true, request).await,
                    Some(Redirect::Moved(server)) => {
                        self.look_soon();
                        self.follow(self.node(&server), false, request).await
                    }
                    Some(Redirect::Later) => self.send(&key, request).await,
                },
            };
            replies.push((index, reply));
        }
        replies
    }
}

/// How many of these requests go in one piece. A key is written to once in each: the node may redirect the first of two
/// writes and carry out the second, as its slot comes and goes, and the first would then be carried out last.
fn piece_len(access: Access, requests: &[(usize, Bytes, Request)], most: usize) -> usize {
    let mut written = HashSet::new();
    let again =
        |(_, key, _): &(usize, Bytes, Request)| access == Access::Write && !written.insert(key.clone());
    requests.iter().take(most).position(again).unwrap_or(requests.len().min(most))
}

/// Makes connections on which a replica answers reads.
fn reading(dial: Dial) -> Dial {
    Arc::new(move |on_push| {
        let dial = Arc::clone(&dial);
        Box::pin(async move {
            let connection = dial(on_push).await?;
            checked(connection.command(Access::Read, &command("READONLY")).await?)?;
            Ok(connection)
        })
    })
}

enum Redirect {
    Moved(Endpoint),
    Ask(Endpoint),
    Later,
}

/// Where the server says the request should go. It has not carried it out then.
fn redirect(reply: &Value) -> Option<Redirect> {
    let Value::ServerError(error) = reply else { return None };
    match error.code() {
        "MOVED" => Some(named(error).map_or(Redirect::Later, Redirect::Moved)),
        "ASK" => Some(named(error).map_or(Redirect::Later, Redirect::Ask)),
        "TRYAGAIN" => Some(Redirect::Later),
        _ => None,
    }
}

/// `3999 127.0.0.1:6381`
fn named(error: &ServerError) -> Option<Endpoint> {
    let (_, address) = error.details()?.split_once(' ')?;
    let (host, port) = address.trim().rsplit_once(':')?;
    let host = host.trim_start_matches('[').trim_end_matches(']');
    (!host.is_empty()).then_some(())?;
    Some(Endpoint { host: host.to_owned(), port: port.parse().ok()? })
}

impl fmt::Debug for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cluster").field("seeds", &self.0.seeds).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_written_to_once_in_a_piece() {
        let requests: Vec<_> = ["a", "b", "a", "a", "c", "d"]
            .into_iter()
            .enumerate()
            .map(|(index, key)| (index, Bytes::from(key), Request::new(Access::Write, command("SET"))))
            .collect();
        let lens = |access, most| {
            let (mut rest, mut lens) = (&requests[..], Vec::new());
            while !rest.is_empty() {
                let len = piece_len(access, rest, most);
                lens.push(len);
                rest = &rest[len..];
            }
            lens
        };
        assert_eq!(lens(Access::Write, 500), [2, 1, 3]);
        assert_eq!(lens(Access::Write, 2), [2, 1, 2, 1]);
        assert_eq!(lens(Access::Read, 500), [6]);
        assert_eq!(lens(Access::Read, 4), [4, 2]);
    }
}
