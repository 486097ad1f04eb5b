//! Listing, counting and clearing by prefix, on every primary.

use std::{collections::VecDeque, sync::Arc};

use bytes::Bytes;
use commonhold_core::{Entry, Error, ErrorKind, Key, Prefix, Result, Retry, Scan, url::Endpoint};
use futures_util::{StreamExt as _, TryStreamExt as _, stream, stream::BoxStream};

use crate::{
    cluster::Layout,
    driver::{Connection, array, bytes, command, integer},
    error::{Access, unexpected, unsupported},
    keyspace::Keyspace,
    node::{Node, Request},
    reads::{Reads, ttl_of},
    seen::Seen,
    servers::Servers,
    slot::{SLOTS, slot},
};

/// How many of its keys a server looks at in one step at least: a prefix may match few of many.
const MIN_COUNT: usize = 512;

/// How many bytes of values are read at once, about.
const CHUNK_BYTES: usize = 4 << 20;

/// How many entries are read at once while nothing is known of their size.
const FIRST_CHUNK: usize = 8;

/// How many times longer a chunk may be than the one before.
const MAX_GROWTH: usize = 8;

/// Scans the servers of a store.
#[derive(Debug, Clone)]
pub(crate) struct Scans {
    servers: Servers,
    keyspace: Keyspace,
    reads: Arc<Reads>,
    piece: usize,
}

/// Where a walk over the keys of all primaries is.
struct Walk {
    scans: Scans,
    pattern: Vec<u8>,
    count: usize,
    /// Who held which slots when it began.
    layout: Option<Arc<Layout>>,
    /// Those that are not done.
    nodes: VecDeque<(Option<Endpoint>, Arc<Node>)>,
    connection: Option<Connection>,
    cursor: u64,
    seen: Seen,
}

impl Scans {
    pub(crate) fn new(servers: Servers, keyspace: Keyspace, reads: Arc<Reads>, piece: usize) -> Self {
        Self { servers, keyspace, reads, piece }
    }

    pub(crate) fn entries(&self, scan: Scan) -> BoxStream<'static, Result<(Key, Entry)>> {
        if let Err(error) = check(&scan) {
            return stream::once(std::future::ready(Err(error))).boxed();
        }
        let listing = Listing {
            scans: self.clone(),
            pages: self.pages(&scan.prefix, scan.page).boxed(),
            keys: Vec::new().into_iter(),
            chunk: Chunk::new(scan.page),
            keys_only: scan.keys_only,
        };
        let entries = stream::try_unfold(listing, Listing::next);
        entries.map_ok(|entries| stream::iter(entries.into_iter().map(Ok))).try_flatten().boxed()
    }

    /// The entries of these keys; those that are gone by now are left out.
    async fn read(&self, keys: &[Bytes], keys_only: bool) -> Result<Vec<(Key, Entry)>> {
        let entries = if keys_only {
            self.times_to_live(keys).await?
        } else {
            self.reads.current_entries(keys).await?
        };
        let keys = keys.iter().map(|key| self.keyspace.own(key.clone()));
        Ok(keys.zip(entries).filter_map(|(key, entry)| Some((key?, entry?))).collect())
    }

    async fn times_to_live(&self, keys: &[Bytes]) -> Result<Vec<Option<Entry>>> {
        let requests = keys.iter().map(|key| {
            let mut pttl = command("PTTL");
            pttl.arg(&key[..]);
            (key.clone(), Request::new(Access::Read, pttl))
        });
        let replies = self.servers.send_all(Access::Read, requests.collect(), self.piece).await?;
        let entry = |reply: Result<_>| {
            let left = integer(reply?)?;
            let ttl = (left >= 0).then(|| ttl_of(left));
            Ok((left != -2).then(|| Entry { value: Bytes::new(), ttl }))
        };
        replies.into_iter().map(entry).collect()
    }

    pub(crate) async fn count(&self, prefix: &Prefix) -> Result<u64> {
        let lengths = self.pages(prefix, Scan::MAX_PAGE).map_ok(|keys| keys.len() as u64);
        lengths.try_fold(0, |sum, length| std::future::ready(Ok(sum + length))).await
    }

    pub(crate) async fn clear(&self, prefix: &Prefix) -> Result<u64> {
        let mut pages = self.pages(prefix, MIN_COUNT).boxed();
        let mut cleared = 0;
        while let Some(keys) = pages.try_next().await? {
            cleared += self.unlink(keys).await?;
        }
        Ok(cleared)
    }

    async fn unlink(&self, keys: Vec<Bytes>) -> Result<u64> {
        let unlinks: Vec<(Bytes, Request)> = if self.servers.are_together() {
            let unlink = |keys: &[Bytes]| {
                let mut unlink = command("UNLINK");
                for key in keys {
                    unlink.arg(&key[..]);
                }
                Some((keys.first()?.clone(), Request::new(Access::Write, unlink)))
            };
            keys.chunks(self.piece).filter_map(unlink).collect()
        } else {
            let unlink = |key: Bytes| {
                let command = crate::writes::unlink(&key);
                (key, Request::new(Access::Write, command))
            };
            keys.into_iter().map(unlink).collect()
        };
        let replies = self.servers.send_all(Access::Write, unlinks, self.piece).await?;
        replies
            .into_iter()
            .try_fold(0, |sum, reply| Ok(sum + u64::try_from(integer(reply?)?).map_err(|_| unexpected())?))
    }

    /// Full names of keys, each once.
    fn pages(
        &self,
        prefix: &Prefix,
        page: usize,
    ) -> impl futures_util::Stream<Item = Result<Vec<Bytes>>> + Send + use<> {
        let (scans, pattern) = (self.clone(), self.keyspace.pattern(prefix));
        let begin = async move { Walk::begin(scans, pattern, page.max(MIN_COUNT)).await };
        stream::once(begin).map_ok(|walk| stream::try_unfold(walk, Walk::next)).try_flatten()
    }
}

