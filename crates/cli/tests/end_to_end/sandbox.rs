//! A directory in which commands are run, each with a deadline so that nothing hangs.

use std::{
    ffi::OsStr,
    io::{BufRead as _, BufReader},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    process::{self, Child, Stdio},
    thread,
    time::{Duration, Instant},
};

use commonhold::Store;
use tempfile::TempDir;

const DEADLINE: Duration = Duration::from_secs(120);

pub(crate) struct Sandbox(TempDir);

/// What a command did.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: String,
}

impl Sandbox {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, contents: impl AsRef<[u8]>) {
        std::fs::write(self.path(name), contents).unwrap();
    }

    /// The command with this directory as the working directory and nothing of the environment that concerns it.
    pub(crate) fn command<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> process::Command {
        let mut command = process::Command::new(env!("CARGO_BIN_EXE_commonhold"));
        command.args(args).current_dir(self.0.path());
        for (name, _) in std::env::vars_os() {
            let concerns = ["NO_COLOR", "REDIS_URL", "DATABASE_URL"].iter().any(|other| name == *other);
            if concerns || name.to_string_lossy().starts_with("COMMONHOLD_") {
                command.env_remove(name);
            }
        }
        command
    }

    pub(crate) fn run<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Outcome {
        self.run_with(args, &[], b"")
    }

    pub(crate) fn run_with<S: AsRef<OsStr>>(
        &self,
        args: impl IntoIterator<Item = S>,
        environment: &[(&str, &str)],
        stdin: &[u8],
    ) -> Outcome {
        let mut command = self.command(args);
        command.envs(environment.iter().copied());
        let output =
            assert_cmd::Command::from_std(command).timeout(DEADLINE).write_stdin(stdin).output().unwrap();
        let outcome = Outcome {
            code: output.status.code(),
            stdout: output.stdout,
            stderr: String::from_utf8(output.stderr).unwrap(),
        };
        assert!(!outcome.stderr.contains("panicked"), "{}", outcome.stderr);
        outcome
    }

    /// Runs a command that succeeds, and returns what it printed.
    pub(crate) fn ok(&self, args: &[&str]) -> String {
        let outcome = self.run(args);
        assert_eq!(outcome.code, Some(0), "{args:?}: {outcome:?}");
        String::from_utf8(outcome.stdout).unwrap()
    }

    /// Runs a command with `--output json` and parses every line.
    pub(crate) fn json(&self, args: &[&str]) -> Vec<serde_json::Value> {
        let printed = self.ok(&[&["--output", "json"], args].concat());
        printed.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// Starts a command whose standard input stays open until it is taken from the child.
    pub(crate) fn start<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Running {
        let mut command = self.command(args);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Running(Some(command.spawn().unwrap()))
    }

    /// Works on a store in this directory from within the test, and leaves it closed.
    pub(crate) async fn with_store<T>(&self, name: &str, work: impl AsyncFnOnce(Store) -> T) -> T {
        let url = format!("disk:{}?durability=buffered", self.path(name).display());
        let result = work(commonhold::open(&url).await.unwrap()).await;
        // It is closed on a thread of its own.
        let began = Instant::now();
        while self.run(["--store", &url, "get", "nothing"]).code == Some(3) {
            assert!(began.elapsed() < DEADLINE, "{url} is not closed");
        }
        result
    }
}

/// A command that runs beside the test. It is killed when the test ends.
pub(crate) struct Running(Option<Child>);

impl Running {
    pub(crate) fn child(&mut self) -> &mut Child {
        self.0.as_mut().unwrap()
    }

    /// Waits for a line on standard error that contains this.
    pub(crate) fn wait_for_note(&mut self, part: &str) {
        let mut notes = BufReader::new(self.child().stderr.take().unwrap());
        let mut line = String::new();
        while !line.contains(part) {
            line.clear();
            assert_ne!(notes.read_line(&mut line).unwrap(), 0, "it ended without {part:?}");
        }
        self.child().stderr = Some(notes.into_inner());
    }

    /// Waits until a directory has grown by this many bytes, or the command has ended.
    pub(crate) fn wait_for_growth(&mut self, directory: &Path, bytes: u64) {
        let (began, size_before) = (Instant::now(), size(directory));
        while size(directory) < size_before + bytes && self.child().try_wait().unwrap().is_none() {
            assert!(began.elapsed() < DEADLINE, "{} does not grow", directory.display());
            thread::sleep(Duration::from_millis(1));
        }
    }

    pub(crate) fn interrupt(&mut self) {
        self.signal("INT");
    }

    pub(crate) fn signal(&mut self, name: &str) {
        let id = self.child().id().to_string();
        assert!(process::Command::new("kill").args(["-s", name, &id]).status().unwrap().success());
    }

    pub(crate) fn kill(mut self) -> Outcome {
        self.child().kill().unwrap();
        self.end()
    }

    pub(crate) fn end(mut self) -> Outcome {
        let began = Instant::now();
        while self.child().try_wait().unwrap().is_none() {
            assert!(began.elapsed() < DEADLINE, "the command does not end");
            thread::sleep(Duration::from_millis(5));
        }
        let output = self.0.take().unwrap().wait_with_output().unwrap();
        Outcome {
            code: output.status.code(),
            stdout: output.stdout,
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// How many bytes the files in a directory take.
fn size(directory: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(directory) else { return 0 };
    let size_of = |entry: std::fs::DirEntry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => size(&entry.path()),
        Ok(metadata) => metadata.blocks() * 512,
        Err(_) => 0,
    };
    entries.flatten().map(size_of).sum()
}
