//! Faults on demand, for tests of what stands above a store.

use std::{
    collections::VecDeque,
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures_util::{StreamExt as _, stream::BoxStream};

use super::{Call, Operation, Outcome, Uniform};
use crate::{
    answer::Answer,
    error::{Error, ErrorKind, Result, Retry},
};

/// Fails, delays or loses calls as a [`FaultPlan`] says.
///
/// ```
/// # tokio::runtime::Runtime::new().unwrap().block_on(async {
/// use commonhold_core::{MemoryBackend, Retry, Store, layers::{Fault, FaultPlan, Operation}};
///
/// let plan = FaultPlan::new();
/// let store = Store::new(MemoryBackend::new()).layer(Fault::new(&plan));
///
/// plan.lose_reply(Operation::Put); // the write is done, its acknowledgement is lost
/// assert_eq!(store.put("key", "value").await.unwrap_err().retry(), Retry::Ambiguous);
/// assert!(store.contains("key").await?);
/// # Ok::<(), commonhold_core::Error>(())
/// # }).unwrap();
/// ```
#[derive(Debug)]
pub struct Fault {
    plan: FaultPlan,
}

impl Fault {
    /// Follows this plan, which the test keeps.
    pub fn new(plan: &FaultPlan) -> Self {
        Self { plan: plan.clone() }
    }
}

/// The faults that are to happen, one after the other. Clones share it.
#[derive(Clone, Default)]
pub struct FaultPlan(Arc<Mutex<VecDeque<(Operation, Kind)>>>);

#[derive(Debug, Clone, Copy)]
enum Kind {
    Refuse,
    LoseReply,
    Delay(Duration),
    Hang,
}

impl FaultPlan {
    /// No faults.
    pub fn new() -> Self {
        Self::default()
    }

    /// The next call of this operation fails without having been carried out: `Unavailable`, safe to repeat.
    pub fn refuse(&self, operation: Operation) {
        self.push(operation, Kind::Refuse);
    }

    /// The next call of this operation is carried out, and its answer is lost: `Unavailable`, ambiguous for
    /// a write.
    pub fn lose_reply(&self, operation: Operation) {
        self.push(operation, Kind::LoseReply);
    }

    /// The next call of this operation takes this much longer.
    pub fn delay(&self, operation: Operation, duration: Duration) {
        self.push(operation, Kind::Delay(duration));
    }

    /// The next call of this operation never begins and never ends.
    pub fn hang(&self, operation: Operation) {
        self.push(operation, Kind::Hang);
    }

    /// How many faults have not happened yet.
    pub fn pending(&self) -> usize {
        self.lock().len()
    }

    fn push(&self, operation: Operation, kind: Kind) {
        self.lock().push_back((operation, kind));
    }

    fn take(&self, operation: Operation) -> Option<Kind> {
        let mut faults = self.lock();
        let index = faults.iter().position(|(planned, _)| *planned == operation)?;
        faults.remove(index).map(|(_, kind)| kind)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, VecDeque<(Operation, Kind)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for FaultPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.lock().iter()).finish()
    }
}

fn refused(operation: Operation, backend: &'static str) -> Error {
    Error::new(ErrorKind::Unavailable, "injected fault: not carried out")
        .with_retry(Retry::Safe)
        .at(backend, operation.name())
}

impl Uniform for Fault {
    fn once<'a, T: Outcome>(
        &'a self,
        call: Call<'a>,
        attempt: impl FnOnce() -> Answer<'a, T> + Send + 'a,
    ) -> Answer<'a, T> {
        let Call { operation, backend, .. } = call;
        match self.plan.take(operation) {
            None => attempt(),
            Some(Kind::Refuse) => Answer::Ready(Err(refused(operation, backend))),
            Some(Kind::LoseReply) => attempt().then(move |_| {
                Err(Error::new(ErrorKind::Unavailable, "injected fault: the reply was lost")
                    .with_retry(operation.lost())
                    .at(backend, operation.name()))
            }),
            Some(Kind::Delay(duration)) => Answer::later(async move {
                tokio::time::sleep(duration).await;
                attempt().await
            }),
            Some(Kind::Hang) => Answer::later(std::future::pending()),
        }
    }

    /// A scan fails before its first entry, or waits there.
    fn stream<T: Send + 'static>(
        self: Arc<Self>,
        operation: Operation,
        backend: &'static str,
        stream: BoxStream<'static, Result<T>>,
    ) -> BoxStream<'static, Result<T>> {
        use futures_util::stream;
        match self.plan.take(operation) {
            None => stream,
            Some(Kind::Refuse | Kind::LoseReply) => {
                stream::once(std::future::ready(Err(refused(operation, backend)))).boxed()
            }
            Some(Kind::Delay(duration)) => {
                let wait =
                    stream::once(tokio::time::sleep(duration)).filter_map(|()| std::future::ready(None));
                wait.chain(stream).boxed()
            }
            Some(Kind::Hang) => stream::pending().boxed(),
        }
    }
}
