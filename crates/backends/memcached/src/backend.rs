//! The Memcached backend: the store's operations as commands.

use std::{fmt, sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use commonhold_core::{
    Action, Answer, Applied, Capabilities, Change, Condition, Entry, Error, ErrorKind, Expiry, Health, Key,
    Maintenance, Message, Prefix, PutOptions, Result, Scan, StateBackend, Stats, Timestamp, Transaction,
    Transition, Write,
};
use futures_util::{FutureExt as _, StreamExt as _, stream, stream::BoxStream};

use crate::{
    config::MemcachedConfig,
    connection::LAST_SECOND,
    error::NAME,
    expiry::check,
    ring::Ring,
    server::CLOCK_TOLERANCE_MS,
    wire::{Reply, Set, When, too_long},
};

/// A store in one or several Memcached servers.
///
/// # Cancellation
/// A dropped future has read nothing, or its write is carried out in full or not at all; a transition that is
/// dropped is carried out at most once.
pub struct MemcachedBackend {
    pub(crate) ring: Ring,
}

impl MemcachedBackend {
    /// Begins to connect, in the background: a server that is away is no error, and is found when it comes. To be
    /// called on a Tokio runtime, which the store needs for as long as it is used.
    ///
    /// # Errors
    /// `InvalidConfig`: an option is out of range.
    pub async fn open(config: MemcachedConfig) -> Result<Self> {
        config.check().map_err(|error| error.at(NAME, "open"))?;
        Ok(Self { ring: Ring::new(config) })
    }

    fn config(&self) -> &MemcachedConfig {
        &self.ring.config
    }

    pub(crate) fn check_value(&self, value: &Bytes) -> Result<()> {
        let max = self.config().max_value_bytes;
        if value.len() as u64 > max {
            let message = format!("a value has at most {max} bytes, this one has {}", value.len());
            return Err(Error::new(ErrorKind::TooLarge, message));
        }
        Ok(())
    }

    /// What is checked of a put before anything is sent.
    pub(crate) fn check_put(&self, value: &Bytes, expiry: Expiry) -> Result<()> {
        check(expiry)?;
        self.check_value(value)
    }

    /// The expiry of a put, where none may mean the default.
    pub(crate) fn put_expiry(&self, expiry: Expiry) -> Expiry {
        if expiry == Expiry::Never { self.config().default_ttl.into() } else { expiry }
    }

    async fn read(&self, key: &Key) -> Result<Option<Entry>> {
        let (server, wire) = self.ring.place(key);
        let mut commands = server.commands();
        commands.get(&wire, "v t");
        entry(server.ask(commands).await?.single()?)
    }

    async fn write(&self, key: &Key, value: Bytes, options: PutOptions) -> Result<Applied> {
        self.check_put(&value, options.expiry)?;
        let when = match (&options.condition, options.expiry) {
            // Without an entry there is no time to live to keep.
            (Condition::Absent, _) => When::Absent,
            (Condition::Equals(_), _) | (_, Expiry::Keep) => {
                let put = Action::Put { value, expiry: options.expiry };
                return self.apply_if(key, &options.condition, put).await;
            }
            (Condition::Present, _) => When::Present,
            (Condition::Always, _) => When::Always,
        };
        let (server, wire) = self.ring.place(key);
        let expires = server.expires(self.put_expiry(options.expiry)).await?;
        let mut commands = server.commands();
        commands.set(&wire, &value, Set { when, expires, client_flags: 0 });
        applied(server.ask(commands).await?.single()?)
    }

    async fn remove(&self, key: &Key, condition: &Condition) -> Result<Applied> {
        match condition {
            // There is nothing to delete where it holds.
            Condition::Absent => Ok(Applied::No),
            Condition::Equals(_) => self.apply_if(key, condition, Action::Delete).await,
            Condition::Always | Condition::Present => {
                let (server, wire) = self.ring.place(key);
                let mut commands = server.commands();
                commands.delete(&wire, None);
                applied(server.ask(commands).await?.single()?)
            }
        }
    }

    pub(crate) async fn apply_if(&self, key: &Key, condition: &Condition, action: Action) -> Result<Applied> {
        let decide = |state: Option<&[u8]>, _| {
            let holds = condition.holds(state);
            Ok((if holds { action.clone() } else { Action::Nothing }, Applied::from(holds)))
        };
        self.update(key, decide).await
    }
}

/// The entry in the reply to a read.
pub(crate) fn entry(reply: Reply) -> Result<Option<Entry>> {
    match reply {
        Reply::Value(value, flags) => {
            // The server counts in whole seconds, and the one that has begun is not quite left any more.
            let ttl = flags.seconds_left.map(|left| Duration::from_secs(left.saturating_sub(1).max(1)));
            Ok(Some(Entry { value, ttl }))
        }
        Reply::Missing(_) => Ok(None),
        other => Err(unexpected(other)),
    }
}

/// What the reply to a write says.
pub(crate) fn applied(reply: Reply) -> Result<Applied> {
    match reply {
        Reply::Done(_) => Ok(Applied::Yes),
        Reply::NotStored(_) | Reply::Changed(_) | Reply::Missing(_) => Ok(Applied::No),
        other => Err(unexpected(other)),
    }
}

pub(crate) fn unexpected(reply: Reply) -> Error {
    match reply {
        Reply::TooLong(len, _) => too_long(len),
        Reply::Refused(line) => {
            crate::error::refusal(&line).unwrap_or_else(|| crate::error::nonsense("to a command", &line))
        }
        other => crate::error::nonsense("to another command", format!("{other:?}").as_bytes()),
    }
}

fn unsupported(operation: &'static str, what: &'static str) -> Error {
    Error::new(ErrorKind::Unsupported, what).at(NAME, operation)
}

const NO_LISTING: &str = "Memcached cannot list its keys, nor count or clear by prefix";
const NO_MESSAGES: &str = "Memcached passes on no messages";

#[async_trait]
impl StateBackend for MemcachedBackend {
    fn name(&self) -> &'static str {
        NAME
    }

    fn capabilities(&self) -> Capabilities {
        let mut capabilities = Capabilities::NONE;
        capabilities.ttl = true;
        capabilities.ttl_resolution = Duration::from_secs(1);
        // A day less, so that what is promised now is kept then.
        let now = u64::try_from(self.ring.now().as_millis() / 1000).unwrap_or_default();
        capabilities.max_ttl = Duration::from_secs(LAST_SECOND.saturating_sub(now + 24 * 60 * 60));
        capabilities.shared = true;
        // One may be ahead of the server, and another behind.
        capabilities.clock_error = Duration::from_millis(2 * CLOCK_TOLERANCE_MS.unsigned_abs());
        capabilities.clustering = true;
        capabilities.max_value_bytes = self.config().max_value_bytes;
        capabilities
    }

    fn get<'a>(&'a self, key: &'a Key) -> Answer<'a, Option<Entry>> {
        Answer::later(
            self.read(key).map(move |result| result.map_err(|error| error.at(NAME, "get").with_key(key))),
        )
    }

    fn put<'a>(&'a self, key: &'a Key, value: Bytes, options: PutOptions) -> Answer<'a, Applied> {
        let write = self.write(key, value, options);
        Answer::later(write.map(move |result| result.map_err(|error| error.at(NAME, "put").with_key(key))))
    }

    fn delete<'a>(&'a self, key: &'a Key, condition: Condition) -> Answer<'a, Applied> {
        Answer::later(async move {
            let removed = self.remove(key, &condition).await;
            removed.map_err(|error| error.at(NAME, "delete").with_key(key))
        })
    }

    fn get_many<'a>(&'a self, keys: &'a [Key]) -> Answer<'a, Vec<Option<Entry>>> {
        Answer::later(self.read_many(keys).map(|result| result.map_err(|error| error.at(NAME, "get_many"))))
    }

    fn write_many(&self, batch: Vec<Write>) -> Answer<'_, Vec<Applied>> {
        Answer::later(
            async move { self.write_all(batch).await.map_err(|error| error.at(NAME, "write_many")) },
        )
    }

    fn transact<'a>(&'a self, key: &'a Key, transition: Arc<dyn Transition>) -> Answer<'a, Bytes> {
        Answer::later(async move {
            let decide = |state: Option<&[u8]>, now: Timestamp| {
                let step = transition.apply(state, now)?;
                Ok((step.action, step.reply))
            };
            self.update(key, decide).await.map_err(|error| error.at(NAME, "transact").with_key(key))
        })
    }

    fn scan(&self, _scan: Scan) -> BoxStream<'static, Result<(Key, Entry)>> {
        stream::iter([Err(unsupported("scan", NO_LISTING))]).boxed()
    }

    async fn count(&self, _prefix: &Prefix) -> Result<u64> {
        Err(unsupported("count", NO_LISTING))
    }

    async fn clear(&self, _prefix: &Prefix) -> Result<u64> {
        Err(unsupported("clear", NO_LISTING))
    }

    async fn watch(&self, _prefix: &Prefix) -> Result<BoxStream<'static, Result<Change>>> {
        Err(unsupported("watch", "Memcached tells nobody of changes"))
    }

    async fn publish(&self, _channel: &Key, _message: Bytes) -> Result<()> {
        Err(unsupported("publish", NO_MESSAGES))
    }

    async fn subscribe(&self, _channel: &Key) -> Result<BoxStream<'static, Result<Message>>> {
        Err(unsupported("subscribe", NO_MESSAGES))
    }

    async fn begin(&self) -> Result<Box<dyn Transaction>> {
        Err(unsupported("begin", "Memcached has no transactions over several keys"))
    }

    async fn health(&self) -> Result<Health> {
        self.ring.health().await.map_err(|error| error.at(NAME, "health"))
    }

    async fn stats(&self) -> Result<Stats> {
        self.ring.stats().await.map_err(|error| error.at(NAME, "stats"))
    }

    async fn maintain(&self, _task: Maintenance) -> Result<()> {
        Err(unsupported("maintain", "Memcached keeps house by itself"))
    }
}

impl fmt::Debug for MemcachedBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemcachedBackend").field("config", self.config()).finish_non_exhaustive()
    }
}
