//! What always holds of the state machine.

use proptest::prelude::*;

use super::{
    machine::{Bucket, Counts, Machine, Order, Probe, Report, Reporter, State, Verdict},
    settings::{Rules, Settings, Window},
};

const MILLI: i64 = 1_000;
const SECOND: i64 = 1_000 * MILLI;

/// Rules of all kinds, with terms of about a second: multiples of 50 ms, so that steps of the clock meet their ends.
pub(super) fn rules() -> impl Strategy<Value = Rules> {
    let window = prop_oneof![
        (1..40_u32).prop_map(Window::Calls),
        (1..60_u64).prop_map(|steps| Window::Time(std::time::Duration::from_millis(steps * 50))),
    ];
    let rate = || prop_oneof![1 => 1..=10_000_i64, 3 => prop::sample::select(vec![2_500_i64, 5_000, 10_000])];
    let triggers = (any::<[bool; 3]>(), 1..6_u32, rate(), rate(), 0..=10_u32);
    let millis = |most: u64| prop_oneof![1..4_u64, 1..most / 50].prop_map(|steps| steps * 50);
    (triggers, window, millis(1_000), 0..4_u32, 1..4_u32, millis(2_000), 1..=16_u32).prop_map(
        |((on, threshold, failures, slow, minimum), window, wait, doublings, probes, lease, reporters)| {
            let millis = std::time::Duration::from_millis;
            let mut settings = Settings::new().window(window).open_for(millis(wait)).half_open_probes(probes);
            settings = settings.open_for_at_most(millis(wait << doublings)).probe_lease(millis(lease));
            settings = settings.min_reporters(reporters);
            if on[0] || !(on[1] || on[2]) {
                settings = settings.failure_threshold(threshold);
            }
            if on[1] {
                settings = settings.failure_rate(failures as f64 / 10_000.0);
            }
            if on[2] {
                settings = settings.slow_call_rate(millis(10), slow as f64 / 10_000.0);
            }
            settings = match window {
                _ if minimum == 0 => settings,
                Window::Time(_) => settings.minimum_calls(minimum),
                Window::Calls(calls) => settings.minimum_calls((calls * minimum).div_ceil(10)),
            };
            settings.rules().unwrap()
        },
    )
}

/// How far the clock goes between two commands; now and then it stands still or steps back.
pub(super) fn steps() -> impl Strategy<Value = i64> {
    let even = prop_oneof![6 => 0..4_i64, 2 => 0..60_i64, 1 => -20..0_i64, 1 => -400..0_i64]
        .prop_map(|n| n * 50 * MILLI);
    prop_oneof![9 => even, 1 => 0..3 * SECOND, 1 => -20 * SECOND..0, 1 => 0..86_400 * SECOND]
}

/// Results of one call or several, of this generation (0) or another.
pub(super) fn reports() -> impl Strategy<Value = Report> {
    let one = (any::<bool>(), any::<bool>()).prop_map(|(failed, slow)| {
        let failures = u64::from(failed);
        (Counts { calls: 1, failures, slow: u64::from(slow) }, i64::from(failed))
    });
    let many = (0..30_u64, 0..=10_u64, 0..=10_u64).prop_map(|(calls, failures, slow)| {
        let failures = calls * failures / 10;
        (Counts { calls, failures, slow: calls * slow / 10 }, failures.min(3) as i64)
    });
    let counts = prop_oneof![3 => one, 1 => many];
    let generation = prop_oneof![9 => Just(0), 1 => -1..2_i64];
    (generation, 0..5_i64, 1..5_i64, counts).prop_map(|(generation, probe, reporter, (counts, streak))| {
        let generation = generation.max(0);
        Report { generation, probe, reporter, counts, streak }
    })
}

