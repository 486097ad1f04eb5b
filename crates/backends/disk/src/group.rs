//! What a group of operations does, before any of it is written: each sees those before it, and one that fails
//! leaves nothing behind.

use std::{
    collections::HashMap,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use bytes::Bytes;
use commonhold_core::{
    Applied, Change, Condition, Error, ErrorKind, Expiry, Key, PutOptions, Result, Timestamp, Transition,
    Write,
    embedded::{self, Effect, ReadSet, Record, Rules, WriteSet, batch_conflict, transaction_conflict},
};
use foldhash::fast::RandomState;

use crate::error::panic_message;

/// One thing to do atomically.
#[derive(Debug)]
pub(crate) enum Operation {
    /// Answers [`Reply::Applied`].
    Write(Write),
    /// All or nothing. Answers [`Reply::Batch`].
    Batch(Vec<Write>),
    /// Answers [`Reply::Bytes`].
    Transact(Key, Arc<dyn Transition>),
    /// Writes if the reads still hold. Answers [`Reply::Done`].
    Commit(ReadSet, WriteSet),
    /// Deletes these keys. Answers [`Reply::Count`] of those that were live.
    Clear(Vec<Key>),
    /// Removes those of these keys that have expired. Answers [`Reply::Count`].
    Purge(Vec<Key>),
}

#[derive(Debug)]
pub(crate) enum Reply {
    Applied(Applied),
    Batch(Vec<Applied>),
    Bytes(Bytes),
    Count(u64),
    Done,
}

impl Operation {
    /// About how many bytes it holds.
    pub(crate) fn bytes(&self) -> usize {
        const OVERHEAD: usize = 64;
        let of_write = |write: &Write| {
            let value_len = if let Write::Put { value, .. } = write { value.len() } else { 0 };
            write.key().as_bytes().len() + value_len + OVERHEAD
        };
        let of_record = |(key, record): (&Key, &Option<Record>)| {
            key.as_bytes().len() + record.as_ref().map_or(0, |record| record.value.len()) + OVERHEAD
        };
        match self {
            Self::Write(write) => of_write(write),
            Self::Batch(batch) => batch.iter().map(of_write).sum(),
            Self::Transact(key, _) => key.as_bytes().len() + OVERHEAD,
            Self::Commit(reads, writes) => reads.iter().chain(writes).map(of_record).sum(),
            Self::Clear(keys) | Self::Purge(keys) => {
                keys.iter().map(|key| key.as_bytes().len() + OVERHEAD).sum()
            }
        }
    }

    /// Whether it looks at what is stored.
    pub(crate) fn reads(&self) -> bool {
        match self {
            Self::Write(write) => write_reads(write),
            Self::Batch(batch) => batch.iter().any(write_reads),
            Self::Commit(reads, _) => !reads.is_empty(),
            Self::Transact(..) | Self::Clear(_) | Self::Purge(_) => true,
        }
    }
}

fn write_reads(write: &Write) -> bool {
    !matches!(
        write,
        Write::Put {
            options: PutOptions { condition: Condition::Always, expiry: Expiry::Never | Expiry::After(_) },
            ..
        }
    )
}

/// What is to be written, in one atomic step.
#[derive(Debug, Default)]
pub(crate) struct Changes {
    /// In order; of a key that is there twice, the last one counts.
    list: Vec<Changed>,
    /// The place of the last one of each key, for the first `indexed` in the list.
    index: HashMap<Key, usize, RandomState>,
    indexed: usize,
}

#[derive(Debug)]
struct Changed {
    key: Key,
    /// `None` is deleted.
    record: Option<Record>,
    /// An expiry that is written down is not a change to those who watch.
    is_watched: bool,
}

impl Changes {
    /// The keys and what is to be under them; `None` for nothing. Each key once.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&Key, Option<&Record>)> {
        let is_last = |(at, changed): &(usize, &Changed)| {
            self.list.len() == 1 || self.index.get(&changed.key) == Some(at)
        };
        self.list
            .iter()
            .enumerate()
            .filter(is_last)
            .map(|(_, changed)| (&changed.key, changed.record.as_ref()))
    }

    /// How many keys there are.
    pub(crate) fn len(&self) -> usize {
        if self.list.len() == 1 { 1 } else { self.index.len() }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// What those who watch are told, in order.
    pub(crate) fn into_log(self) -> impl Iterator<Item = Change> {
        self.list.into_iter().filter(|changed| changed.is_watched).map(|changed| match changed.record {
            Some(_) => Change::Put(changed.key),
            None => Change::Deleted(changed.key),
        })
    }

    fn get(&mut self, key: &Key) -> Option<&Option<Record>> {
        if self.list.is_empty() {
            return None;
        }
        self.bring_index_up();
        self.index.get(key).and_then(|at| self.list.get(*at)).map(|changed| &changed.record)
    }

    /// Not done with each change, because a single write needs no index.
    fn bring_index_up(&mut self) {
        for (at, changed) in self.list.iter().enumerate().skip(self.indexed) {
            self.index.insert(changed.key.clone(), at);
        }
        self.indexed = self.list.len();
    }

    fn take_back(&mut self, len: usize) {
        self.list.truncate(len);
        if self.indexed > len {
            self.index.clear();
            self.indexed = 0;
        }
    }
}

/// Carries out operations one after the other on what `read` finds.
pub(crate) struct Group<'a> {
    read: &'a dyn Fn(&Key) -> Result<Option<Record>>,
    now: Timestamp,
    rules: &'a Rules,
    changes: Changes,
    operations: u64,
    /// Of the values that were staged, also those that a later one has replaced.
    value_bytes: usize,
}

