//! Transitions: pure functions applied atomically to one key.

use std::time::Duration;

use bytes::Bytes;
use commonhold_core::{Action, Clock as _, Error, ErrorKind, Expiry, Result, Step, Timestamp};

use crate::subject::{Subject, add_one, key};

const HOUR: Duration = Duration::from_secs(3600);

pub(crate) async fn a_transition_sees_the_state_and_replaces_it(subject: Subject) {
    let k = key("k");
    subject.put(&key("other"), "untouched").await;
    let append = |state: Option<&[u8]>, _: Timestamp| {
        let old = state.map_or("none".into(), |state| String::from_utf8_lossy(state).into_owned());
        Ok(Step::put(format!("{old}+"), Expiry::Never, format!("was {old}")))
    };
    assert_eq!(subject.transact(&k, append).await.unwrap(), "was none");
    assert_eq!(subject.transact(&k, append).await.unwrap(), "was none+");
    assert_eq!(subject.value(&k).await.unwrap(), "none++");
    assert_eq!(subject.value(&key("other")).await.unwrap(), "untouched");
}

pub(crate) async fn replies_reach_the_caller_whatever_the_bytes(subject: Subject) {
    for reply in [vec![], vec![0], (0..=255).collect(), vec![0xff; 10_000]] {
        let sent = reply.clone();
        let answer = subject.transact(&key("k"), move |_, _| Ok(Step::nothing(sent.clone()))).await;
        assert_eq!(answer.unwrap(), reply);
        let sent = reply.clone();
        let put = move |_: Option<&[u8]>, _| Ok(Step::put(sent.clone(), Expiry::Never, sent.clone()));
        assert_eq!(subject.transact(&key("k"), put).await.unwrap(), reply);
        assert_eq!(subject.value(&key("k")).await.unwrap(), reply);
    }
}

pub(crate) async fn a_transition_that_does_nothing_leaves_the_entry(subject: Subject) {
    let nothing = |_: Option<&[u8]>, _| Ok(Step::nothing("reply"));
    subject.put(&key("k"), "v").await;
    assert_eq!(subject.transact(&key("k"), nothing).await.unwrap(), "reply");
    assert_eq!(subject.value(&key("k")).await.unwrap(), "v");
    assert_eq!(subject.transact(&key("missing"), nothing).await.unwrap(), "reply");
    assert_eq!(subject.get(&key("missing")).await, None);
}

pub(crate) async fn a_transition_deletes(subject: Subject) {
    let take = |state: Option<&[u8]>, _| Ok(Step::delete(Bytes::copy_from_slice(state.unwrap_or(b"none"))));
    subject.put(&key("k"), "v").await;
    assert_eq!(subject.transact(&key("k"), take).await.unwrap(), "v");
    assert_eq!(subject.get(&key("k")).await, None);
    assert_eq!(subject.transact(&key("k"), take).await.unwrap(), "none");
}

pub(crate) async fn a_transition_that_fails_changes_nothing_and_its_error_arrives(subject: Subject) {
    subject.put(&key("k"), "v").await;
    for kind in [ErrorKind::NotInteger, ErrorKind::Conflict, ErrorKind::InvalidInput, ErrorKind::Corrupt] {
        for k in ["k", "missing"].map(key) {
            let refuse = move |_: Option<&[u8]>, _| Err(Error::new(kind, "refused by the transition"));
            let error = subject.transact(&k, refuse).await.unwrap_err();
            assert_eq!(error.kind(), kind);
            assert!(error.to_string().contains("refused by the transition"), "{error}");
        }
    }
    assert_eq!(subject.value(&key("k")).await.unwrap(), "v");
    assert_eq!(subject.get(&key("missing")).await, None);
}

pub(crate) async fn a_transition_sees_what_was_written_by_every_other_way(subject: Subject) {
    let k = key("k");
    subject.put(&k, "5").await;
    assert_eq!(subject.backend.transact(&k, add_one()).await.unwrap(), "6");
    assert_eq!(subject.value(&k).await.unwrap(), "6");
    subject.write_many(vec![commonhold_core::Write::put(k.clone(), "10")]).await;
    assert_eq!(subject.backend.transact(&k, add_one()).await.unwrap(), "11");
    let _ = subject.delete(&k).await;
    assert_eq!(subject.backend.transact(&k, add_one()).await.unwrap(), "1");
}

