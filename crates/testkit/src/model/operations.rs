//! Operations, and how they are carried out on a store and compared with the model.

use std::{cell::Cell, sync::Arc, time::Duration};

use bytes::Bytes;
use commonhold_core::{
    Action, Applied, Entry, Error, ErrorKind, Expiry, Key, Prefix, Result, Scan, StateBackend,
    Step as Decision, Timestamp, Transaction, Transition, Write,
    layers::{Layer as _, Namespace},
};
use futures_util::TryStreamExt as _;
use proptest::{
    collection::vec,
    prop_assert_eq,
    test_runner::{Config, RngAlgorithm, TestCaseError, TestRng, TestRunner},
};

use super::{
    Answer, Model, Seen,
    random::{KEYS, LONG, operation},
};
use crate::subject::{Subject, key};

/// How many sequences of operations are tried.
const SEQUENCES: u32 = 64;

/// The longest sequence.
const MAX_OPERATIONS: usize = 60;

#[derive(Debug, Clone)]
pub(crate) enum Operation {
    Get(Key),
    GetMany(Vec<Key>),
    Write(Write),
    Batch(Vec<Write>),
    Transact(Key, Change),
    Scan(Scan),
    Count(Prefix),
    Clear(Prefix),
    Advance(Duration),
    Transaction(Work),
}

/// A transaction, and a write of somebody else while it is open.
#[derive(Debug, Clone)]
pub(crate) struct Work {
    pub(crate) steps: Vec<Step>,
    pub(crate) end: End,
    /// Before which step, and what.
    pub(crate) interference: Option<(usize, Write)>,
}

#[derive(Debug, Clone)]
pub(crate) enum Step {
    Get(Key),
    Write(Write),
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum End {
    Commit,
    Rollback,
    Drop,
}

/// A transition: replies what it saw, and does this.
#[derive(Debug, Clone)]
pub(crate) enum Change {
    Do(Action),
    Append(u8, Expiry),
    Refuse(ErrorKind),
}

impl Change {
    pub(crate) fn apply(&self, state: Option<&[u8]>) -> Result<Decision> {
        let reply = state.map_or(Bytes::from("none"), |state| [b"some ", state].concat().into());
        let action = match self {
            Self::Do(action) => action.clone(),
            Self::Append(byte, expiry) => {
                let value = [state.unwrap_or_default(), &[*byte]].concat().into();
                Action::Put { value, expiry: *expiry }
            }
            Self::Refuse(kind) => return Err(Error::new(*kind, "refused")),
        };
        Ok(Decision { action, reply })
    }
}

impl Transition for Change {
    fn name(&self) -> &'static str {
        "change"
    }

    fn apply(&self, state: Option<&[u8]>, _now: Timestamp) -> Result<Decision> {
        self.apply(state)
    }
}

/// Tries random sequences; the smallest one that fails is shown, with the seed that finds it again.
pub(crate) async fn random_operations_agree_with_the_model(subject: Subject) {
    let seed: u64 = match std::env::var("COMMONHOLD_SEED") {
        Ok(seed) => seed.parse().expect("COMMONHOLD_SEED is a number"),
        Err(_) => std::time::UNIX_EPOCH.elapsed().unwrap().as_nanos() as u64,
    };
    // Proptest's runner is not asynchronous; the other thread of the runtime drives the store meanwhile.
    tokio::task::block_in_place(|| check(&subject, seed));
}

fn check(subject: &Subject, seed: u64) {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
    let config = Config { cases: SEQUENCES, failure_persistence: None, ..Config::default() };
    let strategy = vec(operation(subject), 1..MAX_OPERATIONS);
    let sequence = Cell::new(0);
    let outcome = TestRunner::new_with_rng(config, rng).run(&strategy, |operations| {
        sequence.set(sequence.get() + 1);
        let name = format!("sequence {}", sequence.get());
        let backend = Namespace::new(&name).unwrap().layer(subject.backend.clone());
        tokio::runtime::Handle::current().block_on(compare(subject, &*backend, &operations))
    });
    if let Err(error) = outcome {
        panic!("the store does not do as the model does; COMMONHOLD_SEED={seed} repeats it\n{error}");
    }
}

/// Carries out the operations on the store and on a new model, and compares every answer.
async fn compare(
    subject: &Subject,
    backend: &dyn StateBackend,
    operations: &[Operation],
) -> Result<(), TestCaseError> {
    let max_value_bytes = usize::try_from(backend.capabilities().max_value_bytes).unwrap();
    let mut model = Model::new(max_value_bytes);
    for operation in operations {
        match operation {
            Operation::Advance(duration) => subject.clock().expect("only with a clock").advance(*duration),
            Operation::Transaction(work) => {
                model = transaction(subject, backend, &model, work).await?;
                continue;
            }
            _ => {}
        }
        let expected = model.run(operation);
        let answer = Store { subject, backend }.run(operation).await;
        prop_assert_eq!(answer, expected, "store, model: {:?}", operation);
    }
    let everything = Operation::GetMany(KEYS.iter().map(key).collect());
    prop_assert_eq!(
        Store { subject, backend }.run(&everything).await,
        model.run(&everything),
        "store, model: end"
    );
    Ok(())
}

