//! The servers that the tests need: installed where that is possible, started once for the whole run.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Command, Stdio},
    thread,
};

use commonhold_testkit::servers::{INSTALL, missing, shared};

/// Whether Debian starts a service that it installs; 101 says no.
const POLICY: &str = "/usr/sbin/policy-rc.d";

/// Makes sure that the servers are installed: as root with Debian's packages, else it says how and returns false.
pub(crate) fn install() -> bool {
    let programs = missing();
    if programs.is_empty() {
        return true;
    }
    let missing = programs.join(", ");
    if !rustix::process::geteuid().is_root() || !Path::new("/usr/bin/apt-get").exists() {
        eprintln!("the tests need {missing}: {INSTALL}");
        return false;
    }
    eprintln!("== installing {missing}");
    let policy = KeepServicesDown::new();
    let installed = apt(INSTALL) || (apt("apt-get update") && apt(INSTALL));
    drop(policy);
    let programs = self::missing();
    if !programs.is_empty() {
        eprintln!("{INSTALL} did not install {}", programs.join(", "));
    }
    installed && programs.is_empty()
}

/// Runs a line with apt-get.
fn apt(line: &str) -> bool {
    let mut words = line.split(' ');
    let mut command = Command::new(words.next().unwrap_or_default());
    // Another one that runs is waited for.
    command.args(words).args(["-q", "-o", "DPkg::Lock::Timeout=300"]);
    command.env("DEBIAN_FRONTEND", "noninteractive").stdin(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

/// Keeps Debian from starting the services that it installs: the tests start their own.
struct KeepServicesDown {
    made: bool,
}

impl KeepServicesDown {
    fn new() -> Self {
        let executable = fs::Permissions::from_mode(0o755);
        let made = !Path::new(POLICY).exists()
            && fs::write(POLICY, "#!/bin/sh\nexit 101\n").is_ok()
            && fs::set_permissions(POLICY, executable).is_ok();
        Self { made }
    }
}

impl Drop for KeepServicesDown {
    fn drop(&mut self) {
        if self.made {
            let _ = fs::remove_file(POLICY);
        }
    }
}

/// Starts the servers that all tests share, but for those that the environment names, and tells `tests` of them.
/// They end with this process.
pub(crate) fn share(tests: &mut Command) -> bool {
    let servers = [
        (shared::REDIS, shared::redis_url as fn() -> &'static str),
        (shared::REDIS_SENTINEL, shared::redis_sentinel_url),
        (shared::REDIS_CLUSTER, shared::redis_cluster_url),
        (shared::POSTGRES, shared::postgres_url),
        (shared::MEMCACHED, shared::memcached_url),
    ];
    let starting = servers.map(|(variable, url)| (variable, thread::spawn(url)));
    starting.into_iter().all(|(variable, url)| match url.join() {
        Ok(url) => {
            tests.env(variable, url);
            true
        }
        // It has said why.
        Err(_) => false,
    })
}
