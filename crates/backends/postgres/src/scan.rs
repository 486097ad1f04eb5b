//! Walks over the keys in their order, page by page: listing, counting, clearing.

use std::{sync::Arc, time::Instant};

use commonhold_core::{Entry, Error, Key, Prefix, Result, Scan};
use futures_util::{StreamExt as _, TryStreamExt as _, stream, stream::BoxStream};

use crate::{connection::Params, shared::Shared, sql::Sql, values};

/// A page ends early when its values come to this.
const PAGE_BYTES: usize = 4 * 1024 * 1024;
/// How many keys are counted in one statement, and how many deleted: each is done within the time for one.
const COUNT_PAGE: i64 = 50_000;
const CLEAR_PAGE: i64 = 5_000;
/// The longest key is shorter, so this comes after every key.
const AFTER_ALL: [u8; Key::MAX_LEN + 1] = [0xff; Key::MAX_LEN + 1];

/// What is left of a range.
#[derive(Debug)]
struct Range {
    from: Vec<u8>,
    /// Whether it begins after `from` or with it.
    after: bool,
    end: Vec<u8>,
}

impl Range {
    fn new(prefix: &Prefix, after: Option<&Key>) -> Self {
        let end = prefix.upper_bound().unwrap_or_else(|| AFTER_ALL.to_vec());
        match after {
            Some(key) if key.as_bytes() >= prefix.as_bytes() => {
                Self { from: key.as_bytes().to_vec(), after: true, end }
            }
            _ => Self { from: prefix.as_bytes().to_vec(), after: false, end },
        }
    }

    fn go_on_after(&mut self, key: &[u8]) {
        self.from = key.to_vec();
        self.after = true;
    }
}

impl Shared {
    /// The entries of a scan. No connection is held between pages.
    pub(crate) fn scan(self: &Arc<Self>, scan: Scan) -> BoxStream<'static, Result<(Key, Entry)>> {
        let range = Range::new(&scan.prefix, scan.after.as_ref());
        let pages = stream::try_unfold(Some((Arc::clone(self), scan, range)), |state| async {
            let Some((shared, scan, mut range)) = state else { return Ok::<_, Error>(None) };
            let (page, is_last) = shared.page(&scan, &mut range).await?;
            Ok(Some((page, (!is_last).then_some((shared, scan, range)))))
        });
        pages.map_ok(|page| stream::iter(unexpired(page)).map(Ok)).try_flatten().boxed()
    }

    async fn page(&self, scan: &Scan, range: &mut Range) -> Result<(Vec<(Key, Entry)>, bool)> {
        let limit = i64::try_from(scan.page).unwrap_or(i64::MAX);
        let (from, end) = (&range.from[..], &range.end[..]);
        let replica = self.replicas.for_any_keys();
        let rows = if scan.keys_only {
            self.query_from(replica, Sql::ScanKeys, &[&from, &range.after, &end, &limit]).await?
        } else {
            let params: Params<'_> = &[&from, &range.after, &end, &limit, &(PAGE_BYTES as i64)];
            self.query_from(replica, Sql::Scan, params).await?
        };
        let (mut page, mut bytes) = (Vec::with_capacity(rows.len()), 0);
        for row in &rows {
            let key = values::key(row, 0)?;
            let entry = if scan.keys_only { values::bare_entry(row, 1)? } else { values::entry(row, 1)? };
            bytes += if scan.keys_only { 0 } else { values::column::<&[u8]>(row, 1)?.len() };
            page.extend(entry.map(|entry| (key, entry)));
        }
        if let Some(last) = rows.last() {
            range.go_on_after(values::column(last, 0)?);
        }
        Ok((page, rows.len() < scan.page && bytes < PAGE_BYTES))
    }

    pub(crate) async fn count(&self, prefix: &Prefix) -> Result<u64> {
        self.sum(Sql::Count, prefix, COUNT_PAGE).await
    }

    pub(crate) async fn clear(&self, prefix: &Prefix) -> Result<u64> {
        self.sum(Sql::Clear, prefix, CLEAR_PAGE).await
    }

    /// What a statement that answers its last key and a number comes to over a whole range.
    async fn sum(&self, sql: Sql, prefix: &Prefix, page: i64) -> Result<u64> {
        let (mut range, mut sum) = (Range::new(prefix, None), 0);
        loop {
            let params: Params<'_> = &[&&range.from[..], &range.after, &&range.end[..], &page];
            let replica = if sql == Sql::Count { self.replicas.for_any_keys() } else { None };
            let rows = self.query_from(replica, sql, params).await?;
            let Some(row) = rows.first() else { return Ok(sum) };
            let number: i64 = values::column(row, 1)?;
            sum += number.unsigned_abs();
            if number < page {
                return Ok(sum);
            }
            range.go_on_after(values::column(row, 0)?);
        }
    }
}

/// The entries of a page that have not expired by the time that they are asked for, with the time they have left then.
fn unexpired(page: Vec<(Key, Entry)>) -> impl Iterator<Item = (Key, Entry)> {
    let read = Instant::now();
    page.into_iter().filter_map(move |(key, mut entry)| {
        if let Some(ttl) = entry.ttl {
            entry.ttl = Some(ttl.checked_sub(read.elapsed()).filter(|left| !left.is_zero())?);
        }
        Some((key, entry))
    })
}
