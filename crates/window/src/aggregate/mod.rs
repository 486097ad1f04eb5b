//! What is known about the events of one window: mergeable, storable aggregates.

mod distinct;
mod quantiles;
mod sum;

use std::cmp::Ordering;

use commonhold_core::{Error, ErrorKind, Result};
use serde::{Deserialize, Serialize};

pub(crate) use self::distinct::hash;
pub use self::{distinct::Distinct, quantiles::Quantiles, sum::Sum};
use crate::number::Number;

/// Which fields are aggregated, and how. The count of events always is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Aggregates {
    /// Fields whose [`Sum`] is wanted.
    pub sum: Vec<String>,
    /// Fields whose least number is wanted.
    pub min: Vec<String>,
    /// Fields whose greatest number is wanted.
    pub max: Vec<String>,
    /// Fields whose mean is wanted.
    pub mean: Vec<String>,
    /// Fields whose [`Quantiles`] are wanted: p50, p95 and p99, each within 1 %.
    pub quantiles: Vec<String>,
    /// Fields whose [`Distinct`] values are to be counted: exactly up to 256, beyond that with a standard error of
    /// 1.6 %.
    pub distinct: Vec<String>,
}

/// The steps that fold an event into an [`Aggregate`], and what each reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    steps: Vec<Step>,
    numbers: Vec<String>,
    texts: Vec<String>,
}

/// One accumulator: what it keeps, and of which field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Step {
    kind: Kind,
    field: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Sum,
    Min,
    Max,
    Quantiles,
    Distinct,
}

/// What one event contributes, in the order of [`Plan::numbers`] and [`Plan::texts`].
#[derive(Debug, Clone, Copy)]
pub struct Values<'a> {
    /// The numbers.
    pub numbers: &'a [Number],
    /// The hashes of the texts.
    pub hashes: &'a [u64],
}

impl Plan {
    /// The steps for these aggregates. A sum and a mean of one field share theirs.
    pub fn new(aggregates: &Aggregates) -> Self {
        let mut plan = Self { steps: Vec::new(), numbers: Vec::new(), texts: Vec::new() };
        let Aggregates { sum, min, max, mean, quantiles, distinct } = aggregates;
        for (kind, fields) in [
            (Kind::Sum, sum),
            (Kind::Sum, mean),
            (Kind::Min, min),
            (Kind::Max, max),
            (Kind::Quantiles, quantiles),
            (Kind::Distinct, distinct),
        ] {
            for field in fields {
                let inputs = if kind == Kind::Distinct { &mut plan.texts } else { &mut plan.numbers };
                let step = Step { kind, field: position_or_push(inputs, field) };
                if !plan.steps.contains(&step) {
                    plan.steps.push(step);
                }
            }
        }
        plan
    }

    /// The fields whose numbers an event must give.
    pub fn numbers(&self) -> &[String] {
        &self.numbers
    }

    /// The fields whose hashed texts an event must give.
    pub fn texts(&self) -> &[String] {
        &self.texts
    }

    /// Bytes that sketches of an [`Aggregate`] allocate with their first event.
    pub(crate) fn first_bytes(&self) -> usize {
        1024 * self.steps.iter().filter(|step| step.kind == Kind::Quantiles).count()
    }

    fn find<'a>(&self, aggregate: &'a Aggregate, kind: Kind, field: &str) -> Option<&'a Accumulator> {
        let inputs = if kind == Kind::Distinct { &self.texts } else { &self.numbers };
        let field = inputs.iter().position(|name| name == field)?;
        let step = self.steps.iter().position(|step| *step == Step { kind, field })?;
        aggregate.accumulators.get(step)
    }
}

fn position_or_push(names: &mut Vec<String>, name: &str) -> usize {
    names.iter().position(|known| known == name).unwrap_or_else(|| {
        names.push(name.to_owned());
        names.len() - 1
    })
}

/// What is known about the events of a window.
///
/// Folding is a function of the events alone, and merging two aggregates gives that of all their events (up to
/// the rounding of decimal sums), so sessions can grow together.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Aggregate {
    count: u64,
    accumulators: Vec<Accumulator>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
enum Accumulator {
    Sum(Sum),
    Extreme(Option<Number>),
    Quantiles(Box<Quantiles>),
    Distinct(Box<Distinct>),
}

impl Aggregate {
    /// Of no events.
    pub fn new(plan: &Plan) -> Self {
        let empty = |step: &Step| match step.kind {
            Kind::Sum => Accumulator::Sum(Sum::default()),
            Kind::Min | Kind::Max => Accumulator::Extreme(None),
            Kind::Quantiles => Accumulator::Quantiles(Box::new(Quantiles::new())),
            Kind::Distinct => Accumulator::Distinct(Box::new(Distinct::new())),
        };
        Self { count: 0, accumulators: plan.steps.iter().map(empty).collect() }
    }

