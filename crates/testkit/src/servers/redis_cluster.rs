//! A Redis Cluster of three primaries and three replicas.

use std::{ops::RangeInclusive, time::Duration};

use super::{Redis, process::wait_for};

/// What the three primaries begin with.
const SLOTS: [RangeInclusive<u16>; 3] = [0..=5_460, 5_461..=10_922, 10_923..=16_383];

/// How many keys are moved at once.
const MIGRATED: &str = "100";

/// Six servers: the first three begin as primaries, the others as their replicas, in this order.
#[derive(Debug)]
pub struct RedisCluster {
    /// The servers.
    pub nodes: [Redis; 6],
}

impl RedisCluster {
    /// Starts a cluster that takes a primary for dead after two seconds without an answer, and has another one
    /// about a second later. Waits until it is whole.
    ///
    /// # Panics
    /// If Redis is not installed, or the cluster is not whole within a minute.
    pub fn start() -> Self {
        Self::with_node_timeout(Duration::from_secs(2))
    }

    /// Starts a cluster that takes a primary for dead after `timeout`, with a resolution of 1 ms.
    ///
    /// # Panics
    /// As [`start`](Self::start).
    pub fn with_node_timeout(timeout: Duration) -> Self {
        let nodes = [(); 6].map(|()| {
            Redis::builder()
                .member()
                .append_only()
                .config(&format!("cluster-node-timeout {}", timeout.as_millis()))
                // A replica is good enough however long it was on its own.
                .config("cluster-replica-validity-factor 0")
                .start()
        });
        let cluster = Self { nodes };
        cluster.join();
        cluster
    }

    /// `redis+cluster://127.0.0.1:PORT,..` with all six.
    pub fn url(&self) -> String {
        format!("redis+cluster://{}", self.nodes.each_ref().map(Redis::address).join(","))
    }

    /// The slot of a key, 0 to 16,383.
    pub fn slot(&self, key: &str) -> u16 {
        self.living().cli(&["CLUSTER", "KEYSLOT", key]).parse().expect("a slot is a number")
    }

    /// The primary of a slot, as the first node alive knows it.
    ///
    /// # Panics
    /// If no node knows one.
    pub fn primary_of(&self, slot: u16) -> &Redis {
        let members = self.members();
        let owner = members.iter().find(|member| member.slots.iter().any(|range| range.contains(&slot)));
        self.node(owner.unwrap_or_else(|| panic!("nobody has slot {slot}")).port)
    }

    /// Waits until every node alive says that the cluster works, that all primaries live, and that each replica
    /// alive has its primary's data.
    ///
    /// # Panics
    /// If it takes longer than a minute.
    pub fn wait_until_whole(&self) {
        let whole = |node: &Redis| {
            let nodes = node.try_cli(&["CLUSTER", "NODES"]).unwrap_or_default();
            // A replica that others still take for a node without slots is not asked by anybody.
            let known = parse(&nodes)
                .iter()
                .all(|member| member.replica || !member.slots.is_empty() || !member.alive);
            let owners_live = parse(&nodes).iter().all(|member| {
                member.slots.is_empty() || member.alive && self.node(member.port).pid().is_some()
            });
            let state = node.try_cli(&["CLUSTER", "INFO"]).unwrap_or_default();
            let info = node.try_cli(&["INFO", "replication"]).unwrap_or_default();
            known
                && owners_live
                && state.contains("cluster_state:ok")
                && (info.contains("role:master") || info.contains("master_link_status:up"))
        };
        wait_for("the cluster to be whole", || self.alive().all(whole));
    }

    /// Opens the move of a slot to `target`: keys that are not there any more are asked for at the target (ASK).
    ///
    /// # Panics
    /// If the slot is the target's already, or the cluster refuses.
    pub fn begin_move(&self, slot: u16, target: &Redis) {
        let source = self.primary_of(slot);
        assert_ne!(source.port(), target.port(), "slot {slot} is there already");
        let number = slot.to_string();
        target.cli(&["CLUSTER", "SETSLOT", &number, "IMPORTING", &id(source)]);
        source.cli(&["CLUSTER", "SETSLOT", &number, "MIGRATING", &id(target)]);
    }

