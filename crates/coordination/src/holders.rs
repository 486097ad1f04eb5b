//! Who holds something, for people to look at.

use std::time::Duration;

use commonhold_core::{Key, Result};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, percent_encode};

use crate::lease::Leases;

/// What is written as it is in what holders say of themselves.
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'@').remove(b':');

/// Who holds something and who waits for it, at one moment of the store's clock.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Holders {
    /// Those who hold a part, in the order in which they got it.
    pub holders: Vec<Holder>,
    /// How many processes stand in line.
    pub waiting: usize,
    /// The greatest token that was given; 0 if none was, or long ago.
    pub last_token: u64,
}

/// One who holds something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// What it says of itself: for locks and semaphores its process and machine, as in `4711@host`.
    pub label: Vec<u8>,
    /// How much it holds: 1 for a lock, its permits for a semaphore.
    pub weight: u64,
    /// Its fencing token.
    pub token: u64,
    /// How long it holds unless it renews, which it does at a third of that.
    pub ttl: Duration,
    /// How long is left of that.
    pub left: Duration,
}

impl Holders {
    pub(crate) async fn read(leases: &Leases, key: &Key) -> Result<Self> {
        let (now, state) = leases.show(key).await?;
        let micros = |micros: i64| Duration::from_micros(micros.max(0).unsigned_abs());
        let holder = |holder: crate::lease::Holder| Holder {
            label: from_label(&holder.label),
            weight: holder.weight.unsigned_abs(),
            token: holder.token.unsigned_abs(),
            ttl: micros(holder.term.ttl),
            left: micros(holder.term.expires() - now),
        };
        let last_token = state.last_token.unsigned_abs();
        let waiting = state.waiters.iter().filter(|waiter| waiter.term.expires() > now).count();
        let holders = state.holders.into_iter().map(holder).collect();
        Ok(Self { holders, waiting, last_token })
    }
}

/// What a holder says of itself, as one word.
pub(crate) fn to_label(text: &[u8]) -> String {
    format!("={}", percent_encode(text, ESCAPED))
}

pub(crate) fn from_label(label: &str) -> Vec<u8> {
    percent_decode_str(label.strip_prefix('=').unwrap_or(label)).collect()
}

/// Which process this is, and on which machine, as in `4711@host`.
pub fn process_name() -> String {
    let system = rustix::system::uname();
    format!("{}@{}", std::process::id(), system.nodename().to_string_lossy())
}
