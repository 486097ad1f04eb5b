//! One PostgreSQL server, alone or with streaming replicas.

use std::{
    ffi::OsString,
    path::Path,
    process::{Command, Output},
};

use rustix::process::Signal;

use super::{
    Certificates, PASSWORD,
    account::Account,
    directory::Directory,
    port::Port,
    process::{Process, Program, wait_for},
    program,
};

/// The superuser.
pub(super) const USER: &str = "commonhold";

/// The settings of every server.
const CONFIGURATION: &str = "
listen_addresses = '127.0.0.1'
unix_socket_directories = ''
max_connections = 200
# A test's server is killed, but its machine does not crash.
fsync = off
# A killed server would leave its segments in /dev/shm for ever.
dynamic_shared_memory_type = mmap
# A replica looks for its primary five times a second.
wal_retrieve_retry_interval = 200ms
";

/// A PostgreSQL server on 127.0.0.1 with a superuser `commonhold`, who is asked for [`PASSWORD`]. It survives
/// [`kill`](Self::kill) with all that it acknowledged; only a crash of the machine, of which tests have none,
/// would lose data, as it does not sync its files.
#[derive(Debug)]
pub struct Postgres {
    process: Process,
    tls: bool,
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
        PostgresBuilder { configuration: Vec::new(), tls: false }
    }

    /// `postgres://commonhold:PASSWORD@127.0.0.1:PORT/postgres`, or with TLS, `..?sslmode=verify-full&sslrootcert=FILE`.
    pub fn url(&self) -> String {
        self.url_at(self.port())
    }

    /// The URL of this server at another port, that of a proxy before it.
    pub fn url_at(&self, port: u16) -> String {
        url(port, self.tls.then_some(self.directory()))
    }

    /// Runs SQL through `psql` and returns what it prints: one row a line, columns separated by `|`.
    ///
    /// # Panics
    /// If the server cannot be reached or answers with an error.
    pub fn sql(&self, statements: &str) -> String {
        self.try_sql(statements).unwrap_or_else(|error| panic!("psql {statements:?}: {error}"))
    }

    /// Runs SQL through `psql` and returns what it prints: one row a line, columns separated by `|`.
    ///
    /// # Errors
    /// The error that the server answers with, or why it could not be reached.
    pub fn try_sql(&self, statements: &str) -> Result<String, String> {
        let output = psql(&self.url(), statements);
        let text = |bytes| String::from_utf8_lossy(bytes).trim_end().to_owned();
        if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
    }

    /// Starts a streaming replica of this server, which reads only, and waits until it accepts queries.
    ///
    /// # Panics
    /// If it cannot be made or does not answer within a minute.
    #[must_use = "a replica that is dropped ends"]
    pub fn replica(&self) -> Self {
        let process = Process::start_on_free_port("postgres-replica", |directory, port| {
            let data = directory.path().join("data");
            let mut backup = Account::unprivileged().command(&program::find("pg_basebackup"));
            backup.args(["--no-sync", "--write-recovery-conf", "--checkpoint=fast", "--dbname", &self.url()]);
            run(backup.arg("--pgdata").arg(&data).current_dir(directory.path()));
            configure(directory, &format!("port = {}\n", port.number()));
            (server(directory), answers(self.url_at(port.number())))
        });
        Self { process, tls: self.tls }
    }

    /// Whether this server is a replica, which reads only.
    pub fn is_replica(&self) -> bool {
        self.sql("SELECT pg_is_in_recovery()") == "t"
    }

    /// Lets a replica fall behind: it goes on receiving what its primary writes and does not show it.
    ///
    /// # Panics
    /// If this is no replica.
    pub fn pause_replay(&self) {
        self.sql("SELECT pg_wal_replay_pause()");
        // It pauses at the next record only, or at once when there is none.
        wait_for("a replica to pause", || self.sql("SELECT pg_get_wal_replay_pause_state()") == "paused");
    }

    /// Lets a replica catch up after [`pause_replay`](Self::pause_replay).
    ///
    /// # Panics
    /// If this is no replica.
    pub fn resume_replay(&self) {
        self.sql("SELECT pg_wal_replay_resume()");
    }

    /// Waits until a replica shows all that `primary` has written up to now.
    ///
    /// # Panics
    /// If it takes longer than a minute.
    pub fn wait_for_replay_of(&self, primary: &Self) {
        let written = primary.sql("SELECT pg_current_wal_lsn()");
        let shows = format!("SELECT pg_last_wal_replay_lsn() >= '{written}'");
        wait_for("a replica to catch up", || self.sql(&shows) == "t");
    }

    /// Makes a replica a primary, with what it has received, and waits until it takes writes.
    ///
    /// # Panics
    /// If this is no replica or takes longer than a minute.
    pub fn promote(&self) {
        assert_eq!(
            self.sql("SELECT pg_promote(true, 60)"),
            "t",
            "the replica is not promoted:\n{}",
            self.log()
        );
    }

    fn answers(&self) -> bool {
        answers(self.url())()
    }
}

