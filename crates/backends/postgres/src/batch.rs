//! Batches: plain ones as one statement, the others under the locks of their rows.

use std::collections::{BTreeMap, HashSet};

use commonhold_core::{
    Applied, Condition, Expiry, Key, Result, Timestamp, Write,
    embedded::{self, Effect, Record, WriteSet, batch_conflict},
};

use crate::{
    copy,
    gathered::{PlainPut, bytes, last_of_each},
    locked::Live,
    shared::Shared,
    sql::Sql,
    values,
};

impl Shared {
    /// Carries out writes as if one after the other, all or none.
    pub(crate) async fn write_many(&self, batch: &[Write]) -> Result<Vec<Applied>> {
        for write in batch {
            if let Write::Put { value, options, .. } = write {
                self.check(value.len(), options.expiry)?;
            }
        }
        if batch.is_empty() {
            return Ok(Vec::new());
        }
        if let Some(puts) = self.plain_puts(batch) {
            let puts = last_of_each(&puts);
            match puts.len() {
                len if len >= copy::MIN_ROWS => self.copy_in(&puts).await?,
                _ => self.put_many(&puts).await?,
            }
            return Ok(vec![Applied::Yes; batch.len()]);
        }
        if let Some(keys) = plain_deletes(batch) {
            return self.delete_many(keys).await;
        }
        let mut keys: Vec<Key> = batch.iter().map(|write| write.key().clone()).collect();
        keys.sort();
        keys.dedup();
        self.locked(&keys, |live, now| self.simulate(batch, live, now)).await
    }

    /// The puts, if there is nothing else and nothing depends on what is there.
    fn plain_puts(&self, batch: &[Write]) -> Option<Vec<PlainPut>> {
        let plain = |write: &Write| match write {
            Write::Put { key, value, options }
                if options.condition == Condition::Always && options.expiry != Expiry::Keep =>
            {
                let ttl_micros = self.ttl_micros(options.expiry);
                Some(PlainPut { key: key.clone(), value: value.clone(), ttl_micros })
            }
            _ => None,
        };
        batch.iter().map(plain).collect()
    }

    async fn delete_many(&self, keys: Vec<Key>) -> Result<Vec<Applied>> {
        let mut ordered = keys.clone();
        ordered.sort();
        ordered.dedup();
        let rows = self.query_alone(Sql::DeleteMany, &[&bytes(&ordered)]).await?;
        let deleted = rows.iter().map(|row| values::column::<&[u8]>(row, 0));
        let mut deleted: HashSet<&[u8]> = deleted.collect::<Result<_>>()?;
        // Of a key given twice the first delete finds something.
        Ok(keys.iter().map(|key| deleted.remove(key.as_bytes()).into()).collect())
    }

    /// What the writes come to, one after the other.
    fn simulate(&self, batch: &[Write], live: &Live, now: Timestamp) -> Result<(WriteSet, Vec<Applied>)> {
        let mut changes: WriteSet = BTreeMap::new();
        let mut answers = Vec::with_capacity(batch.len());
        for write in batch {
            let key = write.key();
            let current: Option<&Record> = match changes.get(key) {
                Some(change) => change.as_ref(),
                None => live.get(key),
            };
            let effect = embedded::write(current, write, now, self.rules())?;
            let change = match effect.ok_or_else(|| batch_conflict(key))? {
                Effect::Nothing => {
                    answers.push(Applied::No);
                    continue;
                }
                Effect::Put(record) => Some(record),
                Effect::Delete => None,
            };
            answers.push(Applied::Yes);
            changes.insert(key.clone(), change);
        }
        Ok((changes, answers))
    }
}

/// The keys, if there are only deletes and all in any case.
fn plain_deletes(batch: &[Write]) -> Option<Vec<Key>> {
    let plain = |write: &Write| match write {
        Write::Delete { key, condition: Condition::Always } => Some(key.clone()),
        _ => None,
    };
    batch.iter().map(plain).collect()
}
