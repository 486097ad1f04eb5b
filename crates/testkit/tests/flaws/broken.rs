//! A backend with one flaw, around a backend without.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use commonhold_core::{
    Action, Answer, Applied, Capabilities, Change, Condition, Entry, Error, ErrorKind, Expiry, Health, Key,
    Maintenance, Message, Prefix, PutOptions, Result, Scan, StateBackend, Stats, Timestamp, Transaction,
    Transition, Write,
};
use futures_util::{
    StreamExt as _, TryStreamExt as _,
    stream::{self, BoxStream},
};
use tokio::task::yield_now;

use super::{flaw::Flaw, transaction::BrokenTransaction};

/// A backend with one flaw.
#[derive(Debug)]
pub(crate) struct Broken {
    inner: Arc<dyn StateBackend>,
    flaw: Flaw,
    /// What a stale read returns.
    past: Mutex<HashMap<Key, Option<Entry>>>,
}

impl Broken {
    pub(crate) fn new(inner: Arc<dyn StateBackend>, flaw: Flaw) -> Self {
        Self { inner, flaw, past: Mutex::default() }
    }

    fn is(&self, flaw: Flaw) -> bool {
        self.flaw == flaw
    }

    fn key(&self, key: &Key) -> Key {
        let bytes = key.as_bytes();
        match self.flaw {
            Flaw::TextKeys => Key::new(String::from_utf8_lossy(bytes).as_bytes()),
            Flaw::KeysWithoutCase => Key::new(bytes.to_ascii_lowercase()),
            Flaw::KeysCutAt250Bytes => Key::new(&bytes[..bytes.len().min(250)]),
            _ => Ok(key.clone()),
        }
        .unwrap_or_else(|_| key.clone())
    }

    fn value(&self, value: Bytes) -> Bytes {
        match self.flaw {
            Flaw::TextValues => String::from_utf8_lossy(&value).into_owned().into(),
            _ => value,
        }
    }

    fn expiry(&self, expiry: Expiry) -> Expiry {
        match (self.flaw, expiry) {
            (Flaw::TtlLost, Expiry::After(ttl)) if !ttl.is_zero() && ttl <= Expiry::MAX => Expiry::Never,
            (Flaw::TtlKeptByPlainPut, Expiry::Never) => Expiry::Keep,
            (Flaw::KeepIsNever, Expiry::Keep) => Expiry::Never,
            (Flaw::TtlOfZeroIsForEver, Expiry::After(Duration::ZERO)) => Expiry::Never,
            (Flaw::TtlInWholeSeconds, Expiry::After(ttl)) if ttl.subsec_nanos() > 0 => {
                Expiry::After(Duration::from_secs(ttl.as_secs().max(1)))
            }
            (Flaw::TtlLate, Expiry::After(ttl)) if ttl < Expiry::MAX / 2 => Expiry::After(ttl * 2),
            (Flaw::TtlCapped, Expiry::After(ttl)) => Expiry::After(ttl.min(Duration::from_secs(30 * 86_400))),
            _ => expiry,
        }
    }

    fn write(&self, write: Write) -> Write {
        match write {
            Write::Put { key, value, options } => Write::Put {
                key: self.key(&key),
                value: self.value(value),
                options: PutOptions {
                    condition: self.condition(options.condition),
                    expiry: self.expiry(options.expiry),
                },
            },
            Write::Delete { key, condition } => {
                Write::Delete { key: self.key(&key), condition: self.condition(condition) }
            }
        }
    }

    fn condition(&self, condition: Condition) -> Condition {
        if self.is(Flaw::ConditionsIgnored) { Condition::Always } else { condition }
    }

    fn error(&self, error: Error, key: &Key, value: &[u8]) -> Error {
        match self.flaw {
            Flaw::ErrorsShowValues => {
                Error::new(error.kind(), format!("cannot put {}", String::from_utf8_lossy(value)))
            }
            Flaw::ErrorsShowRawKeys => {
                Error::new(error.kind(), format!("cannot put {}", String::from_utf8_lossy(key.as_bytes())))
            }
            _ => error,
        }
    }

