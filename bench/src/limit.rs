//! Rate limiters: the local one against `governor`, the distributed one against the script that applications write
//! themselves on the raw client, and the hybrid one against the distributed one. The same of concurrency limiters, where the
//! local one has the semaphore of `tokio` beside it.

use std::{
    hint::black_box,
    num::NonZeroU32,
    sync::Arc,
    time::{Duration, Instant},
};

use commonhold::{
    Store,
    coordination::limit::{
        ConcurrencyLimiter, DistributedLimiter, HybridLimiter, Limit, LocalLimiter, OnUnavailable, Rate,
        SlidingWindow, TokenBucket,
    },
    redis::{RedisBackend, RedisConfig},
    url::StoreUrl,
};
use commonhold_testkit::servers::{shared::redis_url, unique};
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use redis::{IntoConnectionInfo as _, RedisResult, Script, aio::MultiplexedConnection, io::tcp::TcpSettings};
use tokio::{runtime::Runtime, sync::Semaphore};

use crate::harness::{Comparison, Plan, breathe, compare, segment, tasks};

/// A token bucket as tutorials have it: floats, the time and the state in one script.
const SCRIPT: &str = "
    local rate, capacity = tonumber(ARGV[1]), tonumber(ARGV[2])
    local time = redis.call('TIME')
    local now = tonumber(time[1]) + tonumber(time[2]) / 1000000
    local bucket = redis.call('HMGET', KEYS[1], 'tokens', 'at')
    local tokens, at = tonumber(bucket[1]) or capacity, tonumber(bucket[2]) or now
    tokens = math.min(capacity, tokens + math.max(now - at, 0) * rate)
    local allowed = 0
    if tokens >= 1 then
        tokens = tokens - 1
        allowed = 1
    end
    redis.call('HSET', KEYS[1], 'tokens', tokens, 'at', now)
    redis.call('EXPIRE', KEYS[1], 3600)
    return {allowed, math.floor(tokens)}";

const LEASE: Duration = Duration::from_secs(1);

pub(crate) fn run(runtime: &Runtime, pairs: usize) -> commonhold::Result<()> {
    println!("\n### Rate limiters\n\n{}", Comparison::HEADING);
    for tasks in [1, 2] {
        for (what, rate, burst) in [("allowed", 1_000_000_000, u32::MAX), ("mostly refused", 1_000, 10)] {
            println!("{}", local(runtime, pairs, tasks, what, rate, burst)?);
        }
    }
    let store = runtime.block_on(open())?;
    let raw = runtime.block_on(connect()).map_err(raw_error)?;
    for tasks in [1, 64] {
        println!("{}", distributed(runtime, pairs, tasks, &store, &raw)?);
    }
    for tasks in [1, 64] {
        println!("{}", hybrid(runtime, pairs, tasks, &store)?);
    }
    println!("\n### Concurrency limiters: permits taken and returned\n\n{}", Comparison::HEADING);
    for tasks in [1, 2] {
        println!("{}", local_permits(runtime, pairs, tasks)?);
    }
    for tasks in [1, 64] {
        println!("{}", distributed_permits(runtime, pairs, tasks, &store, &raw)?);
    }
    for tasks in [1, 64] {
        println!("{}", hybrid_permits(runtime, pairs, tasks, &store)?);
    }
    runtime.block_on(store.clear(""))?;
    println!("\n### What the hybrid form costs in fairness\n\n{SHARES_HEADING}");
    let bucket = TokenBucket::new(Rate::per_second(RATE)?, RATE)?;
    let window = SlidingWindow::new(RATE, Duration::from_secs(1))?;
    for (of, limit, lease) in
        [("a bucket", Limit::from(bucket), LEASE), ("a window of 1 s", window.into(), LEASE / 10)]
    {
        for (who, wanted) in [
            ("each wants all", [RATE; INSTANCES]),
            ("one wants all, three nothing", [RATE, 0, 0, 0]),
            ("one wants all, three a tenth each", [RATE, RATE / 10, RATE / 10, RATE / 10]),
        ] {
            println!("| {of}, {lease:?} | {who} | {} |", runtime.block_on(shares(limit, lease, wanted))?);
        }
    }
    for (who, wanted) in [
        ("each wants 40", [40; INSTANCES]),
        ("one wants 40, three nothing", [40, 0, 0, 0]),
        ("one wants 40, three 2 each", [40, 2, 2, 2]),
    ] {
        let shares = runtime.block_on(permit_shares(wanted))?;
        println!("| {AT_ONCE} calls of 10 ms at a time, {LEASE:?} | {who} | {shares} |");
    }
    Ok(())
}

