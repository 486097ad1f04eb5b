//! The permits that an instance has: what it may use, and what it asks for.

use std::{sync::Arc, time::Duration};

use super::hold::{Hold, Holding};

/// Where the permits come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// All of them are here.
    Local,
    /// From a store, each when it is needed.
    Distributed,
    /// From a store, with some that are kept for the next calls.
    Hybrid,
}

/// All times are microseconds of this process's monotonic clock.
#[derive(Debug)]
pub(super) struct Pool {
    form: Form,
    limit: u64,
    /// How long a lease lasts, and how far apart the clocks may be by which it ends.
    length: u64,
    clock_error: u64,
    id: u64,
    label: Arc<str>,
    seq: u64,
    /// Permits on lease, and until when.
    held: u64,
    until: u64,
    in_use: u64,
    /// How many of them may be used.
    cap: u64,
    /// Permits that nobody held when the store was last asked.
    free: u64,
    /// The most that were in use and asked for at a time since the last request.
    peak: u64,
    /// When that was made.
    asked: u64,
    refused: Option<Refusal>,
    /// The store may have a lease for this instance.
    known: bool,
    /// The store has said last that it has less than it wants.
    lacks: bool,
    /// A request that has no reply yet. It is repeated until it has.
    pending: Option<Pending>,
}

#[derive(Debug)]
struct Pending {
    hold: Hold,
    asked: Asked,
    /// It gives back some.
    gives: bool,
}

/// Who waits asks again after twice this at the latest, in microseconds, however long the lease.
const MAX_PAUSE: u64 = 1_000_000;

/// What the store has said no to, and when to ask again.
#[derive(Debug)]
struct Refusal {
    permits: u64,
    again: u64,
}

/// Those who wait.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Waiting {
    /// How many permits the first of them must have; 0 if there is none.
    pub(super) first: u64,
    /// How many all of them would like to have.
    pub(super) all: u64,
    /// The first waits for nothing but the answer.
    pub(super) presses: bool,
    /// The ticket of whoever comes next.
    pub(super) end: u64,
}

/// For whom a request asks: those who came before this ticket and want as many as the first of them, or more.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Asked {
    pub(super) before: u64,
    pub(super) permits: u64,
}

/// What a reply has brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Answered {
    /// What is in use is held.
    pub(super) held: bool,
    /// What was asked for was not given.
    pub(super) refused: Option<Asked>,
    /// The instance that is to be told that it can have some now.
    pub(super) tell: Option<u64>,
}

/// What is to be done next about the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    Ask,
    /// To look again at this time.
    At(u64),
    Nothing,
}

impl Pool {
    pub(super) fn new(
        form: Form,
        limit: u64,
        (length, clock_error): (u64, u64),
        (id, label): (u64, Arc<str>),
    ) -> Self {
        let (held, until) = if form == Form::Local { (limit, u64::MAX) } else { (0, 0) };
        Self {
            form,
            limit,
            length,
            clock_error,
            id,
            label,
            seq: 0,
            held,
            until,
            in_use: 0,
            cap: limit,
            free: limit - held,
            peak: 0,
            asked: 0,
            refused: None,
            known: false,
            lacks: false,
            pending: None,
        }
    }

    /// Takes so many permits if they are here.
    pub(super) fn take(&mut self, permits: u64, now: u64) -> bool {
        let taken = permits <= self.idle_now(now);
        if taken {
            self.in_use += permits;
            self.peak = self.peak.max(self.in_use);
        }
        taken
    }

    pub(super) fn give_back(&mut self, permits: u64) {
        self.in_use -= permits;
    }

    /// Notes that so many are wanted beside those in use.
    pub(super) fn wanted(&mut self, permits: u64) {
        self.peak = self.peak.max(self.in_use.saturating_add(permits)).min(self.limit);
    }

    /// Permits that can be taken here now.
    pub(super) fn idle_now(&self, now: u64) -> u64 {
        if now < self.until { self.idle() } else { 0 }
    }

    fn idle(&self) -> u64 {
        self.held.min(self.cap).saturating_sub(self.in_use)
    }

