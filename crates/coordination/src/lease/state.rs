//! The state of a lease as it lies in the store.

use std::fmt::Write as _;

use commonhold_core::Result;

use crate::state::{Fields, corrupt};

/// What errors call it.
pub(super) const OF: &str = "a lock, a semaphore or an election";

/// Who holds and who waits.
///
/// As text: the greatest token, then `H owner weight token ttl since label` for each holder, then
/// `W owner weight tokens ttl since label` for each who waits, with one space between all, and times in microseconds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct State {
    /// The greatest token that was given.
    pub(crate) last_token: i64,
    pub(crate) holders: Vec<Holder>,
    /// In the order in which they came.
    pub(crate) waiters: Vec<Waiter>,
    /// Something was to begin later than now: the clock has stepped back since. Not part of the text.
    pub(crate) clamped: bool,
}

/// One who holds a part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Holder {
    pub(crate) owner: String,
    pub(crate) weight: i64,
    pub(crate) token: i64,
    pub(crate) term: Term,
    /// What it says of itself; one word.
    pub(crate) label: String,
}

/// One who waits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Waiter {
    pub(crate) owner: String,
    pub(crate) weight: i64,
    /// How many tokens are wanted.
    pub(crate) tokens: i64,
    /// How long the place lasts, and then what is granted to it.
    pub(crate) term: Term,
    pub(crate) label: String,
}

/// How long something is valid unless it is renewed, and since when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Term {
    pub(crate) ttl: i64,
    pub(crate) since: i64,
}

/// What all numbers of a state are less than: tokens can rise and sums of two are exact in scripts. As a time it is reached
/// in 2112.
const LIMIT: i64 = 1 << 52;

impl Term {
    pub(crate) fn expires(self) -> i64 {
        self.since + self.ttl
    }

    /// Whether it goes on. One that begins later than now was given before the clock stepped back: it is taken to be
    /// given now, so that the dead hold nothing for as long as the step was.
    fn goes_on(&mut self, now: i64, clamped: &mut bool) -> bool {
        *clamped |= self.since > now;
        self.since = self.since.min(now);
        self.expires() > now
    }
}

impl State {
    /// What is left of it at this time.
    ///
    /// # Errors
    /// `Corrupt` if it is something else.
    pub(crate) fn read(state: Option<&[u8]>, now: i64) -> Result<Self> {
        let mut read = state.map(Self::parse).transpose()?.unwrap_or_default();
        read.let_go(now);
        Ok(read)
    }

    /// Drops the holders whose terms are over, and those first in line whose places are.
    ///
    /// Behind the first in line places may be over too, until they are first or the line is [swept](Self::sweep).
    pub(crate) fn let_go(&mut self, now: i64) {
        let clamped = &mut self.clamped;
        self.holders.retain_mut(|holder| holder.term.goes_on(now, clamped));
        self.pass_over(now);
    }

    /// Drops all in line whose places are over.
    pub(crate) fn sweep(&mut self, now: i64) {
        let clamped = &mut self.clamped;
        self.waiters.retain_mut(|waiter| waiter.term.goes_on(now, clamped));
    }

    /// Drops those first in line whose places are over.
    fn pass_over(&mut self, now: i64) {
        while let Some(first) = self.waiters.first_mut()
            && !first.term.goes_on(now, &mut self.clamped)
        {
            self.waiters.remove(0);
        }
    }

    /// All of it, what is over included.
    ///
    /// # Errors
    /// `Corrupt` if it is something else.
    pub(crate) fn parse(state: &[u8]) -> Result<Self> {
        let mut fields = Fields::new(OF, state)?.below(LIMIT);
        let mut parsed = Self { last_token: fields.integer()?, ..Self::default() };
        while let Some(kind) = fields.optional::<String>()? {
            match &*kind {
                "H" if parsed.waiters.is_empty() => parsed.holders.push(Holder {
                    owner: fields.word()?.to_owned(),
                    weight: fields.integer()?,
                    token: fields.integer()?,
                    term: Term { ttl: fields.integer()?, since: fields.integer()? },
                    label: fields.word()?.to_owned(),
                }),
                "W" => parsed.waiters.push(Waiter {
                    owner: fields.word()?.to_owned(),
                    weight: fields.integer()?,
                    tokens: fields.integer()?,
                    term: Term { ttl: fields.integer()?, since: fields.integer()? },
                    label: fields.word()?.to_owned(),
                }),
                _ => return Err(corrupt(OF)),
            }
        }
        Ok(parsed)
    }

    pub(crate) fn write(&self) -> String {
        let mut text = self.last_token.to_string();
        for Holder { owner, weight, token, term: Term { ttl, since }, label } in &self.holders {
            let _ = write!(text, " H {owner} {weight} {token} {ttl} {since} {label}");
        }
        for Waiter { owner, weight, tokens, term: Term { ttl, since }, label } in &self.waiters {
            let _ = write!(text, " W {owner} {weight} {tokens} {ttl} {since} {label}");
        }
        text
    }

    /// When the last of the holders' terms is over.
    pub(crate) fn expires(&self) -> Option<i64> {
        self.holders.iter().map(|holder| holder.term.expires()).max()
    }

    /// Grants this for a term, and returns the first of its tokens.
    pub(crate) fn grant(&mut self, waiter: Waiter, now: i64) -> i64 {
        let Waiter { owner, weight, tokens, term, label } = waiter;
        let token = now.max(self.last_token.saturating_add(1));
        self.last_token = token.saturating_add(tokens - 1);
        self.holders.push(Holder { owner, weight, token, term, label });
        token
    }

    /// Grants what they want to those who wait, in their order, for as long as their places last: their owners and their
    /// first tokens.
    pub(crate) fn grant_next(&mut self, capacity: i64, now: i64) -> Vec<(String, i64)> {
        let mut granted = Vec::new();
        while self.held() < capacity {
            self.pass_over(now);
            if !self.waiters.first().is_some_and(|next| self.fits(next.weight, 0, capacity)) {
                break;
            }
            let next = self.waiters.remove(0);
            let owner = next.owner.clone();
            granted.push((owner, self.grant(next, now)));
        }
        granted
    }

    fn held(&self) -> i64 {
        self.holders.iter().fold(0, |held: i64, holder| held.saturating_add(holder.weight))
    }

    /// Whether this much fits beside what is held and what the first ones in line want.
    pub(crate) fn fits(&self, weight: i64, ahead: usize, capacity: i64) -> bool {
        let wanted = self.waiters.iter().take(ahead).map(|waiter| waiter.weight);
        wanted.fold(self.held().saturating_add(weight), i64::saturating_add) <= capacity
    }
}
