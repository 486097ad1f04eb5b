//! The bytes of one input: buffered, counted, and hashed as they are consumed.

use std::io::{ErrorKind as IoErrorKind, Read};

use commonhold_core::{Error, ErrorKind, Result};
use xxhash_rust::xxh3::Xxh3;

use super::error::excerpt;

/// The longest row, in bytes: 1 MiB.
pub const MAX_ROW_BYTES: usize = 1024 * 1024;

const READ_BYTES: usize = 64 * 1024;

/// A reader that knows how much of it was consumed and what that was.
pub(super) struct Tape {
    name: String,
    input: Box<dyn Read + Send>,
    /// Consumed and not yet hashed, then not yet consumed, then room.
    buffer: Vec<u8>,
    hashed: usize,
    start: usize,
    end: usize,
    hasher: Box<Xxh3>,
    bytes: u64,
    lines: u64,
    ends_line: bool,
}

impl Tape {
    pub(super) fn new(name: String, input: Box<dyn Read + Send>) -> Self {
        Self {
            name,
            input,
            buffer: vec![0; READ_BYTES],
            hashed: 0,
            start: 0,
            end: 0,
            hasher: Box::new(Xxh3::new()),
            bytes: 0,
            lines: 0,
            ends_line: true,
        }
    }

    /// The input's name.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// How many bytes were consumed.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// How many line ends were consumed.
    pub(super) fn lines(&self) -> u64 {
        self.lines
    }

    /// Whether the last byte consumed, if any, ends a line.
    pub(super) fn ends_line(&self) -> bool {
        self.ends_line
    }

    /// What was read and not yet consumed.
    pub(super) fn available(&self) -> &[u8] {
        self.buffer.get(self.start..self.end).unwrap_or_default()
    }

    /// Reads more. Says whether there was more; the end of the input is not.
    ///
    /// # Errors
    /// `InvalidInput` if a row's worth of bytes is waiting already, or if reading fails.
    pub(super) fn fill(&mut self) -> Result<bool> {
        let waiting = self.end - self.start;
        if waiting > MAX_ROW_BYTES {
            return Err(self.error(format!(
                "the row is longer than {MAX_ROW_BYTES} bytes; it begins \"{}\". A quote that is never closed, or \
                 a file that is no text?",
                excerpt(self.available())
            )));
        }
        self.hash_consumed();
        self.buffer.copy_within(self.start..self.end, 0);
        (self.hashed, self.start, self.end) = (0, 0, waiting);
        if self.buffer.len() < waiting + READ_BYTES {
            self.buffer.resize((2 * self.buffer.len()).max(waiting + READ_BYTES), 0);
        }
        let read = loop {
            match self.input.read(self.buffer.get_mut(waiting..).unwrap_or_default()) {
                Ok(read) => break read,
                Err(error) if error.kind() == IoErrorKind::Interrupted => {}
                Err(error) => return Err(self.error(format!("cannot be read: {error}")).with_source(error)),
            }
        };
        self.end += read;
        Ok(read > 0)
    }

    /// Consumes the first `count` of the available bytes.
    pub(super) fn consume(&mut self, count: usize) {
        let consumed = self.available().get(..count).unwrap_or_default();
        let lines = consumed.iter().filter(|byte| **byte == b'\n').count() as u64;
        let ends_line = consumed.last().map_or(self.ends_line, |last| matches!(last, b'\n' | b'\r'));
        let count = consumed.len();
        self.ends_line = ends_line;
        self.lines += lines;
        self.bytes += count as u64;
        self.start += count;
    }

    /// The hash (xxh3, 128 bits) of all bytes that were consumed.
    pub(super) fn digest(&mut self) -> u128 {
        self.hash_consumed();
        self.hasher.digest128()
    }

    /// Consumes everything up to this many bytes from the start of the input. Says whether it has as many.
    pub(super) fn skip_to(&mut self, bytes: u64) -> Result<bool> {
        while self.bytes < bytes {
            if self.available().is_empty() && !self.fill()? {
                return Ok(false);
            }
            let wanted = usize::try_from(bytes - self.bytes).unwrap_or(usize::MAX);
            self.consume(wanted.min(self.available().len()));
        }
        Ok(self.bytes == bytes)
    }

    /// An error that names the input and the line.
    pub(super) fn error(&self, problem: impl std::fmt::Display) -> Error {
        Error::new(ErrorKind::InvalidInput, format!("{}:{}: {problem}", self.name, self.lines + 1))
    }

    fn hash_consumed(&mut self) {
        self.hasher.update(self.buffer.get(self.hashed..self.start).unwrap_or_default());
        self.hashed = self.start;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use xxhash_rust::xxh3::xxh3_128;

    use super::*;

    /// Gives a few bytes at a time, now and then interrupted.
    struct Trickle(Vec<u8>, usize);

    impl Read for Trickle {
        fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
            self.1 += 1;
            if self.1.is_multiple_of(3) {
                return Err(IoErrorKind::Interrupted.into());
            }
            let count = (self.1 % 7 + 1).min(self.0.len()).min(buffer.len());
            buffer[..count].copy_from_slice(&self.0[..count]);
            self.0.drain(..count);
            Ok(count)
        }
    }

    proptest! {
        #[test]
        fn the_hash_is_that_of_what_was_consumed(bytes: Vec<u8>, steps in proptest::collection::vec(0usize..20, 0..40)) {
            let mut tape = Tape::new("t".to_owned(), Box::new(Trickle(bytes.clone(), 0)));
            for step in steps {
                while tape.available().len() < step && tape.fill().unwrap() {}
                tape.consume(step.min(tape.available().len()));
                let consumed = &bytes[..tape.bytes() as usize];
                prop_assert_eq!(tape.digest(), xxh3_128(consumed));
                prop_assert_eq!(tape.lines(), consumed.iter().filter(|b| **b == b'\n').count() as u64);
            }
            let all = bytes.len() as u64;
            prop_assert!(!tape.skip_to(all + 1).unwrap());
            prop_assert_eq!(tape.digest(), xxh3_128(&bytes));
        }
    }

    #[test]
    fn a_row_without_end_is_an_error_and_not_memory() {
        let mut tape = Tape::new("zeros".to_owned(), Box::new(std::io::repeat(0)));
        let error = loop {
            if let Err(error) = tape.fill() {
                break error;
            }
        };
        assert!(error.message().starts_with("zeros:1: the row is longer than 1048576 bytes"), "{error}");
        assert!(tape.buffer.len() <= 4 * MAX_ROW_BYTES);
    }
}
