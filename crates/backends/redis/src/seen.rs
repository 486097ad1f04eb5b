//! Which keys a scan has returned already, in bounded memory.

use std::collections::HashSet;

use foldhash::fast::RandomState;
use std::hash::BuildHasher as _;

/// How many keys are remembered before a finer part of the table is taken: 16 bytes each, or somewhat more.
const MAX_REMEMBERED: usize = 1 << 20;

/// Lets each key of a scan through once.
///
/// SCAN returns a key twice when the server's table shrinks meanwhile. Its cursor counts with the highest bit of
/// the bucket's number first, so read backwards it says which fraction of the table is done, whatever its size. A
/// table of `2^n` buckets that shrinks takes the fraction back to the multiple of `1/2^n` below it, never further.
/// So what was returned before the last multiple of a quarter, 4 buckets being the smallest table, cannot come
/// again and need not be remembered. Where a quarter is more than [`MAX_REMEMBERED`] keys it is an eighth, and so
/// on: then a store of millions of keys that shrinks to few while it is scanned could repeat some of those.
///
/// Keys are remembered by 64 bits of their hash: among a million keys one is taken for another with a
/// probability of 1 in 36 million.
#[derive(Debug)]
pub(crate) struct Seen {
    hashes: HashSet<u64, RandomState>,
    hasher: RandomState,
    /// The scan's table is seen in `2^bits` parts.
    bits: u32,
    part: u64,
}

impl Default for Seen {
    fn default() -> Self {
        Self { hashes: HashSet::default(), hasher: RandomState::default(), bits: 2, part: 0 }
    }
}

impl Seen {
    /// Keeps of a page the keys that did not come before. The cursor is the one that came with the page.
    pub(crate) fn retain_new<K: AsRef<[u8]>>(&mut self, page: &mut Vec<K>, cursor: u64) {
        let mut hashes = Vec::with_capacity(page.len());
        page.retain(|key| {
            let hash = self.hasher.hash_one(key.as_ref());
            hashes.push(hash);
            self.hashes.insert(hash)
        });
        while self.hashes.len() > MAX_REMEMBERED && self.bits < 32 {
            self.bits += 1;
            self.begin_part(cursor, &hashes);
        }
        if self.part_of(cursor) != self.part {
            self.begin_part(cursor, &hashes);
        }
    }

    /// Forgets all but this page, of which some keys may lie in the part that begins.
    fn begin_part(&mut self, cursor: u64, page: &[u64]) {
        self.part = self.part_of(cursor);
        self.hashes.clear();
        self.hashes.extend(page);
    }

    fn part_of(&self, cursor: u64) -> u64 {
        cursor.reverse_bits() >> (64 - self.bits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A table as the server has it, whose buckets are the lowest bits of a key's number.
    fn bucket(keys: &[u64], cursor: u64, size: u64) -> Vec<[u8; 8]> {
        keys.iter().filter(|key| *key % size == cursor % size).map(|key| key.to_be_bytes()).collect()
    }

    fn next(cursor: u64, size: u64) -> u64 {
        (cursor | !(size - 1)).reverse_bits().wrapping_add(1).reverse_bits()
    }

    #[test]
    fn each_key_comes_once_however_the_table_shrinks_and_grows() {
        let mut random = fastrand::Rng::with_seed(7);
        let keys: Vec<u64> = (0..500).map(|_| random.u64(..)).collect();
        let mut repeated = 0;
        for _ in 0..200 {
            let (mut seen, mut found, mut cursor) = (Seen::default(), Vec::new(), 0);
            loop {
                let size = 1 << random.u32(2..9);
                let mut page = bucket(&keys, cursor, size);
                cursor = next(cursor, size);
                let before = page.len();
                seen.retain_new(&mut page, cursor);
                repeated += before - page.len();
                found.append(&mut page);
                if cursor == 0 {
                    break;
                }
            }
            found.sort_unstable();
            let distinct = found.len();
            found.dedup();
            assert_eq!((distinct, found.len()), (keys.len(), keys.len()));
        }
        assert!(repeated > 0, "the table has repeated nothing, so nothing was tested");
    }

    #[test]
    fn what_is_remembered_is_a_part_of_what_came() {
        let keys: Vec<u64> = (0..8192).collect();
        let (mut seen, mut cursor, mut most) = (Seen::default(), 0, 0);
        loop {
            let mut page = bucket(&keys, cursor, 1024);
            cursor = next(cursor, 1024);
            seen.retain_new(&mut page, cursor);
            most = most.max(seen.hashes.len());
            if cursor == 0 {
                break;
            }
        }
        assert!(most <= keys.len() / 4 + 8, "{most}");
    }
}
