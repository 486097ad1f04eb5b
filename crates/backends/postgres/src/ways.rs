//! Which of the connections a gathered call goes over.

use std::{
    hash::BuildHasher as _,
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
};

use commonhold_core::Key;
use foldhash::fast::RandomState;

/// How many statements may be in flight: while the server works on one, the next is made up.
pub(crate) const WAYS: usize = 2;
/// Keys whose hashes fall together are taken for one.
const BUCKETS: usize = 1024;

/// The calls on each way.
///
/// A call goes where fewer are: those that were answered together ask again together then. Who is alone has the first way,
/// which stays warm. A put goes where there are calls for its key: on two ways, one would wait for the other's lock, and
/// all that travel with it.
#[derive(Debug)]
pub(crate) struct Ways {
    calls: [AtomicUsize; WAYS],
    /// For the keys of each hash, how many calls there are, and in the last bit, on which way. Empty for reads, which do
    /// not wait for each other.
    keys: Vec<AtomicUsize>,
    hasher: RandomState,
}

impl Ways {
    pub(crate) fn of_reads() -> Self {
        Self { calls: Default::default(), keys: Vec::new(), hasher: RandomState::default() }
    }

    pub(crate) fn of_puts() -> Self {
        let keys = (0..BUCKETS).map(|_| AtomicUsize::new(0)).collect();
        Self { keys, ..Self::of_reads() }
    }

    /// The way for a call, counted on it until that is dropped.
    pub(crate) fn choose(&self, key: &Key) -> Way<'_> {
        let [even, odd] = &self.calls;
        let lighter = usize::from(even.load(Relaxed) > odd.load(Relaxed));
        let bucket = match self.keys.is_empty() {
            true => None,
            false => self.keys.get(self.hasher.hash_one(key.as_bytes()) as usize % BUCKETS),
        };
        let joined = |calls: usize| Some(if calls < 2 { 2 + lighter } else { calls + 2 });
        let before = bucket.and_then(|bucket| bucket.fetch_update(Relaxed, Relaxed, joined).ok());
        let number = before.filter(|&calls| calls >= 2).map_or(lighter, |calls| calls % 2);
        let calls = pick(&self.calls, number);
        calls.fetch_add(1, Relaxed);
        Way { number, calls, bucket }
    }
}

/// The way that a call goes.
#[derive(Debug)]
pub(crate) struct Way<'a> {
    pub(crate) number: usize,
    calls: &'a AtomicUsize,
    bucket: Option<&'a AtomicUsize>,
}

impl Drop for Way<'_> {
    fn drop(&mut self) {
        self.calls.fetch_sub(1, Relaxed);
        if let Some(bucket) = self.bucket {
            bucket.fetch_sub(2, Relaxed);
        }
    }
}

/// One of the two, by an even or odd number.
pub(crate) fn pick<T>([even, odd]: &[T; WAYS], number: usize) -> &T {
    if number.is_multiple_of(2) { even } else { odd }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(number: usize) -> Key {
        Key::new(format!("key {number}")).unwrap()
    }

    #[test]
    fn a_call_goes_where_fewer_are_and_who_is_alone_goes_the_first_way() {
        let ways = Ways::of_reads();
        for number in 0..10 {
            assert_eq!(ways.choose(&key(number)).number, 0);
        }
        let calls: Vec<_> = (0..10).map(|number| ways.choose(&key(number))).collect();
        let second = calls.iter().filter(|way| way.number == 1).count();
        assert!((4..=6).contains(&second), "of 10 calls {second} went the second way");
        drop(calls);
        assert_eq!(ways.choose(&key(1)).number, 0);
    }

    #[test]
    fn puts_of_one_key_go_together() {
        let ways = Ways::of_puts();
        let _first = ways.choose(&key(0));
        let hot = ways.choose(&key(1));
        for _ in 0..10 {
            assert_eq!(ways.choose(&key(1)).number, hot.number);
        }
        let more: Vec<_> = (0..10).map(|_| ways.choose(&key(1))).collect();
        assert!(more.iter().all(|way| way.number == hot.number));
        drop((hot, more));
        assert!(ways.keys.iter().filter(|calls| calls.load(Relaxed) >= 2).count() == 1);
    }
}
