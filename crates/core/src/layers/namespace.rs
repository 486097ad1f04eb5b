//! Keeps the keys of one part of an application apart from all others.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{StreamExt as _, stream::BoxStream};

use super::Layer;
use crate::{
    answer::Answer,
    backend::{
        Applied, Capabilities, Change, Condition, Entry, Health, Maintenance, Message, PutOptions, Scan,
        StateBackend, Transaction, Write,
    },
    error::{Error, ErrorKind, Result},
    key::{Key, Prefix},
    stats::Stats,
    transition::Transition,
};

/// Puts `NAME:` before every key and channel on the way in, and takes it off on the way out.
///
/// Keys are shorter by that much: the two together have at most [`Key::MAX_LEN`] bytes. Namespaces nest:
/// `b` within `a` is `a:b:`. Listing, counting and clearing see only the namespace's own keys; statistics,
/// health and housekeeping are those of the whole store.
#[derive(Debug, Clone)]
pub struct Namespace {
    prefix: Prefix,
}

impl Namespace {
    /// The namespace with this name: 1 to 255 bytes without `:`, so that `a:b` is always `b` within `a`.
    ///
    /// # Errors
    /// `InvalidInput` for any other name.
    pub fn new(name: &str) -> Result<Self> {
        if name.is_empty() || name.len() > 255 || name.contains(':') {
            return Err(Error::new(
                ErrorKind::InvalidInput,
                "a namespace's name has 1 to 255 bytes and no ':' (nest namespaces instead)",
            ));
        }
        Ok(Self { prefix: Prefix::new(format!("{name}:"))? })
    }
}

impl Layer for Namespace {
    fn layer(self, inner: Arc<dyn StateBackend>) -> Arc<dyn StateBackend> {
        Arc::new(Namespaced { prefix: self.prefix, inner })
    }
}

#[derive(Debug)]
struct Namespaced {
    prefix: Prefix,
    inner: Arc<dyn StateBackend>,
}

impl Namespaced {
    /// A call on one key, which is prefixed for it.
    fn within<'a, T: Send + 'a>(
        &'a self,
        key: &'a Key,
        call: impl for<'k> FnOnce(&'k (dyn StateBackend + 'static), &'k Key) -> Answer<'k, T> + Send + 'a,
    ) -> Answer<'a, T> {
        let key = match self.prefix.join(key) {
            Ok(key) => key,
            Err(error) => return Answer::Ready(Err(error)),
        };
        Answer::later(async move { call(&*self.inner, &key).await })
    }

    fn join_prefix(&self, prefix: &Prefix) -> Result<Prefix> {
        Prefix::new([self.prefix.as_bytes(), prefix.as_bytes()].concat())
    }
}

/// The key without the namespace; `None` for the bare prefix, which somebody may have put from outside of it.
fn strip(prefix: &Prefix, key: Key) -> Option<Key> {
    let key = key.into_bytes();
    Key::from_bytes(key.slice(prefix.as_bytes().len().min(key.len())..)).ok()
}

fn join_write(prefix: &Prefix, write: Write) -> Result<Write> {
    Ok(match write {
        Write::Put { key, value, options } => Write::Put { key: prefix.join(key)?, value, options },
        Write::Delete { key, condition } => Write::Delete { key: prefix.join(key)?, condition },
    })
}

