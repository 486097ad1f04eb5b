//! A loopback port that nobody else takes, also while its server is down.

use std::{
    fs::{self, File},
    net::{Ipv4Addr, TcpListener},
    path::PathBuf,
};

/// Below the range from which Linux takes the ports of outgoing connections: a client that reconnects to a dead
/// server could otherwise take its port, or connect to itself.
const RANGE: std::ops::Range<u16> = 12_000..32_000;

/// A port on 127.0.0.1, reserved among the test processes of this machine for as long as this lives.
#[derive(Debug)]
pub(crate) struct Port {
    number: u16,
    /// Locked; the kernel lets go of it when this process dies.
    _reservation: File,
}

impl Port {
    /// A port that is free now.
    pub(crate) fn reserve() -> Self {
        let user = rustix::process::geteuid().as_raw();
        let directory: PathBuf = std::env::temp_dir().join(format!("commonhold-ports-{user}"));
        fs::create_dir_all(&directory).expect("a directory for reserved ports can be made");
        for _ in 0..10_000 {
            let number = fastrand::u16(RANGE);
            let path = directory.join(number.to_string());
            let file = File::create(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            if file.try_lock().is_ok() && TcpListener::bind((Ipv4Addr::LOCALHOST, number)).is_ok() {
                return Self { number, _reservation: file };
            }
        }
        panic!("no free port on 127.0.0.1 among {RANGE:?}");
    }

    pub(crate) fn number(&self) -> u16 {
        self.number
    }
}
