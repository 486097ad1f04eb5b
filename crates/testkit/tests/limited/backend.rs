//! The memory backend with fewer capabilities, which answers `Unsupported` to the rest.

use std::{fmt, sync::Arc};

use async_trait::async_trait;
use bytes::Bytes;
use commonhold_core::{
    Action, Answer, Applied, Capabilities, Change, Condition, Entry, Error, ErrorKind, Expiry, Health, Key,
    Maintenance, MemoryBackend, Message, Prefix, PutOptions, Result, Scan, StateBackend, Stats, Step,
    Timestamp, Transaction, Transition, Write,
};
use futures_util::{
    StreamExt as _, TryStreamExt as _,
    stream::{self, BoxStream},
};

#[derive(Debug)]
pub(crate) struct Limited {
    inner: MemoryBackend,
    promised: Capabilities,
    /// What is offered: the same, if it is honest.
    offered: Capabilities,
}

impl Limited {
    pub(crate) fn new(inner: MemoryBackend, limit: fn(&mut Capabilities), honest: bool) -> Self {
        let all = inner.capabilities();
        let mut promised = all;
        limit(&mut promised);
        Self { inner, promised, offered: if honest { promised } else { all } }
    }

    fn check_expiry(&self, expiry: Expiry) -> Result<()> {
        check(self.offered.ttl || !matches!(expiry, Expiry::After(_)))
    }

    async fn write_single(&self, write: Write) -> Result<Applied> {
        check(*write.condition() == Condition::Always)?;
        match write {
            Write::Put { key, value, options } => self.inner.put(&key, value, options).await,
            Write::Delete { key, condition } => self.inner.delete(&key, condition).await,
        }
    }
}

fn check(offered: bool) -> Result<()> {
    if offered { Ok(()) } else { Err(Error::new(ErrorKind::Unsupported, "not offered")) }
}

#[async_trait]
impl StateBackend for Limited {
    fn name(&self) -> &'static str {
        "limited"
    }

    fn capabilities(&self) -> Capabilities {
        self.promised
    }

    fn get<'a>(&'a self, key: &'a Key) -> Answer<'a, Option<Entry>> {
        self.inner.get(key)
    }

    fn put<'a>(&'a self, key: &'a Key, value: Bytes, options: PutOptions) -> Answer<'a, Applied> {
        match self.check_expiry(options.expiry) {
            Ok(()) => self.inner.put(key, value, options),
            Err(error) => Answer::Ready(Err(error)),
        }
    }

    fn delete<'a>(&'a self, key: &'a Key, condition: Condition) -> Answer<'a, Applied> {
        self.inner.delete(key, condition)
    }

    fn get_many<'a>(&'a self, keys: &'a [Key]) -> Answer<'a, Vec<Option<Entry>>> {
        self.inner.get_many(keys)
    }

    fn write_many(&self, batch: Vec<Write>) -> Answer<'_, Vec<Applied>> {
        Answer::later(async move {
            for write in &batch {
                if let Write::Put { options, .. } = write {
                    self.check_expiry(options.expiry)?;
                }
            }
            if self.offered.atomic_batch {
                return self.inner.write_many(batch).await;
            }
            let mut answers = Vec::new();
            for write in batch {
                answers.push(self.write_single(write).await?);
            }
            Ok(answers)
        })
    }

    fn transact<'a>(&'a self, key: &'a Key, transition: Arc<dyn Transition>) -> Answer<'a, Bytes> {
        if self.offered.ttl {
            return self.inner.transact(key, transition);
        }
        self.inner.transact(key, Arc::new(WithoutTtl(transition)))
    }

    fn scan(&self, scan: Scan) -> BoxStream<'static, Result<(Key, Entry)>> {
        let offered = self.offered.scan && (self.offered.ordered_scan || scan.after.is_none());
        if let Err(error) = check(offered) {
            return stream::once(std::future::ready(Err(error))).boxed();
        }
        let entries = self.inner.scan(scan);
        if self.offered.ordered_scan {
            return entries;
        }
        // In an order that is none.
        stream::once(async move {
            let mut all: Vec<_> = entries.try_collect().await?;
            all.reverse();
            Ok::<_, Error>(stream::iter(all.into_iter().map(Ok)))
        })
        .try_flatten()
        .boxed()
    }

    async fn count(&self, prefix: &Prefix) -> Result<u64> {
        check(self.offered.scan)?;
        self.inner.count(prefix).await
    }

    async fn clear(&self, prefix: &Prefix) -> Result<u64> {
        check(self.offered.scan)?;
        self.inner.clear(prefix).await
    }

    async fn watch(&self, prefix: &Prefix) -> Result<BoxStream<'static, Result<Change>>> {
        check(self.offered.watch)?;
        self.inner.watch(prefix).await
    }

    async fn publish(&self, channel: &Key, message: Bytes) -> Result<()> {
        check(self.offered.publish)?;
        self.inner.publish(channel, message).await
    }

    async fn subscribe(&self, channel: &Key) -> Result<BoxStream<'static, Result<Message>>> {
        check(self.offered.publish)?;
        self.inner.subscribe(channel).await
    }

    async fn begin(&self) -> Result<Box<dyn Transaction>> {
        check(self.offered.transactions)?;
        let inner = self.inner.begin().await?;
        Ok(if self.offered.ttl { inner } else { Box::new(TransactionWithoutTtl(inner)) })
    }

    async fn health(&self) -> Result<Health> {
        self.inner.health().await
    }

    async fn stats(&self) -> Result<Stats> {
        self.inner.stats().await
    }

    async fn maintain(&self, _task: Maintenance) -> Result<()> {
        check(false)
    }
}

struct WithoutTtl(Arc<dyn Transition>);

impl fmt::Debug for WithoutTtl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Transition for WithoutTtl {
    fn name(&self) -> &'static str {
        self.0.name()
    }

    fn apply(&self, state: Option<&[u8]>, now: Timestamp) -> Result<Step> {
        let step = self.0.apply(state, now)?;
        if let Action::Put { expiry: Expiry::After(_), .. } | Action::Expire(Expiry::After(_)) = step.action {
            check(false)?;
        }
        Ok(step)
    }
}

#[derive(Debug)]
struct TransactionWithoutTtl(Box<dyn Transaction>);

#[async_trait]
impl Transaction for TransactionWithoutTtl {
    async fn get(&mut self, key: &Key) -> Result<Option<Entry>> {
        self.0.get(key).await
    }

    async fn put(&mut self, key: &Key, value: Bytes, options: PutOptions) -> Result<Applied> {
        check(!matches!(options.expiry, Expiry::After(_)))?;
        self.0.put(key, value, options).await
    }

    async fn delete(&mut self, key: &Key, condition: Condition) -> Result<Applied> {
        self.0.delete(key, condition).await
    }

    async fn commit(self: Box<Self>) -> Result<()> {
        self.0.commit().await
    }

    async fn rollback(self: Box<Self>) -> Result<()> {
        self.0.rollback().await
    }
}
