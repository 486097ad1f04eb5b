//! Windows that last as long as events keep coming: sessions.

use std::ops::Range;

use commonhold_core::{Error, ErrorKind, Key, Result, Store, Timestamp, Write};
use foldhash::fast::RandomState;
use hashbrown::HashMap;

use super::{Context, Counts, ENTRY_BYTES, Sweep};
use crate::{
    aggregate::{Aggregate, Plan},
    assign::{Interval, Windows},
    record::{decode_window, encode_window},
    source::{Chunk, Event},
    watermark::Watermark,
};

/// The open sessions in memory, by event key.
///
/// In the store each session is a window like others, under its start. Beside them lies, for each event key, the
/// list of its open sessions, by which they are found. Of a key that has no more events the last list stays, so there
/// are never more lists than sessions.
///
/// An event joins the open sessions that it is less than the gap away from; they become one. It is late when the
/// session that it would make alone is closed and it does not lie within an open one. So no session ever begins
/// where a closed one began: what is closed stays as it is.
pub(super) struct Sessions {
    windows: Windows,
    keys: HashMap<Box<[u8]>, KeySessions, RandomState>,
    bytes: usize,
    /// Those that have to be written.
    dirty: Vec<Box<[u8]>>,
    /// How many of their sessions have to.
    dirty_sessions: usize,
    sweep: Sweep,
}

/// The sessions of one event key.
#[derive(Default)]
struct KeySessions {
    /// By start; open ones do not overlap. Closed ones, which come before them, stay for a while.
    sessions: Vec<Session>,
    /// Starts under which the store has sessions that were merged into others.
    merged: Vec<Timestamp>,
    /// Whether the store has a list.
    listed: bool,
    dirty: bool,
    bytes: usize,
}

struct Session {
    interval: Interval,
    aggregate: Aggregate,
    stored: bool,
    dirty: bool,
}

impl Sessions {
    pub(super) fn new(windows: Windows) -> Self {
        Self {
            windows,
            keys: HashMap::default(),
            bytes: 0,
            dirty: Vec::new(),
            dirty_sessions: 0,
            sweep: Sweep::default(),
        }
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// How many sessions have to be written, each of them with a list of its key.
    pub(super) fn dirty(&self) -> usize {
        self.dirty_sessions
    }

    /// Reads the lists of the keys that are not in memory, then the sessions on them that are open.
    pub(super) async fn load(
        &mut self,
        context: Context<'_>,
        store: &Store,
        chunk: &Chunk,
        watermark: Watermark,
    ) -> Result<()> {
        let mut missing: Vec<&[u8]> = Vec::new();
        for event in chunk.events() {
            if !self.keys.contains_key(event.key) {
                self.keys.insert(event.key.into(), KeySessions::default());
                missing.push(event.key);
            }
        }
        let lists = missing.iter().map(|key| context.keys.open_sessions(key)).collect::<Result<Vec<_>>>()?;
        if lists.is_empty() {
            return Ok(());
        }
        let mut open = Vec::new();
        for ((key, list), value) in missing.iter().zip(&lists).zip(store.batch_get(&lists).await?) {
            let Some(value) = value else { continue };
            if let Some(sessions) = self.keys.get_mut(*key) {
                sessions.listed = true;
            }
            for interval in decode_list(&value, list)? {
                if !watermark.has_closed(interval) {
                    open.push((*key, interval, context.keys.window(interval.start, key)?));
                }
            }
        }
        let keys: Vec<Key> = open.iter().map(|(_, _, key)| key.clone()).collect();
        for ((key, interval, stored), value) in open.into_iter().zip(store.batch_get(&keys).await?) {
            let value = value.ok_or_else(|| {
                Error::new(ErrorKind::Corrupt, "an open session is listed but not there").with_key(&stored)
            })?;
            let (_, aggregate) = decode_window(&value, context.plan, &stored)?;
            if let Some(sessions) = self.keys.get_mut(key) {
                sessions.sessions.push(Session { interval, aggregate, stored: true, dirty: false });
            }
        }
        for key in missing {
            self.measure(key);
        }
        Ok(())
    }

    /// Folds an event into its session. Says whether it was in time.
    pub(super) fn fold(
        &mut self,
        plan: &Plan,
        event: Event<'_>,
        watermark: Watermark,
        counts: &mut Counts,
    ) -> bool {
        let Some(alone) = self.windows.assign(event.time).next() else { return false };
        let Some(key) = self.keys.get_mut(event.key) else {
            debug_assert!(false, "a key was not loaded");
            return true;
        };
        let range = key.joined_by(alone, watermark);
        let lies_in_open = || {
            key.sessions
                .get(range.clone())
                .into_iter()
                .flatten()
                .any(|open| open.interval.contains(event.time))
        };
        if watermark.has_closed(alone) && !lies_in_open() {
            return false;
        }
        let place = range.start;
        let mut joined = key.sessions.drain(range);
        let mut session = joined.next().unwrap_or_else(|| {
            counts.windows = counts.windows.saturating_add(1);
            let aggregate = Aggregate::new(plan);
            let bytes = ENTRY_BYTES + aggregate.memory() + plan.first_bytes();
            self.bytes += bytes;
            key.bytes += bytes;
            Session { interval: alone, aggregate, stored: false, dirty: false }
        });
        for other in joined {
            session.aggregate.merge(plan, &other.aggregate);
            session.interval = session.interval.union(other.interval);
            counts.windows = counts.windows.saturating_sub(1);
            key.merged.extend(other.stored.then_some(other.interval.start));
        }
        if session.stored && alone.start < session.interval.start {
            key.merged.push(session.interval.start);
            session.stored = false;
        }
        session.interval = session.interval.union(alone);
        session.aggregate.fold(plan, event.values);
        self.dirty_sessions += usize::from(!session.dirty);
        session.dirty = true;
        key.sessions.insert(place, session);
        if !key.dirty {
            key.dirty = true;
            self.dirty.push(event.key.into());
        }
        true
    }

    pub(super) fn writes(&mut self, context: Context<'_>, watermark: Watermark) -> Result<Vec<Write>> {
        let mut writes = Vec::new();
        for key in std::mem::take(&mut self.dirty) {
            let Some(sessions) = self.keys.get_mut(&key) else { continue };
            for start in &sessions.merged {
                writes.push(Write::delete(context.keys.window(*start, &key)?));
            }
            for session in sessions.sessions.iter().filter(|session| session.dirty) {
                let value = encode_window(session.interval.end, &session.aggregate)?;
                writes.push(Write::put(context.keys.window(session.interval.start, &key)?, value));
            }
            let open = sessions.sessions.iter().map(|session| session.interval);
            let open: Vec<Interval> = open.filter(|interval| !watermark.has_closed(*interval)).collect();
            let list = context.keys.open_sessions(&key)?;
            if !open.is_empty() {
                writes.push(Write::put(list, encode_list(&open)?));
            } else if sessions.listed {
                writes.push(Write::delete(list));
            }
            sessions.listed = !open.is_empty();
            self.measure(&key);
            self.dirty.push(key);
        }
        Ok(writes)
    }

    /// Lets go of closed sessions; if it is time, of keys that have no others; if that is not enough, of those that
    /// were not just written; then of all.
    pub(super) fn committed(&mut self, watermark: Watermark, max_bytes: usize) {
        self.dirty_sessions = 0;
        if self.sweep.is_due(self.bytes, max_bytes) {
            self.keys.retain(|_, key| !key.has_ended(watermark));
            self.add_up();
            if self.bytes > max_bytes / 2 {
                self.keys.retain(|_, key| key.dirty);
                self.add_up();
            }
            if self.bytes > max_bytes / 2 {
                self.keys = HashMap::default();
                self.add_up();
            }
            self.sweep.done(self.bytes);
        }
        for key in std::mem::take(&mut self.dirty) {
            if let Some(sessions) = self.keys.get_mut(&key) {
                sessions.committed(watermark);
                self.measure(&key);
            }
        }
    }

    fn add_up(&mut self) {
        self.bytes = self.keys.values().map(|key| key.bytes).sum();
    }

    fn measure(&mut self, key: &[u8]) {
        if let Some(sessions) = self.keys.get_mut(key) {
            let bytes = sessions.memory() + key.len();
            self.bytes = (self.bytes + bytes).saturating_sub(sessions.bytes);
            sessions.bytes = bytes;
        }
    }
}

impl KeySessions {
    /// Which open sessions an event becomes one with that would make this session alone.
    ///
    /// An event is only taken if it comes less than the gap before the watermark or lies in an open session, so open
    /// sessions begin after closed ones: those come first.
    fn joined_by(&self, alone: Interval, watermark: Watermark) -> Range<usize> {
        let closed = self.sessions.partition_point(|session| watermark.has_closed(session.interval));
        let open = self.sessions.get(closed..).unwrap_or_default();
        let before = open.partition_point(|session| session.interval.end <= alone.start);
        let reached = open.partition_point(|session| session.interval.start < alone.end);
        closed + before..closed + reached.max(before)
    }