    /// A put with a condition by a read and a write.
    async fn condition_then_write(&self, key: &Key, value: Bytes, options: PutOptions) -> Result<Applied> {
        options.expiry.check()?;
        let entry = self.inner.get(key).await?;
        let seen = entry.as_ref().map(|entry| &entry.value[..]);
        let holds = match (&options.condition, seen) {
            (Condition::Equals(expected), Some(seen)) if self.is(Flaw::EqualsComparesDigestOfStart) => {
                seen.get(..3.min(seen.len())) == expected.get(..3.min(expected.len()))
            }
            (Condition::Equals(expected), Some(seen)) if self.is(Flaw::SwapToSameFails) => {
                seen == expected && seen != value
            }
            (condition, seen) => condition.holds(seen),
        };
        if !holds {
            return Ok(Applied::No);
        }
        yield_now().await;
        self.inner.put(key, value, PutOptions { condition: Condition::Always, ..options }).await
    }

    /// A transition by a read and a write.
    async fn read_then_write(&self, key: &Key, transition: &dyn Transition) -> Result<Bytes> {
        let entry = self.inner.get(key).await?;
        yield_now().await;
        let now = match self.flaw {
            Flaw::TransitionOnClientClock => Timestamp::from_millis(1),
            _ => self.inner.health().await?.now.unwrap_or_default(),
        };
        let state = entry.as_ref().map(|entry| &entry.value[..]);
        let step = match transition.apply(state, now) {
            Ok(step) => step,
            Err(error) => {
                if self.is(Flaw::TransitionErrorDeletes) {
                    let _ = self.inner.delete(key, Condition::Always).await?;
                }
                let kind =
                    if self.is(Flaw::TransitionErrorIsInternal) { ErrorKind::Internal } else { error.kind() };
                return Err(Error::new(kind, error.message().to_owned()));
            }
        };
        let replied = step.reply.clone();
        let put = |value, expiry| self.inner.put(key, value, PutOptions::default().expiry(expiry));
        let _ = match (step.action, entry) {
            (Action::Put { value, expiry }, _) => {
                if self.is(Flaw::TransitionInTwoSteps) {
                    let _ = put("1000".into(), Expiry::Never).await?;
                    yield_now().await;
                }
                put(value, self.expiry(expiry)).await?
            }
            (Action::Nothing, Some(entry)) if self.is(Flaw::TransitionNothingPuts) => {
                put(entry.value, Expiry::Never).await?
            }
            (Action::Nothing, None) if self.is(Flaw::TransitionNothingPuts) => {
                put(Bytes::new(), Expiry::Never).await?
            }
            (Action::Expire(expiry), Some(entry)) if !self.is(Flaw::ExpireDoesNothing) => {
                put(entry.value, expiry).await?
            }
            (Action::Expire(expiry), None) if self.is(Flaw::ExpireCreates) => {
                put(Bytes::new(), expiry).await?
            }
            (Action::Delete, _) if !self.is(Flaw::TransitionNeverDeletes) => {
                self.inner.delete(key, Condition::Always).await?
            }
            _ => Applied::No,
        };
        Ok(replied)
    }

    /// A batch as single writes, one after the other.
    async fn one_by_one(&self, batch: Vec<Write>) -> Result<Vec<Applied>> {
        let mut answers = Vec::new();
        for write in batch {
            let key = write.key().clone();
            let conditional = *write.condition() != Condition::Always;
            let applied = match write {
                Write::Put { key, value, options } => self.inner.put(&key, value, options).await?,
                Write::Delete { key, condition } => self.inner.delete(&key, condition).await?,
            };
            if conditional && !applied.is_yes() {
                return Err(Error::new(ErrorKind::Conflict, "not met").with_key(&key));
            }
            answers.push(applied);
            yield_now().await;
        }
        Ok(answers)
    }

    fn prefix(&self, prefix: &Prefix) -> Prefix {
        match self.flaw {
            Flaw::PrefixIgnored => Prefix::ALL,
            Flaw::PrefixIsPattern => {
                let bytes = prefix.as_bytes();
                let plain = bytes.iter().position(|byte| b"*?[\\%_".contains(byte)).unwrap_or(bytes.len());
                Prefix::new(&bytes[..plain]).unwrap_or_default()
            }
            Flaw::EndlessPrefixIsEmpty if !prefix.as_bytes().is_empty() && prefix.upper_bound().is_none() => {
                Prefix::new("nothing begins like this").unwrap_or_default()
            }
            _ => prefix.clone(),
        }
    }
}

