//! The backend: each operation of the trait, and where it is carried out.

use std::{
    fmt,
    sync::{Arc, OnceLock},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use commonhold_core::{
    Answer, Applied, Capabilities, Change, Condition, Entry, Error, ErrorKind, Expiry, Health, Key,
    Maintenance, Message, Prefix, PutOptions, Result, Scan, StateBackend, Stats, Transaction, Transition,
    Write, embedded::OptimisticTransaction,
};
use futures_util::{StreamExt as _, TryStreamExt as _, stream, stream::BoxStream};

use crate::{
    NAME,
    checked::Checked,
    config::PostgresConfig,
    connect::Use,
    gathered::{PlainPut, bytes, entries},
    isolated::Isolated,
    schema::{self, Table},
    seen::ReadToken,
    service,
    shared::Shared,
    sql::Sql,
    watch::{Listener, payload},
    write::Single,
};

/// More keys than this are read in several statements.
const MAX_KEYS: usize = 10_000;

/// A table of a PostgreSQL server as a store.
///
/// # Cancellation
/// A dropped future has read nothing, or its write is carried out in full or not at all, perhaps later.
///
/// A clone is the same store: one for the [`Store`](commonhold_core::Store), say, and one to ask for
/// [tokens](Self::token).
#[derive(Clone)]
pub struct PostgresBackend {
    shared: Arc<Shared>,
    table: Table,
    listener: Arc<OnceLock<Listener>>,
}

impl PostgresBackend {
    /// Connects, makes the table if it is not there or brings it up to date, and begins to remove expired rows in the
    /// background.
    ///
    /// The server must be there for that: it is waited for no longer than `connect_timeout` for each host. Later it
    /// may come and go; what broke is made anew when it is needed.
    ///
    /// # Errors
    /// `InvalidConfig`: an option is out of range, the database does not exist, or another table has the name.
    /// `Unauthorized`: a wrong password, or no permission. `Unavailable`, `Timeout`: the server is not there.
    /// `Unsupported`: a later version of this library made the table.
    pub async fn open(config: PostgresConfig) -> Result<Self> {
        Self::open_checked(config).await.map_err(|error| error.at(NAME, "open"))
    }

    async fn open_checked(config: PostgresConfig) -> Result<Self> {
        config.check()?;
        let shared = Arc::new(Shared::new(config)?);
        let connection = shared.primary.connector.connect(Use::Exclusive).await?;
        let table = schema::migrate(&connection, shared.config(), &shared.names).await?;
        shared.look_at_the_clock(&connection).await?;
        if let Some(interval) = shared.config().sweep {
            service::sweep_in_background(&shared, interval);
        }
        shared.replicas.watch_over();
        Ok(Self { shared, table, listener: Arc::default() })
    }

    /// How far this store has seen the writes to the primary: its own and those that it
    /// [observed](Self::observe), at least. Asks the primary.
    ///
    /// # Errors
    /// Those of connecting; `Unavailable`, `Timeout`. All may be tried again.
    pub async fn token(&self) -> Result<ReadToken> {
        self.shared.token().await.map_err(|error| error.at(NAME, "token"))
    }

    /// Lets later reads of this store show what that one had seen whose [`token`](Self::token) this is: until the
    /// replicas do, they go to the primary, which shows everything.
    ///
    /// A token of a primary that failed, ahead of what its successor had of it, asks for what is lost: it counts for
    /// nothing then.
    pub fn observe(&self, token: ReadToken) {
        self.shared.seen.observe(token);
    }

    fn listener(&self) -> &Listener {
        self.listener.get_or_init(|| Listener::start(&self.shared))
    }

    async fn put_one(&self, key: &Key, value: Bytes, options: PutOptions) -> Result<Applied> {
        let shared = &self.shared;
        shared.check(value.len(), options.expiry)?;
        let ttl_micros = shared.ttl_micros(options.expiry);
        let keep = options.expiry == Expiry::Keep;
        if options.condition == Condition::Always && !keep {
            shared.put(PlainPut { key: key.clone(), value, ttl_micros }).await?;
            return Ok(Applied::Yes);
        }
        let single = Single::put(key, &value, ttl_micros, keep, &options.condition);
        Ok((shared.execute(single.sql, &single.params()).await? > 0).into())
    }

    async fn delete_one(&self, key: &Key, condition: &Condition) -> Result<Applied> {
        let Some(single) = Single::delete(key, condition) else { return Ok(Applied::No) };
        Ok((self.shared.execute(single.sql, &single.params()).await? > 0).into())
    }

    async fn read_many(&self, keys: &[Key]) -> Result<Vec<Option<Entry>>> {
        let mut answers = Vec::with_capacity(keys.len());
        for keys in keys.chunks(MAX_KEYS) {
            let replica = self.shared.replicas.for_keys(keys);
            let rows = self.shared.query_from(replica, Sql::GetMany, &[&bytes(keys)]).await?;
            let found = entries(&rows)?;
            answers.extend(keys.iter().map(|key| found.get(key.as_bytes()).cloned()));
        }
        Ok(answers)
    }

    /// Watching and publishing need a session of the server.
    fn check_session(&self, what: &str) -> Result<()> {
        if self.shared.config().pgbouncer {
            let message =
                format!("{what} needs a session, which pgbouncer in transaction mode does not give");
            return Err(Error::new(ErrorKind::Unsupported, message));
        }
        Ok(())
    }

    fn check_watch(&self) -> Result<()> {
        self.check_session("watching")?;
        if self.shared.config().watch {
            return Ok(());
        }
        let message =
            "open the store with watch=true: a trigger then tells of every change, which costs every write";
        Err(Error::new(ErrorKind::Unsupported, message))
    }
}

#[async_trait]
impl StateBackend for PostgresBackend {
    fn name(&self) -> &'static str {
        NAME
    }

    fn capabilities(&self) -> Capabilities {
        let config = self.shared.config();
        let mut capabilities = Capabilities::NONE;
        capabilities.ttl = true;
        capabilities.ttl_resolution = Duration::from_millis(1);
        capabilities.scan = true;
        capabilities.ordered_scan = true;
        capabilities.atomic_batch = true;
        capabilities.transactions = true;
        capabilities.watch = config.watch;
        capabilities.publish = !config.pgbouncer;
        capabilities.durable = self.table.durable;
        capabilities.shared = true;
        capabilities.sql = true;
        capabilities.max_value_bytes = config.rules.max_value_bytes;
        capabilities
    }

    fn get<'a>(&'a self, key: &'a Key) -> Answer<'a, Option<Entry>> {
        Answer::later(async move {
            self.shared.get(key).await.map_err(|error| error.at(NAME, "get").with_key(key))
        })
    }

    fn put<'a>(&'a self, key: &'a Key, value: Bytes, options: PutOptions) -> Answer<'a, Applied> {
        Answer::later(async move {
            let applied = self.put_one(key, value, options).await;
            self.shared.seen.wrote(key);
            applied.map_err(|error| error.at(NAME, "put").with_key(key))
        })
    }

    fn delete<'a>(&'a self, key: &'a Key, condition: Condition) -> Answer<'a, Applied> {
        Answer::later(async move {
            let applied = self.delete_one(key, &condition).await;
            self.shared.seen.wrote(key);
            applied.map_err(|error| error.at(NAME, "delete").with_key(key))
        })
    }

    fn get_many<'a>(&'a self, keys: &'a [Key]) -> Answer<'a, Vec<Option<Entry>>> {
        Answer::later(async move { self.read_many(keys).await.map_err(|error| error.at(NAME, "get_many")) })
    }

    fn write_many(&self, batch: Vec<Write>) -> Answer<'_, Vec<Applied>> {
        Answer::later(async move {
            let applied = self.shared.write_many(&batch).await;
            batch.iter().for_each(|write| self.shared.seen.wrote(write.key()));
            applied.map_err(|error| error.at(NAME, "write_many"))
        })
    }

    fn transact<'a>(&'a self, key: &'a Key, transition: Arc<dyn Transition>) -> Answer<'a, Bytes> {
        Answer::later(async move {
            let reply = self.shared.transact(key, &*transition).await;
            self.shared.seen.wrote(key);
            reply.map_err(|error| error.at(NAME, "transact").with_key(key))
        })
    }

    fn scan(&self, scan: Scan) -> BoxStream<'static, Result<(Key, Entry)>> {
        if let Err(error) = scan.check() {
            return stream::iter([Err(error.at(NAME, "scan"))]).boxed();
        }
        self.shared.scan(scan).map_err(|error| error.at(NAME, "scan")).boxed()
    }

    async fn count(&self, prefix: &Prefix) -> Result<u64> {
        self.shared.count(prefix).await.map_err(|error| error.at(NAME, "count"))
    }

    async fn clear(&self, prefix: &Prefix) -> Result<u64> {
        let cleared = self.shared.clear(prefix).await;
        self.shared.seen.wrote_anything();
        cleared.map_err(|error| error.at(NAME, "clear"))
    }

    async fn watch(&self, prefix: &Prefix) -> Result<BoxStream<'static, Result<Change>>> {
        let watch = async {
            self.check_watch()?;
            self.listener().watch(prefix).await
        };
        watch.await.map_err(|error| error.at(NAME, "watch"))
    }

    async fn publish(&self, channel: &Key, message: Bytes) -> Result<()> {
        let publish = async {
            self.check_session("publishing")?;
            let payload = payload(channel, &message)?;
            // Those who notify commit one by one: it may have to wait, on a connection where that holds up nobody.
            self.shared.execute(Sql::Publish, &[&payload]).await.map(drop)
        };
        publish.await.map_err(|error| error.at(NAME, "publish"))
    }

    async fn subscribe(&self, channel: &Key) -> Result<BoxStream<'static, Result<Message>>> {
        let subscribe = async {
            self.check_session("subscribing")?;
            self.listener().subscribe(channel).await
        };
        subscribe.await.map_err(|error| error.at(NAME, "subscribe"))
    }

    async fn begin(&self) -> Result<Box<dyn Transaction>> {
        let shared = Arc::clone(&self.shared);
        let begun: Result<Box<dyn Transaction>> = match shared.config().isolation {
            Some(isolation) => {
                Isolated::begin(shared, isolation).await.map(|transaction| Box::new(transaction) as _)
            }
            None => Checked::begin(shared)
                .await
                .map(|store| Box::new(OptimisticTransaction::new(Arc::new(store))) as _),
        };
        begun.map_err(|error| error.at(NAME, "begin"))
    }

    async fn health(&self) -> Result<Health> {
        self.shared.health().await.map_err(|error| error.at(NAME, "health"))
    }

    async fn stats(&self) -> Result<Stats> {
        self.shared.stats().await.map_err(|error| error.at(NAME, "stats"))
    }

    async fn maintain(&self, task: Maintenance) -> Result<()> {
        self.shared.maintain(task).await.map_err(|error| error.at(NAME, "maintain"))
    }
}

impl fmt::Debug for PostgresBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresBackend").field("config", self.shared.config()).finish_non_exhaustive()
    }
}
