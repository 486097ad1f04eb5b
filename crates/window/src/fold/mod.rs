//! From events to windows: the state in memory, over the store.

mod aligned;
mod session;

use commonhold_core::{Result, Store, Timestamp, Write};

use self::{aligned::Aligned, session::Sessions};
use crate::{
    aggregate::Plan,
    record::Keys,
    source::{Chunk, Event},
    spec::JobSpec,
    watermark::Watermark,
};

/// What an entry takes in memory beside its key and its aggregate, near enough for a bound.
const ENTRY_BYTES: usize = 160;

/// How many windows may be dirty before a commit. Another chunk may add [`MAX_CHUNK_WINDOWS`]; with deletions and
/// lists of sessions beside them, batches stay below the 65,536 writes that stores take at once.
const MAX_DIRTY: usize = 10_000;

/// How many windows the events of one chunk may touch.
pub(crate) const MAX_CHUNK_WINDOWS: usize = 10_000;

/// The windows that are being worked on.
///
/// Memory is a cache over the store: [`load`](Self::load) reads what the events of a chunk touch,
/// [`fold`](Self::fold) changes it, [`writes`](Self::writes) says what to write, and
/// [`committed`](Self::committed) lets go of what is not needed any more.
pub(crate) struct Folder {
    plan: Plan,
    keys: Keys,
    watermark: Watermark,
    cells: Cells,
    counts: Counts,
    max_bytes: usize,
}

enum Cells {
    Aligned(Aligned),
    Sessions(Sessions),
}

/// How many events were late, and how many windows there are.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Counts {
    pub(crate) late: u64,
    pub(crate) windows: u64,
}

/// What every cell works with.
struct Context<'a> {
    plan: &'a Plan,
    keys: &'a Keys,
}

/// When to look through everything in memory for what is not needed any more: when it has doubled since the last
/// time, so that a commit costs what it writes and not what there is.
#[derive(Default)]
struct Sweep {
    last_bytes: usize,
}

impl Sweep {
    fn is_due(&self, bytes: usize, max_bytes: usize) -> bool {
        const MIN_BYTES: usize = 1024 * 1024;
        bytes > (2 * self.last_bytes).max(MIN_BYTES).min(max_bytes / 2)
    }

    fn done(&mut self, bytes: usize) {
        self.last_bytes = bytes;
    }
}

impl Folder {
    pub(crate) fn new(
        spec: &JobSpec,
        keys: Keys,
        latest: Option<Timestamp>,
        counts: Counts,
        max_bytes: usize,
    ) -> Self {
        let cells = if spec.windows.are_sessions() {
            Cells::Sessions(Sessions::new(spec.windows))
        } else {
            Cells::Aligned(Aligned::new(spec.windows))
        };
        let watermark = Watermark::new(spec.lateness_nanos(), latest);
        Self { plan: spec.plan(), keys, watermark, cells, counts, max_bytes }
    }

    /// Reads what the events of the chunk touch and is not in memory.
    pub(crate) async fn load(&mut self, store: &Store, chunk: &Chunk) -> Result<()> {
        let context = Context { plan: &self.plan, keys: &self.keys };
        match &mut self.cells {
            Cells::Aligned(cells) => cells.load(context, store, chunk, self.watermark).await,
            Cells::Sessions(cells) => cells.load(context, store, chunk, self.watermark).await,
        }
    }

    /// Folds the events of the chunk, which was [loaded](Self::load), and hands over those that are late.
    pub(crate) fn fold(&mut self, chunk: &Chunk, mut late: impl FnMut(Event<'_>)) {
        for event in chunk.events() {
            let in_time = match &mut self.cells {
                Cells::Aligned(cells) => cells.fold(&self.plan, event, self.watermark, &mut self.counts),
                Cells::Sessions(cells) => cells.fold(&self.plan, event, self.watermark, &mut self.counts),
            };
            if !in_time {
                self.counts.late = self.counts.late.saturating_add(1);
                late(event);
            }
            self.watermark.observe(event.time);
        }
    }

    /// What has to be written for the store to be up to date.
    pub(crate) fn writes(&mut self) -> Result<Vec<Write>> {
        let context = Context { plan: &self.plan, keys: &self.keys };
        match &mut self.cells {
            Cells::Aligned(cells) => cells.writes(context),
            Cells::Sessions(cells) => cells.writes(context, self.watermark),
        }
    }

    /// Takes note that the writes were carried out, and makes room.
    pub(crate) fn committed(&mut self) {
        match &mut self.cells {
            Cells::Aligned(cells) => cells.committed(self.watermark, self.max_bytes),
            Cells::Sessions(cells) => cells.committed(self.watermark, self.max_bytes),
        }
    }

    /// Whether a commit is due: memory is used up, or there is as much to write as fits into one batch.
    pub(crate) fn is_full(&self) -> bool {
        let (bytes, dirty) = match &self.cells {
            Cells::Aligned(cells) => (cells.bytes(), cells.dirty()),
            Cells::Sessions(cells) => (cells.bytes(), cells.dirty()),
        };
        bytes > self.max_bytes || dirty > MAX_DIRTY
    }

    pub(crate) fn counts(&self) -> Counts {
        self.counts
    }

    pub(crate) fn latest_event(&self) -> Option<Timestamp> {
        self.watermark.latest()
    }
}
