//! Putting and deleting, one by one and in batches.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use commonhold_core::{
    Applied, Condition, Error, ErrorKind, Expiry, Key, PutOptions, Result, Retry, Write,
    embedded::batch_conflict,
};

use crate::{
    driver::{Cmd, Value, array, checked, command, integer},
    error::{Access, unexpected, unsupported},
    keyspace::Keyspace,
    lanes::Lanes,
    node::{Node, Request, Script},
    servers::Servers,
};

/// The longest value that travels together with others.
const MAX_GATHERED_BYTES: usize = 16 * 1024;

/// The most writes that become one command: Redis takes none of more than a million arguments.
const MAX_IN_ONE_COMMAND: usize = 100_000;

/// Writes to the servers of a store.
#[derive(Debug)]
pub(crate) struct Writes {
    servers: Servers,
    keyspace: Keyspace,
    rules: Rules,
    piece: usize,
    put_if_equal: Script,
    delete_if_equal: Script,
    batch: Script,
    delete: Script,
    /// Where all keys lie together, concurrent unconditional writes travel together.
    gathered: Option<Lanes<Plain, Applied>>,
}

/// What the store is configured to allow.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rules {
    pub(crate) max_value_bytes: u64,
    pub(crate) default_ttl: Option<Duration>,
}

/// A write without a condition.
enum Plain {
    /// For ever: such puts become one command.
    Put(Bytes, Bytes),
    Other(Cmd),
}

impl Rules {
    /// How long a put lets a value live.
    ///
    /// # Errors
    /// `TooLarge`, or `InvalidInput` for a time to live out of range.
    pub(crate) fn check(&self, value: &Bytes, expiry: Expiry) -> Result<Expiry> {
        expiry.check()?;
        if value.len() as u64 > self.max_value_bytes {
            let (most, length) = (self.max_value_bytes, value.len());
            let message = format!("a value has at most {most} bytes, this one has {length}");
            return Err(Error::new(ErrorKind::TooLarge, message));
        }
        Ok(if expiry == Expiry::Never { self.default_ttl.into() } else { expiry })
    }
}

impl Writes {
    pub(crate) fn new(servers: Servers, keyspace: Keyspace, rules: Rules, piece: usize) -> Self {
        let gathered = match &servers {
            Servers::Cluster { .. } => None,
            Servers::One { primary, .. } => {
                let node = Arc::clone(primary);
                Some(Lanes::new(move |writes| together(Arc::clone(&node), writes)))
            }
        };
        Self {
            servers,
            keyspace,
            rules,
            piece,
            put_if_equal: Script::new(include_str!("scripts/put_if_equal.lua")),
            delete_if_equal: Script::new(include_str!("scripts/delete_if_equal.lua")),
            batch: Script::new(include_str!("scripts/batch.lua")),
            delete: Script::new(include_str!("scripts/delete.lua")),
            gathered,
        }
    }

    pub(crate) async fn put(&self, key: &Key, value: Bytes, options: PutOptions) -> Result<Applied> {
        let expiry = self.rules.check(&value, options.expiry)?;
        let key = self.keyspace.full(key);
        if let Condition::Equals(expected) = options.condition {
            let request = self.put_if_equal.call(Access::Write, [&key].into_iter());
            let request = request.arg(expected).arg(value).arg(time_to_live(expiry));
            return Ok((integer(self.servers.send(&key, &request).await?)? == 1).into());
        }
        if let (Condition::Always, Some(gathered)) = (&options.condition, &self.gathered)
            && value.len() <= MAX_GATHERED_BYTES
        {
            return gathered
                .call(match expiry {
                    Expiry::Never => Plain::Put(key, value),
                    expiry => Plain::Other(set(&key, &value, &options.condition, expiry)),
                })
                .await;
        }
        let request = Request::new(Access::Write, set(&key, &value, &options.condition, expiry));
        applied(self.servers.send(&key, &request).await?)
    }