/// Carries out a transaction and finds the serial order of it and the interference that explains what came
/// out; returns the model after it.
async fn transaction(
    subject: &Subject,
    backend: &dyn StateBackend,
    before: &Model,
    work: &Work,
) -> Result<Model, TestCaseError> {
    let store = Store { subject, backend };
    let everything = Operation::GetMany(KEYS.iter().map(key).collect());
    let (answers, refused) = store.transaction(work).await;
    let state = store.run(&everything).await;

    let operation = Operation::Transaction(work.clone());
    let interference = work.interference.as_ref().map(|(_, write)| Operation::Write(write.clone()));
    let interfere = |model: &mut Model| interference.as_ref().map(|write| model.run(write));
    let (mut first, mut last, mut alone) = (before.clone(), before.clone(), before.clone());
    let answers_first = first.run(&operation);
    interfere(&mut first);
    interfere(&mut last);
    let answers_last = last.run(&operation);
    interfere(&mut alone);

    let touched = interference.is_some_and(|write| work.touches(&write));
    let candidates = match refused {
        None => vec![(first, answers_first), (last, answers_last)],
        Some(ErrorKind::Conflict) if touched => vec![(alone.clone(), answers_first), (alone, answers_last)],
        Some(kind) => return Err(TestCaseError::fail(format!("refused as {kind} without need: {work:?}"))),
    };
    let answers = Answer::Transaction(answers);
    let found = candidates
        .iter()
        .find(|(model, expected)| *expected == answers && model.clone().run(&everything) == state);
    match found {
        Some((model, _)) => Ok(model.clone()),
        None => Err(TestCaseError::fail(format!(
            "no serial order explains {answers:?} and {state:?} after {work:?}; possible: {candidates:?}"
        ))),
    }
}

/// The store under test, answering in the form of the model.
struct Store<'a> {
    subject: &'a Subject,
    backend: &'a dyn StateBackend,
}

impl Store<'_> {
    async fn run(&self, operation: &Operation) -> Answer {
        let answer = match operation.clone() {
            Operation::Get(key) => self.backend.get(&key).await.map(|entry| Answer::Seen(self.seen(entry))),
            Operation::GetMany(keys) => {
                let entries = self.backend.get_many(&keys).await;
                entries
                    .map(|entries| Answer::Many(entries.into_iter().map(|entry| self.seen(entry)).collect()))
            }
            Operation::Write(Write::Put { key, value, options }) => {
                self.backend.put(&key, value, options).await.map(|applied| Answer::Applied(applied.is_yes()))
            }
            Operation::Write(Write::Delete { key, condition }) => {
                self.backend.delete(&key, condition).await.map(|applied| Answer::Applied(applied.is_yes()))
            }
            Operation::Batch(batch) => {
                let applied = self.backend.write_many(batch).await;
                applied.map(|applied| Answer::AllApplied(applied.into_iter().map(Applied::is_yes).collect()))
            }
            Operation::Transact(key, change) => {
                let reply = self.backend.transact(&key, Arc::new(change)).await;
                reply.map(|reply| Answer::Reply(reply.to_vec()))
            }
            Operation::Scan(scan) => self.scan(scan).await,
            Operation::Count(prefix) => self.backend.count(&prefix).await.map(Answer::Number),
            Operation::Clear(prefix) => self.backend.clear(&prefix).await.map(Answer::Number),
            Operation::Advance(_) | Operation::Transaction(_) => Ok(Answer::Done),
        };
        answer.unwrap_or_else(|error| Answer::Refused(error.kind()))
    }

    async fn scan(&self, scan: Scan) -> Result<Answer> {
        let entries: Vec<(Key, Entry)> = self.backend.scan(scan).try_collect().await?;
        let mut listed: Vec<_> =
            entries.into_iter().map(|(key, entry)| (key, self.seen(Some(entry)))).collect();
        if !self.backend.capabilities().ordered_scan {
            listed.sort_by(|(a, _), (b, _)| a.cmp(b));
        }
        Ok(Answer::Listed(listed))
    }

    /// The answers of a transaction's steps, and why it was not committed if it should have been.
    async fn transaction(&self, work: &Work) -> (Vec<Answer>, Option<ErrorKind>) {
        let mut transaction = self.backend.begin().await.unwrap();
        let mut answers = Vec::new();
        for (i, step) in work.steps.iter().enumerate() {
            self.interfere(work, i).await;
            answers.push(self.step(&mut transaction, step).await);
        }
        self.interfere(work, work.steps.len()).await;
        let ended = match work.end {
            End::Commit => transaction.commit().await,
            End::Rollback => transaction.rollback().await,
            End::Drop => {
                drop(transaction);
                Ok(())
            }
        };
        (answers, ended.err().map(|error| error.kind()))
    }

    async fn interfere(&self, work: &Work, before_step: usize) {
        if let Some((at, write)) = &work.interference
            && *at == before_step
        {
            self.run(&Operation::Write(write.clone())).await;
        }
    }

    async fn step(&self, transaction: &mut Box<dyn Transaction>, step: &Step) -> Answer {
        let answer = match step.clone() {
            Step::Get(key) => transaction.get(&key).await.map(|entry| Answer::Seen(self.seen(entry))),
            Step::Write(Write::Put { key, value, options }) => {
                transaction.put(&key, value, options).await.map(|applied| Answer::Applied(applied.is_yes()))
            }
            Step::Write(Write::Delete { key, condition }) => {
                transaction.delete(&key, condition).await.map(|applied| Answer::Applied(applied.is_yes()))
            }
        };
        answer.unwrap_or_else(|error| Answer::Refused(error.kind()))
    }

    fn seen(&self, entry: Option<Entry>) -> Seen {
        entry.map(|Entry { value, ttl }| {
            let ttl = match self.subject.clock() {
                Some(_) => ttl,
                // What is left of it, rounded to what it was at first.
                None => ttl.map(|ttl| LONG * ttl.div_duration_f64(LONG).round() as u32),
            };
            (value.to_vec(), ttl)
        })
    }
}

impl Work {
    fn touches(&self, write: &Operation) -> bool {
        let Operation::Write(write) = write else { return false };
        self.steps.iter().any(|step| match step {
            Step::Get(key) => key == write.key(),
            Step::Write(own) => own.key() == write.key(),
        })
    }
}
