//! Many processes that are killed, stopped and cut off and whose clocks are an hour off, and what holds all the same:
//! nobody holds what another holds, as seen through fenced writes; tokens rise; each increment counts once; at most one
//! leads; no limit is passed; no breaker stays open for somebody who is gone.
//!
//! The processes are this test binary, run with the name of a test that is ignored otherwise.

use std::{
    collections::BTreeMap,
    env,
    io::{BufRead as _, BufReader, Write as _},
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicI64, Ordering::Relaxed},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use commonhold::{ErrorKind, Store};
use commonhold_coordination::{
    Election, Fenced, Locks,
    breaker::{self, DistributedBreaker, Settings},
    counter::Counter,
    limit::{
        ConcurrencyLimiter, DistributedLimiter, HybridLimiter, OnUnavailable, Rate, SlidingWindow,
        TokenBucket,
    },
};
use commonhold_testkit::{
    eventually,
    proxy::{Mode, Proxy},
    servers::{Postgres, Redis, RedisCluster, RedisSentinel, shift_clock},
};

use crate::common::PATIENCE;

/// Short, so that what is killed is passed over soon.
const TTL: Duration = Duration::from_millis(600);
const PROCESSES: usize = 4;
/// For how long processes are stopped, and parted from the store.
const PAST_TTL: Duration = Duration::from_millis(900);
/// How far clocks are off, in seconds.
const HOUR: i64 = 3600;
/// How long faults go on.
const TIME: Duration = Duration::from_secs(8);

/// What one process says of what it did: `clock SECONDS` when it begins; `write TOKEN VALUE` once a fenced write was
/// acknowledged; `try ID` before an increment and `counted ID` once it was; the name of a limiter that let it through, and
/// when it was asked and had answered; that of a concurrency limiter, and from when to when a permit was held for sure.
type Lines = Arc<Mutex<Vec<String>>>;

struct Worker {
    child: Child,
    reader: Option<JoinHandle<()>>,
}