    /// Folds an event into it.
    pub fn fold(&mut self, plan: &Plan, event: Values<'_>) {
        self.count = self.count.saturating_add(1);
        for (step, accumulator) in plan.steps.iter().zip(&mut self.accumulators) {
            let number = event.numbers.get(step.field).copied();
            match (accumulator, number) {
                (Accumulator::Sum(sum), Some(number)) => sum.add(number),
                (Accumulator::Extreme(extreme), Some(number)) => take_extreme(extreme, number, step.kind),
                (Accumulator::Quantiles(sketch), Some(number)) => sketch.add(number.to_f64()),
                (Accumulator::Distinct(distinct), _) => {
                    event.hashes.get(step.field).iter().for_each(|hash| distinct.add(**hash));
                }
                _ => {}
            }
        }
    }

    /// Takes in the events of another.
    pub fn merge(&mut self, plan: &Plan, other: &Self) {
        self.count = self.count.saturating_add(other.count);
        for ((step, ours), theirs) in plan.steps.iter().zip(&mut self.accumulators).zip(&other.accumulators) {
            match (ours, theirs) {
                (Accumulator::Sum(ours), Accumulator::Sum(theirs)) => ours.merge(theirs),
                (Accumulator::Extreme(ours), Accumulator::Extreme(Some(theirs))) => {
                    take_extreme(ours, *theirs, step.kind);
                }
                (Accumulator::Quantiles(ours), Accumulator::Quantiles(theirs)) => ours.merge(theirs),
                (Accumulator::Distinct(ours), Accumulator::Distinct(theirs)) => ours.merge(theirs),
                _ => {}
            }
        }
    }

    /// How many events there were.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The sum of a field, if it is kept.
    pub fn sum(&self, plan: &Plan, field: &str) -> Option<Number> {
        self.sum_of(plan, field).map(Sum::total)
    }

    /// The mean of a field, if it is kept.
    pub fn mean(&self, plan: &Plan, field: &str) -> Option<f64> {
        self.sum_of(plan, field).map(|sum| sum.mean(self.count))
    }

    /// The least number of a field, if it is kept.
    pub fn min(&self, plan: &Plan, field: &str) -> Option<Number> {
        self.extreme(plan, Kind::Min, field)
    }

    /// The greatest number of a field, if it is kept.
    pub fn max(&self, plan: &Plan, field: &str) -> Option<Number> {
        self.extreme(plan, Kind::Max, field)
    }

    /// The distribution of a field, if it is kept.
    pub fn quantiles(&self, plan: &Plan, field: &str) -> Option<&Quantiles> {
        match plan.find(self, Kind::Quantiles, field)? {
            Accumulator::Quantiles(sketch) => Some(sketch),
            _ => None,
        }
    }

    /// The number of different values of a field, if it is kept.
    pub fn distinct(&self, plan: &Plan, field: &str) -> Option<u64> {
        match plan.find(self, Kind::Distinct, field)? {
            Accumulator::Distinct(distinct) => Some(distinct.count()),
            _ => None,
        }
    }

    fn sum_of(&self, plan: &Plan, field: &str) -> Option<&Sum> {
        match plan.find(self, Kind::Sum, field)? {
            Accumulator::Sum(sum) => Some(sum),
            _ => None,
        }
    }

    fn extreme(&self, plan: &Plan, kind: Kind, field: &str) -> Option<Number> {
        match plan.find(self, kind, field)? {
            Accumulator::Extreme(extreme) => *extreme,
            _ => None,
        }
    }

    /// Bytes of memory that it takes, near enough for a bound.
    pub(crate) fn memory(&self) -> usize {
        let beyond = |accumulator: &Accumulator| match accumulator {
            Accumulator::Quantiles(sketch) => size_of::<Quantiles>() + sketch.memory(),
            Accumulator::Distinct(distinct) => size_of::<Distinct>() + distinct.memory(),
            Accumulator::Sum(_) | Accumulator::Extreme(_) => 0,
        };
        let inline = size_of::<Self>() + self.accumulators.len() * size_of::<Accumulator>();
        inline + self.accumulators.iter().map(beyond).sum::<usize>()
    }

    /// Checks that it came from this plan, and that further events cannot make it fail.
    ///
    /// # Errors
    /// `Corrupt` if not.
    pub(crate) fn check(self, plan: &Plan) -> Result<Self> {
        let fits = |(step, accumulator): (&Step, &Accumulator)| match accumulator {
            Accumulator::Sum(sum) => step.kind == Kind::Sum && sum.is_plausible(self.count),
            Accumulator::Extreme(Some(number)) => {
                matches!(step.kind, Kind::Min | Kind::Max) && number.to_f64().is_finite()
            }
            Accumulator::Extreme(None) => false,
            Accumulator::Quantiles(_) => step.kind == Kind::Quantiles,
            Accumulator::Distinct(_) => step.kind == Kind::Distinct,
        };
        let same_length = plan.steps.len() == self.accumulators.len();
        if self.count > 0 && same_length && plan.steps.iter().zip(&self.accumulators).all(fits) {
            Ok(self)
        } else {
            Err(Error::new(ErrorKind::Corrupt, "the stored aggregate is not one of this job"))
        }
    }
}

