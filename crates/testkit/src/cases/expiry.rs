//! Times to live: how they begin, end, stay and go.

use std::time::{Duration, Instant};

use bytes::Bytes;
use commonhold_core::{
    Action, Applied, Condition, ErrorKind, Expiry, Key, PutOptions, Result, Step, Timestamp, Write,
};

use crate::subject::{Subject, equals, for_, key};

const HOUR: Duration = Duration::from_secs(3600);

/// Neither before its time nor, where the clock can be turned, after it.
pub(crate) async fn an_entry_expires_when_its_time_is_over_and_not_before(subject: Subject) {
    let resolution = subject.backend.capabilities().ttl_resolution;
    let odd = Duration::from_nanos(1_500_000_001);
    for ttl in [subject.short_ttl(), odd, resolution, Duration::from_nanos(1)] {
        let started = Instant::now();
        subject.put_for(&key("k"), "v", ttl).await;
        match subject.clock() {
            Some(clock) => {
                clock.advance(ttl - Duration::from_nanos(1));
                assert!(subject.get(&key("k")).await.is_some(), "expired early, ttl {ttl:?}");
                clock.advance(resolution + Duration::from_nanos(1));
                assert_eq!(subject.get(&key("k")).await, None, "ttl {ttl:?}");
            }
            None => {
                subject.until_expired(&key("k"), ttl).await;
                assert!(started.elapsed() >= ttl, "expired early, ttl {ttl:?}");
            }
        }
    }
}

pub(crate) async fn the_time_left_is_told_and_shrinks(subject: Subject) {
    subject.put_for(&key("k"), "v", HOUR).await;
    subject.assert_ttl(&key("k"), HOUR).await;
    let many = subject.backend.get_many(&[key("k")]).await.unwrap();
    subject.assert_ttl_is(many[0].as_ref().unwrap().ttl.unwrap(), HOUR);
    if let Some(clock) = subject.clock() {
        clock.advance(Duration::from_secs(600));
        subject.assert_ttl(&key("k"), HOUR - Duration::from_secs(600)).await;
    }
}

pub(crate) async fn put_without_a_ttl_removes_an_earlier_one(subject: Subject) {
    let (k, ttl) = (key("k"), subject.short_ttl());
    subject.put_for(&k, "old", ttl).await;
    subject.put(&k, "new").await;
    assert_eq!(subject.ttl(&k).await, None);
    subject.put_for(&key("other"), "x", ttl).await;
    subject.until_expired(&key("other"), ttl).await;
    assert_eq!(subject.value(&k).await.unwrap(), "new");
}

pub(crate) async fn put_with_a_ttl_replaces_an_earlier_one(subject: Subject) {
    let (k, ttl) = (key("k"), subject.short_ttl());
    subject.put(&k, "1").await;
    subject.put_for(&k, "2", HOUR).await;
    subject.assert_ttl(&k, HOUR).await;
    subject.put_for(&k, "3", HOUR * 2).await;
    subject.assert_ttl(&k, HOUR * 2).await;
    subject.put_for(&k, "4", ttl).await;
    subject.until_expired(&k, ttl).await;
    assert_eq!(subject.get(&k).await, None);
}

pub(crate) async fn put_that_keeps_the_ttl_keeps_it(subject: Subject) {
    let k = key("k");
    let keep = || PutOptions::default().expiry(Expiry::Keep);
    subject.put_for(&k, "1", HOUR).await;
    assert_eq!(subject.put_with(&k, "2", keep()).await, Applied::Yes);
    assert_eq!(subject.put_with(&k, "3", keep().when(equals("2"))).await, Applied::Yes);
    assert_eq!(subject.value(&k).await.unwrap(), "3");
    subject.assert_ttl(&k, HOUR).await;
    subject.put(&k, "4").await;
    assert_eq!(subject.put_with(&k, "5", keep()).await, Applied::Yes);
    assert_eq!(subject.ttl(&k).await, None);
}

pub(crate) async fn keeping_the_ttl_of_no_entry_means_for_ever(subject: Subject) {
    let keep = || PutOptions::default().expiry(Expiry::Keep);
    assert_eq!(subject.put_with(&key("missing"), "v", keep()).await, Applied::Yes);
    assert_eq!(subject.ttl(&key("missing")).await, None);
    subject.put_expired(&key("expired"), "old").await;
    assert_eq!(subject.put_with(&key("expired"), "v", keep()).await, Applied::Yes);
    assert_eq!(subject.ttl(&key("expired")).await, None);
}

