//! The backend: what each operation of a store becomes.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use commonhold_core::{
    Answer, Applied, Capabilities, Change, Condition, Entry, ErrorKind, Health, Key, Maintenance, Message,
    Prefix, PutOptions, Result, Scan, StateBackend, Stats, Transaction, Transition, Write,
    embedded::Rules as SessionRules,
};
use futures_util::{StreamExt as _, stream::BoxStream};

use crate::{
    config::RedisConfig,
    error::unsupported,
    health,
    keyspace::Keyspace,
    pool::Pool,
    reads::Reads,
    scan::Scans,
    servers::Servers,
    transaction::Session,
    transitions::Transitions,
    watch::Watches,
    writes::{Rules, Writes},
};

pub(crate) const NAME: &str = "redis";

/// A store on Redis. See the [crate's page](crate) for what it promises.
#[derive(Debug)]
pub struct RedisBackend {
    servers: Servers,
    keyspace: Keyspace,
    rules: Rules,
    reads: Arc<Reads>,
    writes: Writes,
    transitions: Transitions,
    scans: Scans,
    watches: Watches,
    pool: Arc<Pool>,
}

impl RedisBackend {
    /// Opens a store, and connects to it.
    ///
    /// # Errors
    /// `InvalidConfig` for an option out of range; `Unauthorized` if the server does not let us in. That no server
    /// can be reached is an error only with [`RedisConfig::abort_on_connect_fail`]; otherwise calls fail until one
    /// can, and then work.
    pub async fn open(config: RedisConfig) -> Result<Self> {
        config.check().map_err(|error| error.at(NAME, "open"))?;
        let backend = Self::new(&config).map_err(|error| error.at(NAME, "open"))?;
        match backend.connect(config.min_connections).await {
            Err(error) if config.abort_on_connect_fail || is_final(error.kind()) => {
                Err(error.at(NAME, "open"))
            }
            Err(error) => {
                tracing::warn!(%error, "Redis cannot be reached yet");
                Ok(backend)
            }
            Ok(()) => Ok(backend),
        }
    }

    fn new(config: &RedisConfig) -> Result<Self> {
        let servers = Servers::new(config)?;
        let keyspace = Keyspace::new(config.prefix.clone());
        let rules = Rules { max_value_bytes: config.max_value_bytes, default_ttl: config.default_ttl };
        let piece = config.pipeline_batch_size;
        let reads = Arc::new(Reads::new(servers.clone(), piece));
        Ok(Self {
            writes: Writes::new(servers.clone(), keyspace.clone(), rules, piece),
            transitions: Transitions::new(servers.clone(), keyspace.clone(), rules),
            scans: Scans::new(servers.clone(), keyspace.clone(), Arc::clone(&reads), piece),
            watches: Watches::new(servers.clone(), keyspace.clone(), config.database),
            pool: Pool::new(servers.clone(), config.max_connections, config.pool_timeout),
            reads,
            servers,
            keyspace,
            rules,
        })
    }

    async fn connect(&self, min_connections: usize) -> Result<()> {
        self.servers.any().await?.connection().await?;
        if min_connections > 0 && self.servers.are_together() {
            self.pool.fill(min_connections).await?;
        }
        Ok(())
    }

    fn full(&self, keys: &[Key]) -> Vec<Bytes> {
        keys.iter().map(|key| self.keyspace.full(key)).collect()
    }
}

/// What waiting does not mend.
fn is_final(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::Unauthorized | ErrorKind::InvalidConfig | ErrorKind::Unsupported)
}

