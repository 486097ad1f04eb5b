//! What a caller sees of a fault: which errors, for how long, and how soon it works again once the server does.
//!
//! The stores are opened by URL with their defaults, but for `retries=0`: what the retry layer would hide shows.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use commonhold::{Error, Result, Store};
use commonhold_testkit::{
    proxy::Proxy,
    servers::{Memcached, Postgres, Redis, RedisCluster, RedisSentinel},
};
use tokio::runtime::Runtime;

/// How many tasks write and read all the while.
const TASKS: usize = 8;
/// How long a server is paused: longer than anything waits for a reply.
const PAUSE: Duration = Duration::from_secs(12);

pub(crate) fn run(runtime: &Runtime) -> Result<()> {
    println!("\n### Faults under {TASKS} tasks that put and get, default timeouts, no retries\n");
    println!(
        "| fault | errors | a task had no success for | and after the server was back for |\n|---|---|---:|---:|"
    );
    runtime.block_on(async {
        redis().await?;
        postgres().await?;
        let server = Memcached::start();
        let restart = || server.restart();
        outage("Memcached: killed and started again", &server.url(), restart).await
    })
}

async fn redis() -> Result<()> {
    let redis = Redis::builder().append_only().start();
    let restart = || {
        redis.kill();
        redis.start_again();
    };
    outage("Redis: killed and started again", &redis.url(), restart).await?;
    let pause = || {
        redis.pause();
        std::thread::sleep(PAUSE);
        redis.resume();
    };
    outage("Redis: paused for 12 s and resumed", &redis.url(), pause).await?;
    let proxy = Proxy::before(redis.port());
    outage("Redis: connections cut", &redis.url_at(proxy.port()), || proxy.cut()).await?;
    let group = RedisSentinel::with_down_after(Duration::from_secs(1));
    let fail_over = || {
        let old = group.primary();
        old.kill();
        group.wait_for_failover_from(old);
    };
    outage("Redis: primary killed, Sentinels fail over (down-after 1 s)", &group.url(), fail_over).await?;
    let cluster = RedisCluster::with_node_timeout(Duration::from_secs(1));
    let fail_over = || {
        let old = cluster.primary_of(cluster.slot("k0"));
        old.kill();
        while cluster.primary_of(cluster.slot("k0")).port() == old.port() {
            std::thread::sleep(Duration::from_millis(5));
        }
    };
    outage("Redis: node killed, the Cluster fails over (node timeout 1 s)", &cluster.url(), fail_over).await
}

async fn postgres() -> Result<()> {
    let server = Postgres::start();
    let restart = || {
        server.kill();
        server.start_again();
    };
    outage("PostgreSQL: killed and started again", &server.url(), restart).await?;
    let pause = || {
        server.pause();
        std::thread::sleep(PAUSE);
        server.resume();
    };
    outage("PostgreSQL: paused for 12 s and resumed", &server.url(), pause).await?;
    let proxy = Proxy::before(server.port());
    outage("PostgreSQL: connections cut", &server.url_at(proxy.port()), || proxy.cut()).await
}

/// What the calls met, over all tasks.
#[derive(Default)]
struct Seen {
    errors: BTreeSet<String>,
    /// When the calls of each task that succeeded began and ended.
    successes: [Vec<(Instant, Instant)>; TASKS],
}

/// Prints what becomes of calls before, during and after a fault, which is over when `fault` returns.
async fn outage(name: &str, url: &str, fault: impl FnOnce() + Send) -> Result<()> {
    let joint = if url.contains('?') { '&' } else { '?' };
    let store = commonhold::open(&format!("{url}{joint}retries=0")).await?;
    let seen = Arc::new(Mutex::new(Seen::default()));
    let tasks: Vec<_> =
        (0..TASKS).map(|task| tokio::spawn(load(store.clone(), task, Arc::clone(&seen)))).collect();
    succeed_since(&seen, Instant::now()).await;
    let begun = Instant::now();
    let back = tokio::task::block_in_place(|| {
        fault();
        Instant::now()
    });
    let again = succeed_since(&seen, back).await;
    for task in tasks {
        task.abort();
    }
    let seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
    let errors: Vec<&str> = seen.errors.iter().map(String::as_str).collect();
    let errors = if errors.is_empty() { "none".to_owned() } else { errors.join(", ") };
    let (gap, again) = (longest_gap(&seen.successes, begun), again.saturating_duration_since(back));
    println!("| {name} | {errors} | {} | {} |", seconds(gap), seconds(again));
    Ok(())
}

/// Puts and gets keys of its own, again and again.
async fn load(store: Store, task: usize, seen: Arc<Mutex<Seen>>) {
    let key = format!("k{task}");
    for round in 0u64.. {
        let begun = Instant::now();
        let done = if round.is_multiple_of(2) {
            store.put(key.as_str(), "v").await
        } else {
            store.get(key.as_str()).await.map(drop)
        };
        {
            let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
            match done {
                Ok(()) => seen
                    .successes
                    .iter_mut()
                    .skip(task)
                    .take(1)
                    .for_each(|of_task| of_task.push((begun, Instant::now()))),
                Err(error) => drop(seen.errors.insert(described(&error))),
            }
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// `Unavailable/Safe`.
fn described(error: &Error) -> String {
    format!("`{:?}/{:?}`", error.kind(), error.retry())
}

/// Waits until each task has succeeded with several calls that began later, and says when the last first did.
async fn succeed_since(seen: &Mutex<Seen>, since: Instant) -> Instant {
    loop {
        let firsts: Option<Vec<Instant>> = {
            let seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
            let first = |of_task: &Vec<(Instant, Instant)>| {
                let mut later = of_task.iter().filter(|(begun, _)| *begun >= since);
                let first = later.next().map(|(_, ended)| *ended);
                first.filter(|_| later.count() >= 20)
            };
            seen.successes.iter().map(first).collect()
        };
        if let Some(last) = firsts.and_then(|firsts| firsts.into_iter().max()) {
            return last;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// The longest time that ended after `begun` in which a task had no success.
fn longest_gap(successes: &[Vec<(Instant, Instant)>], begun: Instant) -> Duration {
    let gaps = successes.iter().flat_map(|of_task| of_task.windows(2)).filter_map(|pair| match pair {
        [(_, from), (_, to)] if *to > begun => Some(*to - *from),
        _ => None,
    });
    gaps.max().unwrap_or_default()
}

fn seconds(duration: Duration) -> String {
    format!("{:.2} s", duration.as_secs_f64())
}
