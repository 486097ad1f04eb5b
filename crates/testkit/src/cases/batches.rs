//! Many writes in one call.

use std::time::Duration;

use commonhold_core::{Applied, Condition, ErrorKind, Expiry, Key, PutOptions, Write};

use crate::subject::{Subject, equals, for_, key};

const HOUR: Duration = Duration::from_secs(3600);

fn put_if(k: &Key, value: &'static str, condition: Condition) -> Write {
    Write::Put { key: k.clone(), value: value.into(), options: PutOptions::default().when(condition) }
}

fn delete_if(k: &Key, condition: Condition) -> Write {
    Write::Delete { key: k.clone(), condition }
}

pub(crate) async fn a_batch_answers_in_the_order_of_its_writes(subject: Subject) {
    subject.put(&key("there"), "x").await;
    let answers = subject
        .write_many(vec![
            Write::delete(key("missing 1")),
            Write::put(key("z"), "1"),
            Write::delete(key("missing 2")),
            Write::delete(key("there")),
            Write::put(key("a"), "2"),
            Write::delete(key("there")),
        ])
        .await;
    use Applied::{No, Yes};
    assert_eq!(answers, [No, Yes, No, Yes, Yes, No]);
    let values = subject.values(&[key("z"), key("a"), key("there")]).await;
    assert_eq!(values, [Some("1".into()), Some("2".into()), None]);
}

pub(crate) async fn the_later_write_of_a_batch_wins(subject: Subject) {
    let [a, b, c] = ["a", "b", "c"].map(key);
    subject.put(&c, "old").await;
    let answers = subject
        .write_many(vec![
            Write::put(a.clone(), "1"),
            Write::put(b.clone(), "1"),
            Write::delete(c.clone()),
            Write::put(a.clone(), "2"),
            Write::delete(b.clone()),
            Write::put(c.clone(), "2"),
            Write::put(a.clone(), "3"),
        ])
        .await;
    assert_eq!(answers, [Applied::Yes; 7]);
    assert_eq!(subject.values(&[a, b, c]).await, [Some("3".into()), None, Some("2".into())]);
}

pub(crate) async fn an_empty_batch_does_nothing(subject: Subject) {
    subject.put(&key("k"), "v").await;
    assert_eq!(subject.write_many(vec![]).await, []);
    assert_eq!(subject.value(&key("k")).await.unwrap(), "v");
}

pub(crate) async fn a_batch_takes_ten_thousand_writes(subject: Subject) {
    let keys: Vec<Key> = (0..10_000).map(|i| key(format!("k{i}"))).collect();
    let puts = keys.iter().map(|k| Write::put(k.clone(), k.clone().into_bytes())).collect();
    assert_eq!(subject.write_many(puts).await, vec![Applied::Yes; keys.len()]);
    let expected: Vec<_> = keys.iter().map(|k| Some(k.clone().into_bytes())).collect();
    assert!(subject.values(&keys).await == expected);
    let deletes = keys.iter().map(|k| Write::delete(k.clone())).collect();
    assert_eq!(subject.write_many(deletes).await, vec![Applied::Yes; keys.len()]);
    assert!(subject.values(&keys).await.iter().all(Option::is_none));
}

pub(crate) async fn a_batch_sets_and_removes_times_to_live(subject: Subject) {
    let [a, b, c, d] = ["a", "b", "c", "d"].map(key);
    for k in [&b, &c] {
        subject.put_for(k, "old", HOUR).await;
    }
    let put = |k: &Key, options| Write::Put { key: k.clone(), value: "new".into(), options };
    let ttl = subject.short_ttl();
    let batch = vec![
        put(&a, for_(HOUR * 2)),
        put(&b, PutOptions::default().expiry(Expiry::Keep)),
        Write::put(c.clone(), "new"),
        put(&d, for_(HOUR)),
        put(&d, for_(ttl)),
    ];
    assert_eq!(subject.write_many(batch).await, [Applied::Yes; 5]);
    subject.assert_ttl(&a, HOUR * 2).await;
    subject.assert_ttl(&b, HOUR).await;
    assert_eq!(subject.ttl(&c).await, None);
    subject.until_expired(&d, ttl).await;
    assert_eq!(subject.values(&[b, d]).await, [Some("new".into()), None]);
}

