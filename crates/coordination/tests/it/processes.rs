//! Many processes that are killed, stopped and cut off, and what holds all the same: nobody holds what another holds, as
//! seen through fenced writes; tokens rise; each increment counts once; at most one leads.
//!
//! The processes are this test binary, run with the name of a test that is ignored otherwise.

use std::{
    collections::BTreeMap,
    env,
    io::{BufRead as _, BufReader, Write as _},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use commonhold_coordination::{Election, Fenced, Locks, counter::Counter};
use commonhold_testkit::{
    proxy::{Mode, Proxy},
    servers::{Postgres, Redis, RedisCluster, RedisSentinel},
};

use crate::common::PATIENCE;

/// Short, so that what is killed is passed over soon.
const TTL: Duration = Duration::from_millis(600);
const PROCESSES: usize = 4;
/// How long faults go on.
const TIME: Duration = Duration::from_secs(8);

/// What one process says of what it did: `write TOKEN VALUE` once a fenced write was acknowledged, `count` once an
/// increment was, `lead TOKEN`.
type Lines = Arc<Mutex<Vec<String>>>;

struct Worker {
    child: Child,
    reader: Option<JoinHandle<()>>,
}

impl Worker {
    fn start(role: &str, url: &str, lines: &Lines) -> Self {
        let mut child = Command::new(env::current_exe().unwrap())
            .args(["--exact", "processes::worker", "--ignored", "--nocapture"])
            .env("COORDINATION_ROLE", role)
            .env("COORDINATION_URL", url)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let (output, lines) = (BufReader::new(child.stdout.take().unwrap()), Arc::clone(lines));
        let reader = thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                lines.lock().unwrap().push(line);
            }
        });
        Self { child, reader: Some(reader) }
    }

    fn signal(&self, name: &str) {
        let id = self.child.id().to_string();
        assert!(Command::new("kill").args(["-s", name, &id]).status().unwrap().success());
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }
}

/// What each process does until it is killed.
#[test]
#[ignore = "the tests here run it as processes of their own"]
fn worker() {
    let (role, url) = (env::var("COORDINATION_ROLE").unwrap(), env::var("COORDINATION_URL").unwrap());
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let store = loop {
            if let Ok(store) = commonhold::open(&url).await {
                break store;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        };
        let locks = Locks::new(store.clone()).unwrap();
        let election = Election::new(store.clone(), "e").unwrap();
        let counter = Counter::new(store.clone(), "counter").unwrap();
        for round in 0_u64.. {
            match &*role {
                "lock" => {
                    let Ok(Some(guard)) = locks.acquire("l", TTL, PATIENCE).await else { continue };
                    let fenced = Fenced::new(store.clone(), guard.fence()).unwrap();
                    let Ok(value) = fenced.get("n").await else { continue };
                    let value: u64 =
                        value.map_or(0, |value| std::str::from_utf8(&value).unwrap().parse().unwrap());
                    if fenced.put("n", (value + 1).to_string()).await.is_ok() {
                        say(&format!("write {} {}", guard.token(), value + 1));
                    }
                    let _ = guard.release().await;
                }
                "lead" => {
                    let Ok(lead) = election.campaign("me", TTL).await else { continue };
                    let fenced = Fenced::new(store.clone(), lead.fence()).unwrap();
                    let until = Instant::now() + Duration::from_millis(200);
                    while lead.is_leader() && Instant::now() < until {
                        let Ok(value) = fenced.get("n").await else { continue };
                        let value: u64 =
                            value.map_or(0, |value| std::str::from_utf8(&value).unwrap().parse().unwrap());
                        if fenced.put("n", (value + 1).to_string()).await.is_ok() {
                            say(&format!("write {} {}", lead.token(), value + 1));
                        }
                    }
                    let _ = lead.resign().await;
                }
                _ => {
                    let id = format!("{} {round}", std::process::id());
                    say(&format!("try {id}"));
                    if counter.increment_once(&id, 1).await.is_ok() {
                        say(&format!("counted {id}"));
                    }
                }
            }
        }
    });
}

fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}").unwrap();
    out.flush().unwrap();
}

/// Kills, stops and restarts processes for a while, and has `also` do its part. Returns what they said.
fn torment(role: &str, url: &str, mut also: impl FnMut(usize)) -> Vec<String> {
    let lines = Lines::default();
    let mut workers: Vec<Worker> = (0..PROCESSES).map(|_| Worker::start(role, url, &lines)).collect();
    let wait_for_more = || {
        let (before, begun) = (lines.lock().unwrap().len(), Instant::now());
        while lines.lock().unwrap().len() < before + 5 {
            assert!(begun.elapsed() < PATIENCE, "nobody gets any further");
            thread::sleep(Duration::from_millis(5));
        }
    };
    wait_for_more();
    let begun = Instant::now();
    for step in 0.. {
        let victim = fastrand::usize(..PROCESSES);
        match step % 3 {
            0 => workers[victim] = Worker::start(role, url, &lines),
            1 => {
                workers[victim].signal("STOP");
                // Past the time to live: the others go on.
                wait_for_more();
                workers[victim].signal("CONT");
            }
            _ => also(step),
        }
        wait_for_more();
        if begun.elapsed() > TIME && step >= 6 {
            break;
        }
    }
    drop(workers);
    let lines = lines.lock().unwrap().clone();
    assert!(lines.len() > 20, "{lines:?}");
    lines
}

