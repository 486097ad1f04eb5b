//! Where the servers' programs are.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

/// The line that installs on Debian whatever the tests need.
pub const INSTALL: &str = "apt-get install -y redis-server postgresql memcached pgbouncer libfaketime";

/// The path of a program: from `PATH`, where Debian keeps daemons, or where it keeps PostgreSQL's newest version.
///
/// # Panics
/// If it is not installed: the message holds [`INSTALL`].
pub(super) fn find(name: &str) -> PathBuf {
    try_find(name).unwrap_or_else(|| panic!("the tests need {name}, which is not installed: {INSTALL}"))
}

/// Those of the programs that the tests need and that are not installed.
pub fn missing() -> Vec<&'static str> {
    let needed = ["redis-server", "redis-cli", "postgres", "initdb", "psql", "memcached", "pgbouncer"];
    let missing = needed.into_iter().filter(|name| try_find(name).is_none());
    missing.chain(faketime().is_none().then_some("libfaketime")).collect()
}

/// Lets a program see the time of day shifted by so many seconds. Its monotonic clock goes on as it is.
///
/// # Panics
/// If libfaketime is not installed: the message holds [`INSTALL`].
pub fn shift_clock(program: &mut Command, seconds: i64) {
    let library = faketime();
    let library =
        library.unwrap_or_else(|| panic!("the tests need libfaketime, which is not installed: {INSTALL}"));
    program.env("LD_PRELOAD", library).env("FAKETIME", format!("{seconds:+}"));
    program.env("FAKETIME_DONT_FAKE_MONOTONIC", "1").env("FAKETIME_DISABLE_SHM", "1");
}

fn faketime() -> Option<PathBuf> {
    let architectures = fs::read_dir("/usr/lib").into_iter().flatten().flatten();
    let libraries = architectures.map(|entry| entry.path().join("faketime/libfaketimeMT.so.1"));
    libraries.into_iter().find(|library| library.is_file())
}

fn try_find(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let mut directories: Vec<PathBuf> = postgres_directories();
    directories.extend(env::split_paths(&path));
    directories.extend(["/usr/sbin", "/usr/local/sbin"].map(PathBuf::from));
    directories.into_iter().map(|directory| directory.join(name)).find(|path| path.is_file())
}

/// Newest first. They come before `PATH`, where Debian has wrappers that look for its own clusters.
fn postgres_directories() -> Vec<PathBuf> {
    let version = |path: &Path| path.file_name()?.to_str()?.parse::<u32>().ok();
    let entries = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let mut versions: Vec<PathBuf> =
        entries.map(|entry| entry.path()).filter(|path| version(path).is_some()).collect();
    versions.sort_by_key(|path| std::cmp::Reverse(version(path)));
    versions.into_iter().map(|path| path.join("bin")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[should_panic(expected = "apt-get install -y redis-server")]
    fn a_missing_program_says_how_to_install_it() {
        find("no-such-program");
    }

    #[test]
    fn a_program_is_found_by_its_path() {
        assert!(find("sh").is_absolute());
    }
}
