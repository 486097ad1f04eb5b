//! The account that servers run under: PostgreSQL and Memcached refuse to run as root.

use std::{
    fs,
    os::unix::{fs::chown, process::CommandExt},
    path::Path,
    process::Command,
};

/// An account for servers.
#[derive(Debug, Clone, Copy)]
pub(super) enum Account {
    /// That of this process.
    Own,
    /// Another one, since this process is root.
    Other {
        /// The user.
        uid: u32,
        /// Its group.
        gid: u32,
    },
}

impl Account {
    /// That of this process, or if it is root, `postgres`, or `nobody` where there is no `postgres`.
    pub(super) fn unprivileged() -> Self {
        if !rustix::process::geteuid().is_root() {
            return Self::Own;
        }
        let users = fs::read_to_string("/etc/passwd").expect("/etc/passwd can be read");
        let named = |name| {
            users.lines().find_map(|line| {
                let fields: Vec<&str> = line.split(':').collect();
                let (uid, gid) = (fields.get(2)?.parse().ok()?, fields.get(3)?.parse().ok()?);
                (fields.first() == Some(&name)).then_some(Self::Other { uid, gid })
            })
        };
        named("postgres").or_else(|| named("nobody")).expect("root can become postgres or nobody")
    }

    /// A command that runs under this account.
    pub(super) fn command(self, program: &Path) -> Command {
        let mut command = Command::new(program);
        if let Self::Other { uid, gid } = self {
            command.uid(uid).gid(gid);
        }
        command
    }

    /// Makes a file or a directory this account's.
    pub(super) fn own(self, path: &Path) {
        if let Self::Other { uid, gid } = self {
            chown(path, Some(uid), Some(gid))
                .unwrap_or_else(|error| panic!("chown {}: {error}", path.display()));
        }
    }
}