pub(crate) async fn a_batch_whose_conditions_hold_is_carried_out(subject: Subject) {
    let [a, b, c, d] = ["a", "b", "c", "d"].map(key);
    subject.put(&b, "1").await;
    subject.put(&c, "1").await;
    let batch = vec![
        put_if(&a, "new", Condition::Absent),
        put_if(&b, "2", equals("1")),
        delete_if(&c, Condition::Present),
        Write::delete(d.clone()),
    ];
    assert_eq!(subject.write_many(batch).await, [Applied::Yes, Applied::Yes, Applied::Yes, Applied::No]);
    assert_eq!(subject.values(&[a, b, c]).await, [Some("new".into()), Some("2".into()), None]);
}

pub(crate) async fn conditions_of_a_batch_see_its_earlier_writes(subject: Subject) {
    let k = key("k");
    let batch = vec![
        put_if(&k, "1", Condition::Absent),
        put_if(&k, "2", equals("1")),
        delete_if(&k, equals("2")),
        put_if(&k, "3", Condition::Absent),
        put_if(&k, "4", Condition::Present),
    ];
    assert_eq!(subject.write_many(batch).await, [Applied::Yes; 5]);
    assert_eq!(subject.value(&k).await.unwrap(), "4");
    let batch = vec![Write::delete(k.clone()), put_if(&k, "5", equals("4"))];
    let error = subject.backend.write_many(batch).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict);
    assert_eq!(subject.value(&k).await.unwrap(), "4");
}

pub(crate) async fn an_unmet_condition_stops_the_whole_batch(subject: Subject) {
    let [a, b, c] = ["a", "b", "c"].map(key);
    subject.put(&a, "old").await;
    subject.put(&b, "old").await;
    let unmet = [
        put_if(&b, "new", Condition::Absent),
        put_if(&c, "new", Condition::Present),
        put_if(&b, "new", equals("other")),
        put_if(&c, "new", equals("")),
        delete_if(&b, equals("other")),
        delete_if(&c, Condition::Present),
    ];
    for (i, unmet) in unmet.into_iter().enumerate() {
        let name = unmet.key().to_string();
        let mut batch =
            vec![Write::put(a.clone(), "new"), Write::delete(b.clone()), Write::put(c.clone(), "new")];
        // Before, between and after the others, and on keys that they do not change before it.
        batch.retain(|write| write.key() != unmet.key());
        batch.insert(i % 3, unmet);
        let error = subject.backend.write_many(batch).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Conflict, "{error}");
        assert!(error.key().is_some_and(|key| key.ends_with(&name)), "the error names the key: {error}");
        let values = subject.values(&[a.clone(), b.clone(), c.clone()]).await;
        assert_eq!(values, [Some("old".into()), Some("old".into()), None]);
    }
}

pub(crate) async fn an_invalid_write_stops_the_whole_batch(subject: Subject) {
    let [a, b, c] = ["a", "b", "c"].map(key);
    subject.put(&a, "old").await;
    let long = usize::try_from(subject.backend.capabilities().max_value_bytes).unwrap() + 1;
    let options = PutOptions::default();
    let too_long = Write::Put { key: b.clone(), value: vec![b'v'; long].into(), options };
    let batch = vec![Write::put(a.clone(), "new"), too_long, Write::put(c.clone(), "new")];
    let error = subject.backend.write_many(batch).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TooLarge);
    assert_eq!(subject.values(&[a, b, c]).await, [Some("old".into()), None, None]);
}

pub(crate) async fn an_invalid_ttl_stops_the_whole_batch(subject: Subject) {
    let [a, b, c] = ["a", "b", "c"].map(key);
    subject.put(&a, "old").await;
    let zero = Write::Put { key: b.clone(), value: "new".into(), options: for_(Duration::ZERO) };
    let batch = vec![Write::delete(a.clone()), zero, Write::put(c.clone(), "new")];
    let error = subject.backend.write_many(batch).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    assert_eq!(subject.values(&[a, b, c]).await, [Some("old".into()), None, None]);
}
