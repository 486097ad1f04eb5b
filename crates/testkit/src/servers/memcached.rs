//! One Memcached server.

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, TcpStream},
    time::Duration,
};

use rustix::process::Signal;

use super::{
    process::{Process, Program},
    program,
};

/// A Memcached server on 127.0.0.1. It forgets everything when it ends.
#[derive(Debug)]
pub struct Memcached {
    process: Process,
}

control!(Memcached);

impl Memcached {
    /// Starts a server with 64 MiB and waits until it answers.
    ///
    /// # Panics
    /// If Memcached is not installed or does not answer within a minute.
    pub fn start() -> Self {
        Self::with_arguments(&[])
    }

    /// Starts a server with further arguments, as `&["-m", "1"]` for one of 1 MiB.
    ///
    /// # Panics
    /// As [`start`](Self::start).
    pub fn with_arguments(arguments: &[&str]) -> Self {
        let path = program::find("memcached");
        let process = Process::start_on_free_port("memcached", |_, port| {
            let port = port.number();
            let fixed = ["-l", "127.0.0.1", "-U", "0", "-p", &port.to_string()].map(Into::into);
            let arguments = fixed.into_iter().chain(arguments.iter().map(Into::into)).collect();
            (Program { path: path.clone(), arguments, stop: Signal::TERM }, move || answers(port))
        });
        Self { process }
    }

    /// `memcached://127.0.0.1:PORT`.
    pub fn url(&self) -> String {
        format!("memcached://{}", self.address())
    }

    /// `127.0.0.1:PORT`.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port())
    }

    fn answers(&self) -> bool {
        answers(self.port())
    }
}

fn answers(port: u16) -> bool {
    let ask = || {
        let mut connection = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
        connection.set_read_timeout(Some(Duration::from_secs(1)))?;
        connection.write_all(b"version\r\n")?;
        let mut reply = [0; 8];
        connection.read_exact(&mut reply)?;
        // One that asks for a login has no version for us.
        std::io::Result::Ok(matches!(&reply, b"VERSION " | b"CLIENT_E"))
    };
    ask().unwrap_or(false)
}
