//! What a store says of itself, its housekeeping, and its errors.

use std::{error::Error as _, time::Duration};

use bytes::Bytes;
use commonhold_core::{
    Applied, Condition, Error, ErrorKind, Expiry, Maintenance, PutOptions, Result, Step, Write,
};

use crate::subject::{Subject, for_, key};

pub(crate) async fn a_store_says_its_name_and_stands_by_its_promises(subject: Subject) {
    assert!(!subject.backend.name().is_empty());
    let promised = subject.backend.capabilities();
    subject.put(&key("k"), "v").await;
    assert_eq!(subject.backend.capabilities(), promised);
    assert!(promised.ttl_resolution > Duration::ZERO);
    assert!(promised.scan || !(promised.ordered_scan || promised.snapshot_scan));
}

pub(crate) async fn a_store_that_answers_is_healthy_and_gives_figures(subject: Subject) {
    subject.backend.health().await.unwrap();
    subject.put(&key("k"), "v").await;
    subject.backend.stats().await.unwrap();
    subject.backend.health().await.unwrap();
}

pub(crate) async fn housekeeping_loses_nothing(subject: Subject) {
    let keys: Vec<_> = (0..500).map(|i| key(format!("k{i}"))).collect();
    for task in [Maintenance::Sweep, Maintenance::Compact, Maintenance::Flush] {
        subject.write_many(keys.iter().map(|k| Write::put(k.clone(), "v")).collect()).await;
        subject.write_many(keys.iter().step_by(2).map(|k| Write::delete(k.clone())).collect()).await;
        match subject.backend.maintain(task).await {
            Ok(()) => {}
            Err(error) => assert_eq!(error.kind(), ErrorKind::Unsupported, "{task:?}: {error}"),
        }
        for (i, value) in subject.values(&keys).await.into_iter().enumerate() {
            assert_eq!(value.is_some(), i % 2 == 1, "{task:?}, key {i}");
        }
    }
}

pub(crate) async fn housekeeping_removes_only_what_has_expired(subject: Subject) {
    let hour = Duration::from_secs(3600);
    subject.put(&key("for ever"), "v").await;
    subject.put_for(&key("prolonged"), "v", subject.short_ttl()).await;
    subject.put_for(&key("prolonged"), "v", hour * 2).await;
    subject.put_for(&key("persisted"), "v", subject.short_ttl()).await;
    subject.put(&key("persisted"), "v").await;
    subject.put_expired(&key("expired"), "v").await;
    subject.put_expired(&key("written again"), "old").await;
    subject.put(&key("written again"), "v").await;
    subject.put_for(&key("for long"), "v", hour).await;
    for task in [Maintenance::Sweep, Maintenance::Compact] {
        if let Err(error) = subject.backend.maintain(task).await {
            assert_eq!(error.kind(), ErrorKind::Unsupported, "{task:?}: {error}");
        }
        let kept = ["for ever", "for long", "prolonged", "persisted", "written again"].map(key);
        assert_eq!(subject.values(&kept).await, vec![Some("v".into()); kept.len()], "{task:?}");
        assert_eq!(subject.get(&key("expired")).await, None);
        subject.assert_ttl(&key("for long"), hour).await;
    }
}

/// What an error shows to people and logs, its sources included.
fn text(error: &Error) -> String {
    let mut text = format!("{error} {error:?}");
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(&format!(" {cause} {cause:?}"));
        source = cause.source();
    }
    text
}

pub(crate) async fn errors_show_no_values_and_escape_keys(subject: Subject) {
    const SECRET: &str = "hunter2";
    let k = key(b"key\n\x1b[31m\xff");
    subject.put(&k, SECRET).await;
    let long = usize::try_from(subject.backend.capabilities().max_value_bytes).unwrap() + 1;
    let long = Bytes::from(SECRET.repeat(long.div_ceil(SECRET.len()) + 1));
    let put_long = subject.backend.put(&k, long.clone(), PutOptions::default()).await;
    let batch_long = subject.backend.write_many(vec![Write::put(k.clone(), long)]).await;
    let not_integer =
        subject.transact(&k, |_, _| Err(Error::new(ErrorKind::NotInteger, "not an integer"))).await;
    let put_forbidden = subject.backend.put(&k, SECRET.into(), for_(Duration::ZERO)).await;
    let errors: [Result<()>; 4] =
        [put_long.map(drop), batch_long.map(drop), not_integer.map(drop), put_forbidden.map(drop)];
    for error in errors.map(Result::unwrap_err) {
        assert_is_clean(&error, SECRET);
    }
}

fn assert_is_clean(error: &Error, secret: &str) {
    let text = text(error);
    assert!(!text.contains(secret), "an error shows a value");
    assert!(text.chars().all(|c| c == ' ' || c.is_ascii_graphic()), "a key is not escaped: {text}");
    assert!(text.len() < 1_000, "an error of {} characters", text.len());
}

pub(crate) async fn the_error_of_a_batch_shows_no_values_and_escapes_the_key(subject: Subject) {
    let k = key(b"key\n\x1b[31m\xff");
    subject.put(&k, "hunter2").await;
    let options =
        PutOptions { condition: Condition::Equals("hunter2 hunter2".into()), expiry: Expiry::Never };
    let batch = vec![Write::Put { key: k.clone(), value: "hunter2".into(), options }];
    let error = subject.backend.write_many(batch).await.unwrap_err();
    assert_is_clean(&error, "hunter2");
    assert!(error.key().is_some_and(|key| key.ends_with("key\\n\\x1b[31m\\xff")), "{error}");
}

pub(crate) async fn the_error_of_a_transaction_shows_no_values_and_escapes_the_key(subject: Subject) {
    let k = key(b"key\n\x1b[31m\xff");
    subject.put(&k, "hunter2").await;
    let mut transaction = subject.backend.begin().await.unwrap();
    assert!(transaction.get(&k).await.unwrap().is_some());
    let put = transaction.put(&key("other"), "hunter2".into(), PutOptions::default()).await.unwrap();
    assert_eq!(put, Applied::Yes);
    subject.put(&k, "hunter2 again").await;
    let error = transaction.commit().await.unwrap_err();
    assert_is_clean(&error, "hunter2");
}

pub(crate) async fn a_store_works_on_after_errors(subject: Subject) {
    for _ in 0..100 {
        let refuse = |_: Option<&[u8]>, _| Err(Error::new(ErrorKind::NotInteger, "refused"));
        subject.transact(&key("k"), refuse).await.unwrap_err();
        let refused = subject.backend.put(&key("k"), "v".into(), for_(Duration::ZERO)).await;
        refused.unwrap_err();
    }
    let count = |state: Option<&[u8]>, _| {
        let next = state.map_or(0, <[u8]>::len) + 1;
        Ok(Step::put(vec![b'x'; next], Expiry::Never, ""))
    };
    for _ in 0..3 {
        subject.transact(&key("k"), count).await.unwrap();
    }
    assert_eq!(subject.value(&key("k")).await.unwrap(), "xxx");
}
