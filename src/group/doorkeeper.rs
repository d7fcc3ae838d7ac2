//! `Doorkeeper`: admits a key to the hot cache when it is fetched for the second time.
//!
//! Most of the keys that are fetched from a peer are not asked for again soon, and to keep all of
//! them would push out the few that are. groupcache tosses a coin; this remembers.

use std::sync::atomic::{AtomicU32, Ordering};

/// How many keys are remembered, in 16 KiB. A key is forgotten when another one gets its index,
/// which takes this many fetches on average.
const KEYS: usize = 4096;

pub(crate) struct Doorkeeper {
    // For each index the fingerprint of the last key, 32 bits of its hash; 0: none yet.
    seen: Box<[AtomicU32]>,
}

impl Doorkeeper {
    pub(crate) fn new() -> Self {
        Self { seen: (0..KEYS).map(|_| AtomicU32::new(0)).collect() }
    }

    /// Notes the key of this hash; `true` if it was seen shortly before.
    pub(crate) fn note_and_was_seen(&self, hash: u64) -> bool {
        let index = (hash >> 32) as usize % KEYS;
        let fingerprint = hash as u32 | 1; // never 0
        self.seen[index].swap(fingerprint, Ordering::Relaxed) == fingerprint
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_sight_admits_and_another_key_of_the_index_makes_it_forget() {
        let doorkeeper = Doorkeeper::new();
        let (key, other) = (7 << 32 | 2, 7 << 32 | 4);
        assert!(!doorkeeper.note_and_was_seen(key));
        assert!(doorkeeper.note_and_was_seen(key));
        assert!(doorkeeper.note_and_was_seen(key));
        assert!(!doorkeeper.note_and_was_seen(other));
        assert!(!doorkeeper.note_and_was_seen(key));
        assert!(!doorkeeper.note_and_was_seen(0), "an empty index is nobody's");
    }
}