fn take_extreme(extreme: &mut Option<Number>, number: Number, kind: Kind) {
    let wanted = if kind == Kind::Min { Ordering::Less } else { Ordering::Greater };
    if extreme.is_none_or(|known| number.total_cmp(known) == wanted) {
        *extreme = Some(number);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn everything() -> Aggregates {
        let field = || vec!["a".to_owned(), "b".to_owned()];
        Aggregates {
            sum: field(),
            min: field(),
            max: field(),
            mean: vec!["b".to_owned(), "c".to_owned()],
            quantiles: field(),
            distinct: field(),
        }
    }

    type Row = ([i64; 3], [u64; 2]);

    fn of(plan: &Plan, rows: &[Row]) -> Aggregate {
        let mut aggregate = Aggregate::new(plan);
        for (numbers, hashes) in rows {
            let numbers = numbers.map(|number| Number::Integer(number.into()));
            aggregate.fold(plan, Values { numbers: &numbers, hashes });
        }
        aggregate
    }

    fn rows() -> impl Strategy<Value = Vec<Row>> {
        proptest::collection::vec(any::<Row>(), 1..40)
    }

    fn round_trip(plan: &Plan, aggregate: &Aggregate) -> Aggregate {
        let bytes = postcard::to_stdvec(aggregate).unwrap();
        postcard::from_bytes::<Aggregate>(&bytes).unwrap().check(plan).unwrap()
    }

    #[test]
    fn a_plan_reads_each_field_once() {
        let plan = Plan::new(&everything());
        assert_eq!(plan.numbers(), ["a", "b", "c"]);
        assert_eq!(plan.texts(), ["a", "b"]);
        assert_eq!(plan.steps.len(), 3 + 2 + 2 + 2 + 2);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn merging_is_folding_everything(a in rows(), b in rows()) {
            let plan = Plan::new(&everything());
            let mut merged = round_trip(&plan, &of(&plan, &a));
            merged.merge(&plan, &of(&plan, &b));
            let all = of(&plan, &[a, b].concat());
            prop_assert_eq!(merged.count(), all.count());
            for field in ["a", "b", "c"] {
                prop_assert_eq!(merged.sum(&plan, field), all.sum(&plan, field));
                prop_assert_eq!(merged.mean(&plan, field), all.mean(&plan, field));
                prop_assert_eq!(merged.min(&plan, field), all.min(&plan, field));
                prop_assert_eq!(merged.max(&plan, field), all.max(&plan, field));
                prop_assert_eq!(merged.distinct(&plan, field), all.distinct(&plan, field));
                let p95 = |aggregate: &Aggregate| aggregate.quantiles(&plan, field).map(|q| q.quantile(0.95));
                prop_assert_eq!(p95(&merged), p95(&all));
            }
        }

        #[test]
        fn the_least_and_the_greatest_are_among_the_numbers(rows in rows()) {
            let plan = Plan::new(&everything());
            let aggregate = of(&plan, &rows);
            let min = rows.iter().map(|row| i128::from(row.0[0])).min().map(Number::Integer);
            let max = rows.iter().map(|row| i128::from(row.0[0])).max().map(Number::Integer);
            prop_assert_eq!(aggregate.min(&plan, "a"), min);
            prop_assert_eq!(aggregate.max(&plan, "a"), max);
        }

        #[test]
        fn damaged_bytes_are_refused_or_harmless(rows in rows(), at in any::<usize>(), with in any::<u8>()) {
            let plan = Plan::new(&everything());
            let mut bytes = postcard::to_stdvec(&of(&plan, &rows)).unwrap();
            let at = at % bytes.len();
            bytes[at] = with;
            let read = postcard::from_bytes::<Aggregate>(&bytes).ok().and_then(|found| found.check(&plan).ok());
            if let Some(mut aggregate) = read {
                aggregate.merge(&plan, &of(&plan, &rows));
                let _ = aggregate.sum(&plan, "a");
            }
        }
    }

    #[test]
    fn bytes_of_another_plan_are_refused() {
        let plan = Plan::new(&everything());
        let other = Plan::new(&Aggregates { sum: vec!["a".to_owned()], ..Aggregates::default() });
        let bytes = postcard::to_stdvec(&of(&plan, &[([1, 2, 3], [4, 5])])).unwrap();
        let error = postcard::from_bytes::<Aggregate>(&bytes).unwrap().check(&other).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt);
    }
}
