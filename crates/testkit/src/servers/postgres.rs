//! One PostgreSQL server.

use std::{
    ffi::OsString,
    path::Path,
    process::{Command, Output},
};

use rustix::process::Signal;

use super::{
    PASSWORD,
    account::Account,
    process::{Directory, Process, Program},
    program,
};

/// The superuser.
pub(super) const USER: &str = "commonhold";

/// A PostgreSQL server on 127.0.0.1 with a superuser `commonhold`, who is asked for [`PASSWORD`]. It survives [`kill`](Self::kill) with all that it acknowledged; only a crash of the machine, of
/// which tests have none, would lose data, as it does not sync its files.
#[derive(Debug)]
pub struct Postgres {
    process: Process,
}

control!(Postgres);

impl Postgres {
    /// Starts a server and waits until it accepts queries.
    ///
    /// # Panics
    /// If PostgreSQL is not installed or does not answer within a minute.
    pub fn start() -> Self {
        Self::builder().start()
    }

    /// A server with more to it.
    pub fn builder() -> PostgresBuilder {
        PostgresBuilder { configuration: Vec::new() }
    }

    /// `postgres://USER:PASSWORD@127.0.0.1:PORT/postgres`.
    pub fn url(&self) -> String {
        url(self.port())
    }

    /// Runs SQL through `psql` and returns what it prints: one row a line, columns separated by `|`.
    ///
    /// # Panics
    /// If the server cannot be reached or answers with an error.
    pub fn sql(&self, statements: &str) -> String {
        let output = psql(self.port(), statements);
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "psql {statements:?}: {error}");
        String::from_utf8_lossy(&output.stdout).trim_end().to_owned()
    }

    fn answers(&self) -> bool {
        answers(self.port())
    }
}

/// Options of a PostgreSQL server.
#[derive(Debug)]
#[must_use = "nothing runs before start()"]
pub struct PostgresBuilder {
    configuration: Vec<String>,
}

impl PostgresBuilder {
    /// Adds a line to `postgresql.conf`.
    pub fn config(mut self, line: &str) -> Self {
        self.configuration.push(line.to_owned());
        self
    }

    /// Starts the server and waits until it accepts queries.
    ///
    /// # Panics
    /// If PostgreSQL is not installed, or does not answer within a minute; then the message holds its log.
    pub fn start(self) -> Postgres {
        let process = Process::start_on_free_port("postgres", |directory, port| {
            let number = port.number();
            initialize(directory, &self.file(number));
            (server(directory), move || answers(number))
        });
        Postgres { process }
    }

    fn file(&self, port: u16) -> String {
        let mut lines = vec![CONFIGURATION.to_owned(), format!("port = {port}")];
        lines.extend(self.configuration.iter().cloned());
        lines.push(String::new());
        lines.join("\n")
    }
}

/// The settings of every server.
const CONFIGURATION: &str = "
listen_addresses = '127.0.0.1'
unix_socket_directories = ''
max_connections = 200
fsync = off
# A killed server would leave its segments in /dev/shm for ever.
dynamic_shared_memory_type = mmap
";

pub(super) fn server(directory: &Directory) -> Program {
    let arguments = vec![OsString::from("-D"), directory.path().join("data").into_os_string()];
    // An interrupt ends the connections; SIGTERM would wait until the clients end them.
    Program { path: program::find("postgres"), arguments, stop: Signal::INT }
}

/// Makes a database cluster in `data`, with `configuration` behind the defaults.
fn initialize(directory: &Directory, configuration: &str) {
    let password = directory.write("password", PASSWORD);
    let data = directory.path().join("data");
    let mut initdb = Account::unprivileged().command(&program::find("initdb"));
    initdb.args(["--no-sync", "--auth=scram-sha-256", "--locale=C", "--encoding=UTF8", "--username", USER]);
    initdb.arg("--pgdata").arg(&data).arg("--pwfile").arg(password);
    run(initdb.current_dir(directory.path()));
    let mut file =
        std::fs::read_to_string(data.join("postgresql.conf")).expect("initdb writes postgresql.conf");
    file.push_str(configuration);
    directory.write("data/postgresql.conf", file);
}

pub(super) fn url(port: u16) -> String {
    format!("postgres://{USER}:{PASSWORD}@127.0.0.1:{port}/postgres")
}

fn answers(port: u16) -> bool {
    psql(port, "SELECT 1").status.success()
}

fn psql(port: u16, statements: &str) -> Output {
    let mut psql = Command::new(program::find("psql"));
    psql.args(["--no-psqlrc", "--quiet", "--tuples-only", "--no-align", "--set=ON_ERROR_STOP=1"]);
    psql.args(["--command", statements, "--dbname", &url(port)]);
    // Its own variables could point it elsewhere.
    psql.env_clear().current_dir(Path::new("/")).output().expect("psql can be run")
}

fn run(command: &mut Command) {
    let output = command.output().unwrap_or_else(|error| panic!("cannot run {command:?}: {error}"));
    let (log, error) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{command:?} failed:\n{log}\n{error}");
}
