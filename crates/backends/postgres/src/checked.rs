//! Transactions that hold nothing until they commit, and are then checked against every other writer.

use std::{sync::Arc, time::Instant};

use async_trait::async_trait;
use commonhold_core::{
    Key, Result, Timestamp,
    embedded::{OptimisticStore, ReadSet, Record, Rules, WriteSet, transaction_conflict},
};

use crate::{
    gathered::bytes,
    locked::Live,
    shared::Shared,
    sql::Sql,
    values::{self, Time},
};

/// What a transaction sees of the store.
#[derive(Debug)]
pub(crate) struct Checked {
    shared: Arc<Shared>,
    clock: ServerClock,
}

/// The server's clock, as it was when a transaction began and carried on by this machine's.
#[derive(Debug)]
struct ServerClock {
    was: Timestamp,
    asked: Instant,
}

impl Checked {
    pub(crate) async fn begin(shared: Arc<Shared>) -> Result<Self> {
        // From before the question on: an estimate that is never early, so nothing expires early.
        let asked = Instant::now();
        let rows = shared.lanes.any().await?.query(Sql::Now, &[]).await?;
        let now = rows.first().map(|row| values::column::<Time>(row, 0)).transpose()?;
        let was = now.map_or(Timestamp::default(), Timestamp::from);
        Ok(Self { shared, clock: ServerClock { was, asked } })
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
        self.clock.was.saturating_add(self.clock.asked.elapsed())
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
        self.shared.locked(&keys, |live, _| compare(&reads, live).map(|()| (writes.clone(), ()))).await
    }
}
