//! The keys and values that every benchmark uses: 100,000 keys, 100-byte values.

use bytes::Bytes;
use commonhold::Key;

/// How many keys there are.
pub(crate) const KEYS: usize = 100_000;

/// All keys.
pub(crate) fn keys() -> Vec<Key> {
    (0..KEYS).filter_map(|number| Key::new(format!("bench:{number:08}")).ok()).collect()
}

/// The value of every key.
pub(crate) fn value() -> Bytes {
    Bytes::from_static(&[b'v'; 100])
}

/// The keys that the calls of a benchmark ask for, in an order without pattern, the same on both sides.
///
/// They are copies of their own, made in the order in which they are used: as with an application, which has
/// just put its key together, what waits for memory is the store and not the caller.
pub(crate) struct Calls(Vec<Key>);

impl Calls {
    pub(crate) fn new() -> Self {
        let mut keys = keys();
        fastrand::Rng::with_seed(7).shuffle(&mut keys);
        Self(keys.iter().filter_map(|key| Key::new(key.as_bytes()).ok()).collect())
    }

    /// The keys for one of so many tasks, again and again: each task begins at another place.
    pub(crate) fn of_task(&self, task: u64, tasks: u64) -> impl Iterator<Item = &Key> {
        let skip = self.0.len() * task as usize / tasks.max(1) as usize;
        self.0.iter().cycle().skip(skip)
    }
}
