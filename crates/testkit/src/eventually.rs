//! Waiting for something to become true, for tests against stores that tell real time.

use std::time::{Duration, Instant};

/// Asks again and again until the answer is yes, and fails when the time is over.
///
/// # Panics
/// If the condition does not hold `within` this time.
///
/// ```
/// # async fn example() {
/// use std::time::{Duration, Instant};
///
/// let started = Instant::now();
/// commonhold_testkit::eventually(Duration::from_secs(5), "a millisecond passes", async || {
///     started.elapsed() > Duration::from_millis(1)
/// })
/// .await;
/// # }
/// ```
pub async fn eventually(within: Duration, what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let started = Instant::now();
    while !holds().await {
        assert!(started.elapsed() < within, "waited {within:?} in vain for this: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}
