//! Instances that lease from one limit, in a world of their own: clocks that are wrong, requests and replies that are
//! lost or late, instances that pause and die.

use std::{collections::VecDeque, time::Duration};

use commonhold_core::{Action, Timestamp, Transition};
use proptest::prelude::*;

use super::{
    Limit, Rate, SlidingWindow, TokenBucket,
    budget::Budget,
    lease::Renew,
    portion::{Local, Portion},
    take::Take,
    window::SLICES,
};

const LEASE: u64 = 100_000;
const START: u64 = 1_700_000_000_000_000;

/// The store, and all that was let through: when by its clock, and how much.
struct World {
    limit: Limit,
    now: u64,
    state: Option<Vec<u8>>,
    grants: Vec<(u64, u64)>,
}

struct Instance {
    portion: Portion,
    /// Its clock runs at this many thousandths of the store's, and begins anywhere.
    pace: u64,
    offset: u64,
    /// Requests that were sent and have not arrived.
    late: Vec<Renew>,
}

#[derive(Debug, Clone)]
enum Event {
    Pass(u64),
    /// Asks for permits, and reaches the store, or not; the reply comes back, or not.
    Call {
        instance: usize,
        permits: u64,
        sent: bool,
        replied: bool,
        on_the_way: u64,
    },
    Renew {
        instance: usize,
        sent: bool,
        replied: bool,
        on_the_way: u64,
    },
    /// A request that was thought lost arrives.
    Arrive {
        instance: usize,
    },
    /// Ends, and another takes its place.
    Die {
        instance: usize,
    },
    /// Takes directly.
    Take(u64),
}

impl World {
    fn new(limit: impl Into<Limit>) -> Self {
        Self { limit: limit.into(), now: START, state: None, grants: Vec::new() }
    }

    /// Takes directly.
    fn take(&mut self, permits: u64) -> bool {
        let reply = self.apply(&Take { limit: self.limit, permits: vec![permits] });
        let allowed = reply.starts_with(b"1 ");
        if allowed {
            self.grants.push((self.now, permits));
        }
        allowed
    }

    fn apply(&mut self, transition: &dyn Transition) -> Vec<u8> {
        let now = Timestamp::from_nanos(i64::try_from(self.now * 1_000).unwrap());
        let step = transition.apply(self.state.as_deref(), now).unwrap();
        if let Action::Put { value, .. } = step.action {
            self.state = Some(value.to_vec());
        }
        step.reply.to_vec()
    }

    fn exchange(&mut self, instance: &mut Instance, need: u64, sent: bool, replied: bool, on_the_way: u64) {
        let begun = instance.clock(self.now);
        let request = instance.portion.request(need, begun);
        self.now += on_the_way;
        if !sent {
            instance.late.push(request);
            return;
        }
        let reply = self.apply(&request);
        self.now += on_the_way;
        if replied {
            let reply = Renew::decode(&reply).unwrap();
            instance.portion.answered(reply, begun, instance.clock(self.now));
        }
    }

    fn call(&mut self, instance: &mut Instance, permits: u64, sent: bool, replied: bool, on_the_way: u64) {
        instance.portion.wanted(permits);
        for _ in 0..2 {
            match instance.portion.take(permits, instance.clock(self.now)) {
                Local::Allowed => return self.grants.push((self.now, permits)),
                Local::Refused(_) => return,
                Local::Ask => self.exchange(instance, permits, sent, replied, on_the_way),
            }
        }
    }

    /// What the task that renews does.
    fn renew(&mut self, instance: &mut Instance) {
        if !instance.portion.idle(instance.clock(self.now)) {
            self.exchange(instance, 0, true, true, 10);
        }
    }

    fn assert_within_the_limit(&self) {
        let (mut level, mut last) = (0, START);
        let (mut window, mut seen) = (VecDeque::new(), 0);
        for (at, permits) in self.grants.iter().copied() {
            match self.limit {
                // What has flowed in since, and has not flowed off: the bucket as a meter (ITU-T I.371).
                Limit::Bucket(limit) => {
                    level = u64::saturating_sub(level, (at - last) * limit.flow()) + permits * limit.unit();
                    last = at;
                    assert!(level <= limit.capacity(), "{level} units at {at}");
                }
                Limit::Window(limit) => {
                    window.push_back((at, permits));
                    seen += permits;
                    let begun = at - limit.slice_micros() * SLICES as u64;
                    while let Some((_, left)) = window.pop_front_if(|(at, _)| *at <= begun) {
                        seen -= left;
                    }
                    assert!(seen <= limit.permits(), "{seen} in the window that ends at {at}");
                }
            }
        }
    }