#[async_trait]
impl StateBackend for RedisBackend {
    fn name(&self) -> &'static str {
        NAME
    }

    fn capabilities(&self) -> Capabilities {
        let together = self.servers.are_together();
        let mut capabilities = Capabilities::NONE;
        capabilities.ttl = true;
        capabilities.scan = true;
        capabilities.atomic_batch = together;
        capabilities.transactions = together;
        capabilities.watch = true;
        capabilities.publish = true;
        capabilities.shared = true;
        capabilities.clustering = true;
        capabilities.max_value_bytes = self.rules.max_value_bytes;
        capabilities
    }

    fn get<'a>(&'a self, key: &'a Key) -> Answer<'a, Option<Entry>> {
        Answer::later(async move {
            let entry = self.reads.entry(self.keyspace.full(key)).await;
            entry.map_err(|error| error.with_key(key).at(NAME, "get"))
        })
    }

    fn value<'a>(&'a self, key: &'a Key) -> Answer<'a, Option<Bytes>> {
        Answer::later(async move {
            let value = self.reads.value(self.keyspace.full(key)).await;
            value.map_err(|error| error.with_key(key).at(NAME, "get"))
        })
    }

    fn put<'a>(&'a self, key: &'a Key, value: Bytes, options: PutOptions) -> Answer<'a, Applied> {
        Answer::later(async move {
            let applied = self.writes.put(key, value, options).await;
            applied.map_err(|error| error.with_key(key).at(NAME, "put"))
        })
    }

    fn delete<'a>(&'a self, key: &'a Key, condition: Condition) -> Answer<'a, Applied> {
        Answer::later(async move {
            let applied = self.writes.delete(key, condition).await;
            applied.map_err(|error| error.with_key(key).at(NAME, "delete"))
        })
    }

    fn get_many<'a>(&'a self, keys: &'a [Key]) -> Answer<'a, Vec<Option<Entry>>> {
        Answer::later(async move {
            self.reads.entries(self.full(keys)).await.map_err(|error| error.at(NAME, "get_many"))
        })
    }

    fn values<'a>(&'a self, keys: &'a [Key]) -> Answer<'a, Vec<Option<Bytes>>> {
        Answer::later(async move {
            self.reads.values(self.full(keys)).await.map_err(|error| error.at(NAME, "get_many"))
        })
    }

    fn write_many(&self, batch: Vec<Write>) -> Answer<'_, Vec<Applied>> {
        Answer::later(
            async move { self.writes.many(batch).await.map_err(|error| error.at(NAME, "write_many")) },
        )
    }

    fn transact<'a>(&'a self, key: &'a Key, transition: Arc<dyn Transition>) -> Answer<'a, Bytes> {
        Answer::later(async move {
            let reply = self.transitions.apply(key, &*transition).await;
            reply.map_err(|error| error.with_key(key).at(NAME, transition.name()))
        })
    }

    fn scan(&self, scan: Scan) -> BoxStream<'static, Result<(Key, Entry)>> {
        self.scans.entries(scan).map(|item| item.map_err(|error| error.at(NAME, "scan"))).boxed()
    }

    async fn count(&self, prefix: &Prefix) -> Result<u64> {
        self.scans.count(prefix).await.map_err(|error| error.at(NAME, "count"))
    }

    async fn clear(&self, prefix: &Prefix) -> Result<u64> {
        self.scans.clear(prefix).await.map_err(|error| error.at(NAME, "clear"))
    }

    async fn watch(&self, prefix: &Prefix) -> Result<BoxStream<'static, Result<Change>>> {
        self.watches.changes(prefix).await.map_err(|error| error.at(NAME, "watch"))
    }

    async fn publish(&self, channel: &Key, message: Bytes) -> Result<()> {
        let published = self.watches.publish(channel, message).await;
        published.map_err(|error| error.with_key(channel).at(NAME, "publish"))
    }

    async fn subscribe(&self, channel: &Key) -> Result<BoxStream<'static, Result<Message>>> {
        let messages = self.watches.messages(channel).await;
        messages.map_err(|error| error.with_key(channel).at(NAME, "subscribe"))
    }

    async fn begin(&self) -> Result<Box<dyn Transaction>> {
        if !self.servers.are_together() {
            let message = "a transaction, as the keys are spread over the nodes of the Cluster; a prefix with a \
                           hash tag, as {app}:, would keep them together";
            return Err(unsupported(message).at(NAME, "begin"));
        }
        let rules =
            SessionRules { max_value_bytes: self.rules.max_value_bytes, default_ttl: self.rules.default_ttl };
        let (servers, pool) = (self.servers.clone(), Arc::clone(&self.pool));
        Ok(Box::new(Session::begin(servers, self.keyspace.clone(), rules, pool)))
    }

    async fn health(&self) -> Result<Health> {
        health::health(&self.servers).await.map_err(|error| error.at(NAME, "health"))
    }

    async fn stats(&self) -> Result<Stats> {
        health::stats(&self.servers, &self.pool).await.map_err(|error| error.at(NAME, "stats"))
    }

    async fn maintain(&self, task: Maintenance) -> Result<()> {
        let done = match task {
            Maintenance::Compact => health::purge(&self.servers).await,
            Maintenance::Sweep => Err(unsupported("the server removes expired keys by itself")),
            Maintenance::Flush => {
                Err(unsupported("when the server writes to disk is set there: appendfsync"))
            }
            _ => Err(unsupported("Redis plans no queries")),
        };
        done.map_err(|error| error.at(NAME, "maintain"))
    }
}
