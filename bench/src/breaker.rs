//! The closed local circuit breaker: a call's permit and its result, against `failsafe` and an uncontended mutex.

use std::{
    hint::black_box,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use commonhold::coordination::breaker::{LocalBreaker, Settings, Window};
use failsafe::{CircuitBreaker as _, Config, backoff, failure_policy};

use crate::harness::{Comparison, compare, per_second};

const CALLS: u64 = 1 << 19;
const WAIT: Duration = Duration::from_secs(30);

pub(crate) fn run(pairs: usize) -> commonhold::Result<()> {
    println!("\n### Circuit breakers: closed and local, a permit and its result\n\n{}", Comparison::HEADING);
    let streak = Settings::new().failure_threshold(5).open_for(WAIT);
    let rate = Settings::new().failure_rate(0.5);
    let mut nanos = Vec::new();
    for (what, settings) in [
        ("failures one after the other", streak),
        ("rate over 100 calls", rate.clone().window(Window::Calls(100))),
        ("rate over 10 s", rate),
    ] {
        for threads in [1, 2] {
            let comparison = against_failsafe(what, &settings, pairs, threads)?;
            println!("{comparison}");
        }
        nanos.push((what, against_mutex(&settings, pairs)?));
    }
    println!("\n| closed, one thread | ns more than an uncontended mutex, locked once |\n|---|---:|");
    for (what, comparison) in nanos {
        println!("| {what} | {:.0} |", comparison.extra_nanos());
    }
    Ok(())
}

fn against_failsafe(
    what: &str,
    settings: &Settings,
    pairs: usize,
    threads: u64,
) -> commonhold::Result<Comparison> {
    let ours = LocalBreaker::new("bench", settings)?;
    let policy = failure_policy::consecutive_failures(5, backoff::constant(WAIT));
    let theirs = Config::new().failure_policy(policy).build();
    let name = format!("{what}, {threads} thread{}", if threads == 1 { "" } else { "s" });
    Ok(compare(
        name,
        pairs,
        || segment(threads, || call(&ours)),
        || segment(threads, || drop(black_box(theirs.call(|| black_box(Ok::<(), ()>(())))))),
    ))
}

fn against_mutex(settings: &Settings, pairs: usize) -> commonhold::Result<Comparison> {
    let ours = LocalBreaker::new("bench", settings)?;
    let mutex = Mutex::new(0_u64);
    let lock = || *black_box(&mutex).lock().unwrap_or_else(PoisonError::into_inner) += 1;
    Ok(compare("mutex", pairs, || segment(1, || call(&ours)), || segment(1, lock)))
}

fn call(breaker: &LocalBreaker) {
    if let Ok(permit) = black_box(breaker).try_acquire() {
        permit.success();
    }
}

fn segment(threads: u64, call: impl Fn() + Sync) -> f64 {
    let begun = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| (0..CALLS / threads).for_each(|_| call()));
        }
    });
    per_second(CALLS, begun.elapsed())
}
