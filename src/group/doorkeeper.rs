//! `Doorkeeper`: lets a key into the hot cache when it comes for the second time.
//!
//! Most of the keys that are fetched from a peer are not asked for again soon; keeping each
//! would sweep the few out that are. groupcache tosses a coin; this remembers.

use std::sync::atomic::{AtomicU32, Ordering};

/// How many keys are remembered, some 16 KiB. A key is forgotten when another one comes to its
/// place, which takes this many fetches on the average.
const PLACES: usize = 4096;

pub(crate) struct Doorkeeper {
    // The last key seen at each place, as a part of its hash.
    places: Box<[AtomicU32]>,
}

impl Doorkeeper {
    pub(crate) fn new() -> Self {
        Self { places: (0..PLACES).map(|_| AtomicU32::new(0)).collect() }
    }

    /// Whether the key of this hash was seen shortly before; now it has been.
    pub(crate) fn note_and_was_seen(&self, hash: u64) -> bool {
        let place = (hash >> 32) as usize % PLACES;
        let mark = hash as u32 | 1; // never the mark of an empty place
        self.places[place].swap(mark, Ordering::Relaxed) == mark
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_sight_admits_and_another_key_at_the_place_makes_it_forget() {
        let doorkeeper = Doorkeeper::new();
        let (key, other) = (7 << 32 | 2, 7 << 32 | 4);
        assert!(!doorkeeper.note_and_was_seen(key));
        assert!(doorkeeper.note_and_was_seen(key));
        assert!(doorkeeper.note_and_was_seen(key));
        assert!(!doorkeeper.note_and_was_seen(other));
        assert!(!doorkeeper.note_and_was_seen(key));
        assert!(!doorkeeper.note_and_was_seen(0), "an empty place is nobody's");
    }
}