    /// Moves up to 100 keys of a slot that is being moved to `target`; returns how many there were.
    ///
    /// # Panics
    /// If the cluster refuses.
    pub fn move_keys(&self, slot: u16, target: &Redis) -> usize {
        let source = self.primary_of(slot);
        let keys = source.cli(&["CLUSTER", "GETKEYSINSLOT", &slot.to_string(), MIGRATED]);
        let keys: Vec<&str> = keys.lines().filter(|key| !key.is_empty()).collect();
        if !keys.is_empty() {
            let port = target.port().to_string();
            let mut command = vec!["MIGRATE", "127.0.0.1", &port, "", "0", "10000", "REPLACE", "KEYS"];
            command.extend(&keys);
            source.cli(&command);
        }
        keys.len()
    }

    /// Gives an emptied slot to `target` and tells every primary.
    ///
    /// # Panics
    /// If the cluster refuses.
    pub fn finish_move(&self, slot: u16, target: &Redis) {
        let (number, owner, source) = (slot.to_string(), id(target), self.primary_of(slot));
        let primaries = self.alive().filter(|node| node.info("role") == "master");
        let others = primaries.filter(|node| ![source.port(), target.port()].contains(&node.port()));
        for node in [target, source].into_iter().chain(others) {
            node.cli(&["CLUSTER", "SETSLOT", &number, "NODE", &owner]);
        }
    }

    /// Moves slots with their keys to `target`, one by one, while clients go on. About 20 ms a slot.
    /// Keys that hold a line's end cannot be moved.
    ///
    /// # Panics
    /// If one is the target's already, or the cluster refuses.
    pub fn move_slots(&self, slots: impl IntoIterator<Item = u16>, target: &Redis) {
        for slot in slots {
            self.begin_move(slot, target);
            while self.move_keys(slot, target) > 0 {}
            self.finish_move(slot, target);
        }
    }

    fn join(&self) {
        let [first, others @ ..] = &self.nodes;
        let (primaries, replicas) = self.nodes.split_at(SLOTS.len());
        for (epoch, (primary, slots)) in primaries.iter().zip(SLOTS).enumerate() {
            primary.cli(&["CLUSTER", "SET-CONFIG-EPOCH", &(epoch + 1).to_string()]);
            let (from, to) = (slots.start().to_string(), slots.end().to_string());
            primary.cli(&["CLUSTER", "ADDSLOTSRANGE", &from, &to]);
        }
        for node in others {
            let (port, bus) = (node.port().to_string(), node.bus_port().to_string());
            first.cli(&["CLUSTER", "MEET", "127.0.0.1", &port, &bus]);
        }
        let known = |node: &Redis| node.cli(&["CLUSTER", "INFO"]).contains("cluster_known_nodes:6");
        wait_for("the nodes to know each other", || self.nodes.iter().all(known));
        for (replica, primary) in replicas.iter().zip(primaries) {
            let primary = id(primary);
            wait_for("a replica to find its primary", || {
                replica.try_cli(&["CLUSTER", "REPLICATE", &primary]).is_ok()
            });
        }
        self.wait_until_whole();
    }

    fn members(&self) -> Vec<Member> {
        parse(&self.living().cli(&["CLUSTER", "NODES"]))
    }

    fn alive(&self) -> impl Iterator<Item = &Redis> {
        self.nodes.iter().filter(|node| node.pid().is_some())
    }

    fn living(&self) -> &Redis {
        self.alive().next().expect("a node runs")
    }

    fn node(&self, port: u16) -> &Redis {
        self.nodes.iter().find(|node| node.port() == port).expect("the port is a node's")
    }
}

/// A line of `CLUSTER NODES`.
struct Member {
    port: u16,
    alive: bool,
    replica: bool,
    slots: Vec<RangeInclusive<u16>>,
}

/// `ID HOST:PORT@BUS FLAGS PRIMARY PING PONG EPOCH LINK SLOTS..`; a slot on the move is `[SLOT->-ID]`.
fn parse(nodes: &str) -> Vec<Member> {
    let member = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let port = fields.get(1)?.split_once('@')?.0.rsplit_once(':')?.1.parse().ok()?;
        let alive = !fields.get(2)?.contains("fail");
        let range = |text: &&str| {
            let (from, to) = text.split_once('-').unwrap_or((text, text));
            Some(from.parse().ok()?..=to.parse().ok()?)
        };
        let replica = fields.get(2)?.contains("slave");
        Some(Member { port, alive, replica, slots: fields.iter().skip(8).filter_map(range).collect() })
    };
    nodes.lines().filter_map(member).collect()
}

fn id(node: &Redis) -> String {
    node.cli(&["CLUSTER", "MYID"])
}