/// What each of several instances has in use of a concurrency limit, each with connections of its own, if it wants so much.
async fn permit_shares(wanted: [u64; INSTANCES]) -> commonhold::Result<String> {
    let prefix = unique("bench:");
    let begun = Instant::now();
    let mut instances = Vec::new();
    for wanted in wanted {
        let config = RedisConfig::from_url(StoreUrl::parse(redis_url())?)?.key_prefix(&prefix);
        let store = Store::new(RedisBackend::open(config).await?);
        let limiter = ConcurrencyLimiter::hybrid(store, "shared", AT_ONCE, LEASE, OnUnavailable::Refuse)?;
        instances.push((0..wanted).map(|_| tokio::spawn(occupy(limiter.clone(), begun))).collect::<Vec<_>>());
    }
    let mut got = Vec::new();
    for calls in instances {
        let mut in_use = 0;
        for call in calls {
            let ended = |_| commonhold::Error::new(commonhold::ErrorKind::Closed, "an instance has ended");
            in_use += call.await.map_err(ended)??;
        }
        got.push(in_use);
    }
    let limit = u64::try_from(WATCHED.as_micros()).unwrap_or(u64::MAX) * AT_ONCE;
    Ok(in_percent(&got, limit))
}

const AT_ONCE: u64 = 12;

/// Makes calls of 10 ms, one after the other, and says for how many microseconds they had a permit while watched.
async fn occupy(limiter: ConcurrencyLimiter, begun: Instant) -> commonhold::Result<u64> {
    let mut in_use = 0;
    while begun.elapsed() < 2 * WATCHED {
        let left = (2 * WATCHED).saturating_sub(begun.elapsed());
        let Ok(_permit) = limiter.acquire_timeout(1, left).await? else { break };
        let since = begun.elapsed().max(WATCHED);
        tokio::time::sleep(Duration::from_millis(10)).await;
        let until = begun.elapsed().min(2 * WATCHED);
        in_use += u64::try_from(until.saturating_sub(since).as_micros()).unwrap_or(u64::MAX);
    }
    Ok(in_use)
}

/// All of them together, and each, of a limit.
fn in_percent(got: &[u64], limit: u64) -> String {
    let percent = |permits: u64| format!("{} %", (100 * permits + limit / 2) / limit);
    let each: Vec<String> = got.iter().copied().map(percent).collect();
    format!("{} | {}", percent(got.iter().sum()), each.join(", "))
}

/// Permits a second that instances share.
const RATE: u64 = 10_000;
const INSTANCES: usize = 4;
/// For how long they are watched, after as long to settle.
const WATCHED: Duration = Duration::from_secs(5);
const SHARES_HEADING: &str = "| of four instances, at 10,000/s; leases | who wants | let through, of the limit | of the limit, each |\n\
                              |---|---|---:|---|";

/// What each of several instances gets of a limit, each with connections of its own, if they want so much a second.
async fn shares(limit: Limit, lease: Duration, wanted: [u64; INSTANCES]) -> commonhold::Result<String> {
    let prefix = unique("bench:");
    let mut tasks = Vec::new();
    for wanted in wanted {
        let config = RedisConfig::from_url(StoreUrl::parse(redis_url())?)?.key_prefix(&prefix);
        let store = Store::new(RedisBackend::open(config).await?);
        let limiter = HybridLimiter::new(store, "shared", limit, lease, OnUnavailable::Refuse)?;
        tasks.push(tokio::spawn(demand(limiter, wanted)));
    }
    let mut got = Vec::new();
    for task in tasks {
        let ended = |_| commonhold::Error::new(commonhold::ErrorKind::Closed, "an instance has ended");
        got.push(task.await.map_err(ended)??);
    }
    Ok(in_percent(&got, RATE * WATCHED.as_secs()))
}

/// Asks for so many permits a second, one by one every millisecond, and says how many it was given while watched.
async fn demand(limiter: HybridLimiter, wanted: u64) -> commonhold::Result<u64> {
    let mut clock = tokio::time::interval(Duration::from_millis(1));
    let (mut asked, mut given) = (0, 0);
    let begun = Instant::now();
    while begun.elapsed() < 2 * WATCHED {
        clock.tick().await;
        let due = u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX) * wanted / 1_000_000;
        for _ in asked..due {
            let decision = limiter.try_acquire(1).await?;
            given += u64::from(decision.allowed && begun.elapsed() >= WATCHED);
        }
        asked = due;
    }
    Ok(given)
}

async fn open() -> commonhold::Result<Store> {
    let config = RedisConfig::from_url(StoreUrl::parse(redis_url())?)?.key_prefix(unique("bench:"));
    Ok(Store::new(RedisBackend::open(config).await?))
}

