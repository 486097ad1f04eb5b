//! The portion of a limit that an instance holds: what it may spend, and what it asks for.

use super::{
    Limit,
    lease::{Portioned, Renew},
};

/// All times are microseconds of this process's monotonic clock.
#[derive(Debug)]
pub(super) struct Portion {
    limit: Limit,
    id: u64,
    /// How long a lease lasts, and how far apart the clocks may be by which it ends.
    length: u64,
    clock_error: u64,
    tokens: u64,
    /// Permits that the store counts as held: these, and what was spent since it was told.
    held: u64,
    /// Until when they may be spent.
    until: u64,
    /// Permits that were spent since the request that is in flight, or the last one.
    spent: u64,
    /// Permits that were asked for since the last request, and since when.
    demand: u64,
    since: u64,
    refused: Option<Refusal>,
    /// A request that has no reply yet. It is repeated until it has.
    pending: Option<Renew>,
    seq: u64,
}

/// What the store has said no to.
#[derive(Debug)]
struct Refusal {
    permits: u64,
    /// When there can be so many.
    until: u64,
    /// When to ask again nevertheless, for others may give some back before.
    again: u64,
}

/// What an instance decides for itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Local {
    Allowed,
    /// And for so many microseconds to come.
    Refused(u64),
    /// Only the store knows.
    Ask,
}

impl Portion {
    /// Nothing yet.
    pub(super) fn new(limit: Limit, id: u64, (length, clock_error): (u64, u64), now: u64) -> Self {
        Self {
            limit,
            id,
            length,
            clock_error,
            tokens: 0,
            held: 0,
            until: now,
            spent: 0,
            demand: 0,
            since: now,
            refused: None,
            pending: None,
            seq: 0,
        }
    }

    /// Notes that so many permits are wanted.
    pub(super) fn wanted(&mut self, permits: u64) {
        self.demand = self.demand.saturating_add(permits);
    }

    /// Takes so many permits if they are there.
    pub(super) fn take(&mut self, permits: u64, now: u64) -> Local {
        if now < self.until && permits <= self.tokens {
            self.tokens -= permits;
            self.spent += permits;
            return Local::Allowed;
        }
        match &self.refused {
            Some(refused) if permits >= refused.permits && now < refused.again => {
                Local::Refused(refused.until - now)
            }
            _ => Local::Ask,
        }
    }

    /// What there is to take without asking.
    pub(super) fn tokens(&self, now: u64) -> u64 {
        if now < self.until { self.tokens } else { 0 }
    }

    /// What to ask of the store: what has no reply yet, or else so many permits, or, for none, a renewal.
    pub(super) fn request(&mut self, need: u64, now: u64) -> Renew {
        if let Some(pending) = &self.pending {
            return pending.clone();
        }
        // About what goes in a quarter of a lease at the present pace: not much lies idle, and the store is seldom asked.
        let elapsed = u128::from(now.saturating_sub(self.since).max(1));
        let pace = u128::from(self.demand) * u128::from(self.length / 4) / elapsed;
        let want = u64::try_from(pace).unwrap_or(u64::MAX).clamp(need, self.limit.most());
        // Those who need more than they have give back the rest first: two who held on to what they had while they
        // wait for more could wait for ever.
        let keep = if need > 0 { 0 } else { self.tokens.min(want) };
        self.make(keep, need, want, now)
    }

    /// Gives back everything; or what has no reply yet, which comes first.
    pub(super) fn give_back(&mut self, now: u64) -> Renew {
        match &self.pending {
            Some(pending) => pending.clone(),
            None => self.make(0, 0, 0, now),
        }
    }

    /// Gives back everything, though a request may have no reply yet: what that brings counts as spent.
    pub(super) fn leave(&mut self, now: u64) -> Renew {
        self.pending = None;
        self.make(0, 0, 0, now)
    }

    /// Whether the store counts nothing as held, and no request is under way that may bring something.
    pub(super) fn is_given_back(&self) -> bool {
        self.held == 0 && self.pending.is_none()
    }

    /// Whether the store may count something as held, which does not refill until it is told that it does not.
    pub(super) fn is_leased(&self, now: u64) -> bool {
        !self.is_given_back() && now < self.until.max(self.since.saturating_add(self.length))
    }

    fn make(&mut self, keep: u64, need: u64, want: u64, now: u64) -> Renew {
        let back = self.tokens - keep;
        self.tokens = keep;
        (self.spent, self.demand, self.since) = (0, 0, now);
        self.seq += 1;
        let Self { limit, id, seq, length, .. } = *self;
        self.pending.insert(Renew { limit, id, seq, keep, back, need, want, length }).clone()
    }

    /// Takes in the reply to the request that was sent at this time.
    pub(super) fn answered(&mut self, reply: Portioned, sent: u64, now: u64) {
        let Some(request) = self.pending.take() else { return };
        self.held = reply.held;
        self.tokens = reply.held.saturating_sub(self.spent);
        // A clock that is a tenth too slow still ends before the store does.
        let left = reply.left - reply.left / 10;
        self.until = sent.saturating_add(left.saturating_sub(self.clock_error));
        // Where there is hardly any left, asking for every single permit as it comes would be as slow as having no
        // portion, and whoever asks fastest would get them all.
        let filling = self.limit.memory_micros();
        let pause = (self.length / 20).min(filling / 4);
        let until = now.saturating_add(reply.retry_micros.max(pause)).saturating_add(self.spread(pause));
        let scarce = request.need > 0 && reply.held <= request.need && request.want > request.need;
        let permits = if reply.retry_micros > 0 { Some(request.need) } else { scarce.then_some(1) };
        let again = until.min(now.saturating_add(self.length / 3));
        self.refused = permits.map(|permits| Refusal { permits, until, again });
    }

    /// Something up to that, each time another, so that nobody always comes second.
    fn spread(&self, most: u64) -> u64 {
        // Multiples of the golden ratio are spread evenly (Knuth, The Art of Computer Programming, 6.4).
        (self.id.wrapping_add(self.seq).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) % (most + 1)
    }

    /// Whether there is nothing to renew or to give back.
    pub(super) fn idle(&self, now: u64) -> bool {
        self.demand == 0 && !self.is_leased(now)
    }
}