/// Each value was written once, by tokens that rise with the values.
fn assert_excluded(lines: &[String]) {
    let mut writes = BTreeMap::new();
    for line in lines.iter().filter_map(|line| line.strip_prefix("write ")) {
        let (token, value) = line.split_once(' ').unwrap();
        let (token, value): (u64, u64) = (token.parse().unwrap(), value.parse().unwrap());
        assert_eq!(writes.insert(value, token), None, "{value} was written twice");
    }
    let tokens: Vec<u64> = writes.values().copied().collect();
    assert!(tokens.is_sorted(), "a later write has an older token: {writes:?}");
}

fn assert_tokens_rise(lines: &[String]) {
    let tokens =
        lines.iter().filter_map(|line| line.strip_prefix("write ")?.split_once(' ')?.0.parse::<u64>().ok());
    let mut tokens: Vec<u64> = tokens.collect();
    let said = tokens.len();
    tokens.sort();
    tokens.dedup();
    assert_eq!(tokens.len(), said, "a token was given twice");
}

fn assert_counted_once(lines: &[String], total: u64) {
    let of = |what: &str| lines.iter().filter(|line| line.starts_with(what)).count() as u64;
    assert!(of("counted ") <= total && total <= of("try "), "{} {total} {}", of("counted "), of("try "));
}

fn durable_redis() -> Redis {
    Redis::builder().config("appendonly yes").config("appendfsync always").start()
}

#[test]
fn locks_exclude_through_kills_and_pauses_of_processes_and_restarts_of_redis() {
    let redis = durable_redis();
    let lines = torment("lock", &redis.url(), |_| redis.restart());
    assert_excluded(&lines);
    assert_tokens_rise(&lines);
}

#[test]
fn locks_exclude_when_replies_are_lost_and_connections_are_cut() {
    let redis = durable_redis();
    let proxy = Proxy::before(redis.port());
    let lines = torment("lock", &redis.url_at(proxy.port()), |step| {
        if step % 2 == 0 {
            proxy.set(Mode::LoseReplies);
            thread::sleep(Duration::from_millis(300));
            proxy.set(Mode::Pass);
        }
        proxy.cut();
    });
    assert_excluded(&lines);
}

#[test]
fn locks_exclude_on_a_cluster() {
    let cluster = RedisCluster::start();
    let lines = torment("lock", &format!("{}?prefix={{p}}:", cluster.url()), |_| {});
    assert_excluded(&lines);
}

#[test]
fn locks_exclude_through_restarts_of_postgres() {
    let postgres = Postgres::start();
    let lines = torment("lock", &postgres.url(), |_| postgres.restart());
    assert_excluded(&lines);
}

#[test]
fn at_most_one_leader_acts_on_redis_and_postgres() {
    let redis = durable_redis();
    assert_excluded(&torment("lead", &redis.url(), |_| redis.restart()));
    let postgres = Postgres::start();
    assert_excluded(&torment("lead", &postgres.url(), |_| postgres.restart()));
}

#[test]
fn increments_with_ids_count_once_through_kills_and_lost_replies() {
    let redis = durable_redis();
    let proxy = Proxy::before(redis.port());
    let lines = torment("count", &redis.url_at(proxy.port()), |_| {
        proxy.set(Mode::LoseReplies);
        thread::sleep(Duration::from_millis(200));
        proxy.set(Mode::Pass);
        proxy.cut();
    });
    assert_counted_once(&lines, redis.cli(&["GET", "counter"]).trim().parse().unwrap());
}

/// A replica that takes over may not have heard of the last lock or write, so two may hold it. What does hold: tokens
/// rise, as far as the clocks of the servers agree.
#[test]
fn tokens_rise_through_a_failover_of_sentinel() {
    let sentinel = RedisSentinel::with_down_after(Duration::from_millis(500));
    sentinel.wait_until_ready();
    let mut failed = false;
    let lines = torment("lock", &sentinel.url(), |_| {
        if !std::mem::replace(&mut failed, true) {
            let old = sentinel.primary();
            old.kill();
            sentinel.wait_for_failover_from(old);
        }
    });
    assert!(failed);
    assert_tokens_rise(&lines);
}