    pub(crate) async fn delete(&self, key: &Key, condition: Condition) -> Result<Applied> {
        let key = self.keyspace.full(key);
        match condition {
            // What is absent is not deleted, and what is there is not absent.
            Condition::Absent => Ok(Applied::No),
            Condition::Equals(expected) => {
                let request = self.delete_if_equal.call(Access::Write, [&key].into_iter()).arg(expected);
                applied(self.servers.send(&key, &request).await?)
            }
            Condition::Always | Condition::Present => match &self.gathered {
                Some(gathered) => gathered.call(Plain::Other(unlink(&key))).await,
                None => applied(self.servers.send(&key, &Request::new(Access::Write, unlink(&key))).await?),
            },
        }
    }

    pub(crate) async fn many(&self, batch: Vec<Write>) -> Result<Vec<Applied>> {
        let batch = batch.into_iter().map(|write| self.checked(write)).collect::<Result<Vec<_>>>()?;
        let conditions = batch.iter().any(|write| *write.condition() != Condition::Always);
        match (self.servers.are_together(), conditions) {
            _ if batch.is_empty() => Ok(Vec::new()),
            (true, true) => self.conditional(&batch).await,
            (true, false) => self.unconditional(&batch).await,
            (false, true) => Err(unsupported(
                "a batch with conditions, as the keys are spread over the nodes of the Cluster; a prefix with a \
                 hash tag, as {app}:, would keep them together",
            )),
            (false, false) => self.spread(&batch).await,
        }
    }

    /// The write with the expiry that it comes to.
    fn checked(&self, mut write: Write) -> Result<Write> {
        if let Write::Put { key, value, options } = &mut write {
            options.expiry = self.rules.check(value, options.expiry).map_err(|error| error.with_key(key))?;
        }
        Ok(write)
    }

    async fn unconditional(&self, batch: &[Write]) -> Result<Vec<Applied>> {
        let mut mset = command("MSET");
        let fits = batch.len() <= MAX_IN_ONE_COMMAND;
        let only_puts = fits
            && batch.iter().all(|write| match write {
                Write::Put { key, value, options: PutOptions { expiry: Expiry::Never, .. } } => {
                    mset.arg(&self.keyspace.full(key)[..]).arg(&value[..]);
                    true
                }
                _ => false,
            });
        let first = batch.first().map(|write| self.keyspace.full(write.key())).unwrap_or_default();
        if only_puts {
            self.servers.send(&first, &Request::new(Access::Write, mset)).await?;
            return Ok(vec![Applied::Yes; batch.len()]);
        }
        if fits && batch.iter().all(|write| matches!(write, Write::Delete { .. })) {
            let keys: Vec<Bytes> = batch.iter().map(|write| self.keyspace.full(write.key())).collect();
            let request = self.delete.call(Access::Write, keys.iter());
            let replies = array(self.servers.send(&first, &request).await?)?;
            return replies.into_iter().map(applied).collect();
        }
        let commands: Vec<Cmd> = batch.iter().map(|write| self.command(write)).collect();
        let replies = self.servers.send_atomically(&commands).await?;
        if replies.len() != batch.len() {
            return Err(unexpected());
        }
        replies.into_iter().map(applied).collect()
    }

    fn command(&self, write: &Write) -> Cmd {
        let key = self.keyspace.full(write.key());
        match write {
            Write::Put { value, options, .. } => set(&key, value, &Condition::Always, options.expiry),
            Write::Delete { .. } => unlink(&key),
        }
    }

    async fn conditional(&self, batch: &[Write]) -> Result<Vec<Applied>> {
        if batch.len() > MAX_IN_ONE_COMMAND {
            let message = format!("a batch with conditions has at most {MAX_IN_ONE_COMMAND} writes");
            return Err(Error::new(ErrorKind::TooLarge, message));
        }
        let keys: Vec<Bytes> = batch.iter().map(|write| self.keyspace.full(write.key())).collect();
        let mut request = self.batch.call(Access::Write, keys.iter());
        for write in batch {
            let (condition, expected): (_, &[u8]) = match write.condition() {
                Condition::Always => ("*", b""),
                Condition::Absent => ("-", b""),
                Condition::Present => ("+", b""),
                Condition::Equals(expected) => ("=", expected),
            };
            let (kind, value, ttl): (_, &[u8], _) = match write {
                Write::Put { value, options, .. } => ("P", value, time_to_live(options.expiry)),
                Write::Delete { .. } => ("D", b"", String::new()),
            };
            request = request.arg(kind).arg(condition).arg(expected).arg(value).arg(ttl);
        }
        let first = keys.first().cloned().unwrap_or_default();
        match self.servers.send(&first, &request).await? {
            Value::Int(index) => {
                let index = usize::try_from(index).ok().and_then(|index| index.checked_sub(1));
                let write = index.and_then(|index| batch.get(index)).ok_or_else(unexpected)?;
                Err(batch_conflict(write.key()))
            }
            replies => array(replies)?.into_iter().map(applied).collect(),
        }
    }

