//! Tables of the tests' own, dropped at their end.

use commonhold_core::url::StoreUrl;
use commonhold_postgres::PostgresConfig;
use commonhold_testkit::servers::{shared::postgres_url, unique};
use tokio_postgres::NoTls;

/// A table on the shared server that goes with this value.
pub(crate) struct Table {
    pub(crate) name: String,
}

impl Table {
    pub(crate) fn new() -> Self {
        Self { name: unique("t") }
    }

    /// The store in this table.
    pub(crate) fn config(&self) -> PostgresConfig {
        config(postgres_url()).table(&self.name)
    }
}

/// The server that a URL names.
pub(crate) fn config(url: &str) -> PostgresConfig {
    PostgresConfig::from_url(StoreUrl::parse(url).unwrap()).unwrap()
}

/// Runs SQL beside the store, each row as text, the columns separated by `|`.
pub(crate) async fn sql(url: &str, statements: &str) -> Vec<String> {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await.unwrap();
    let connection = tokio::spawn(connection);
    let answers = client.simple_query(statements).await.unwrap();
    drop(client);
    connection.await.unwrap().unwrap();
    let text = |message: &tokio_postgres::SimpleQueryMessage| match message {
        tokio_postgres::SimpleQueryMessage::Row(row) => {
            let columns = (0..row.len()).map(|i| row.get(i).unwrap_or("NULL").to_owned());
            Some(columns.collect::<Vec<_>>().join("|"))
        }
        _ => None,
    };
    answers.iter().filter_map(text).collect()
}

impl Drop for Table {
    fn drop(&mut self) {
        let name = self.name.clone();
        let drop_table = move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let (client, connection) = tokio_postgres::connect(postgres_url(), NoTls).await?;
                tokio::spawn(connection);
                let statements = format!(
                    "SET lock_timeout = '10s'; DROP TABLE IF EXISTS {name} CASCADE; \
                     DELETE FROM commonhold_schema WHERE table_name = '{name}'"
                );
                client.batch_execute(&format!("DROP SEQUENCE IF EXISTS {name}_lock_tokens")).await?;
                client.batch_execute(&statements).await
            })
        };
        // A thread of its own: this one may have a runtime.
        if let Ok(Err(error)) = std::thread::spawn(drop_table).join() {
            eprintln!("the table {} stays: {error}", self.name);
        }
    }
}
