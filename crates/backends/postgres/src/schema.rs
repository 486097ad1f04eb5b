//! The table and what belongs to it, made on start: by one instance at a time, however many start at once.

use commonhold_core::{Error, ErrorKind, Result};
use tokio_postgres::types::Type;

use crate::{
    config::PostgresConfig,
    connection::Connection,
    error,
    names::{Names, literal},
    sql::{CHANGES, LOCK},
    values::column,
};

/// The version of the table that this library makes and uses.
const VERSION: i32 = 1;

/// What the table turned out to be.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Table {
    /// It, and the server, keep what was acknowledged.
    pub(crate) durable: bool,
}

/// Makes the table or brings it up to date. A user who may not do so can use a table that somebody else has made.
///
/// # Errors
/// `Unauthorized` if this user may not make it; `InvalidConfig` if there is another table of this name;
/// `Unsupported` if a later version made it.
pub(crate) async fn migrate(
    connection: &Connection,
    config: &PostgresConfig,
    names: &Names,
) -> Result<Table> {
    let schema = Schema { connection, names, config };
    if !schema.is_current().await? {
        schema.at_once(schema.migrate()).await?;
    }
    schema.look().await
}

/// Makes the sequence of the locks' fencing tokens, if it is not there.
///
/// # Errors
/// `Unauthorized` if this user may not make it.
pub(crate) async fn make_tokens(
    connection: &Connection,
    config: &PostgresConfig,
    names: &Names,
) -> Result<()> {
    let schema = Schema { connection, names, config };
    if schema.exists("to_regclass", &names.tokens).await? {
        return Ok(());
    }
    schema.at_once(schema.create_tokens()).await
}

struct Schema<'a> {
    connection: &'a Connection,
    names: &'a Names,
    config: &'a PostgresConfig,
}