    fn has_ended(&self, watermark: Watermark) -> bool {
        self.sessions.iter().all(|session| watermark.has_closed(session.interval))
    }

    /// Takes note that everything is stored, and lets go of what is closed.
    fn committed(&mut self, watermark: Watermark) {
        self.sessions.retain(|session| !watermark.has_closed(session.interval));
        self.merged.clear();
        self.dirty = false;
        for session in &mut self.sessions {
            (session.stored, session.dirty) = (true, false);
        }
    }

    fn memory(&self) -> usize {
        let sessions = self.sessions.iter().map(|session| ENTRY_BYTES + session.aggregate.memory());
        ENTRY_BYTES + sessions.sum::<usize>()
    }
}

const LIST_VERSION: u8 = 1;

/// A version, then start and end of each session.
fn encode_list(open: &[Interval]) -> Result<Vec<u8>> {
    let intervals: Vec<(i64, i64)> =
        open.iter().map(|interval| (interval.start.as_nanos(), interval.end.as_nanos())).collect();
    postcard::to_extend(&intervals, vec![LIST_VERSION]).map_err(|error| {
        Error::new(ErrorKind::Serialization, "a list of sessions cannot be written down").with_source(error)
    })
}

fn decode_list(bytes: &[u8], key: &Key) -> Result<Vec<Interval>> {
    let corrupt = || Error::new(ErrorKind::Corrupt, "the list of open sessions is damaged").with_key(key);
    let Some((&LIST_VERSION, bytes)) = bytes.split_first() else { return Err(corrupt()) };
    let (intervals, rest): (Vec<(i64, i64)>, _) = postcard::take_from_bytes(bytes).map_err(|_| corrupt())?;
    let apart = intervals.windows(2).all(|pair| matches!(pair, [(_, end), (start, _)] if end <= start));
    if !rest.is_empty() || !apart || intervals.iter().any(|(start, end)| start >= end) {
        return Err(corrupt());
    }
    let interval =
        |(start, end)| Interval { start: Timestamp::from_nanos(start), end: Timestamp::from_nanos(end) };
    Ok(intervals.into_iter().map(interval).collect())
}