    /// Permits that nobody held when the store was last asked.
    pub(super) fn free(&self) -> u64 {
        self.free
    }

    /// Permits that can be taken, as far as this instance knows.
    pub(super) fn remaining(&self, now: u64) -> u64 {
        let free = if self.form == Form::Distributed { self.free } else { 0 };
        self.idle_now(now) + free
    }

    /// Whether the store has just said that so many are not to be had, and is not to be asked again so soon.
    pub(super) fn is_refused(&self, permits: u64, now: u64) -> bool {
        self.form == Form::Hybrid && now < self.again(permits)
    }

    /// Somebody comes who has not asked: a distributed limiter does not let the refusals of others keep it from that.
    pub(super) fn asks_anew(&mut self) {
        if self.form == Form::Distributed {
            self.refused = None;
        }
    }

    /// Is told that there may be some again.
    pub(super) fn hears(&mut self) {
        self.refused = None;
    }

    /// Which instance this is.
    pub(super) fn id(&self) -> u64 {
        self.id
    }

    /// From when on the store may be asked for so many.
    pub(super) fn again(&self, permits: u64) -> u64 {
        self.refused.as_ref().filter(|refused| permits >= refused.permits).map_or(0, |refused| refused.again)
    }

    /// Does not ask for so many, or more, for a while: half as long as permits are in use, but within what is not too
    /// often for the store and not too seldom for who waits.
    pub(super) fn pause(&mut self, permits: u64, in_use_for: u64, now: u64) {
        let pause = (in_use_for / 2).clamp(self.length / 50, self.length / 20).min(MAX_PAUSE);
        // Multiples of the golden ratio are spread evenly (Knuth, The Art of Computer Programming, 6.4), so that nobody
        // always comes second.
        let number = self.id.wrapping_add(self.seq).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        self.refused = Some(Refusal { permits, again: now + pause + number % (pause + 1) });
    }

    /// Whether it holds permits.
    pub(super) fn holds(&self, now: u64) -> bool {
        self.held > 0 && now < self.until
    }

    /// Whether the lease under which it holds permits is over.
    pub(super) fn is_over(&self, now: u64) -> bool {
        self.held > 0 && now >= self.until
    }

    /// For how long it holds permits if they are not renewed; for ever if there are none.
    pub(super) fn left(&self, now: u64) -> Duration {
        if self.held > 0 { Duration::from_micros(self.until.saturating_sub(now)) } else { Duration::MAX }
    }

    /// Begins anew, as another instance. Says how many permits were in use: it must not count on them any more.
    pub(super) fn begin_anew(&mut self, id: u64) -> u64 {
        let lost = self.in_use;
        let label = Arc::clone(&self.label);
        *self = Self::new(self.form, self.limit, (self.length, self.clock_error), (id, label));
        lost
    }

    /// Whether it has free permits that others are to have.
    fn yields(&self) -> bool {
        self.held > self.cap.max(self.in_use)
    }

    /// What to do next if these wait.
    pub(super) fn next(&self, waiting: Waiting, now: u64) -> Next {
        if self.form == Form::Local {
            return Next::Nothing;
        }
        let spare = self.yields() || self.form == Form::Distributed && self.held > self.in_use;
        let again = self.again(waiting.first);
        if self.pending.is_some()
            && (waiting.first > 0 || self.held > 0 || now < self.asked + 2 * self.length)
            || spare
            || waiting.presses
            || waiting.first > 0 && now >= again
        {
            return Next::Ask;
        }
        // That nobody wants any more what was refused is soon said: others have less until then.
        let pause = if self.lacks && waiting.first == 0 {
            (self.length / 10).min(2 * MAX_PAUSE)
        } else {
            self.length / 3
        };
        let renewal = (self.known && self.pending.is_none()).then_some(self.asked + pause);
        let over = (self.held > 0).then_some(self.until);
        let again = (waiting.first > 0).then_some(again);
        match [renewal, over, again].into_iter().flatten().min() {
            Some(at) if at <= now => Next::Ask,
            Some(at) => Next::At(at),
            None => Next::Nothing,
        }
    }