    /// Writes to several nodes, as many as there are at once.
    async fn spread(&self, batch: &[Write]) -> Result<Vec<Applied>> {
        let requests = batch
            .iter()
            .map(|write| (self.keyspace.full(write.key()), Request::new(Access::Write, self.command(write))));
        let replies = self.servers.send_all(Access::Write, requests.collect(), self.piece).await?;
        let some_written = replies.iter().any(Result::is_ok);
        let replies = replies.into_iter().zip(batch).map(|(reply, write)| {
            reply.and_then(applied).map_err(|error| match error.retry() {
                Retry::Safe if some_written => error.with_retry(Retry::Ambiguous).with_key(write.key()),
                _ => error.with_key(write.key()),
            })
        });
        replies.collect()
    }
}

/// Carries out unconditional writes in one piece.
async fn together(node: Arc<Node>, writes: Vec<Plain>) -> Result<Vec<Result<Applied>>> {
    let mut mset = command("MSET");
    let mut commands = Vec::new();
    // For each write, the index of the command that carries it out; the one for all puts is the first.
    let mut places = Vec::with_capacity(writes.len());
    let puts = writes.iter().any(|write| matches!(write, Plain::Put(..)));
    for write in writes {
        match write {
            Plain::Put(key, value) => {
                mset.arg(&key[..]).arg(&value[..]);
                places.push(0);
            }
            Plain::Other(other) => {
                commands.push(Request::new(Access::Write, other));
                places.push(commands.len() - 1 + usize::from(puts));
            }
        }
    }
    if puts {
        commands.insert(0, Request::new(Access::Write, mset));
    }
    let replies = match commands.as_slice() {
        [only] => vec![node.send(only).await?],
        commands => node.send_all(Access::Write, commands).await?,
    };
    let replies: Vec<Result<Applied>> = replies.into_iter().map(applied).collect();
    Ok(places.into_iter().map(|place| replies.get(place).cloned().ok_or_else(unexpected)?).collect())
}

pub(crate) fn set(key: &[u8], value: &[u8], condition: &Condition, expiry: Expiry) -> Cmd {
    let mut set = command("SET");
    set.arg(key).arg(value);
    match condition {
        Condition::Absent => set.arg("NX"),
        Condition::Present => set.arg("XX"),
        Condition::Always | Condition::Equals(_) => &mut set,
    };
    match expiry {
        Expiry::Never => {}
        Expiry::Keep => {
            set.arg("KEEPTTL");
        }
        Expiry::After(ttl) => {
            set.arg("PX").arg(millis(ttl));
        }
    }
    set
}

pub(crate) fn unlink(key: &[u8]) -> Cmd {
    let mut unlink = command("UNLINK");
    unlink.arg(key);
    unlink
}

/// Whether a command or script did something.
fn applied(reply: Value) -> Result<Applied> {
    Ok(match checked(reply)? {
        Value::Okay | Value::Int(1) => Applied::Yes,
        Value::Nil | Value::Int(0) => Applied::No,
        _ => return Err(unexpected()),
    })
}

/// Milliseconds, rounded up.
pub(crate) fn millis(ttl: Duration) -> u64 {
    u64::try_from(ttl.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX)
}

/// As scripts take it.
pub(crate) fn time_to_live(expiry: Expiry) -> String {
    match expiry {
        Expiry::Never => "never".to_owned(),
        Expiry::Keep => "keep".to_owned(),
        Expiry::After(ttl) => millis(ttl).to_string(),
    }
}