#[async_trait]
impl StateBackend for Namespaced {
    fn name(&self) -> &'static str {
        self.inner.name()
    }

    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    fn get<'a>(&'a self, key: &'a Key) -> Answer<'a, Option<Entry>> {
        self.within(key, move |inner, key| inner.get(key))
    }

    fn value<'a>(&'a self, key: &'a Key) -> Answer<'a, Option<Bytes>> {
        self.within(key, move |inner, key| inner.value(key))
    }

    fn put<'a>(&'a self, key: &'a Key, value: Bytes, options: PutOptions) -> Answer<'a, Applied> {
        self.within(key, move |inner, key| inner.put(key, value, options))
    }

    fn delete<'a>(&'a self, key: &'a Key, condition: Condition) -> Answer<'a, Applied> {
        self.within(key, move |inner, key| inner.delete(key, condition))
    }

    fn get_many<'a>(&'a self, keys: &'a [Key]) -> Answer<'a, Vec<Option<Entry>>> {
        match keys.iter().map(|key| self.prefix.join(key)).collect::<Result<Vec<_>>>() {
            Ok(keys) => Answer::later(async move { self.inner.get_many(&keys).await }),
            Err(error) => Answer::Ready(Err(error)),
        }
    }

    fn values<'a>(&'a self, keys: &'a [Key]) -> Answer<'a, Vec<Option<Bytes>>> {
        match keys.iter().map(|key| self.prefix.join(key)).collect::<Result<Vec<_>>>() {
            Ok(keys) => Answer::later(async move { self.inner.values(&keys).await }),
            Err(error) => Answer::Ready(Err(error)),
        }
    }

    fn write_many(&self, batch: Vec<Write>) -> Answer<'_, Vec<Applied>> {
        match batch.into_iter().map(|write| join_write(&self.prefix, write)).collect() {
            Ok(batch) => self.inner.write_many(batch),
            Err(error) => Answer::Ready(Err(error)),
        }
    }

    fn transact<'a>(&'a self, key: &'a Key, transition: Arc<dyn Transition>) -> Answer<'a, Bytes> {
        self.within(key, move |inner, key| inner.transact(key, transition))
    }

    fn scan(&self, scan: Scan) -> BoxStream<'static, Result<(Key, Entry)>> {
        let joined = (|| {
            Ok(Scan {
                prefix: self.join_prefix(&scan.prefix)?,
                after: scan.after.as_ref().map(|after| self.prefix.join(after)).transpose()?,
                ..scan
            })
        })();
        let prefix = self.prefix.clone();
        match joined {
            Ok(scan) => {
                let entries = self.inner.scan(scan);
                let stripped = entries.map(move |item| {
                    item.map(|(key, entry)| strip(&prefix, key).map(|key| (key, entry))).transpose()
                });
                stripped.filter_map(std::future::ready).boxed()
            }
            Err(error) => futures_util::stream::once(std::future::ready(Err(error))).boxed(),
        }
    }

    async fn count(&self, prefix: &Prefix) -> Result<u64> {
        self.inner.count(&self.join_prefix(prefix)?).await
    }

    async fn clear(&self, prefix: &Prefix) -> Result<u64> {
        self.inner.clear(&self.join_prefix(prefix)?).await
    }

    async fn watch(&self, prefix: &Prefix) -> Result<BoxStream<'static, Result<Change>>> {
        let changes = self.inner.watch(&self.join_prefix(prefix)?).await?;
        let prefix = self.prefix.clone();
        let stripped = changes.map(move |change| {
            let stripped = change.map(|change| match change {
                Change::Put(key) => strip(&prefix, key).map(Change::Put),
                Change::Deleted(key) => strip(&prefix, key).map(Change::Deleted),
                Change::Missed => Some(Change::Missed),
            });
            stripped.transpose()
        });
        Ok(stripped.filter_map(std::future::ready).boxed())
    }

    async fn publish(&self, channel: &Key, message: Bytes) -> Result<()> {
        self.inner.publish(&self.prefix.join(channel)?, message).await
    }

    async fn subscribe(&self, channel: &Key) -> Result<BoxStream<'static, Result<Message>>> {
        self.inner.subscribe(&self.prefix.join(channel)?).await
    }

    async fn begin(&self) -> Result<Box<dyn Transaction>> {
        let inner = self.inner.begin().await?;
        Ok(Box::new(NamespacedTransaction { prefix: self.prefix.clone(), inner }))
    }

    async fn health(&self) -> Result<Health> {
        self.inner.health().await
    }

    async fn stats(&self) -> Result<Stats> {
        self.inner.stats().await
    }

    async fn maintain(&self, task: Maintenance) -> Result<()> {
        self.inner.maintain(task).await
    }
}

#[derive(Debug)]
struct NamespacedTransaction {
    prefix: Prefix,
    inner: Box<dyn Transaction>,
}

#[async_trait]
impl Transaction for NamespacedTransaction {
    async fn get(&mut self, key: &Key) -> Result<Option<Entry>> {
        self.inner.get(&self.prefix.join(key)?).await
    }

    async fn put(&mut self, key: &Key, value: Bytes, options: PutOptions) -> Result<Applied> {
        self.inner.put(&self.prefix.join(key)?, value, options).await
    }

    async fn delete(&mut self, key: &Key, condition: Condition) -> Result<Applied> {
        self.inner.delete(&self.prefix.join(key)?, condition).await
    }

    async fn commit(self: Box<Self>) -> Result<()> {
        self.inner.commit().await
    }

    async fn rollback(self: Box<Self>) -> Result<()> {
        self.inner.rollback().await
    }
}
