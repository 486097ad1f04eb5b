//! The model that stores are compared with: a plain ordered map with a clock, and nothing of how stores work.
//!
//! It is written from the documentation of [`StateBackend`](commonhold_core::StateBackend), independently of
//! any backend. Random operations are carried out on both, and every answer is compared.

mod operations;
mod random;

use std::{collections::BTreeMap, time::Duration};

use commonhold_core::{Action, Condition, ErrorKind, Expiry, Key, PutOptions, Scan, Write};

pub(crate) use self::operations::random_operations_agree_with_the_model;
use self::operations::{Change, End, Operation, Step, Work};

/// What is under a key: the value, and when it ends, in nanoseconds of the model's clock.
type Stored = (Vec<u8>, Option<u128>);

/// A value and the time it has left.
type Seen = Option<(Vec<u8>, Option<Duration>)>;

/// What an operation answers, in a form in which model and store can be compared.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Answer {
    Seen(Seen),
    Many(Vec<Seen>),
    Applied(bool),
    AllApplied(Vec<bool>),
    Listed(Vec<(Key, Seen)>),
    Number(u64),
    Reply(Vec<u8>),
    /// Those of the steps.
    Transaction(Vec<Answer>),
    Refused(ErrorKind),
    Done,
}

/// A plain ordered map with a clock.
#[derive(Debug, Clone, Default)]
pub(crate) struct Model {
    entries: BTreeMap<Vec<u8>, Stored>,
    now: u128,
    max_value_bytes: usize,
}

impl Model {
    pub(crate) fn new(max_value_bytes: usize) -> Self {
        Self { max_value_bytes, ..Self::default() }
    }

    /// Carries out an operation. A transaction comes out as if nobody had interfered.
    pub(crate) fn run(&mut self, operation: &Operation) -> Answer {
        match operation {
            Operation::Get(key) => Answer::Seen(self.get(key)),
            Operation::GetMany(keys) => Answer::Many(keys.iter().map(|key| self.get(key)).collect()),
            Operation::Write(write) => self.write(write).map_or_else(Answer::Refused, Answer::Applied),
            Operation::Batch(batch) => self.batch(batch),
            Operation::Transact(key, change) => {
                self.transact(key, change).map_or_else(Answer::Refused, Answer::Reply)
            }
            Operation::Scan(scan) => Answer::Listed(self.scan(scan)),
            Operation::Count(prefix) => Answer::Number(self.under(prefix.as_bytes()).len() as u64),
            Operation::Clear(prefix) => {
                let keys = self.under(prefix.as_bytes());
                for key in &keys {
                    self.entries.remove(key);
                }
                Answer::Number(keys.len() as u64)
            }
            Operation::Advance(duration) => {
                self.now += duration.as_nanos();
                Answer::Done
            }
            Operation::Transaction(work) => self.transaction(work),
        }
    }

    fn live(&self, key: &[u8]) -> Option<&Stored> {
        self.entries.get(key).filter(|(_, end)| end.is_none_or(|end| self.now < end))
    }

    fn get(&self, key: &Key) -> Seen {
        let (value, end) = self.live(key.as_bytes())?;
        let left = end.map(|end| Duration::from_nanos(u64::try_from(end - self.now).unwrap()));
        Some((value.clone(), left))
    }

    /// The keys under a prefix, in order.
    fn under(&self, prefix: &[u8]) -> Vec<Vec<u8>> {
        self.entries
            .keys()
            .filter(|key| key.starts_with(prefix) && self.live(key).is_some())
            .cloned()
            .collect()
    }

    fn holds(&self, key: &Key, condition: &Condition) -> bool {
        let value = self.live(key.as_bytes()).map(|(value, _)| value);
        match condition {
            Condition::Always => true,
            Condition::Absent => value.is_none(),
            Condition::Present => value.is_some(),
            Condition::Equals(expected) => value.is_some_and(|value| value == expected),
        }
    }

    fn end(&self, key: &Key, expiry: Expiry) -> Result<Option<u128>, ErrorKind> {
        match expiry {
            Expiry::Never => Ok(None),
            Expiry::Keep => Ok(self.live(key.as_bytes()).and_then(|(_, end)| *end)),
            Expiry::After(ttl) if ttl.is_zero() => Err(ErrorKind::InvalidInput),
            Expiry::After(ttl) => Ok(Some(self.now + ttl.as_nanos())),
        }
    }

    fn write(&mut self, write: &Write) -> Result<bool, ErrorKind> {
        match write {
            Write::Delete { key, condition } => {
                let deletes = self.holds(key, condition) && self.live(key.as_bytes()).is_some();
                if deletes {
                    self.entries.remove(key.as_bytes());
                }
                Ok(deletes)
            }
            Write::Put { key, value, options: PutOptions { condition, expiry } } => {
                let end = self.end(key, *expiry)?;
                if !self.holds(key, condition) {
                    return Ok(false);
                }
                self.put(key, value, end)?;
                Ok(true)
            }
        }
    }

    fn put(&mut self, key: &Key, value: &[u8], end: Option<u128>) -> Result<(), ErrorKind> {
        if value.len() > self.max_value_bytes {
            return Err(ErrorKind::TooLarge);
        }
        self.entries.insert(key.as_bytes().to_vec(), (value.to_vec(), end));
        Ok(())
    }

    fn batch(&mut self, batch: &[Write]) -> Answer {
        let before = self.entries.clone();
        let mut answers = Vec::new();
        for write in batch {
            let met = self.holds(write.key(), write.condition());
            let refused = match self.write(write) {
                Ok(applied) if met => {
                    answers.push(applied);
                    continue;
                }
                Ok(_) => ErrorKind::Conflict,
                Err(kind) => kind,
            };
            self.entries = before;
            return Answer::Refused(refused);
        }
        Answer::AllApplied(answers)
    }

    fn transact(&mut self, key: &Key, change: &Change) -> Result<Vec<u8>, ErrorKind> {
        let state = self.live(key.as_bytes()).cloned();
        let step = change.apply(state.as_ref().map(|(value, _)| &value[..])).map_err(|error| error.kind())?;
        match step.action {
            Action::Nothing => {}
            Action::Put { value, expiry } => {
                let end = self.end(key, expiry)?;
                self.put(key, &value, end)?;
            }
            Action::Expire(expiry) => {
                if let Some((value, _)) = state {
                    let end = self.end(key, expiry)?;
                    self.entries.insert(key.as_bytes().to_vec(), (value, end));
                }
            }
            Action::Delete => {
                self.entries.remove(key.as_bytes());
            }
        }
        Ok(step.reply.to_vec())
    }

    fn scan(&self, scan: &Scan) -> Vec<(Key, Seen)> {
        let after = scan.after.as_ref().map(Key::as_bytes);
        let keys = self.under(scan.prefix.as_bytes()).into_iter();
        keys.filter(|key| after.is_none_or(|after| &key[..] > after))
            .map(|key| {
                let key = Key::new(key).unwrap();
                let (value, left) = self.get(&key).unwrap();
                (key, Some((if scan.keys_only { vec![] } else { value }, left)))
            })
            .collect()
    }

    fn transaction(&mut self, work: &Work) -> Answer {
        let before = self.entries.clone();
        let steps = work.steps.iter().map(|step| match step {
            Step::Get(key) => Answer::Seen(self.get(key)),
            Step::Write(write) => self.write(write).map_or_else(Answer::Refused, Answer::Applied),
        });
        let steps = steps.collect();
        if work.end != End::Commit {
            self.entries = before;
        }
        Answer::Transaction(steps)
    }
}
