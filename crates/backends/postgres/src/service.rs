//! How the server is, what the table takes, and housekeeping.

use std::{
    sync::{Arc, Weak},
    time::{Duration, Instant},
};

use commonhold_core::{Error, ErrorKind, Health, Maintenance, Result, Stats, Timestamp};
use tokio_postgres::Row;

use crate::{
    connect::Use,
    shared::Shared,
    sql::Sql,
    values::{Time, column},
};

/// How many expired rows are removed in one statement.
const SWEEP_ROWS: i64 = 1_000;
/// From so many dead rows on, and more of them than of others, vacuuming is behind.
const DEAD_ROWS: i64 = 10_000;
/// A replica that is so many seconds behind is worth a word.
const LAG_SECONDS: f64 = 10.0;

impl Shared {
    pub(crate) async fn health(&self) -> Result<Health> {
        let session = self.primary.pool.get().await?;
        let asked = Instant::now();
        let rows = session.query(Sql::Health, &[]).await?;
        let round_trip = asked.elapsed();
        let row = rows.first().ok_or_else(no_row)?;
        let status = self.primary.pool.status();
        let in_recovery: bool = column(row, 2)?;
        let (used, allowed): (i64, i64) = (column(row, 6)?, column(row, 7)?);
        let (replicas, lag): (i64, Option<f64>) = (column(row, 10)?, column(row, 11)?);
        let mut details = vec![
            ("role".to_owned(), if in_recovery { "replica" } else { "primary" }.to_owned()),
            ("table".to_owned(), self.names.table.clone()),
            ("round trip".to_owned(), format!("{round_trip:.0?}")),
            ("connections".to_owned(), format!("{used} of {allowed}")),
            (
                "pool".to_owned(),
                format!("{} of {} in use", status.size - status.available.min(status.size), status.max_size),
            ),
            ("replicas".to_owned(), replicas.to_string()),
        ];
        if let Some(lag) = lag {
            details
                .push(("replica lag".to_owned(), format!("{:.0?}", Duration::from_secs_f64(lag.max(0.0)))));
        }
        details.extend(self.replicas.details());
        let mut warnings = warnings(row)?;
        warnings.extend(self.replicas.warnings());
        Ok(Health {
            version: column(row, 0)?,
            now: Some(Timestamp::from(column::<Time>(row, 1)?)),
            details,
            warnings,
        })
    }

    pub(crate) async fn stats(&self) -> Result<Stats> {
        let rows = self.query_alone(Sql::Stats, &[]).await?;
        let row = rows.first().ok_or_else(no_row)?;
        let figure = |index| column::<i64>(row, index).map(i64::unsigned_abs);
        let status = self.primary.pool.status();
        let mut stats = Stats::default();
        stats.disk_bytes = Some(figure(1)?);
        stats.details = vec![
            ("database bytes", figure(0)?),
            ("table bytes", figure(2)?),
            ("index bytes", figure(3)?),
            ("live rows", figure(4)?),
            ("dead rows", figure(5)?),
            ("pool connections", status.size as u64),
            ("pool connections idle", status.available as u64),
            ("pool connections at most", status.max_size as u64),
            ("pool callers waiting", status.waiting as u64),
        ];
        Ok(stats)
    }

    pub(crate) async fn maintain(&self, task: Maintenance) -> Result<()> {
        let table = &self.names.table;
        match task {
            Maintenance::Sweep => self.sweep().await.map(drop),
            Maintenance::Compact => self.run_patiently(&format!("VACUUM {table}")).await,
            Maintenance::Analyze => self.run_patiently(&format!("ANALYZE {table}")).await,
            // A commit that waits for the disk takes along all that were made before it.
            Maintenance::Flush => {
                self.run_patiently(
                    "BEGIN; SET LOCAL synchronous_commit = on; SELECT pg_current_xact_id(); COMMIT",
                )
                .await
            }
            _ => Err(Error::new(ErrorKind::Unsupported, format!("PostgreSQL does not {task:?}"))),
        }
    }

    async fn run_patiently(&self, sql: &str) -> Result<()> {
        self.primary.connector.connect(Use::Patient).await?.run(sql).await
    }

    /// Removes expired rows, a few at a time, and says how many. None if another instance is at it.
    pub(crate) async fn sweep(&self) -> Result<u64> {
        let mut swept = 0;
        loop {
            let rows = self.execute_alone(Sql::Sweep, &[&SWEEP_ROWS]).await?;
            swept += rows;
            if rows < SWEEP_ROWS.unsigned_abs() {
                return Ok(swept);
            }
        }
    }
}

/// Sweeps every so often until the store is closed.
pub(crate) fn sweep_in_background(shared: &Arc<Shared>, interval: Duration) {
    let shared: Weak<Shared> = Arc::downgrade(shared);
    tokio::spawn(async move {
        loop {
            tokio::time::sleep(interval).await;
            let Some(shared) = shared.upgrade() else { return };
            match shared.sweep().await {
                Ok(rows) => tracing::trace!(rows, "removed expired rows"),
                Err(error) => tracing::debug!(%error, "cannot remove expired rows"),
            }
        }
    });
}

/// What will hurt, each with what to do about it.
fn warnings(row: &Row) -> Result<Vec<String>> {
    let (fsync, synchronous): (bool, bool) = (column(row, 3)?, column(row, 4)?);
    let unlogged: bool = column::<Option<bool>>(row, 5)?.unwrap_or(false);
    let (used, allowed): (i64, i64) = (column(row, 6)?, column(row, 7)?);
    let (live, dead): (i64, i64) = (column(row, 8)?, column(row, 9)?);
    let lag = column::<Option<f64>>(row, 11)?.filter(|&lag| lag > LAG_SECONDS);
    let read_only: bool = column(row, 12)?;
    let table = [
        (!fsync, "fsync is off: a crash of the server's machine can destroy the database; set fsync = on".to_owned()),
        (
            !synchronous,
            "synchronous_commit is off: a crash of the server takes back the last writes; set synchronous_commit = on"
                .to_owned(),
        ),
        (
            unlogged,
            "the table is unlogged: a crash of the server empties it; ALTER TABLE .. SET LOGGED keeps it".to_owned(),
        ),
        (
            used * 10 >= allowed * 9,
            format!("{used} of {allowed} connections are in use; lower pool= or raise max_connections"),
        ),
        (
            dead > DEAD_ROWS && dead > live,
            format!("{dead} dead rows beside {live} live ones: vacuuming is behind; let autovacuum do more"),
        ),
        (lag.is_some(), format!("a replica is {:.0} s behind", lag.unwrap_or_default())),
        (read_only, "this server takes no writes; name the primary".to_owned()),
    ];
    Ok(table.into_iter().filter(|(hurts, _)| *hurts).map(|(_, text)| text).collect())
}

fn no_row() -> Error {
    Error::new(ErrorKind::Internal, "no row came")
}
