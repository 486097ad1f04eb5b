//! The file that late events are written to, each once whatever happens.

use std::{
    fs::{File, OpenOptions, TryLockError},
    io::{Seek, SeekFrom, Write as _},
    path::{Path, PathBuf},
    sync::Arc,
};

use commonhold_core::{Error, ErrorKind, Result};

use crate::source::Input;

/// Rows of late events, as they stood in the input.
///
/// The file is made durable before the commit that holds its length, and cut back to the committed length when a
/// job goes on; so it has the rows that the committed position accounts for, no more and no fewer.
#[derive(Debug)]
pub(crate) struct LateFile {
    path: PathBuf,
    file: Arc<File>,
    pending: Vec<u8>,
    bytes: u64,
    unsynced: bool,
}

/// Rows are written out when this many bytes have come together.
const PENDING_BYTES: usize = 1024 * 1024;

impl LateFile {
    /// Refuses a file that is one of the inputs, or that has something in it that is not ours to overwrite.
    pub(crate) fn check(path: &Path, inputs: &[Input]) -> Result<()> {
        let Ok(canonical) = path.canonicalize() else { return Ok(()) };
        let is_input = |input: &Input| {
            input.path().and_then(|input| input.canonicalize().ok()).is_some_and(|input| input == canonical)
        };
        if inputs.iter().any(is_input) {
            return Err(refused(path, "is one of the inputs: name another file for late events"));
        }
        Ok(())
    }

    /// Makes sure that a job that begins can write the file, and that there is nothing in it already.
    pub(crate) fn claim(path: &Path) -> Result<()> {
        let file = OpenOptions::new().append(true).create(true).open(path);
        match file.and_then(|file| file.metadata()) {
            Ok(metadata) if metadata.len() == 0 => Ok(()),
            Ok(_) => Err(refused(path, "is there already: late events are not written over something else")),
            Err(error) => {
                Err(refused(path, &format!("cannot be opened for late events: {error}")).with_source(error))
            }
        }
    }

    /// Opens the file, creating it if nothing of it is committed, and cuts off what is not.
    pub(crate) fn open(path: &Path, committed_bytes: u64) -> Result<Self> {
        let failed = |error: std::io::Error| {
            refused(path, &format!("cannot be opened for late events: {error}")).with_source(error)
        };
        let mut file = OpenOptions::new()
            .write(true)
            .create(committed_bytes == 0)
            .truncate(false)
            .open(path)
            .map_err(failed)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(refused(path, "is being written by another run")),
            Err(TryLockError::Error(error)) => return Err(failed(error)),
        }
        let bytes = file.metadata().map_err(failed)?.len();
        if bytes < committed_bytes {
            let problem = format!(
                "has become shorter: it has {bytes} bytes, and late events fill {committed_bytes}. Restore it, or \
                 begin anew with --restart"
            );
            return Err(refused(path, &problem));
        }
        file.set_len(committed_bytes).map_err(failed)?;
        file.seek(SeekFrom::End(0)).map_err(failed)?;
        let (path, file) = (path.to_owned(), Arc::new(file));
        Ok(Self { path, file, pending: Vec::new(), bytes: committed_bytes, unsynced: false })
    }

    /// Appends a row, with the header before the first one.
    pub(crate) fn push(&mut self, header: Option<&[u8]>, row: &[u8]) {
        let header = header.filter(|_| self.bytes == 0);
        for line in header.into_iter().chain([row]) {
            self.pending.extend_from_slice(line);
            self.pending.push(b'\n');
            self.bytes += line.len() as u64 + 1;
        }
    }

    /// Writes rows out if there are many.
    pub(crate) async fn write(&mut self) -> Result<()> {
        if self.pending.len() >= PENDING_BYTES { self.write_out(false).await } else { Ok(()) }
    }

    /// Makes all rows durable. Returns the length of the file.
    pub(crate) async fn sync(&mut self) -> Result<u64> {
        if self.unsynced || !self.pending.is_empty() {
            self.write_out(true).await?;
        }
        Ok(self.bytes)
    }

    async fn write_out(&mut self, sync: bool) -> Result<()> {
        let (file, pending) = (Arc::clone(&self.file), std::mem::take(&mut self.pending));
        let written = tokio::task::spawn_blocking(move || {
            (&*file).write_all(&pending)?;
            if sync { file.sync_data() } else { Ok(()) }
        });
        let failed = |error: std::io::Error| {
            refused(&self.path, &format!("late events cannot be written: {error}")).with_source(error)
        };
        written.await.map_err(std::io::Error::other).and_then(|result| result).map_err(failed)?;
        self.unsynced = !sync;
        Ok(())
    }
}

fn refused(path: &Path, problem: &str) -> Error {
    Error::new(ErrorKind::InvalidInput, format!("{}: {problem}", path.display()))
}
