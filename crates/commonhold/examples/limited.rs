//! Calls to an API that are limited over all instances: start this as often as you like.
//!
//! `cargo run --example limited -p commonhold --features redis -- redis://127.0.0.1`
//!
//! Without a URL it plays three instances in one process.

use std::time::Duration;

use commonhold::{
    Result, Store,
    coordination::limit::{DistributedLimiter, OnUnavailable, Rate, TokenBucket},
};

#[tokio::main]
async fn main() -> Result<()> {
    match std::env::args().nth(1) {
        Some(url) => instance(commonhold::open(&url).await?, std::process::id()).await,
        None => {
            let store = commonhold::open("memory:").await?;
            let instances = (1..=3).map(|number| tokio::spawn(instance(store.clone(), number)));
            for instance in instances.collect::<Vec<_>>() {
                instance.await.unwrap_or(Ok(()))?;
            }
            Ok(())
        }
    }
}

async fn instance(store: Store, number: u32) -> Result<()> {
    // Ten a second over all instances, five at once. While the store is away nobody calls.
    let limit = TokenBucket::new(Rate::per_second(10)?, 5)?;
    let limiter = DistributedLimiter::new(store, "api", limit, OnUnavailable::Refuse)?;
    for call in 1..=5 {
        let decision = limiter.try_acquire(1).await?;
        if decision.allowed {
            println!("instance {number}, call {call}: at once, {} left", decision.remaining);
            continue;
        }
        println!("instance {number}, call {call}: in {:?}", decision.retry_after);
        let decision = limiter.acquire_timeout(1, Duration::from_secs(10)).await?;
        println!("instance {number}, call {call}: {}", if decision.allowed { "now" } else { "not in time" });
    }
    Ok(())
}
