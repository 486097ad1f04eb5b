//! Ways to the server: TLS, pgbouncer, several hosts.

use std::sync::Arc;

use crate::common::config;
use commonhold_core::{ErrorKind, Retry, Store};
use commonhold_postgres::{PostgresBackend, PostgresConfig, TlsMode};
use commonhold_testkit::{
    MAX_VALUE_BYTES, Subject, run,
    servers::{PgBouncer, Postgres, unique},
};

async fn works(config: PostgresConfig) {
    let store = Store::new(PostgresBackend::open(config).await.unwrap());
    store.put("k", "v").await.unwrap();
    assert_eq!(store.get("k").await.unwrap().unwrap(), "v");
}

async fn fails(config: PostgresConfig) -> ErrorKind {
    let error = PostgresBackend::open(config).await.unwrap_err();
    assert!(!format!("{error} {error:?}").contains(commonhold_testkit::servers::PASSWORD), "{error:?}");
    eprintln!("{error}");
    error.kind()
}

#[tokio::test]
async fn tls_is_verified_as_far_as_is_asked() {
    let server = Postgres::builder().tls().start();
    let stranger = Postgres::builder().tls().start();
    let with = |mode| config(&server.url()).tls(mode);
    let stranger_authority = stranger.directory().join("ca.pem");
    for mode in [TlsMode::Require, TlsMode::VerifyCa, TlsMode::VerifyFull] {
        works(with(mode)).await;
        works(with(mode).tls_server_name("commonhold.test")).await;
        // libpq, too, verifies the chain for `require` where an authority is named.
        assert_eq!(fails(with(mode).tls_authority(&stranger_authority)).await, ErrorKind::InvalidConfig);
    }
    works(with(TlsMode::VerifyCa).tls_server_name("elsewhere.test")).await;
    assert_eq!(
        fails(with(TlsMode::VerifyFull).tls_server_name("elsewhere.test")).await,
        ErrorKind::InvalidConfig
    );
    works(with(TlsMode::Prefer)).await;
    assert_eq!(fails(with(TlsMode::Disable)).await, ErrorKind::Unauthorized);
    assert_eq!(
        fails(with(TlsMode::VerifyFull).tls_authority("/nowhere.pem")).await,
        ErrorKind::InvalidConfig
    );
}

#[tokio::test]
async fn a_server_without_tls_is_refused_where_tls_is_asked_for() {
    let server = Postgres::start();
    works(config(&server.url()).tls(TlsMode::Prefer)).await;
    for mode in [TlsMode::Require, TlsMode::VerifyFull] {
        assert_eq!(fails(config(&server.url()).tls(mode)).await, ErrorKind::InvalidConfig);
    }
}

/// Cases of the conformance kit that use every statement there is.
const CASES: [&str; 14] = [
    "a_value_that_was_put_is_read_back",
    "get_many_takes_ten_thousand_keys",
    "put_if_absent_writes_only_once",
    "compare_and_swap_swaps_only_the_expected_value",
    "a_conditional_delete_deletes_only_the_expected_value",
    "put_that_keeps_the_ttl_keeps_it",
    "housekeeping_removes_only_what_has_expired",
    "an_ordered_scan_begins_after_a_key",
    "count_counts_the_entries_under_a_prefix",
    "clear_deletes_what_is_under_the_prefix_and_says_how_much",
    "write_skew_is_prevented",
    "increments_that_are_dropped_count_once_or_not_at_all",
    "a_store_that_answers_is_healthy_and_gives_figures",
    "a_dropped_batch_is_written_as_a_whole_or_not_at_all",
];

#[test]
fn behind_pgbouncer_in_transaction_mode_everything_works_that_needs_no_session() {
    let server = Postgres::start();
    let bouncer = PgBouncer::start(&server);
    for case in CASES {
        let config =
            config(&bouncer.url()).pgbouncer(true).table(unique("t")).max_value_bytes(MAX_VALUE_BYTES);
        let outcome =
            run(
                case,
                move || async move { Subject::new(Arc::new(PostgresBackend::open(config).await.unwrap())) },
            );
        assert_eq!(outcome, commonhold_testkit::Outcome::Checked, "{case}");
    }
    let config = config(&bouncer.url()).pgbouncer(true);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let store = Store::new(PostgresBackend::open(config).await.unwrap());
        assert!(!store.capabilities().watch && !store.capabilities().publish);
        assert_eq!(store.publish("c", "m").await.unwrap_err().kind(), ErrorKind::Unsupported);
        assert_eq!(store.subscribe("c").await.map(drop).unwrap_err().kind(), ErrorKind::Unsupported);
        assert_eq!(store.watch("").await.map(drop).unwrap_err().kind(), ErrorKind::Unsupported);
        store.batch_put((0..5_000).map(|i| (format!("k{i}"), "v"))).await.unwrap();
        assert_eq!(store.count("").await.unwrap(), 5_000);
    });
}

#[tokio::test]
async fn of_several_hosts_the_one_that_takes_writes_is_found_again_when_it_moves() {
    let primary = Postgres::start();
    let replica = primary.replica();
    let both = config(&replica.url()).host("127.0.0.1", primary.port());
    let store = Store::new(PostgresBackend::open(both).await.unwrap());
    store.put("k", "before").await.unwrap();
    replica.wait_for_replay_of(&primary);
    primary.stop();
    let error = store.put("k", "nobody is there").await.unwrap_err();
    assert_ne!(error.retry(), Retry::Never, "{error}");
    replica.promote();
    commonhold_testkit::eventually(
        std::time::Duration::from_secs(30),
        "writes go to the new primary",
        async || store.put("k", "after").await.is_ok(),
    )
    .await;
    assert_eq!(store.get("k").await.unwrap().unwrap(), "after");
    assert_eq!(replica.sql("SELECT text FROM commonhold_readable"), "after");
}
