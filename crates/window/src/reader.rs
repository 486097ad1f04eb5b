//! The thread on which a source is read, and the batches that come from it.

use std::sync::mpsc as blocking;

use commonhold_core::{Error, ErrorKind, Result};
use tokio::sync::mpsc;

use crate::{
    run::OnError,
    source::{Chunk, Next, RowError, Source},
};

/// Rows in their order, and where they end.
pub(crate) struct Batch {
    pub(crate) chunk: Chunk,
    /// The source's position behind the rows.
    pub(crate) position: serde_json::Value,
    pub(crate) bytes: u64,
    pub(crate) header: Option<Vec<u8>>,
    pub(crate) skipped: usize,
    /// The first of the rows that were skipped.
    pub(crate) skipped_rows: Vec<RowError>,
    /// Whether the input ends here.
    pub(crate) end: bool,
    /// Why there is nothing behind these rows.
    pub(crate) failed: Option<Error>,
}

/// Reads a source on a thread of its own.
///
/// Not on the runtime's blocking threads: a read from a terminal may never return, and would keep the runtime from
/// ending.
pub(crate) struct Reader {
    batches: mpsc::Receiver<Result<Batch>>,
    used: blocking::Sender<Chunk>,
}

/// Batches that wait to be folded. One is being filled and one folded beside them.
const QUEUED_BATCHES: usize = 2;
/// Bytes of keys and rows after which a batch is full.
const TEXT_BYTES: usize = 1024 * 1024;
const SKIPPED_ROWS: usize = 10;

impl Reader {
    pub(crate) fn start(
        source: impl Source,
        position: Option<serde_json::Value>,
        rows: usize,
        keeps_rows: bool,
        on_error: OnError,
    ) -> Result<Self> {
        let (sender, batches) = mpsc::channel(QUEUED_BATCHES);
        let (used, chunks) = blocking::channel();
        let filling = Filling { source, chunks, rows, keeps_rows, on_error };
        std::thread::Builder::new()
            .name("window-reader".to_owned())
            .spawn(move || filling.send_all(position, &sender))
            .map_err(|error| {
                Error::new(ErrorKind::Overloaded, "no thread can be started to read the input")
                    .with_source(error)
            })?;
        Ok(Self { batches, used })
    }

    /// The next batch. Cancelling it loses nothing.
    pub(crate) async fn next(&mut self) -> Result<Batch> {
        self.batches.recv().await.unwrap_or_else(|| {
            Err(Error::new(ErrorKind::Internal, "the thread that reads the input has ended before its end"))
        })
    }

    /// Lets the memory of a chunk be used again.
    pub(crate) fn give_back(&self, chunk: Chunk) {
        // The reader has ended if there is none to take it.
        let _ = self.used.send(chunk);
    }
}

struct Filling<S> {
    source: S,
    chunks: blocking::Receiver<Chunk>,
    rows: usize,
    keeps_rows: bool,
    on_error: OnError,
}

impl<S: Source> Filling<S> {
    fn send_all(mut self, position: Option<serde_json::Value>, batches: &mpsc::Sender<Result<Batch>>) {
        let resumed = position.map_or(Ok(()), |position| self.source.resume(&position));
        if let Err(error) = resumed {
            let _ = batches.blocking_send(Err(error));
            return;
        }
        loop {
            let batch = self.fill();
            let is_last = batch.end || batch.failed.is_some();
            // If nobody wants it any more, the run has ended.
            if batches.blocking_send(Ok(batch)).is_err() || is_last {
                return;
            }
        }
    }

    fn fill(&mut self) -> Batch {
        let mut chunk = self.chunks.try_recv().unwrap_or_else(|_| Chunk::new(self.keeps_rows));
        chunk.clear();
        let (mut skipped, mut skipped_rows, mut end, mut failed) = (0, Vec::new(), false, None);
        while chunk.len() + skipped < self.rows && chunk.text_bytes() < TEXT_BYTES {
            match self.source.next(&mut chunk) {
                Ok(Next::Event) => {}
                Ok(Next::Bad(error)) if self.on_error == OnError::Skip => {
                    self.source.skip();
                    skipped += 1;
                    if skipped_rows.len() < SKIPPED_ROWS {
                        skipped_rows.push(error);
                    }
                }
                Ok(Next::Bad(error)) => {
                    failed = Some(error.into());
                    break;
                }
                Ok(Next::End) => {
                    end = true;
                    break;
                }
                Err(error) => {
                    failed = Some(error);
                    break;
                }
            }
        }
        Batch {
            chunk,
            position: self.source.position(),
            bytes: self.source.bytes(),
            header: self.source.header().filter(|_| self.keeps_rows).map(<[u8]>::to_vec),
            skipped,
            skipped_rows,
            end,
            failed,
        }
    }
}
