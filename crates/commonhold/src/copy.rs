//! Copies the entries of one store to another: in batches, with the time they have left, in flat memory. What was
//! interrupted is gone on with, and at the end every entry can be compared.
//!
//! ```
//! # tokio::runtime::Runtime::new().unwrap().block_on(async {
//! use commonhold::{Prefix, copy::Copy};
//!
//! let (old, new) = (commonhold::open("memory:").await?, commonhold::open("memory:").await?);
//! old.put("greeting", "hello").await?;
//!
//! let copy = Copy::new(&old, &new, Prefix::ALL, "old")?;
//! let copied = copy.run(copy.progress().await?, |progress| println!("{} entries", progress.entries)).await?;
//! let compared = copy.compare(|_| ()).await?;
//! assert_eq!((copied.entries, compared.same, compared.different), (1, 1, 0));
//! copy.forget().await?;
//! # Ok::<(), commonhold::Error>(())
//! # }).unwrap();
//! ```

use std::time::{Duration, Instant};

use bytes::Bytes;
use commonhold_core::{Entry, Error, ErrorKind, Expiry, Key, Prefix, PutOptions, Result, Scan, Store, Write};
use futures_util::{TryStreamExt as _, future, stream::BoxStream};
use tokio::sync::mpsc;
use xxhash_rust::xxh3::xxh3_64;

/// Under which the target keeps how far a copy has come. Such keys are not copied themselves.
const PROGRESS: &str = "commonhold/copy/";
/// A batch ends with whichever comes first. The bytes bound the memory.
const BATCH_ENTRIES: usize = 4096;
const BATCH_BYTES: usize = 4 * 1024 * 1024;
/// How many entries are compared at a time.
const COMPARED: usize = 512;
/// By how much the times left may differ, beside the steps in which the stores count them: what passes between two
/// questions.
const TIME_BETWEEN: Duration = Duration::from_secs(2);
/// How many of the keys that differ are named.
const NAMED: usize = 5;

/// What is copied where.
#[derive(Debug)]
pub struct Copy<'a> {
    /// The source, which is only read.
    pub from: &'a Store,
    /// The target. What it has under other keys stays.
    pub to: &'a Store,
    /// Keys that begin with this are copied.
    pub prefix: Prefix,
    progress: Key,
}

/// How far a copy has come.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Progress {
    /// Entries copied so far, by earlier runs too.
    pub entries: u64,
    /// The last key that was copied.
    pub after: Option<Key>,
    /// An earlier run has begun, but its source has no order in which to go on: what the target has already is
    /// not written again.
    pub skips: bool,
    /// Entries that were not written again.
    pub skipped: u64,
}

/// What the comparison at the end found.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Compared {
    /// Entries that are the same on both sides.
    pub same: u64,
    /// Entries that expired or were deleted at the source while they were being compared.
    pub gone: u64,
    /// Entries that the target lacks or has otherwise.
    pub different: u64,
    /// The first of these.
    pub named: Vec<Key>,
    /// How many entries the target has beside these: where it can count, and nothing differs.
    pub further: Option<u64>,
    /// A checksum over keys and values, the same for the same entries in whatever order.
    pub checksum: u64,
}

impl<'a> Copy<'a> {
    /// A copy of the entries with this prefix. `source` is what the source is called, so that a copy of
    /// another source does not go on where this one stopped.
    ///
    /// # Errors
    /// None in practice: the key under which the progress is kept is always valid.
    pub fn new(from: &'a Store, to: &'a Store, prefix: Prefix, source: &str) -> Result<Self> {
        let name = [source.as_bytes(), b"\0", prefix.as_bytes()].concat();
        let progress = Key::new(format!("{PROGRESS}{:016x}", xxh3_64(&name)))?;
        Ok(Self { from, to, prefix, progress })
    }

