//! Quantiles by DDSketch, which merges without loss.

use serde::{Deserialize, Serialize, Serializer};
use sketches_ddsketch::{Config, DDSketch};

/// A mergeable sketch of a distribution, DDSketch (Masson, Rim, Lee 2019): every quantile it gives lies within
/// 1 % of a value that has that rank. Of n values sorted from 0, quantile q is the one at ⌊q (n - 1)⌋.
///
/// Magnitudes below 1e-9 count as zero; where the magnitudes in one sketch span more than seventeen decimal
/// orders, the smallest of them lose the accuracy.
#[derive(Clone, Deserialize)]
#[serde(try_from = "Vec<u8>")]
pub struct Quantiles(DDSketch);

impl Quantiles {
    pub(crate) fn new() -> Self {
        Self(DDSketch::new(Config::defaults()))
    }

    pub(crate) fn add(&mut self, value: f64) {
        self.0.add(value);
    }

    pub(crate) fn merge(&mut self, other: &Self) {
        // Fails for different configurations only, and there is one.
        let _ = self.0.merge(&other.0);
    }

    /// The value that a share `q`, 0 to 1, of all values is at most; `None` if there are none.
    pub fn quantile(&self, q: f64) -> Option<f64> {
        let estimate = self.0.quantile(q).ok()??;
        Some(estimate.clamp(self.0.min()?, self.0.max()?))
    }

    pub(crate) fn memory(&self) -> usize {
        self.0.length() * size_of::<u64>()
    }
}

impl std::fmt::Debug for Quantiles {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Quantiles").field("count", &self.0.count()).finish_non_exhaustive()
    }
}

impl Serialize for Quantiles {
    /// The format that DDSketch has in all languages.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0.to_java_bytes())
    }
}

impl TryFrom<Vec<u8>> for Quantiles {
    type Error = &'static str;

    fn try_from(bytes: Vec<u8>) -> Result<Self, Self::Error> {
        check(&bytes).ok_or("a damaged sketch")?;
        DDSketch::from_java_bytes(&bytes).map(Self).map_err(|_| "a damaged sketch")
    }
}

/// Whether these bytes are what [`Serialize`] writes. The library's own decoder follows any bin index it reads,
/// so that damaged bytes would make it panic or claim gigabytes.
fn check(mut bytes: &[u8]) -> Option<()> {
    const COUNT: u8 = 0xa0;
    const MIN: u8 = 0x88;
    const MAX: u8 = 0x8c;
    const SUM: u8 = 0x84;
    const MAPPING: u8 = 0x02;
    const ZEROS: u8 = 0x04;
    const POSITIVE: u8 = 0x05;
    const NEGATIVE: u8 = 0x07;
    // The decoder skips a leading mapping flag as a version; a sketch with values begins with their count.
    if bytes.first() != Some(&COUNT) {
        return None;
    }
    let mut mapped = false;
    while let Some((flag, rest)) = bytes.split_first() {
        bytes = rest;
        match *flag {
            COUNT | ZEROS => check_count(&mut bytes)?,
            MIN | MAX | SUM => bytes = finite(bytes)?.1,
            MAPPING => {
                let (gamma, rest) = finite(bytes)?;
                let (offset, rest) = finite(rest)?;
                mapped = gamma.to_bits() == Config::defaults().gamma.to_bits() && offset == 0.0;
                bytes = rest;
            }
            POSITIVE | NEGATIVE => check_bins(&mut bytes)?,
            _ => return None,
        }
    }
    mapped.then_some(())
}

fn finite(bytes: &[u8]) -> Option<(f64, &[u8])> {
    let (number, rest) = bytes.split_first_chunk::<8>()?;
    Some((f64::from_le_bytes(*number), rest)).filter(|(number, _)| number.is_finite())
}

