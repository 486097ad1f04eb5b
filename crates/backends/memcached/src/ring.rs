//! All the servers: which of them has a key, and how they are.

use std::{collections::HashMap, sync::Arc, time::Duration};

use commonhold_core::{Error, ErrorKind, Health, Key, Result, Stats, Timestamp};
use futures_util::future::join_all;
use tokio::sync::{Mutex, MutexGuard};
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use crate::{
    backend::unexpected,
    config::MemcachedConfig,
    keys::WireKey,
    server::{Answer, Server},
    wire::Reply,
};

/// How many keys can be changed under contention at once.
const TURNS: u64 = 1024;

#[derive(Debug)]
pub(crate) struct Ring {
    pub(crate) config: Arc<MemcachedConfig>,
    /// Each with the hash of its name.
    servers: Vec<(u64, Server)>,
    turns: Vec<Mutex<()>>,
}

impl Ring {
    pub(crate) fn new(config: MemcachedConfig) -> Self {
        let config = Arc::new(config);
        let server = |endpoint: &commonhold_core::url::Endpoint| {
            (seed(&endpoint.to_string()), Server::new(endpoint.clone(), Arc::clone(&config)))
        };
        let servers = config.servers.iter().map(server).collect();
        let turns = (0..TURNS).map(|_| Mutex::default()).collect();
        Self { config, servers, turns }
    }

    /// The server that has a key, and the key as it knows it.
    pub(crate) fn place(&self, key: &Key) -> (&Server, WireKey) {
        let wire = WireKey::new(&self.config.prefix, key);
        (self.server(wire.token()), wire)
    }

    /// The server to which the key and the name of the server together give the greatest hash: when one is added or
    /// taken away, only the keys that it gets or had move. "Highest random weight", Thaler and Ravishankar (1996).
    #[expect(clippy::unreachable, reason = "a configuration without servers is refused")]
    fn server(&self, token: &[u8]) -> &Server {
        let best = self.servers.iter().max_by_key(|(seed, _)| weight(*seed, token));
        let Some((_, server)) = best else { unreachable!("there is at least one server") };
        server
    }

    /// The places of keys among all and the keys on the wire, for each server that has any.
    pub(crate) fn by_server<'a>(
        &self,
        keys: impl Iterator<Item = &'a Key>,
    ) -> Vec<(&Server, Vec<(usize, WireKey)>)> {
        let mut places: HashMap<*const Server, (&Server, Vec<_>)> = HashMap::new();
        for (index, key) in keys.enumerate() {
            let (server, wire) = self.place(key);
            places.entry(server).or_insert_with(|| (server, Vec::new())).1.push((index, wire));
        }
        places.into_values().collect()
    }

    /// Waits until no other of this process is changing the key under contention.
    pub(crate) async fn turn(&self, key: &Key) -> Option<MutexGuard<'_, ()>> {
        let index = usize::try_from(xxh3_64(key.as_bytes()) % TURNS).ok()?;
        Some(self.turns.get(index)?.lock().await)
    }

    pub(crate) fn now(&self) -> Timestamp {
        self.servers.first().map(|(_, server)| server.now()).unwrap_or_default()
    }

    async fn reports(&self) -> Result<Vec<(&Server, Result<Report>)>> {
        let reports = self.servers.iter().map(|(_, server)| async move { (server, report(server).await) });
        let reports = join_all(reports).await;
        if reports.iter().all(|(_, report)| report.is_err())
            && let Some(error) = reports.iter().find_map(|(_, report)| report.as_ref().err())
        {
            return Err(error.clone());
        }
        Ok(reports)
    }

    pub(crate) async fn health(&self) -> Result<Health> {
        let mut health = Health::default();
        for (server, report) in self.reports().await? {
            let endpoint = server.shared.endpoint.to_string();
            match report {
                Ok(report) => {
                    server.shared.learn_time(report.number("time"));
                    health.now = health.now.or_else(|| report.now());
                    if health.version.is_empty() {
                        health.version = report.text("version").to_owned();
                    }
                    health.warnings.extend(report.warnings(&endpoint, &self.config));
                    health.details.push((format!("server {endpoint}"), report.summary()));
                }
                Err(error) => {
                    let warning =
                        format!("{}; its share of the keys is away until it is back", error.message());
                    health.warnings.push(warning);
                    health.details.push((format!("server {endpoint}"), "away".to_owned()));
                }
            }
        }
        Ok(health)
    }

    pub(crate) async fn stats(&self) -> Result<Stats> {
        let reports = self.reports().await?;
        let sum = |name: &str| {
            let numbers = reports.iter().flat_map(|(_, report)| report).map(|report| report.number(name));
            numbers.fold(0u64, u64::saturating_add)
        };
        let mut stats = Stats::default();
        stats.memory_bytes = Some(sum("bytes"));
        stats.memory_limit_bytes = Some(sum("limit_maxbytes"));
        stats.details = vec![
            ("entries", sum("curr_items")),
            ("evictions", sum("evictions")),
            ("connections", sum("curr_connections")),
            ("gets of all clients", sum("cmd_get")),
            ("hits of all clients", sum("get_hits")),
            (
                "commands waiting here",
                self.servers.iter().map(|(_, server)| server.shared.waiting() as u64).sum(),
            ),
        ];
        Ok(stats)
    }
}