    /// How far an earlier run has come. From the beginning if the source cannot begin behind a key; but then
    /// what is there already is only compared.
    ///
    /// # Errors
    /// `Corrupt` if the record of it is damaged, and whatever reading it brings.
    pub async fn progress(&self) -> Result<Progress> {
        match self.to.get(&self.progress).await? {
            Some(record) if self.from.capabilities().ordered_scan => {
                Progress::decode(&record).ok_or_else(|| {
                    let message = "the record of how far the copy has come is damaged; --restart begins anew";
                    Error::new(ErrorKind::Corrupt, message).with_key(&self.progress)
                })
            }
            record => Ok(Progress { skips: record.is_some(), ..Progress::default() }),
        }
    }

    /// Forgets how far an earlier run has come: before a copy that is to begin anew, and once one is done.
    ///
    /// # Errors
    /// Whatever deleting the record brings.
    pub async fn forget(&self) -> Result<()> {
        self.to.delete(&self.progress).await.map(drop)
    }

    /// Copies what lies behind `start`, and tells after each batch how far it is.
    ///
    /// The progress is committed with the batch, or behind it where the target has no atomic batches. Dropped in the
    /// middle or killed, a next run goes on there.
    ///
    /// # Errors
    /// The first of reading or writing. What is written by then stays.
    pub async fn run(&self, start: Progress, mut copied: impl FnMut(&Progress)) -> Result<Progress> {
        let scan = Scan { after: start.after.clone(), ..Scan::prefix(self.prefix.clone()) };
        let (sender, mut batches) = mpsc::channel(1);
        let read = read_batches(self.from.scan(scan), sender);
        let write = async {
            let mut progress = start;
            if !self.from.capabilities().ordered_scan {
                self.to.put(&self.progress, "begun").await?;
            }
            while let Some(batch) = batches.recv().await {
                progress = self.write_batch(batch, progress).await?;
                copied(&progress);
            }
            Ok(progress)
        };
        let ((), progress) = future::try_join(read, write).await?;
        Ok(progress)
    }

    async fn write_batch(&self, mut batch: Vec<Read>, before: Progress) -> Result<Progress> {
        let entries = before.entries + batch.len() as u64;
        let mut progress = Progress { entries, after: batch.last().map(|(key, ..)| key.clone()), ..before };
        if progress.skips {
            let read = batch.len();
            batch = self.missing(batch).await?;
            progress.skipped += (read - batch.len()) as u64;
        }
        let put = |(key, entry, read): Read| {
            let left = entry.ttl.map(|ttl| ttl.saturating_sub(read.elapsed()));
            let options = PutOptions::default().expiry(Expiry::from(left));
            (left != Some(Duration::ZERO)).then_some(Write::Put { key, value: entry.value, options })
        };
        let mut writes: Vec<_> = batch.into_iter().filter_map(put).collect();
        let record = Write::put(self.progress.clone(), progress.encode());
        match (self.from.capabilities().ordered_scan, self.to.capabilities().atomic_batch) {
            (true, true) => writes.push(record),
            // Not before the entries: one copied twice is the same, one left out is lost.
            (true, false) => {
                self.to.write_batch(writes).await?;
                writes = vec![record];
            }
            (false, _) => {}
        }
        self.to.write_batch(writes).await?;
        Ok(progress)
    }

    /// Those of the entries that the target lacks or has otherwise.
    async fn missing(&self, batch: Vec<Read>) -> Result<Vec<Read>> {
        let keys: Vec<_> = batch.iter().map(|(key, ..)| key.clone()).collect();
        let copies = self.to.backend().get_many(&keys).await?;
        let is_missing = |(entry, copy): (Read, Option<Entry>)| {
            let is_there = copy.is_some_and(|copy| self.is_copy(&entry.1, &copy));
            (!is_there).then_some(entry)
        };
        Ok(batch.into_iter().zip(copies).filter_map(is_missing).collect())
    }

