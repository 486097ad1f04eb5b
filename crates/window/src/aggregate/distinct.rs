//! How many different values there are: exactly while they are few, by HyperLogLog beyond.

use std::fmt;

use hyperloglockless::HyperLogLog;
use serde::{Deserialize, Serialize, Serializer};
use xxhash_rust::xxh3::{Xxh3DefaultBuilder, xxh3_64};

/// Up to this many different values are counted exactly.
const EXACT: usize = 256;
/// 2^12 registers.
const PRECISION: u8 = 12;
const REGISTERS: usize = 1 << PRECISION;
/// The hash has 64 bits, so no run of zeros is longer.
const MAX_REGISTER: u8 = 65;

/// A mergeable count of different values: exact up to 256 of them, then HyperLogLog with 4,096 registers, whose
/// standard error is 1.6 %.
///
/// It keeps hashes (xxh3, 64 bits, without a seed), so the same values count as the same whatever process or
/// build of the program has seen them. Its state is a function of the set of values alone.
#[derive(Clone, PartialEq, Deserialize)]
#[serde(try_from = "Vec<u8>")]
pub struct Distinct(Values);

#[derive(Clone, PartialEq)]
enum Values {
    /// Sorted hashes.
    Exact(Vec<u64>),
    Estimated(HyperLogLog<Xxh3DefaultBuilder>),
}

/// What a value is known by.
pub(crate) fn hash(value: &[u8]) -> u64 {
    xxh3_64(value)
}

impl Distinct {
    pub(crate) fn new() -> Self {
        Self(Values::Exact(Vec::new()))
    }

    pub(crate) fn add(&mut self, hash: u64) {
        match &mut self.0 {
            Values::Exact(hashes) => {
                if let Err(place) = hashes.binary_search(&hash) {
                    hashes.insert(place, hash);
                    if hashes.len() > EXACT {
                        self.0 = Values::Estimated(estimator(hashes));
                    }
                }
            }
            Values::Estimated(estimator) => estimator.insert_hash(hash),
        }
    }

    pub(crate) fn merge(&mut self, other: &Self) {
        match (&mut self.0, &other.0) {
            (_, Values::Exact(hashes)) => hashes.iter().for_each(|hash| self.add(*hash)),
            (Values::Exact(hashes), Values::Estimated(theirs)) => {
                let mut merged = theirs.clone();
                hashes.iter().for_each(|hash| merged.insert_hash(*hash));
                self.0 = Values::Estimated(merged);
            }
            (Values::Estimated(ours), Values::Estimated(theirs)) => {
                // Fails for different precisions only, and there is one.
                let _ = ours.union(theirs);
            }
        }
    }

    /// How many different values were added.
    pub fn count(&self) -> u64 {
        match &self.0 {
            Values::Exact(hashes) => hashes.len() as u64,
            // From the registers alone: the running sum that the estimator keeps is rounded in the order in which
            // values came.
            Values::Estimated(estimator) => restore(estimator.parts().0).count() as u64,
        }
    }

    pub(crate) fn memory(&self) -> usize {
        match &self.0 {
            Values::Exact(hashes) => hashes.capacity() * size_of::<u64>(),
            Values::Estimated(_) => REGISTERS,
        }
    }
}

fn estimator(hashes: &[u64]) -> HyperLogLog<Xxh3DefaultBuilder> {
    let mut estimator = HyperLogLog::with_hasher(PRECISION, Xxh3DefaultBuilder);
    hashes.iter().for_each(|hash| estimator.insert_hash(*hash));
    estimator
}

/// Takes 4,096 registers of at most [`MAX_REGISTER`].
fn restore(registers: &[u8]) -> HyperLogLog<Xxh3DefaultBuilder> {
    let zeros = registers.iter().filter(|register| **register == 0).count();
    let sum = registers.iter().map(|register| (-f64::from(*register)).exp2()).sum();
    HyperLogLog::from_parts(registers.into(), Xxh3DefaultBuilder, zeros, sum)
}

impl fmt::Debug for Distinct {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Distinct").field("count", &self.count()).finish_non_exhaustive()
    }
}

impl Serialize for Distinct {
    /// Eight bytes a hash while exact, one byte a register beyond: the length tells the two apart.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match &self.0 {
            Values::Exact(hashes) => {
                let bytes: Vec<u8> = hashes.iter().flat_map(|hash| hash.to_le_bytes()).collect();
                serializer.serialize_bytes(&bytes)
            }
            Values::Estimated(estimator) => serializer.serialize_bytes(estimator.parts().0),
        }
    }
}

impl TryFrom<Vec<u8>> for Distinct {
    type Error = &'static str;

    fn try_from(bytes: Vec<u8>) -> Result<Self, Self::Error> {
        if bytes.len() == REGISTERS {
            let sound = bytes.iter().all(|register| *register <= MAX_REGISTER);
            return sound.then(|| Self(Values::Estimated(restore(&bytes)))).ok_or("a register is too large");
        }
        let (hashes, rest) = bytes.as_chunks::<8>();
        let hashes: Vec<u64> = hashes.iter().map(|hash| u64::from_le_bytes(*hash)).collect();
        if rest.is_empty() && hashes.len() <= EXACT && hashes.is_sorted_by(|a, b| a < b) {
            Ok(Self(Values::Exact(hashes)))
        } else {
            Err("hashes are not sorted")
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn of(values: impl IntoIterator<Item = u32>) -> Distinct {
        let mut distinct = Distinct::new();
        values.into_iter().for_each(|value| distinct.add(hash(&value.to_le_bytes())));
        distinct
    }

    fn round_trip(distinct: &Distinct) -> Distinct {
        postcard::from_bytes(&postcard::to_stdvec(distinct).unwrap()).unwrap()
    }

    #[test]
    fn few_values_are_counted_exactly() {
        assert_eq!(of((0..256).chain(0..256)).count(), 256);
        assert_eq!(of([]).count(), 0);
    }

    #[test]
    fn many_values_are_counted_within_the_stated_error() {
        for n in [300u32, 1_000, 10_000, 100_000, 1_000_000] {
            let error = of(0..n).count() as f64 / f64::from(n) - 1.0;
            assert!(error.abs() < 3.0 * 0.0163, "{n}: {error}");
        }
    }

    #[test]
    fn hashes_are_those_of_every_other_build() {
        assert_eq!(hash(b"commonhold"), xxhash_rust::xxh3::xxh3_64_with_seed(b"commonhold", 0));
        assert_eq!(hash(b""), 0x2d06_8005_38d3_94c2);
    }

    #[test]
    fn damaged_bytes_are_refused() {
        for bytes in [vec![1], vec![0; 16], vec![0; 4095], vec![66; 4096], vec![0; 8 * 257], vec![0; 5000]] {
            assert!(Distinct::try_from(bytes).is_err());
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn merging_counts_as_adding_everything_to_one(
            a in proptest::collection::vec(0u32..2_000, 0..900), b in proptest::collection::vec(0u32..2_000, 0..900),
        ) {
            let mut merged = round_trip(&of(a.clone()));
            merged.merge(&of(b.clone()));
            let all = of(a.into_iter().chain(b));
            prop_assert_eq!(merged.count(), all.count());
            prop_assert_eq!(round_trip(&merged), all);
        }
    }
}
