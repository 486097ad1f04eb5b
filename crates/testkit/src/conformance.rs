//! Runs cases: each with a subject of its own, in a bounded time, in full or as a check for `Unsupported`.

use std::{
    panic::{self, AssertUnwindSafe},
    sync::{Arc, mpsc},
    thread,
    time::Duration,
};

use bytes::Bytes;
use commonhold_core::{Capabilities, Condition, ErrorKind, Expiry, Prefix, PutOptions, Result, Scan, Write};
use futures_util::{TryStreamExt as _, future::LocalBoxFuture};
use tokio::runtime;

use crate::{
    MAX_VALUE_BYTES,
    cases::CASES,
    subject::{Subject, for_, key, prefix},
};

/// How long a case may take. Cases take milliseconds; this is for those that hang.
const CASE_TIMEOUT: Duration = Duration::from_secs(60);

/// One behaviour that every store shows, if it promises what the behaviour needs.
pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) needs: &'static [Capability],
    pub(crate) check: fn(Subject) -> LocalBoxFuture<'static, ()>,
}

/// What a case needs beyond single-key operations without a time to live.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Capability {
    /// [`Capabilities::ttl`].
    Ttl,
    /// [`Capabilities::scan`].
    Scan,
    /// [`Capabilities::ordered_scan`].
    OrderedScan,
    /// [`Capabilities::snapshot_scan`].
    SnapshotScan,
    /// [`Capabilities::atomic_batch`].
    AtomicBatch,
    /// [`Capabilities::transactions`].
    Transactions,
    /// [`Capabilities::watch`].
    Watch,
    /// [`Capabilities::publish`].
    Publish,
}

impl Capability {
    fn is_promised(self, capabilities: &Capabilities) -> bool {
        match self {
            Self::Ttl => capabilities.ttl,
            Self::Scan => capabilities.scan,
            Self::OrderedScan => capabilities.ordered_scan,
            Self::SnapshotScan => capabilities.snapshot_scan,
            Self::AtomicBatch => capabilities.atomic_batch,
            Self::Transactions => capabilities.transactions,
            Self::Watch => capabilities.watch,
            Self::Publish => capabilities.publish,
        }
    }

    /// Fails unless the store refuses what it does not promise.
    async fn assert_unsupported(self, subject: &Subject) {
        for answer in self.probe(subject).await {
            let error = answer.expect_err(&format!("{self:?} is not promised, but did not fail"));
            assert_eq!(error.kind(), ErrorKind::Unsupported, "{self:?} is not promised: {error}");
        }
    }

    /// The answers to calls that need the capability. None for a snapshot scan: it is a property of the scan.
    async fn probe(self, subject: &Subject) -> Vec<Result<()>> {
        let (backend, k) = (&subject.backend, key("k"));
        match self {
            Self::Ttl => {
                vec![backend.put(&k, Bytes::new(), for_(Duration::from_secs(60))).await.map(drop)]
            }
            Self::Scan => vec![
                backend.scan(Scan::prefix(prefix(""))).try_next().await.map(drop),
                backend.count(&prefix("")).await.map(drop),
                backend.clear(&prefix("")).await.map(drop),
            ],
            Self::OrderedScan => {
                vec![backend.scan(Scan::prefix(prefix("")).after(k)).try_next().await.map(drop)]
            }
            Self::SnapshotScan => Vec::new(),
            Self::AtomicBatch => {
                let options = PutOptions { condition: Condition::Absent, expiry: Expiry::Never };
                let write = Write::Put { key: k, value: Bytes::new(), options };
                vec![backend.write_many(vec![write]).await.map(drop)]
            }
            Self::Transactions => vec![backend.begin().await.map(drop)],
            Self::Watch => vec![backend.watch(&prefix("")).await.map(drop)],
            Self::Publish => {
                vec![backend.publish(&k, Bytes::new()).await, backend.subscribe(&k).await.map(drop)]
            }
        }
    }
}

/// How a case was settled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The behaviour was checked in full.
    Checked,
    /// The store does not promise this capability and answers `Unsupported`.
    AssertedUnsupported(Capability),
}

