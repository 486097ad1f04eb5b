//! A directory for one server, in the hands of a watchdog that ends both when their owner is gone.

use std::{
    fs::{self, Permissions},
    io::Write,
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Mutex,
};

use super::account::Account;

/// How much of a log is shown when something fails.
const LOG_TAIL_BYTES: usize = 6_000;

/// Reads pids from its standard input, the last of which counts. When the input ends, because the owner let go
/// or died, it kills that process with its children, and removes the directory.
const WATCHDOG: &str = r#"
pid=
while read -r line; do pid=$line; done
if [ -n "$pid" ]; then
    kill -STOP "$pid"
    children=$(cat /proc/"$pid"/task/*/children)
    kill -KILL "$pid" $children
fi
if [ -f "$1/data/postmaster.pid" ]; then
    set -- "$1" $(sed -n 7p "$1/data/postmaster.pid")
    [ -n "$3" ] && ipcrm -m "$3"
fi
rm -rf "$1" || { sleep 1; rm -rf "$1"; }
"#;

/// A directory for one server, in the hands of a watchdog that outlives this process.
#[derive(Debug)]
pub(super) struct Directory {
    path: PathBuf,
    watchdog: Mutex<Child>,
}

impl Directory {
    /// A new directory that the servers' account owns.
    pub(super) fn new(name: &str) -> Self {
        let directory = tempfile::Builder::new().prefix(&format!("commonhold-{name}-")).tempdir();
        // From here on the watchdog removes it.
        let path = directory.expect("a temporary directory can be made").keep();
        Account::unprivileged().own(&path);
        let watchdog = Command::new("/bin/sh")
            .args(["-c", WATCHDOG, "watchdog"])
            .arg(&path)
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn();
        Self { path, watchdog: Mutex::new(watchdog.expect("/bin/sh can be run")) }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Writes a file that the server may read.
    pub(super) fn write(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path.join(name);
        fs::write(&path, content).unwrap_or_else(|error| panic!("cannot write {}: {error}", path.display()));
        Account::unprivileged().own(&path);
        path
    }

    /// Writes a file that nobody but the server may read.
    pub(super) fn write_secret(&self, name: &str, content: &str) -> PathBuf {
        let path = self.write(name, content);
        fs::set_permissions(&path, Permissions::from_mode(0o600)).expect("the owner can change permissions");
        path
    }

    pub(super) fn log_path(&self) -> PathBuf {
        self.path.join("log")
    }

    pub(super) fn log(&self) -> String {
        let log = fs::read(self.log_path()).unwrap_or_default();
        let tail = log.get(log.len().saturating_sub(LOG_TAIL_BYTES)..).unwrap_or_default();
        String::from_utf8_lossy(tail).into_owned()
    }

    pub(super) fn remember_server(&self, pid: u32) {
        self.tell(&format!("{pid}\n"));
    }

    /// A pid that is waited for may be somebody else's the next moment.
    pub(super) fn forget_server(&self) {
        self.tell("\n");
    }

    fn tell(&self, line: &str) {
        let mut watchdog = self.watchdog.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let input = watchdog.stdin.as_mut().expect("the watchdog's input is open until the end");
        input.write_all(line.as_bytes()).expect("the watchdog listens");
    }

    pub(super) fn clean_up(&self) {
        let mut watchdog = self.watchdog.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        drop(watchdog.stdin.take());
        let _ = watchdog.wait();
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        self.clean_up();
    }
}
