//! The directory of a store: whose it is, who has it open, and whether everything is there.
//!
//! Beside the engine's files lie two of ours: `owner`, which whoever has the store open holds locked and which
//! says who that is, and `format`, which is written when a store has been created in full.

use std::{
    fs::{self, File, TryLockError},
    io::{self, Read as _, Write as _},
    path::{Path, PathBuf},
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
};

use commonhold_core::{Error, ErrorKind, Result, Retry};

use crate::{error::io_error, journal};

const FORMAT_FILE: &str = "format";
const FORMAT: &str = "commonhold disk store, format 1\n";
const OWNER_FILE: &str = "owner";

/// A directory that this process holds locked.
#[derive(Debug)]
pub(crate) struct Directory {
    path: PathBuf,
    is_new: bool,
    _owner: File,
}

impl Directory {
    /// Creates the directory if need be, locks it, and checks that it is a store or empty.
    pub(crate) fn acquire(path: &Path) -> Result<Self> {
        let failed = |error: io::Error| io_error(path, &error);
        if path.metadata().is_ok_and(|metadata| !metadata.is_dir()) {
            return Err(failed(io::ErrorKind::NotADirectory.into()));
        }
        fs::create_dir_all(path).map_err(|error| match error.kind() {
            // Not a file of a store that is missing: no directory can be there.
            io::ErrorKind::NotFound => failed(io::ErrorKind::NotADirectory.into()),
            _ => failed(error),
        })?;
        let path = &path.canonicalize().map_err(failed)?;
        wait_until_closed(path);
        let lies_there = |file| path.join(file).try_exists().map_err(failed);
        if !lies_there(FORMAT_FILE)? && !lies_there(OWNER_FILE)? {
            // If the owner has come meanwhile, what was found is that of another process, which creates the store.
            refuse_foreign(path)
                .or_else(|error| if lies_there(OWNER_FILE)? { Ok(()) } else { Err(error) })?;
        }
        let owner = lock(path)?;
        let is_new = !lies_there(FORMAT_FILE)?;
        if is_new {
            remove_unfinished_creation(path)?;
        } else {
            check_complete(path)?;
        }
        for journal in journal::list(path).map_err(failed)? {
            journal::check(&journal)?;
        }
        Ok(Self { path: path.clone(), is_new, _owner: owner })
    }

    /// The absolute path.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the store is yet to be created.
    pub(crate) fn is_new(&self) -> bool {
        self.is_new
    }

    /// Records that the store has been created in full.
    pub(crate) fn created(&self) -> Result<()> {
        let write = || {
            let new = self.path.join("format.new");
            let mut file = File::create(&new)?;
            file.write_all(FORMAT.as_bytes())?;
            file.sync_all()?;
            fs::rename(new, self.path.join(FORMAT_FILE))?;
            File::open(&self.path)?.sync_all()
        };
        write().map_err(|error| io_error(&self.path, &error))
    }
}

/// A store is not created among files that are somebody else's.
fn refuse_foreign(path: &Path) -> Result<()> {
    for entry in fs::read_dir(path).map_err(|error| io_error(path, &error))? {
        let name = entry.map_err(|error| io_error(path, &error))?.file_name();
        // Every ext4 volume has it.
        if name != "lost+found" {
            return Err(Error::new(
                ErrorKind::InvalidConfig,
                format!(
                    "{}: the directory is no Commonhold store and is not empty (it has {name:?} in it); choose an \
                     empty or a new one",
                    path.display()
                ),
            ));
        }
    }
    Ok(())
}

fn lock(path: &Path) -> Result<File> {
    let owner_path = path.join(OWNER_FILE);
    let mut options = File::options();
    let mut owner = options
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&owner_path)
        .map_err(|error| io_error(path, &error))?;
    match owner.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Err(held(path, &owner)),
        Err(TryLockError::Error(error)) => return Err(io_error(&owner_path, &error)),
    }
    // Only for people to read: a full disk must not keep a store from being read.
    let _ = owner.set_len(0).and_then(|()| owner.write_all(describe_process().as_bytes()));
    Ok(owner)
}

fn describe_process() -> String {
    let command = std::env::args_os().next().map(PathBuf::from).unwrap_or_default();
    let command = command.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let host = host.trim();
    let on_host = if host.is_empty() { String::new() } else { format!(" on {host}") };
    let since = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ");
    format!("process {} ({command}){on_host} since {since}", std::process::id())
}

