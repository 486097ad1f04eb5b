//! The PostgreSQL backend passes the conformance kit.

use std::sync::Arc;

use crate::common::Table;
use commonhold_postgres::{PostgresBackend, PostgresConfig};
use commonhold_testkit::{MAX_VALUE_BYTES, Subject, conformance};

/// All but two: a scan does not see one moment, for which it would have to hold a connection.
const WATCHED: usize = 152;
/// Without the trigger nothing can be watched.
const UNWATCHED: usize = WATCHED - 12;

async fn subject(configure: impl FnOnce(PostgresConfig) -> PostgresConfig) -> Subject {
    let table = Table::new();
    let config = configure(table.config().max_value_bytes(MAX_VALUE_BYTES));
    let backend = PostgresBackend::open(config).await.unwrap();
    Subject::new(Arc::new(backend)).keeping(table)
}

conformance!(watched, WATCHED, || subject(|config| config.watch(true)));
conformance!(plain, UNWATCHED, || subject(|config| config));
