//! A job that must run once, whichever of three instances gets to it: start this three times at once.
//!
//! `cargo run --example once -p commonhold --features redis -- redis://127.0.0.1`
//!
//! Without a URL it plays all three in one process.

use std::time::Duration;

use commonhold::{
    Result, Store,
    coordination::{Fenced, Locks},
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
    let locks = Locks::new(store.clone())?;
    let (ttl, timeout) = (Duration::from_secs(10), Duration::from_secs(60));
    let ran: Result<bool> = locks
        .with_lock("report", ttl, timeout, |fence| async move {
            // A lock alone does not say whether the job was done. Its result does, read and written under the fence: an
            // instance that was paused so long that another took over cannot write it any more.
            let fenced = Fenced::new(store, fence)?;
            if fenced.get("report:done").await?.is_some() {
                return Ok(false);
            }
            println!("instance {number} runs the job");
            fenced.put("report:done", format!("by instance {number}")).await?;
            Ok(true)
        })
        .await?;
    if !ran? {
        println!("instance {number} finds that it is done");
    }
    Ok(())
}
