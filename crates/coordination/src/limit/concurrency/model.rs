//! Instances that share a concurrency limit, in a world of their own: clocks that are wrong, requests and replies that are
//! lost or late, instances that die.

use std::collections::VecDeque;

use commonhold_core::{Action, Timestamp, Transition};
use proptest::prelude::*;

use super::{
    hold::{Hold, Look},
    pool::{Form, Next, Pool, Waiting},
};

const LEASE: u64 = 1_000_000;
const START: u64 = 1_700_000_000_000_000;

struct World {
    limit: u64,
    now: u64,
    /// The store's clock is off by this, or that of whoever asks.
    skew: i64,
    error: i64,
    state: Option<Vec<u8>>,
}

struct Instance {
    pool: Pool,
    /// Its clock runs at this many thousandths of the time, and begins anywhere.
    pace: u64,
    offset: u64,
    /// Where no clock is the store's, its own is wrong by this.
    error: i64,
    /// For how long permits are in use.
    in_use_for: u64,
    /// What calls in progress hold.
    calls: Vec<u64>,
    /// Requests that were sent: they may arrive late, and once more.
    sent: Vec<Hold>,
}

impl World {
    fn new(limit: u64) -> Self {
        Self { limit, now: START, skew: 0, error: 0, state: None }
    }

    fn apply(&mut self, transition: &dyn Transition) -> Vec<u8> {
        let now = i64::try_from(self.now).unwrap() + self.skew + self.error;
        let step = transition.apply(self.state.as_deref(), Timestamp::from_nanos(now * 1_000)).unwrap();
        match step.action {
            Action::Put { value, .. } => self.state = Some(value.to_vec()),
            Action::Delete => self.state = None,
            _ => {}
        }
        step.reply.to_vec()
    }

    fn free(&mut self) -> u64 {
        let instances = Look::decode(&self.apply(&Look)).unwrap();
        self.limit.saturating_sub(instances.iter().map(|instance| instance.held).sum())
    }

    fn exchange(&mut self, instance: &mut Instance, waiting: Waiting, way: &Way) {
        let sent = instance.clock(self.now);
        let request = instance.pool.request(waiting, sent);
        instance.sent.push(request.clone());
        self.now += way.takes;
        if !way.sent {
            return;
        }
        self.error = instance.error;
        let reply = self.apply(&request);
        self.now += way.takes;
        if way.replied {
            let reply = Hold::decode(&reply).unwrap();
            let answered = instance.pool.answered(reply, sent);
            if !answered.held {
                instance.begin_anew();
            }
            if let Some(refused) = answered.refused {
                let clock = instance.clock(self.now);
                instance.pool.pause(refused.permits, instance.in_use_for, clock);
            }
        }
    }

    /// Takes so many permits, asking once if they are not here.
    fn call(&mut self, instance: &mut Instance, permits: u64, way: &Way) -> bool {
        instance.look(self.now);
        let waiting = Waiting { first: permits, all: permits, presses: true, end: 1 };
        for attempt in 0..2 {
            if instance.pool.take(permits, instance.clock(self.now)) {
                instance.calls.push(permits);
                return true;
            }
            if attempt == 0 {
                self.exchange(instance, waiting, way);
            }
        }
        false
    }

    /// What the task that asks does while nobody waits.
    fn rest(&mut self, instance: &mut Instance, way: &Way) {
        instance.look(self.now);
        if instance.pool.next(Waiting::default(), instance.clock(self.now)) == Next::Ask {
            self.exchange(instance, Waiting::default(), way);
        }
    }

    fn assert_within_the_limit(&self, instances: &[Instance]) {
        let holding = instances.iter().filter(|instance| instance.pool.holds(instance.clock(self.now)));
        let in_use: u64 = holding.flat_map(|instance| &instance.calls).sum();
        assert!(in_use <= self.limit, "{in_use} of {}", self.limit);
    }
}

impl Instance {
    fn new(form: Form, limit: u64, id: u64, (pace, offset): (u64, u64)) -> Self {
        Self::with_error(form, limit, id, (pace, offset), (0, 0))
    }

