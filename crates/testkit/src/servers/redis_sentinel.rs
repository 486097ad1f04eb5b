//! Three Sentinels over a Redis primary and two replicas.

use std::time::Duration;

use super::{Redis, process::wait_for};

/// The name under which the Sentinels know the primary.
pub const SERVICE: &str = "mymaster";

/// Three Sentinels over three servers, one of which is the primary.
#[derive(Debug)]
pub struct RedisSentinel {
    /// The servers; the first one begins as the primary.
    pub servers: [Redis; 3],
    /// The Sentinels.
    pub sentinels: [Redis; 3],
}

impl RedisSentinel {
    /// Starts all six, each server with an append-only file, and waits until a failover is possible. They take a
    /// primary for dead after two seconds without an answer, and have another one about two seconds later.
    ///
    /// # Panics
    /// If Redis is not installed, or not ready within a minute.
    pub fn start() -> Self {
        Self::with_down_after(Duration::from_secs(2))
    }

    /// Starts Sentinels that take a primary for dead after `timeout`, with a resolution of 1 ms.
    ///
    /// # Panics
    /// As [`start`](Self::start).
    pub fn with_down_after(timeout: Duration) -> Self {
        let servers = [(); 3].map(|()| Redis::builder().append_only().start());
        let [primary, replicas @ ..] = &servers;
        for replica in replicas {
            replica.follow(primary);
        }
        let sentinels = [(); 3].map(|()| {
            Redis::builder()
                .sentinel()
                .config(&format!("sentinel monitor {SERVICE} 127.0.0.1 {} 2", primary.port()))
                .config(&format!("sentinel down-after-milliseconds {SERVICE} {}", timeout.as_millis()))
                .config(&format!("sentinel failover-timeout {SERVICE} 5000"))
                .config(&format!("sentinel parallel-syncs {SERVICE} 2"))
                .start()
        });
        let group = Self { servers, sentinels };
        group.wait_until_ready();
        group
    }

    /// `redis+sentinel://127.0.0.1:PORT,127.0.0.1:PORT,127.0.0.1:PORT/mymaster`.
    pub fn url(&self) -> String {
        format!("redis+sentinel://{}/{SERVICE}", self.sentinels.each_ref().map(Redis::address).join(","))
    }

    /// The server that the first Sentinel alive takes for the primary.
    ///
    /// # Panics
    /// If no Sentinel runs.
    pub fn primary(&self) -> &Redis {
        let port = self.primary_port(self.alive().next().expect("a Sentinel runs"));
        self.servers.iter().find(|server| server.port() == port).expect("the primary is one of the servers")
    }

    /// Waits until every Sentinel alive knows a primary other than `old` that takes writes; returns it.
    ///
    /// # Panics
    /// If it takes longer than a minute.
    pub fn wait_for_failover_from(&self, old: &Redis) -> &Redis {
        let is_new = |sentinel: &Redis| self.primary_port(sentinel) != old.port();
        wait_for("a failover", || self.alive().all(is_new) && self.primary().info("role") == "master");
        self.primary()
    }

    /// Waits until the Sentinels know each other, a primary and two replicas that have its data.
    ///
    /// # Panics
    /// If it takes longer than a minute, which it does while one of the servers does not run.
    pub fn wait_until_ready(&self) {
        let ready = |sentinel: &Redis| {
            let reply = sentinel.cli(&["SENTINEL", "MASTER", SERVICE]);
            let fields: Vec<&str> = reply.lines().collect();
            let field = |name| fields.iter().skip_while(|field| **field != name).nth(1).copied();
            let replicas = sentinel.cli(&["SENTINEL", "REPLICAS", SERVICE]);
            field("flags") == Some("master")
                && field("num-other-sentinels") == Some("2")
                && replicas.lines().filter(|line| *line == "ok").count() == 2
        };
        wait_for("the Sentinels to be ready", || self.alive().all(ready));
    }

    fn alive(&self) -> impl Iterator<Item = &Redis> {
        self.sentinels.iter().filter(|sentinel| sentinel.pid().is_some())
    }

    fn primary_port(&self, sentinel: &Redis) -> u16 {
        let address = sentinel.cli(&["SENTINEL", "GET-MASTER-ADDR-BY-NAME", SERVICE]);
        address
            .lines()
            .nth(1)
            .and_then(|port| port.parse().ok())
            .expect("a Sentinel knows the primary's address")
    }
}