impl Worker {
    fn start(role: &str, url: &str, lines: &Lines) -> Self {
        let mut command = Command::new(env::current_exe().unwrap());
        command
            .args(["--exact", "processes::worker", "--ignored", "--nocapture"])
            .env("COORDINATION_ROLE", role)
            .env("COORDINATION_URL", url)
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        static STARTED: AtomicI64 = AtomicI64::new(0);
        // An hour ahead, right, an hour behind, and again.
        shift_clock(&mut command, HOUR * (STARTED.fetch_add(1, Relaxed) % 3 - 1));
        let mut child = command.spawn().unwrap();
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
        say(&format!("clock {}", seconds()));
        if role == "limit" {
            return pass_limits(&store).await;
        }
        if role == "permits" {
            return hold_permits(&store).await;
        }
        if role == "probe" {
            return probe_for_ever(&store).await;
        }
        let locks = Locks::new(store.clone()).unwrap();
        let election = Election::new(store.clone(), "e").unwrap();
        let counter = Counter::new(store.clone(), "counter").unwrap();
        for round in 0_u64.. {
            match &*role {
                "lock" => {
                    let Ok(Some(guard)) = locks.acquire("l", TTL, PATIENCE).await else { continue };
                    let fenced = Fenced::new(store.clone(), guard.fence()).unwrap();
                    let value = match fenced.get("n").await {
                        Ok(value) => value,
                        Err(error) => {
                            say_if_violated(&error, guard.is_held());
                            continue;
                        }
                    };
                    let value: u64 =
                        value.map_or(0, |value| std::str::from_utf8(&value).unwrap().parse().unwrap());
                    match fenced.put("n", (value + 1).to_string()).await {
                        Ok(()) => say(&format!("write {} {}", guard.token(), value + 1)),
                        Err(error) => say_if_violated(&error, guard.is_held()),
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
                        match fenced.put("n", (value + 1).to_string()).await {
                            Ok(()) => say(&format!("write {} {}", lead.token(), value + 1)),
                            Err(error) => say_if_violated(&error, lead.is_leader()),
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

/// Somebody has a newer fence, though this one holds on for sure: by its own clock it would know.
fn say_if_violated(error: &commonhold::Error, held: bool) {
    if held && error.kind() == ErrorKind::Fenced {
        say(&format!("violated: {error}"));
    }
}

fn seconds() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    since.as_secs().cast_signed()
}

/// What a limiter lets through in this many seconds at most, whoever asks.
fn most(limiter: &str, seconds: f64) -> f64 {
    match limiter {
        "window" | "leased" => BURST as f64 * (seconds / WINDOW.as_secs_f64()).ceil(),
        _ => BURST as f64 + seconds * RATE as f64,
    }
}

const RATE: u64 = 100;
const BURST: u64 = 50;
const WINDOW: Duration = Duration::from_millis(500);

async fn pass_limits(store: &Store) {
    let limit = TokenBucket::new(Rate::per_second(RATE).unwrap(), BURST).unwrap();
    let slice = SlidingWindow::new(BURST, WINDOW).unwrap();
    let refuse = OnUnavailable::Refuse;
    let bucket = DistributedLimiter::new(store.clone(), "bucket", limit, refuse).unwrap();
    let window = DistributedLimiter::new(store.clone(), "window", slice, refuse).unwrap();
    let hybrid = HybridLimiter::new(store.clone(), "hybrid", limit, TTL / 2, refuse).unwrap();
    let leased = HybridLimiter::new(store.clone(), "leased", slice, WINDOW / 10, refuse).unwrap();
    loop {
        let asked = uptime();
        let (bucket, window, hybrid, leased) = tokio::join!(
            bucket.try_acquire(1),
            window.try_acquire(1),
            hybrid.try_acquire(1),
            leased.try_acquire(1)
        );
        let answered = uptime();
        let decisions = [("bucket", bucket), ("window", window), ("hybrid", hybrid), ("leased", leased)];
        for (name, decision) in decisions {
            if decision.is_ok_and(|decision| decision.allowed) {
                say(&format!("{name} {asked} {answered}"));
            }
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

const PERMITS: u64 = 3;
/// Of two forms that share one limit.
const IN_PROGRESS: &str = "permits";

async fn hold_permits(store: &Store) {
    let refuse = OnUnavailable::Refuse;
    let distributed = ConcurrencyLimiter::distributed(store.clone(), "p", PERMITS, TTL, refuse).unwrap();
    let hybrid = ConcurrencyLimiter::hybrid(store.clone(), "p", PERMITS, TTL, refuse).unwrap();
    let calls = [&distributed, &distributed, &hybrid, &hybrid].map(async |limiter| {
        loop {
            let Ok(permit) = limiter.acquire(1).await else {
                tokio::time::sleep(Duration::from_millis(5)).await;
                continue;
            };
            let from = uptime();
            tokio::time::sleep(Duration::from_millis(30)).await;
            let to = uptime();
            if permit.is_held() {
                say(&format!("{IN_PROGRESS} {from} {to}"));
            }
        }
    });
    futures_util::future::join_all(calls).await;
}

/// Centiseconds since the machine was started: the same for processes whose clocks are off.
fn uptime() -> u64 {
    let uptime = std::fs::read_to_string("/proc/uptime").unwrap();
    let (seconds, rest) = uptime.split_once('.').unwrap();
    format!("{seconds}{}", &rest[..2]).parse().unwrap()
}

fn breaker_in(store: &Store) -> DistributedBreaker {
    let settings = Settings::new().failure_threshold(1).open_for(Duration::from_millis(20)).probe_lease(TTL);
    DistributedBreaker::new(store.clone(), "b", &settings, breaker::OnUnavailable::Refuse).unwrap()
}

async fn probe_for_ever(store: &Store) {
    let breaker = breaker_in(store);
    let _probe = loop {
        match breaker.try_acquire().await {
            Ok(permit) if permit.is_probe() => break permit,
            _ => tokio::time::sleep(Duration::from_millis(5)).await,
        }
    };
    say("probe");
    std::future::pending().await
}

fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}").unwrap();
    out.flush().unwrap();
}

/// Kills, stops and restarts processes for a while, and has `also` do its part. Each reaches the store by one of the URLs.
/// Returns what they said.
fn torment(role: &str, urls: &[&str], mut also: impl FnMut(usize)) -> Vec<String> {
    let lines = Lines::default();
    let start = |number: usize| Worker::start(role, urls[number % urls.len()], &lines);
    let mut workers: Vec<Worker> = (0..PROCESSES).map(start).collect();
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
            0 => workers[victim] = start(victim),
            1 => {
                workers[victim].signal("STOP");
                // The others go on.
                wait_for_more();
                thread::sleep(PAST_TTL);
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
    let clocks = lines.iter().filter_map(|line| line.strip_prefix("clock ")?.parse::<i64>().ok());
    assert!(clocks.map(|clock| (clock - seconds()).abs()).any(|off| off > HOUR / 2), "all clocks are right");
    lines
}

/// Each value was written once, by tokens that rise with the values, and nobody was refused while it held.
fn assert_excluded(lines: &[String]) {
    let violated = lines.iter().find(|line| line.starts_with("violated"));
    assert_eq!(violated, None, "two held it at once");
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
    let lines = torment("lock", &[&redis.url()], |_| redis.restart());
    assert_excluded(&lines);
    assert_tokens_rise(&lines);
}

#[test]
fn locks_exclude_when_replies_are_lost_and_connections_are_cut() {
    let redis = durable_redis();
    let proxy = Proxy::before(redis.port());
    let lines = torment("lock", &[&redis.url_at(proxy.port())], |step| {
        if step % 2 == 0 {
            proxy.set(Mode::LoseReplies);
            thread::sleep(Duration::from_millis(300));
            proxy.set(Mode::Pass);
        }
        proxy.cut();
    });
    assert_excluded(&lines);
}

fn restart_or_lose_replies(redis: &Redis, proxy: &Proxy, step: usize) {
    if step.is_multiple_of(2) {
        return redis.restart();
    }
    proxy.set(Mode::LoseReplies);
    thread::sleep(Duration::from_millis(200));
    proxy.set(Mode::Pass);
    proxy.cut();
}

/// Parts those who come this way from the store for longer than what they hold lasts. What they sent meanwhile arrives late,
/// or never.
fn part(proxy: &Proxy, step: usize) {
    proxy.set(if step.is_multiple_of(2) { Mode::Hold } else { Mode::BlackHole });
    thread::sleep(PAST_TTL);
    proxy.set(Mode::Pass);
    if !step.is_multiple_of(2) {
        proxy.cut();
    }
}

#[test]
fn locks_exclude_and_one_leads_when_half_of_the_processes_are_parted_from_the_store() {
    let redis = durable_redis();
    let proxy = Proxy::before(redis.port());
    for role in ["lock", "lead"] {
        let lines = torment(role, &[&redis.url(), &redis.url_at(proxy.port())], |step| part(&proxy, step));
        assert_excluded(&lines);
        redis.cli(&["FLUSHALL"]);
    }
}

#[test]
fn limits_are_not_passed_when_half_of_the_processes_are_parted_from_the_store() {
    let redis = durable_redis();
    let proxy = Proxy::before(redis.port());
    assert_limits_hold(&[&redis.url(), &redis.url_at(proxy.port())], |step| part(&proxy, step));
}

#[test]
fn locks_exclude_on_a_cluster() {
    let cluster = RedisCluster::start();
    let lines = torment("lock", &[&format!("{}?prefix={{p}}:", cluster.url())], |_| {});
    assert_excluded(&lines);
}

#[test]
fn locks_exclude_through_restarts_of_postgres() {
    let postgres = Postgres::start();
    let lines = torment("lock", &[&postgres.url()], |_| postgres.restart());
    assert_excluded(&lines);
}

#[test]
fn at_most_one_leader_acts_on_redis_and_postgres() {
    let redis = durable_redis();
    assert_excluded(&torment("lead", &[&redis.url()], |_| redis.restart()));
    let postgres = Postgres::start();
    assert_excluded(&torment("lead", &[&postgres.url()], |_| postgres.restart()));
}

#[test]
fn increments_with_ids_count_once_through_kills_and_lost_replies() {
    let redis = durable_redis();
    let proxy = Proxy::before(redis.port());
    let lines = torment("count", &[&redis.url_at(proxy.port())], |_| {
        proxy.set(Mode::LoseReplies);
        thread::sleep(Duration::from_millis(200));
        proxy.set(Mode::Pass);
        proxy.cut();
    });
    assert_counted_once(&lines, redis.cli(&["GET", "counter"]).trim().parse().unwrap());
}

fn assert_limits_hold(urls: &[&str], also: impl FnMut(usize)) {
    let lines = torment("limit", urls, also);
    for limiter in ["bucket", "window", "hybrid", "leased"] {
        let passed = lines.iter().filter_map(|line| line.strip_prefix(limiter)?.trim_start().split_once(' '));
        let passed = passed.map(|(asked, answered)| (asked.parse().unwrap(), answered.parse().unwrap()));
        let mut passed: Vec<(u64, u64)> = passed.collect();
        assert!(passed.len() > 10, "{limiter} lets something through: {passed:?}");
        passed.sort_unstable_by_key(|(_, answered)| *answered);
        // In every stretch of time, long or short, that begins when somebody asked and ends when somebody was answered.
        for &(from, _) in &passed {
            let within = passed.iter().filter(|(asked, _)| *asked >= from);
            for (count, (_, until)) in (1..).zip(within) {
                let most = most(limiter, (until - from + 1) as f64 / 100.0);
                assert!(
                    f64::from(count) <= most,
                    "{limiter} let {count} through from {from} to {until}: {most} at most"
                );
            }
        }
    }
}

#[test]
fn limits_are_not_passed_through_kills_and_pauses_of_processes_restarts_and_lost_replies() {
    let redis = durable_redis();
    let proxy = Proxy::before(redis.port());
    assert_limits_hold(&[&redis.url_at(proxy.port())], |step| restart_or_lose_replies(&redis, &proxy, step));
}

#[test]
fn limits_are_not_passed_on_a_cluster_and_through_restarts_of_postgres() {
    let cluster = RedisCluster::start();
    assert_limits_hold(&[&cluster.url()], |_| {});
    let postgres = Postgres::start();
    assert_limits_hold(&[&postgres.url()], |_| postgres.restart());
}

fn assert_permits_hold(urls: &[&str], also: impl FnMut(usize)) {
    let lines = torment("permits", urls, also);
    let held = lines.iter().filter_map(|line| line.strip_prefix(IN_PROGRESS)?.trim_start().split_once(' '));
    let held: Vec<(u64, u64)> = held.map(|(from, to)| (from.parse().unwrap(), to.parse().unwrap())).collect();
    // At the beginning of each centisecond after the one in which it began, up to that in which it ended.
    let mut in_progress = BTreeMap::<u64, u64>::new();
    for at in held.iter().flat_map(|(from, to)| from + 1..=*to) {
        *in_progress.entry(at).or_default() += 1;
    }
    let most = in_progress.values().max();
    assert_eq!(most, Some(&PERMITS), "at a time, of {} that were held", held.len());
}

#[test]
fn no_more_permits_are_held_through_kills_and_pauses_of_processes_restarts_and_lost_replies() {
    let redis = durable_redis();
    let proxy = Proxy::before(redis.port());
    assert_permits_hold(&[&redis.url_at(proxy.port())], |step| restart_or_lose_replies(&redis, &proxy, step));
}

#[test]
fn no_more_permits_are_held_when_half_of_the_processes_are_parted_from_the_store() {
    let redis = durable_redis();
    let proxy = Proxy::before(redis.port());
    assert_permits_hold(&[&redis.url_at(proxy.port()), &redis.url()], |step| part(&proxy, step));
}

#[test]
fn no_more_permits_are_held_on_a_cluster_and_through_restarts_of_postgres() {
    let cluster = RedisCluster::start();
    assert_permits_hold(&[&cluster.url()], |_| {});
    let postgres = Postgres::start();
    assert_permits_hold(&[&postgres.url()], |_| postgres.restart());
}

async fn outlives_a_probe(url: &str) {
    let lines = Lines::default();
    let breaker = breaker_in(&commonhold::open(url).await.unwrap());
    assert!(breaker.execute(|| async { Err::<(), _>(()) }).await.is_err());
    let worker = Worker::start("probe", url, &lines);
    eventually(PATIENCE, "a probe is made", async || {
        lines.lock().unwrap().iter().any(|line| line == "probe")
    })
    .await;
    drop(worker);
    eventually(PATIENCE, "another probe may be made", async || {
        breaker.execute(async || Ok::<_, ()>(())).await.is_ok()
    })
    .await;
    assert_eq!(breaker.show().await.unwrap().state, breaker::State::Closed);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_breaker_closes_though_the_process_that_made_the_probe_was_killed() {
    let (redis, postgres) = (durable_redis(), Postgres::start());
    outlives_a_probe(&redis.url()).await;
    outlives_a_probe(&postgres.url()).await;
}

/// A replica that takes over may not have heard of the last lock or write, so two may hold it. What does hold: tokens
/// rise, as far as the clocks of the servers agree.
#[test]
fn tokens_rise_through_a_failover_of_sentinel() {
    let sentinel = RedisSentinel::with_down_after(Duration::from_millis(500));
    sentinel.wait_until_ready();
    let mut failed = false;
    let lines = torment("lock", &[&sentinel.url()], |_| {
        if !std::mem::replace(&mut failed, true) {
            let old = sentinel.primary();
            old.kill();
            sentinel.wait_for_failover_from(old);
        }
    });
    assert!(failed);
    assert_tokens_rise(&lines);
}

#[test]
fn tokens_rise_through_a_failover_of_a_cluster() {
    let cluster = RedisCluster::start();
    let mut failed = false;
    let lines = torment("lock", &[&format!("{}?prefix={{p}}:", cluster.url())], |_| {
        if !std::mem::replace(&mut failed, true) {
            cluster.primary_of(cluster.slot("p")).kill();
            cluster.wait_until_whole();
        }
    });
    assert!(failed);
    assert_tokens_rise(&lines);
}
