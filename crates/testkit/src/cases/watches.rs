//! Watching changes, publishing and subscribing to messages.

use std::collections::BTreeSet;

use bytes::Bytes;
use commonhold_core::{
    Action, Change, Condition, Expiry, Key, Message, Prefix, PutOptions, Result, Step, Write,
};
use futures_util::{FutureExt as _, StreamExt as _, stream::BoxStream};

use crate::subject::{Subject, add_one, equals, key, prefix};

/// How many changes or messages a slow receiver lags behind: more than any queue is expected to hold.
const FLOOD: usize = 20_000;

type Changes = BoxStream<'static, Result<Change>>;
type Messages = BoxStream<'static, Result<Message>>;

fn put(name: &str) -> Change {
    Change::Put(key(name))
}

fn deleted(name: &str) -> Change {
    Change::Deleted(key(name))
}

/// How many last keys are written: enough to have one on each server of a store that has several. Changes come
/// in order for each key, so those on one server do; those on two may overtake each other.
const LAST: u8 = 64;

/// What is reported before the changes of the last keys of this name.
async fn changes_until(changes: &mut Changes, last: impl AsRef<[u8]>) -> Vec<Change> {
    let mut left: BTreeSet<Key> = last_keys(last).collect();
    let mut seen = Vec::new();
    while !left.is_empty() {
        match changes.next().await.expect("a watch does not end").unwrap() {
            Change::Put(k) if left.remove(&k) => {}
            change => seen.push(change),
        }
    }
    seen
}

/// Writes last keys of this name and returns what was reported before them.
async fn changes_so_far(subject: &Subject, changes: &mut Changes, last: impl AsRef<[u8]>) -> Vec<Change> {
    put_last(subject, &last).await;
    changes_until(changes, last).await
}

async fn put_last(subject: &Subject, last: impl AsRef<[u8]>) {
    for k in last_keys(last) {
        subject.put(&k, "last").await;
    }
}

fn last_keys(last: impl AsRef<[u8]>) -> impl Iterator<Item = Key> {
    (0..LAST).map(move |i| key([last.as_ref(), &[i]].concat()))
}

