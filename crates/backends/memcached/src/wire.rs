//! The meta protocol: commands as bytes, and bytes as replies.
//!
//! As `protocol.txt` of Memcached 1.6 has it: <https://github.com/memcached/memcached/blob/master/doc/protocol.txt>.

use std::{fmt::Write as _, str};

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use commonhold_core::{Error, ErrorKind, Result};

use crate::{
    error::{nonsense, refusal},
    keys::WireKey,
};

/// No line of a server is longer.
const MAX_LINE_BYTES: usize = 2048;
/// No server has more figures to tell.
const MAX_STATS: usize = 2000;
/// Shorter values are copied, so that one does not keep alive what came with it.
const COPY_BELOW_BYTES: usize = 16 * 1024;

/// The most commands that travel in one request.
pub(crate) const MAX_COMMANDS: usize = 1000;

/// Commands that travel together and are answered in their order.
#[derive(Debug)]
pub(crate) struct Commands {
    pub(crate) bytes: BytesMut,
    /// The token of the first; the next has the next.
    pub(crate) first: u64,
    pub(crate) count: u64,
    /// Whether repeating them could do harm.
    pub(crate) writes: bool,
}

impl Commands {
    /// None yet. Each request has a number of its own, by which its replies are known.
    pub(crate) fn new(request: u64) -> Self {
        let first = request.wrapping_mul(MAX_COMMANDS as u64);
        Self { bytes: BytesMut::new(), first, count: 0, writes: false }
    }

    /// Asks for what the flags say, as in `v t c`.
    pub(crate) fn get(&mut self, key: &WireKey, flags: &str) {
        self.begin("mg ", key);
        let _ = write!(self.bytes, " {flags}");
        self.end(key);
    }

    /// Stores a value.
    pub(crate) fn set(&mut self, key: &WireKey, value: &[u8], set: Set) {
        self.writes = true;
        self.bytes.reserve(value.len() + 128);
        self.begin("ms ", key);
        let _ = write!(self.bytes, " {} T{}", value.len(), set.expires);
        let _ = match set.when {
            When::Always => Ok(()),
            When::Absent => self.bytes.write_str(" ME"),
            When::Present => self.bytes.write_str(" MR"),
            When::Unchanged(cas) => write!(self.bytes, " C{cas}"),
        };
        if set.client_flags != 0 {
            let _ = write!(self.bytes, " F{}", set.client_flags);
        }
        self.end(key);
        self.bytes.put_slice(value);
        self.bytes.put_slice(b"\r\n");
    }

    /// Deletes an entry, if it has not changed since it had this number.
    pub(crate) fn delete(&mut self, key: &WireKey, unchanged: Option<u64>) {
        self.writes = true;
        self.begin("md ", key);
        if let Some(cas) = unchanged {
            let _ = write!(self.bytes, " C{cas}");
        }
        self.end(key);
    }

    /// Asks for the figures; `stats` or `stats settings`. Nothing else travels with it.
    pub(crate) fn stats(&mut self, command: &str) {
        let _ = write!(self.bytes, "{command}\r\n");
        self.count += 1;
    }

    fn begin(&mut self, command: &str, key: &WireKey) {
        self.bytes.put_slice(command.as_bytes());
        self.bytes.put_slice(key.token());
    }

    fn end(&mut self, key: &WireKey) {
        key.put_flag(&mut self.bytes);
        let _ = write!(self.bytes, " O{}\r\n", self.first.wrapping_add(self.count));
        self.count += 1;
    }
}

/// How a value is stored.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Set {
    pub(crate) when: When,
    /// As Memcached has it: 0 for never, seconds from now up to 30 days, seconds since 1970 beyond.
    pub(crate) expires: u64,
    /// What plain clients keep beside the value.
    pub(crate) client_flags: u32,
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum When {
    Always,
    Absent,
    Present,
    /// The entry has this number still.
    Unchanged(u64),
}