/// How much a group holds before it is written. An operation by itself may hold more.
const MAX_VALUE_BYTES: usize = 32 * 1024 * 1024;

impl<'a> Group<'a> {
    pub(crate) fn new(
        read: &'a dyn Fn(&Key) -> Result<Option<Record>>,
        now: Timestamp,
        rules: &'a Rules,
    ) -> Self {
        Self { read, now, rules, changes: Changes::default(), operations: 0, value_bytes: 0 }
    }

    pub(crate) fn into_changes(mut self) -> Changes {
        if self.changes.list.len() > 1 {
            self.changes.bring_index_up();
        }
        self.changes
    }

    /// How many operations were carried out.
    pub(crate) fn operations(&self) -> u64 {
        self.operations
    }

    /// Whether it holds so much that it should be written before the next operation: transitions that rewrite
    /// large values bring little and leave much.
    pub(crate) fn is_full(&self) -> bool {
        self.value_bytes > MAX_VALUE_BYTES
    }

    /// Carries out one operation; if it fails, it changes nothing.
    pub(crate) fn apply(&mut self, operation: Operation) -> Result<Reply> {
        self.operations += 1;
        let before = self.changes.list.len();
        let reply = self.evaluate(operation);
        if reply.is_err() {
            self.changes.take_back(before);
        }
        reply
    }

    fn evaluate(&mut self, operation: Operation) -> Result<Reply> {
        match operation {
            Operation::Write(write) => {
                let applied = self.write(&write).map_err(|error| error.with_key(write.key()))?;
                Ok(Reply::Applied(applied.unwrap_or(Applied::No)))
            }
            Operation::Batch(batch) => self.batch(&batch).map(Reply::Batch),
            Operation::Transact(key, transition) => {
                self.transact(&key, &*transition).map(Reply::Bytes).map_err(|error| error.with_key(&key))
            }
            Operation::Commit(reads, writes) => self.commit(&reads, writes).map(|()| Reply::Done),
            Operation::Clear(keys) => self.clear(&keys).map(Reply::Count),
            Operation::Purge(keys) => self.purge(keys).map(Reply::Count),
        }
    }

    /// `None` if the condition does not hold.
    fn write(&mut self, write: &Write) -> Result<Option<Applied>> {
        let live = if write_reads(write) { self.live(write.key())? } else { None };
        let Some(effect) = embedded::write(live.as_ref(), write, self.now, self.rules)? else {
            return Ok(None);
        };
        let applied = effect != Effect::Nothing;
        self.stage(write.key(), effect);
        Ok(Some(applied.into()))
    }