fn seed(name: &str) -> u64 {
    xxh3_64(name.as_bytes())
}

fn weight(seed: u64, token: &[u8]) -> u64 {
    xxh3_64_with_seed(token, seed)
}

/// What a server says of itself.
struct Report {
    figures: HashMap<String, String>,
    settings: HashMap<String, String>,
}

async fn report(server: &Server) -> Result<Report> {
    let mut commands = server.commands();
    commands.stats("stats");
    commands.stats("stats settings");
    let figures = |reply: Reply| match reply {
        Reply::Stats(stats) => Ok(stats.into_iter().collect()),
        other => Err(unexpected(other)),
    };
    let [figures_now, settings] = server.ask(commands).await?.array()?.map(figures);
    Ok(Report { figures: figures_now?, settings: settings? })
}

impl Report {
    fn text(&self, name: &str) -> &str {
        self.figures.get(name).map_or("", String::as_str)
    }

    fn number(&self, name: &str) -> u64 {
        self.text(name).parse().unwrap_or_default()
    }

    /// Half a second into the second that the server tells.
    fn now(&self) -> Option<Timestamp> {
        let seconds = i64::try_from(self.number("time")).ok().filter(|seconds| *seconds > 0)?;
        Some(Timestamp::from_millis(seconds.saturating_mul(1000).saturating_add(500)))
    }

    fn summary(&self) -> String {
        format!(
            "version {}, up {:?}, {} entries, {} of {} MiB",
            self.text("version"),
            Duration::from_secs(self.number("uptime")),
            self.number("curr_items"),
            self.number("bytes") >> 20,
            self.number("limit_maxbytes") >> 20,
        )
    }

    fn warnings(&self, endpoint: &str, config: &MemcachedConfig) -> Vec<String> {
        let mut warnings = Vec::new();
        let evictions = self.number("evictions");
        if evictions > 0 {
            warnings.push(format!(
                "{endpoint} was full and has dropped {evictions} entries that had not expired: state is lost; give it \
                 more memory (-m)"
            ));
        }
        let setting = |name: &str| self.settings.get(name).map_or("", String::as_str);
        let limit: u64 = setting("item_size_max").parse().unwrap_or_default();
        if limit > 0 && limit < config.max_value_bytes + 1024 {
            warnings.push(format!(
                "{endpoint} takes at most {limit} bytes with the key, and drops what was under the key of a longer one; \
                 lower max_value from {} or raise its option -I",
                config.max_value_bytes
            ));
        }
        if setting("cas_enabled") == "no" {
            warnings.push(format!("{endpoint} was started without compare-and-swap (-C)"));
        }
        warnings
    }
}

impl Answer {
    /// The reply to the only command.
    pub(crate) fn single(self) -> Result<Reply> {
        let [reply] = self.array()?;
        Ok(reply)
    }

    /// The reply to the second of two commands.
    pub(crate) fn single_of_two(self) -> Result<Reply> {
        let [_, reply] = self.array()?;
        Ok(reply)
    }

    pub(crate) fn array<const N: usize>(self) -> Result<[Reply; N]> {
        self.replies
            .try_into()
            .map_err(|_| Error::new(ErrorKind::Internal, "another number of replies than of commands"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn choose(names: &[&'static str], key: &str) -> &'static str {
        names.iter().max_by_key(|name| weight(seed(name), key.as_bytes())).unwrap()
    }

    #[test]
    fn keys_lie_where_every_version_of_this_library_looks_for_them() {
        let names = ["a:11211", "b:11211", "c:11211"];
        let places: Vec<_> = (0..8).map(|i| choose(&names, &format!("key{i}"))).collect();
        assert_eq!(places.iter().map(|name| &name[..1]).collect::<String>(), "cccbacbb");
    }

    #[test]
    fn a_further_server_moves_only_the_keys_that_it_gets() {
        let (mut moved, mut all) = (0, [0; 3]);
        for i in 0..3000 {
            let key = format!("key{i}");
            let (before, after) = (choose(&["a:1", "b:1"], &key), choose(&["a:1", "b:1", "c:1"], &key));
            assert!(before == after || after == "c:1");
            moved += u32::from(before != after);
            all[usize::from(after.as_bytes()[0] - b'a')] += 1;
        }
        assert!((800..1200).contains(&moved), "{moved}");
        assert!(all.iter().all(|share| (800..1200).contains(share)), "{all:?}");
    }
}