async fn connect() -> RedisResult<MultiplexedConnection> {
    let info = redis_url().into_connection_info()?;
    let info = info.set_tcp_settings(TcpSettings::default().set_nodelay(true));
    redis::Client::open(info)?.get_multiplexed_async_connection().await
}

fn raw_error(error: redis::RedisError) -> commonhold::Error {
    commonhold::Error::new(commonhold::ErrorKind::Unavailable, error.to_string())
}

fn local(
    runtime: &Runtime,
    pairs: usize,
    count: u64,
    what: &str,
    rate: u64,
    burst: u32,
) -> commonhold::Result<Comparison> {
    let plan = Plan { pairs, operations: 1 << 21, tasks: count };
    let limit = TokenBucket::new(Rate::per_second(rate)?, burst.into())?;
    let ours = Arc::new(LocalLimiter::new(limit));
    let quota = u32::try_from(rate).ok().and_then(NonZeroU32::new).unwrap_or(NonZeroU32::MIN);
    let quota = Quota::per_second(quota).allow_burst(NonZeroU32::new(burst).unwrap_or(NonZeroU32::MIN));
    let theirs: Arc<DefaultDirectRateLimiter> = Arc::new(RateLimiter::direct(quota));
    Ok(compare(
        format!("local, {what}, against `governor`, {}", tasks(count)),
        pairs,
        || {
            segment(runtime, plan, |_, share| {
                let limiter = Arc::clone(&ours);
                async move {
                    let mut allowed = 0_u64;
                    for _ in 0..share {
                        allowed += u64::from(limiter.try_acquire(1).is_ok_and(|decision| decision.allowed));
                    }
                    black_box(allowed);
                }
            })
        },
        || {
            segment(runtime, plan, |_, share| {
                let limiter = Arc::clone(&theirs);
                async move {
                    let mut allowed = 0_u64;
                    for _ in 0..share {
                        allowed += u64::from(limiter.check().is_ok());
                    }
                    black_box(allowed);
                }
            })
        },
    ))
}

/// More than any run takes.
fn plenty() -> commonhold::Result<TokenBucket> {
    TokenBucket::new(Rate::per_second(1_000_000_000)?, 1_000_000_000)
}

async fn decide(limiter: DistributedLimiter, share: u64) {
    for _ in 0..share {
        let decision = limiter.try_acquire(1).await;
        assert!(decision.is_ok_and(|decision| decision.allowed && !decision.degraded));
    }
}

fn distributed(
    runtime: &Runtime,
    pairs: usize,
    count: u64,
    store: &Store,
    raw: &MultiplexedConnection,
) -> commonhold::Result<Comparison> {
    let plan = Plan { pairs, operations: if count == 1 { 1 << 12 } else { 1 << 15 }, tasks: count };
    let ours = DistributedLimiter::new(store.clone(), "ours", plenty()?, OnUnavailable::Refuse)?;
    let (script, key) = (Arc::new(Script::new(SCRIPT)), unique("bench:theirs"));
    let comparison = compare(
        format!("distributed, against a raw script, {}", tasks(count)),
        pairs,
        || segment(runtime, plan, |_, share| decide(ours.clone(), share)),
        || {
            segment(runtime, plan, |_, share| {
                let (script, mut raw, key) = (Arc::clone(&script), raw.clone(), key.clone());
                async move {
                    for _ in 0..share {
                        let mut call = script.key(&key);
                        let call = call.arg(1_000_000_000).arg(1_000_000_000);
                        let reply: RedisResult<(u8, u64)> = call.invoke_async(&mut raw).await;
                        assert!(reply.is_ok_and(|(allowed, _)| allowed == 1));
                    }
                }
            })
        },
    );
    let mut raw = raw.clone();
    runtime.block_on(redis::cmd("DEL").arg(&key).exec_async(&mut raw)).map_err(raw_error)?;
    Ok(comparison)
}

fn hybrid(runtime: &Runtime, pairs: usize, count: u64, store: &Store) -> commonhold::Result<Comparison> {
    let plan = |operations| Plan { pairs, operations, tasks: count };
    let (many, few) = if count == 1 { (1 << 20, 1 << 12) } else { (1 << 21, 1 << 15) };
    let distributed = DistributedLimiter::new(store.clone(), "theirs", plenty()?, OnUnavailable::Refuse)?;
    let hybrid = HybridLimiter::new(store.clone(), "leased", plenty()?, LEASE, OnUnavailable::Refuse)?;
    Ok(compare(
        format!("hybrid, against distributed, {}", tasks(count)),
        pairs,
        || {
            segment(runtime, plan(many), |_, share| {
                let limiter = hybrid.clone();
                async move {
                    for call in 0..share {
                        let decision = limiter.try_acquire(1).await;
                        assert!(decision.is_ok_and(|decision| decision.allowed && !decision.degraded));
                        breathe(call).await;
                    }
                }
            })
        },
        || segment(runtime, plan(few), |_, share| decide(distributed.clone(), share)),
    ))
}

