//! What the store holds of a job: its record, and the keys of its windows.

use bytes::Bytes;
use commonhold_core::{Error, ErrorKind, Key, Prefix, Result, Store, Timestamp};
use serde::{Deserialize, Serialize};

use crate::{
    aggregate::{Aggregate, Plan},
    spec::{JobName, JobSpec},
};

/// What is written down of a job in one record of JSON: what it does, how far it is, and the position in its input
/// that belongs to its windows.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Record {
    version: u32,
    pub(crate) job: String,
    pub(crate) spec: JobSpec,
    /// Where late events go.
    pub(crate) late_file: Option<String>,
    /// Counts the new beginnings. Windows of each have keys of their own, so that a new beginning is one write.
    pub(crate) generation: u32,
    /// The earliest generation of which something may be left to clear.
    pub(crate) oldest_generation: u32,
    /// The source's own position; `None` before the first commit.
    pub(crate) position: Option<serde_json::Value>,
    /// The time of the latest event, which the watermark follows.
    pub(crate) latest_event_nanos: Option<i64>,
    pub(crate) events: u64,
    pub(crate) late: u64,
    pub(crate) skipped: u64,
    pub(crate) windows: u64,
    /// How much of the late file belongs to the position.
    pub(crate) late_file_bytes: u64,
    /// Whether the position is the end of the input.
    pub(crate) finished: bool,
}

/// What [`Record`]s and the values of windows begin with.
const VERSION: u32 = 1;
const WINDOW_VERSION: u8 = 1;

impl Record {
    pub(crate) fn new(job: &JobName, spec: &JobSpec, late_file: Option<String>) -> Self {
        Self {
            version: VERSION,
            job: job.as_str().to_owned(),
            spec: spec.clone(),
            late_file,
            generation: 0,
            oldest_generation: 0,
            position: None,
            latest_event_nanos: None,
            events: 0,
            late: 0,
            skipped: 0,
            windows: 0,
            late_file_bytes: 0,
            finished: false,
        }
    }

    pub(crate) fn latest_event(&self) -> Option<Timestamp> {
        self.latest_event_nanos.map(Timestamp::from_nanos)
    }

    pub(crate) fn encode(&self) -> Result<Bytes> {
        serde_json::to_vec(self).map(Bytes::from).map_err(|error| {
            Error::new(ErrorKind::Serialization, "the job's record cannot be written down").with_source(error)
        })
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self> {
        let damaged = |problem: String| Error::new(ErrorKind::Corrupt, format!("the job's record {problem}"));
        let version: Version = serde_json::from_slice(bytes)
            .map_err(|error| damaged("is no JSON object with a version".to_owned()).with_source(error))?;
        if version.version != VERSION {
            return Err(damaged(format!("has version {}, this program knows {VERSION}", version.version)));
        }
        let record: Self =
            serde_json::from_slice(bytes).map_err(|error| damaged(format!("is damaged: {error}")))?;
        record.spec.check().map_err(|error| damaged(format!("is damaged: {}", error.message())))?;
        Ok(record)
    }

    /// Reads a job's record, with its bytes as they are stored.
    pub(crate) async fn read(store: &Store, job: &JobName) -> Result<Option<(Self, Bytes)>> {
        let key = job_key(job)?;
        let Some(bytes) = store.get(&key).await? else { return Ok(None) };
        let record = Self::decode(&bytes).map_err(|error| error.with_key(&key))?;
        Ok(Some((record, bytes)))
    }
}

#[derive(Deserialize)]
struct Version {
    version: u32,
}

/// Under which the records of all jobs lie.
pub(crate) const JOBS: &str = "window/jobs/";

pub(crate) fn job_key(job: &JobName) -> Result<Key> {
    Key::new(format!("{JOBS}{}", escaped(job)))
}

/// The job's name without `/`, so that no job's keys are among those of another.
fn escaped(job: &JobName) -> String {
    job.as_str().replace('%', "%25").replace('/', "%2F")
}

/// The keys of one generation of a job's windows.
///
/// `w`, the start as eight bytes in the order of time, and the event key: a scan returns windows by start and then
/// key. `o` and the event key: the open sessions of that key.
#[derive(Debug, Clone)]
pub(crate) struct Keys {
    windows: Prefix,
    open: Prefix,
}

impl Keys {
    pub(crate) fn new(job: &JobName, generation: u32) -> Result<Self> {
        let of = |kind| Prefix::new(format!("window/data/{}/{generation:08x}/{kind}", escaped(job)));
        Ok(Self { windows: of('w')?, open: of('o')? })
    }

    /// What all keys of a generation begin with.
    pub(crate) fn generation(job: &JobName, generation: u32) -> Result<Prefix> {
        Prefix::new(format!("window/data/{}/{generation:08x}/", escaped(job)))
    }

