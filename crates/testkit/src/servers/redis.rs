//! One Redis server.

use std::{
    net::Ipv4Addr,
    process::{Command, Output},
};

use rustix::process::Signal;

use super::{
    PASSWORD,
    port::Port,
    process::{Process, Program},
    program,
};

/// A Redis server on 127.0.0.1 that keeps nothing on disk unless asked to.
#[derive(Debug)]
pub struct Redis {
    process: Process,
    access: Access,
}

/// What a client needs besides the address.
#[derive(Debug, Clone, Default)]
struct Access {
    user: Option<String>,
}

control!(Redis);

impl Redis {
    /// Starts a server without a password and waits until it answers.
    ///
    /// # Panics
    /// If Redis is not installed or does not answer within a minute.
    pub fn start() -> Self {
        Self::builder().start()
    }

    /// A server with more to it.
    pub fn builder() -> RedisBuilder {
        RedisBuilder { configuration: Vec::new(), access: Access::default() }
    }

    /// `redis://[USER:PASSWORD@]127.0.0.1:PORT`.
    pub fn url(&self) -> String {
        let login = self.access.user.as_ref().map_or_else(String::new, |user| format!("{user}:{PASSWORD}@"));
        format!("redis://{login}127.0.0.1:{}", self.port())
    }

    /// Runs a command through `redis-cli` and returns what it prints, without the line's end.
    ///
    /// # Panics
    /// If the server cannot be reached or answers with an error.
    pub fn cli(&self, arguments: &[&str]) -> String {
        self.try_cli(arguments).unwrap_or_else(|error| panic!("redis-cli {arguments:?}: {error}"))
    }

    /// Runs a command through `redis-cli` and returns what it prints, without the line's end.
    ///
    /// # Errors
    /// The error that the server answers with, or why it could not be reached.
    pub fn try_cli(&self, arguments: &[&str]) -> Result<String, String> {
        let output = self.access.run(self.port(), arguments);
        let text = String::from_utf8_lossy(&output.stdout).trim_end().to_owned();
        if output.status.success() {
            return Ok(text);
        }
        Err(format!("{text}{}", String::from_utf8_lossy(&output.stderr).trim_end()))
    }

    fn answers(&self) -> bool {
        self.access.answers(self.port())
    }
}

impl Access {
    fn run(&self, port: u16, arguments: &[&str]) -> Output {
        let mut command = Command::new(program::find("redis-cli"));
        command.args(["-e", "-h", "127.0.0.1", "-p", &port.to_string()]);
        if let Some(user) = &self.user {
            command.args(["--user", user, "--pass", PASSWORD, "--no-auth-warning"]);
        }
        command.args(arguments).output().expect("redis-cli can be run")
    }

    /// Whether commands are carried out; a server that loads its data or waits for its primary says no.
    fn answers(&self, port: u16) -> bool {
        self.run(port, &["PING"]).stdout.starts_with(b"PONG")
    }
}

/// Options of a Redis server.
#[derive(Debug)]
#[must_use = "nothing runs before start()"]
pub struct RedisBuilder {
    configuration: Vec<String>,
    access: Access,
}

impl RedisBuilder {
    /// Adds a line to `redis.conf`.
    pub fn config(mut self, line: &str) -> Self {
        self.configuration.push(line.to_owned());
        self
    }

    /// Keeps an append-only file that is synced before each reply: what was acknowledged survives a kill.
    pub fn append_only(self) -> Self {
        self.config("appendonly yes").config("appendfsync always")
    }

    /// Lets in nobody but `user` with [`PASSWORD`]. The `default` user is switched off.
    pub fn user(mut self, user: &str) -> Self {
        self.access.user = Some(user.to_owned());
        self.config(&format!("user {user} on >{PASSWORD} ~* &* +@all")).config("user default off")
    }

    /// Refuses writes when the data takes more than `bytes`: nothing is evicted.
    pub fn max_memory(self, bytes: u64) -> Self {
        self.config(&format!("maxmemory {bytes}")).config("maxmemory-policy noeviction")
    }

    /// Starts the server and waits until it answers.
    ///
    /// # Panics
    /// If Redis is not installed, or does not answer within a minute; then the message holds its log.
    pub fn start(self) -> Redis {
        let path = program::find("redis-server");
        let process = Process::start_on_free_port("redis", |directory, port| {
            let file = directory.write("redis.conf", self.file(port));
            let program =
                Program { path: path.clone(), arguments: vec![file.into_os_string()], stop: Signal::TERM };
            let (access, port) = (&self.access, port.number());
            (program, move || access.answers(port))
        });
        Redis { process, access: self.access }
    }

    fn file(&self, port: &Port) -> String {
        let address = Ipv4Addr::LOCALHOST;
        let port = port.number();
        let mut lines = vec![format!("bind {address}"), format!("port {port}"), "save \"\"".to_owned()];
        lines.extend(self.configuration.iter().cloned());
        lines.push(String::new());
        lines.join("\n")
    }
}