    fn free(&self) -> u64 {
        match self.budget() {
            Budget::Bucket(limit, bucket) => bucket.level / limit.unit(),
            Budget::Window(limit, window) => window.free(limit),
        }
    }

    fn budget(&self) -> Budget {
        Budget::read(self.limit, self.state.as_deref(), self.now).unwrap()
    }

    fn assert_nothing_is_promised_twice(&self) {
        let mut budget = self.budget();
        let held = budget.leases().held();
        match &budget {
            Budget::Bucket(limit, bucket) => {
                assert!(bucket.level + held * limit.unit() <= limit.capacity(), "{budget:?}");
            }
            Budget::Window(limit, window) => {
                assert!(window.taken() + held <= limit.permits(), "{budget:?}");
            }
        }
    }
}

impl Instance {
    fn new(limit: impl Into<Limit>, id: u64, pace: u64, offset: u64) -> Self {
        let portion = Portion::new(limit.into(), id, (LEASE, 0), offset);
        Self { portion, pace, offset, late: Vec::new() }
    }

    fn clock(&self, now: u64) -> u64 {
        self.offset + (now - START) * self.pace / 1_000
    }
}

fn events() -> impl Strategy<Value = Event> {
    let instance = 0_usize..4;
    let way = prop_oneof![3 => 0_u64..500, 1 => 0_u64..200_000];
    // Most messages arrive.
    let arrives = || prop::bool::weighted(0.8);
    prop_oneof![
        6 => prop_oneof![0_u64..100, 0_u64..20_000, 0_u64..300_000].prop_map(Event::Pass),
        12 => (instance.clone(), 1_u64..8, arrives(), arrives(), way.clone()).prop_map(|(instance, permits, sent, replied, on_the_way)| {
            Event::Call { instance, permits, sent, replied, on_the_way }
        }),
        4 => (instance.clone(), arrives(), arrives(), way).prop_map(|(instance, sent, replied, on_the_way)| {
            Event::Renew { instance, sent, replied, on_the_way }
        }),
        2 => instance.clone().prop_map(|instance| Event::Arrive { instance }),
        1 => instance.prop_map(|instance| Event::Die { instance }),
        3 => (1_u64..8).prop_map(Event::Take),
    ]
}

/// Lets all that happen to four instances, and sees that no more than the limit is let through and that in the end
/// everything can be taken again.
fn live_through(limit: Limit, clocks: &[(u64, u64)], events: Vec<Event>) {
    let mut world = World::new(limit);
    let mut ids = 0..;
    let mut born = |(pace, offset): (u64, u64)| Instance::new(limit, ids.next().unwrap(), pace, offset);
    let mut instances: Vec<_> = clocks.iter().map(|clock| born(*clock)).collect();
    for event in events {
        match event {
            Event::Pass(micros) => world.now += micros,
            Event::Call { instance, permits, sent, replied, on_the_way } => {
                world.call(&mut instances[instance], permits, sent, replied, on_the_way);
            }
            Event::Renew { instance, sent, replied, on_the_way } => {
                world.exchange(&mut instances[instance], 0, sent, replied, on_the_way);
            }
            Event::Arrive { instance } => {
                if let Some(request) = instances[instance].late.pop() {
                    world.apply(&request);
                }
            }
            Event::Die { instance } => instances[instance] = born(clocks[instance]),
            Event::Take(permits) => {
                world.take(permits);
            }
        }
        world.assert_nothing_is_promised_twice();
    }
    world.assert_within_the_limit();

    // Nobody asks any more: after a few renewals everything can be taken again.
    for _ in 0..4 {
        world.now += LEASE / 3;
        for instance in &mut instances {
            world.renew(instance);
        }
    }
    assert!(instances.iter().all(|instance| instance.portion.idle(instance.clock(world.now))));
    world.now += limit.memory_micros();
    assert!(world.take(limit.most()), "{:?}", world.state.map(String::from_utf8));
}

fn clocks() -> impl Strategy<Value = Vec<(u64, u64)>> {
    prop::collection::vec((905_u64..1_300, 0_u64..1 << 50), 4)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]

    #[test]
    fn instances_never_let_through_more_than_a_bucket_whatever_happens_and_what_is_idle_comes_back(
        permits in prop_oneof![1_u64..1_000, 1_u64..100_000],
        burst in prop_oneof![8_u64..20, 8_u64..200],
        clocks in clocks(),
        events in prop::collection::vec(events(), 1..200),
    ) {
        let limit = TokenBucket::new(Rate::per_second(permits).unwrap(), burst).unwrap();
        live_through(limit.into(), &clocks, events);
    }

    #[test]
    fn instances_never_let_more_into_a_window_whatever_happens_and_what_is_idle_comes_back(
        permits in prop_oneof![8_u64..20, 8_u64..200],
        micros in prop_oneof![1_u64..10_000, 1_u64..2_000_000],
        clocks in clocks(),
        events in prop::collection::vec(events(), 1..200),
    ) {
        let limit = SlidingWindow::new(permits, Duration::from_micros(micros)).unwrap();
        live_through(limit.into(), &clocks, events);
    }
}

