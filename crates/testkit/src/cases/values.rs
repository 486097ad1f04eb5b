//! Putting, getting and deleting single keys.

use bytes::Bytes;
use commonhold_core::{Applied, Condition, ErrorKind, Expiry, Key, PutOptions, Step, Write};

use crate::subject::{Subject, equals, key};

pub(crate) async fn a_key_that_was_never_written_reads_as_missing(subject: Subject) {
    subject.put(&key("another"), "x").await;
    assert_missing(&subject, &key("k")).await;
}

pub(crate) async fn a_deleted_key_reads_as_missing(subject: Subject) {
    subject.put(&key("k"), "old").await;
    assert_eq!(subject.delete(&key("k")).await, Applied::Yes);
    assert_missing(&subject, &key("k")).await;
}

pub(crate) async fn an_expired_key_reads_as_missing(subject: Subject) {
    subject.put_expired(&key("k"), "old").await;
    assert_missing(&subject, &key("k")).await;
}

/// Whoever reads, compares or transforms the key sees nothing. Changes nothing until the end, which puts it.
async fn assert_missing(subject: &Subject, k: &Key) {
    assert_eq!(subject.get(k).await, None);
    assert_eq!(subject.backend.get_many(&[k.clone(), k.clone()]).await.unwrap(), [None, None]);
    for condition in [Condition::Present, equals("old"), equals("")] {
        assert_eq!(subject.delete_if(k, condition.clone()).await, Applied::No, "delete if {condition:?}");
        assert_eq!(subject.put_if(k, "new", condition.clone()).await, Applied::No, "put if {condition:?}");
    }
    assert_eq!(subject.delete_if(k, Condition::Absent).await, Applied::No);
    assert_eq!(subject.delete(k).await, Applied::No);
    let seen =
        subject.transact(k, |state, _| Ok(Step::nothing(if state.is_some() { "some" } else { "none" })));
    assert_eq!(seen.await.unwrap(), "none");
    assert_eq!(subject.get(k).await, None);
    assert_eq!(subject.put_if(k, "new", Condition::Absent).await, Applied::Yes);
    assert_eq!(subject.value(k).await.unwrap(), "new");
    assert_eq!(subject.ttl(k).await, None, "nothing is left of the old entry");
}

pub(crate) async fn a_value_that_was_put_is_read_back(subject: Subject) {
    subject.put(&key("k"), "value").await;
    let entry = subject.get(&key("k")).await.unwrap();
    assert_eq!(entry.value, "value");
    assert_eq!(entry.ttl, None);
}

pub(crate) async fn an_empty_value_is_a_value(subject: Subject) {
    let k = key("k");
    subject.put(&k, "").await;
    assert_eq!(subject.value(&k).await.unwrap(), "");
    assert_eq!(subject.values(std::slice::from_ref(&k)).await, [Some(Bytes::new())]);
    assert_eq!(subject.put_if(&k, "x", Condition::Absent).await, Applied::No);
    let seen = subject.transact(&k, |state, _| Ok(Step::nothing(format!("{state:?}")))).await.unwrap();
    assert_eq!(seen, "Some([])");
    assert_eq!(subject.put_if(&k, "", Condition::Present).await, Applied::Yes);
    assert_eq!(subject.put_if(&k, "", equals("")).await, Applied::Yes);
    assert_eq!(subject.delete_if(&k, equals("")).await, Applied::Yes);
    assert_eq!(subject.get(&k).await, None);
}

pub(crate) async fn a_later_put_replaces_the_earlier_one(subject: Subject) {
    let k = key("k");
    for value in ["a longer value", "short", "", "a longer value than the first"] {
        subject.put(&k, value).await;
        assert_eq!(subject.value(&k).await.unwrap(), value);
    }
}

pub(crate) async fn every_byte_may_stand_in_a_key(subject: Subject) {
    let keys: Vec<Key> =
        (0..=255u8).flat_map(|byte| [key([byte]), key([b'k', byte]), key([byte, b'k'])]).collect();
    // `kk` is there twice.
    for k in &keys {
        subject.put(k, k.as_bytes().to_vec()).await;
    }
    for k in &keys {
        assert_eq!(subject.value(k).await.unwrap(), k.as_bytes(), "{k:?}");
    }
    assert_eq!(
        subject.values(&keys).await,
        keys.iter().map(|k| Some(k.clone().into_bytes())).collect::<Vec<_>>()
    );
    assert_eq!(subject.delete(&key([0])).await, Applied::Yes);
    assert_eq!(subject.get(&key([0])).await, None);
    assert!(subject.get(&key([0, b'k'])).await.is_some());
}

pub(crate) async fn every_byte_may_stand_in_a_value(subject: Subject) {
    let all: Vec<u8> = (0..=255u8).chain((0..=255).rev()).collect();
    subject.put(&key("all"), all.clone()).await;
    assert_eq!(subject.value(&key("all")).await.unwrap(), all);
    for byte in 0..=255u8 {
        subject.put(&key("k"), vec![byte]).await;
        assert_eq!(subject.value(&key("k")).await.unwrap(), vec![byte]);
        assert_eq!(subject.put_if(&key("k"), vec![byte, byte], equals(vec![byte])).await, Applied::Yes);
    }
}