/// What a server answers to one command.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Reply {
    /// `VA`: a value.
    Value(Bytes, Flags),
    /// `VA` of a value that is longer than we take; it was passed over.
    TooLong(u64, Flags),
    /// `HD`: done, or there.
    Done(Flags),
    /// `NS`: the condition does not hold.
    NotStored(Flags),
    /// `EX`: changed meanwhile.
    Changed(Flags),
    /// `NF` or `EN`: no entry.
    Missing(Flags),
    /// The figures: name and value.
    Stats(Vec<(String, String)>),
    /// An error line, which carries no token.
    Refused(Vec<u8>),
}

/// What a server says besides.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Flags {
    /// The token that we sent.
    pub(crate) opaque: Option<u64>,
    /// The number that the entry has until it changes.
    pub(crate) cas: Option<u64>,
    /// How long it lives, in seconds. `None` for ever, or if that was not asked for.
    pub(crate) seconds_left: Option<u64>,
    /// What plain clients keep beside the value.
    pub(crate) client: u32,
}

impl Reply {
    pub(crate) fn opaque(&self) -> Option<u64> {
        match self {
            Self::Value(_, flags)
            | Self::TooLong(_, flags)
            | Self::Done(flags)
            | Self::NotStored(flags)
            | Self::Changed(flags)
            | Self::Missing(flags) => flags.opaque,
            Self::Stats(_) | Self::Refused(_) => None,
        }
    }
}

/// Takes replies out of what a server sends, however it is cut.
#[derive(Debug)]
pub(crate) struct Parser {
    max_value_bytes: u64,
    state: State,
}

#[derive(Debug, Default)]
enum State {
    #[default]
    Line,
    Value(usize, Flags),
    PassOver(u64, u64, Flags),
    Stats(Vec<(String, String)>),
}

impl Parser {
    /// A parser that passes over values longer than this.
    pub(crate) fn new(max_value_bytes: u64) -> Self {
        Self { max_value_bytes, state: State::Line }
    }

    /// The next reply, if all of it is there. An error if it is none: nothing that follows can be trusted.
    pub(crate) fn next(&mut self, buffer: &mut BytesMut) -> Result<Option<Reply>> {
        loop {
            match std::mem::take(&mut self.state) {
                State::Line => {
                    let Some(line) = take_line(buffer)? else { return Ok(None) };
                    if let Some(reply) = self.line(&line)? {
                        return Ok(Some(reply));
                    }
                }
                State::Value(len, flags) => {
                    if buffer.len() < len + 2 {
                        buffer.reserve(len + 2 - buffer.len());
                        self.state = State::Value(len, flags);
                        return Ok(None);
                    }
                    let value = take_value(buffer, len);
                    take_end(buffer)?;
                    return Ok(Some(Reply::Value(value, flags)));
                }
                State::PassOver(len, left, flags) => {
                    let there = left.min(buffer.len() as u64);
                    buffer.advance(usize::try_from(there).unwrap_or(buffer.len()));
                    if there < left || buffer.len() < 2 {
                        self.state = State::PassOver(len, left - there, flags);
                        return Ok(None);
                    }
                    take_end(buffer)?;
                    return Ok(Some(Reply::TooLong(len, flags)));
                }
                State::Stats(mut stats) => {
                    let Some(line) = take_line(buffer)? else {
                        self.state = State::Stats(stats);
                        return Ok(None);
                    };
                    if line == "END" {
                        return Ok(Some(Reply::Stats(stats)));
                    }
                    if stats.len() >= MAX_STATS {
                        return Err(nonsense("as one figure too many", &line));
                    }
                    stats.push(stat(&line)?);
                    self.state = State::Stats(stats);
                }
            }
        }
    }