    /// Compares every entry of the source with that of the target, and tells of each page.
    ///
    /// An entry that is not the same at first sight is read again on both sides: it may have expired or
    /// changed in between.
    ///
    /// # Errors
    /// Whatever reading either side brings.
    pub async fn compare(&self, mut compared: impl FnMut(u64)) -> Result<Compared> {
        let mut result = Compared::default();
        let mut pages = entries(self.from.scan(Scan::prefix(self.prefix.clone()))).try_chunks(COMPARED);
        while let Some(page) = pages.try_next().await.map_err(|error| error.1)? {
            let keys: Vec<_> = page.iter().map(|(key, _)| key.clone()).collect();
            let copies = self.to.backend().get_many(&keys).await?;
            for ((key, entry), copy) in page.into_iter().zip(copies) {
                self.compare_one(&mut result, key, &entry, copy.as_ref()).await?;
            }
            compared(keys.len() as u64);
        }
        if result.different == 0 && self.to.capabilities().scan {
            let count = self.to.count(&self.prefix).await?;
            let own = self.progress.starts_with(&self.prefix) && self.to.contains(&self.progress).await?;
            result.further = Some(count.saturating_sub(result.same + u64::from(own)));
        }
        Ok(result)
    }

    async fn compare_one(
        &self,
        result: &mut Compared,
        key: Key,
        entry: &Entry,
        copy: Option<&Entry>,
    ) -> Result<()> {
        let same = copy.is_some_and(|copy| self.is_copy(entry, copy)) || {
            let now = self.from.get_entry(&key).await?;
            let copy = self.to.get_entry(&key).await?;
            match (now, copy) {
                (None, _) => {
                    result.gone += 1;
                    return Ok(());
                }
                (Some(now), Some(copy)) => self.is_copy(&now, &copy),
                (Some(_), None) => false,
            }
        };
        if same {
            result.same += 1;
            result.checksum = result.checksum.wrapping_add(checksum(&key, &entry.value));
        } else {
            result.different += 1;
            if result.named.len() < NAMED {
                result.named.push(key);
            }
        }
        Ok(())
    }

    /// Whether both have the same value and, about, the same time left.
    fn is_copy(&self, entry: &Entry, copy: &Entry) -> bool {
        let steps = [self.from, self.to].map(|store| store.capabilities().ttl_resolution);
        let times_agree = match (entry.ttl, copy.ttl) {
            (Some(left), Some(copied)) => {
                left.abs_diff(copied) <= TIME_BETWEEN + 2 * steps.into_iter().max().unwrap_or_default()
            }
            (left, copied) => left == copied,
        };
        entry.value == copy.value && times_agree
    }
}

fn checksum(key: &Key, value: &[u8]) -> u64 {
    xxhash_rust::xxh3::xxh3_64_with_seed(value, xxh3_64(key.as_bytes()))
}