/// Bins follow each other upwards and span no more than a sketch has room for.
fn check_bins(bytes: &mut &[u8]) -> Option<()> {
    /// ln(1e280) / ln(gamma), and as many below one.
    const INDICES: std::ops::RangeInclusive<i64> = -40_000..=40_000;
    let bins = varint(bytes)?;
    let (mut first, mut index) = (None, 0i64);
    for _ in 0..bins {
        let delta = varint(bytes)?;
        let delta = (delta >> 1) as i64 ^ -((delta & 1) as i64);
        index = index.checked_add(delta)?;
        let first = *first.get_or_insert(index);
        let upwards = index == first || delta > 0;
        if !upwards
            || !INDICES.contains(&index)
            || index - first >= i64::from(Config::defaults().max_num_bins)
        {
            return None;
        }
        check_count(bytes)?;
    }
    Some(())
}

/// A count travels as the bits of a float, turned so that small ones are short. Below 2^53 it is exact.
fn check_count(bytes: &mut &[u8]) -> Option<()> {
    let mut bits = 0u64;
    for shift in (1..=57u32).rev().step_by(7) {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        if shift == 1 {
            bits |= u64::from(*byte);
        } else {
            bits |= u64::from(byte & 0x7f) << shift;
            if *byte < 0x80 {
                break;
            }
        }
    }
    let count = f64::from_bits(bits.rotate_right(6).wrapping_add(1f64.to_bits())) - 1.0;
    (1.0..9e15).contains(&count).then_some(())
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for shift in (0..63).step_by(7) {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if *byte < 0x80 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn of(values: &[f64]) -> Quantiles {
        let mut sketch = Quantiles::new();
        values.iter().for_each(|value| sketch.add(*value));
        sketch
    }

    fn value() -> impl Strategy<Value = f64> {
        prop_oneof![
            -1e6..1e6f64,
            Just(0.0),
            1e-12..1e-6f64,
            -1e280..1e280f64,
            (0u32..100).prop_map(f64::from)
        ]
    }

    const SHARES: [f64; 6] = [0.0, 0.01, 0.5, 0.95, 0.99, 1.0];

    proptest! {
        #[test]
        fn quantiles_lie_within_one_percent(mut values in proptest::collection::vec(1e-3..1e9f64, 1..200)) {
            let sketch = of(&values);
            values.sort_by(f64::total_cmp);
            for q in SHARES {
                let exact = values[(q * (values.len() - 1) as f64) as usize];
                let found = sketch.quantile(q).unwrap();
                prop_assert!((found / exact - 1.0).abs() <= 0.01 + 1e-9, "{q}: {found} for {exact}");
            }
        }

        #[test]
        fn merging_and_storing_give_the_quantiles_of_all_values(
            a in proptest::collection::vec(value(), 1..100), b in proptest::collection::vec(value(), 0..100),
        ) {
            let mut merged: Quantiles = postcard::from_bytes(&postcard::to_stdvec(&of(&a)).unwrap()).unwrap();
            merged.merge(&of(&b));
            let all = of(&[a, b].concat());
            for q in SHARES {
                prop_assert_eq!(merged.quantile(q), all.quantile(q));
            }
        }

        #[test]
        fn storing_in_between_changes_nothing(values in proptest::collection::vec(value(), 1..60)) {
            let mut stored = Quantiles::new();
            for value in &values {
                stored.add(*value);
                stored = postcard::from_bytes(&postcard::to_stdvec(&stored).unwrap()).unwrap();
            }
            for q in SHARES {
                prop_assert_eq!(stored.quantile(q), of(&values).quantile(q));
            }
        }

        #[test]
        fn damaged_bytes_are_refused_or_harmless(
            values in proptest::collection::vec(value(), 1..20), at in any::<usize>(), with in any::<u8>(),
        ) {
            let mut bytes = of(&values).0.to_java_bytes();
            let at = at % bytes.len();
            bytes[at] = with;
            if let Ok(mut sketch) = Quantiles::try_from(bytes) {
                sketch.add(1e-8);
                sketch.add(-1e200);
                let _ = sketch.quantile(0.5);
            }
        }

        #[test]
        fn any_bytes_are_refused_or_harmless(mut bytes in proptest::collection::vec(any::<u8>(), 0..60)) {
            bytes.insert(0, 0xa0);
            let _ = Quantiles::try_from(bytes);
        }
    }
}
