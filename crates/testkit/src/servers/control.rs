//! The methods that every server has, over its process.

/// Adds `kill`, `stop`, ... to a server with a field `process: Process` and a method `answers(&self) -> bool`.
macro_rules! control {
    ($server:ident) => {
        impl $server {
            /// The port on 127.0.0.1; it stays the same when the server is started again.
            pub fn port(&self) -> u16 {
                self.process.port()
            }

            /// The server's directory, with its configuration, data and log.
            pub fn directory(&self) -> &std::path::Path {
                self.process.directory()
            }

            /// The last lines that the server wrote to its log.
            pub fn log(&self) -> String {
                self.process.log()
            }

            /// The process id; `None` while the server does not run.
            pub fn pid(&self) -> Option<u32> {
                self.process.pid()
            }

            /// Kills the server and its children with SIGKILL and waits until they are gone.
            pub fn kill(&self) {
                self.process.kill();
            }

            /// Asks the server to stop and waits until it has.
            ///
            /// # Panics
            /// If it takes longer than a minute, which a paused one does.
            pub fn stop(&self) {
                self.process.stop();
            }

            /// Holds the server and its children still with SIGSTOP: connections stay open, nothing answers.
            ///
            /// # Panics
            /// If it does not run.
            pub fn pause(&self) {
                self.process.pause();
            }

            /// Lets the server go on after [`pause`](Self::pause).
            ///
            /// # Panics
            /// If it does not run.
            pub fn resume(&self) {
                self.process.resume();
            }

            /// Starts the server again, on the same port and directory, and waits until it answers.
            ///
            /// # Panics
            /// If it still runs or does not answer within a minute.
            pub fn start_again(&self) {
                self.process.start_again(|| self.answers());
            }

            /// [`stop`](Self::stop) and [`start_again`](Self::start_again).
            pub fn restart(&self) {
                self.stop();
                self.start_again();
            }
        }
    };
}