/// Options of a PostgreSQL server.
#[derive(Debug)]
#[must_use = "nothing runs before start()"]
pub struct PostgresBuilder {
    configuration: Vec<String>,
    tls: bool,
}

impl PostgresBuilder {
    /// Adds a line to `postgresql.conf`.
    pub fn config(mut self, line: &str) -> Self {
        self.configuration.push(line.to_owned());
        self
    }

    /// Takes connections over TLS only, with a certificate of its own authority: see [`Certificates`].
    pub fn tls(mut self) -> Self {
        self.tls = true;
        self
    }

    /// Starts the server and waits until it accepts queries.
    ///
    /// # Panics
    /// If PostgreSQL is not installed, or does not answer within a minute; then the message holds its log.
    pub fn start(self) -> Postgres {
        let process = Process::start_on_free_port("postgres", |directory, port| {
            initialize(directory, self.tls);
            configure(directory, &self.file(directory, port));
            let url = url(port.number(), self.tls.then_some(directory.path()));
            (server(directory), answers(url))
        });
        Postgres { process, tls: self.tls }
    }

    fn file(&self, directory: &Directory, port: &Port) -> String {
        let mut lines = vec![CONFIGURATION.to_owned(), format!("port = {}", port.number())];
        if self.tls {
            let [_, certificate, key] = Certificates::make().write(directory);
            lines.push("ssl = on".to_owned());
            lines.push(format!("ssl_cert_file = '{}'", certificate.display()));
            lines.push(format!("ssl_key_file = '{}'", key.display()));
        }
        lines.extend(self.configuration.iter().cloned());
        lines.push(String::new());
        lines.join("\n")
    }
}

fn server(directory: &Directory) -> Program {
    let arguments = vec![OsString::from("-D"), directory.path().join("data").into_os_string()];
    // An interrupt ends the connections; SIGTERM would wait until the clients end them.
    Program { path: program::find("postgres"), arguments, stop: Signal::INT }
}

/// Makes a database cluster in `data`.
fn initialize(directory: &Directory, tls: bool) {
    let password = directory.write("password", PASSWORD);
    let mut initdb = Account::unprivileged().command(&program::find("initdb"));
    initdb.args(["--no-sync", "--auth=scram-sha-256", "--locale=C", "--encoding=UTF8", "--username", USER]);
    initdb.arg("--pgdata").arg(directory.path().join("data")).arg("--pwfile").arg(password);
    run(initdb.current_dir(directory.path()));
    let connection = if tls { "hostssl" } else { "host" };
    let lines = ["all", "replication"]
        .map(|database| format!("{connection} {database} all 127.0.0.1/32 scram-sha-256\n"));
    directory.write("data/pg_hba.conf", lines.concat());
}

/// Adds lines to `postgresql.conf`; of two for one setting the later holds.
fn configure(directory: &Directory, lines: &str) {
    let path = directory.path().join("data/postgresql.conf");
    let mut file = std::fs::read_to_string(path).expect("the database cluster has a postgresql.conf");
    file.push_str(lines);
    directory.write("data/postgresql.conf", file);
}

/// `tls` is the directory with the authority's certificate.
pub(super) fn url(port: u16, tls: Option<&Path>) -> String {
    let tls = tls.map_or_else(String::new, |directory| {
        format!("?sslmode=verify-full&sslrootcert={}", directory.join("ca.pem").display())
    });
    format!("postgres://{USER}:{PASSWORD}@127.0.0.1:{port}/postgres{tls}")
}

pub(super) fn answers(url: String) -> impl Fn() -> bool {
    move || psql(&url, "SELECT 1").status.success()
}

fn psql(url: &str, statements: &str) -> Output {
    let mut psql = Command::new(program::find("psql"));
    psql.args(["--no-psqlrc", "--quiet", "--tuples-only", "--no-align", "--set=ON_ERROR_STOP=1"]);
    psql.args(["--command", statements, "--dbname", url]);
    // Variables of its own could point it elsewhere.
    psql.env_clear().current_dir("/").output().expect("psql can be run")
}

fn run(command: &mut Command) {
    let output = command.output().unwrap_or_else(|error| panic!("cannot run {command:?}: {error}"));
    let (log, error) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{command:?} failed:\n{log}\n{error}");
}
