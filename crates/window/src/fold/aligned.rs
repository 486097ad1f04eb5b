//! Windows that are aligned to the clock: tumbling and hopping.

use std::hash::{Hash, Hasher};

use commonhold_core::{Key, Result, Store, Timestamp, Write};
use foldhash::fast::RandomState;
use hashbrown::{Equivalent, HashMap};

use super::{Context, Counts, ENTRY_BYTES, Sweep};
use crate::{
    aggregate::{Aggregate, Plan},
    assign::{Interval, Windows},
    record::{decode_window, encode_window},
    source::{Chunk, Event},
    watermark::Watermark,
};

/// The windows in memory, by start and event key.
pub(super) struct Aligned {
    windows: Windows,
    cells: HashMap<CellKey, Cell, RandomState>,
    bytes: usize,
    /// Those that have to be written.
    dirty: Vec<CellKey>,
    sweep: Sweep,
}

struct Cell {
    end: Timestamp,
    /// Of no events where the store has no such window.
    aggregate: Aggregate,
    bytes: usize,
    dirty: bool,
}

#[derive(PartialEq, Eq, Clone)]
struct CellKey {
    start: Timestamp,
    key: Box<[u8]>,
}

/// A [`CellKey`] that borrows, so that looking up allocates nothing.
#[derive(PartialEq, Eq, Hash)]
struct CellRef<'a> {
    start: Timestamp,
    key: &'a [u8],
}

impl CellKey {
    fn borrow(&self) -> CellRef<'_> {
        CellRef { start: self.start, key: &self.key }
    }
}

impl Hash for CellKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.borrow().hash(state);
    }
}

impl Equivalent<CellKey> for CellRef<'_> {
    fn equivalent(&self, other: &CellKey) -> bool {
        *self == other.borrow()
    }
}

impl Aligned {
    pub(super) fn new(windows: Windows) -> Self {
        Self { windows, cells: HashMap::default(), bytes: 0, dirty: Vec::new(), sweep: Sweep::default() }
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// How many windows have to be written.
    pub(super) fn dirty(&self) -> usize {
        self.dirty.len()
    }

    pub(super) async fn load(
        &mut self,
        context: Context<'_>,
        store: &Store,
        chunk: &Chunk,
        watermark: Watermark,
    ) -> Result<()> {
        let missing = self.add_missing(&context, chunk, watermark)?;
        if missing.is_empty() {
            return Ok(());
        }
        let (cells, keys): (Vec<CellKey>, Vec<Key>) = missing.into_iter().unzip();
        let values = store.batch_get(&keys).await?;
        for ((cell, key), value) in cells.iter().zip(&keys).zip(values) {
            let (Some(value), Some(cell)) = (value, self.cells.get_mut(&cell.borrow())) else { continue };
            let (_, aggregate) = decode_window(&value, context.plan, key)?;
            let growth = aggregate.memory().saturating_sub(cell.aggregate.memory());
            cell.aggregate = aggregate;
            cell.bytes += growth;
            self.bytes += growth;
        }
        Ok(())
    }

    /// Makes an empty cell for every window that an event of the chunk may touch and that has none.
    fn add_missing(
        &mut self,
        context: &Context<'_>,
        chunk: &Chunk,
        watermark: Watermark,
    ) -> Result<Vec<(CellKey, Key)>> {
        let mut missing = Vec::new();
        for event in chunk.events() {
            for Interval { start, end } in self.windows.assign(event.time) {
                let cell_ref = CellRef { start, key: event.key };
                if watermark.has_closed(Interval { start, end }) || self.cells.contains_key(&cell_ref) {
                    continue;
                }
                let key = || CellKey { start, key: event.key.into() };
                let aggregate = Aggregate::new(context.plan);
                let bytes = ENTRY_BYTES + event.key.len() + aggregate.memory() + context.plan.first_bytes();
                let cell = Cell { end, aggregate, bytes, dirty: false };
                self.bytes += bytes;
                self.cells.insert(key(), cell);
                missing.push((key(), context.keys.window(start, event.key)?));
            }
        }
        Ok(missing)
    }

    /// Folds an event into its windows that are not closed. Says whether there were any.
    pub(super) fn fold(
        &mut self,
        plan: &Plan,
        event: Event<'_>,
        watermark: Watermark,
        counts: &mut Counts,
    ) -> bool {
        let mut in_time = false;
        for window in self.windows.assign(event.time) {
            if watermark.has_closed(window) {
                continue;
            }
            in_time = true;
            let Some(cell) = self.cells.get_mut(&CellRef { start: window.start, key: event.key }) else {
                debug_assert!(false, "a window was not loaded");
                continue;
            };
            if cell.aggregate.count() == 0 {
                counts.windows = counts.windows.saturating_add(1);
            }
            cell.aggregate.fold(plan, event.values);
            if !cell.dirty {
                cell.dirty = true;
                self.dirty.push(CellKey { start: window.start, key: event.key.into() });
            }
        }
        in_time
    }

    pub(super) fn writes(&mut self, context: Context<'_>) -> Result<Vec<Write>> {
        let mut writes = Vec::with_capacity(self.dirty.len() + 1);
        for cell_key in &self.dirty {
            let Some(cell) = self.cells.get_mut(&cell_key.borrow()) else { continue };
            let CellKey { start, key } = cell_key;
            let value = encode_window(cell.end, &cell.aggregate)?;
            writes.push(Write::put(context.keys.window(*start, key)?, value));
            let bytes = ENTRY_BYTES + key.len() + cell.aggregate.memory();
            self.bytes = (self.bytes + bytes).saturating_sub(cell.bytes);
            cell.bytes = bytes;
        }
        Ok(writes)
    }

    /// Lets go of closed windows if it is time; if that is not enough, of those that were not just written; then of
    /// all.
    pub(super) fn committed(&mut self, watermark: Watermark, max_bytes: usize) {
        if self.sweep.is_due(self.bytes, max_bytes) {
            let closed = |key: &CellKey, cell: &Cell| {
                watermark.has_closed(Interval { start: key.start, end: cell.end })
            };
            self.cells.retain(|key, cell| !closed(key, cell));
            self.measure();
            if self.bytes > max_bytes / 2 {
                self.cells.retain(|_, cell| cell.dirty);
                self.measure();
            }
            if self.bytes > max_bytes / 2 {
                self.cells = HashMap::default();
                self.measure();
            }
            self.sweep.done(self.bytes);
        }
        for key in self.dirty.drain(..) {
            if let Some(cell) = self.cells.get_mut(&key.borrow()) {
                cell.dirty = false;
            }
        }
    }

    fn measure(&mut self) {
        self.bytes = self.cells.values().map(|cell| cell.bytes).sum();
    }
}