    /// What the keys of all windows begin with.
    pub(crate) fn windows(&self) -> &Prefix {
        &self.windows
    }

    pub(crate) fn window(&self, start: Timestamp, key: &[u8]) -> Result<Key> {
        let mut suffix = Vec::with_capacity(8 + key.len());
        // With the sign bit turned, negative times come before positive ones.
        suffix.extend_from_slice(&(start.as_nanos() ^ i64::MIN).to_be_bytes());
        suffix.extend_from_slice(key);
        self.windows.join(suffix)
    }

    pub(crate) fn open_sessions(&self, key: &[u8]) -> Result<Key> {
        self.open.join(key)
    }

    /// The start and the event key in the key of a window.
    pub(crate) fn parse_window(&self, key: &Key) -> Result<(Timestamp, String)> {
        let parse = || {
            let (start, rest) =
                key.as_bytes().strip_prefix(self.windows.as_bytes())?.split_first_chunk::<8>()?;
            let start = Timestamp::from_nanos(i64::from_be_bytes(*start) ^ i64::MIN);
            Some((start, String::from_utf8(rest.to_vec()).ok()?))
        };
        parse().ok_or_else(|| Error::new(ErrorKind::Corrupt, "this is no key of a window").with_key(key))
    }
}

/// A window's value: a version, then its end and its aggregate.
pub(crate) fn encode_window(end: Timestamp, aggregate: &Aggregate) -> Result<Bytes> {
    postcard::to_extend(&(end.as_nanos(), aggregate), vec![WINDOW_VERSION]).map(Bytes::from).map_err(
        |error| Error::new(ErrorKind::Serialization, "a window cannot be written down").with_source(error),
    )
}

pub(crate) fn decode_window(bytes: &[u8], plan: &Plan, key: &Key) -> Result<(Timestamp, Aggregate)> {
    let corrupt = |problem: &'static str| Error::new(ErrorKind::Corrupt, problem).with_key(key);
    let Some((&WINDOW_VERSION, bytes)) = bytes.split_first() else {
        return Err(corrupt("the stored window has a version that this program does not know"));
    };
    let ((end, aggregate), rest) = postcard::take_from_bytes::<(i64, Aggregate)>(bytes)
        .map_err(|error| corrupt("the stored window is damaged").with_source(error))?;
    if !rest.is_empty() {
        return Err(corrupt("the stored window has bytes behind its end"));
    }
    Ok((Timestamp::from_nanos(end), aggregate.check(plan).map_err(|error| error.with_key(key))?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn keys_of_windows_sort_by_start_and_then_key(a: (i64, String), b: (i64, String)) {
            let keys = Keys::new(&JobName::stdin(), 7).unwrap();
            let key = |(start, key): &(i64, String)| {
                keys.window(Timestamp::from_nanos(*start), key.as_bytes()).unwrap()
            };
            prop_assert_eq!(key(&a).cmp(&key(&b)), a.0.cmp(&b.0).then(a.1.as_bytes().cmp(b.1.as_bytes())));
            prop_assert_eq!(keys.parse_window(&key(&a)).unwrap(), (Timestamp::from_nanos(a.0), a.1));
        }

        #[test]
        fn no_stored_bytes_make_reading_panic(bytes: Vec<u8>) {
            let key = Key::new("k").unwrap();
            let plan = Plan::new(&crate::Aggregates::default());
            for version in [None, Some(WINDOW_VERSION)] {
                let bytes: Vec<u8> = version.into_iter().chain(bytes.iter().copied()).collect();
                if let Err(error) = decode_window(&bytes, &plan, &key) {
                    prop_assert_eq!(error.kind(), ErrorKind::Corrupt);
                }
            }
            prop_assert_eq!(Record::decode(&bytes).unwrap_err().kind(), ErrorKind::Corrupt);
        }
    }

    #[test]
    fn no_jobs_keys_are_among_those_of_another() {
        let prefix = |name: &str| Keys::generation(&JobName::new(name).unwrap(), 0).unwrap();
        let names = ["a", "a/0", "a%2F0", "a/00000000", "a%", "ab"];
        for one in names {
            for other in names.iter().filter(|other| **other != one) {
                assert!(!prefix(other).as_bytes().starts_with(prefix(one).as_bytes()), "{one} {other}");
            }
        }
    }

    #[test]
    fn the_longest_key_leaves_room_for_a_namespace() {
        let job = JobName::new("%".repeat(JobName::MAX_LEN)).unwrap();
        let keys = Keys::new(&job, u32::MAX).unwrap();
        let key = keys.window(Timestamp::MAX, &[b'x'; crate::MAX_KEY_BYTES]).unwrap();
        assert!(key.as_bytes().len() + 256 <= Key::MAX_LEN);
    }
}
