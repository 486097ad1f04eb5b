//! The state of a lease as it lies in the store.

use std::fmt::Write as _;

use commonhold_core::Result;

use crate::state::{Fields, corrupt};

/// What errors call it.
pub(super) const OF: &str = "a lock, a semaphore or an election";

/// Who holds and who waits.
///
/// As text: the greatest token, then `H owner weight token ttl expires label` for each holder, then
/// `W owner weight ttl expires` for each who waits, with one space between all, and times in microseconds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct State {
    /// The greatest token that was given.
    pub(crate) last_token: i64,
    pub(crate) holders: Vec<Holder>,
    /// In the order in which they came.
    pub(crate) waiters: Vec<Waiter>,
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
    pub(crate) term: Term,
}

/// How long something is valid unless it is renewed, and until when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Term {
    pub(crate) ttl: i64,
    pub(crate) expires: i64,
}

impl Term {
    pub(crate) fn new(ttl: i64, now: i64) -> Self {
        Self { ttl, expires: now + ttl }
    }

    /// Whether it goes on. What expires later than it could if it were given now was given before the clock stepped
    /// back: it is taken to be given now, so that the dead hold nothing for as long as the step was.
    fn goes_on(&mut self, now: i64) -> bool {
        self.expires = self.expires.min(now + self.ttl);
        self.expires > now
    }
}

impl State {
    /// What is left of it at this time.
    ///
    /// # Errors
    /// `Corrupt` if it is something else.
    pub(crate) fn read(state: Option<&[u8]>, now: i64) -> Result<Self> {
        let mut read = state.map(Self::parse).transpose()?.unwrap_or_default();
        read.holders.retain_mut(|holder| holder.term.goes_on(now));
        read.waiters.retain_mut(|waiter| waiter.term.goes_on(now));
        Ok(read)
    }

    /// All of it, what is over included.
    ///
    /// # Errors
    /// `Corrupt` if it is something else.
    pub(crate) fn parse(state: &[u8]) -> Result<Self> {
        let mut fields = Fields::new(OF, state)?;
        let mut parsed = Self { last_token: fields.integer()?, ..Self::default() };
        while let Some(kind) = fields.optional::<String>()? {
            match &*kind {
                "H" if parsed.waiters.is_empty() => parsed.holders.push(Holder {
                    owner: fields.word()?.to_owned(),
                    weight: fields.integer()?,
                    token: fields.integer()?,
                    term: Term { ttl: fields.integer()?, expires: fields.integer()? },
                    label: fields.word()?.to_owned(),
                }),
                "W" => parsed.waiters.push(Waiter {
                    owner: fields.word()?.to_owned(),
                    weight: fields.integer()?,
                    term: Term { ttl: fields.integer()?, expires: fields.integer()? },
                }),
                _ => return Err(corrupt(OF)),
            }
        }
        Ok(parsed)
    }

    pub(crate) fn write(&self) -> String {
        let mut text = self.last_token.to_string();
        for Holder { owner, weight, token, term: Term { ttl, expires }, label } in &self.holders {
            let _ = write!(text, " H {owner} {weight} {token} {ttl} {expires} {label}");
        }
        for Waiter { owner, weight, term: Term { ttl, expires } } in &self.waiters {
            let _ = write!(text, " W {owner} {weight} {ttl} {expires}");
        }
        text
    }

    /// When the last term is over.
    pub(crate) fn expires(&self) -> Option<i64> {
        let holders = self.holders.iter().map(|holder| holder.term.expires);
        holders.chain(self.waiters.iter().map(|waiter| waiter.term.expires)).max()
    }

    /// Those who wait and would be given what they want now, in their order.
    pub(crate) fn next(&self, capacity: i64) -> impl Iterator<Item = &str> {
        let mut free = capacity.saturating_sub(self.held());
        self.waiters.iter().map_while(move |waiter| {
            free = free.saturating_sub(waiter.weight);
            (free >= 0).then_some(&*waiter.owner)
        })
    }

    fn held(&self) -> i64 {
        self.holders.iter().fold(0, |held: i64, holder| held.saturating_add(holder.weight))
    }

    /// Whether this much fits beside what is held.
    pub(crate) fn fits(&self, weight: i64, capacity: i64) -> bool {
        self.held().saturating_add(weight) <= capacity
    }
}
