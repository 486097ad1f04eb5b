//! Layers: each wraps a backend and is one.
//!
//! Most layers treat all operations alike. They implement [`Uniform`], and [`Layered`] forwards every
//! operation through them, in this one place. The order matters, the last one added sees a call first:
//!
//! ```
//! use std::time::Duration;
//! use commonhold_core::{MemoryBackend, Store, layers::{ConcurrencyLimit, Retry, Timeout}};
//!
//! let store = Store::new(MemoryBackend::new())
//!     .layer(Timeout::new(Duration::from_secs(3)))  // each attempt
//!     .layer(ConcurrencyLimit::new(256))
//!     .layer(Retry::default());                     // all attempts together
//! ```

mod call;
mod fault;
mod limit;
mod metrics;
mod namespace;
mod retry;
mod timeout;
mod trace;

use std::{fmt, sync::Arc};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::BoxStream;

pub use self::{
    call::{Call, Operation, Outcome},
    fault::{Fault, FaultPlan},
    limit::ConcurrencyLimit,
    metrics::Metrics,
    namespace::Namespace,
    retry::Retry,
    timeout::Timeout,
    trace::Trace,
};
use crate::{
    answer::Answer,
    backend::{
        Applied, Capabilities, Change, Condition, Entry, Health, Maintenance, Message, PutOptions, Scan,
        StateBackend, Transaction, Write,
    },
    error::Result,
    key::{Key, Prefix},
    stats::Stats,
    transition::Transition,
};

/// What can be put around a backend.
pub trait Layer {
    /// The backend with this layer around it.
    fn layer(self, inner: Arc<dyn StateBackend>) -> Arc<dyn StateBackend>;
}

impl<U: Uniform> Layer for U {
    fn layer(self, inner: Arc<dyn StateBackend>) -> Arc<dyn StateBackend> {
        Arc::new(Layered { layer: Arc::new(self), inner })
    }
}

/// A layer that treats all operations alike.
///
/// ```
/// use commonhold_core::{Answer, layers::{Call, Outcome, Uniform}};
///
/// /// Says on standard error what failed.
/// #[derive(Debug)]
/// struct Complain;
///
/// impl Uniform for Complain {
///     fn once<'a, T: Outcome>(
///         &'a self,
///         call: Call<'a>,
///         attempt: impl FnOnce() -> Answer<'a, T> + Send + 'a,
///     ) -> Answer<'a, T> {
///         attempt().then(move |result| result.inspect_err(|error| eprintln!("{}: {error}", call.operation)))
///     }
/// }
/// ```
pub trait Uniform: fmt::Debug + Send + Sync + 'static {
    /// Carries out one attempt, or does not: nothing happens until `attempt` is called.
    ///
    /// An [`Answer`] that is there at once is to be passed on without boxing it.
    fn once<'a, T: Outcome>(
        &'a self,
        call: Call<'a>,
        attempt: impl FnOnce() -> Answer<'a, T> + Send + 'a,
    ) -> Answer<'a, T>;

    /// Carries out a call that can be attempted several times. Once, unless the layer does otherwise.
    fn repeat<'a, T: Outcome>(
        &'a self,
        call: Call<'a>,
        attempt: impl Fn() -> Answer<'a, T> + Send + Sync + 'a,
    ) -> Answer<'a, T> {
        self.once(call, attempt)
    }

    /// Passes on a stream of results. As it is, unless the layer does otherwise.
    fn stream<T: Send + 'static>(
        self: Arc<Self>,
        _operation: Operation,
        _backend: &'static str,
        stream: BoxStream<'static, Result<T>>,
    ) -> BoxStream<'static, Result<T>> {
        stream
    }

    /// Adds what this layer has counted.
    fn add_stats(&self, _stats: &mut Stats) {}
}

/// A backend with a [`Uniform`] layer around it.
#[derive(Debug)]
pub struct Layered<L> {
    layer: Arc<L>,
    inner: Arc<dyn StateBackend>,
}

impl<L> Layered<L> {
    fn call<'a>(&self, operation: Operation) -> Call<'a> {
        Call { operation, backend: self.inner.name(), key: None, puts: 0, deletes: 0, bytes: 0 }
    }
}

