//! Transactions that hold nothing until they commit, and are then checked against every other writer.

use std::sync::Arc;

use async_trait::async_trait;
use commonhold_core::{
    Key, Result, Timestamp,
    embedded::{OptimisticStore, ReadSet, Record, Rules, WriteSet, transaction_conflict},
};

use crate::{gathered::bytes, locked::Live, shared::Shared, sql::Sql, values};

/// What a transaction sees of the store.
#[derive(Debug)]
pub(crate) struct Checked {
    shared: Arc<Shared>,
}

impl Checked {
    pub(crate) async fn begin(shared: Arc<Shared>) -> Result<Self> {
        if !shared.clock.is_fresh() {
            shared.look_at_the_clock(&*shared.primary.lanes.any().await?).await?;
        }
        Ok(Self { shared })
    }

    /// Whether what was read is there still, all at one moment.
    async fn check(&self, reads: &ReadSet) -> Result<()> {
        let keys: Vec<Key> = reads.keys().cloned().collect();
        let rows = self.shared.query_alone(Sql::GetMany, &[&bytes(&keys)]).await?;
        let mut live = Live::new();
        for row in &rows {
            live.insert(values::key(row, 0)?, values::record(row, 1)?);
        }
        compare(reads, &live)
    }
}

fn compare(reads: &ReadSet, live: &Live) -> Result<()> {
    match reads.iter().find(|(key, read)| live.get(*key) != read.as_ref()) {
        Some((key, _)) => Err(transaction_conflict(key)),
        None => Ok(()),
    }
}

#[async_trait]
impl OptimisticStore for Checked {
    fn now(&self) -> Timestamp {
        self.shared.clock.now()
    }

    fn rules(&self) -> &Rules {
        self.shared.rules()
    }

    async fn read(&self, key: &Key) -> Result<Option<Record>> {
        Ok(self.shared.read(key).await?.0)
    }

    async fn commit(&self, reads: ReadSet, writes: WriteSet) -> Result<()> {
        if reads.is_empty() && writes.is_empty() {
            return Ok(());
        }
        if writes.is_empty() {
            return self.check(&reads).await;
        }
        let mut keys: Vec<Key> = reads.keys().chain(writes.keys()).cloned().collect();
        keys.sort();
        keys.dedup();
        let decide = |live: &Live, _| compare(&reads, live).map(|()| (writes.clone(), ()));
        let committed = self.shared.locked(&keys, decide).await;
        writes.keys().for_each(|key| self.shared.seen.wrote(key));
        committed
    }
}