/// Anything that can lie in a store, sensible or not.
pub(super) fn machines(now: i64) -> impl Strategy<Value = Machine> {
    let time = move || prop_oneof![0..(1_i64 << 53), now - 10 * SECOND..now + 10 * SECOND];
    let most = super::machine::MOST;
    let count = move || prop_oneof![0..5_i64, 0..=most, most - 1..=most];
    let counts = (count(), count(), count()).prop_map(|(calls, failures, slow)| {
        let [calls, failures, slow] = [calls, failures, slow].map(i64::unsigned_abs);
        Counts { calls, failures, slow }
    });
    let serial = move || prop_oneof![0..20_i64, time(), now / 10_000 - 20..now / 10_000 + 20];
    let probe = (1..5_i64, time()).prop_map(|(id, expires)| Probe { id, expires });
    let reporter = (1..5_i64, serial(), any::<bool>()).prop_map(|(id, serial, in_streak)| Reporter {
        id,
        serial,
        in_streak,
    });
    let bucket = (serial(), counts).prop_map(|(serial, counts)| Bucket { serial, counts });
    let state = prop::sample::select(vec![State::Closed, State::Open, State::HalfOpen, State::Isolated]);
    let numbers = (0..now * 2, state, time(), count(), count(), count());
    let lists = (
        prop::collection::vec(probe, 0..6),
        prop::collection::vec(reporter, 0..6),
        prop::collection::vec_deque(bucket, 0..11),
    );
    (numbers, lists).prop_map(
        |((generation, state, until, passed, trips, streak), (probes, reporters, buckets))| Machine {
            generation,
            state,
            until,
            passed,
            trips,
            streak,
            probes,
            reporters,
            buckets,
        },
    )
}

fn result(machine: &Machine, probe: i64, failed: bool) -> Report {
    let counts = Counts { calls: 1, failures: u64::from(failed), slow: 0 };
    Report { generation: machine.generation, probe, reporter: 1, counts, streak: i64::from(failed) }
}

/// Asks and, if let through, reports at once; says whether it was let through.
fn call(machine: &mut Machine, rules: &Rules, id: i64, failed: bool, now: i64) -> bool {
    match machine.acquire(rules, id, now) {
        Verdict::Pass => machine.report(rules, &result(machine, 0, failed), now),
        Verdict::Probe => machine.report(rules, &result(machine, id, failed), now),
        Verdict::Refuse => false,
    }
}

const NOW: i64 = 1_000 * SECOND;