pub(crate) async fn a_transition_is_given_the_time_of_the_store(subject: Subject) {
    let now = async || {
        let reply = |_: Option<&[u8]>, now: Timestamp| Ok(Step::nothing(now.as_nanos().to_string()));
        let text = subject.transact(&key("k"), reply).await.unwrap();
        Timestamp::from_nanos(std::str::from_utf8(&text).unwrap().parse().unwrap())
    };
    let first = now().await;
    if let Some(clock) = subject.clock() {
        assert_eq!(first, clock.now());
        clock.advance(HOUR);
        assert_eq!(now().await, first.saturating_add(HOUR));
    } else {
        let year_2020 = Timestamp::from_millis(1_577_836_800_000);
        assert!(first > year_2020, "{first:?}");
        assert!(now().await >= first, "the store's time goes back");
    }
}

async fn expire(subject: &Subject, name: &str, expiry: Expiry) -> Result<Bytes> {
    subject
        .transact(&key(name), move |_, _| Ok(Step { action: Action::Expire(expiry), reply: "done".into() }))
        .await
}

pub(crate) async fn a_transition_changes_the_time_to_live_and_leaves_the_value(subject: Subject) {
    let k = key("k");
    subject.put(&k, "v").await;
    assert_eq!(expire(&subject, "k", Expiry::After(HOUR)).await.unwrap(), "done");
    subject.assert_ttl(&k, HOUR).await;
    expire(&subject, "k", Expiry::Keep).await.unwrap();
    subject.assert_ttl(&k, HOUR).await;
    expire(&subject, "k", Expiry::Never).await.unwrap();
    assert_eq!(subject.ttl(&k).await, None);
    assert_eq!(subject.value(&k).await.unwrap(), "v");
    let ttl = subject.short_ttl();
    expire(&subject, "k", Expiry::After(ttl)).await.unwrap();
    subject.until_expired(&k, ttl).await;
    assert_eq!(subject.get(&k).await, None);
}

pub(crate) async fn changing_the_time_to_live_of_no_entry_does_nothing(subject: Subject) {
    for expiry in [Expiry::After(HOUR), Expiry::Keep, Expiry::Never] {
        assert_eq!(expire(&subject, "missing", expiry).await.unwrap(), "done");
        assert_eq!(subject.get(&key("missing")).await, None);
    }
    subject.put_expired(&key("expired"), "old").await;
    for expiry in [Expiry::After(HOUR), Expiry::Keep, Expiry::Never] {
        expire(&subject, "expired", expiry).await.unwrap();
        assert_eq!(subject.get(&key("expired")).await, None, "brought back to life by {expiry:?}");
    }
}

pub(crate) async fn a_transition_keeps_sets_and_removes_the_time_to_live(subject: Subject) {
    let k = key("k");
    let put = async |expiry| {
        subject.transact(&k, move |_, _| Ok(Step::put("new", expiry, ""))).await.unwrap();
    };
    subject.put_for(&k, "old", HOUR).await;
    put(Expiry::Keep).await;
    subject.assert_ttl(&k, HOUR).await;
    put(Expiry::After(HOUR * 2)).await;
    subject.assert_ttl(&k, HOUR * 2).await;
    put(Expiry::Never).await;
    assert_eq!(subject.ttl(&k).await, None);
    put(Expiry::Keep).await;
    assert_eq!(subject.ttl(&k).await, None);
}

pub(crate) async fn a_transition_over_an_expired_entry_begins_anew(subject: Subject) {
    subject.put_expired(&key("k"), "41").await;
    assert_eq!(subject.backend.transact(&key("k"), add_one()).await.unwrap(), "1");
    assert_eq!(subject.ttl(&key("k")).await, None, "the old time to live is not kept");
}
