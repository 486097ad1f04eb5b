//! Sums: integers exactly, decimals with the rounding error carried along.

use serde::{Deserialize, Serialize};

use crate::number::Number;

/// A mergeable sum.
///
/// Integers are added exactly in 128 bits. Decimals are added apart from them in floating point with
/// Neumaier's compensation, so that the error does not grow with their number. A sum of integers alone is an
/// integer; with a decimal among them it is the decimal nearest to both parts together.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Sum {
    integers: i128,
    decimals: Option<Compensated>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
struct Compensated {
    sum: f64,
    lost: f64,
}

impl Compensated {
    fn add(&mut self, value: f64) {
        let sum = self.sum + value;
        self.lost +=
            if self.sum.abs() >= value.abs() { (self.sum - sum) + value } else { (value - sum) + self.sum };
        self.sum = sum;
    }
}

impl Sum {
    pub(crate) fn add(&mut self, number: Number) {
        match number {
            Number::Integer(integer) => self.integers = self.integers.saturating_add(integer),
            Number::Decimal(decimal) => self.decimals.get_or_insert_default().add(decimal),
        }
    }

    pub(crate) fn merge(&mut self, other: &Self) {
        self.integers = self.integers.saturating_add(other.integers);
        if let Some(theirs) = other.decimals {
            let ours = self.decimals.get_or_insert_default();
            ours.add(theirs.sum);
            ours.lost += theirs.lost;
        }
    }

    /// The sum.
    pub fn total(&self) -> Number {
        match self.decimals {
            None => Number::Integer(self.integers),
            Some(mut decimals) => {
                decimals.add(self.integers as f64);
                Number::Decimal(decimals.sum + decimals.lost)
            }
        }
    }

    /// The sum divided by the number of values that went into it.
    pub fn mean(&self, count: u64) -> f64 {
        self.total().to_f64() / count as f64
    }

    /// Whether it can be the sum of this many numbers.
    pub(crate) fn is_plausible(&self, count: u64) -> bool {
        let bound = u128::from(count) * u128::from(u64::MAX);
        let finite =
            self.decimals.is_none_or(|decimals| decimals.sum.is_finite() && decimals.lost.is_finite());
        finite && self.integers.unsigned_abs() <= bound
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn of(numbers: &[Number]) -> Sum {
        let mut sum = Sum::default();
        numbers.iter().for_each(|number| sum.add(*number));
        sum
    }

    #[test]
    fn integers_past_64_bits_are_exact() {
        let sum = of(&[Number::Integer(i128::from(u64::MAX)); 5]);
        assert_eq!(sum.total(), Number::Integer(5 * i128::from(u64::MAX)));
    }

    #[test]
    fn a_decimal_among_integers_makes_the_sum_a_decimal() {
        let sum = of(&[Number::Integer(1), Number::Decimal(0.5), Number::Integer(2)]);
        assert_eq!(sum.total(), Number::Decimal(3.5));
        assert_eq!(sum.mean(3), 3.5 / 3.0);
    }

    #[test]
    fn small_decimals_are_not_lost_beside_large_ones() {
        assert_eq!(of(&[1.0, 1e100, 1.0, -1e100].map(Number::Decimal)).total(), Number::Decimal(2.0));
        assert_eq!(of(&[Number::Decimal(0.1); 10_000_000]).total(), Number::Decimal(1_000_000.0));
    }

    proptest! {
        #[test]
        fn merging_sums_of_integers_adds_them_all(a: Vec<i64>, b: Vec<i64>) {
            let numbers = |values: &[i64]| values.iter().map(|n| Number::Integer((*n).into())).collect::<Vec<_>>();
            let mut merged = of(&numbers(&a));
            merged.merge(&of(&numbers(&b)));
            let exact = a.iter().chain(&b).map(|n| i128::from(*n)).sum();
            prop_assert_eq!(merged.total(), Number::Integer(exact));
            prop_assert!(merged.is_plausible((a.len() + b.len()) as u64));
        }

        #[test]
        fn merging_sums_of_decimals_stays_accurate(
            a in proptest::collection::vec(-1e9..1e9f64, 0..50), b in proptest::collection::vec(-1e9..1e9f64, 1..50),
        ) {
            let numbers = |values: &[f64]| values.iter().map(|n| Number::Decimal(*n)).collect::<Vec<_>>();
            let mut merged = of(&numbers(&a));
            merged.merge(&of(&numbers(&b)));
            let all = of(&numbers(&[a, b].concat())).total().to_f64();
            prop_assert!((merged.total().to_f64() - all).abs() <= 1e-6);
        }
    }
}