    /// What to ask of the store if these wait.
    pub(super) fn request(&mut self, waiting: Waiting, now: u64) -> Hold {
        if let Some(pending) = &self.pending {
            return pending.hold.clone();
        }
        self.wanted(waiting.all);
        // Whoever asked for them again in the same breath would have them before the others have asked.
        let need = if self.yields() { 0 } else { waiting.first };
        let keep = match self.form {
            Form::Hybrid if need == 0 => self.held.min(self.cap).min(self.peak).max(self.in_use),
            // Those who need more than they have give back the rest first: two who held on to what they had while they
            // wait for more could wait for ever.
            _ => self.in_use,
        };
        let want =
            if self.form == Form::Hybrid { self.peak } else { self.in_use.saturating_add(waiting.all) };
        let asked = Asked { before: if need > 0 { waiting.end } else { 0 }, permits: waiting.first };
        self.make(keep, need, want.min(self.limit), asked, waiting, now)
    }

    /// Gives back what is not in use; or what has no reply yet, which comes first.
    pub(super) fn release(&mut self, waiting: Waiting, now: u64) -> Hold {
        let want = self.in_use.saturating_add(waiting.all).min(self.limit);
        match &self.pending {
            Some(pending) => pending.hold.clone(),
            None => self.make(self.in_use, 0, want, Asked::default(), waiting, now),
        }
    }

    /// Gives back everything, though a request may have no reply yet. Nothing to do if the store knows of nothing.
    pub(super) fn leave(&mut self, now: u64) -> Option<Hold> {
        self.pending = None;
        self.known.then(|| self.make(0, 0, 0, Asked::default(), Waiting::default(), now))
    }

    /// Whether the store counts nothing as held but what is in use, or as wanted but what these wait for, and no request is
    /// under way.
    pub(super) fn is_released(&self, waiting: Waiting) -> bool {
        self.held == self.in_use && (waiting.first > 0 || !self.lacks) && self.pending.is_none()
    }

    fn make(&mut self, keep: u64, need: u64, want: u64, asked: Asked, waiting: Waiting, now: u64) -> Hold {
        let gives = self.held > keep;
        (self.held, self.asked, self.known) = (keep, now, true);
        self.peak = self.in_use;
        self.wanted(waiting.all);
        self.seq += 1;
        let Self { limit, id, seq, length, .. } = *self;
        let label = Arc::clone(&self.label);
        let waits = if waiting.presses { 0 } else { waiting.first };
        let hold = Hold { limit, id, seq, keep, need, want, waits, length, label };
        self.pending = Some(Pending { hold: hold.clone(), asked, gives });
        hold
    }

    /// Until when it is held for sure if this is the reply to a request that was sent at this time.
    pub(super) fn until(&self, reply: Holding, sent: u64) -> u64 {
        // A clock that is a tenth too slow still ends before the store does.
        let left = reply.left - reply.left / 10;
        sent.saturating_add(left.saturating_sub(self.clock_error))
    }

    /// Takes in the reply to the request that was sent at this time.
    pub(super) fn answered(&mut self, reply: Holding, sent: u64) -> Answered {
        let Some(Pending { hold: request, asked, gives }) = self.pending.take() else {
            return Answered { held: true, refused: None, tell: None };
        };
        self.known = reply.held > 0 || request.want > 0;
        self.lacks = reply.held < request.want;
        self.refused = None;
        (self.held, self.until) = (reply.held, self.until(reply, sent));
        (self.cap, self.free) = (reply.cap, reply.free);
        let refused = asked.permits > 0 && reply.held < request.keep + asked.permits;
        // Only whoever has given or taken some tells the next, or two who may not have what is free would tell each other for
        // ever.
        let tell = (gives || reply.held > request.keep).then(|| reply.to_tell()).flatten();
        Answered { held: reply.held >= self.in_use, refused: refused.then_some(asked), tell }
    }

    /// The request was refused for good: it has changed nothing.
    pub(super) fn unanswered(&mut self) {
        (self.pending, self.known) = (None, self.held > 0);
    }
}