/// Keys whose entries are read chunk by chunk: a page of the server may be longer than one that was asked for, and its
/// values too large to be held at once.
struct Listing {
    scans: Scans,
    pages: BoxStream<'static, Result<Vec<Bytes>>>,
    keys: std::vec::IntoIter<Bytes>,
    chunk: Chunk,
    keys_only: bool,
}

impl Listing {
    async fn next(mut self) -> Result<Option<(Vec<(Key, Entry)>, Self)>> {
        while self.keys.as_slice().is_empty() {
            match self.pages.try_next().await? {
                Some(keys) => self.keys = keys.into_iter(),
                None => return Ok(None),
            }
        }
        let mut count = if self.keys_only { self.chunk.most } else { self.chunk.len };
        if self.keys.len() <= count + count / 8 {
            // The few keys by which a page is longer are worth no round trip of their own.
            count = self.keys.len();
        }
        let keys: Vec<Bytes> = self.keys.by_ref().take(count).collect();
        let entries = self.scans.read(&keys, self.keys_only).await?;
        let bytes = entries.iter().map(|(_, entry)| entry.value.len()).sum();
        self.chunk.learn(keys.len(), bytes);
        Ok(Some((entries, self)))
    }
}

/// How many entries are read at once: as many as have about [`CHUNK_BYTES`], judged by those that came before.
#[derive(Debug)]
struct Chunk {
    len: usize,
    most: usize,
    /// What came, the last counting most.
    entries: usize,
    bytes: usize,
}

impl Chunk {
    fn new(most: usize) -> Self {
        Self { len: most.min(FIRST_CHUNK), most, entries: 0, bytes: 0 }
    }

    fn learn(&mut self, entries: usize, bytes: usize) {
        self.entries = self.entries / 2 + entries;
        self.bytes = self.bytes / 2 + bytes;
        let fitting = CHUNK_BYTES.saturating_mul(self.entries) / self.bytes.max(1);
        self.len = fitting.clamp(1, self.len.saturating_mul(MAX_GROWTH).min(self.most));
    }
}

fn check(scan: &Scan) -> Result<()> {
    scan.check()?;
    match scan.after {
        Some(_) => Err(unsupported("a scan after a key: Redis lists keys in no order")),
        None => Ok(()),
    }
}

impl Walk {
    async fn begin(scans: Scans, pattern: Vec<u8>, count: usize) -> Result<Self> {
        let (nodes, layout) = match &scans.servers {
            Servers::One { primary, .. } => (VecDeque::from([(None, Arc::clone(primary))]), None),
            Servers::Cluster { cluster, slot_of_all, .. } => {
                let layout = cluster.look().await?;
                let member = |server: &Endpoint| (Some(server.clone()), cluster.node(server));
                let nodes = match slot_of_all {
                    Some(slot) => layout.primary(*slot).into_iter().map(member).collect(),
                    None => layout.primaries().map(member).collect(),
                };
                (nodes, Some(layout))
            }
        };
        Ok(Self { scans, pattern, count, layout, nodes, connection: None, cursor: 0, seen: Seen::default() })
    }