#[async_trait]
impl StateBackend for Broken {
    fn name(&self) -> &'static str {
        if self.is(Flaw::Nameless) { "" } else { "broken" }
    }

    fn capabilities(&self) -> Capabilities {
        let mut capabilities = self.inner.capabilities();
        if self.is(Flaw::ValuesWithoutLimit) {
            capabilities.max_value_bytes /= 2;
        }
        capabilities.snapshot_scan |= self.is(Flaw::SnapshotPromised);
        capabilities
    }

    fn get<'a>(&'a self, key: &'a Key) -> Answer<'a, Option<Entry>> {
        Answer::later(async move {
            let key = self.key(key);
            let entry = self.inner.get(&key).await?;
            Ok(match self.flaw {
                Flaw::EmptyValueIsMissing => entry.filter(|entry| !entry.value.is_empty()),
                Flaw::StaleReads => {
                    self.past.lock().ok().and_then(|past| past.get(&key).cloned()).unwrap_or(entry)
                }
                Flaw::TornReads => {
                    yield_now().await;
                    let again = self.inner.get(&key).await?;
                    match (entry, again) {
                        (Some(first), Some(second)) if first.value != second.value => {
                            let half = first.value.len().min(second.value.len()) / 2;
                            let value = [&first.value[..half], &second.value[half..]].concat().into();
                            Some(Entry { value, ttl: first.ttl })
                        }
                        (_, again) => again,
                    }
                }
                _ => entry,
            })
        })
    }

    fn put<'a>(&'a self, key: &'a Key, value: Bytes, options: PutOptions) -> Answer<'a, Applied> {
        Answer::later(async move {
            let shown = value.clone();
            let key = self.key(key);
            let options = PutOptions {
                condition: self.condition(options.condition),
                expiry: self.expiry(options.expiry),
            };
            let value = self.value(value);
            match self.flaw {
                Flaw::ConditionThenWrite | Flaw::EqualsComparesDigestOfStart | Flaw::SwapToSameFails => {
                    self.condition_then_write(&key, value, options).await
                }
                Flaw::FirstWriteWins if options.condition == Condition::Always => {
                    let _ = self.inner.put(&key, value, options.when(Condition::Absent)).await?;
                    Ok(Applied::Yes)
                }
                Flaw::PutInTwoSteps if options.condition == Condition::Always => {
                    options.expiry.check()?;
                    let _ = self.inner.delete(&key, Condition::Always).await?;
                    yield_now().await;
                    self.inner.put(&key, value, options).await
                }
                Flaw::StaleReads => {
                    let old = self.inner.get(&key).await?;
                    if let Ok(mut past) = self.past.lock() {
                        past.insert(key.clone(), old);
                    }
                    self.inner.put(&key, value, options).await
                }
                _ => self.inner.put(&key, value, options).await,
            }
            .map_err(|error| self.error(error, &key, &shown))
        })
    }

    fn delete<'a>(&'a self, key: &'a Key, condition: Condition) -> Answer<'a, Applied> {
        Answer::later(async move {
            let (key, condition) = (self.key(key), self.condition(condition));
            match self.flaw {
                Flaw::DeleteAlwaysYes => {
                    let _ = self.inner.delete(&key, condition).await?;
                    Ok(Applied::Yes)
                }
                Flaw::DeleteInTwoSteps => {
                    let entry = self.inner.get(&key).await?;
                    let _ = self.inner.put(&key, "being deleted".into(), PutOptions::default()).await?;
                    yield_now().await;
                    let _ = self.inner.delete(&key, Condition::Always).await?;
                    Ok(entry.is_some().into())
                }
                _ => self.inner.delete(&key, condition).await,
            }
        })
    }

    fn get_many<'a>(&'a self, keys: &'a [Key]) -> Answer<'a, Vec<Option<Entry>>> {
        Answer::later(async move {
            let mut keys: Vec<Key> = keys.iter().map(|key| self.key(key)).collect();
            match self.flaw {
                Flaw::GetManySorted => keys.sort(),
                Flaw::GetManyWithoutDuplicates => keys.dedup(),
                Flaw::GetManyAtMostThousand => keys.truncate(1_000),
                Flaw::NothingToDoRefused if keys.is_empty() => {
                    return Err(Error::new(ErrorKind::InvalidInput, "no keys"));
                }
                _ => {}
            }
            let mut entries = self.inner.get_many(&keys).await?;
            if self.is(Flaw::EmptyValueIsMissing) {
                entries =
                    entries.into_iter().map(|entry| entry.filter(|entry| !entry.value.is_empty())).collect();
            }
            Ok(entries)
        })
    }

    fn write_many(&self, batch: Vec<Write>) -> Answer<'_, Vec<Applied>> {
        Answer::later(async move {
            let count = batch.len();
            let mut batch: Vec<Write> = batch.into_iter().map(|write| self.write(write)).collect();
            match self.flaw {
                Flaw::BatchAnswersReversed => {
                    let mut answers = self.inner.write_many(batch).await?;
                    answers.reverse();
                    Ok(answers)
                }
                Flaw::BatchAtMostThousand => {
                    batch.truncate(1_000);
                    let mut answers = self.inner.write_many(batch).await?;
                    answers.resize(count, Applied::Yes);
                    Ok(answers)
                }
                Flaw::BatchFirstWins => {
                    batch.reverse();
                    let mut answers = self.inner.write_many(batch).await?;
                    answers.reverse();
                    Ok(answers)
                }
                Flaw::BatchOneByOne => self.one_by_one(batch).await,
                Flaw::BatchConditionsFirst => {
                    for write in &batch {
                        let entry = self.inner.get(write.key()).await?;
                        if !write.condition().holds(entry.as_ref().map(|entry| &entry.value[..])) {
                            return Err(Error::new(ErrorKind::Conflict, "not met").with_key(write.key()));
                        }
                    }
                    self.inner.write_many(batch).await
                }
                Flaw::BatchConflictUnnamed => {
                    let answers = self.inner.write_many(batch).await;
                    answers.map_err(|error| Error::new(error.kind(), "something in the batch"))
                }
                Flaw::NothingToDoRefused if batch.is_empty() => {
                    Err(Error::new(ErrorKind::InvalidInput, "empty"))
                }
                Flaw::ErrorsShowValues | Flaw::ErrorsShowRawKeys => {
                    let first = batch.first().cloned();
                    self.inner.write_many(batch).await.map_err(|error| match first {
                        Some(Write::Put { key, value, .. }) => self.error(error, &key, &value),
                        _ => error,
                    })
                }
                _ => self.inner.write_many(batch).await,
            }
        })
    }

    fn transact<'a>(&'a self, key: &'a Key, transition: Arc<dyn Transition>) -> Answer<'a, Bytes> {
        Answer::later(async move {
            let key = self.key(key);
            match self.flaw {
                Flaw::TransitionReadsThenWrites
                | Flaw::TransitionOnClientClock
                | Flaw::TransitionErrorIsInternal
                | Flaw::TransitionErrorDeletes
                | Flaw::TransitionInTwoSteps
                | Flaw::TransitionNothingPuts
                | Flaw::TransitionNeverDeletes
                | Flaw::ExpireDoesNothing
                | Flaw::ExpireCreates
                | Flaw::KeepIsNever
                | Flaw::TtlOfZeroIsForEver
                | Flaw::TtlKeptByPlainPut => self.read_then_write(&key, &*transition).await,
                _ => self.inner.transact(&key, transition).await,
            }
        })
    }

    fn scan(&self, scan: Scan) -> BoxStream<'static, Result<(Key, Entry)>> {
        let mut wanted = Scan { prefix: self.prefix(&scan.prefix), ..scan.clone() };
        match self.flaw {
            Flaw::ScanAnyPage => wanted.page = wanted.page.clamp(1, Scan::MAX_PAGE),
            Flaw::ScanWithValues => wanted.keys_only = false,
            Flaw::ScanAfterIncludes => wanted.after = None,
            _ => {}
        }
        let (inner, page) = (self.inner.clone(), scan.page);
        let entries = inner.scan(wanted.clone());
        match self.flaw {
            Flaw::ScanReversed => stream::once(async move {
                let mut all: Vec<_> = entries.try_collect().await?;
                all.reverse();
                Ok::<_, Error>(stream::iter(all.into_iter().map(Ok)))
            })
            .try_flatten()
            .boxed(),
            Flaw::ScanAfterIncludes => entries
                .try_filter(move |(key, _)| {
                    std::future::ready(scan.after.as_ref().is_none_or(|after| key >= after))
                })
                .boxed(),
            Flaw::ScanByOffset if (1..=Scan::MAX_PAGE).contains(&page) => stream::unfold(0, move |offset| {
                let rest = inner.scan(wanted.clone()).skip(offset).take(page);
                async move {
                    let items: Vec<_> = rest.collect().await;
                    let next = offset + items.len();
                    (!items.is_empty()).then(|| (stream::iter(items), next))
                }
            })
            .flatten()
            .boxed(),
            Flaw::ScanWithoutTtl => {
                entries.map_ok(|(key, entry)| (key, Entry { ttl: None, ..entry })).boxed()
            }
            Flaw::ScanOnePage => entries.take(page.max(1)).boxed(),
            _ => entries,
        }
    }

    async fn count(&self, prefix: &Prefix) -> Result<u64> {
        let count = self.inner.count(&self.prefix(prefix)).await?;
        Ok(if self.is(Flaw::CountAtMostThousand) { count.min(1_000) } else { count })
    }

    async fn clear(&self, prefix: &Prefix) -> Result<u64> {
        let cleared = self.inner.clear(&self.prefix(prefix)).await?;
        Ok(if self.is(Flaw::ClearSaysNothing) { 0 } else { cleared })
    }

    async fn watch(&self, prefix: &Prefix) -> Result<BoxStream<'static, Result<Change>>> {
        let prefix = if self.is(Flaw::WatchEverything) { Prefix::ALL } else { prefix.clone() };
        let changes = self.inner.watch(&self.prefix(&prefix)).await?;
        Ok(match self.flaw {
            Flaw::WatchWithoutDeletes => {
                changes.try_filter(|change| std::future::ready(!matches!(change, Change::Deleted(_)))).boxed()
            }
            // Transitions of the kit count at keys that end in `n`.
            Flaw::WatchWithoutTransitions => changes
                .try_filter(|change| {
                    std::future::ready(!matches!(change, Change::Put(key) if key.as_bytes().ends_with(b":n")))
                })
                .boxed(),
            Flaw::WatchTwice => {
                changes.map_ok(|change| stream::iter([Ok(change.clone()), Ok(change)])).try_flatten().boxed()
            }
            Flaw::WatchEnds => changes.take(1).boxed(),
            Flaw::MissedIsSilent => {
                changes.try_filter(|change| std::future::ready(*change != Change::Missed)).boxed()
            }
            Flaw::WatchBeginsWithMissed => stream::iter([Ok(Change::Missed)]).chain(changes).boxed(),
            _ => changes,
        })
    }

    async fn publish(&self, channel: &Key, message: Bytes) -> Result<()> {
        match self.flaw {
            Flaw::ChannelIsShared => self.inner.publish(&Key::new("shared")?, message).await,
            Flaw::PublishStores => {
                let _ = self.inner.put(channel, message.clone(), PutOptions::default()).await?;
                self.inner.publish(channel, message).await
            }
            Flaw::MessagesWithoutWhole => {
                self.inner.publish(channel, message.slice(..message.len().min(100))).await
            }
            _ => self.inner.publish(channel, message).await,
        }
    }

    async fn subscribe(&self, channel: &Key) -> Result<BoxStream<'static, Result<Message>>> {
        match self.flaw {
            Flaw::ChannelIsShared => self.inner.subscribe(&Key::new("shared")?).await,
            Flaw::MissedIsSilent => {
                let messages = self.inner.subscribe(channel).await?;
                Ok(messages.try_filter(|message| std::future::ready(*message != Message::Missed)).boxed())
            }
            Flaw::FirstMessageLost => {
                let messages = self.inner.subscribe(channel).await?.enumerate();
                Ok(messages.map(|(i, message)| if i == 0 { Ok(Message::Missed) } else { message }).boxed())
            }
            _ => self.inner.subscribe(channel).await,
        }
    }

    async fn begin(&self) -> Result<Box<dyn Transaction>> {
        let transaction = self.inner.begin().await?;
        Ok(Box::new(BrokenTransaction::new(self.flaw, self.inner.clone(), transaction)))
    }

    async fn health(&self) -> Result<Health> {
        if self.is(Flaw::Unhealthy) {
            return Err(Error::new(ErrorKind::Unavailable, "not well"));
        }
        self.inner.health().await
    }

    async fn stats(&self) -> Result<Stats> {
        self.inner.stats().await
    }

    async fn maintain(&self, task: Maintenance) -> Result<()> {
        match (self.flaw, task) {
            (Flaw::SweepTakesAllWithTtl, Maintenance::Sweep) => {
                let entries: Vec<_> = self.inner.scan(Scan::prefix(Prefix::ALL)).try_collect().await?;
                for (key, entry) in entries {
                    if entry.ttl.is_some() {
                        let _ = self.inner.delete(&key, Condition::Always).await?;
                    }
                }
                Ok(())
            }
            (Flaw::CompactLosesAll, Maintenance::Compact) => self.inner.clear(&Prefix::ALL).await.map(drop),
            _ => self.inner.maintain(task).await,
        }
    }
}