/// More than all tasks want at a time.
const PERMITS: u64 = 100;

/// A concurrency limit as tutorials have it: who is in progress, by when it began.
const ENTER: &str = "
    local time = redis.call('TIME')
    local now = tonumber(time[1]) + tonumber(time[2]) / 1000000
    redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now - 60)
    if redis.call('ZCARD', KEYS[1]) >= tonumber(ARGV[2]) then return 0 end
    redis.call('ZADD', KEYS[1], now, ARGV[1])
    return 1";

fn local_permits(runtime: &Runtime, pairs: usize, count: u64) -> commonhold::Result<Comparison> {
    let plan = Plan { pairs, operations: 1 << 20, tasks: count };
    let ours = ConcurrencyLimiter::local(PERMITS)?;
    let theirs = Arc::new(Semaphore::new(PERMITS as usize));
    Ok(compare(
        format!("local, against the semaphore of `tokio`, {}", tasks(count)),
        pairs,
        || {
            segment(runtime, plan, |_, share| {
                let limiter = ours.clone();
                async move {
                    for _ in 0..share {
                        drop(black_box(limiter.acquire(1).await.ok()));
                    }
                }
            })
        },
        || {
            segment(runtime, plan, |_, share| {
                let semaphore = Arc::clone(&theirs);
                async move {
                    for _ in 0..share {
                        drop(black_box(Arc::clone(&semaphore).acquire_owned().await.ok()));
                    }
                }
            })
        },
    ))
}

/// Takes a permit and sees to it that it is back in the store.
async fn hold(limiter: ConcurrencyLimiter, share: u64) {
    for _ in 0..share {
        let permit = limiter.acquire(1).await;
        assert!(permit.is_ok_and(|permit| !permit.decision().degraded));
        assert!(limiter.release().await.is_ok());
    }
}

fn distributed_permits(
    runtime: &Runtime,
    pairs: usize,
    count: u64,
    store: &Store,
    raw: &MultiplexedConnection,
) -> commonhold::Result<Comparison> {
    let plan = Plan { pairs, operations: if count == 1 { 1 << 11 } else { 1 << 14 }, tasks: count };
    let ours = ConcurrencyLimiter::distributed(store.clone(), "ours", PERMITS, LEASE, OnUnavailable::Refuse)?;
    let (enter, key) = (Arc::new(Script::new(ENTER)), unique("bench:theirs"));
    Ok(compare(
        format!("distributed, against a raw script and `ZREM`, {}", tasks(count)),
        pairs,
        || segment(runtime, plan, |_, share| hold(ours.clone(), share)),
        || {
            segment(runtime, plan, |task, share| {
                let (enter, mut raw, key) = (Arc::clone(&enter), raw.clone(), key.clone());
                async move {
                    for call in 0..share {
                        let id = format!("{task} {call}");
                        let entered: RedisResult<u8> =
                            enter.key(&key).arg(&id).arg(PERMITS).invoke_async(&mut raw).await;
                        assert_eq!(entered.ok(), Some(1));
                        let left: RedisResult<u8> =
                            redis::cmd("ZREM").arg(&key).arg(&id).query_async(&mut raw).await;
                        assert_eq!(left.ok(), Some(1));
                    }
                }
            })
        },
    ))
}

fn hybrid_permits(
    runtime: &Runtime,
    pairs: usize,
    count: u64,
    store: &Store,
) -> commonhold::Result<Comparison> {
    let plan = |operations| Plan { pairs, operations, tasks: count };
    let (many, few) = if count == 1 { (1 << 20, 1 << 11) } else { (1 << 20, 1 << 14) };
    let open = |of: Open, name| of(store.clone(), name, PERMITS, LEASE, OnUnavailable::Refuse);
    let distributed = open(ConcurrencyLimiter::distributed, "theirs")?;
    let hybrid = open(ConcurrencyLimiter::hybrid, "kept")?;
    Ok(compare(
        format!("hybrid, against distributed, {}", tasks(count)),
        pairs,
        || {
            segment(runtime, plan(many), |_, share| {
                let limiter = hybrid.clone();
                async move {
                    for call in 0..share {
                        let permit = limiter.acquire(1).await;
                        assert!(permit.is_ok_and(|permit| !permit.decision().degraded));
                        breathe(call).await;
                    }
                }
            })
        },
        || segment(runtime, plan(few), |_, share| hold(distributed.clone(), share)),
    ))
}

type Open = fn(Store, &str, u64, Duration, OnUnavailable) -> commonhold::Result<ConcurrencyLimiter>;
