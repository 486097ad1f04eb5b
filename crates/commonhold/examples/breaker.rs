//! A circuit breaker that three instances share: when two of them have seen failures, none calls any more.
//!
//! `cargo run --example breaker -p commonhold`

use commonhold::{
    Result,
    coordination::breaker::{BreakerError, DistributedBreaker, OnUnavailable, Settings},
};

#[tokio::main]
async fn main() -> Result<()> {
    // "redis://.." for instances on several machines.
    let store = commonhold::open("memory:").await?;
    let settings = Settings::new().failure_threshold(3).min_reporters(2);
    let instance = |_| DistributedBreaker::new(store.clone(), "payments", &settings, OnUnavailable::Allow);
    let instances = (1..=3).map(instance).collect::<Result<Vec<_>>>()?;
    for round in 1..=3 {
        for (number, breaker) in (1..).zip(&instances) {
            let answer: Result<(), BreakerError<&str>> = breaker.execute(|| async { Err("no answer") }).await;
            if let Err(error) = answer {
                println!("round {round}, instance {number}: {error}");
            }
        }
    }
    Ok(())
}
