//! One server, or the one that is the primary now: its shared connection, made anew when it is lost.

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use commonhold_core::Result;
use futures_util::future::BoxFuture;

use crate::{
    driver::{Cmd, Connection, OnPush, Pipeline, Value, array, command, command_of, digest},
    error::{Access, unexpected},
    flight::Flight,
    primary::{Role, role},
};

/// Makes a connection to wherever the server is now.
pub(crate) type Dial = Arc<dyn Fn(Option<OnPush>) -> BoxFuture<'static, Result<Connection>> + Send + Sync>;

/// A server that is connected to when it is first needed, and again when the connection is lost.
pub(crate) struct Node {
    dial: Dial,
    current: Arc<Mutex<Option<Connection>>>,
    dialing: Flight<Connection>,
    /// Whether another server may become the one that is meant.
    moves: bool,
}

/// A Lua script and the digest that servers know it by.
#[derive(Clone)]
pub(crate) struct Script {
    pub(crate) source: &'static str,
    pub(crate) digest: Arc<str>,
}

/// A command on its way to a server.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) access: Access,
    pub(crate) command: Cmd,
    /// The script that the command calls.
    pub(crate) script: Option<&'static str>,
}

impl Script {
    pub(crate) fn new(source: &'static str) -> Self {
        Self { source, digest: digest(source).into() }
    }

    /// A call with these keys; arguments can be added to its command.
    pub(crate) fn call<'a>(&self, access: Access, keys: impl ExactSizeIterator<Item = &'a Bytes>) -> Request {
        let mut call = command_of("EVALSHA", 16, 256);
        call.arg(&*self.digest).arg(keys.len());
        for key in keys {
            call.arg(&key[..]);
        }
        Request { access, command: call, script: Some(self.source) }
    }
}

impl Request {
    pub(crate) fn new(access: Access, command: Cmd) -> Self {
        Self { access, command, script: None }
    }

    #[must_use]
    pub(crate) fn arg(self, argument: impl AsRef<[u8]>) -> Self {
        self.args([argument])
    }

    #[must_use]
    pub(crate) fn args(mut self, arguments: impl IntoIterator<Item = impl AsRef<[u8]>>) -> Self {
        for argument in arguments {
            self.command.arg(argument.as_ref());
        }
        self
    }
}

impl Node {
    pub(crate) fn new(dial: Dial) -> Self {
        Self { dial, current: Arc::default(), dialing: Flight::default(), moves: false }
    }

    /// The primary, which may become another server: `dial` finds it.
    pub(crate) fn primary(dial: Dial) -> Self {
        Self { moves: true, ..Self::new(dial) }
    }

    /// The shared connection. All who find it lost wait for the same new one.
    ///
    /// # Errors
    /// Why there is none; nothing was sent then.
    pub(crate) async fn connection(&self) -> Result<Connection> {
        let current = self.current().clone().filter(|connection| !connection.is_closed());
        if let Some(connection) = current
            && self.is_current(&connection).await
        {
            return Ok(connection);
        }
        let (dial, current) = (Arc::clone(&self.dial), Arc::clone(&self.current));
        self.dialing
            .join(async move {
                let connection = dial(None).await?;
                lock(&current).replace(connection.clone());
                Ok(connection)
            })
            .await
    }

    /// Whether the server at the other end is still the one that is meant, as far as a check now and then says. Who
    /// only reads would not notice: a primary that was demoted goes on answering.
    pub(crate) async fn is_current(&self, connection: &Connection) -> bool {
        if !self.moves || !connection.is_check_due() {
            return true;
        }
        // In a box, as all that is rare: a future is as large as the largest that it may wait for.
        if Box::pin(role(connection)).await.is_ok_and(|role| role != Role::Primary.name()) {
            self.give_up(connection);
        }
        !connection.is_closed()
    }

    /// A connection of its own, for a transaction or for messages.
    pub(crate) async fn dial(&self, on_push: Option<OnPush>) -> Result<Connection> {
        (self.dial)(on_push).await
    }

    /// Sends a command. An error of the server is a [`Value::ServerError`].
    pub(crate) async fn send(&self, request: &Request) -> Result<Value> {
        let connection = self.connection().await?;
        let reply = connection.command(request.access, &request.command).await?;
        match request.script {
            Some(source) if has_code(&reply, "NOSCRIPT") => {
                Box::pin(load_and_repeat(&connection, request, source)).await
            }
            _ => Ok(self.noting(&connection, reply)),
        }
    }