fn held(path: &Path, owner: &File) -> Error {
    let mut holder = String::new();
    let _ = owner.take(256).read_to_string(&mut holder);
    holder.retain(|char| !char.is_control());
    if holder.is_empty() {
        holder.push_str("another process");
    }
    let this_process = holder.starts_with(&format!("process {} ", std::process::id()));
    let what_to_do = if this_process {
        "that is this process: share the handle that is open, or drop it first"
    } else {
        "end it or use another directory"
    };
    let message = format!("{}: held by {holder}; {what_to_do}", path.display());
    Error::new(ErrorKind::Unavailable, message).with_retry(Retry::Safe)
}

/// Takes away what is left of a creation that was interrupted, which never held an entry.
fn remove_unfinished_creation(path: &Path) -> Result<()> {
    let failed = |error: io::Error| io_error(path, &error);
    let journals = journal::list(path).map_err(failed)?;
    let (version, keyspaces) = (path.join("version"), path.join("keyspaces"));
    let has_tables = fs::read_dir(keyspaces.join("1/tables")).is_ok_and(|mut tables| tables.next().is_some());
    if has_tables || !journals.iter().all(|journal| journal::is_blank(journal).is_ok_and(|blank| blank)) {
        // It does hold entries; only the last step is missing, or our file was removed.
        return if version.exists() { Ok(()) } else { Err(missing(&version)) };
    }
    let removed =
        journals.iter().chain([&version]).try_for_each(|file| ignore_missing(fs::remove_file(file)));
    removed.and_then(|()| ignore_missing(fs::remove_dir_all(keyspaces))).map_err(failed)
}

fn ignore_missing(removed: io::Result<()>) -> io::Result<()> {
    removed.or_else(|error| if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) })
}

/// The engine takes a missing file for a store that is new, and removes what it then does not know.
fn check_complete(path: &Path) -> Result<()> {
    let format_path = path.join(FORMAT_FILE);
    let mut format = Vec::new();
    File::open(&format_path)
        .and_then(|file| file.take(256).read_to_end(&mut format))
        .map_err(|error| io_error(&format_path, &error))?;
    if format != FORMAT.as_bytes() {
        let known = format.starts_with(b"commonhold disk store, format ");
        let (kind, what) = if known {
            (ErrorKind::Unsupported, "is of another version of Commonhold, use that one")
        } else {
            (ErrorKind::Corrupt, "does not say that this is a Commonhold store; restore it from a copy")
        };
        return Err(Error::new(kind, format!("{}: {what}", format_path.display())));
    }
    for file in ["version", "lock", "keyspaces/0/current", "keyspaces/1/current"] {
        let file = path.join(file);
        if !file.is_file() {
            return Err(missing(&file));
        }
    }
    if journal::list(path).map_err(|error| io_error(path, &error))?.is_empty() {
        return Err(missing(&path.join("*.jnl")));
    }
    Ok(())
}

fn missing(path: &Path) -> Error {
    let message = format!("{}: missing, so the store is damaged; restore it from a copy", path.display());
    Error::new(ErrorKind::Corrupt, message)
}

/// The stores that this process is closing in the background: opening one of them waits.
static CLOSING: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());
static CLOSED: Condvar = Condvar::new();

/// Announces that a store is about to be closed; it is when this is dropped.
#[derive(Debug)]
pub(crate) struct Closing(PathBuf);

impl Closing {
    pub(crate) fn announce(path: &Path) -> Self {
        closing().push(path.to_owned());
        Self(path.to_owned())
    }
}

impl Drop for Closing {
    fn drop(&mut self) {
        let mut closing = closing();
        if let Some(at) = closing.iter().position(|path| *path == self.0) {
            closing.swap_remove(at);
        }
        CLOSED.notify_all();
    }
}

fn closing() -> MutexGuard<'static, Vec<PathBuf>> {
    CLOSING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Waits for this process to have closed the store in this directory, if it is about to.
pub(crate) fn wait_until_closed(path: &Path) {
    let closing = closing();
    let waited = CLOSED.wait_while(closing, |closing| closing.iter().any(|other| other == path));
    drop(waited.unwrap_or_else(PoisonError::into_inner));
}
