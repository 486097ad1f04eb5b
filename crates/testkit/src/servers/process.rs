//! A server as a child process that ends with its owner, however the owner ends.

use std::{
    ffi::OsString,
    fs::{self, File},
    os::unix::process::{CommandExt, ExitStatusExt},
    path::{Path, PathBuf},
    process::{Child, ExitStatus, Stdio},
    sync::Mutex,
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};

use super::{account::Account, directory::Directory, port::Port};

/// How long a server may take to answer, to stop or to end.
pub(super) const DEADLINE: Duration = Duration::from_secs(60);

/// How often a port that was free may be lost to somebody else.
const ATTEMPTS: u32 = 5;

/// What to run: a program, its arguments, and the signal that asks it to stop.
#[derive(Debug)]
pub(super) struct Program {
    pub(super) path: PathBuf,
    pub(super) arguments: Vec<OsString>,
    pub(super) stop: Signal,
}

/// A server on one port and in one directory, both its own for as long as this lives: it can be ended and
/// started again. Dropping it ends the server and removes the directory; so does the death of this process.
#[derive(Debug)]
pub(super) struct Process {
    program: Program,
    directory: Directory,
    port: Port,
    server: Mutex<Option<Child>>,
}

impl Process {
    /// Starts what `prepare` makes of a new directory and a free port, and waits until it answers.
    ///
    /// # Panics
    /// If the server cannot be started or does not answer in time.
    pub(super) fn start_on_free_port<A: Fn() -> bool>(
        name: &str,
        mut prepare: impl FnMut(&Directory, &Port) -> (Program, A),
    ) -> Self {
        for _ in 0..ATTEMPTS {
            let (directory, port) = (Directory::new(name), Port::reserve());
            let (program, answers) = prepare(&directory, &port);
            match Self::start(program, directory, port, answers) {
                Ok(process) => return process,
                // Somebody took the port between the look and the start.
                Err(log) if log.contains("Address already in use") => {}
                Err(log) => panic!("{name} ended: {log}"),
            }
        }
        panic!("{name} found its port taken {ATTEMPTS} times");
    }

    /// Starts `program` and waits until `answers` says so.
    ///
    /// # Errors
    /// The server's log, if the server ended before it answered.
    ///
    /// # Panics
    /// If the server cannot be started or does not answer in time.
    pub(super) fn start(
        program: Program,
        directory: Directory,
        port: Port,
        answers: impl Fn() -> bool,
    ) -> Result<Self, String> {
        let process = Self { program, directory, port, server: Mutex::new(None) };
        process.spawn();
        process.wait_until(answers).map(|()| process)
    }

    pub(super) fn port(&self) -> u16 {
        self.port.number()
    }

    pub(super) fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// The last lines that the server wrote.
    pub(super) fn log(&self) -> String {
        self.directory.log()
    }

    /// The pid of the server; `None` while it does not run.
    pub(super) fn pid(&self) -> Option<u32> {
        self.server().as_ref().map(Child::id)
    }

    /// Starts the server again where it was and waits until it answers.
    ///
    /// # Panics
    /// If it runs, or does not answer in time.
    pub(super) fn start_again(&self, answers: impl Fn() -> bool) {
        assert!(self.pid().is_none(), "{} still runs", self.program.path.display());
        self.spawn();
        self.wait_until(answers)
            .unwrap_or_else(|log| panic!("{} ended:\n{log}", self.program.path.display()));
    }

    /// Kills the server and its children, as a loss of power would; nothing if it does not run.
    pub(super) fn kill(&self) {
        let mut server = self.server();
        let Some(child) = server.as_mut() else { return };
        let family = stop_family(child);
        self.directory.forget_server();
        for &pid in &family {
            // One that is gone already needs no signal.
            let _ = kill_process(pid, Signal::KILL);
        }
        child.wait().expect("a killed child can be waited for");
        wait_for("the killed server's children to end", || family.iter().all(|&pid| has_ended(pid)));
        *server = None;
    }

    /// Asks the server to stop and waits until it has; nothing if it does not run.
    pub(super) fn stop(&self) -> Option<ExitStatus> {
        let mut server = self.server();
        let child = server.as_mut()?;
        let family = family(child);
        kill_process(pid_of(child), self.program.stop)
            .expect("a child that was not waited for takes signals");
        let mut status = None;
        wait_for_or_panic(
            || {
                status = child.try_wait().expect("a child can be waited for");
                status.is_some()
            },
            || format!("{} does not stop:\n{}", self.program.path.display(), self.log()),
        );
        self.directory.forget_server();
        wait_for("the stopped server's children to end", || family.iter().all(|&pid| has_ended(pid)));
        *server = None;
        status
    }

