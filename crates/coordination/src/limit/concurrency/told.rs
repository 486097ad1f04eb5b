//! Tells instances that wait for permits that there are some: one channel for each limit, and in each message whose turn it is,
//! so that only one asks.

use std::time::Duration;

use commonhold_core::{Error, ErrorKind, Message, Result, Store};
use futures_util::{StreamExt as _, stream, stream::BoxStream};

/// What the channels are called; the names of the limits follow.
const CHANNEL: &str = "commonhold:permits:";
/// How long to wait before the channel is subscribed to again.
const RETRY_DELAY: Duration = Duration::from_secs(1);

/// What is told on the channel of a limit: which instance can have permits, or `None` if it may be any. It never ends.
pub(super) type Told = BoxStream<'static, Option<u64>>;

pub(super) fn channel(name: &str) -> String {
    format!("{CHANNEL}{name}")
}

/// Hears what is told of a limit, if the store has messages.
pub(super) fn listen(store: &Store, name: &str) -> Option<Told> {
    if !store.capabilities().publish {
        return None;
    }
    let (store, channel) = (store.clone(), channel(name));
    let told = stream::unfold(None, move |mut messages| {
        let (store, channel) = (store.clone(), channel.clone());
        async move {
            loop {
                match next(&mut messages, &store, &channel).await {
                    Ok(told) => return Some((told, messages)),
                    Err(error) => tracing::debug!(%error, "free permits are not heard of"),
                }
                messages = None;
                tokio::time::sleep(RETRY_DELAY).await;
            }
        }
    });
    Some(told.boxed())
}

async fn next(
    messages: &mut Option<BoxStream<'static, Result<Message>>>,
    store: &Store,
    channel: &str,
) -> Result<Option<u64>> {
    let Some(messages) = messages else {
        // What was told before is not told any more.
        *messages = Some(store.subscribe(channel).await?);
        return Ok(None);
    };
    match messages.next().await {
        Some(Ok(Message::Payload(told))) => {
            // What is no number is nobody's.
            Ok(Some(std::str::from_utf8(&told).ok().and_then(|told| told.parse().ok()).unwrap_or(0)))
        }
        Some(Ok(Message::Missed)) => Ok(None),
        Some(Err(error)) => Err(error),
        None => Err(Error::new(ErrorKind::Unavailable, "the subscription ended")),
    }
}
