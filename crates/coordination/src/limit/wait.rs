//! Waits until a limiter allows.

use std::time::Duration;

use commonhold_core::{Error, ErrorKind, Result, Retry};
use tokio::time::{Instant, sleep};

use super::Decision;

/// Asks again whenever it can make sense, for at most this long. What keeps the limiter from its store comes beside the
/// decision and ends the wait if that is a refusal.
pub(super) async fn until_allowed(
    timeout: Option<Duration>,
    mut ask: impl AsyncFnMut() -> Result<(Decision, Option<Error>)>,
) -> Result<Decision> {
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
        if let Some(timeout) = timeout.filter(|timeout| begun.elapsed().saturating_add(wait) > *timeout) {
            let message =
                format!("the permits can be had in {wait:?}, which is beyond the {timeout:?} to wait");
            return Err(Error::new(ErrorKind::Timeout, message).with_retry(Retry::Safe));
        }
        sleep(wait).await;
    }
}