pub(crate) async fn a_new_entry_inherits_no_ttl_from_a_deleted_one(subject: Subject) {
    subject.put_for(&key("k"), "old", HOUR).await;
    assert_eq!(subject.delete(&key("k")).await, Applied::Yes);
    assert_eq!(
        subject.put_with(&key("k"), "new", PutOptions::default().expiry(Expiry::Keep)).await,
        Applied::Yes
    );
    assert_eq!(subject.ttl(&key("k")).await, None);
}

pub(crate) async fn a_ttl_of_zero_is_refused_and_changes_nothing(subject: Subject) {
    assert_ttl_is_refused(&subject, Duration::ZERO).await;
}

pub(crate) async fn a_ttl_over_the_longest_is_refused_and_changes_nothing(subject: Subject) {
    assert_ttl_is_refused(&subject, Expiry::MAX + Duration::from_nanos(1)).await;
    assert_ttl_is_refused(&subject, Duration::MAX).await;
}

async fn assert_ttl_is_refused(subject: &Subject, ttl: Duration) {
    let (there, missing) = (key("there"), key("missing"));
    subject.put_for(&there, "old", HOUR).await;
    let (put, expire) = (Expiry::After(ttl), Action::Expire(Expiry::After(ttl)));
    for k in [&there, &missing] {
        refused(subject.backend.put(k, "new".into(), for_(ttl)).await);
        let batch = vec![Write::Put { key: k.clone(), value: "new".into(), options: for_(ttl) }];
        refused(subject.backend.write_many(batch).await);
        refused(subject.transact(k, move |_, _| Ok(Step::put("new", put, ""))).await);
    }
    let expire =
        move |_: Option<&[u8]>, _: Timestamp| Ok(Step { action: expire.clone(), reply: Bytes::new() });
    refused(subject.transact(&there, expire).await);
    refused(subject.backend.put(&there, "new".into(), for_(ttl).when(Condition::Absent)).await);
    assert_eq!(subject.value(&there).await.unwrap(), "old");
    subject.assert_ttl(&there, HOUR).await;
    assert_eq!(subject.get(&missing).await, None);
}

fn refused<T: std::fmt::Debug>(answer: Result<T>) {
    assert_eq!(answer.unwrap_err().kind(), ErrorKind::InvalidInput);
}

pub(crate) async fn the_longest_ttl_is_accepted(subject: Subject) {
    let longest = subject.backend.capabilities().max_ttl;
    subject.put_for(&key("k"), "v", longest).await;
    subject.assert_ttl(&key("k"), longest).await;
}

pub(crate) async fn an_expired_entry_is_not_listed_counted_or_cleared(subject: Subject) {
    let all = crate::subject::prefix("");
    subject.put(&key("b"), "stays").await;
    subject.put_for(&key("c"), "stays for long", HOUR).await;
    subject.put_expired(&key("a"), "old").await;
    assert_eq!(subject.keys(&all).await, [key("b"), key("c")]);
    assert_eq!(subject.count(&all).await, 2);
    assert_eq!(subject.backend.clear(&all).await.unwrap(), 2);
    assert_eq!(subject.keys(&all).await, Vec::<Key>::new());
}

pub(crate) async fn many_entries_expire_each_at_its_time(subject: Subject) {
    let count = 200u32;
    let ttl = |i: u32| subject.short_ttl() * (1 + i % 4);
    let keys: Vec<Key> = (0..count).map(|i| key(format!("k{i}"))).collect();
    let started = Instant::now();
    for (i, k) in (0..).zip(&keys) {
        subject.put_for(k, "v", ttl(i)).await;
    }
    for quarter in 0..4 {
        match subject.clock() {
            Some(clock) => clock.advance(subject.short_ttl()),
            None => {
                // Each by itself: the clocks of several servers do not tick together.
                for (i, k) in (0..).zip(&keys).filter(|(i, _)| i % 4 == quarter) {
                    subject.until_expired(k, ttl(i)).await;
                }
            }
        }
        let values = subject.values(&keys).await;
        for (i, value) in (0..count).zip(values) {
            let (is_over, is_there) = (i % 4 <= quarter, value.is_some());
            // On a real clock, entries of later quarters may be gone by the time that they are read.
            let is_early = !is_there && (subject.clock().is_some() || started.elapsed() < ttl(i));
            assert!(!(is_over && is_there), "entry {i} outlived its time");
            assert!(is_over || !is_early, "entry {i} expired early");
        }
    }
}