    fn line(&mut self, line: &[u8]) -> Result<Option<Reply>> {
        if line.starts_with(b"STAT ") {
            self.state = State::Stats(vec![stat(line)?]);
            return Ok(None);
        }
        if refusal(line).is_some() {
            return Ok(Some(Reply::Refused(line.to_vec())));
        }
        let wrong = || nonsense("where a reply of the meta protocol was expected", line);
        let mut words = str::from_utf8(line).map_err(|_| wrong())?.split(' ').filter(|word| !word.is_empty());
        let code = words.next().unwrap_or_default();
        let len = match code {
            "VA" => Some(words.next().and_then(|len| len.parse::<u64>().ok()).ok_or_else(wrong)?),
            _ => None,
        };
        let flags = flags(words).ok_or_else(wrong)?;
        Ok(Some(match (code, len) {
            ("VA", Some(len)) => {
                self.state = match usize::try_from(len) {
                    Ok(short) if len <= self.max_value_bytes => State::Value(short, flags),
                    _ => State::PassOver(len, len, flags),
                };
                return Ok(None);
            }
            ("HD", _) => Reply::Done(flags),
            ("NS", _) => Reply::NotStored(flags),
            ("EX", _) => Reply::Changed(flags),
            ("NF" | "EN", _) => Reply::Missing(flags),
            _ => return Err(wrong()),
        }))
    }
}

fn take_line(buffer: &mut BytesMut) -> Result<Option<BytesMut>> {
    let searched = buffer.get(..MAX_LINE_BYTES).unwrap_or(buffer);
    let Some(end) = searched.iter().position(|byte| *byte == b'\n') else {
        if buffer.len() >= MAX_LINE_BYTES {
            return Err(nonsense("as a line without an end", buffer));
        }
        return Ok(None);
    };
    let mut line = buffer.split_to(end + 1);
    let blank = line.iter().rev().take_while(|byte| b"\r\n ".contains(byte)).count();
    line.truncate(line.len() - blank);
    Ok(Some(line))
}

fn take_value(buffer: &mut BytesMut, len: usize) -> Bytes {
    if len < COPY_BELOW_BYTES { buffer.copy_to_bytes(len) } else { buffer.split_to(len).freeze() }
}

fn take_end(buffer: &mut BytesMut) -> Result<()> {
    let end = buffer.split_to(2);
    if end == "\r\n" { Ok(()) } else { Err(nonsense("where a value should end", &end)) }
}

fn stat(line: &[u8]) -> Result<(String, String)> {
    let wrong = || nonsense("where a figure was expected", line);
    let text = str::from_utf8(line).ok().and_then(|line| line.strip_prefix("STAT ")).ok_or_else(wrong)?;
    let (name, value) = text.split_once(' ').unwrap_or((text, ""));
    Ok((name.to_owned(), value.to_owned()))
}

/// The flags of a reply; those that we do not ask for are passed over.
fn flags<'a>(words: impl Iterator<Item = &'a str>) -> Option<Flags> {
    let mut flags = Flags::default();
    for word in words {
        let (name, value) = word.split_at_checked(1)?;
        match name {
            "O" => flags.opaque = Some(value.parse().ok()?),
            "c" => flags.cas = Some(value.parse().ok()?),
            "f" => flags.client = value.parse().ok()?,
            "t" if value == "-1" => flags.seconds_left = None,
            "t" => flags.seconds_left = Some(value.parse().ok()?),
            _ => {}
        }
    }
    Some(flags)
}