pub(crate) async fn keys_that_begin_alike_are_different_keys(subject: Subject) {
    let keys = [key("a"), key("a\0"), key("a\0\0"), key("ab"), key("A"), key(" a"), key("a "), key("a\n")];
    for k in &keys {
        subject.put(k, k.as_bytes().to_vec()).await;
    }
    for k in &keys {
        assert_eq!(subject.value(k).await.unwrap(), k.as_bytes(), "{k:?}");
        assert_eq!(subject.delete(k).await, Applied::Yes, "{k:?}");
    }
}

pub(crate) async fn the_longest_key_is_accepted_and_compared_to_its_last_byte(subject: Subject) {
    let mut bytes = vec![0xff; subject.max_key_len()];
    let first = key(&bytes);
    *bytes.last_mut().unwrap() = 0xfe;
    let second = key(&bytes);
    subject.put(&first, "first").await;
    subject.put(&second, "second").await;
    assert_eq!(subject.values(&[first.clone(), second]).await, [Some("first".into()), Some("second".into())]);
    assert_eq!(subject.delete(&first).await, Applied::Yes);
    bytes.push(0xff);
    if let Ok(too_long) = Key::new(&bytes) {
        assert_eq!(subject.backend.get(&too_long).await.unwrap_err().kind(), ErrorKind::TooLarge);
    }
}

pub(crate) async fn the_longest_value_is_accepted(subject: Subject) {
    let longest = Bytes::from(vec![b'v'; longest(&subject)]);
    subject.put(&key("k"), longest.clone()).await;
    assert!(subject.value(&key("k")).await.unwrap() == longest);
    let from_transition = longest.clone();
    let step = move |_: Option<&[u8]>, _| Ok(Step::put(from_transition.clone(), Expiry::Never, ""));
    subject.transact(&key("t"), step).await.unwrap();
    assert!(subject.value(&key("t")).await.unwrap() == longest);
    subject.write_many(vec![Write::put(key("b"), longest.clone())]).await;
    assert!(subject.value(&key("b")).await.unwrap() == longest);
}

pub(crate) async fn a_value_over_the_limit_is_refused_and_changes_nothing(subject: Subject) {
    let k = key("k");
    subject.put(&k, "old").await;
    let long = Bytes::from(vec![b'v'; longest(&subject) + 1]);
    let put = subject.backend.put(&k, long.clone(), PutOptions::default()).await;
    assert_eq!(put.unwrap_err().kind(), ErrorKind::TooLarge);
    let batch = subject.backend.write_many(vec![Write::put(k.clone(), long.clone())]).await;
    assert_eq!(batch.unwrap_err().kind(), ErrorKind::TooLarge);
    let step = move |_: Option<&[u8]>, _| Ok(Step::put(long.clone(), Expiry::Never, ""));
    assert_eq!(subject.transact(&k, step).await.unwrap_err().kind(), ErrorKind::TooLarge);
    assert_eq!(subject.value(&k).await.unwrap(), "old");
}

fn longest(subject: &Subject) -> usize {
    usize::try_from(subject.backend.capabilities().max_value_bytes).unwrap()
}

pub(crate) async fn delete_says_whether_something_was_there(subject: Subject) {
    let k = key("k");
    assert_eq!(subject.delete(&k).await, Applied::No);
    subject.put(&k, "").await;
    assert_eq!(subject.delete(&k).await, Applied::Yes);
    assert_eq!(subject.delete(&k).await, Applied::No);
}

pub(crate) async fn get_many_answers_in_the_order_of_its_keys(subject: Subject) {
    let names = ["m", "z", "a", "q", "b", "y", "n", "c"];
    for name in names {
        subject.put(&key(name), name).await;
    }
    for rotation in 0..names.len() {
        let mut order = names.to_vec();
        order.rotate_left(rotation);
        order.insert(3, "missing");
        let keys: Vec<Key> = order.iter().map(key).collect();
        let expected: Vec<Option<Bytes>> =
            order.iter().map(|&name| (name != "missing").then(|| Bytes::from(name))).collect();
        assert_eq!(subject.values(&keys).await, expected);
    }
}

pub(crate) async fn get_many_answers_a_key_as_often_as_it_is_asked_for(subject: Subject) {
    subject.put(&key("a"), "1").await;
    subject.put(&key("b"), "2").await;
    let (a, b) = (Some(Bytes::from("1")), Some(Bytes::from("2")));
    let asked = [key("a"), key("b"), key("a"), key("none"), key("a"), key("none")];
    assert_eq!(subject.values(&asked).await, [a.clone(), b, a.clone(), None, a, None]);
}

pub(crate) async fn get_many_of_no_keys_answers_nothing(subject: Subject) {
    subject.put(&key("a"), "1").await;
    assert_eq!(subject.values(&[]).await, []);
}

pub(crate) async fn get_many_takes_ten_thousand_keys(subject: Subject) {
    let keys: Vec<Key> = (0..10_000).map(|i| key(format!("k{i}"))).collect();
    subject
        .write_many(keys.iter().step_by(2).map(|k| Write::put(k.clone(), k.as_bytes().to_vec())).collect())
        .await;
    let values = subject.values(&keys).await;
    assert_eq!(values.len(), keys.len());
    for (i, (k, value)) in keys.iter().zip(values).enumerate() {
        assert_eq!(value.as_deref(), (i % 2 == 0).then_some(k.as_bytes()));
    }
}
