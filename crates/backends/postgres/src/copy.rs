//! Big loads by COPY: into a table of the transaction's own, and from there in one statement.

use std::pin::pin;

use bytes::{BufMut as _, Bytes, BytesMut};
use commonhold_core::Result;
use futures_util::SinkExt as _;

use crate::{
    gathered::PlainPut,
    locked::nothing_written,
    shared::{Attempts, Shared},
    sql::{OVERWRITE, expiry},
};

/// For fewer rows arrays are as fast, and one statement. Of arrays both sides hold all rows in memory several times.
pub(crate) const MIN_ROWS: usize = 10_000;
/// How much is sent at a time.
const CHUNK_BYTES: usize = 256 * 1024;
/// What a binary COPY begins with: a signature, no flags, no further header.
const HEADER: &[u8] = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";

impl Shared {
    /// Puts values under different keys, given in order, in one step.
    pub(crate) async fn copy_in(&self, puts: &[&PlainPut]) -> Result<()> {
        let mut attempts = Attempts::default();
        loop {
            let copied = self.copy_in_once(puts).await;
            if !attempts.again(&copied) {
                return copied;
            }
        }
    }

    async fn copy_in_once(&self, puts: &[&PlainPut]) -> Result<()> {
        let mut session = self.primary.pool.get().await?;
        session.begun();
        let begin = "BEGIN ISOLATION LEVEL READ COMMITTED; \
             CREATE TEMPORARY TABLE commonhold_load (key bytea, value bytea, ttl bigint) ON COMMIT DROP";
        session.run(begin).await.map_err(nothing_written)?;
        let copied = session.within(false, send(session.client(), puts)).await;
        copied.map_err(nothing_written)?;
        session.run(&self.load).await?;
        session.ended();
        Ok(())
    }

    /// Moves what was copied into the table, and commits.
    pub(crate) fn load_statement(table: &str) -> String {
        format!(
            "INSERT INTO {table} AS t (key, value, expires_at) \
             SELECT key, value, {} FROM pg_temp.commonhold_load {OVERWRITE}; COMMIT",
            expiry("ttl")
        )
    }
}

async fn send(client: &tokio_postgres::Client, puts: &[&PlainPut]) -> Result<u64, tokio_postgres::Error> {
    let sink = client.copy_in::<_, Bytes>("COPY pg_temp.commonhold_load FROM STDIN (FORMAT binary)").await?;
    let mut sink = pin!(sink);
    let mut chunk = BytesMut::with_capacity(CHUNK_BYTES);
    chunk.put_slice(HEADER);
    for put in puts {
        chunk.put_i16(3);
        field(&mut chunk, put.key.as_bytes());
        field(&mut chunk, &put.value);
        match put.ttl_micros {
            Some(ttl) => field(&mut chunk, &ttl.to_be_bytes()),
            None => chunk.put_i32(-1),
        }
        if chunk.len() >= CHUNK_BYTES {
            sink.feed(chunk.split().freeze()).await?;
        }
    }
    chunk.put_i16(-1);
    sink.send(chunk.freeze()).await?;
    sink.finish().await
}

fn field(chunk: &mut BytesMut, bytes: &[u8]) {
    // No value comes near the end of the range.
    chunk.put_i32(i32::try_from(bytes.len()).unwrap_or(i32::MAX));
    chunk.put_slice(bytes);
}
