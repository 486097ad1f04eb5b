//! PgBouncer before a PostgreSQL server.

use rustix::process::Signal;

use super::{
    PASSWORD, Postgres,
    postgres::{USER, answers, url},
    process::{Process, Program},
    program,
};

/// A PgBouncer on 127.0.0.1 in transaction mode: each transaction may run on another connection of the server.
#[derive(Debug)]
pub struct PgBouncer {
    process: Process,
}

control!(PgBouncer);

impl PgBouncer {
    /// Starts one before `postgres`, with at most 20 connections to it, and waits until it passes queries on.
    ///
    /// # Panics
    /// If PgBouncer is not installed or does not answer within a minute.
    pub fn start(postgres: &Postgres) -> Self {
        let path = program::find("pgbouncer");
        let server = postgres.port();
        let process = Process::start_on_free_port("pgbouncer", |directory, port| {
            let users = directory.write("users", format!("\"{USER}\" \"{PASSWORD}\"\n"));
            let lines = [
                "[databases]".to_owned(),
                format!("* = host=127.0.0.1 port={server}"),
                "[pgbouncer]".to_owned(),
                "listen_addr = 127.0.0.1".to_owned(),
                format!("listen_port = {}", port.number()),
                "unix_socket_dir =".to_owned(),
                "auth_type = scram-sha-256".to_owned(),
                format!("auth_file = {}", users.display()),
                "pool_mode = transaction".to_owned(),
                "max_client_conn = 500".to_owned(),
                "default_pool_size = 20".to_owned(),
                // A server that was away is tried again soon.
                "server_login_retry = 1".to_owned(),
            ];
            let file = directory.write("pgbouncer.ini", lines.join("\n") + "\n");
            let arguments = vec![file.into_os_string()];
            (Program { path: path.clone(), arguments, stop: Signal::TERM }, answers(url(port.number(), None)))
        });
        Self { process }
    }

    /// `postgres://commonhold:PASSWORD@127.0.0.1:PORT/postgres`.
    pub fn url(&self) -> String {
        url(self.port(), None)
    }

    fn answers(&self) -> bool {
        answers(self.url())()
    }
}