/// The error of a value that is longer than we take.
pub(crate) fn too_long(len: u64) -> Error {
    Error::new(
        ErrorKind::TooLarge,
        format!("somebody else stored a value of {len} bytes there; raise max_value to read it"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(bytes: &[u8], cut: usize) -> Result<Vec<Reply>> {
        let (mut parser, mut buffer, mut replies) = (Parser::new(10), BytesMut::new(), Vec::new());
        for part in bytes.chunks(cut) {
            buffer.extend_from_slice(part);
            while let Some(reply) = parser.next(&mut buffer)? {
                replies.push(reply);
            }
        }
        Ok(replies)
    }

    #[test]
    fn replies_are_read_however_they_are_cut() {
        let bytes = b"VA 3 t100 c1 f7 O5\r\na\r\n\r\nHD O1\r\nEN\r\nNF O2\r\nNS O3\r\nEX c0 O4\r\n\
            VA 11 O6\r\n0123456789x\r\nVA 0 t-1 k# W\r\n\r\nSTAT pid 1\r\nSTAT version 1 2\r\nEND\r\nERROR\r\nHD \r\n";
        let flags = |opaque| Flags { opaque, ..Flags::default() };
        let value = Flags { opaque: Some(5), cas: Some(1), seconds_left: Some(100), client: 7 };
        let stats = [("pid", "1"), ("version", "1 2")].map(|(name, value)| (name.into(), value.into()));
        for cut in 1..=bytes.len() {
            let replies = parse(bytes, cut).unwrap();
            assert_eq!(replies.len(), 11, "{replies:?}");
            assert_eq!(replies[0], Reply::Value("a\r\n".into(), value));
            assert_eq!(replies[1..4].iter().map(Reply::opaque).collect::<Vec<_>>(), [Some(1), None, Some(2)]);
            assert_eq!(replies[4], Reply::NotStored(flags(Some(3))));
            assert_eq!(replies[5], Reply::Changed(Flags { cas: Some(0), ..flags(Some(4)) }));
            assert_eq!(replies[6], Reply::TooLong(11, flags(Some(6))));
            assert_eq!(replies[7], Reply::Value(Bytes::new(), Flags::default()));
            assert_eq!(replies[8], Reply::Stats(stats.to_vec()));
            assert!(matches!(replies[9], Reply::Refused(_)));
            assert_eq!(replies[10], Reply::Done(Flags::default()));
        }
    }

    #[test]
    fn hostile_replies_are_errors() {
        let endless = [b'x'; MAX_LINE_BYTES];
        let stats = b"STAT a 1\r\n".repeat(MAX_STATS + 2);
        for bytes in [
            &b"\r\n"[..],
            b"-ERR unknown command\r\n",
            b"HTTP/1.1 400 Bad Request\r\n",
            b"VA\r\n",
            b"VA x\r\n",
            b"VA -1\r\n",
            b"VA 3 O1\r\nabcd\r\n",
            b"VA 99999999999999999999999 O1\r\n",
            b"HD Ox\r\n",
            b"HD t-2\r\n",
            b"HD \xff\r\n",
            b"HD \xc3\xa9\r\n",
            b"STAT a 1\r\nHD\r\n",
            &endless,
            &stats,
        ] {
            for cut in [1, bytes.len()] {
                let error = parse(bytes, cut).unwrap_err();
                assert_eq!(error.kind(), ErrorKind::Corrupt, "{}", bytes.escape_ascii());
                assert!(error.to_string().len() < 250);
            }
        }
    }

    #[test]
    fn a_value_that_claims_to_be_huge_takes_no_memory() {
        let (mut parser, mut buffer) = (Parser::new(10), BytesMut::new());
        buffer.extend_from_slice(b"VA 18446744073709551615 O1\r\n");
        for _ in 0..1000 {
            buffer.extend_from_slice(&[b'x'; 1000]);
            assert_eq!(parser.next(&mut buffer).unwrap(), None);
            assert!(buffer.is_empty() && buffer.capacity() < 10_000);
        }
    }

    #[test]
    fn commands_are_written_as_the_protocol_has_them() {
        let key = |bytes: &str| WireKey::new(b"", &commonhold_core::Key::new(bytes).unwrap());
        let mut commands = Commands::new(2);
        commands.get(&key("k"), "v t");
        commands.get(&key("a b"), "v");
        assert!(!commands.writes);
        let set = |when| Set { when, expires: 5, client_flags: 0 };
        commands.set(&key("k"), b"xy", set(When::Always));
        commands.set(&key("k"), b"", Set { client_flags: 3, ..set(When::Unchanged(7)) });
        commands.delete(&key("k"), None);
        commands.delete(&key("k"), Some(9));
        let expected = "mg k v t O2000\r\nmg YSBi v b O2001\r\nms k 2 T5 O2002\r\nxy\r\nms k 0 T5 C7 F3 O2003\r\n\r\n\
            md k O2004\r\nmd k C9 O2005\r\n";
        assert_eq!(commands.bytes, expected);
        assert!(commands.writes && commands.count == 6);
    }
}