    /// Sends a command that is redirected here while its slot moves.
    pub(crate) async fn send_asking(&self, request: &Request) -> Result<Value> {
        let connection = self.connection().await?;
        let mut commands = Pipeline::new();
        if let Some(source) = request.script {
            commands.add_command(load(source));
        }
        commands.add_command(command("ASKING")).add_command(request.command.clone());
        let mut replies = connection.pipeline(request.access, &commands).await?;
        replies.pop().ok_or_else(unexpected)
    }

    /// Sends commands in one piece and returns their replies in order, errors of the server among them.
    pub(crate) async fn send_all(&self, access: Access, requests: &[Request]) -> Result<Vec<Value>> {
        let connection = self.connection().await?;
        let mut commands = Pipeline::with_capacity(requests.len());
        for request in requests {
            commands.add_command(request.command.clone());
        }
        let mut replies = connection.pipeline(access, &commands).await?;
        for (request, reply) in requests.iter().zip(&mut replies) {
            if let Some(source) = request.script
                && has_code(reply, "NOSCRIPT")
            {
                *reply = load_and_repeat(&connection, request, source).await?;
            }
        }
        Ok(replies.into_iter().map(|reply| self.noting(&connection, reply)).collect())
    }

    /// Sends commands that the server carries out together or not at all.
    ///
    /// # Errors
    /// Also that of a command that keeps all of them from being carried out.
    pub(crate) async fn send_atomically(&self, commands: &[Cmd]) -> Result<Vec<Value>> {
        let connection = self.connection().await?;
        atomically(&connection, commands).await.map(|replies| replies.unwrap_or_default())
    }

    /// Sees to it that the primary is looked for again once this one says that it is none.
    fn noting(&self, connection: &Connection, reply: Value) -> Value {
        if has_code(&reply, "READONLY") || has_code(&reply, "MASTERDOWN") {
            self.give_up(connection);
        }
        reply
    }

    pub(crate) fn give_up(&self, connection: &Connection) {
        connection.give_up();
        let mut current = self.current();
        if current.as_ref().is_some_and(|current| current.is(connection)) {
            *current = None;
        }
    }

    fn current(&self) -> MutexGuard<'_, Option<Connection>> {
        lock(&self.current)
    }
}

/// Carries out commands together or not at all. `None` if a key that the connection watches has changed.
///
/// # Errors
/// Also that of a command that keeps all of them from being carried out.
pub(crate) async fn atomically(connection: &Connection, commands: &[Cmd]) -> Result<Option<Vec<Value>>> {
    let mut all = Pipeline::with_capacity(commands.len() + 2);
    all.cmd("MULTI");
    for command in commands {
        all.add_command(command.clone());
    }
    all.cmd("EXEC");
    let mut replies = connection.pipeline(Access::Write, &all).await?;
    let outcome = replies.pop().ok_or_else(unexpected)?;
    if matches!(outcome, Value::Nil) {
        return Ok(None);
    }
    // The first that was refused says why; EXEC says only that it was.
    for reply in replies {
        if matches!(reply, Value::ServerError(_)) {
            if has_code(&reply, "READONLY") {
                connection.give_up();
            }
            crate::driver::checked(reply)?;
        }
    }
    array(outcome).map(Some)
}

async fn load_and_repeat(connection: &Connection, request: &Request, source: &str) -> Result<Value> {
    let mut commands = Pipeline::with_capacity(2);
    commands.add_command(load(source)).add_command(request.command.clone());
    let mut replies = connection.pipeline(request.access, &commands).await?;
    replies.pop().ok_or_else(unexpected)
}

fn load(source: &str) -> Cmd {
    let mut load = command("SCRIPT");
    load.arg("LOAD").arg(source.as_bytes());
    load
}

pub(crate) fn has_code(reply: &Value, code: &str) -> bool {
    matches!(reply, Value::ServerError(error) if error.code() == code)
}

// A std mutex: it is held for a few steps and never across an await.
fn lock(current: &Mutex<Option<Connection>>) -> MutexGuard<'_, Option<Connection>> {
    current.lock().unwrap_or_else(PoisonError::into_inner)
}

impl fmt::Debug for Script {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Script").field(&self.digest).finish()
    }
}

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Node").field("connected", &self.current().is_some()).finish_non_exhaustive()
    }
}
