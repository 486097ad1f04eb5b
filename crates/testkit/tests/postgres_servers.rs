//! PostgreSQL with TLS, with a replica and behind PgBouncer.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    missing_docs,
    reason = "test code"
)]

use std::process::Command;

use commonhold_testkit::servers::{PgBouncer, Postgres};

#[test]
fn a_server_with_tls_refuses_to_speak_without() {
    let postgres = Postgres::builder().tls().start();
    assert_eq!(postgres.sql("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()"), "t");
    let plain = postgres.url().replace("verify-full", "disable");
    let refused = Command::new("psql").args(["-c", "SELECT 1", &plain]).output().unwrap();
    assert!(String::from_utf8_lossy(&refused.stderr).contains("no encryption"), "{refused:?}");
}

#[test]
fn a_replica_falls_behind_catches_up_and_is_promoted() {
    let primary = Postgres::start();
    primary.sql("CREATE TABLE kept (id int); INSERT INTO kept VALUES (1)");
    let replica = primary.replica();
    assert!(replica.is_replica() && !primary.is_replica());
    assert_eq!(replica.sql("SELECT id FROM kept"), "1");
    assert!(replica.try_sql("INSERT INTO kept VALUES (2)").unwrap_err().contains("read-only"));

    replica.pause_replay();
    primary.sql("INSERT INTO kept VALUES (2)");
    assert_eq!(replica.sql("SELECT count(*) FROM kept"), "1");
    replica.resume_replay();
    replica.wait_for_replay_of(&primary);
    assert_eq!(replica.sql("SELECT count(*) FROM kept"), "2");

    primary.restart();
    primary.sql("INSERT INTO kept VALUES (3)");
    replica.wait_for_replay_of(&primary);

    primary.kill();
    replica.promote();
    replica.sql("INSERT INTO kept VALUES (4)");
    assert_eq!(replica.sql("SELECT count(*) FROM kept"), "4");
}

#[test]
fn pgbouncer_gives_a_transaction_a_connection_and_takes_it_back() {
    let postgres = Postgres::start();
    let bouncer = PgBouncer::start(&postgres);
    let psql = |statements: [&str; 2]| {
        let run = Command::new("psql")
            .args(["-At", &bouncer.url(), "-c", statements[0], "-c", statements[1]])
            .output();
        String::from_utf8_lossy(&run.unwrap().stdout).into_owned()
    };
    assert_eq!(psql(["SELECT 1", "SELECT 2"]), "1\n2\n");
    postgres.restart();
    bouncer.restart();
    assert_eq!(psql(["SELECT 1", "SELECT 2"]), "1\n2\n");
}
