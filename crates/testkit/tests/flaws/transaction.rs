//! A transaction with one flaw.

use std::{collections::BTreeMap, sync::Arc};

use async_trait::async_trait;
use bytes::Bytes;
use commonhold_core::{
    Applied, Condition, Entry, Error, ErrorKind, Expiry, Key, PutOptions, Result, StateBackend, Transaction,
    Write,
};
use tokio::task::yield_now;

use super::flaw::Flaw;

#[derive(Debug)]
pub(crate) struct BrokenTransaction {
    flaw: Flaw,
    store: Arc<dyn StateBackend>,
    inner: Box<dyn Transaction>,
    writes: Vec<Write>,
    read: BTreeMap<Key, Option<Bytes>>,
    cached: BTreeMap<Key, Option<Entry>>,
}

impl BrokenTransaction {
    pub(crate) fn new(flaw: Flaw, store: Arc<dyn StateBackend>, inner: Box<dyn Transaction>) -> Self {
        Self { flaw, store, inner, writes: Vec::new(), read: BTreeMap::new(), cached: BTreeMap::new() }
    }

    async fn note(&mut self, key: &Key) -> Result<()> {
        if !self.read.contains_key(key) {
            let seen = self.store.get(key).await?.map(|entry| entry.value);
            self.read.insert(key.clone(), seen);
        }
        Ok(())
    }
}

#[async_trait]
impl Transaction for BrokenTransaction {
    async fn get(&mut self, key: &Key) -> Result<Option<Entry>> {
        match self.flaw {
            Flaw::TransactionForgetsOwnWrites => self.store.get(key).await,
            Flaw::TransactionCachesReads => {
                if !self.cached.contains_key(key) {
                    let entry = self.inner.get(key).await?;
                    self.cached.insert(key.clone(), entry);
                }
                Ok(self.cached.get(key).cloned().flatten())
            }
            Flaw::TransactionChecksOnlyWrites => {
                self.note(key).await?;
                self.inner.get(key).await
            }
            _ => self.inner.get(key).await,
        }
    }

    async fn put(&mut self, key: &Key, value: Bytes, options: PutOptions) -> Result<Applied> {
        if self.flaw == Flaw::TransactionWritesThrough {
            return self.store.put(key, value, options).await;
        }
        let options = match self.flaw {
            Flaw::TransactionWithoutConditions => options.when(Condition::Always),
            Flaw::TtlLost if options.expiry.check().is_ok() => options.expiry(Expiry::Never),
            _ => options,
        };
        let applied = self.inner.put(key, value.clone(), options.clone()).await?;
        if applied.is_yes() {
            let options = PutOptions { condition: Condition::Always, ..options };
            self.writes.push(Write::Put { key: key.clone(), value, options });
        }
        Ok(applied)
    }

    async fn delete(&mut self, key: &Key, condition: Condition) -> Result<Applied> {
        if self.flaw == Flaw::TransactionWritesThrough {
            return self.store.delete(key, condition).await;
        }
        let applied = self.inner.delete(key, condition).await?;
        if applied.is_yes() {
            self.writes.push(Write::delete(key.clone()));
        }
        Ok(applied)
    }

    async fn commit(self: Box<Self>) -> Result<()> {
        match self.flaw {
            Flaw::TransactionNeverConflicts => self.store.write_many(self.writes).await.map(drop),
            Flaw::TransactionAlwaysConflicts => Err(Error::new(ErrorKind::Conflict, "changed")),
            Flaw::TransactionChecksOnlyWrites => {
                let Self { store, read, writes, .. } = *self;
                for (key, seen) in
                    read.iter().filter(|(key, _)| writes.iter().any(|write| write.key() == *key))
                {
                    if store.get(key).await?.map(|entry| entry.value) != *seen {
                        return Err(Error::new(ErrorKind::Conflict, "changed"));
                    }
                }
                store.write_many(writes).await.map(drop)
            }
            Flaw::TransactionOneByOne => {
                for write in self.writes {
                    let _ = self.store.write_many(vec![write]).await?;
                    yield_now().await;
                }
                Ok(())
            }
            Flaw::ErrorsShowValues => self.inner.commit().await.map_err(|error| {
                let Some(Write::Put { value, .. }) = self.writes.first() else { return error };
                Error::new(error.kind(), format!("cannot put {}", String::from_utf8_lossy(value)))
            }),
            _ => self.inner.commit().await,
        }
    }

    async fn rollback(self: Box<Self>) -> Result<()> {
        self.inner.rollback().await
    }
}