#[async_trait]
impl<L: Uniform> StateBackend for Layered<L> {
    fn name(&self) -> &'static str {
        self.inner.name()
    }

    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    fn get<'a>(&'a self, key: &'a Key) -> Answer<'a, Option<Entry>> {
        self.layer.repeat(self.call(Operation::Get).key(key), move || self.inner.get(key))
    }

    fn value<'a>(&'a self, key: &'a Key) -> Answer<'a, Option<Bytes>> {
        self.layer.repeat(self.call(Operation::Get).key(key), move || self.inner.value(key))
    }

    fn put<'a>(&'a self, key: &'a Key, value: Bytes, options: PutOptions) -> Answer<'a, Applied> {
        let call = self.call(Operation::Put).key(key).puts(1, value.len());
        self.layer.repeat(call, move || self.inner.put(key, value.clone(), options.clone()))
    }

    fn delete<'a>(&'a self, key: &'a Key, condition: Condition) -> Answer<'a, Applied> {
        let call = self.call(Operation::Delete).key(key).deletes(1);
        self.layer.repeat(call, move || self.inner.delete(key, condition.clone()))
    }

    fn get_many<'a>(&'a self, keys: &'a [Key]) -> Answer<'a, Vec<Option<Entry>>> {
        self.layer.repeat(self.call(Operation::GetMany), move || self.inner.get_many(keys))
    }

    fn values<'a>(&'a self, keys: &'a [Key]) -> Answer<'a, Vec<Option<Bytes>>> {
        self.layer.repeat(self.call(Operation::GetMany), move || self.inner.values(keys))
    }

    fn write_many(&self, batch: Vec<Write>) -> Answer<'_, Vec<Applied>> {
        let call = self.call(Operation::WriteMany).writes(&batch);
        self.layer.repeat(call, move || self.inner.write_many(batch.clone()))
    }

    fn transact<'a>(&'a self, key: &'a Key, transition: Arc<dyn Transition>) -> Answer<'a, Bytes> {
        let call = self.call(Operation::Transact).key(key);
        self.layer.repeat(call, move || self.inner.transact(key, Arc::clone(&transition)))
    }

    fn scan(&self, scan: Scan) -> BoxStream<'static, Result<(Key, Entry)>> {
        Arc::clone(&self.layer).stream(Operation::Scan, self.inner.name(), self.inner.scan(scan))
    }

    async fn count(&self, prefix: &Prefix) -> Result<u64> {
        self.layer.repeat(self.call(Operation::Count), move || Answer::Later(self.inner.count(prefix))).await
    }

    async fn clear(&self, prefix: &Prefix) -> Result<u64> {
        self.layer.repeat(self.call(Operation::Clear), move || Answer::Later(self.inner.clear(prefix))).await
    }

    async fn watch(&self, prefix: &Prefix) -> Result<BoxStream<'static, Result<Change>>> {
        self.layer.repeat(self.call(Operation::Watch), move || Answer::Later(self.inner.watch(prefix))).await
    }

    async fn publish(&self, channel: &Key, message: Bytes) -> Result<()> {
        let call = self.call(Operation::Publish).key(channel);
        self.layer.repeat(call, move || Answer::Later(self.inner.publish(channel, message.clone()))).await
    }

    async fn subscribe(&self, channel: &Key) -> Result<BoxStream<'static, Result<Message>>> {
        let call = self.call(Operation::Subscribe).key(channel);
        self.layer.repeat(call, move || Answer::Later(self.inner.subscribe(channel))).await
    }

    async fn begin(&self) -> Result<Box<dyn Transaction>> {
        let inner =
            self.layer.repeat(self.call(Operation::Begin), move || Answer::Later(self.inner.begin())).await?;
        let backend = self.inner.name();
        Ok(Box::new(LayeredTransaction { layer: Arc::clone(&self.layer), backend, inner }))
    }

    async fn health(&self) -> Result<Health> {
        self.layer.repeat(self.call(Operation::Health), move || Answer::Later(self.inner.health())).await
    }

    async fn stats(&self) -> Result<Stats> {
        let mut stats =
            self.layer.repeat(self.call(Operation::Stats), move || Answer::Later(self.inner.stats())).await?;
        self.layer.add_stats(&mut stats);
        Ok(stats)
    }

    async fn maintain(&self, task: Maintenance) -> Result<()> {
        self.layer
            .repeat(self.call(Operation::Maintain), move || Answer::Later(self.inner.maintain(task)))
            .await
    }
}

/// A transaction whose operations go through a [`Uniform`] layer, one attempt each: what failed is the whole
/// transaction.
#[derive(Debug)]
struct LayeredTransaction<L> {
    layer: Arc<L>,
    backend: &'static str,
    inner: Box<dyn Transaction>,
}

impl<L> LayeredTransaction<L> {
    fn call<'a>(&self, operation: Operation) -> Call<'a> {
        Call { operation, backend: self.backend, key: None, puts: 0, deletes: 0, bytes: 0 }
    }
}

#[async_trait]
impl<L: Uniform> Transaction for LayeredTransaction<L> {
    async fn get(&mut self, key: &Key) -> Result<Option<Entry>> {
        self.layer.once(self.call(Operation::Get).key(key), || Answer::Later(self.inner.get(key))).await
    }

    async fn put(&mut self, key: &Key, value: Bytes, options: PutOptions) -> Result<Applied> {
        let call = self.call(Operation::Put).key(key).puts(1, value.len());
        self.layer.once(call, || Answer::Later(self.inner.put(key, value, options))).await
    }

    async fn delete(&mut self, key: &Key, condition: Condition) -> Result<Applied> {
        let call = self.call(Operation::Delete).key(key).deletes(1);
        self.layer.once(call, || Answer::Later(self.inner.delete(key, condition))).await
    }

    async fn commit(self: Box<Self>) -> Result<()> {
        let call = self.call(Operation::Commit);
        let Self { layer, inner, .. } = *self;
        layer.once(call, || Answer::Later(inner.commit())).await
    }

    async fn rollback(self: Box<Self>) -> Result<()> {
        let call = self.call(Operation::Rollback);
        let Self { layer, inner, .. } = *self;
        layer.once(call, || Answer::Later(inner.rollback())).await
    }
}
