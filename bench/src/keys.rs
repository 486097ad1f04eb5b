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

/// The index of the key that a task uses in a call: evenly spread, the same on both sides.
pub(crate) fn random(task: u64, call: u64) -> usize {
    // SplitMix64 of Steele, Lea and Flood (2014).
    let mut x = (task << 32 | call).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((x ^ (x >> 31)) % KEYS as u64) as usize
}
