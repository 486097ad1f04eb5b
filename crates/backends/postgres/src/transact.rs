//! Transitions: at first without a lock, under the row's lock when others keep getting in the way.

use std::{collections::BTreeMap, slice};

use bytes::Bytes;
use commonhold_core::{
    Increment, Key, Result, Transition,
    embedded::{self, Effect, Record},
};

use crate::{
    shared::Shared,
    sql::Sql,
    values::{self, Time},
};

/// The server adds up to this to numbers of up to 18 digits: the sum is an `i64`.
const MAX_DELTA: u64 = 8_000_000_000_000_000_000;
/// How often a transition is tried without a lock.
const OPTIMISTIC_ATTEMPTS: usize = 2;

impl Shared {
    /// Applies a transition to what is there, and writes if that is there still.
    ///
    /// # Errors
    /// The transition's own; nothing is changed then.
    pub(crate) async fn transact(&self, key: &Key, transition: &dyn Transition) -> Result<Bytes> {
        if let Some(increment) = transition.as_increment()
            && let Some(sum) = self.increment(key, increment).await?
        {
            return Ok(sum);
        }
        for _ in 0..OPTIMISTIC_ATTEMPTS {
            let (live, now) = self.read(key).await?;
            let (effect, reply) = embedded::transact(live.as_ref(), transition, now, self.rules())?;
            if self.replace(key, live.as_ref(), &effect).await? {
                return Ok(reply);
            }
        }
        self.locked(slice::from_ref(key), |live, now| {
            let (effect, reply) = embedded::transact(live.get(key), transition, now, self.rules())?;
            let change = match effect {
                Effect::Nothing => return Ok((BTreeMap::new(), reply)),
                Effect::Put(record) => Some(record),
                Effect::Delete => None,
            };
            Ok((BTreeMap::from([(key.clone(), change)]), reply))
        })
        .await
    }

    /// Most increments, in one statement: of a counter that is there and not near the ends of its range. None, and nothing
    /// is changed, for others.
    async fn increment(&self, key: &Key, increment: &Increment) -> Result<Option<Bytes>> {
        if increment.delta.unsigned_abs() > MAX_DELTA {
            return Ok(None);
        }
        let rows = self.query(Sql::Increment, &[&key.as_bytes(), &increment.delta]).await?;
        let sum = rows.first().map(|row| values::column::<&[u8]>(row, 0)).transpose()?;
        Ok(sum.map(Bytes::copy_from_slice))
    }

    /// Puts the effect in the place of what was read, and says whether that was there still.
    async fn replace(&self, key: &Key, old: Option<&Record>, effect: &Effect) -> Result<bool> {
        let key = key.as_bytes();
        let changed = match (effect, old) {
            (Effect::Nothing, _) | (Effect::Delete, None) => return Ok(true),
            (Effect::Put(new), None) => {
                self.execute(Sql::Create, &[&key, &&new.value[..], &expiry(new)]).await?
            }
            (Effect::Put(new), Some(old)) => {
                let (value, old_value) = (&new.value[..], &old.value[..]);
                self.execute(Sql::Swap, &[&key, &value, &expiry(new), &old_value, &expiry(old)]).await?
            }
            (Effect::Delete, Some(old)) => {
                self.execute(Sql::Remove, &[&key, &&old.value[..], &expiry(old)]).await?
            }
        };
        Ok(changed > 0)
    }
}

fn expiry(record: &Record) -> Option<Time> {
    record.expires_at.map(Time::from)
}
