//! The README's example as a program: `cargo run --example quickstart -p commonhold`.

use std::time::Duration;

use commonhold::{Expiry, PutOptions, Text};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let directory = tempfile::tempdir()?;
    let url = format!("disk:{}", directory.path().join("state").display());
    let store = commonhold::open(&url).await?;

    store.put_with_ttl("session:1", "alice", Duration::from_secs(1800)).await?;
    println!("bob may have it: {}", store.set_if_not_exists("session:1", "bob").await?);
    println!("visits: {}", store.increment("visits", 1).await?);

    store
        .transaction(|tx| async move {
            let visits: i64 = tx.get_as("visits", Text).await?.unwrap_or(0);
            tx.put("visits:seen", visits.to_string()).await
        })
        .await?;

    let keep = PutOptions::default().expiry(Expiry::Keep);
    let _applied = store.put_with("session:1", "carol", keep).await?;
    println!("session:1 expires in {:?}", store.ttl("session:1").await?.flatten());
    println!("{:#?}", store.stats().await?);
    Ok(())
}