proptest! {
    #[test]
    fn from_any_state_it_closes_when_time_passes_and_calls_succeed(
        rules in rules(),
        mut machine in machines(NOW),
        back in 0..NOW,
    ) {
        if machine.state == State::Isolated {
            machine.state = State::Open;
        }
        let mut now = NOW - back;
        // The first look sees the step; then each round ends an open wait, the leases of probes that hang, the window. What
        // lies in a window of calls may still open it once, when the successes make up the minimum.
        let step = rules.longest.max(rules.lease).max(11 * rules.width);
        for id in 100..200 {
            call(&mut machine, &rules, id, false, now);
            now += step;
        }
        prop_assert_eq!(machine.state, State::Closed, "{:?}", machine);
        prop_assert_eq!(machine.acquire(&rules, 1, now), Verdict::Pass);
    }

    #[test]
    fn from_any_closed_state_it_opens_when_calls_fail(
        rules in rules(),
        mut machine in machines(NOW),
        back in 0..NOW,
        calls in prop_oneof![Just(1_u64), 1..100_u64],
    ) {
        machine.state = State::Closed;
        // The first look sees the step; then what lay in a window of time is over.
        let late = NOW - back + 22 * rules.width;
        let enough = 2 * rules.calls + rules.minimum.max(rules.threshold).max(rules.reporters);
        for (number, now) in (0..=enough).zip(std::iter::once(NOW - back).chain(std::iter::repeat(late))) {
            let counts = Counts { calls, failures: calls, slow: calls };
            let (generation, reporter, streak) = (machine.generation, number % rules.reporters, calls as i64);
            let report = Report { generation, probe: 0, reporter, counts, streak };
            machine.report(&rules, &report, now);
        }
        prop_assert_eq!(machine.state, State::Open, "{:?}", machine);
    }

    #[test]
    fn half_open_never_has_more_probes_under_way_than_it_may(
        rules in rules(),
        calls in prop::collection::vec((0..200 * MILLI, any::<bool>(), any::<bool>()), 1..200),
    ) {
        let (mut machine, mut now) = (Machine::default(), NOW);
        machine.order(&rules, Order::Open, now);
        // The calls under way in this generation: id and when the lease is over.
        let mut under_way: Vec<(i64, i64, i64)> = Vec::new();
        for (id, (step, failed, comes_back)) in (1..).zip(calls) {
            now += step;
            under_way.retain(|&(generation, _, expires)| generation == machine.generation && expires > now);
            if machine.state == State::Closed {
                machine.order(&rules, Order::Open, now);
            }
            if machine.acquire(&rules, id, now) == Verdict::Probe {
                under_way.retain(|&(generation, ..)| generation == machine.generation);
                under_way.push((machine.generation, id, now + rules.lease));
            }
            prop_assert!(under_way.len() as i64 <= rules.probes, "{under_way:?}");
            if let (true, Some((generation, id, _))) = (comes_back, under_way.first().copied()) {
                under_way.remove(0);
                prop_assert_eq!(generation, machine.generation);
                let report = result(&machine, id, failed);
                prop_assert!(machine.report(&rules, &report, now));
            }
        }
    }

    #[test]
    fn late_results_of_earlier_generations_change_nothing(
        rules in rules(),
        machine in machines(NOW),
        mut report in reports(),
        earlier in 1..100_i64,
    ) {
        report.generation = machine.generation - earlier;
        let mut after = machine.clone();
        prop_assert!(!after.report(&rules, &report, NOW));
        // A look may have found that time had stepped back.
        let mut looked = machine;
        looked.look(&rules, NOW);
        prop_assert_eq!(after, looked);
    }

    #[test]
    fn generations_rise_and_states_stay_small(
        rules in rules(),
        calls in prop::collection::vec((steps(), reports(), 0..4_i64), 1..300),
    ) {
        let (mut machine, mut now) = (Machine::default(), NOW);
        for (step, mut report, id) in calls {
            now += step;
            let before = machine.clone();
            machine.acquire(&rules, id + 1, now);
            report.generation = machine.generation;
            machine.report(&rules, &report, now);
            prop_assert!(machine.generation > before.generation || machine.state == before.state);
            prop_assert!(machine.write().len() < 1_024, "{}", machine.write());
            prop_assert!(Machine::parse(Some(machine.write().as_bytes())).is_ok());
        }
    }

    #[test]
    fn after_ten_thousand_successes_it_opens_as_quickly_as_at_first(window in 1..500_u32, by_time in any::<bool>()) {
        let window = if by_time { Window::Time(std::time::Duration::from_secs(1)) } else { Window::Calls(window) };
        let rules = Settings::new().failure_rate(0.5).window(window).rules().unwrap();
        let failures_until_open = |machine: &mut Machine, mut now: i64| {
            (1..).find(|_| {
                now += 10 * MILLI;
                call(machine, &rules, 1, true, now);
                machine.state == State::Open
            })
        };
        let at_first = failures_until_open(&mut Machine::default(), NOW).unwrap();
        prop_assert_eq!(at_first, rules.minimum.unsigned_abs());
        let (mut machine, mut now) = (Machine::default(), NOW);
        for _ in 0..10_000 {
            now += 10 * MILLI;
            call(&mut machine, &rules, 1, false, now);
        }
        // Half of what the window holds.
        let held = machine.counts().calls;
        let (most, more) = match window {
            Window::Calls(calls) => (u64::from(calls), u64::from(calls).div_ceil(10) - 1),
            Window::Time(_) => (100, 10),
        };
        prop_assert!((most..=most + more).contains(&held), "{held} of {most}");
        let later = failures_until_open(&mut machine, now).unwrap();
        prop_assert!(later <= held / 2 + most / 10 + 2, "{later} of {held}");
    }

    #[test]
    fn one_reporter_alone_opens_it_for_nobody_where_two_are_asked_for(
        rules in rules(),
        failures in 1..2_000_u64,
        others in prop::collection::vec(any::<bool>(), 0..50),
    ) {
        let rules = Rules { reporters: rules.reporters.max(2), ..rules };
        let mut machine = Machine::default();
        for (number, succeeded_elsewhere) in (0..failures).zip(others.into_iter().chain(std::iter::repeat(false))) {
            let report = Report { reporter: 7, ..result(&machine, 0, true) };
            machine.report(&rules, &report, NOW + number as i64);
            if succeeded_elsewhere {
                let report = Report { reporter: 8, ..result(&machine, 0, false) };
                machine.report(&rules, &report, NOW + number as i64);
            }
        }
        prop_assert_eq!(machine.state, State::Closed);
    }
}

