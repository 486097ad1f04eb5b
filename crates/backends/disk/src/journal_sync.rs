//! Makes the journal durable, now and every so often, and remembers the first write that failed: after that no
//! write can be trusted until the store has been opened anew.

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use commonhold_core::{Error, ErrorKind, Result};

use crate::{config::Durability, error::io_error, journal};

pub(crate) struct JournalSync {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    path: PathBuf,
    /// Whether something was written since the last sync began.
    is_dirty: AtomicBool,
    has_failed: AtomicBool,
    state: Mutex<State>,
    wake: Condvar,
}

#[derive(Default)]
struct State {
    failure: Option<Error>,
    is_closing: bool,
}

impl JournalSync {
    /// For the journals in this directory; with a thread of its own if they are to be synced by interval.
    pub(crate) fn start(path: &Path, durability: Durability) -> Result<Self> {
        let shared = Arc::new(Shared {
            path: path.to_owned(),
            is_dirty: AtomicBool::new(false),
            has_failed: AtomicBool::new(false),
            state: Mutex::default(),
            wake: Condvar::new(),
        });
        let Durability::Interval(interval) = durability else { return Ok(Self { shared, thread: None }) };
        let thread = thread::Builder::new().name("commonhold-sync".to_owned()).spawn({
            let shared = Arc::clone(&shared);
            move || shared.sync_every(interval)
        });
        let thread = thread.map_err(|error| io_error(path, &error))?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Notes that something was written.
    pub(crate) fn written(&self) {
        if self.thread.is_some() && !self.shared.is_dirty.swap(true, Ordering::SeqCst) {
            // Under the lock, so that the thread does not go to sleep between looking and this call.
            let _state = self.shared.state();
            self.shared.wake.notify_one();
        }
    }

    /// Makes everything durable that was written so far. Blocks.
    pub(crate) fn sync(&self) -> Result<()> {
        self.check()?;
        self.shared.sync()
    }

    /// Takes no more writes, because of this one.
    pub(crate) fn fail(&self, error: &Error) {
        self.shared.fail(error);
    }

    /// The error of whoever writes after a write has failed.
    pub(crate) fn check(&self) -> Result<()> {
        if !self.shared.has_failed.load(Ordering::SeqCst) {
            return Ok(());
        }
        let state = self.shared.state();
        let first = state.failure.as_ref().map_or("", |first| first.message());
        Err(Error::new(
            ErrorKind::Unavailable,
            format!(
                "no more writes are taken since one failed; open the store again. The first failure: {first}"
            ),
        ))
    }
}

impl Drop for JournalSync {
    fn drop(&mut self) {
        self.shared.state().is_closing = true;
        self.shared.wake.notify_one();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        if self.check().is_ok()
            && let Err(error) = self.shared.sync()
        {
            tracing::error!(path = %self.shared.path.display(), %error, "the journal could not be synced on closing");
        }
    }
}

impl Shared {
    fn sync_every(&self, interval: Duration) {
        let mut state = self.state();
        while !state.is_closing {
            if !self.is_dirty.load(Ordering::SeqCst) {
                state = self.wake.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            let due = Instant::now() + interval;
            while !state.is_closing
                && let Some(left) = due.checked_duration_since(Instant::now())
            {
                state = self.wake.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
            }
            drop(state);
            self.is_dirty.store(false, Ordering::SeqCst);
            // It is remembered.
            let _ = self.sync();
            state = self.state();
        }
    }

    fn sync(&self) -> Result<()> {
        journal::sync(&self.path).map_err(|error| {
            let error = io_error(&self.path, &error);
            self.fail(&error);
            error
        })
    }

    fn fail(&self, error: &Error) {
        let copy = Error::new(error.kind(), error.message().to_owned());
        self.state().failure.get_or_insert(copy);
        self.has_failed.store(true, Ordering::SeqCst);
    }

    // A std mutex: it is held for a moment and never across a sync or an await.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