    fn batch(&mut self, batch: &[Write]) -> Result<Vec<Applied>> {
        let mut applied = Vec::with_capacity(batch.len());
        for write in batch {
            let written = self.write(write).map_err(|error| error.with_key(write.key()))?;
            applied.push(written.ok_or_else(|| batch_conflict(write.key()))?);
        }
        Ok(applied)
    }

    fn transact(&mut self, key: &Key, transition: &dyn Transition) -> Result<Bytes> {
        let live = self.live(key)?;
        // A transition is pure, so what its panic leaves behind is nothing; its neighbours must not suffer.
        let step = catch_unwind(AssertUnwindSafe(|| {
            embedded::transact(live.as_ref(), transition, self.now, self.rules)
        }));
        let (effect, reply) = step.unwrap_or_else(|panic| {
            let message = panic_message(&*panic);
            let message = format!("the transition {:?} panicked: {message}", transition.name());
            Err(Error::new(ErrorKind::Internal, message))
        })?;
        self.stage(key, effect);
        Ok(reply)
    }

    fn commit(&mut self, reads: &ReadSet, writes: WriteSet) -> Result<()> {
        for (key, read) in reads {
            if self.live(key)? != *read {
                return Err(transaction_conflict(key));
            }
        }
        for (key, record) in writes {
            self.stage(&key, record.map_or(Effect::Delete, Effect::Put));
        }
        Ok(())
    }

    fn clear(&mut self, keys: &[Key]) -> Result<u64> {
        let mut cleared = 0;
        for key in keys {
            if self.live(key)?.is_some() {
                cleared += 1;
                self.stage(key, Effect::Delete);
            }
        }
        Ok(cleared)
    }

    fn purge(&mut self, keys: Vec<Key>) -> Result<u64> {
        let mut purged = 0;
        for key in keys {
            if self.stored(&key)?.is_some_and(|record| !record.is_live(self.now)) {
                purged += 1;
                // An expiry is not a change, so it is not in the log.
                self.changes.list.push(Changed { key, record: None, is_watched: false });
            }
        }
        Ok(purged)
    }

    fn stage(&mut self, key: &Key, effect: Effect) {
        let record = match effect {
            Effect::Nothing => return,
            Effect::Put(record) => {
                self.value_bytes += record.value.len();
                Some(record)
            }
            Effect::Delete => None,
        };
        self.changes.list.push(Changed { key: key.clone(), record, is_watched: true });
    }

    fn live(&mut self, key: &Key) -> Result<Option<Record>> {
        Ok(self.stored(key)?.filter(|record| record.is_live(self.now)))
    }