/// Fails unless these are the puts, each of another key, in any order.
fn assert_puts(seen: &[Change], expected: impl IntoIterator<Item = Key>) {
    let expected: BTreeSet<Key> = expected.into_iter().collect();
    let found: BTreeSet<Key> = seen
        .iter()
        .map(|change| match change {
            Change::Put(key) => key.clone(),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!((found, seen.len()), (expected.clone(), expected.len()));
}

pub(crate) async fn a_watch_reports_puts_and_deletes_in_order(subject: Subject) {
    subject.put(&key("w:a"), "before the watch").await;
    let mut changes = subject.backend.watch(&prefix("w:")).await.unwrap();
    subject.put(&key("w:a"), "1").await;
    subject.put(&key("w:a"), "1").await;
    let _ = subject.delete(&key("w:a")).await;
    let _ = subject.put_if(&key("w:a"), "2", Condition::Absent).await;
    let _ = subject.put_if(&key("w:a"), "3", equals("2")).await;
    let _ = subject.delete_if(&key("w:a"), Condition::Present).await;
    let seen = changes_so_far(&subject, &mut changes, "w:last").await;
    let (put, deleted) = (put("w:a"), deleted("w:a"));
    assert_eq!(seen, [put.clone(), put.clone(), deleted.clone(), put.clone(), put, deleted]);
}

pub(crate) async fn a_watch_reports_transitions(subject: Subject) {
    let mut changes = subject.backend.watch(&prefix("w:")).await.unwrap();
    subject.backend.transact(&key("w:n"), add_one()).await.unwrap();
    subject.backend.transact(&key("w:n"), add_one()).await.unwrap();
    subject.transact(&key("w:n"), |_, _| Ok(Step::nothing(""))).await.unwrap();
    subject.transact(&key("w:n"), |_, _| Ok(Step::delete(""))).await.unwrap();
    let seen = changes_so_far(&subject, &mut changes, "w:last").await;
    assert_eq!(seen, [put("w:n"), put("w:n"), deleted("w:n")]);
}

pub(crate) async fn a_watch_reports_batches_in_order(subject: Subject) {
    let mut changes = subject.backend.watch(&prefix("w:")).await.unwrap();
    let (a, b) = (key("w:a"), key("w:b"));
    subject.write_many(vec![Write::put(a.clone(), "1"), Write::put(b.clone(), "1")]).await;
    subject.write_many(vec![Write::delete(b), Write::delete(a)]).await;
    let seen = changes_so_far(&subject, &mut changes, "w:last").await;
    for name in ["w:a", "w:b"] {
        let of_key: Vec<&Change> =
            seen.iter().filter(|change| **change == put(name) || **change == deleted(name)).collect();
        assert_eq!(of_key, [&put(name), &deleted(name)]);
    }
    assert_eq!(seen.len(), 4);
}

pub(crate) async fn a_watch_reports_the_writes_of_a_transaction(subject: Subject) {
    subject.put(&key("w:b"), "1").await;
    let mut changes = subject.backend.watch(&prefix("w:")).await.unwrap();
    let mut transaction = subject.backend.begin().await.unwrap();
    let _ = transaction.put(&key("w:a"), "1".into(), PutOptions::default()).await.unwrap();
    let _ = transaction.delete(&key("w:b"), Condition::Always).await.unwrap();
    subject.put(&key("w:before"), "the commit").await;
    transaction.commit().await.unwrap();
    let mut abandoned = subject.backend.begin().await.unwrap();
    let _ = abandoned.put(&key("w:never"), "1".into(), PutOptions::default()).await.unwrap();
    abandoned.rollback().await.unwrap();
    let mut seen = changes_so_far(&subject, &mut changes, "w:last").await;
    assert_eq!(seen.remove(0), put("w:before"));
    assert_eq!(seen.len(), 2);
    assert!(seen.contains(&put("w:a")) && seen.contains(&deleted("w:b")), "{seen:?}");
}

pub(crate) async fn a_watch_reports_what_is_cleared(subject: Subject) {
    subject.put(&key("w:a"), "1").await;
    subject.put(&key("w:b"), "1").await;
    let mut changes = subject.backend.watch(&prefix("w:")).await.unwrap();
    assert_eq!(subject.backend.clear(&Prefix::ALL).await.unwrap(), 2);
    let seen = changes_so_far(&subject, &mut changes, "w:last").await;
    assert_eq!(seen.len(), 2);
    assert!(seen.contains(&deleted("w:a")) && seen.contains(&deleted("w:b")), "{seen:?}");
}

pub(crate) async fn a_watch_reports_a_change_of_the_time_to_live_but_no_expiry(subject: Subject) {
    let k = key("w:a");
    subject.put(&k, "1").await;
    let mut changes = subject.backend.watch(&prefix("w:")).await.unwrap();
    let ttl = subject.short_ttl();
    let expire = move |_: Option<&[u8]>, _| {
        Ok(Step { action: Action::Expire(Expiry::After(ttl)), reply: Bytes::new() })
    };
    subject.transact(&k, expire).await.unwrap();
    subject.until_expired(&k, ttl).await;
    assert_eq!(subject.get(&k).await, None);
    assert_eq!(changes_so_far(&subject, &mut changes, "w:last").await, [put("w:a")]);
}

pub(crate) async fn a_watch_does_not_report_what_was_not_carried_out(subject: Subject) {
    subject.put(&key("w:a"), "1").await;
    let mut changes = subject.backend.watch(&prefix("w:")).await.unwrap();
    let _ = subject.put_if(&key("w:a"), "2", Condition::Absent).await;
    let _ = subject.put_if(&key("w:a"), "2", equals("other")).await;
    let _ = subject.delete_if(&key("w:a"), equals("other")).await;
    let _ = subject.delete(&key("w:missing")).await;
    let refuse = |_: Option<&[u8]>, _| {
        Err(commonhold_core::Error::new(commonhold_core::ErrorKind::NotInteger, "refused"))
    };
    subject.transact(&key("w:a"), refuse).await.unwrap_err();
    assert_eq!(changes_so_far(&subject, &mut changes, "w:last").await, []);
}

pub(crate) async fn a_watch_matches_its_prefix_byte_for_byte(subject: Subject) {
    for searched in [&b"w*"[..], b"w?", b"w[a-z]", b"w\\", b"w%", b"w_", b"w\0", b"w\xff", b"\xff", b""] {
        let mut changes = subject.backend.watch(&prefix(searched)).await.unwrap();
        let written = [
            &b"w*1"[..],
            b"w?1",
            b"wa1",
            b"w[a-z]1",
            b"w\\1",
            b"w%1",
            b"w_1",
            b"w\0",
            b"w\xff\xff",
            b"\xff",
            b"w",
        ];
        for name in written {
            subject.put(&key(name), "1").await;
        }
        let expected: BTreeSet<Key> =
            written.iter().filter(|name| name.starts_with(searched)).map(key).collect();
        let seen = changes_so_far(&subject, &mut changes, [searched, b"last"].concat()).await;
        assert_puts(&seen, expected);
    }
}

pub(crate) async fn watchers_come_and_go_without_hindering_each_other(subject: Subject) {
    let mut stays = subject.backend.watch(&prefix("w:")).await.unwrap();
    let mut goes = subject.backend.watch(&prefix("w:")).await.unwrap();
    let unread = subject.backend.watch(&prefix("w:")).await.unwrap();
    subject.put(&key("w:1"), "").await;
    assert_eq!(goes.next().await.unwrap().unwrap(), put("w:1"));
    drop(goes);
    subject.put(&key("w:2"), "").await;
    drop(unread);
    let mut comes = subject.backend.watch(&prefix("w:")).await.unwrap();
    subject.put(&key("w:3"), "").await;
    put_last(&subject, "w:last").await;
    assert_puts(&changes_until(&mut stays, "w:last").await, ["w:1", "w:2", "w:3"].map(key));
    assert_puts(&changes_until(&mut comes, "w:last").await, [key("w:3")]);
}

pub(crate) async fn a_slow_watcher_is_told_that_it_missed_changes_and_goes_on(subject: Subject) {
    let mut changes = subject.backend.watch(&prefix("w:")).await.unwrap();
    for part in 0..FLOOD / 1000 {
        subject.write_many((0..1000).map(|i| Write::put(key(format!("w:{part}:{i}")), "")).collect()).await;
    }
    let seen = changes_so_far(&subject, &mut changes, "w:last").await;
    let missed = seen.contains(&Change::Missed);
    assert!(missed || seen.len() == FLOOD, "{} changes of {FLOOD} and no word of the missed", seen.len());
    subject.put(&key("w:after"), "").await;
    assert_eq!(changes_so_far(&subject, &mut changes, "w:last 2").await, [put("w:after")]);
}

async fn message(messages: &mut Messages) -> Message {
    messages.next().await.expect("a subscription does not end").unwrap()
}

pub(crate) async fn a_subscriber_receives_messages_as_they_were_published(subject: Subject) {
    let channel = key("channel");
    subject.backend.publish(&channel, "nobody hears this".into()).await.unwrap();
    let mut messages = subject.backend.subscribe(&channel).await.unwrap();
    let all: Vec<u8> = (0..=255).collect();
    let sent = [Bytes::from("1"), Bytes::new(), all.into(), Bytes::from("1")];
    for payload in &sent {
        subject.backend.publish(&channel, payload.clone()).await.unwrap();
    }
    for payload in sent {
        assert_eq!(message(&mut messages).await, Message::Payload(payload));
    }
}

pub(crate) async fn a_subscriber_hears_its_channel_alone(subject: Subject) {
    let mut messages = subject.backend.subscribe(&key("c*")).await.unwrap();
    for other in ["c", "c*1", "cx", "C*", "c\\*"] {
        subject.backend.publish(&key(other), "not for us".into()).await.unwrap();
    }
    subject.backend.publish(&key("c*"), "for us".into()).await.unwrap();
    assert_eq!(message(&mut messages).await, Message::Payload("for us".into()));
}

pub(crate) async fn every_subscriber_receives_every_message(subject: Subject) {
    let channel = key("channel");
    let mut first = subject.backend.subscribe(&channel).await.unwrap();
    let dropped = subject.backend.subscribe(&channel).await.unwrap();
    subject.backend.publish(&channel, "1".into()).await.unwrap();
    drop(dropped);
    let mut second = subject.backend.subscribe(&channel).await.unwrap();
    subject.backend.publish(&channel, "2".into()).await.unwrap();
    assert_eq!(message(&mut first).await, Message::Payload("1".into()));
    assert_eq!(message(&mut first).await, Message::Payload("2".into()));
    assert_eq!(message(&mut second).await, Message::Payload("2".into()));
}

pub(crate) async fn publishing_stores_nothing(subject: Subject) {
    let channel = key("channel");
    subject.put(&key("k"), "v").await;
    let mut messages = subject.backend.subscribe(&channel).await.unwrap();
    subject.backend.publish(&channel, "1".into()).await.unwrap();
    assert_eq!(message(&mut messages).await, Message::Payload("1".into()));
    assert_eq!(subject.get(&channel).await, None);
    subject.put(&channel, "a key of the same name").await;
    subject.backend.publish(&channel, "2".into()).await.unwrap();
    assert_eq!(message(&mut messages).await, Message::Payload("2".into()));
    assert_eq!(subject.value(&channel).await.unwrap(), "a key of the same name");
}

pub(crate) async fn publishing_leaves_no_keys_and_no_changes(subject: Subject) {
    let mut changes = subject.backend.watch(&Prefix::ALL).await.unwrap();
    let _messages = subject.backend.subscribe(&key("channel")).await.unwrap();
    subject.backend.publish(&key("channel"), "1".into()).await.unwrap();
    assert_eq!(subject.count(&Prefix::ALL).await, 0);
    assert_eq!(subject.keys(&Prefix::ALL).await, Vec::<Key>::new());
    assert_eq!(changes_so_far(&subject, &mut changes, "last").await, []);
}

pub(crate) async fn a_slow_subscriber_is_told_that_it_missed_messages_and_goes_on(subject: Subject) {
    let channel = key("channel");
    let mut messages = subject.backend.subscribe(&channel).await.unwrap();
    for i in 0..FLOOD {
        subject.backend.publish(&channel, i.to_string().into()).await.unwrap();
    }
    subject.backend.publish(&channel, "last".into()).await.unwrap();
    let (mut received, mut missed) = (0, false);
    loop {
        match message(&mut messages).await {
            Message::Payload(payload) if payload == "last" => break,
            Message::Payload(_) => received += 1,
            Message::Missed => missed = true,
        }
    }
    assert!(missed || received == FLOOD, "{received} messages of {FLOOD} and no word of the missed");
    subject.backend.publish(&channel, "after".into()).await.unwrap();
    assert_eq!(message(&mut messages).await, Message::Payload("after".into()));
}

/// A watch waits for changes; it does not end when there are none.
pub(crate) async fn a_watch_waits_for_the_next_change(subject: Subject) {
    let mut changes = subject.backend.watch(&prefix("w:")).await.unwrap();
    assert!(changes.next().now_or_never().is_none(), "nothing has changed");
    let backend = subject.backend.clone();
    let writer = tokio::spawn(async move {
        tokio::task::yield_now().await;
        backend.put(&key("w:a"), "1".into(), PutOptions::default()).await.unwrap()
    });
    assert_eq!(changes.next().await.unwrap().unwrap(), put("w:a"));
    assert!(writer.await.unwrap().is_yes());
}
