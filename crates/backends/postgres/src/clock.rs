//! The server's clock, as transactions see it between their statements.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use commonhold_core::{Result, Timestamp};

use crate::{
    connection::Connection,
    shared::Shared,
    sql::Sql,
    values::{self, Time},
};

/// A look at the clock is worth this long: in that time clocks drift apart by less than the resolution.
const FRESH: Duration = Duration::from_secs(10);

/// A look that took longer is soon repeated: the next may be a better one.
const PRECISE: Duration = Duration::from_millis(1);
const FRESH_IF_IMPRECISE: Duration = Duration::from_millis(100);

/// The server's time when it was asked for, carried on by this machine's clock.
///
/// It counts from before the question on: it may be early by the time that the question took, and never late, so
/// nothing expires too soon.
#[derive(Debug, Default)]
pub(crate) struct ServerClock(Mutex<Option<Look>>);

#[derive(Debug, Clone, Copy)]
struct Look {
    server: Timestamp,
    asked: Instant,
    took: Duration,
}

impl ServerClock {
    /// Remembers an answer that says what time it is, if it took less long than the last or that is old.
    pub(crate) fn looked(&self, server: Timestamp, asked: Instant) {
        let look = Look { server, asked, took: asked.elapsed() };
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if last.is_none_or(|last| look.took <= last.took || last.asked.elapsed() > FRESH / 2) {
            *last = Some(look);
        }
    }

    pub(crate) fn is_fresh(&self) -> bool {
        self.last().is_some_and(|look| {
            let age = look.asked.elapsed();
            age < FRESH && (look.took < PRECISE || age < FRESH_IF_IMPRECISE)
        })
    }

    pub(crate) fn now(&self) -> Timestamp {
        self.last().map_or(Timestamp::default(), |look| look.server.saturating_add(look.asked.elapsed()))
    }

    fn last(&self) -> Option<Look> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shared {
    pub(crate) async fn look_at_the_clock(&self, connection: &Connection) -> Result<()> {
        connection.prepare(&[Sql::Now]).await?;
        let asked = Instant::now();
        let rows = connection.query(Sql::Now, &[]).await?;
        if let Some(row) = rows.first() {
            self.clock.looked(values::column::<Time>(row, 0)?.into(), asked);
        }
        Ok(())
    }
}
