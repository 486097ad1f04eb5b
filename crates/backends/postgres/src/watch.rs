//! Changes and messages by LISTEN and NOTIFY, on one connection for all who listen in this process.

use std::{collections::HashMap, sync::Arc, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD_NO_PAD as BASE64};
use bytes::Bytes;
use commonhold_core::{Change, Error, ErrorKind, Hub, Key, Message, Prefix, Result, Retry};
use futures_util::stream::BoxStream;
use tokio::sync::{mpsc, oneshot};
use tokio_postgres::{
    Notification,
    types::{ToSql, Type},
};

use crate::{
    connect::Connector,
    connection::Connection,
    names::{Names, literal},
    seen::Seen,
    shared::Shared,
    sql::{CHANGES, MESSAGES, Sql},
    values::column,
};

/// A notification takes so many bytes of text.
const MAX_PAYLOAD: usize = 7_999;
/// How often the connection is asked whether it is alive.
const HEARTBEAT: Duration = Duration::from_secs(15);
/// How long to wait before connecting again: at first, and at most.
const DELAYS: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(5));

type Changes = BoxStream<'static, Result<Change>>;
type Messages = BoxStream<'static, Result<Message>>;

/// Where those who want to listen say so. The connection is made when the first does, and kept up from then on.
#[derive(Debug)]
pub(crate) struct Listener {
    wanted: mpsc::UnboundedSender<Wanted>,
}

enum Wanted {
    Changes(Prefix, oneshot::Sender<Result<Changes>>),
    Messages(Key, oneshot::Sender<Result<Messages>>),
}

impl Listener {
    pub(crate) fn start(shared: &Shared) -> Self {
        let (wanted, receiver) = mpsc::unbounded_channel();
        let task = Task {
            connector: Arc::clone(&shared.primary.connector),
            names: shared.names.clone(),
            seen: Arc::clone(&shared.seen),
            wanted: receiver,
            hub: Hub::default(),
            asking: Vec::new(),
            waiting: HashMap::new(),
            next: 0,
        };
        tokio::spawn(task.run());
        Self { wanted }
    }

    pub(crate) async fn watch(&self, prefix: &Prefix) -> Result<Changes> {
        let (sender, receiver) = oneshot::channel();
        self.ask(Wanted::Changes(prefix.clone(), sender), receiver).await
    }

    pub(crate) async fn subscribe(&self, channel: &Key) -> Result<Messages> {
        let (sender, receiver) = oneshot::channel();
        self.ask(Wanted::Messages(channel.clone(), sender), receiver).await
    }

    async fn ask<T>(&self, wanted: Wanted, answer: oneshot::Receiver<Result<T>>) -> Result<T> {
        let ended = || Error::new(ErrorKind::Closed, "the runtime on which the store was opened has ended");
        self.wanted.send(wanted).map_err(|_| ended())?;
        answer.await.map_err(|_| ended())?
    }
}

/// A message as a notification: its channel and itself, as text.
///
/// # Errors
/// `TooLarge` if the two together are longer than a notification may be.
pub(crate) fn payload(channel: &Key, message: &[u8]) -> Result<String> {
    let payload = format!("{} {}", BASE64.encode(channel.as_bytes()), BASE64.encode(message));
    if payload.len() <= MAX_PAYLOAD {
        return Ok(payload);
    }
    let message = format!(
        "PostgreSQL notifies of at most {MAX_PAYLOAD} bytes of text, which is about 5,900 bytes of channel and message, \
         not {}",
        channel.as_bytes().len() + message.len()
    );
    Err(Error::new(ErrorKind::TooLarge, message))
}

struct Task {
    connector: Arc<Connector>,
    names: Names,
    /// Whoever is told of a change reads it, from replicas too.
    seen: Arc<Seen>,
    wanted: mpsc::UnboundedReceiver<Wanted>,
    hub: Hub,
    /// Those who have not been heard yet.
    asking: Vec<Wanted>,
    /// Those who get their stream when what was told before they asked has passed: a notification of our own that comes
    /// behind it says so.
    waiting: HashMap<String, Wanted>,
    next: u64,
}

/// A connection that listens.
struct Ears {
    connection: Connection,
    notifications: mpsc::UnboundedReceiver<Notification>,
    changes: String,
    process: i32,
}

impl Task {
    async fn run(mut self) {
        // Nobody has missed anything until somebody has listened.
        let mut has_listened = false;
        let mut delay = DELAYS.0;
        while self.somebody_asks(has_listened, delay).await {
            match self.listen().await {
                Ok(mut ears) => {
                    if has_listened {
                        self.seen.wrote_anything();
                        self.hub.missed();
                    }
                    has_listened = true;
                    delay = DELAYS.0;
                    self.hear(&mut ears).await;
                    let lost = Error::new(ErrorKind::Unavailable, "the listening connection was lost");
                    self.refuse_all(&lost.with_retry(Retry::Safe));
                }
                Err(error) => {
                    tracing::debug!(%error, "cannot listen to PostgreSQL");
                    delay = (delay * 2).min(DELAYS.1);
                    self.refuse_all(&error);
                }
            }
        }
    }

    /// Waits for a reason to connect: that somebody asks or, where somebody has listened, that some time has passed.
    /// False when nobody can ask any more.
    async fn somebody_asks(&mut self, has_listened: bool, delay: Duration) -> bool {
        tokio::select! {
            () = tokio::time::sleep(delay), if has_listened => !self.wanted.is_closed(),
            wanted = self.wanted.recv() => {
                let open = wanted.is_some();
                self.asking.extend(wanted);
                open
            }
        }
    }