    /// With a clock that is wrong by this, of clocks that may be so far apart.
    fn with_error(
        form: Form,
        limit: u64,
        id: u64,
        (pace, offset): (u64, u64),
        (error, apart): (i64, u64),
    ) -> Self {
        let pool = Pool::new(form, limit, (LEASE, apart), (id, "=model".into()));
        Self { pool, pace, offset, error, in_use_for: 0, calls: Vec::new(), sent: Vec::new() }
    }

    fn clock(&self, now: u64) -> u64 {
        self.offset + (now - START) * self.pace / 1_000
    }

    /// Gives up what is over.
    fn look(&mut self, now: u64) {
        if self.pool.is_over(self.clock(now)) {
            self.begin_anew();
        }
    }

    /// Its calls have been told, and have ended.
    fn begin_anew(&mut self) {
        let lost = self.pool.begin_anew(fastrand::u64(1_000..1 << 50));
        assert_eq!(lost, self.calls.drain(..).sum::<u64>());
    }

    fn end_call(&mut self, which: usize) {
        if !self.calls.is_empty() {
            let permits = self.calls.swap_remove(which % self.calls.len());
            self.pool.give_back(permits);
        }
    }
}

#[derive(Debug, Clone)]
struct Way {
    sent: bool,
    replied: bool,
    takes: u64,
}

const SAFE: Way = Way { sent: true, replied: true, takes: 0 };

#[derive(Debug, Clone)]
enum Event {
    Pass(u64),
    Call {
        instance: usize,
        permits: u64,
        way: Way,
    },
    End {
        instance: usize,
        which: usize,
    },
    Rest {
        instance: usize,
        way: Way,
    },
    /// A request that was thought lost arrives, or one arrives once more.
    Arrive {
        instance: usize,
        which: usize,
    },
    /// Ends with all its calls, and another takes its place.
    Die {
        instance: usize,
    },
    /// The store's clock steps back.
    StepBack(u64),
}

