//! The one place where errors of the engine and the operating system become errors of this library.

use std::{
    any::Any,
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
};

use commonhold_core::{Error, ErrorKind, Result, Retry};

/// Says what an error of the engine means for the store at this path.
pub(crate) fn engine_error(path: &Path, error: fjall::Error) -> Error {
    use fjall::Error as E;
    let at = path.display();
    let (kind, message) = match &error {
        E::Io(error) | E::Storage(lsm_tree::Error::Io(error)) => return io_error(path, error),
        E::Poisoned => (
            ErrorKind::Unavailable,
            format!(
                "{at}: an earlier write failed, maybe one in the background, so no more are taken; make sure that the disk \
                 is sound and has room, then open the store again: everything acknowledged is there"
            ),
        ),
        E::Locked => (ErrorKind::Unavailable, format!("{at}: another process has this store open")),
        E::InvalidVersion(Some(version)) => (
            ErrorKind::Unsupported,
            format!("{at}: written in format {version} of the engine, which this version does not read"),
        ),
        E::KeyspaceDeleted => (ErrorKind::Internal, format!("{at}: the keyspace is gone")),
        _ => (ErrorKind::Corrupt, format!("{at}: the store is damaged ({error}); restore it from a copy")),
    };
    Error::new(kind, message).with_source(error)
}

/// Says what an error of the operating system means for the file or directory at this path.
pub(crate) fn io_error(path: &Path, error: &io::Error) -> Error {
    use io::ErrorKind as E;
    let (kind, what_to_do) = match error.kind() {
        E::StorageFull | E::QuotaExceeded | E::FileTooLarge => {
            (ErrorKind::Overloaded, "; make room there, then open the store again")
        }
        E::PermissionDenied | E::ReadOnlyFilesystem => {
            (ErrorKind::Unauthorized, "; give this user the right to write there or choose another directory")
        }
        E::NotADirectory | E::IsADirectory | E::AlreadyExists | E::InvalidFilename => {
            (ErrorKind::InvalidConfig, "; choose another directory")
        }
        E::NotFound | E::UnexpectedEof | E::InvalidData => {
            (ErrorKind::Corrupt, "; the store is damaged, restore it from a copy")
        }
        _ => (ErrorKind::Unavailable, ""),
    };
    let source = io::Error::new(error.kind(), error.to_string());
    Error::new(kind, format!("{}: {error}{what_to_do}", path.display())).with_source(source)
}

/// Calls into the engine, whose panics on damaged files become errors here.
pub(crate) fn contained<T>(path: &Path, call: impl FnOnce() -> Result<T>) -> Result<T> {
    // What the closures share with the outside is the engine, which poisons itself, and counters.
    catch_unwind(AssertUnwindSafe(call)).unwrap_or_else(|panic| {
        let message = panic_message(&*panic);
        Err(Error::new(
            ErrorKind::Corrupt,
            format!("{}: the engine gave up ({message}); the store is probably damaged", path.display()),
        ))
    })
}

/// The text of a panic.
pub(crate) fn panic_message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("a panic").to_owned()
}

/// Marks the error of a write that was begun: it may be in the journal or not.
pub(crate) fn ambiguous(error: Error) -> Error {
    error.with_retry(Retry::Ambiguous)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_error_has_its_kind_and_names_the_path() {
        let io = |kind: io::ErrorKind| fjall::Error::Io(kind.into());
        let table = [
            (io(io::ErrorKind::StorageFull), ErrorKind::Overloaded),
            (io(io::ErrorKind::QuotaExceeded), ErrorKind::Overloaded),
            (io(io::ErrorKind::PermissionDenied), ErrorKind::Unauthorized),
            (io(io::ErrorKind::ReadOnlyFilesystem), ErrorKind::Unauthorized),
            (io(io::ErrorKind::NotADirectory), ErrorKind::InvalidConfig),
            (io(io::ErrorKind::NotFound), ErrorKind::Corrupt),
            (io(io::ErrorKind::UnexpectedEof), ErrorKind::Corrupt),
            (io(io::ErrorKind::Other), ErrorKind::Unavailable),
            (
                fjall::Error::Storage(lsm_tree::Error::Io(io::ErrorKind::StorageFull.into())),
                ErrorKind::Overloaded,
            ),
            (fjall::Error::Storage(lsm_tree::Error::Unrecoverable), ErrorKind::Corrupt),
            (fjall::Error::Storage(lsm_tree::Error::InvalidTag(("x", 7))), ErrorKind::Corrupt),
            (
                fjall::Error::JournalRecovery(fjall::JournalRecoveryError::ChecksumMismatch),
                ErrorKind::Corrupt,
            ),
            (fjall::Error::InvalidVersion(None), ErrorKind::Corrupt),
            (fjall::Error::InvalidVersion(Some(fjall::FormatVersion::V2)), ErrorKind::Unsupported),
            (fjall::Error::InvalidTrailer, ErrorKind::Corrupt),
            (fjall::Error::Unrecoverable, ErrorKind::Corrupt),
            (fjall::Error::Poisoned, ErrorKind::Unavailable),
            (fjall::Error::Locked, ErrorKind::Unavailable),
            (fjall::Error::KeyspaceDeleted, ErrorKind::Internal),
        ];
        for (error, kind) in table {
            let text = format!("{error:?}");
            let error = engine_error(Path::new("/data/store"), error);
            assert_eq!(error.kind(), kind, "{text}");
            assert_eq!(error.retry(), Retry::Never, "{text}");
            assert!(error.message().contains("/data/store"), "{text}");
        }
    }

    #[test]
    fn a_panic_of_the_engine_is_an_error() {
        let error = contained::<()>(Path::new("/data/store"), || panic!("lock is poisoned")).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt);
        assert!(error.message().contains("lock is poisoned"));
    }
}