    async fn listen(&self) -> Result<Ears> {
        let (connection, notifications) = self.connector.listen().await?;
        let sql = format!("SELECT pg_backend_pid(), {}::regclass::oid", literal(&self.names.table));
        let rows = connection.query_once(&sql, &[]).await?;
        let row = rows.first().ok_or_else(|| Error::new(ErrorKind::Internal, "no row came"))?;
        let (process, id): (i32, u32) = (column(row, 0)?, column(row, 1)?);
        let changes = format!("{CHANGES}{id}");
        connection.run(&format!("LISTEN {changes}; LISTEN {MESSAGES}{id}")).await?;
        Ok(Ears { connection, notifications, changes, process })
    }

    /// Hands on what is told until the connection breaks or nobody can ask any more.
    async fn hear(&mut self, ears: &mut Ears) {
        let mut heartbeat = tokio::time::interval(HEARTBEAT);
        while ears.connection.is_usable() {
            while let Some(wanted) = self.asking.pop() {
                let mark = format!("={}", self.next);
                self.next += 1;
                self.waiting.insert(mark.clone(), wanted);
                let params: [(&(dyn ToSql + Sync), Type); 2] =
                    [(&ears.changes, Type::TEXT), (&mark, Type::TEXT)];
                if ears.connection.query_once("SELECT pg_notify($1, $2)", &params).await.is_err() {
                    return;
                }
            }
            tokio::select! {
                notification = ears.notifications.recv() => match notification {
                    Some(notification) => self.told(ears, &notification),
                    None => return,
                },
                wanted = self.wanted.recv() => match wanted {
                    Some(wanted) => self.asking.push(wanted),
                    None => return,
                },
                _ = heartbeat.tick() => {
                    if ears.connection.query(Sql::Now, &[]).await.is_err() {
                        return;
                    }
                }
            }
        }
    }

    fn told(&mut self, ears: &Ears, notification: &Notification) {
        let payload = notification.payload();
        if notification.channel() != ears.changes {
            match message(payload) {
                Some((channel, message)) => self.hub.publish(&channel, message),
                None => tracing::debug!("a notification that is no message"),
            }
        } else if payload.starts_with('=') {
            if notification.process_id() == ears.process
                && let Some(wanted) = self.waiting.remove(payload)
            {
                self.let_listen(wanted);
            }
        } else {
            let change = change(payload).unwrap_or(Change::Missed);
            match &change {
                Change::Put(key) | Change::Deleted(key) => self.seen.wrote(key),
                Change::Missed => self.seen.wrote_anything(),
            }
            self.hub.report(change);
        }
    }

    fn let_listen(&self, wanted: Wanted) {
        match wanted {
            Wanted::Changes(prefix, answer) => drop(answer.send(Ok(self.hub.watch(&prefix)))),
            Wanted::Messages(channel, answer) => drop(answer.send(Ok(self.hub.subscribe(&channel)))),
        }
    }

    fn refuse_all(&mut self, error: &Error) {
        for wanted in self.asking.drain(..).chain(self.waiting.drain().map(|(_, wanted)| wanted)) {
            match wanted {
                Wanted::Changes(_, answer) => drop(answer.send(Err(error.clone()))),
                Wanted::Messages(_, answer) => drop(answer.send(Err(error.clone()))),
            }
        }
    }
}

/// What the trigger says: `P` or `D` and the key, `T` for all.
fn change(payload: &str) -> Option<Change> {
    let (kind, rest) = payload.split_at_checked(1)?;
    let (digits, _) = rest.split_once(' ').unwrap_or((rest, ""));
    let (pairs, []) = digits.as_bytes().as_chunks::<2>() else { return None };
    let bytes = pairs.iter().map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok());
    let key = Key::new(bytes.collect::<Option<Vec<u8>>>()?).ok()?;
    match kind {
        "P" => Some(Change::Put(key)),
        "D" => Some(Change::Deleted(key)),
        _ => None,
    }
}

fn message(payload: &str) -> Option<(Key, Bytes)> {
    let (channel, message) = payload.split_once(' ')?;
    let channel = Key::new(BASE64.decode(channel).ok()?).ok()?;
    Some((channel, BASE64.decode(message).ok()?.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_comes_back_as_it_was_and_has_a_limit() {
        let channel = Key::new([0, 0xff, b' ']).unwrap();
        let text = payload(&channel, &[0, 1, 0xff]).unwrap();
        assert_eq!(message(&text), Some((channel.clone(), Bytes::from_static(&[0, 1, 0xff]))));
        assert!(payload(&channel, &[7; 5_900]).is_ok());
        assert_eq!(payload(&channel, &[7; 6_000]).unwrap_err().kind(), ErrorKind::TooLarge);
    }

    #[test]
    fn what_the_trigger_says_is_understood_and_all_else_counts_as_missed() {
        let key = Key::new(b"a\xff").unwrap();
        assert_eq!(change("P61ff 0.25"), Some(Change::Put(key.clone())));
        assert_eq!(change("D61ff 1e-05"), Some(Change::Deleted(key)));
        for strange in ["", "T", "P", "P6", "Pxx 1", "X61 1", "\u{e9}61"] {
            assert_eq!(change(strange), None, "{strange:?}");
        }
    }
}