    fn stored(&mut self, key: &Key) -> Result<Option<Record>> {
        match self.changes.get(key) {
            Some(changed) => Ok(changed.clone()),
            None => (self.read)(key),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str) -> Key {
        Key::new(name).unwrap()
    }

    fn put(name: &str, value: &'static str, condition: Condition) -> Write {
        Write::Put { key: key(name), value: value.into(), options: PutOptions::default().when(condition) }
    }

    fn record(value: &'static str) -> Record {
        Record { value: value.into(), expires_at: None }
    }

    type WrittenInOrder = Vec<(Key, Option<Record>)>;

    /// Carries these out on a store with `old` under `k`; returns the replies and what is written.
    fn carry_out(operations: Vec<Operation>) -> (Vec<Result<Reply>>, WrittenInOrder, Changes) {
        let read = |at: &Key| Ok((at.as_bytes() == b"k").then(|| record("old")));
        let rules = Rules::default();
        let mut group = Group::new(&read, Timestamp::default(), &rules);
        let replies = operations.into_iter().map(|operation| group.apply(operation)).collect();
        let changes = group.into_changes();
        let mut written: Vec<_> =
            changes.iter().map(|(key, record)| (key.clone(), record.cloned())).collect();
        written.sort_by(|a, b| a.0.cmp(&b.0));
        (replies, written, changes)
    }

    #[test]
    fn each_operation_sees_those_before_it_and_each_key_is_written_once() {
        let (replies, written, changes) = carry_out(vec![
            Operation::Write(put("k", "1", Condition::Equals("old".into()))),
            Operation::Write(put("k", "2", Condition::Equals("old".into()))),
            Operation::Write(put("k", "3", Condition::Equals("1".into()))),
            Operation::Write(Write::delete(key("k"))),
            Operation::Write(put("k", "4", Condition::Absent)),
        ]);
        let applied: Vec<_> = replies
            .into_iter()
            .map(|reply| match reply.unwrap() {
                Reply::Applied(applied) => applied.is_yes(),
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(applied, [true, false, true, true, true]);
        assert_eq!(written, [(key("k"), Some(record("4")))]);
        let put = || Change::Put(key("k"));
        assert_eq!(changes.into_log().collect::<Vec<_>>(), [put(), put(), Change::Deleted(key("k")), put()]);
    }

    #[test]
    fn a_group_is_full_once_the_values_of_its_transitions_are() {
        let read = |_: &Key| Ok(None);
        let rules = Rules::default();
        let mut group = Group::new(&read, Timestamp::default(), &rules);
        let value = Bytes::from(vec![0; MAX_VALUE_BYTES / 4]);
        for _ in 0..4 {
            assert!(!group.is_full());
            let write = Write::Put { key: key("k"), value: value.clone(), options: PutOptions::default() };
            assert!(group.apply(Operation::Write(write)).is_ok());
        }
        assert!(!group.is_full());
        assert!(group.apply(Operation::Write(put("k", "one more", Condition::Always))).is_ok());
        assert!(group.is_full());
        assert_eq!((group.operations(), group.into_changes().len()), (5, 1));
    }

    #[test]
    fn an_operation_that_fails_leaves_nothing_behind_and_does_not_disturb_its_neighbours() {
        let failing = vec![
            put("a", "lost", Condition::Always),
            put("k", "lost", Condition::Always),
            put("b", "lost", Condition::Present),
        ];
        let (replies, written, _) = carry_out(vec![
            Operation::Write(put("a", "kept", Condition::Always)),
            Operation::Batch(failing),
            Operation::Write(put("c", "kept", Condition::Absent)),
            Operation::Write(put("a", "twice", Condition::Equals("kept".into()))),
        ]);
        assert_eq!(replies[1].as_ref().unwrap_err().kind(), ErrorKind::Conflict);
        assert!(matches!(replies[3], Ok(Reply::Applied(Applied::Yes))));
        assert_eq!(written, [(key("a"), Some(record("twice"))), (key("c"), Some(record("kept")))]);
    }

    #[test]
    fn a_batch_is_written_as_one_and_its_later_writes_see_the_earlier_ones() {
        let batch = vec![
            put("a", "1", Condition::Absent),
            put("a", "2", Condition::Equals("1".into())),
            Write::delete(key("k")),
        ];
        let (_, written, _) = carry_out(vec![Operation::Batch(batch)]);
        assert_eq!(written, [(key("a"), Some(record("2"))), (key("k"), None)]);
    }

    #[test]
    fn a_transaction_whose_reads_changed_within_the_group_is_refused() {
        let commit = |read: Option<Record>| {
            Operation::Commit(
                ReadSet::from([(key("k"), read)]),
                WriteSet::from([(key("t"), Some(record("t")))]),
            )
        };
        let overwrite = Operation::Write(put("k", "new", Condition::Always));
        let (replies, written, _) = carry_out(vec![
            commit(Some(record("old"))),
            overwrite,
            commit(Some(record("old"))),
            commit(None),
        ]);
        assert!(replies[0].is_ok());
        assert_eq!(replies[2].as_ref().unwrap_err().kind(), ErrorKind::Conflict);
        assert_eq!(replies[3].as_ref().unwrap_err().kind(), ErrorKind::Conflict);
        assert_eq!(written.len(), 2);
    }
}
