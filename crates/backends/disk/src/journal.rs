//! Checks the engine's journals before the engine reads them.
//!
//! The engine cuts a journal off at the first batch that it cannot read. That is right for what a crash leaves
//! behind: a last batch that was never finished and never acknowledged. But damage in the middle would take
//! everything behind it, silently. So each journal is walked first: if the end of a batch lies anywhere behind
//! the place that does not read, the journal is damaged, and opening is refused.

use std::{
    fs::{self, File},
    io::{self, BufRead, BufReader, Read, Seek, SeekFrom},
    path::{Path, PathBuf},
};

use commonhold_core::{Error, ErrorKind, Result};
use xxhash_rust::xxh3::Xxh3;

use crate::error::io_error;

/// What ends every batch in the engine's third format.
const TRAILER: [u8; 4] = *b"FJL\x03";

/// The journals in a directory.
pub(crate) fn list(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let mut journals = Vec::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "jnl") {
            journals.push(path);
        }
    }
    Ok(journals)
}

/// Whether nothing was ever written to this journal.
pub(crate) fn is_blank(path: &Path) -> io::Result<bool> {
    let mut first = [0];
    File::open(path)?.read(&mut first).map(|_| first == [0])
}

/// Makes durable what the operating system holds of the journals.
///
/// Through descriptors of its own: the engine would lock out every writer meanwhile.
pub(crate) fn sync(directory: &Path) -> io::Result<()> {
    for path in list(directory)? {
        match File::open(path) {
            Ok(journal) => journal.sync_all()?,
            // Its writes are in tables by now.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Refuses a journal that is damaged, and cuts off a last batch that was never finished.
pub(crate) fn check(path: &Path) -> Result<()> {
    let failed = |error: io::Error| io_error(path, &error);
    let file = File::options().read(true).write(true).open(path).map_err(failed)?;
    let mut reader = BufReader::with_capacity(256 * 1024, &file);
    let (mut end, mut last_seqno) = (0, None);
    while let Some((len, seqno)) = batch(&mut reader).map_err(failed)? {
        // No checksum covers the number, but the next one is always higher.
        if Some(seqno) <= last_seqno {
            break;
        }
        (end, last_seqno) = (end + len, Some(seqno));
    }
    reader.seek(SeekFrom::Start(end)).map_err(failed)?;
    match rest(&mut reader).map_err(failed)? {
        Rest::Blank => Ok(()),
        Rest::Unfinished => {
            tracing::warn!(journal = %path.display(), end, "cut off a write that was never finished");
            file.set_len(end).and_then(|()| file.sync_all()).map_err(failed)
        }
        Rest::Batches => Err(Error::new(
            ErrorKind::Corrupt,
            format!(
                "{path}: the journal is damaged at byte {end} and goes on behind it; restore the store from a copy, \
                 or give up what comes after that byte: truncate --size={end} {path}",
                path = path.display()
            ),
        )),
    }
}

/// Reads one batch: its length and number; `None` if what comes is not a whole and sound one.
fn batch(reader: &mut impl Read) -> io::Result<Option<(u64, u64)>> {
    match try_batch(reader) {
        Ok(batch) => Ok(batch),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
        Err(error) => Err(error),
    }
}

fn try_batch(reader: &mut impl Read) -> io::Result<Option<(u64, u64)>> {
    let [1] = bytes(reader)? else { return Ok(None) };
    let items = u32::from_le_bytes(bytes(reader)?);
    let seqno = u64::from_le_bytes(bytes(reader)?);
    let mut len = 13;
    let mut hasher = Xxh3::new();
    for _ in 0..items {
        let [tag] = bytes(reader)?;
        hasher.update(&[tag]);
        len += match tag {
            2 => item(reader, &mut hasher)?,
            4 => 1 + copy(reader, &mut hasher, 8)?,
            _ => return Ok(None),
        };
    }
    let [tag] = bytes(reader)?;
    let checksum = u64::from_le_bytes(bytes(reader)?);
    let trailer: [u8; 4] = bytes(reader)?;
    let sound = tag == 3 && checksum == hasher.digest() && trailer == TRAILER;
    Ok(sound.then_some((len + 13, seqno)))
}

/// Reads what follows the tag of an item: kind, compression, keyspace, three lengths, key and value.
fn item(reader: &mut impl Read, hasher: &mut Xxh3) -> io::Result<u64> {
    let header: [u8; 20] = bytes(reader)?;
    hasher.update(&header);
    let [.., k0, k1, _, _, _, _, v0, v1, v2, v3] = header;
    let key_len = u16::from_le_bytes([k0, k1]);
    let value_len = u32::from_le_bytes([v0, v1, v2, v3]);
    Ok(21 + copy(reader, hasher, u64::from(key_len) + u64::from(value_len))?)
}

fn bytes<const N: usize>(reader: &mut impl Read) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    reader.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn copy(reader: &mut impl Read, hasher: &mut Xxh3, len: u64) -> io::Result<u64> {
    let mut part = [0; 4096];
    let mut reader = reader.take(len);
    let mut copied = 0;
    while copied < len {
        let read = reader.read(&mut part)?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        hasher.update(part.get(..read).unwrap_or_default());
        copied += read as u64;
    }
    Ok(len)
}

/// What lies behind the last sound batch.
#[derive(Debug, PartialEq, Eq)]
enum Rest {
    /// Nothing, or the zeros of space that was reserved.
    Blank,
    /// The beginning of a batch.
    Unfinished,
    /// Something that has the end of a batch in it.
    Batches,
}

fn rest(reader: &mut impl BufRead) -> io::Result<Rest> {
    static ZEROS: [u8; 64 * 1024] = [0; 64 * 1024];
    // The last 14 bytes: the end of a batch (3, checksum, trailer), and what comes after it.
    let mut window = [0; 14];
    let mut rest = Rest::Blank;
    loop {
        let part = reader.fill_buf()?;
        let len = part.len().min(ZEROS.len());
        if len == 0 {
            window.rotate_left(1);
            let ends = matches!(window, [3, .., b'F', b'J', b'L', 3, _]);
            return Ok(if ends { Rest::Batches } else { rest });
        }
        // Tens of megabytes of reserved space are passed over at once.
        if window == [0; 14] && part.get(..len) == ZEROS.get(..len) {
            reader.consume(len);
            continue;
        }
        for &byte in part.iter().take(len) {
            window.rotate_left(1);
            if let Some(last) = window.last_mut() {
                *last = byte;
            }
            if byte != 0 {
                rest = Rest::Unfinished;
            }
            if matches!(window, [3, _, _, _, _, _, _, _, _, b'F', b'J', b'L', 3, 0 | 1]) {
                return Ok(Rest::Batches);
            }
        }
        reader.consume(len);
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// A batch with one item, as the engine writes it.
    fn batch_bytes(seqno: u64, key: &[u8], value: &[u8]) -> Vec<u8> {
        let mut item = vec![2, 0, 0];
        item.extend(1u64.to_le_bytes());
        item.extend((key.len() as u16).to_le_bytes());
        item.extend((value.len() as u32).to_le_bytes());
        item.extend((value.len() as u32).to_le_bytes());
        item.extend(key);
        item.extend(value);
        let mut hasher = Xxh3::new();
        hasher.update(&item);
        let mut bytes = vec![1];
        bytes.extend(1u32.to_le_bytes());
        bytes.extend(seqno.to_le_bytes());
        bytes.extend(item);
        bytes.push(3);
        bytes.extend(hasher.digest().to_le_bytes());
        bytes.extend(TRAILER);
        bytes
    }

    fn checked(bytes: &[u8]) -> (Result<()>, Vec<u8>) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("0.jnl");
        fs::write(&path, bytes).unwrap();
        let result = check(&path);
        (result, fs::read(&path).unwrap())
    }

    #[test]
    fn sound_journals_stay_as_they_are() {
        let journal = [batch_bytes(1, b"a", b"1"), batch_bytes(2, b"b", &[9; 10_000])].concat();
        let reserved = [&journal[..], &[0; 5000]].concat();
        for bytes in [&b""[..], &[0; 100], &journal, &reserved] {
            let (result, after) = checked(bytes);
            result.unwrap();
            assert_eq!(after, bytes);
        }
    }

    #[test]
    fn a_last_batch_cut_at_any_byte_is_removed_and_the_first_stays() {
        let (first, second) = (batch_bytes(1, b"a", b"1"), batch_bytes(2, b"b", b"2"));
        for len in 1..second.len() {
            for reserved in [0, 50] {
                let bytes = [&first[..], &second[..len], &vec![0; reserved]].concat();
                let (result, after) = checked(&bytes);
                result.unwrap();
                assert_eq!(after, first, "cut after {len} bytes");
            }
        }
    }

    #[test]
    fn a_changed_byte_before_the_last_batch_is_damage_and_nothing_is_cut() {
        let (first, second) = (batch_bytes(1, b"a", b"1"), batch_bytes(2, b"b", b"2"));
        let journal = [&first[..], &second[..], &[0; 50]].concat();
        for at in 0..first.len() {
            let mut bytes = journal.clone();
            bytes[at] ^= 0x55;
            let (result, after) = checked(&bytes);
            assert_eq!(result.unwrap_err().kind(), ErrorKind::Corrupt, "byte {at}");
            assert_eq!(after, bytes);
        }
    }
}
