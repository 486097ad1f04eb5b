//! Where the primary's write-ahead log was at what time: by this it is told how far a replica is behind.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

/// How many looks are remembered.
const LOOKS: usize = 1024;

/// Looks at the primary's log. Positions of different timelines say nothing about each other.
#[derive(Debug, Default)]
pub(crate) struct Log {
    timeline: String,
    /// A replica may have come up to here on a timeline that has ended: that it is there says nothing.
    ended: u64,
    looks: VecDeque<Look>,
}

/// All that was acknowledged before `asked`, and so many of this store's own writes, were in the log up to here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Look {
    pub(crate) asked: Instant,
    pub(crate) writes: u64,
    pub(crate) position: u64,
}

impl Log {
    /// Remembers a look. `reached`: up to where replicas have come. What is older than `keep` is forgotten.
    pub(crate) fn looked(&mut self, timeline: &str, look: Look, reached: u64, keep: Duration) {
        if self.timeline != timeline {
            if !self.timeline.is_empty() {
                let last = self.looks.back().map_or(0, |look| look.position);
                self.ended = self.ended.max(last).max(reached);
            }
            timeline.clone_into(&mut self.timeline);
            self.looks.clear();
        }
        // After a crash the primary may be behind what it had not yet written to its disk.
        self.looks.retain(|before| before.position < look.position && before.asked.elapsed() <= keep);
        if look.position > self.ended {
            self.looks.push_back(look);
        }
        if self.looks.len() > LOOKS {
            let mut number = 0;
            self.looks.retain(|_| {
                number += 1;
                number % 2 == 1
            });
        }
    }

    /// The last look whose log is all shown by a replica that has come so far.
    pub(crate) fn shown_at(&self, replayed: u64) -> Option<Look> {
        self.looks.iter().rev().find(|look| look.position <= replayed).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEEP: Duration = Duration::from_secs(3600);

    fn look(position: u64, writes: u64) -> Look {
        Look { asked: Instant::now(), writes, position }
    }

    #[test]
    fn a_replica_shows_what_was_written_before_the_last_look_that_it_has_come_past() {
        let mut log = Log::default();
        assert_eq!(log.shown_at(u64::MAX), None);
        let looks = [look(10, 1), look(20, 2), look(30, 3)];
        looks.iter().for_each(|&look| log.looked("1", look, 0, KEEP));
        assert_eq!(log.shown_at(9), None);
        assert_eq!(log.shown_at(10), Some(looks[0]));
        assert_eq!(log.shown_at(29), Some(looks[1]));
        assert_eq!(log.shown_at(99), Some(looks[2]));
        let later = look(30, 4);
        log.looked("1", later, 0, KEEP);
        assert_eq!(log.shown_at(30), Some(later), "the log is where it was");
        log.looked("1", look(15, 5), 0, KEEP);
        assert_eq!(log.shown_at(99).unwrap().position, 15, "the log went back");
    }

    #[test]
    fn where_another_primary_goes_on_positions_of_the_former_say_nothing() {
        let mut log = Log::default();
        log.looked("1", look(10, 1), 0, KEEP);
        log.looked("2", look(8, 2), 12, KEEP);
        assert_eq!(log.shown_at(99), None);
        log.looked("2", look(12, 3), 20, KEEP);
        assert_eq!(log.shown_at(99), None, "a replica of the former may have come so far");
        log.looked("2", look(13, 4), 20, KEEP);
        assert_eq!(log.shown_at(12), None);
        assert_eq!(log.shown_at(13).unwrap().writes, 4);
    }

    #[test]
    fn looks_are_forgotten_when_they_are_old_and_thinned_out_when_they_are_many() {
        let mut log = Log::default();
        for position in 1..=10_000 {
            log.looked("1", look(position, position), 0, KEEP);
            assert!(log.looks.len() <= LOOKS);
        }
        assert_eq!(log.shown_at(10_000).unwrap().position, 10_000);
        assert!(log.shown_at(9_000).unwrap().position > 8_000);
        log.looked("1", look(10_001, 0), 0, Duration::ZERO);
        assert_eq!(log.looks.len(), 1);
    }
}