    /// Holds the server and its children still: connections stay open and nothing answers.
    pub(super) fn pause(&self) {
        let mut server = self.server();
        stop_family(server.as_mut().expect("only a server that runs can be paused"));
    }

    /// Lets the server go on after [`pause`](Self::pause).
    pub(super) fn resume(&self) {
        let mut server = self.server();
        let child = server.as_mut().expect("only a server that runs can be resumed");
        for pid in family(child) {
            let _ = kill_process(pid, Signal::CONT);
        }
    }

    fn server(&self) -> std::sync::MutexGuard<'_, Option<Child>> {
        // A panic under the lock leaves nothing half done that matters to a test that has failed already.
        self.server.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn spawn(&self) {
        let log = File::options().append(true).create(true).open(self.directory.log_path());
        let log = log.expect("the log of a server can be written");
        let child = Account::unprivileged()
            .command(&self.program.path)
            .args(&self.program.arguments)
            .current_dir(self.directory.path())
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a file can be cloned"))
            .stderr(log)
            // A signal from the terminal, or to the group of a test that takes too long, is for the owner.
            .process_group(0)
            .spawn()
            .unwrap_or_else(|error| panic!("cannot run {}: {error}", self.program.path.display()));
        self.directory.remember_server(child.id());
        *self.server() = Some(child);
    }

    fn wait_until(&self, answers: impl Fn() -> bool) -> Result<(), String> {
        let deadline = Instant::now() + DEADLINE;
        loop {
            if let Some(child) = self.server().as_mut()
                && let Some(status) = child.try_wait().expect("a child can be waited for")
            {
                self.directory.forget_server();
                let how =
                    status.signal().map_or_else(|| status.to_string(), |signal| format!("signal {signal}"));
                return Err(format!("{how}\n{}", self.log()));
            }
            if answers() {
                return Ok(());
            }
            assert!(
                Instant::now() < deadline,
                "{} does not answer on port {}:\n{}",
                self.program.path.display(),
                self.port(),
                self.log()
            );
            thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.directory.clean_up();
        if let Some(mut child) = self.server().take() {
            let _ = child.wait();
        }
    }
}

/// Waits until `done`, at most [`DEADLINE`].
///
/// # Panics
/// If it takes longer; the message names `what`.
pub(super) fn wait_for(what: &str, done: impl FnMut() -> bool) {
    wait_for_or_panic(done, || format!("waited in vain for {what}"));
}

fn wait_for_or_panic(mut done: impl FnMut() -> bool, message: impl Fn() -> String) {
    let deadline = Instant::now() + DEADLINE;
    while !done() {
        assert!(Instant::now() < deadline, "{}", message());
        thread::sleep(Duration::from_millis(5));
    }
}

fn pid_of(child: &Child) -> Pid {
    Pid::from_child(child)
}

/// The process and its children, the process first. Servers have no grandchildren.
fn family(child: &Child) -> Vec<Pid> {
    let mut family = vec![pid_of(child)];
    let threads = fs::read_dir(format!("/proc/{}/task", child.id())).into_iter().flatten().flatten();
    for thread in threads {
        let children = fs::read_to_string(thread.path().join("children")).unwrap_or_default();
        family.extend(children.split_whitespace().filter_map(|pid| Pid::from_raw(pid.parse().ok()?)));
    }
    family
}

/// Holds the process and its children still, the process first so that no child is added meanwhile.
fn stop_family(child: &Child) -> Vec<Pid> {
    let _ = kill_process(pid_of(child), Signal::STOP);
    wait_for("a server to be held still", || !matches!(state(pid_of(child)), Some('R' | 'S' | 'D')));
    let family = family(child);
    for &pid in &family {
        let _ = kill_process(pid, Signal::STOP);
    }
    let still = || family.iter().all(|&pid| !matches!(state(pid), Some('R' | 'S' | 'D')));
    wait_for("a server's children to be held still", still);
    family
}

fn has_ended(pid: Pid) -> bool {
    matches!(state(pid), None | Some('Z' | 'X'))
}

/// The letter of `/proc/PID/stat`; `None` if there is no such process.
fn state(pid: Pid) -> Option<char> {
    let stat = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).ok()?;
    stat.rsplit_once(") ")?.1.chars().next()
}
