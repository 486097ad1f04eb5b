//! One Redis server.

use std::{
    path::Path,
    process::{Command, Output},
};

use rustix::process::Signal;

use super::{
    Certificates, PASSWORD,
    directory::Directory,
    port::Port,
    process::{Process, Program, wait_for},
    program,
};

/// A Redis server on 127.0.0.1 that keeps nothing on disk unless asked to.
#[derive(Debug)]
pub struct Redis {
    process: Process,
    access: Access,
    /// Members of a cluster talk to each other on a second port.
    bus: Option<Port>,
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
        RedisBuilder { configuration: Vec::new(), access: Access::default(), role: Role::Alone }
    }

    /// `redis://[USER:PASSWORD@]127.0.0.1:PORT`, or with TLS, `rediss://..?tls_ca=FILE`.
    pub fn url(&self) -> String {
        self.url_at(self.port())
    }

    /// The URL of this server at another port, that of a proxy before it.
    pub fn url_at(&self, port: u16) -> String {
        let login = self.access.user.as_ref().map_or_else(String::new, |user| format!("{user}:{PASSWORD}@"));
        if self.access.tls {
            return format!(
                "rediss://{login}127.0.0.1:{port}?tls_ca={}",
                self.directory().join("ca.pem").display()
            );
        }
        format!("redis://{login}127.0.0.1:{port}")
    }

    /// `127.0.0.1:PORT`.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port())
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
        let output = self.access.run(self.directory(), self.port(), arguments);
        let text = String::from_utf8_lossy(&output.stdout).trim_end().to_owned();
        if output.status.success() {
            return Ok(text);
        }
        Err(format!("{text}{}", String::from_utf8_lossy(&output.stderr).trim_end()))
    }

    /// The value of a field of `INFO`, as `info("role")` is `master` or `slave`.
    ///
    /// # Panics
    /// If the server does not say within a minute, or there is no such field.
    pub fn info(&self, field: &str) -> String {
        let mut info = String::new();
        // A Sentinel that gives a server another role closes its connections, this one too.
        wait_for("an answer to INFO", || self.try_cli(&["INFO"]).map(|answer| info = answer).is_ok());
        let value = info.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
        value.unwrap_or_else(|| panic!("INFO has no {field}")).trim().to_owned()
    }

    /// Makes this server a replica of `primary` and waits until it has its data.
    ///
    /// # Panics
    /// If it takes longer than a minute.
    pub fn follow(&self, primary: &Self) {
        self.cli(&["REPLICAOF", "127.0.0.1", &primary.port().to_string()]);
        wait_for("a replica to have its primary's data", || self.info("master_link_status") == "up");
    }

    /// The port of the cluster's bus; of a member.
    pub(super) fn bus_port(&self) -> u16 {
        self.bus.as_ref().expect("a member of a cluster has a bus").number()
    }

    fn answers(&self) -> bool {
        self.access.answers(self.directory(), self.port())
    }
}

/// What a client needs besides the address.
#[derive(Debug, Clone, Default)]
struct Access {
    user: Option<String>,
    tls: bool,
}

impl Access {
    fn run(&self, directory: &Path, port: u16, arguments: &[&str]) -> Output {
        let mut command = Command::new(program::find("redis-cli"));
        // `-e` makes an error reply an exit code.
        command.args(["-e", "-h", "127.0.0.1", "-p", &port.to_string()]);
        if let Some(user) = &self.user {
            command.args(["--user", user, "--pass", PASSWORD, "--no-auth-warning"]);
        }
        if self.tls {
            command.arg("--tls").arg("--cacert").arg(directory.join("ca.pem"));
        }
        command.args(arguments).env_remove("REDISCLI_AUTH").output().expect("redis-cli can be run")
    }

    /// Whether commands are carried out; a server that loads its data says no.
    fn answers(&self, directory: &Path, port: u16) -> bool {
        self.run(directory, port, &["PING"]).stdout.starts_with(b"PONG")
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Alone,
    Member,
    Sentinel,
}

/// Options of a Redis server.
#[derive(Debug)]
#[must_use = "nothing runs before start()"]
pub struct RedisBuilder {
    configuration: Vec<String>,
    access: Access,
    role: Role,
}

impl RedisBuilder {
    /// Adds a line to `redis.conf`.
    pub fn config(mut self, line: &str) -> Self {
        self.configuration.push(line.to_owned());
        self
    }

    /// Keeps an append-only file that is written before each reply: what was acknowledged survives a kill. Only a
    /// crash of the machine, of which tests have none, would lose data, as the file is not synced.
    pub fn append_only(self) -> Self {
        self.config("appendonly yes").config("appendfsync no")
    }

    /// Lets in nobody but `user`, with [`PASSWORD`]. The `default` user is switched off.
    pub fn user(mut self, user: &str) -> Self {
        self.access.user = Some(user.to_owned());
        self.config(&format!("user {user} on >{PASSWORD} ~* &* +@all")).config("user default off")
    }

    /// Speaks TLS only, with a certificate of its own authority: see [`Certificates`].
    pub fn tls(mut self) -> Self {
        self.access.tls = true;
        self
    }

    /// Refuses writes when the data takes more than `bytes`: nothing is evicted.
    pub fn max_memory(self, bytes: u64) -> Self {
        self.config(&format!("maxmemory {bytes}")).config("maxmemory-policy noeviction")
    }

    /// A member of a cluster, which has no slots yet.
    pub(super) fn member(mut self) -> Self {
        self.role = Role::Member;
        self
    }

    /// A Sentinel, which watches nothing yet.
    pub(super) fn sentinel(mut self) -> Self {
        self.role = Role::Sentinel;
        self
    }

    /// Starts the server and waits until it answers.
    ///
    /// # Panics
    /// If Redis is not installed, or does not answer within a minute; then the message holds its log.
    pub fn start(self) -> Redis {
        let path = program::find("redis-server");
        let bus = (self.role == Role::Member).then(Port::reserve);
        let process = Process::start_on_free_port("redis", |directory, port| {
            let file = directory.write("redis.conf", self.file(directory, port, bus.as_ref()));
            let mut arguments = vec![file.into_os_string()];
            arguments.extend((self.role == Role::Sentinel).then(|| "--sentinel".into()));
            let (access, path, port) = (&self.access, path.clone(), port.number());
            let program = Program { path, arguments, stop: Signal::TERM };
            let directory = directory.path().to_owned();
            (program, move || access.answers(&directory, port))
        });
        Redis { process, access: self.access, bus }
    }

    fn file(&self, directory: &Directory, port: &Port, bus: Option<&Port>) -> String {
        let mut lines = vec!["bind 127.0.0.1".to_owned()];
        if self.access.tls {
            let [authority, certificate, key] = Certificates::make().write(directory);
            lines.extend(["port 0".to_owned(), format!("tls-port {}", port.number())]);
            lines.push(format!("tls-ca-cert-file {}", authority.display()));
            lines.push(format!("tls-cert-file {}", certificate.display()));
            lines.push(format!("tls-key-file {}", key.display()));
            lines.push("tls-auth-clients no".to_owned());
        } else {
            lines.push(format!("port {}", port.number()));
        }
        if let Some(bus) = bus {
            lines.extend(["cluster-enabled yes".to_owned(), format!("cluster-port {}", bus.number())]);
        }
        if self.role != Role::Sentinel {
            lines.extend(["save \"\"".to_owned(), "repl-diskless-sync-delay 0".to_owned()]);
        }
        lines.extend(self.configuration.iter().cloned());
        lines.push(String::new());
        lines.join("\n")
    }
}