/// Without the records of copies, and what has just expired.
fn entries(scan: BoxStream<'static, Result<(Key, Entry)>>) -> BoxStream<'static, Result<(Key, Entry)>> {
    let copied = |(key, entry): &(Key, Entry)| {
        !key.as_bytes().starts_with(PROGRESS.as_bytes()) && entry.ttl != Some(Duration::ZERO)
    };
    Box::pin(scan.try_filter(move |entry| future::ready(copied(entry))))
}

/// An entry, and when it was read: from then on its time runs.
type Read = (Key, Entry, Instant);

async fn read_batches(
    scan: BoxStream<'static, Result<(Key, Entry)>>,
    batches: mpsc::Sender<Vec<Read>>,
) -> Result<()> {
    let mut scan = entries(scan);
    let (mut batch, mut bytes) = (Vec::new(), 0);
    while let Some((key, entry)) = scan.try_next().await? {
        bytes += key.as_bytes().len() + entry.value.len();
        batch.push((key, entry, Instant::now()));
        if batch.len() >= BATCH_ENTRIES || bytes >= BATCH_BYTES {
            bytes = 0;
            if batches.send(std::mem::take(&mut batch)).await.is_err() {
                // The writer has failed, and says why.
                return Ok(());
            }
        }
    }
    if !batch.is_empty() {
        let _writer_failed = batches.send(batch).await;
    }
    Ok(())
}

impl Progress {
    fn encode(&self) -> Bytes {
        let after = self.after.as_ref().map_or(&[][..], Key::as_bytes);
        [&self.entries.to_le_bytes()[..], after].concat().into()
    }

    fn decode(record: &[u8]) -> Option<Self> {
        let (entries, after) = record.split_first_chunk()?;
        let after = Some(Key::new(after).ok()?);
        Some(Self { entries: u64::from_le_bytes(*entries), after, ..Self::default() })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use commonhold_core::{ManualClock, MemoryBackend};

    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    fn stores() -> (Store, Store, Arc<ManualClock>) {
        let clock = Arc::new(ManualClock::default());
        let store = || Store::new(MemoryBackend::builder().clock(clock.clone()).build());
        (store(), store(), clock)
    }

    async fn fill(store: &Store, entries: u32) {
        let put = |i: u32| {
            let ttl = i.is_multiple_of(2).then_some(MINUTE);
            let key = Key::new([b"k".as_slice(), &i.to_be_bytes()].concat()).unwrap();
            Write::Put {
                key,
                value: i.to_le_bytes().to_vec().into(),
                options: PutOptions::default().expiry(ttl.into()),
            }
        };
        store.write_batch((0..entries).map(put).collect()).await.unwrap();
    }

    async fn contents(store: &Store) -> Vec<(Key, Entry)> {
        store.scan(Scan::prefix(Prefix::ALL)).try_collect().await.unwrap()
    }

    #[tokio::test]
    async fn every_entry_arrives_with_the_time_it_has_left() {
        let (from, to, clock) = stores();
        fill(&from, 10_000).await;
        clock.advance(MINUTE / 4);
        let copy = Copy::new(&from, &to, Prefix::ALL, "from").unwrap();
        let progress = copy.run(copy.progress().await.unwrap(), |_| ()).await.unwrap();
        assert_eq!(progress.entries, 10_000);
        let compared = copy.compare(|_| ()).await.unwrap();
        assert_eq!((compared.same, compared.different, compared.further), (10_000, 0, Some(0)));
        copy.forget().await.unwrap();
        let (from, to) = (contents(&from).await, contents(&to).await);
        assert_eq!(from.len(), to.len());
        for ((key, entry), (copied_key, copy)) in from.iter().zip(&to) {
            assert_eq!((key, &entry.value), (copied_key, &copy.value));
            // Less what passed between reading and writing, by the clock on the wall.
            let passed = entry.ttl.unwrap_or_default().checked_sub(copy.ttl.unwrap_or_default());
            assert!(entry.ttl.is_some() == copy.ttl.is_some() && passed.unwrap() < MINUTE / 4);
        }
    }

    #[tokio::test]
    async fn only_the_prefix_is_copied_and_what_else_the_target_has_is_counted() {
        let (from, to, _) = stores();
        from.batch_put([("a1", "1"), ("a2", "2"), ("b1", "3")]).await.unwrap();
        to.batch_put([("a0", "0"), ("c", "4")]).await.unwrap();
        let copy = Copy::new(&from, &to, Prefix::new("a").unwrap(), "from").unwrap();
        copy.run(Progress::default(), |_| ()).await.unwrap();
        let compared = copy.compare(|_| ()).await.unwrap();
        assert_eq!((compared.same, compared.further), (2, Some(1)));
        assert!(!to.contains("b1").await.unwrap());
    }

    #[tokio::test]
    async fn an_interrupted_copy_goes_on_behind_the_last_batch() {
        let (from, to, _) = stores();
        fill(&from, 10_000).await;
        let copy = Copy::new(&from, &to, Prefix::ALL, "from").unwrap();
        let (sender, mut first_batch) = mpsc::unbounded_channel();
        let run = copy.run(Progress::default(), |progress| drop(sender.send(progress.clone())));
        let stopped = tokio::select! {
            biased;
            Some(progress) = first_batch.recv() => progress,
            _ = run => panic!("the copy was not interrupted"),
        };
        assert_eq!(stopped.entries, BATCH_ENTRIES as u64);

        let start = copy.progress().await.unwrap();
        assert_eq!(start, stopped);
        let other = Copy::new(&from, &to, Prefix::ALL, "another source").unwrap();
        assert_eq!(other.progress().await.unwrap(), Progress::default());
        // What was copied before is not copied again.
        to.delete(&start.after.clone().unwrap()).await.unwrap();
        let progress = copy.run(start, |_| ()).await.unwrap();
        assert_eq!(progress.entries, 10_000);
        assert_eq!(copy.compare(|_| ()).await.unwrap().different, 1);
    }

    #[tokio::test]
    async fn what_differs_is_found_and_what_expired_is_not_a_difference() {
        let (from, to, clock) = stores();
        fill(&from, 100).await;
        let copy = Copy::new(&from, &to, Prefix::ALL, "from").unwrap();
        copy.run(Progress::default(), |_| ()).await.unwrap();
        clock.advance(MINUTE);
        assert_eq!(copy.compare(|_| ()).await.unwrap().same, 50);

        let keys: Vec<Key> = from.list_keys("").unwrap().try_collect().await.unwrap();
        to.put(&keys[3], "other").await.unwrap();
        to.delete(&keys[7]).await.unwrap();
        to.expire(&keys[9], MINUTE).await.unwrap();
        let compared = copy.compare(|_| ()).await.unwrap();
        assert_eq!((compared.same, compared.different), (47, 3));
        assert_eq!(compared.named, [keys[3].clone(), keys[7].clone(), keys[9].clone()]);
    }

    #[tokio::test]
    async fn a_copy_that_is_to_expire_at_another_time_is_no_copy_and_is_made_again() {
        let (from, to, _) = stores();
        from.put_with_ttl("session", "v", MINUTE).await.unwrap();
        let copy = Copy::new(&from, &to, Prefix::ALL, "from").unwrap();
        copy.run(Progress::default(), |_| ()).await.unwrap();
        assert_eq!(copy.compare(|_| ()).await.unwrap().different, 0);

        from.expire("session", MINUTE * 60).await.unwrap();
        assert_eq!(copy.compare(|_| ()).await.unwrap().different, 1);
        let again = Progress { skips: true, ..Progress::default() };
        assert_eq!(copy.run(again, |_| ()).await.unwrap().skipped, 0);
        assert_eq!(copy.compare(|_| ()).await.unwrap().different, 0);
        assert!(to.ttl("session").await.unwrap().unwrap().unwrap() > MINUTE * 59);
    }

    #[tokio::test]
    async fn the_checksum_depends_on_keys_and_values() {
        let checksum = async |entries: &[(&'static str, &'static str)]| {
            let (from, to, _) = stores();
            from.batch_put(entries.iter().copied()).await.unwrap();
            let copy = Copy::new(&from, &to, Prefix::ALL, "from").unwrap();
            copy.run(Progress::default(), |_| ()).await.unwrap();
            copy.compare(|_| ()).await.unwrap().checksum
        };
        let same = checksum(&[("a", "1"), ("b", "2")]).await;
        assert_eq!(checksum(&[("b", "2"), ("a", "1")]).await, same);
        assert_ne!(checksum(&[("a", "2"), ("b", "1")]).await, same);
        assert_ne!(checksum(&[("a", "1"), ("c", "2")]).await, same);
    }

    #[tokio::test]
    async fn a_damaged_record_of_the_progress_is_an_error() {
        let (from, to, _) = stores();
        let copy = Copy::new(&from, &to, Prefix::ALL, "from").unwrap();
        for record in [&b"short"[..], &[0; 8], &[7; 2000]] {
            to.put(&copy.progress, record.to_vec()).await.unwrap();
            assert_eq!(copy.progress().await.unwrap_err().kind(), ErrorKind::Corrupt);
        }
        copy.forget().await.unwrap();
        assert_eq!(copy.progress().await.unwrap(), Progress::default());
    }
}