#[test]
fn whoever_was_refused_has_what_others_give_back_though_it_would_come_much_later() {
    let day = Duration::from_secs(86_400);
    let (bucket, window) = (TokenBucket::new(Rate::per_day(1).unwrap(), 10), SlidingWindow::new(10, day));
    for limit in [Limit::from(bucket.unwrap()), window.unwrap().into()] {
        let mut world = World::new(limit);
        let [mut idle, mut refused] = [0, 1].map(|id| Instance::new(limit, id, 1_000, id * 77));
        world.call(&mut idle, 1, true, true, 10);
        let left = world.free();
        assert!(left < 9, "one holds more than it took");
        assert!(world.take(left));
        world.call(&mut refused, 1, true, true, 10);
        assert_eq!(world.grants.len(), 2);
        let clock = refused.clock(world.now);
        assert!(matches!(refused.portion.take(1, clock), Local::Refused(micros) if micros < 2 * LEASE));
        world.now += LEASE / 3;
        world.renew(&mut idle);
        world.call(&mut refused, 1, true, true, 10);
        assert_eq!(world.grants.len(), 3);
    }
}

#[test]
fn what_an_instance_has_spent_in_a_window_counts_from_when_it_is_reported_or_the_lease_has_ended() {
    let slice = LEASE / 2;
    let limit = SlidingWindow::new(10, Duration::from_micros(16 * slice)).unwrap();
    for (reports, counts_from) in [(true, 0), (false, 2)] {
        let mut world = World::new(limit);
        assert!(START.is_multiple_of(slice));
        let mut instance = Instance::new(limit, 0, 1_000, START);
        world.call(&mut instance, 10, true, true, 0);
        assert_eq!(world.grants.len(), 1);
        if reports {
            world.now += LEASE / 3;
            world.renew(&mut instance);
        }
        world.now = START + (counts_from + 17) * slice - 1;
        assert!(!world.take(1));
        world.now += 1;
        assert!(world.take(10));
    }
}

#[test]
fn what_an_instance_has_spent_refills_after_a_third_of_a_lease_though_it_asks_no_more() {
    let limit = TokenBucket::new(Rate::per_second(100).unwrap(), 10).unwrap();
    let mut world = World::new(limit);
    let mut instance = Instance::new(limit, 0, 1_000, 0);
    world.call(&mut instance, 10, true, true, 0);
    assert_eq!(world.grants.len(), 1);
    world.now += LEASE / 3;
    world.renew(&mut instance);
    assert!(instance.portion.idle(instance.clock(world.now)));
    world.now += 10_000;
    assert!(world.take(1));
}

#[test]
fn who_is_refused_for_a_day_says_so_and_asks_again_after_a_third_of_a_lease() {
    let limit = TokenBucket::new(Rate::per_day(1).unwrap(), 10).unwrap();
    let mut world = World::new(limit);
    let mut instance = Instance::new(limit, 0, 1_000, 0);
    assert!(world.take(10));
    world.call(&mut instance, 1, true, true, 0);
    let clock = instance.clock(world.now);
    assert!(
        matches!(instance.portion.take(1, clock + LEASE / 3 - 1), Local::Refused(micros) if micros > 86_000_000_000)
    );
    assert_eq!(instance.portion.take(1, clock + LEASE / 3), Local::Ask, "the limiter may have been reset");
}

#[test]
fn what_is_leased_of_a_greater_limit_stays_leased_when_instances_of_a_smaller_one_come() {
    let second = Duration::from_secs(1);
    let limits = [2, 10].map(|most| {
        let bucket = TokenBucket::new(Rate::per_day(1).unwrap(), most).unwrap();
        [Limit::from(bucket), SlidingWindow::new(most, second).unwrap().into()]
    });
    let [smaller, greater] = limits;
    for (smaller, greater) in smaller.into_iter().zip(greater) {
        let mut world = World::new(greater);
        let mut instances =
            [(greater, 0), (smaller, 1), (greater, 2)].map(|(limit, id)| Instance::new(limit, id, 1_000, id));
        let [first, small, last] = &mut instances;
        world.call(first, 8, true, true, 0);
        world.call(small, 1, true, true, 0);
        world.call(last, 3, true, true, 0);
        assert_eq!(world.grants, [(START, 8)]);
    }
}