#[test]
fn consecutive_failures_open_it_and_a_success_between_begins_anew() {
    let rules = Settings::new().failure_threshold(3).rules().unwrap();
    let mut machine = Machine::default();
    for failed in [true, true, false, true, true] {
        call(&mut machine, &rules, 1, failed, NOW);
    }
    assert_eq!((machine.state, machine.streak), (State::Closed, 2));
    call(&mut machine, &rules, 1, true, NOW);
    assert_eq!(machine.state, State::Open);
    assert_eq!(machine.left(&rules, NOW), 30 * SECOND);
}

#[test]
fn a_quorum_of_reporters_opens_it() {
    let settings = Settings::new().failure_threshold(4).failure_rate(0.5).minimum_calls(6).min_reporters(3);
    let rules = settings.rules().unwrap();
    let report = |machine: &mut Machine, reporter| {
        let report = Report { reporter, ..result(machine, 0, true) };
        machine.report(&rules, &report, NOW);
    };
    let mut machine = Machine::default();
    for reporter in [1, 1, 1, 1, 1, 2, 2, 2, 2] {
        report(&mut machine, reporter);
    }
    assert_eq!(machine.state, State::Closed);
    report(&mut machine, 3);
    assert_eq!(machine.state, State::Open);
}

#[test]
fn slow_calls_open_it_although_they_succeed() {
    let settings = Settings::new().slow_call_rate(std::time::Duration::from_secs(1), 0.5).minimum_calls(4);
    let rules = settings.rules().unwrap();
    let mut machine = Machine::default();
    for (slow, state) in [(1, State::Closed), (0, State::Closed), (0, State::Closed), (1, State::Open)] {
        let mut report = result(&machine, 0, false);
        report.counts.slow = slow;
        machine.report(&rules, &report, NOW);
        assert_eq!(machine.state, state);
    }
}

#[test]
fn a_probe_that_hangs_loses_its_place_and_its_result_counts_no_more() {
    let rules = Settings::new().failure_threshold(1).rules().unwrap();
    let mut machine = Machine::default();
    machine.order(&rules, Order::Open, NOW);
    let now = NOW + rules.wait;
    assert_eq!(machine.acquire(&rules, 1, now), Verdict::Probe);
    assert_eq!(machine.acquire(&rules, 1, now), Verdict::Probe, "asked again, it is the same");
    assert_eq!(machine.acquire(&rules, 2, now), Verdict::Refuse);
    assert_eq!(machine.left(&rules, now), rules.lease);
    let now = now + rules.lease;
    assert_eq!(machine.acquire(&rules, 2, now), Verdict::Probe);
    let late = result(&machine, 1, true);
    assert!(!machine.report(&rules, &late, now));
    assert_eq!(machine.state, State::HalfOpen);
    let good = result(&machine, 2, false);
    assert!(machine.report(&rules, &good, now));
    assert_eq!(machine.state, State::Closed);
}

#[test]
fn isolation_ends_by_closing_or_resetting_alone() {
    let rules = Settings::new().failure_threshold(1).rules().unwrap();
    let mut machine = Machine::default();
    machine.order(&rules, Order::Isolate, NOW);
    assert_eq!(machine.acquire(&rules, 1, NOW * 1_000), Verdict::Refuse);
    let isolated = machine.clone();
    machine.order(&rules, Order::Open, NOW);
    assert_eq!(machine, isolated);
    machine.order(&rules, Order::Close, NOW);
    assert_eq!(machine.acquire(&rules, 1, NOW), Verdict::Pass);
}