/// Runs the case of this name against a fresh subject.
///
/// # Panics
/// If the store does not behave as the case says, if the case takes longer than a minute, or if there is no
/// case of this name.
pub fn run<F>(name: &str, fixture: impl FnOnce() -> F + Send + 'static) -> Outcome
where
    F: Future<Output = Subject>,
{
    let case =
        CASES.iter().find(|case| case.name == name).unwrap_or_else(|| panic!("no case is named {name}"));
    in_bounded_time(name, CASE_TIMEOUT, async move || {
        let mut subject = fixture().await;
        let capabilities = subject.backend.capabilities();
        // In this order: what is kept for the backend is dropped after it.
        let (_kept, backend) = (subject.kept.take(), Arc::clone(&subject.backend));
        let outcome = match case.needs.iter().find(|need| !need.is_promised(&capabilities)) {
            Some(&missing) => {
                missing.assert_unsupported(&subject).await;
                Outcome::AssertedUnsupported(missing)
            }
            None => {
                (case.check)(subject).await;
                Outcome::Checked
            }
        };
        // On a server that many cases share, each would otherwise scan past what all before it have left. It is no
        // part of the case that this works.
        if capabilities.scan && capabilities.shared {
            drop(backend.clear(&Prefix::ALL).await);
        }
        outcome
    })
}

/// Fails unless these are the names of all cases and as many as expected are checked in full.
///
/// # Panics
/// Then.
pub fn assert_complete<F>(names: &[&str], expected: usize, fixture: impl FnOnce() -> F + Send + 'static)
where
    F: Future<Output = Subject>,
{
    assert_eq!(names, CASES.iter().map(|case| case.name).collect::<Vec<_>>(), "every case is a test");
    let capabilities =
        in_bounded_time("fixture", CASE_TIMEOUT, async move || fixture().await.backend.capabilities());
    assert!(
        capabilities.max_value_bytes <= MAX_VALUE_BYTES,
        "the fixture must limit values to {MAX_VALUE_BYTES} bytes or fewer"
    );
    let (checked, refused): (Vec<&Case>, Vec<&Case>) =
        CASES.iter().partition(|case| case.needs.iter().all(|need| need.is_promised(&capabilities)));
    assert_eq!(
        checked.len(),
        expected,
        "cases checked in full; these were only checked for `Unsupported`: {:?}",
        refused.iter().map(|case| case.name).collect::<Vec<_>>()
    );
}

/// Runs a future on a thread of its own and a runtime of two more. The waiting is done outside of them, so
/// that even a case that blocks them all fails by its name.
fn in_bounded_time<T, F>(name: &str, limit: Duration, future: impl FnOnce() -> F + Send + 'static) -> T
where
    T: Send + 'static,
    F: Future<Output = T>,
{
    let (done, result) = mpsc::channel();
    let case = move || {
        let runtime = runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let result = panic::catch_unwind(AssertUnwindSafe(|| runtime.block_on(future())));
        let _ = done.send(result);
        runtime.shutdown_background();
    };
    thread::Builder::new().name(name.to_owned()).spawn(case).unwrap();
    match result.recv_timeout(limit) {
        Ok(Ok(value)) => value,
        Ok(Err(panic)) => panic::resume_unwind(panic),
        Err(_) => panic!("{name}: not done after {limit:?}: it hangs"),
    }
}

/// Makes a module with a `#[test]` for every case of the kit; see the [crate's page](crate).
///
/// `conformance!(name, expected, fixture)`: the module's name; how many cases the backend is expected to
/// pass in full, given its capabilities; and a closure that makes a fresh [`Subject`].
#[macro_export]
macro_rules! conformance {
    ($name:ident, $expected:expr, $fixture:expr $(,)?) => {
        mod $name {
            #[allow(unused_imports)]
            use super::*;

            async fn __subject() -> $crate::Subject {
                ($fixture)().await
            }

            $crate::__for_each_case! { [$crate::__tests] $expected }
        }
    };
}

/// A test for each case, and one for their number.
#[doc(hidden)]
#[macro_export]
macro_rules! __tests {
    ([$expected:expr] $($module:ident::$name:ident $needs:tt,)*) => {
        $(
            #[test]
            fn $name() {
                $crate::run(stringify!($name), __subject);
            }
        )*

        #[test]
        fn every_case_is_a_test_and_the_expected_number_is_checked_in_full() {
            $crate::assert_complete(&[$(stringify!($name)),*], $expected, __subject);
        }
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[should_panic(expected = "my case: not done after 10ms: it hangs")]
    fn a_case_that_waits_for_ever_fails_by_its_name() {
        in_bounded_time("my case", Duration::from_millis(10), std::future::pending::<()>);
    }

    #[test]
    #[should_panic(expected = "my case: not done after 10ms: it hangs")]
    fn a_case_that_blocks_every_thread_fails_by_its_name() {
        in_bounded_time("my case", Duration::from_millis(10), async || {
            for _ in 0..2 {
                tokio::spawn(async { thread::park_timeout(CASE_TIMEOUT) });
            }
            thread::park_timeout(CASE_TIMEOUT);
        });
    }

    #[test]
    #[should_panic(expected = "what the case said")]
    fn a_case_that_panics_fails_with_what_it_said() {
        in_bounded_time("my case", CASE_TIMEOUT, async || panic!("what the case said"));
    }
}