#[test]
fn instances_of_two_limits_that_both_ask_all_the_time_both_get_some() {
    let bucket = |rate| Limit::from(TokenBucket::new(Rate::per_second(rate).unwrap(), 10).unwrap());
    let window = |time| Limit::from(SlidingWindow::new(10, Duration::from_millis(time)).unwrap());
    for [one, other] in [[bucket(10), bucket(7)], [window(1_000), window(20_000)]] {
        let mut world = World::new(one);
        let mut instances = [(one, 0), (other, 1)].map(|(limit, id)| Instance::new(limit, id, 1_000, id));
        for _ in 0..60 * 100 {
            for instance in &mut instances {
                world.call(instance, 1, true, true, 0);
            }
            world.now += 10_000;
        }
        // The one with less could have 30 in a minute and the other 420.
        assert!(world.grants.len() >= 30, "{one:?}: {:?}", world.grants);
    }
}

/// Four instances with this demand each (permits in a call, calls a second), for so many leases: what each got.
fn shares(limit: impl Into<Limit>, leases: u64, demands: [(u64, u64); 4]) -> [u64; 4] {
    let limit = limit.into();
    let mut world = World::new(limit);
    let mut instances = [0, 1, 2, 3].map(|id| Instance::new(limit, id, 1_000, id * 77));
    let mut got = [0; 4];
    for tick in 0..leases * LEASE / 100 {
        for (id, instance) in instances.iter_mut().enumerate() {
            let (permits, rate) = demands[id];
            if rate > 0 && tick % (10_000 / rate) == 0 {
                let before = world.grants.len();
                world.call(instance, permits, true, true, 0);
                got[id] += world.grants[before..].iter().map(|(_, permits)| permits).sum::<u64>();
            }
            if tick % (LEASE / 300) == 0 {
                world.exchange(instance, 0, true, true, 0);
            }
        }
        world.now += 100;
    }
    world.assert_within_the_limit();
    got
}

#[test]
fn shares_follow_demand_and_those_who_all_want_too_much_get_about_the_same() {
    // 10,000 a second with leases of 100 ms, for one second.
    let limit = TokenBucket::new(Rate::per_second(10_000).unwrap(), 1_000).unwrap();
    let alone = shares(limit, 10, [(1, 10_000), (0, 0), (0, 0), (0, 0)]);
    assert!(alone[0] > 9_000, "{alone:?}");
    let all = shares(limit, 10, [(1, 10_000); 4]);
    assert!(all.iter().all(|got| (2_000..=3_500).contains(got)), "{all:?}");
    assert!(all.iter().sum::<u64>() > 9_500, "{all:?}");
    let few = shares(limit, 10, [(1, 10_000), (1, 1_000), (1, 100), (0, 0)]);
    assert!(few[1] > 900 && few[2] > 80, "{few:?}");
    assert!(few.iter().sum::<u64>() > 9_000, "{few:?}");
}

#[test]
fn in_a_window_shares_follow_demand_too_and_little_is_lost_while_spent_permits_are_not_known_of() {
    // As many, in windows of ten leases, for five of them.
    let limit = SlidingWindow::new(10_000, Duration::from_secs(1)).unwrap();
    let alone = shares(limit, 50, [(1, 10_000), (0, 0), (0, 0), (0, 0)]);
    assert!(alone[0] > 45_000, "{alone:?}");
    let all = shares(limit, 50, [(1, 10_000); 4]);
    assert!(all.iter().all(|got| (9_000..=17_500).contains(got)), "{all:?}");
    assert!(all.iter().sum::<u64>() > 45_000, "{all:?}");
    let few = shares(limit, 50, [(1, 10_000), (1, 1_000), (1, 100), (0, 0)]);
    assert!(few[1] > 4_000 && few[2] > 400, "{few:?}");
}

#[test]
fn two_who_need_more_than_half_each_do_not_wait_for_each_other_for_ever() {
    let limit = TokenBucket::new(Rate::new(6, Duration::from_millis(100)).unwrap(), 6).unwrap();
    let got = shares(limit, 10, [(5, 1_000), (5, 1_000), (0, 0), (0, 0)]);
    assert!(got[0] > 10 && got[1] > 10, "{got:?}");
    assert!(got[0] + got[1] > 40, "{got:?}");
}
