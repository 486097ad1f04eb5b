//! Waits until a limiter allows.

use std::time::Duration;

use commonhold_core::{Error, Result};
use tokio::time::{Instant, sleep};

use super::Decision;

/// Asks again whenever it can make sense, and is refused as soon as it cannot within this time. What keeps the limiter from its store comes beside the
/// decision and ends the wait if that is a refusal.
pub(super) async fn until_allowed<F>(
    timeout: Option<Duration>,
    mut ask: impl FnMut() -> F,
) -> Result<Decision>
where
    F: Future<Output = Result<(Decision, Option<Error>)>>,
{
    let begun = Instant::now();
    loop {
        let (decision, away) = ask().await?;
        if decision.allowed {
            return Ok(decision);
        }
        if let Some(error) = away {
            return Err(error);
        }
        let wait = decision.retry_after;
        if timeout.is_some_and(|timeout| begun.elapsed().saturating_add(wait) > timeout) {
            return Ok(decision);
        }
        sleep(wait).await;
    }
}
