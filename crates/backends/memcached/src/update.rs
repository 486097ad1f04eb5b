//! Changes that depend on what is there: read, decide, and write if nobody has changed it meanwhile.

use std::time::Duration;

use commonhold_core::{Action, Applied, Error, ErrorKind, Expiry, Key, Result, Retry, Timestamp};

use crate::{
    backend::{MemcachedBackend, applied, unexpected},
    expiry::check,
    keys::WireKey,
    server::Server,
    wire::{Commands, Flags, Reply, Set, When},
};

/// How often a change is tried. Each failure means that somebody else's was carried out.
const MAX_ATTEMPTS: u32 = 300;

/// What was read: the value, and what identifies it.
struct Found {
    value: bytes::Bytes,
    flags: Flags,
    cas: u64,
    connection: u64,
}

/// What to do next.
enum Next {
    /// Write this.
    Write(Commands),
    /// There is nothing to write.
    Nothing,
    /// The entry has changed already.
    Again,
}

impl MemcachedBackend {
    /// Does to an entry what `decide` says of its value, and returns what it says besides.
    ///
    /// The change is sent over the connection over which the entry was read: the numbers by which Memcached
    /// tells whether an entry has changed begin anew with the server.
    pub(crate) async fn update<T>(
        &self,
        key: &Key,
        decide: impl Fn(Option<&[u8]>, Timestamp) -> Result<(Action, T)>,
    ) -> Result<T> {
        let (server, wire) = self.ring.place(key);
        let mut turn = None;
        for attempt in 0..MAX_ATTEMPTS {
            let (found, connection) = find(server, &wire).await?;
            let value = found.as_ref().map(|found| &found.value[..]);
            let (action, reply) = decide(value, server.now())?;
            match self.next(server, &wire, found.as_ref(), action).await? {
                Next::Nothing => return Ok(reply),
                Next::Again => {}
                Next::Write(commands) => {
                    if let Some(answer) = server.ask_on(connection, commands).await?
                        && applied(answer.single()?)? == Applied::Yes
                    {
                        return Ok(reply);
                    }
                }
            }
            if turn.is_none() {
                // Optimistic first; when contended, those of this process go one after the other.
                turn = Some(self.ring.turn(key).await);
            }
            if attempt > 4 {
                let most = Duration::from_millis(1 << (attempt - 4).min(5));
                tokio::time::sleep(most.mul_f64(fastrand::f64())).await;
            }
        }
        let message = format!("others changed it {MAX_ATTEMPTS} times meanwhile; nothing was written");
        Err(Error::new(ErrorKind::Overloaded, message).with_retry(Retry::Safe))
    }

    async fn next(
        &self,
        server: &Server,
        wire: &WireKey,
        found: Option<&Found>,
        action: Action,
    ) -> Result<Next> {
        let (value, expiry, client_flags) = match (&action, found) {
            (Action::Put { value, expiry }, _) => {
                self.check_put(value, *expiry)?;
                (value, self.put_expiry(*expiry), 0)
            }
            (Action::Expire(expiry), Some(found)) => {
                check(*expiry)?;
                (&found.value, *expiry, found.flags.client)
            }
            (Action::Delete, Some(found)) => {
                let mut commands = server.commands();
                commands.delete(wire, Some(found.cas));
                return Ok(Next::Write(commands));
            }
            (Action::Nothing, _) | (Action::Expire(_) | Action::Delete, None) => return Ok(Next::Nothing),
        };
        let expires = match (expiry, found) {
            (Expiry::Keep, Some(found)) if found.flags.seconds_left.is_some() => {
                match server.expires_at(found.connection, wire, found.cas).await? {
                    Some(at) => at,
                    None => return Ok(Next::Again),
                }
            }
            _ => server.expires(expiry).await?,
        };
        let when = found.map_or(When::Absent, |found| When::Unchanged(found.cas));
        let mut commands = server.commands();
        commands.set(wire, value, Set { when, expires, client_flags });
        Ok(Next::Write(commands))
    }
}

/// Reads an entry with its number, and over which connection.
async fn find(server: &Server, wire: &WireKey) -> Result<(Option<Found>, u64)> {
    let mut commands = server.commands();
    commands.get(wire, "v t c f");
    let answer = server.ask(commands).await?;
    let connection = answer.connection;
    match answer.single()? {
        Reply::Value(value, flags) => {
            // Without numbers there is no compare-and-swap.
            let cas = flags.cas.filter(|cas| *cas != 0).ok_or_else(|| {
                Error::new(ErrorKind::Unsupported, "the server was started without compare-and-swap (-C)")
            })?;
            Ok((Some(Found { value, flags, cas, connection }), connection))
        }
        Reply::Missing(_) => Ok((None, connection)),
        other => Err(unexpected(other)),
    }
}