impl Schema<'_> {
    async fn run(&self, sql: &str) -> Result<()> {
        self.connection.run(sql).await
    }

    /// All of it or nothing.
    async fn at_once(&self, changes: impl Future<Output = Result<()>>) -> Result<()> {
        self.run("BEGIN").await?;
        let done = changes.await;
        self.run(if done.is_ok() { "COMMIT" } else { "ROLLBACK" }).await?;
        done
    }

    async fn is_current(&self) -> Result<bool> {
        Ok(self.version().await? == Some(VERSION) && (!self.config.watch || self.has_trigger().await?))
    }

    /// Takes the lock that other instances wait for, and makes the schema if it is not there.
    async fn begin(&self) -> Result<()> {
        self.run(&format!("SELECT pg_advisory_xact_lock({LOCK})")).await?;
        if !self.exists("to_regnamespace", &self.names.schema).await? {
            self.run(&format!("CREATE SCHEMA {}", self.names.schema)).await?;
        }
        Ok(())
    }

    /// The server writes a sequence's state to its log for 32 numbers beyond those that a session takes at once. Who
    /// gets one of those 32 waits for no log, and a crash may give the same one out again. A session that takes more
    /// than 32 at once always waits.
    async fn create_tokens(&self) -> Result<()> {
        self.begin().await?;
        self.run(&format!("CREATE SEQUENCE IF NOT EXISTS {} CACHE 64", self.names.tokens)).await
    }

    async fn migrate(&self) -> Result<()> {
        self.begin().await?;
        let versions = self.versions();
        if !self.exists("to_regclass", &versions).await? {
            self.run(&format!("CREATE TABLE {versions} (table_name text PRIMARY KEY, version int NOT NULL)"))
                .await?;
        }
        match self.version().await? {
            Some(VERSION) => {}
            Some(version) => {
                let message = format!(
                    "the table {} is of version {version}, which this version of the library does not know",
                    self.names.table
                );
                return Err(Error::new(ErrorKind::Unsupported, message));
            }
            None => self.create().await?,
        }
        if self.config.watch && !self.has_trigger().await? {
            self.create_trigger().await?;
        }
        Ok(())
    }

    async fn create(&self) -> Result<()> {
        let Names { schema, table, view, bare_table, .. } = self.names;
        if self.exists("to_regclass", table).await? {
            let message =
                format!("there is a table {table} that is not a store; choose another name with table=");
            return Err(Error::new(ErrorKind::InvalidConfig, message));
        }
        // No CHECK on the length of keys: the server would parse it anew for each statement, a tenth of a put.
        // With room in its page, a new value of a key needs no new entries in the indexes.
        let unlogged = if self.config.unlogged { "UNLOGGED" } else { "" };
        self.run(&format!(
            "CREATE {unlogged} TABLE {table} (
                 key bytea PRIMARY KEY,
                 value bytea NOT NULL,
                 expires_at timestamptz
             ) WITH (fillfactor = 80);
             CREATE INDEX ON {table} (expires_at) WHERE expires_at IS NOT NULL;"
        ))
        .await?;
        if !self.exists("to_regprocedure", &format!("{schema}.commonhold_json(bytea)")).await? {
            self.run(&functions(schema)).await?;
        }
        self.run(&format!(
            "CREATE VIEW {view} AS
                 SELECT {schema}.commonhold_text(key) AS key, {schema}.commonhold_json(value) AS json,
                        {schema}.commonhold_text(value) AS text, expires_at, key AS raw_key
                 FROM {table} WHERE expires_at IS NULL OR expires_at > clock_timestamp();
             INSERT INTO {} VALUES ({}, {VERSION})
                 ON CONFLICT (table_name) DO UPDATE SET version = excluded.version",
            self.versions(),
            literal(bare_table)
        ))
        .await
    }

    /// For each row, so that plain SQL is told of too. What only holds a lock or has expired is not.
    async fn create_trigger(&self) -> Result<()> {
        let Names { schema, table, .. } = self.names;
        self.run(&format!(
            "CREATE OR REPLACE FUNCTION {schema}.commonhold_changed() RETURNS trigger LANGUAGE plpgsql AS {};
             CREATE TRIGGER commonhold_changed AFTER INSERT OR UPDATE ON {table}
                 FOR EACH ROW WHEN (NEW.expires_at IS DISTINCT FROM '-infinity')
                 EXECUTE FUNCTION {schema}.commonhold_changed();
             CREATE TRIGGER commonhold_deleted AFTER DELETE ON {table}
                 FOR EACH ROW WHEN (OLD.expires_at IS NULL OR OLD.expires_at > clock_timestamp())
                 EXECUTE FUNCTION {schema}.commonhold_changed();
             CREATE TRIGGER commonhold_truncated AFTER TRUNCATE ON {table}
                 EXECUTE FUNCTION {schema}.commonhold_changed();",
            literal(&trigger_body())
        ))
        .await
    }

    /// The version of the table; none if there is no table of ours.
    async fn version(&self) -> Result<Option<i32>> {
        if !self.exists("to_regclass", &self.versions()).await? {
            return Ok(None);
        }
        let sql = format!("SELECT version FROM {} WHERE table_name = $1", self.versions());
        let rows = self.connection.query_once(&sql, &[(&self.names.bare_table, Type::TEXT)]).await?;
        let Some(row) = rows.first() else { return Ok(None) };
        // A table that was dropped by hand is made again.
        let is_there = self.exists("to_regclass", &self.names.table).await?;
        Ok(if is_there { Some(column(row, 0)?) } else { None })
    }

    async fn has_trigger(&self) -> Result<bool> {
        let sql = format!(
            "SELECT 1 FROM pg_trigger WHERE tgrelid = to_regclass({}) AND tgname = 'commonhold_truncated'",
            literal(&self.names.table)
        );
        Ok(!self.connection.query_once(&sql, &[]).await?.is_empty())
    }

    /// Whether `function`, one of `to_reg..`, finds this name.
    async fn exists(&self, function: &str, name: &str) -> Result<bool> {
        let sql = format!("SELECT {function}({}) IS NOT NULL", literal(name));
        match self.connection.query_once(&sql, &[]).await {
            Ok(rows) => rows.first().map_or(Ok(false), |row| column(row, 0)),
            // In a schema that this user may not look into there is nothing for it.
            Err(error) if error::code(&error).is_some() && error.kind() == ErrorKind::InvalidConfig => {
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    async fn look(&self) -> Result<Table> {
        let sql = format!(
            "SELECT relpersistence = 'p' AND current_setting('fsync') = 'on'
                 AND current_setting('synchronous_commit') <> 'off'
             FROM pg_class WHERE oid = {}::regclass",
            literal(&self.names.table)
        );
        let rows = self.connection.query_once(&sql, &[]).await?;
        Ok(Table { durable: rows.first().map_or(Ok(false), |row| column(row, 0))? })
    }

    /// The table that knows the versions of the others in its schema.
    fn versions(&self) -> String {
        format!("{}.commonhold_schema", self.names.schema)
    }
}

/// What shows bytes to people. Bytes that are no text, or text that is no JSON, are no error.
fn functions(schema: &str) -> String {
    format!(
        "CREATE FUNCTION {schema}.commonhold_text(bytes bytea) RETURNS text LANGUAGE plpgsql STABLE STRICT AS $$
             BEGIN
                 RETURN convert_from(bytes, 'UTF8');
             EXCEPTION WHEN OTHERS THEN
                 RETURN encode(bytes, 'escape');
             END
         $$;
         CREATE FUNCTION {schema}.commonhold_json(bytes bytea) RETURNS jsonb LANGUAGE plpgsql STABLE STRICT AS $$
             BEGIN
                 RETURN convert_from(bytes, 'UTF8')::jsonb;
             EXCEPTION WHEN OTHERS THEN
                 RETURN NULL;
             END
         $$;"
    )
}

/// Equal notifications of one transaction are told once, at the place of the first: the number makes them different.
fn trigger_body() -> String {
    format!(
        "DECLARE
             channel text := '{CHANGES}' || TG_RELID;
         BEGIN
             IF TG_OP = 'TRUNCATE' THEN
                 PERFORM pg_notify(channel, 'T');
                 RETURN NULL;
             END IF;
             IF TG_OP = 'DELETE' OR TG_OP = 'UPDATE' AND OLD.key <> NEW.key THEN
                 PERFORM pg_notify(channel, 'D' || encode(OLD.key, 'hex') || ' ' || random());
             END IF;
             IF TG_OP <> 'DELETE' THEN
                 PERFORM pg_notify(channel, 'P' || encode(NEW.key, 'hex') || ' ' || random());
             END IF;
             RETURN NULL;
         END"
    )
}