    async fn next(mut self) -> Result<Option<(Vec<Bytes>, Self)>> {
        let Some((server, node)) = self.nodes.front().cloned() else {
            self.check_layout().await?;
            return Ok(None);
        };
        // The same for all of a node: a cursor means nothing to another server, or to this one after a restart.
        let connection = match self.connection.take() {
            Some(connection) => connection,
            None => self.scans.servers.noting(node.connection().await)?,
        };
        let mut page = self.page(&connection).await.inspect_err(|_| node.give_up(&connection))?;
        if let Some(layout) = &self.layout {
            // A slot that moves meanwhile would come from both nodes.
            page.retain(|key| layout.primary(slot(key)) == server.as_ref());
        }
        page.retain(|key| self.scans.keyspace.own(key.clone()).is_some());
        if self.cursor == 0 {
            self.nodes.pop_front();
            self.seen = Seen::default();
        } else {
            self.connection = Some(connection);
        }
        Ok(Some((page, self)))
    }

    /// The next keys of this server that did not come before. The cursor is 0 after the last.
    async fn page(&mut self, connection: &Connection) -> Result<Vec<Bytes>> {
        let mut scan = command("SCAN");
        scan.arg(self.cursor).arg("MATCH").arg(&self.pattern[..]).arg("COUNT").arg(self.count);
        // Keys of other types are not of this store.
        scan.arg("TYPE").arg("string");
        let mut reply = array(connection.command(Access::Read, &scan).await?)?.into_iter();
        self.cursor = integer(reply.next().ok_or_else(unexpected)?)?.cast_unsigned();
        let page = array(reply.next().ok_or_else(unexpected)?)?;
        let page = page.into_iter().map(|key| bytes(key)?.ok_or_else(unexpected));
        let mut page = page.collect::<Result<Vec<Bytes>>>()?;
        self.seen.retain_new(&mut page, self.cursor);
        Ok(page)
    }

    async fn check_layout(&self) -> Result<()> {
        let (Some(began), Servers::Cluster { cluster, slot_of_all, .. }) =
            (&self.layout, &self.scans.servers)
        else {
            return Ok(());
        };
        let ended = cluster.look().await?;
        let mut slots = slot_of_all.map_or(0..SLOTS, |slot| slot..slot + 1);
        if slots.all(|slot| began.primary(slot) == ended.primary(slot)) {
            return Ok(());
        }
        let message = "slots of the Cluster moved to other nodes during the scan, so some keys may not have \
                       come; scan again";
        Err(Error::new(ErrorKind::Unavailable, message).with_retry(Retry::Safe))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: usize = 512;

    /// How long the chunks are while values of this size come.
    fn lens(chunk: &mut Chunk, size: usize, count: usize) -> Vec<usize> {
        let next = |_| {
            let len = chunk.len;
            chunk.learn(len, len * size);
            len
        };
        (0..count).map(next).collect()
    }

    #[test]
    fn small_values_are_soon_read_a_page_at_once() {
        for size in [0, 1, 100, 8 << 10] {
            assert_eq!(lens(&mut Chunk::new(PAGE), size, 4), [8, 64, PAGE, PAGE], "{size}");
        }
        assert_eq!(lens(&mut Chunk::new(5), 1, 2), [5, 5]);
    }

    #[test]
    fn of_large_values_so_many_are_read_as_are_four_mebibytes() {
        assert_eq!(lens(&mut Chunk::new(PAGE), 1 << 20, 3), [8, 4, 4]);
        assert_eq!(lens(&mut Chunk::new(PAGE), 64 << 20, 3), [8, 1, 1]);
        assert_eq!(lens(&mut Chunk::new(PAGE), 64 << 10, 3), [8, 64, 64]);
    }

    #[test]
    fn a_chunk_follows_the_size_of_what_comes() {
        let mut chunk = Chunk::new(PAGE);
        lens(&mut chunk, 10, 10);
        let shrinking = lens(&mut chunk, 1 << 20, 4);
        assert!(shrinking.is_sorted_by(|a, b| a >= b) && shrinking[1] < 10, "{shrinking:?}");
        let growing = lens(&mut chunk, 10, 20);
        assert!(growing.is_sorted() && growing[19] == PAGE, "{growing:?}");
    }
}
