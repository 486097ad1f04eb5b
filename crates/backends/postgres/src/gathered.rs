//! Single reads and single puts that are made at the same time, as one statement.

use std::{collections::HashMap, sync::Arc};

use bytes::Bytes;
use commonhold_core::{Condition, Entry, Gather, Key, Result};
use foldhash::fast::RandomState;
use tokio_postgres::types::ToSql;

use crate::{
    error,
    lanes::Lanes,
    sql::Sql,
    values,
    ways::{WAYS, Ways, pick},
    write::Single,
};

/// How many travel together at most.
const MAX: usize = 256;

/// A value that is put in any case.
#[derive(Debug, Clone)]
pub(crate) struct PlainPut {
    pub(crate) key: Key,
    pub(crate) value: Bytes,
    pub(crate) ttl_micros: Option<i64>,
}

impl PlainPut {
    /// Longer values travel alone: nobody waits for them, and a statement stays small.
    pub(crate) const MAX_GATHERED_BYTES: usize = 64 * 1024;

    /// The statement for it alone.
    pub(crate) fn single(&self) -> Single<'_> {
        Single::put(&self.key, &self.value, self.ttl_micros, false, &Condition::Always)
    }
}

/// Puts as the parameters of one statement.
#[derive(Debug)]
pub(crate) struct Arrays<'a> {
    keys: Vec<&'a [u8]>,
    values: Vec<&'a [u8]>,
    ttls: Option<Vec<Option<i64>>>,
}

impl<'a> Arrays<'a> {
    /// Of puts in the order of their keys, each once.
    pub(crate) fn new(puts: &[&'a PlainPut]) -> Self {
        let expires = puts.iter().any(|put| put.ttl_micros.is_some());
        Self {
            keys: puts.iter().map(|put| put.key.as_bytes()).collect(),
            values: puts.iter().map(|put| &put.value[..]).collect(),
            ttls: expires.then(|| puts.iter().map(|put| put.ttl_micros).collect()),
        }
    }

    pub(crate) fn sql(&self) -> Sql {
        if self.ttls.is_some() { Sql::PutMany } else { Sql::PutManyForever }
    }

    pub(crate) fn params(&self) -> Vec<&(dyn ToSql + Sync)> {
        let mut params: Vec<&(dyn ToSql + Sync)> = vec![&self.keys, &self.values];
        params.extend(self.ttls.as_ref().map(|ttls| ttls as &(dyn ToSql + Sync)));
        params
    }
}

/// The calls that are under way.
#[derive(Debug)]
pub(crate) struct Gathered {
    gets: [Gather<Key, Option<Entry>>; WAYS],
    /// Answers whether it was carried out: not if somebody holds a lock on one of the rows.
    puts: [Gather<PlainPut, bool>; WAYS],
    reading: Ways,
    writing: Ways,
}

impl Gathered {
    pub(crate) fn new(lanes: &Arc<Lanes>) -> Self {
        Self {
            gets: std::array::from_fn(|way| {
                let lanes = Arc::clone(lanes);
                Gather::new(MAX, move |keys| get(Arc::clone(&lanes), way, keys))
            }),
            puts: std::array::from_fn(|way| {
                let lanes = Arc::clone(lanes);
                Gather::new(MAX, move |puts| put(Arc::clone(&lanes), way, puts))
            }),
            reading: Ways::of_reads(),
            writing: Ways::of_puts(),
        }
    }

    pub(crate) async fn get(&self, key: &Key) -> Result<Option<Entry>> {
        let way = self.reading.choose(key);
        pick(&self.gets, way.number).call(key.clone()).await
    }

    pub(crate) async fn put(&self, put: PlainPut) -> Result<bool> {
        let way = self.writing.choose(&put.key);
        pick(&self.puts, way.number).call(put).await
    }
}

async fn get(lanes: Arc<Lanes>, way: usize, keys: Vec<Key>) -> Result<Vec<Result<Option<Entry>>>> {
    let connection = lanes.reads(way).await?;
    if let [key] = &keys[..] {
        let rows = connection.query(Sql::Get, &[&key.as_bytes()]).await?;
        return Ok(vec![rows.first().map_or(Ok(None), |row| values::entry(row, 0))]);
    }
    let rows = connection.query(Sql::GetMany, &[&bytes(&keys)]).await?;
    let found = entries(&rows)?;
    Ok(keys.iter().map(|key| Ok(found.get(key.as_bytes()).cloned())).collect())
}

/// The keys as a parameter.
pub(crate) fn bytes(keys: &[Key]) -> Vec<&[u8]> {
    keys.iter().map(Key::as_bytes).collect()
}

/// The entries in rows of [`Sql::GetMany`], by their keys.
pub(crate) fn entries(rows: &[tokio_postgres::Row]) -> Result<HashMap<&[u8], Entry, RandomState>> {
    let mut found = HashMap::with_capacity_and_hasher(rows.len(), RandomState::default());
    for row in rows {
        if let Some(entry) = values::entry(row, 1)? {
            found.insert(values::column(row, 0)?, entry);
        }
    }
    Ok(found)
}

async fn put(lanes: Arc<Lanes>, way: usize, puts: Vec<PlainPut>) -> Result<Vec<Result<bool>>> {
    let connection = lanes.writes(way).await?;
    let executed = match &puts[..] {
        [put] => {
            let single = put.single();
            connection.execute(single.sql, &single.params()).await
        }
        puts => {
            let arrays = Arrays::new(&last_of_each(puts));
            connection.execute(arrays.sql(), &arrays.params()).await
        }
    };
    match executed {
        Ok(_) => Ok(puts.iter().map(|_| Ok(true)).collect()),
        Err(error) if error::is_locked_out(&error) || error::is_deadlock(&error) => {
            Ok(puts.iter().map(|_| Ok(false)).collect())
        }
        Err(error) => Err(error),
    }
}

/// The last put of each key, in the order of keys: in this order everybody locks rows.
pub(crate) fn last_of_each<'a>(puts: impl IntoIterator<Item = &'a PlainPut>) -> Vec<&'a PlainPut> {
    let mut last: Vec<&PlainPut> = puts.into_iter().collect();
    last.reverse();
    last.sort_by(|one, other| one.key.cmp(&other.key));
    last.dedup_by(|earlier, kept| earlier.key == kept.key);
    last
}