fn events() -> impl Strategy<Value = Event> {
    let instance = 0_usize..4;
    // Most messages arrive.
    let arrives = || prop::bool::weighted(0.8);
    let takes = prop_oneof![3 => 0_u64..500, 1 => 0_u64..2_000_000];
    let way = (arrives(), arrives(), takes).prop_map(|(sent, replied, takes)| Way { sent, replied, takes });
    prop_oneof![
        6 => prop_oneof![0_u64..100, 0_u64..200_000, 0_u64..3_000_000].prop_map(Event::Pass),
        12 => (instance.clone(), 1_u64..8, way.clone())
            .prop_map(|(instance, permits, way)| Event::Call { instance, permits, way }),
        8 => (instance.clone(), any::<usize>()).prop_map(|(instance, which)| Event::End { instance, which }),
        4 => (instance.clone(), way).prop_map(|(instance, way)| Event::Rest { instance, way }),
        4 => (instance.clone(), 0_usize..4).prop_map(|(instance, which)| Event::Arrive { instance, which }),
        1 => instance.prop_map(|instance| Event::Die { instance }),
        1 => prop_oneof![0_u64..1_000, 0_u64..10_000_000].prop_map(Event::StepBack),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn no_more_than_the_limit_are_in_use_whatever_happens_and_in_the_end_all_are_free(
        limit in 8_u64..30,
        clocks in prop::collection::vec((905_u64..1_300, 0_u64..1 << 50), 4),
        hybrids in prop::collection::vec(any::<bool>(), 4),
        (apart, errors) in prop_oneof![Just(0_i64), Just(LEASE.cast_signed() / 4)]
            .prop_flat_map(|apart| (Just(apart), prop::collection::vec(0..=apart, 4))),
        events in prop::collection::vec(events(), 1..200),
    ) {
        let mut world = World::new(limit);
        let mut ids = 1..;
        let mut born = |at: usize| {
            let form = if hybrids[at] { Form::Hybrid } else { Form::Distributed };
            let error = (errors[at], apart.cast_unsigned());
            Instance::with_error(form, limit, ids.next().unwrap(), clocks[at], error)
        };
        let mut instances: Vec<_> = (0..4).map(&mut born).collect();
        for event in events {
            match event {
                Event::Pass(micros) => world.now += micros,
                Event::Call { instance, permits, way } => {
                    world.call(&mut instances[instance], permits, &way);
                }
                Event::End { instance, which } => instances[instance].end_call(which),
                Event::Rest { instance, way } => world.rest(&mut instances[instance], &way),
                Event::Arrive { instance, which } => {
                    if let Some(request) = instances[instance].sent.iter().rev().nth(which) {
                        world.error = instances[instance].error;
                        world.apply(request);
                    }
                }
                Event::Die { instance } => instances[instance] = born(instance),
                Event::StepBack(micros) => world.skew -= i64::try_from(micros).unwrap(),
            }
            world.assert_within_the_limit(&instances);
        }

        // All calls end and nobody asks any more. The last one, who has nothing yet, tells the store which time it is.
        instances[0] = born(0);
        world.call(&mut instances[0], 1, &SAFE);
        for instance in &mut instances {
            instance.look(world.now);
            while !instance.calls.is_empty() {
                instance.end_call(0);
            }
        }
        for _ in 0..9 {
            for instance in &mut instances {
                world.rest(instance, &SAFE);
            }
            world.now += LEASE / 3;
        }
        for instance in &mut instances {
            world.rest(instance, &SAFE);
            let nothing = instance.pool.next(Waiting::default(), instance.clock(world.now));
            prop_assert!(matches!(nothing, Next::Nothing), "{:?}", instance.pool);
        }
        prop_assert_eq!(world.free(), limit, "{:?}", world.state.map(String::from_utf8));
    }
}

/// One whose calls come by themselves: so many want to be in progress at a time, each with these permits and for this long.
struct Busy {
    instance: Instance,
    wanted: usize,
    permits: u64,
    takes: u64,
    /// When the calls end.
    ends: VecDeque<u64>,
    /// How long permits were in use, times their number.
    got: u64,
    requests: u64,
}

impl Busy {
    fn new(form: Form, limit: u64, id: u64, wanted: usize, permits: u64, takes: u64) -> Self {
        let mut instance = Instance::new(form, limit, id, (1_000, id * 77));
        instance.in_use_for = takes;
        Self { instance, wanted, permits, takes, ends: VecDeque::new(), got: 0, requests: 0 }
    }

    fn waiting(&self) -> Waiting {
        let waiting = (self.wanted - self.ends.len()) as u64;
        let first = if waiting > 0 { self.permits } else { 0 };
        Waiting { first, all: waiting * self.permits, presses: false, end: 1 }
    }

    fn step(&mut self, world: &mut World) {
        self.instance.look(world.now);
        while self.ends.pop_front_if(|end| *end <= world.now).is_some() {
            self.instance.end_call(0);
        }
        for attempt in 0.. {
            assert!(attempt < 20, "it asks all the time");
            while self.ends.len() < self.wanted
                && self.instance.pool.take(self.permits, self.instance.clock(world.now))
            {
                self.instance.calls.push(self.permits);
                self.ends.push_back(world.now + self.takes);
                self.got += self.permits * self.takes;
            }
            let clock = self.instance.clock(world.now);
            if self.instance.pool.next(self.waiting(), clock) != Next::Ask {
                return;
            }
            let waiting = self.waiting();
            world.exchange(&mut self.instance, waiting, &SAFE);
            self.requests += 1;
            if waiting.first > self.instance.pool.free() {
                self.instance.pool.pause(waiting.first, self.takes, clock);
            }
        }
    }
}

/// Lets them live for so many leases, and says how many permits each had in use on average, in hundredths.
fn live(limit: u64, leases: u64, all: &mut [Busy]) -> Vec<u64> {
    let mut world = World::new(limit);
    for _ in 0..leases * LEASE / 1_000 {
        for busy in &mut *all {
            busy.step(&mut world);
        }
        let in_use: u64 = all.iter().flat_map(|busy| &busy.instance.calls).sum();
        assert!(in_use <= limit);
        assert!(all.iter().all(|busy| busy.ends.len() == busy.instance.calls.len()), "some were lost");
        world.now += 1_000;
    }
    all.iter().map(|busy| busy.got * 100 / (leases * LEASE)).collect()
}

const BOTH: [Form; 2] = [Form::Distributed, Form::Hybrid];

#[test]
fn who_is_alone_has_all_of_it_and_a_hybrid_seldom_asks() {
    for form in BOTH {
        let mut all = [Busy::new(form, 10, 0, 10, 1, 5_000)];
        let got = live(10, 10, &mut all);
        assert!(got[0] >= 980, "{form:?}: {got:?}");
        if form == Form::Hybrid {
            // Three in a lease to renew it, and those at the beginning.
            assert!(all[0].requests <= 50, "{} requests for 20,000 calls", all[0].requests);
        }
    }
}

#[test]
fn those_who_all_want_too_many_get_equal_shares_and_who_wants_few_gets_them() {
    for form in BOTH {
        let busy = |id, wanted| Busy::new(form, 12, id, wanted, 1, 10_000);
        let got = live(12, 20, &mut [busy(0, 40), busy(1, 40), busy(2, 40), busy(3, 40)]);
        assert!(got.iter().all(|got| (250..=350).contains(got)), "{form:?}: {got:?}");
        assert!(got.iter().sum::<u64>() >= 1_100, "{form:?}: {got:?}");
        let got = live(12, 20, &mut [busy(0, 40), busy(1, 40), busy(2, 2)]);
        assert!(got[2] >= 180, "{form:?}: {got:?}");
        assert!(got[0] >= 420 && got[1] >= 420, "{form:?}: {got:?}");
    }
}

#[test]
fn who_comes_late_gets_a_share_of_what_another_has_had_alone() {
    for form in BOTH {
        let mut world = World::new(10);
        let mut first = Busy::new(form, 10, 0, 40, 1, 10_000);
        let mut late = Busy::new(form, 10, 1, 40, 1, 10_000);
        for _ in 0..1_000 {
            first.step(&mut world);
            world.now += 1_000;
        }
        assert_eq!(first.ends.len(), 10);
        for _ in 0..500 {
            first.step(&mut world);
            late.step(&mut world);
            world.now += 1_000;
        }
        assert!((4..=6).contains(&late.ends.len()), "{form:?}: {} after half a lease", late.ends.len());
    }
}

#[test]
fn fewer_permits_than_instances_go_round() {
    for form in BOTH {
        for takes in [2_000, 20_000, 400_000] {
            let busy = |id| Busy::new(form, 1, id, 5, 1, takes);
            let got = live(1, 60, &mut [busy(0), busy(1), busy(2)]);
            assert!(got.iter().all(|got| *got >= 15), "{form:?}, calls of {takes}: {got:?}");
            assert!(got.iter().sum::<u64>() >= 60, "{form:?}, calls of {takes}: {got:?}");
        }
    }
}

#[test]
fn those_who_need_more_than_half_each_and_who_needs_more_than_a_share_all_get_some() {
    for form in BOTH {
        let busy = |limit, id, wanted, permits| Busy::new(form, limit, id, wanted, permits, 10_000);
        let got = live(5, 30, &mut [busy(5, 0, 2, 3), busy(5, 1, 2, 4), busy(5, 2, 2, 3)]);
        assert!(got.iter().all(|got| *got >= 5), "{form:?}: {got:?}");
        assert!(got.iter().sum::<u64>() >= 180, "{form:?}: {got:?}");
        let got = live(5, 30, &mut [busy(5, 0, 3, 3), busy(5, 1, 3, 3), busy(5, 2, 3, 3)]);
        assert!(got.iter().all(|got| *got >= 50), "{form:?}: {got:?}");
        let got = live(4, 30, &mut [busy(4, 0, 6, 1), busy(4, 1, 6, 1), busy(4, 2, 1, 3)]);
        assert!(got[2] >= 5 && got[0] >= 100 && got[1] >= 100, "{form:?}: {got:?}");
    }
}

#[test]
fn while_a_smaller_limit_takes_the_place_of_a_greater_one_both_get_on() {
    for form in BOTH {
        let busy = |id, limit| Busy::new(form, limit, id, 20, 1, 10_000);
        let got = live(10, 30, &mut [busy(0, 10), busy(1, 4)]);
        assert!(got.iter().all(|got| *got >= 150), "{form:?}: {got:?}");
    }
}

#[test]
fn who_was_refused_once_and_never_comes_back_holds_nobody_up_for_long() {
    for form in BOTH {
        let mut world = World::new(8);
        let mut busy = Busy::new(form, 8, 0, 8, 1, 10_000);
        let mut stray = Instance::new(form, 8, 1, (1_000, 0));
        for tick in 0..3_000 {
            if tick == 1_000 {
                assert!(!world.call(&mut stray, 8, &SAFE));
            }
            world.rest(&mut stray, &SAFE);
            busy.step(&mut world);
            world.now += 1_000;
        }
        // It holds less for two tenths of a lease and what a third of one has brought besides.
        assert!(busy.got >= 8 * 3 * LEASE * 8 / 10, "{form:?}: {}", busy.got);
    }
}

#[test]
fn clocks_of_instances_that_are_apart_end_no_lease_before_its_holder_knows() {
    let apart = LEASE / 4;
    let born = |id, error| Instance::with_error(Form::Distributed, 5, id, (1_000, 0), (error, apart));
    let ahead = apart.cast_signed();
    // One that is ahead of the holder comes when the lease is over by its clock.
    let mut world = World::new(5);
    let mut instances = [born(0, 0), born(1, ahead)];
    assert!(world.call(&mut instances[0], 5, &SAFE));
    world.now += LEASE - apart + 1;
    assert!(world.call(&mut instances[1], 5, &SAFE));
    world.assert_within_the_limit(&instances);
    // Two that are apart come in turn, and take no time from the lease by that.
    let mut world = World::new(5);
    let mut instances = [born(0, 0), born(1, ahead), born(2, 0)];
    assert!(world.call(&mut instances[0], 5, &SAFE));
    for turn in 0..20 {
        assert!(!world.call(&mut instances[1 + turn % 2], 5, &SAFE));
        world.assert_within_the_limit(&instances);
        world.now += 1_000;
    }
}

#[test]
fn what_the_store_has_forgotten_is_held_on_unless_others_have_it() {
    for others in [2, 5] {
        let mut world = World::new(10);
        let mut instances = [0, 1].map(|id| Instance::new(Form::Distributed, 10, id, (1_000, 0)));
        let [first, other] = &mut instances;
        assert!(world.call(first, 8, &SAFE));
        world.state = None;
        assert!(world.call(other, others, &SAFE));
        world.now += LEASE / 2;
        world.rest(first, &SAFE);
        assert_eq!(first.calls.is_empty(), others > 2);
        world.assert_within_the_limit(&instances);
    }
}

#[test]
fn who_waits_with_a_long_lease_and_is_gone_keeps_nobody_back_for_as_long() {
    let mut world = World::new(1);
    let ask = |world: &mut World, id, length| {
        let label = "=model".into();
        let hold = Hold { limit: 1, id, seq: world.now, keep: 0, need: 1, want: 1, waits: 1, length, label };
        Hold::decode(&world.apply(&hold)).unwrap().held
    };
    assert_eq!(ask(&mut world, 1, LEASE), 1);
    assert_eq!(ask(&mut world, 2, 3_600 * LEASE), 0);
    world.now += 2 * LEASE;
    assert_eq!(ask(&mut world, 3, LEASE), 0, "it is the turn of who has waited");
    world.now += 8 * LEASE;
    assert_eq!(ask(&mut world, 3, LEASE), 1);
}

#[test]
fn a_request_that_arrives_once_more_takes_nothing_back_though_others_lack_some_by_now() {
    let mut world = World::new(4);
    let mut instances = [0, 1].map(|id| Instance::new(Form::Distributed, 4, id, (1_000, 0)));
    let [first, other] = &mut instances;
    assert!(world.call(first, 3, &SAFE) && world.call(first, 1, &SAFE));
    assert!(!world.call(other, 4, &SAFE));
    world.apply(&first.sent[1]);
    assert_eq!(world.free(), 0);
    assert!(!world.call(other, 1, &SAFE));
}

#[test]
fn what_a_greater_limit_has_lent_stays_lent_when_instances_of_a_smaller_one_come() {
    let mut world = World::new(10);
    let mut greater = Instance::new(Form::Distributed, 10, 0, (1_000, 0));
    let mut smaller = Instance::new(Form::Distributed, 4, 1, (1_000, 0));
    assert!(world.call(&mut greater, 8, &SAFE));
    assert!(!world.call(&mut smaller, 1, &SAFE));
    world.now += LEASE / 2;
    world.rest(&mut greater, &SAFE);
    assert_eq!(greater.calls, [8]);
    // It does not want any more.
    world.rest(&mut smaller, &SAFE);
    assert!(world.call(&mut greater, 2, &SAFE));
    greater.end_call(0);
    world.rest(&mut greater, &SAFE);
    assert!(world.call(&mut smaller, 2, &SAFE));
}
