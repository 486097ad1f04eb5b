//! The one place where errors of sled become errors of this library.

use std::{
    any::Any,
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
};

use commonhold_core::{Error, ErrorKind, Result};

pub(crate) const NAME: &str = "sled";

/// Says what an error of sled means for the database at this path.
pub(crate) fn sled_error(path: &Path, error: sled::Error) -> Error {
    let at = path.display();
    let (kind, message) = match &error {
        sled::Error::Io(error) => return io_error(path, error),
        sled::Error::Unsupported(what) => (ErrorKind::Unsupported, format!("{at}: {what}")),
        sled::Error::Corruption { .. } => {
            (ErrorKind::Corrupt, format!("{at}: the database is damaged ({error}); restore it from a copy"))
        }
        sled::Error::CollectionNotFound(_) => (ErrorKind::Internal, format!("{at}: the tree is gone")),
        _ => (ErrorKind::Internal, format!("{at}: {error}")),
    };
    Error::new(kind, message).with_source(error)
}

fn io_error(path: &Path, error: &io::Error) -> Error {
    use io::ErrorKind as E;
    let at = path.display();
    let text = error.to_string();
    let (kind, message) = match error.kind() {
        // So sled says it.
        _ if text.contains("could not acquire lock") => (
            ErrorKind::Unavailable,
            format!(
                "{at}: another process has this database open; stop it, or copy the directory and open the copy"
            ),
        ),
        E::StorageFull | E::QuotaExceeded => {
            (ErrorKind::Overloaded, format!("{at}: {text}; make room there, then open the database again"))
        }
        E::PermissionDenied | E::ReadOnlyFilesystem => {
            (ErrorKind::Unauthorized, format!("{at}: {text}; sled writes to its directory even to read it"))
        }
        E::NotADirectory | E::IsADirectory | E::AlreadyExists => {
            (ErrorKind::InvalidConfig, format!("{at}: {text}; choose another directory"))
        }
        E::InvalidData | E::UnexpectedEof => {
            (ErrorKind::Corrupt, format!("{at}: {text}; the database is damaged, restore it from a copy"))
        }
        _ => (ErrorKind::Unavailable, format!("{at}: {text}")),
    };
    Error::new(kind, message).with_source(io::Error::new(error.kind(), text))
}

/// Calls into sled, whose panics on damaged files become errors here.
pub(crate) fn contained<T>(path: &Path, call: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(call)).unwrap_or_else(|panic| {
        let message =
            format!("{}: sled gave up ({}); the database is probably damaged", path.display(), text(&*panic));
        Err(Error::new(ErrorKind::Corrupt, message))
    })
}

/// The text of a panic.
pub(crate) fn text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("a panic");
    text.chars().take(200).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_error_has_its_kind_and_names_the_path() {
        let table = [
            (
                sled::Error::Io(io::Error::other("could not acquire lock on \"x\": WouldBlock")),
                ErrorKind::Unavailable,
            ),
            (sled::Error::Io(io::ErrorKind::StorageFull.into()), ErrorKind::Overloaded),
            (sled::Error::Io(io::ErrorKind::PermissionDenied.into()), ErrorKind::Unauthorized),
            (sled::Error::Io(io::ErrorKind::NotADirectory.into()), ErrorKind::InvalidConfig),
            (sled::Error::Io(io::ErrorKind::InvalidData.into()), ErrorKind::Corrupt),
            (sled::Error::Corruption { at: None, bt: () }, ErrorKind::Corrupt),
            (sled::Error::Unsupported("no".into()), ErrorKind::Unsupported),
            (sled::Error::ReportableBug("bug".into()), ErrorKind::Internal),
        ];
        for (error, kind) in table {
            let text = error.to_string();
            let error = sled_error(Path::new("/data/old"), error);
            assert_eq!(error.kind(), kind, "{text}");
            assert!(error.message().contains("/data/old"), "{text}");
        }
    }

    #[test]
    fn a_panic_of_sled_is_an_error() {
        let error = contained::<()>(Path::new("/data/old"), || panic!("bad page")).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt);
        assert!(error.message().contains("bad page"));
    }
}
