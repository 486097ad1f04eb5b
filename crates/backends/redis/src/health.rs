//! What the servers say of themselves.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use commonhold_core::{Health, Result, Stats};

use crate::{
    driver::{Pipeline, Value, array, checked, command, integer, text},
    error::{Access, unexpected},
    node::Node,
    pool::Pool,
    servers::Servers,
    transitions::time,
};

/// From this share of `maxmemory` on there is a warning, in percent.
const FULL_PERCENT: u64 = 90;

/// The lines of INFO, by their name.
struct Info(HashMap<String, String>);

impl Info {
    async fn of(node: &Node) -> Result<Self> {
        let connection = node.connection().await?;
        let reply = text(connection.command(Access::Read, &command("INFO")).await?)?;
        let lines = reply.lines().filter_map(|line| line.split_once(':'));
        Ok(Self(lines.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()))
    }

    fn get(&self, name: &str) -> &str {
        self.0.get(name).map_or("", String::as_str)
    }

    fn number(&self, name: &str) -> u64 {
        self.get(name).parse().unwrap_or_default()
    }
}

pub(crate) async fn health(servers: &Servers) -> Result<Health> {
    let node = servers.any().await?;
    let connection = servers.noting(node.connection().await)?;
    let begun = Instant::now();
    let mut ask = Pipeline::with_capacity(2);
    ask.cmd("PING").cmd("TIME");
    let mut replies = connection.pipeline(Access::Read, &ask).await?.into_iter();
    let round_trip = begun.elapsed();
    checked(replies.next().ok_or_else(unexpected)?)?;
    let mut now = array(replies.next().ok_or_else(unexpected)?)?.into_iter();
    let mut part = || now.next().ok_or_else(unexpected);
    let now = time(part()?, part()?)?;
    let info = Info::of(&node).await?;
    let mut health =
        Health { version: info.get("redis_version").to_owned(), now: Some(now), ..Health::default() };
    details(&mut health, &info, round_trip);
    warnings(&mut health, &info);
    if let Servers::Cluster { cluster, .. } = servers {
        let nodes: Vec<Arc<Node>> =
            cluster.look().await?.primaries().map(|server| cluster.node(server)).collect();
        health.details.push(("primaries".to_owned(), nodes.len().to_string()));
        for node in nodes {
            checked(node.send(&crate::node::Request::new(Access::Read, command("PING"))).await?)?;
        }
    }
    Ok(health)
}

fn details(health: &mut Health, info: &Info, round_trip: Duration) {
    let mut detail = |name: &str, value: String| health.details.push((name.to_owned(), value));
    detail("round_trip", format!("{round_trip:.0?}"));
    for (name, line) in [
        ("role", "role"),
        ("mode", "redis_mode"),
        ("uptime_seconds", "uptime_in_seconds"),
        ("clients", "connected_clients"),
        ("memory", "used_memory_human"),
        ("max_memory", "maxmemory_human"),
        ("eviction", "maxmemory_policy"),
        ("replicas", "connected_slaves"),
        ("append_only_file", "aof_enabled"),
        ("last_snapshot", "rdb_last_bgsave_status"),
    ] {
        let value = info.get(line);
        // No limit.
        if !value.is_empty() && value != "0B" {
            detail(name, value.to_owned());
        }
    }
}

fn warnings(health: &mut Health, info: &Info) {
    let mut warn = |warning: String| health.warnings.push(warning);
    let (policy, used, most) =
        (info.get("maxmemory_policy"), info.number("used_memory"), info.number("maxmemory"));
    if most > 0 && policy != "noeviction" && !policy.is_empty() {
        warn(format!(
            "the server drops keys when it is full (maxmemory-policy {policy}): state will be lost; set it to \
             noeviction"
        ));
    }
    if most > 0 && used.saturating_mul(100) / most >= FULL_PERCENT {
        warn(format!(
            "the server is nearly full: {} of {}; raise maxmemory or delete something",
            size(used),
            size(most)
        ));
    }
    if info.get("aof_enabled") == "0" && info.number("rdb_last_save_time") <= started(info) {
        warn(
            "the server seems to keep nothing on disk: state is lost when it ends; set appendonly yes, or save \
             snapshots"
                .to_owned(),
        );
    }
    for (line, what) in [
        ("rdb_last_bgsave_status", "the last snapshot"),
        ("aof_last_write_status", "the last write to the append-only file"),
    ] {
        if info.get(line) == "err" {
            warn(format!("{what} failed; see the server's log and make room on its disk"));
        }
    }
    if info.get("role") == "slave" {
        warn("the server is a replica: writes are refused; name the primary, or ask Sentinels".to_owned());
    }
}

/// A number of bytes, to one digit: `0.5 MB`, `16.0 GB`.
fn size(bytes: u64) -> String {
    match bytes {
        1_000_000_000.. => format!("{:.1} GB", bytes as f64 / 1e9),
        _ => format!("{:.1} MB", bytes as f64 / 1e6),
    }
}

/// When the server was started, on its own clock. It takes that for the time of its last snapshot until it has
/// made one.
fn started(info: &Info) -> u64 {
    let now = info.number("server_time_usec") / 1_000_000;
    now.saturating_sub(info.number("uptime_in_seconds")).saturating_add(1)
}

pub(crate) async fn stats(servers: &Servers, pool: &Pool) -> Result<Stats> {
    let nodes = match servers {
        Servers::One { primary, .. } => vec![Arc::clone(primary)],
        Servers::Cluster { cluster, .. } => {
            cluster.layout().await?.primaries().map(|server| cluster.node(server)).collect()
        }
    };
    let (mut memory, mut limit, mut keys, mut clients) = (0, 0, 0, 0);
    for node in nodes {
        let info = servers.noting(Info::of(&node).await)?;
        memory += info.number("used_memory");
        limit += info.number("maxmemory");
        clients += info.number("connected_clients");
        let reply = node.send(&crate::node::Request::new(Access::Read, command("DBSIZE"))).await?;
        keys += u64::try_from(integer(reply)?).unwrap_or_default();
    }
    let (active, idle) = pool.figures();
    let details = vec![
        ("database_keys", keys),
        ("clients", clients),
        ("pool_active", active as u64),
        ("pool_idle", idle as u64),
    ];
    let mut stats = Stats::default();
    stats.memory_bytes = Some(memory);
    stats.memory_limit_bytes = (limit > 0).then_some(limit);
    stats.details = details;
    Ok(stats)
}

/// Gives memory back to the operating system, on every primary.
pub(crate) async fn purge(servers: &Servers) -> Result<()> {
    let mut purge = command("MEMORY");
    purge.arg("PURGE");
    let request = crate::node::Request::new(Access::Read, purge);
    match servers {
        Servers::One { primary, .. } => checked(primary.send(&request).await?).map(drop),
        Servers::Cluster { cluster, .. } => {
            let layout = cluster.layout().await?;
            for server in layout.primaries() {
                let _: Value = checked(cluster.node(server).send(&request).await?)?;
            }
            Ok(())
        }
    }
}
