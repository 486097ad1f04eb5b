//! What a job reads: files, standard input, or anything that can be read.

use std::{
    fmt,
    fs::File,
    io::Read,
    path::{Path, PathBuf},
};

use commonhold_core::{Error, ErrorKind, Result};

/// One input of a job. It is opened when the job comes to it.
pub struct Input(Kind);

enum Kind {
    File(PathBuf),
    Stdin,
    Reader { name: String, reader: Box<dyn Read + Send> },
}

impl Input {
    /// A file.
    ///
    /// # Errors
    /// `InvalidInput` if it is not there, is a directory, or must not be read.
    pub fn file(path: impl Into<PathBuf>) -> Result<Self> {
        let path = path.into();
        let metadata = path.metadata().map_err(|error| cannot_open(&path, error))?;
        if metadata.is_dir() {
            let problem = format!("{} is a directory: name the files in it", path.display());
            return Err(Error::new(ErrorKind::InvalidInput, problem));
        }
        // Whoever writes to a pipe would take the first opening for the only one.
        if metadata.is_file() {
            File::open(&path).map_err(|error| cannot_open(&path, error))?;
        }
        Ok(Self(Kind::File(path)))
    }

    /// Standard input, by the name `-`.
    pub fn stdin() -> Self {
        Self(Kind::Stdin)
    }

    /// Anything that can be read; the name is for messages.
    pub fn reader(name: impl Into<String>, reader: impl Read + Send + 'static) -> Self {
        Self(Kind::Reader { name: name.into(), reader: Box::new(reader) })
    }

    /// The name, for messages.
    pub fn name(&self) -> String {
        match &self.0 {
            Kind::File(path) => path.display().to_string(),
            Kind::Stdin => "-".to_owned(),
            Kind::Reader { name, .. } => name.clone(),
        }
    }

    /// Where it lies, for a file.
    pub fn path(&self) -> Option<&Path> {
        match &self.0 {
            Kind::File(path) => Some(path),
            Kind::Stdin | Kind::Reader { .. } => None,
        }
    }

    pub(super) fn open(self) -> Result<Box<dyn Read + Send>> {
        Ok(match self.0 {
            Kind::File(path) => Box::new(File::open(&path).map_err(|error| cannot_open(&path, error))?),
            Kind::Stdin => Box::new(std::io::stdin()),
            Kind::Reader { reader, .. } => reader,
        })
    }
}

fn cannot_open(path: &Path, error: std::io::Error) -> Error {
    Error::new(ErrorKind::InvalidInput, format!("{}: cannot be opened: {error}", path.display()))
        .with_source(error)
}

impl fmt::Debug for Input {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Input").field(&self.name()).finish()
    }
}
